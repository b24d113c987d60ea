package worker_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"go.uber.org/goleak"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/stages/worker"
)

// The test program is its own child: as a worker with the stages below, as a
// worker that breaks the protocol (raw_test.go), or as a host that is killed.
func TestMain(m *testing.M) {
	if mode := os.Getenv("WORKER_TEST_RAW"); mode != "" {
		rawChild(mode)
		os.Exit(0)
	}
	maps.Copy(stages, further())
	worker.RunIfChild(stages)
	if doing := os.Getenv("WORKER_TEST_PARENT"); doing != "" {
		parent(doing)
	}
	goleak.VerifyTestMain(m)
}

var stages = map[string]worker.Func{
	// double writes each batch with its numbers doubled.
	"double": func(ctx context.Context, task *worker.ChildTask) error {
		for b, err := range task.Batches(ctx, "in", 0, math.MaxUint64) {
			if err != nil {
				return err
			}
			x := b.Column(0).(*array.Float64).Float64Values()
			twice := make([]float64, len(x))
			for i := range x {
				twice[i] = 2 * x[i]
			}
			out := numbers(twice...)
			err = task.Write(ctx, b.Sequence, out)
			out.Release()
			if err != nil {
				return err
			}
			if err := task.Progress(worker.Progress{Done: int64(b.Sequence) + 1}); err != nil {
				return err
			}
		}
		return nil
	},
	// where says in which mapping of this process each batch's values lie.
	"where": func(ctx context.Context, task *worker.ChildTask) error {
		for b, err := range task.Batches(ctx, "in", 0, math.MaxUint64) {
			if err != nil {
				return err
			}
			x := b.Column(0).(*array.Float64).Float64Values()
			at := uintptr(unsafe.Pointer(&x[0]))
			maps, err := os.ReadFile("/proc/self/maps")
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(maps)) {
				var low, high uintptr
				if n, _ := fmt.Sscanf(line, "%x-%x", &low, &high); n == 2 && low <= at && at < high {
					f := strings.Fields(line)
					if err := task.Progress(worker.Progress{Done: int64(b.Sequence), Note: f[1] + " " + f[5]}); err != nil {
						return err
					}
				}
			}
		}
		return nil
	},
	// join adds two inputs.
	"join": func(ctx context.Context, task *worker.ChildTask) error {
		next, stop := iter.Pull2(task.Batches(ctx, "right", 0, math.MaxUint64))
		defer stop()
		for l, err := range task.Batches(ctx, "left", 0, math.MaxUint64) {
			if err != nil {
				return err
			}
			r, err, ok := next()
			if !ok || err != nil {
				return errors.Join(errors.New("right is shorter"), err)
			}
			out := numbers(l.Column(0).(*array.Float64).Value(0) + r.Column(0).(*array.Float64).Value(0))
			if err := task.Write(ctx, l.Sequence, out); err != nil {
				return err
			}
			out.Release()
		}
		return nil
	},
	// hoard keeps what it gets and says how much that is.
	"hoard": func(ctx context.Context, task *worker.ChildTask) error {
		n := 0
		for b, err := range task.Batches(ctx, "in", 0, math.MaxUint64) {
			if err != nil {
				return err
			}
			b.Retain()
			n++
			if err := task.Progress(worker.Progress{Done: int64(n)}); err != nil {
				return err
			}
		}
		return nil
	},
	// hang takes a batch, says so, and stops listening.
	"hang": func(ctx context.Context, task *worker.ChildTask) error {
		for range task.Batches(ctx, "in", 0, math.MaxUint64) {
			if err := task.Progress(worker.Progress{Done: int64(os.Getpid())}); err != nil {
				return err
			}
			select {}
		}
		return nil
	},
	// hold writes the batch that it holds, says so, and waits, unwilling to end.
	"hold": func(ctx context.Context, task *worker.ChildTask) error {
		for b, err := range task.Batches(ctx, "in", 0, math.MaxUint64) {
			if err != nil {
				return err
			}
			if err := task.Write(ctx, b.Sequence, b.RecordBatch); err != nil {
				return err
			}
			if err := task.Progress(worker.Progress{Done: 1}); err != nil {
				return err
			}
			select {}
		}
		return nil
	},
	"obey": func(ctx context.Context, task *worker.ChildTask) error {
		if err := task.Progress(worker.Progress{Done: 1}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	},
	"talk": func(_ context.Context, task *worker.ChildTask) error {
		fmt.Println("to stdout")
		task.Logger().With("a", 1).WithGroup("g").Warn("careful", "b", "two", "err", errors.New("oops"))
		return task.Metrics(map[string]float64{"auc": 0.75, "params": float64(len(task.Params)), "env": float64(len(os.Environ()))})
	},
	"fail": func(context.Context, *worker.ChildTask) error { return errors.New("it went wrong") },
	"scream": func(_ context.Context, task *worker.ChildTask) error {
		task.Logger().Error(strings.Repeat("\x01", 100_000), "more", strings.Repeat("x", 100_000))
		return errors.New(strings.Repeat("\x01", 100_000))
	},
	"panic": func(context.Context, *worker.ChildTask) error { panic("at the worst time") },
	"exit": func(context.Context, *worker.ChildTask) error {
		fmt.Fprintln(os.Stderr, "last words")
		os.Exit(3)
		return nil
	},
	// fork starts a process and tells its id.
	"fork": func(ctx context.Context, task *worker.ChildTask) error {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "WORKER_TEST_RAW=sleep")
		if err := cmd.Start(); err != nil {
			return err
		}
		return task.Progress(worker.Progress{Done: int64(cmd.Process.Pid)})
	},
	// drain leases every batch and reads none of it.
	"drain": func(ctx context.Context, task *worker.ChildTask) error {
		for _, err := range task.Batches(ctx, "in", 0, math.MaxUint64) {
			if err != nil {
				return err
			}
		}
		return nil
	},
	"write": func(ctx context.Context, task *worker.ChildTask) error {
		for i := range uint64(20) {
			out := numbers(float64(i))
			if err := task.Write(ctx, i, out); err != nil {
				return err
			}
			out.Release()
		}
		return nil
	},
}

