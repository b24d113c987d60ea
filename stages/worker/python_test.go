package worker_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/internal/pythontest"
	"github.com/stokehold/stokehold/stages/worker"
)

// python starts a host whose child is testdata/stages.py.
func python(tb testing.TB, cfg worker.Config) *worker.Host {
	tb.Helper()
	if err := pythontest.Touch("testdata"); err != nil {
		tb.Fatal(err)
	}
	cfg.Command = []string{pythontest.Interpreter(tb), "testdata/stages.py"}
	if cfg.Set == nil {
		cfg.Set = map[string]string{}
	}
	cfg.Set["PYTHONPATH"] = pythontest.Source(tb)
	// Importing pyarrow takes seconds on a busy machine.
	cfg.StartTimeout = 2 * time.Minute
	if cfg.HeartbeatTimeout == 0 {
		cfg.HeartbeatTimeout = time.Minute
	}
	return host(tb, cfg)
}

// manyTypes is a batch of columns of several layouts, with nulls.
func manyTypes(i int) arrow.RecordBatch {
	s := arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int64},
		{Name: "text", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "view", Type: arrow.BinaryTypes.StringView, Nullable: true},
		{Name: "word", Type: &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}, Nullable: true},
		{Name: "list", Type: arrow.ListOf(arrow.PrimitiveTypes.Int32), Nullable: true},
		{Name: "pair", Type: arrow.StructOf(arrow.Field{Name: "a", Type: arrow.FixedWidthTypes.Boolean, Nullable: true}, arrow.Field{Name: "b", Type: arrow.PrimitiveTypes.Float32, Nullable: true}), Nullable: true},
		{Name: "vector", Type: arrow.FixedSizeListOf(3, arrow.PrimitiveTypes.Float64), Nullable: true},
	}, nil)
	text := fmt.Sprintf(`{"id":%d,"text":"number %[1]d","view":"longer than twelve bytes: %[1]d","word":"w%d","list":[%[1]d,null],"pair":{"a":true,"b":0.5},"vector":[1,2,%[1]d]}
		{"id":-1,"text":null,"view":null,"word":null,"list":null,"pair":null,"vector":null}
		{"id":%[1]d,"text":"","view":"short","word":"w0","list":[],"pair":{"a":null,"b":null},"vector":[0,0,0]}`, i, i%3)
	rec, _, err := array.RecordFromJSON(memory.NewGoAllocator(), s, strings.NewReader("["+strings.ReplaceAll(text, "}\n", "},\n")+"]"))
	if err != nil {
		panic(err)
	}
	return rec
}

func many(n int, of func(int) arrow.RecordBatch) func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
	return func(_ context.Context, from, to uint64) iter.Seq2[worker.InputBatch, error] {
		return func(yield func(worker.InputBatch, error) bool) {
			for i := range uint64(n) {
				if i < from || i >= to {
					continue
				}
				rec := of(int(i))
				ok := yield(worker.InputBatch{Sequence: i, Batch: rec}, nil)
				rec.Release()
				if !ok {
					return
				}
			}
		}
	}
}

