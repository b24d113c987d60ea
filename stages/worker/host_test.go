package worker_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"
	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/stages/worker"
)

func TestRoundTripByReference(t *testing.T) {
	a := newArena(t, 1<<20)
	h := host(t, worker.Config{})
	const n = 50
	var kept []*worker.Output
	var hot shm.Host
	next, most := 0, int64(0)
	err := h.Do(t.Context(), worker.Job{
		Stage: "double", Inputs: one(a, n),
		OnBatch: func(_ context.Context, out *worker.Output) error {
			x := out.Batch.Column(0).(*array.Float64)
			if out.Sequence != uint64(next) || x.Value(0) != 2*float64(next) || x.Value(1) != 2*float64(next)+1 {
				t.Errorf("output %d: %v, want number %d", out.Sequence, x, next)
			}
			if !out.Arena.Contains(x.Data().Buffers()[1].Bytes()) {
				t.Error("the output was copied out of its segment")
			}
			if next%10 == 0 {
				out.Keep()
				kept = append(kept, out)
				if err := hot.Add(out.Arena); err != nil {
					t.Error(err)
				}
			}
			next++
			most = max(most, h.Stats().Leases)
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := h.Stats()
	if next != n || s.InBatches != n || s.OutBatches != n || s.CopiedBytes != 0 || s.Leases != 0 || s.Died != 0 || s.Started != 1 {
		t.Errorf("%d outputs, %+v", next, s)
	}
	if s.InBytes != 64*n || s.OutBytes != 64*n || s.WrittenBytes != 64*n {
		t.Errorf("bytes %+v", s)
	}
	if most > 4 {
		t.Errorf("%d leases at once with a credit of 4", most)
	}
	if st := a.Stats(); st.Used != 0 || st.Leases != 0 {
		t.Errorf("arena %+v", st)
	}
	// What was kept outlives the job, and can be leased to the child again.
	job := worker.Job{Stage: "where", Inputs: []worker.Input{{Name: "in", Batches: func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
		return func(yield func(worker.InputBatch, error) bool) {
			for _, out := range kept {
				l, err := hot.Open(out.Handle.String(), "again")
				if err != nil {
					yield(worker.InputBatch{}, err)
					return
				}
				if !yield(worker.InputBatch{Sequence: out.Sequence, Lease: *l}, nil) {
					return
				}
			}
		}
	}}}}
	seen := 0
	job.OnProgress = func(p worker.Progress) error {
		seen++
		if !strings.HasPrefix(p.Note, "r--s /memfd:") {
			t.Errorf("batch %d lies in %s", p.Done, p.Note)
		}
		return nil
	}
	if err := h.Do(t.Context(), job); err != nil || seen != len(kept) {
		t.Error(seen, err)
	}
	for _, out := range kept {
		if err := hot.Drop(out.Handle.String()); err != nil {
			t.Error(err)
		}
	}
	if s := hot.Stats(); s.Arenas != 0 {
		t.Errorf("%+v", s)
	}
}

// TestChildReadsTheArenaItself proves from the child's side, by the kernel's own
// account, that a batch is read where the host wrote it.
func TestChildReadsTheArenaItself(t *testing.T) {
	readsTheArena(t, host(t, worker.Config{}))
}

func readsTheArena(t *testing.T, h *worker.Host) {
	t.Helper()
	a := newArena(t, 1<<20)
	var notes []string
	err := h.Do(t.Context(), worker.Job{Stage: "where", Inputs: one(a, 3), OnProgress: func(p worker.Progress) error {
		notes = append(notes, p.Note)
		return nil
	}})
	if err != nil || fmt.Sprint(notes) != "[r--s /memfd:stokehold r--s /memfd:stokehold r--s /memfd:stokehold]" {
		t.Error(notes, err)
	}
}

func TestBatchesFromTheHeapAreCountedAsWritten(t *testing.T) {
	heap := func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
		return func(yield func(worker.InputBatch, error) bool) {
			rec := numbers(1, 2)
			defer rec.Release()
			yield(worker.InputBatch{Sequence: 0, Batch: rec}, nil)
		}
	}
	job := worker.Job{Stage: "where", Inputs: []worker.Input{{Name: "in", Batches: heap}}}
	a := newArena(t, 1<<20)
	h := host(t, worker.Config{Arena: a})
	if err := h.Do(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	if s := h.Stats(); s.WrittenBytes != 64 || s.CopiedBytes != 0 || s.InBytes != 64 || a.Stats().Used != 0 {
		t.Errorf("%+v, %+v", s, a.Stats())
	}
	if err := host(t, worker.Config{}).Do(t.Context(), job); err == nil || !strings.Contains(err.Error(), "Config.Arena") {
		t.Error(err)
	}
}

func TestTwoInputs(t *testing.T) {
	a := newArena(t, 1<<20)
	h := host(t, worker.Config{Credit: 1})
	var got []float64
	err := h.Do(t.Context(), worker.Job{
		Stage:  "join",
		Inputs: []worker.Input{{Name: "left", Batches: leased(a, 20)}, {Name: "right", Batches: leased(a, 30)}},
		OnBatch: func(_ context.Context, out *worker.Output) error {
			got = append(got, out.Batch.Column(0).(*array.Float64).Value(0))
			return nil
		},
	})
	if err != nil || len(got) != 20 || got[19] != 38 {
		t.Error(got, err)
	}
	if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
		t.Errorf("%+v", s)
	}
}

func TestCreditLimitsLeases(t *testing.T) {
	a := newArena(t, 1<<20)
	h := host(t, worker.Config{Credit: 3})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := int64(0)
	err := h.Do(ctx, worker.Job{Stage: "hoard", Inputs: one(a, 10), OnProgress: func(p worker.Progress) error {
		if seen = p.Done; seen == 3 {
			// The child now waits for a fourth. The input goes on until it has to wait
			// for credit, with one batch in its hands.
			until(t, "the input waits for credit", func() bool { return a.Stats().Leases == 4 })
			if n := h.Stats().Leases; n != 3 {
				t.Errorf("%d leases with a credit of 3", n)
			}
			cancel()
		}
		return nil
	}})
	if !errors.Is(err, context.Canceled) || seen != 3 {
		t.Error(seen, err)
	}
	if s := h.Stats(); s.Leases != 0 || s.Reclaimed != 3 || s.InBatches != 3 || s.Died != 0 {
		t.Errorf("%+v", s)
	}
	if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
		t.Errorf("%+v", s)
	}
}