func numbers(x ...float64) arrow.RecordBatch {
	s := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Float64}}, nil)
	b := array.NewRecordBuilder(memory.NewGoAllocator(), s)
	defer b.Release()
	b.Field(0).(*array.Float64Builder).AppendValues(x, nil)
	return b.NewRecordBatch()
}

// parent is a host that waits to be killed: idle, or while its child holds a batch
// and has one of its own out.
func parent(doing string) {
	h, err := worker.Start(context.Background(), worker.Config{Env: []string{}, Outputs: worker.Shared})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if doing == "idle" {
		fmt.Println(h.PID())
		select {}
	}
	a, err := shm.New(shm.Config{Bytes: 1 << 16})
	if err == nil {
		err = h.Do(context.Background(), worker.Job{
			Stage: "hold", Inputs: one(a, 3),
			OnBatch:    func(_ context.Context, out *worker.Output) error { out.Keep(); return nil },
			OnProgress: func(worker.Progress) error { fmt.Println(h.PID()); return nil },
		})
	}
	fmt.Println(err)
	os.Exit(1)
}

func host(tb testing.TB, cfg worker.Config) *worker.Host {
	tb.Helper()
	if cfg.Backoff == 0 {
		cfg.Backoff = time.Millisecond
	}
	h, err := worker.Start(context.Background(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := h.Close(ctx); err != nil {
			tb.Error(err)
		}
	})
	return h
}

func newArena(tb testing.TB, bytes int64) *shm.Arena {
	tb.Helper()
	a, err := shm.New(shm.Config{Bytes: bytes})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { a.Close() })
	return a
}

// leased feeds n small batches through the arena, sequence i holding i.
func leased(a *shm.Arena, n int) func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
	return func(ctx context.Context, _, _ uint64) iter.Seq2[worker.InputBatch, error] {
		return func(yield func(worker.InputBatch, error) bool) {
			for i := range n {
				rec := numbers(float64(i), float64(i)+0.5)
				h, err := a.Put(ctx, rec, nil)
				rec.Release()
				if err != nil {
					yield(worker.InputBatch{}, err)
					return
				}
				l, err := a.Hold(h, "test")
				if err != nil {
					yield(worker.InputBatch{}, err)
					return
				}
				a.Drop(h)
				if !yield(worker.InputBatch{Sequence: uint64(i), Lease: l}, nil) {
					return
				}
			}
		}
	}
}

func one(a *shm.Arena, n int) []worker.Input {
	return []worker.Input{{Name: "in", Batches: leased(a, n)}}
}

// until polls a condition, for at most 10 s.
func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatal("timed out waiting until", what)
		}
	}
}

// gone reports whether a process has ended (it may wait to be reaped by whoever
// inherited it).
func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func descriptors(tb testing.TB) int {
	tb.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(all)
}