func TestPythonEchoes(t *testing.T) {
	a := newArena(t, 1<<20)
	for _, mode := range []worker.OutputMode{worker.Sealed, worker.Shared} {
		t.Run(string(mode), func(t *testing.T) {
			h := python(t, worker.Config{Arena: a, Outputs: mode})
			const n = 50
			next := 0
			err := h.Do(t.Context(), worker.Job{
				Stage: "echo", Inputs: []worker.Input{{Name: "in", Batches: many(n, manyTypes)}},
				OnBatch: func(_ context.Context, out *worker.Output) error {
					want := manyTypes(next)
					defer want.Release()
					if out.Sequence != uint64(next) || !array.RecordEqual(out.Batch, want) || out.Arena.Shared() != (mode == worker.Shared) {
						t.Errorf("output %d: %v, want number %d: %v", out.Sequence, out.Batch, next, want)
					}
					next++
					return nil
				},
			})
			if s := h.Stats(); err != nil || next != n || s.CopiedBytes != 0 || s.Leases != 0 || s.Died != 0 || s.Reclaimed != 0 {
				t.Errorf("%d outputs, %+v, %v", next, s, err)
			}
			if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestPythonReadsTheArenaItself proves from the child's side, by the kernel's own
// account, that a batch is read where the host wrote it.
func TestPythonReadsTheArenaItself(t *testing.T) {
	readsTheArena(t, python(t, worker.Config{}))
}

// TestPythonBuildsInPlace counts the bytes that Python copied into outputs: none.
func TestPythonBuildsInPlace(t *testing.T) {
	a := newArena(t, 1<<20)
	for _, mode := range []worker.OutputMode{worker.Sealed, worker.Shared} {
		t.Run(string(mode), func(t *testing.T) {
			h := python(t, worker.Config{Outputs: mode})
			n := 0
			err := h.Do(t.Context(), worker.Job{Stage: "double", Inputs: one(a, 20), OnBatch: func(_ context.Context, out *worker.Output) error {
				x := out.Batch.Column(0).(*array.Float64)
				if x.Value(0) != 2*float64(n) || !out.Arena.Contains(x.Data().Buffers()[1].Bytes()) {
					t.Errorf("output %d: %v", n, x)
				}
				n++
				return nil
			}})
			if s := h.Stats(); err != nil || n != 20 || s.WrittenBytes != 0 || s.CopiedBytes != 0 || s.OutBytes == 0 {
				t.Errorf("%d outputs, %+v, %v", n, s, err)
			}
		})
	}
}

func TestPythonReports(t *testing.T) {
	h := python(t, worker.Config{Env: []string{"PATH"}})
	var logs []worker.Log
	var progress []worker.Progress
	metrics := map[string]float64{}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	err := h.Do(ctx, worker.Job{
		Stage: "churn/talk", Params: json.RawMessage(`{"assignment":{"pipeline":"churn","run":"r","stage":"talk","kind":"train","attempt":1,"seed":1,"params":{"n":1,"m":1},"run_params":{"n":2}}}`),
		OnLog:      func(l worker.Log) { logs = append(logs, l) },
		OnProgress: func(p worker.Progress) error { progress = append(progress, p); return nil },
		OnMetrics: func(m map[string]float64) error {
			for k, v := range m {
				metrics[k] = v
			}
			return nil
		},
	})
	if err != nil || len(logs) != 1 || logs[0].Level != slog.LevelWarn || logs[0].Message != "careful 7" || fmt.Sprint(logs[0].Attrs) != "map[a:1 b:two logger:stokehold.talk]" {
		t.Errorf("%+v %v", logs, err)
	}
	if metrics["auc"] != 0.75 || metrics["params"] != 2 || metrics["remaining"] < 3000 || metrics["remaining"] > 3600 {
		t.Error(metrics)
	}
	if len(progress) != 2 || progress[0].Notes["colour"] != "green" || progress[1].Done != 3 || progress[1].Total != 9 || progress[1].Note != "halfway" || progress[1].Values["loss"] != 0.25 {
		t.Errorf("%+v", progress)
	}
}

func TestPythonErrors(t *testing.T) {
	h := python(t, worker.Config{})
	for stage, want := range map[string]string{"fail": "ValueError: it went wrong", "permanent": "never again", "nosuch": "no stage"} {
		err := h.Do(t.Context(), worker.Job{Stage: stage})
		var s *worker.StageError
		if !errors.As(err, &s) || !strings.Contains(s.Message, want) || errors.Is(err, worker.ErrUnknownStage) != (stage == "nosuch") || s.Permanent != (stage == "permanent") {
			t.Errorf("%s: %v", stage, err)
			continue
		}
		if stage == "fail" && (!strings.HasPrefix(s.Traceback, "Traceback") || !strings.Contains(s.Traceback, "in inner\n") || strings.Contains(s.Traceback, "worker.py")) {
			t.Errorf("traceback %q", s.Traceback)
		}
	}
	if s := h.Stats(); s.Died != 0 || s.Started != 1 {
		t.Errorf("%+v", s)
	}
}

func TestPythonObeysCancellation(t *testing.T) {
	a := newArena(t, 1<<20)
	// The child looks for it a few times per second; a busy machine is slow.
	h := python(t, worker.Config{CancelGrace: time.Minute})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no longer wanted")
	pid := h.PID()
	err := h.Do(ctx, worker.Job{Stage: "obey", Inputs: one(a, 3), OnProgress: func(worker.Progress) error { cancel(why); return nil }})
	if !errors.Is(err, why) || h.PID() != pid || h.Stats().Died != 0 {
		t.Error(err, h.Stats())
	}
	if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
		t.Errorf("%+v", s)
	}
}

func TestPythonKilledMidBatch(t *testing.T) {
	a := newArena(t, 1<<20)
	h := python(t, worker.Config{})
	before := descriptors(t)
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		err := h.Do(t.Context(), worker.Job{Stage: "hang", Inputs: one(a, 10), OnProgress: func(p worker.Progress) error {
			if n := a.Stats().Leases; n == 0 {
				t.Error("the child holds no lease")
			}
			return unix.Kill(int(p.Done), sig)
		}})
		var died *worker.DiedError
		if !errors.Is(err, worker.ErrWorkerDied) || !errors.As(err, &died) || died.Stage != "hang" {
			t.Fatalf("%v", err)
		}
		if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
			t.Errorf("%+v", s)
		}
	}
	n := 0
	if err := h.Do(t.Context(), worker.Job{Stage: "echo", Inputs: one(a, 5), OnBatch: func(context.Context, *worker.Output) error { n++; return nil }}); err != nil || n != 5 {
		t.Error(n, err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// TestPythonGoesOnAfterACrash runs a stage as a retry does: from its checkpoint,
// with appends numbered after those of the attempt that died.
func TestPythonGoesOnAfterACrash(t *testing.T) {
	a := newArena(t, 1<<20)
	h := python(t, worker.Config{Arena: a})
	var sequences []uint64
	var checkpoint json.RawMessage
	restored := false
	job := func(attempt int, further string) worker.Job {
		params := fmt.Sprintf(`{"assignment":{"pipeline":"p","run":"r","stage":"crash","kind":"preprocess","attempt":%d,"seed":0,"inputs":[{"name":"up","dataset":"in"}],"output":"out"}%s}`, attempt, further)
		return worker.Job{
			Stage: "p/crash", Params: json.RawMessage(params), Inputs: []worker.Input{{Name: "in", Batches: many(5, func(i int) arrow.RecordBatch { return numbers(float64(i)) })}},
			OnBatch: func(_ context.Context, out *worker.Output) error {
				n := out.Sequence &^ (1 << 63)
				if x := out.Batch.Column(0).(*array.Float64).Value(0); x != float64(n) || n == out.Sequence {
					t.Errorf("append %d holds %v", n, x)
				}
				sequences = append(sequences, n)
				return nil
			},
			OnProgress: func(p worker.Progress) error {
				restored = restored || p.Values["stokehold.restored"] == 1
				if p.Checkpoint != nil {
					checkpoint = bytes.Clone(p.Checkpoint)
				}
				return nil
			},
		}
	}
	err := h.Do(t.Context(), job(1, ""))
	var died *worker.DiedError
	if !errors.As(err, &died) || died.Exit != "signal: aborted" {
		t.Fatal(err)
	}
	if string(checkpoint) != `{"next":3}` || restored {
		t.Fatalf("%s, restored %v", checkpoint, restored)
	}
	further := fmt.Sprintf(`,"checkpoint":%s,"written":{"batches":3,"rows":3,"from":0,"to":3}`, checkpoint)
	if err := h.Do(t.Context(), job(2, further)); err != nil || fmt.Sprint(sequences) != "[0 1 2 3 4]" || !restored {
		t.Error(sequences, restored, err)
	}
	if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
		t.Errorf("%+v", s)
	}
}

func TestPythonSavesAModel(t *testing.T) {
	h := python(t, worker.Config{})
	var note string
	var header map[string]struct {
		Dtype   string
		Shape   []int
		Offsets [2]int `json:"data_offsets"`
	}
	err := h.Do(t.Context(), worker.Job{
		Stage: "model",
		OnModel: func(_ context.Context, m *worker.Model) (worker.SavedModel, error) {
			n := binary.LittleEndian.Uint64(m.Artifact)
			text := bytes.Replace(m.Artifact[8:8+n], []byte(`"__metadata__":{"by":"python"},`), nil, 1)
			if err := json.Unmarshal(text, &header); err != nil {
				return worker.SavedModel{}, err
			}
			if m.Metrics["auc"] != 0.9 || m.Precision != "fp16" || m.Metadata["by"] != "python" || len(m.Artifact) != int(8+n+32) {
				t.Errorf("%+v, %d bytes", m.ModelDraft, len(m.Artifact))
			}
			return worker.SavedModel{Model: "m", Version: "abc123"}, nil
		},
		OnProgress: func(p worker.Progress) error { note = p.Note; return nil },
	})
	if err != nil || note != "abc123" || header["w"].Dtype != "F32" || fmt.Sprint(header["w"].Shape) != "[6]" || header["b"].Dtype != "I64" {
		t.Errorf("%+v, %q, %v", header, note, err)
	}
	refuse := errors.New("not good enough")
	err = h.Do(t.Context(), worker.Job{Stage: "model", OnModel: func(context.Context, *worker.Model) (worker.SavedModel, error) {
		return worker.SavedModel{}, refuse
	}})
	if !errors.Is(err, refuse) || h.Stats().Died != 0 {
		t.Error(err)
	}
}

// TestPythonThatKeepsABatch ends: nothing may read memory that is used again.
func TestPythonThatKeepsABatch(t *testing.T) {
	a := newArena(t, 1<<20)
	h := python(t, worker.Config{})
	err := h.Do(t.Context(), worker.Job{Stage: "keep", Inputs: one(a, 2)})
	var gave *worker.GaveUpError
	if !errors.Is(err, worker.ErrWorkerDied) || !errors.As(err, &gave) || !strings.Contains(gave.Reason, "kept 2 batches") || !strings.Contains(gave.Reason, "stokehold.copy") {
		t.Error(err)
	}
	if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
		t.Errorf("%+v", s)
	}
	if err := h.Do(t.Context(), worker.Job{Stage: "echo", Inputs: one(a, 1)}); err != nil {
		t.Error(err)
	}
}

func TestPythonDiesWithLastWords(t *testing.T) {
	h := python(t, worker.Config{})
	err := h.Do(t.Context(), worker.Job{Stage: "exit"})
	var died *worker.DiedError
	if !errors.As(err, &died) || died.Exit != "exit status 3" || !strings.Contains(died.Output, "last words") {
		t.Error(err)
	}
	grandchild := 0
	err = h.Do(t.Context(), worker.Job{Stage: "fork", OnProgress: func(p worker.Progress) error { grandchild = int(p.Done); return nil }})
	if err != nil || grandchild == 0 || gone(grandchild) {
		t.Fatal(grandchild, err)
	}
	child := h.PID()
	if err := h.Close(t.Context()); err != nil {
		t.Error(err)
	}
	until(t, "both are gone", func() bool { return gone(child) && gone(grandchild) })
}

// TestPythonThatIsNoWorker starts programs that do not speak the protocol: each is an
// error that says what happened, and nothing of it is left.
func TestPythonThatIsNoWorker(t *testing.T) {
	const enough = time.Minute // to start Python on a busy machine
	for name, tc := range map[string]struct {
		program string
		limit   time.Duration
		want    []string
	}{
		"prints garbage":           {`import sys; sys.stdout.buffer.write(bytes(range(256)) * 4096); print("the end")`, enough, []string{"exit status 0", "the end"}},
		"sends garbage":            {`import socket; s = socket.socket(fileno=3); s.send(b"what?"); s.recv(1); s.recv(1)`, enough, []string{"packet of 5 bytes"}},
		"sends garbage in a frame": {`import socket; s = socket.socket(fileno=3); s.send(bytes([32, 0]) + b"?" * 26); s.recv(1); s.recv(1)`, enough, []string{"protocol"}},
		"exits at once":            {`raise SystemExit(9)`, enough, []string{"exit status 9"}},
		"cannot be imported":       {`import nothing_of_that_name`, enough, []string{"exit status 1", "ModuleNotFoundError"}},
		"never reads":              {`import time; time.sleep(600)`, 200 * time.Millisecond, []string{"not ready after"}},
	} {
		t.Run(name, func(t *testing.T) {
			before := descriptors(t)
			h, err := worker.Start(t.Context(), worker.Config{
				Command: []string{pythontest.Interpreter(t), "-c", tc.program}, StartTimeout: tc.limit, Backoff: time.Millisecond,
			})
			if err == nil {
				t.Fatal("it started", h.Close(t.Context()))
			}
			if !errors.Is(err, worker.ErrWorkerDied) {
				t.Error(err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in %v", want, err)
				}
			}
			if n := len(err.Error()); n > 64<<10 {
				t.Errorf("an error of %d bytes", n)
			}
			until(t, "nothing is left open", func() bool { return descriptors(t) == before })
		})
	}
}

func TestPythonByHandSaysWhatItIs(t *testing.T) {
	for _, args := range [][]string{{"testdata/stages.py"}, {"-m", "stokehold"}} {
		cmd := exec.CommandContext(t.Context(), pythontest.Interpreter(t), args...)
		cmd.Env = append(cmd.Environ(), "PYTHONPATH="+pythontest.Source(t))
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), "is a Stokehold worker") {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
}

// BenchmarkPythonJob leases batches of rows float64 to a Python child that lets go
// of each at once: what the hand-over costs, which the size does not change.
func BenchmarkPythonJob(b *testing.B) {
	for _, rows := range []int{512, 128 << 10, 2 << 20} {
		b.Run(strconv.Itoa(rows*8), func(b *testing.B) {
			a := newArena(b, 64<<20)
			h := python(b, worker.Config{})
			rec := numbers(make([]float64, rows)...)
			defer rec.Release()
			handle, err := a.Put(b.Context(), rec, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(rows * 8))
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