// TestWindow: batches that are opened when the child has credit, one at a time in a
// larger credit, take the memory of one.
func TestWindow(t *testing.T) {
	const n = 50
	a := newArena(t, 4096)
	h := host(t, worker.Config{Credit: 4})
	var opened, released int
	open := func(ctx context.Context) (shm.Lease, error) {
		if opened != released {
			t.Errorf("batch %d is asked for while %d are back", opened, released)
		}
		opened++
		record := numbers(float64(opened))
		defer record.Release()
		handle, err := a.Put(ctx, record, nil)
		if err != nil {
			return shm.Lease{}, err
		}
		defer func() { _ = a.Drop(handle) }() // the lease goes on
		return a.Hold(handle, "test")
	}
	in := worker.Input{Name: "in", Window: 1, Batches: func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
		return func(yield func(worker.InputBatch, error) bool) {
			for i := range uint64(n) {
				if !yield(worker.InputBatch{Sequence: i, Open: open, Released: func() { released++ }}, nil) {
					return
				}
			}
		}
	}}
	got := 0
	err := h.Do(t.Context(), worker.Job{Stage: "double", Inputs: []worker.Input{in}, OnBatch: func(context.Context, *worker.Output) error {
		got++
		return nil
	}})
	if err != nil || got != n || opened != n || released != n {
		t.Errorf("%d outputs, %d opened, %d released, %v", got, opened, released, err)
	}
	if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
		t.Errorf("%+v", s)
	}
}

func TestKilledChildIsOneFailedJob(t *testing.T) {
	a := newArena(t, 1<<20)
	h := host(t, worker.Config{})
	before := descriptors(t)
	for range 3 {
		err := h.Do(t.Context(), worker.Job{Stage: "hang", Inputs: one(a, 10), OnProgress: func(p worker.Progress) error {
			return unix.Kill(int(p.Done), unix.SIGKILL)
		}})
		var died *worker.DiedError
		if !errors.Is(err, worker.ErrWorkerDied) || !errors.As(err, &died) || died.Exit != "signal: killed" || died.Stage != "hang" {
			t.Fatalf("%v", err)
		}
		if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
			t.Errorf("%+v", s)
		}
		if s := h.Stats(); s.Leases != 0 {
			t.Errorf("%+v", s)
		}
	}
	n := 0
	if err := h.Do(t.Context(), worker.Job{Stage: "double", Inputs: one(a, 5), OnBatch: func(context.Context, *worker.Output) error { n++; return nil }}); err != nil || n != 5 {
		t.Error(n, err)
	}
	if s := h.Stats(); s.Died != 3 || s.Started != 4 {
		t.Errorf("%+v", s)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestStoppedChild(t *testing.T) {
	a := newArena(t, 1<<20)
	stop := func(p worker.Progress) error { return unix.Kill(int(p.Done), unix.SIGSTOP) }
	t.Run("deadline", func(t *testing.T) {
		h := host(t, worker.Config{CancelGrace: 50 * time.Millisecond})
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := h.Do(ctx, worker.Job{Stage: "hang", Inputs: one(a, 10), OnProgress: stop})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
			t.Error(time.Since(start), err)
		}
		if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("heartbeat", func(t *testing.T) {
		h := host(t, worker.Config{HeartbeatTimeout: 300 * time.Millisecond})
		err := h.Do(t.Context(), worker.Job{Stage: "hang", Inputs: one(a, 10), OnProgress: stop})
		if !errors.Is(err, worker.ErrStalled) || !errors.Is(err, worker.ErrWorkerDied) {
			t.Error(err)
		}
		if err := h.Do(t.Context(), worker.Job{Stage: "double", Inputs: one(a, 2)}); err != nil {
			t.Error(err)
		}
		if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestSlowJobIsNotAStalledChild holds the host's own code up for longer than the
// heartbeat allows the child.
func TestSlowJobIsNotAStalledChild(t *testing.T) {
	a := newArena(t, 1<<20)
	h := host(t, worker.Config{HeartbeatTimeout: 100 * time.Millisecond})
	slow := func(context.Context, *worker.Output) error {
		<-time.After(300 * time.Millisecond)
		return nil
	}
	if err := h.Do(t.Context(), worker.Job{Stage: "double", Inputs: one(a, 3), OnBatch: slow}); err != nil {
		t.Error(err)
	}
}

func TestCancelledStageEndsAndChildStays(t *testing.T) {
	h := host(t, worker.Config{})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no longer wanted")
	pid := h.PID()
	err := h.Do(ctx, worker.Job{Stage: "obey", OnProgress: func(worker.Progress) error { cancel(why); return nil }})
	if !errors.Is(err, why) || h.PID() != pid || h.Stats().Died != 0 {
		t.Error(err, h.Stats())
	}
}

func TestStageErrors(t *testing.T) {
	a := newArena(t, 1<<20)
	h := host(t, worker.Config{})
	for stage, want := range map[string]string{"fail": "it went wrong", "panic": "at the worst time", "nosuch": "no stage", "scream": "\x01\x01"} {
		err := h.Do(t.Context(), worker.Job{Stage: stage})
		var s *worker.StageError
		if !errors.As(err, &s) || !strings.Contains(s.Message, want) || errors.Is(err, worker.ErrUnknownStage) != (stage == "nosuch") {
			t.Errorf("%s: %v", stage, err)
		}
	}
	refuse := errors.New("catalog says no")
	err := h.Do(t.Context(), worker.Job{Stage: "write", OnBatch: func(context.Context, *worker.Output) error { return refuse }})
	if !errors.Is(err, refuse) {
		t.Error(err)
	}
	broken := func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
		return func(yield func(worker.InputBatch, error) bool) { yield(worker.InputBatch{}, refuse) }
	}
	err = h.Do(t.Context(), worker.Job{Stage: "double", Inputs: []worker.Input{{Name: "in", Batches: broken}}})
	if !errors.Is(err, refuse) {
		t.Error(err)
	}
	if err := h.Do(t.Context(), worker.Job{Stage: "double", Params: json.RawMessage(`"` + strings.Repeat("x", 70_000) + `"`)}); err == nil || !strings.Contains(err.Error(), "by reference") {
		t.Error(err)
	}
	if err := h.Do(t.Context(), worker.Job{Stage: "double", Inputs: one(a, 1)}); err != nil || h.Stats().Died != 0 {
		t.Error(err, h.Stats())
	}
}

func TestLogsMetricsAndEnvironment(t *testing.T) {
	t.Setenv("WORKER_TEST_SECRET", "hunter2")
	h := host(t, worker.Config{Env: []string{"PATH"}, Set: map[string]string{"OMP_NUM_THREADS": "1"}})
	var logs []worker.Log
	var metrics map[string]float64
	err := h.Do(t.Context(), worker.Job{
		Stage: "talk", Params: json.RawMessage(`{"k":1}`),
		OnLog:     func(l worker.Log) { logs = append(logs, l) },
		OnMetrics: func(m map[string]float64) error { metrics = m; return nil },
	})
	if err != nil || len(logs) != 1 || logs[0].Level != slog.LevelWarn || logs[0].Message != "careful" || fmt.Sprint(logs[0].Attrs) != "map[a:1 g.b:two g.err:oops]" {
		t.Errorf("%+v %v", logs, err)
	}
	if metrics["auc"] != 0.75 || metrics["params"] != 7 || metrics["env"] != 2 {
		t.Error(metrics)
	}
}

func TestRestartWaitsAndHonoursTheContext(t *testing.T) {
	h := host(t, worker.Config{Backoff: time.Hour})
	if err := h.Do(t.Context(), worker.Job{Stage: "exit"}); !errors.Is(err, worker.ErrWorkerDied) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := h.Do(ctx, worker.Job{Stage: "double"}); !errors.Is(err, context.DeadlineExceeded) || h.Stats().Started != 1 || h.PID() != 0 {
		t.Error(err, h.Stats())
	}
}

func TestExitKeepsLastWords(t *testing.T) {
	h := host(t, worker.Config{})
	err := h.Do(t.Context(), worker.Job{Stage: "exit"})
	var died *worker.DiedError
	if !errors.As(err, &died) || died.Exit != "exit status 3" || !strings.Contains(died.Output, "last words") || !strings.Contains(err.Error(), "last words") {
		t.Error(err)
	}
}

func TestParentKilledChildGone(t *testing.T) {
	for _, doing := range []string{"idle", "working"} {
		t.Run(doing, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "WORKER_TEST_PARENT="+doing)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil || gone(pid) {
				t.Fatal(line, err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			until(t, "the child is gone", func() bool { return gone(pid) })
		})
	}
}

func TestCloseEndsTheWholeGroup(t *testing.T) {
	h := host(t, worker.Config{})
	grandchild, child := 0, h.PID()
	err := h.Do(t.Context(), worker.Job{Stage: "fork", OnProgress: func(p worker.Progress) error { grandchild = int(p.Done); return nil }})
	if err != nil || grandchild == 0 || gone(grandchild) {
		t.Fatal(grandchild, err)
	}
	for range 2 {
		if err := h.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	until(t, "both are gone", func() bool { return gone(child) && gone(grandchild) })
	if err := h.Do(t.Context(), worker.Job{Stage: "double"}); !errors.Is(err, worker.ErrClosed) {
		t.Error(err)
	}
}

func TestCloseInterruptsAJob(t *testing.T) {
	a := newArena(t, 1<<20)
	h := host(t, worker.Config{})
	running, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- h.Do(context.Background(), worker.Job{Stage: "hang", Inputs: one(a, 3), OnProgress: func(worker.Progress) error { close(running); return nil }})
	}()
	<-running
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, worker.ErrWorkerDied) || !errors.Is(err, worker.ErrClosed) {
		t.Error(err)
	}
	if s := a.Stats(); s.Leases != 0 {
		t.Errorf("%+v", s)
	}
}

func TestConfigFaults(t *testing.T) {
	for _, cfg := range []worker.Config{
		{Credit: 300}, {Credit: -1}, {StartTimeout: -time.Second}, {Command: []string{"/nonexistent/program"}}, {Outputs: "both"},
		{ChildBytes: -1}, {ModelBytes: -1}, {MemoryBytes: -1}, {BatchBytes: -1}, {Processes: 65}, {Processes: -1},
	} {
		if h, err := worker.Start(t.Context(), cfg); err == nil {
			h.Close(t.Context())
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

func Example() {
	// In main, before anything else, the child's stages:
	//
	//	worker.RunIfChild(map[string]worker.Func{"double": double})
	ctx := context.Background()
	arena, err := shm.New(shm.Config{Bytes: 1 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer arena.Close()
	h, err := worker.Start(ctx, worker.Config{Arena: arena})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer h.Close(ctx)
	err = h.Do(ctx, worker.Job{
		Stage: "double",
		Inputs: []worker.Input{{Name: "in", Batches: func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
			return func(yield func(worker.InputBatch, error) bool) {
				batch := numbers(1, 2, 3)
				defer batch.Release()
				yield(worker.InputBatch{Batch: batch}, nil)
			}
		}}},
		OnBatch: func(_ context.Context, out *worker.Output) error {
			fmt.Println(out.Sequence, out.Batch.Column(0))
			return nil
		},
	})
	fmt.Println(err, h.Stats().CopiedBytes)
	// Output:
	// 0 [2 4 6]
	// <nil> 0
}

func BenchmarkJob(b *testing.B) {
	for _, rows := range []int{512, 128 << 10, 2 << 20} {
		b.Run(strconv.Itoa(rows*8), func(b *testing.B) {
			a := newArena(b, 64<<20)
			h := host(b, worker.Config{})
			x := make([]float64, rows)
			rec := numbers(x...)
			defer rec.Release()
			handle, err := a.Put(b.Context(), rec, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(rows * 8))
			b.ReportAllocs()
			b.ResetTimer()
			if err := h.Do(b.Context(), worker.Job{Stage: "drain", Inputs: []worker.Input{{Name: "in", Batches: repeat(a, handle, b.N, int64(rows*8))}}}); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if s := h.Stats(); s.CopiedBytes != 0 {
				b.Errorf("%+v", s)
			}
		})
	}
}
