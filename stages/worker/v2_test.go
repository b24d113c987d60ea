package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/stages/worker"
)

// further are stages of the child, beside those of main_test.go.
func further() map[string]worker.Func {
	return map[string]worker.Func{
		"squares": squares,
		// model hands over as many bytes as its parameters have.
		"model": func(ctx context.Context, task *worker.ChildTask) error {
			m, err := task.SaveModel(ctx, worker.ModelDraft{Metrics: map[string]float64{"auc": 0.9}, Precision: "fp16"}, task.Params)
			if err != nil {
				return err
			}
			return task.Progress(worker.Progress{Note: m.Model + "@" + m.Version})
		},
		// when says how far its deadline is.
		"when": func(ctx context.Context, task *worker.ChildTask) error {
			at, ok := ctx.Deadline()
			return task.Metrics(map[string]float64{"has": truth(ok), "seconds": time.Until(at).Seconds()})
		},
		// eat allocates until it cannot.
		"eat": func(ctx context.Context, task *worker.ChildTask) error {
			var all [][]byte
			for ctx.Err() == nil {
				all = append(all, bytes.Repeat([]byte{1}, 16<<20))
			}
			return fmt.Errorf("ate %d", len(all))
		},
		// build makes batches where the host reads them, keeping each while the next is made.
		"build": func(ctx context.Context, task *worker.ChildTask) error {
			schema := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Float64}}, nil)
			for i := range uint64(50) {
				b, err := task.Build(ctx, schema, 8<<10)
				if err != nil {
					return err
				}
				if i == 7 {
					b.Cancel()
					continue
				}
				r := array.NewRecordBuilder(b.Allocator(), schema)
				r.Reserve(1000)
				for j := range 1000 {
					r.Field(0).(*array.Float64Builder).Append(float64(i) + float64(j))
				}
				rec := r.NewRecordBatch()
				r.Release()
				err = b.Write(ctx, i, rec)
				rec.Release()
				if err != nil {
					return err
				}
				if b.Write(ctx, i, rec) == nil {
					return errors.New("a build was written twice")
				}
			}
			return nil
		},
		"flood": func(_ context.Context, task *worker.ChildTask) error {
			l := task.Logger()
			for i := range 12_000 {
				l.Info("again", "i", i)
			}
			return nil
		},
		// mirror writes what it reads, until told to stop.
		"mirror": func(ctx context.Context, task *worker.ChildTask) error {
			for b, err := range task.Batches(ctx, "in", 0, math.MaxUint64) {
				if err != nil {
					return err
				}
				if err := task.Write(ctx, b.Sequence, b.RecordBatch); err != nil {
					return err
				}
			}
			return nil
		},
		"traced": func(context.Context, *worker.ChildTask) error { return tracedError{} },
	}
}

type tracedError struct{}

func (tracedError) Error() string     { return "went wrong" }
func (tracedError) Traceback() string { return strings.Repeat("é", 20_000) + "\n  at the end\n" }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// TestSharedOutputs has a child publish in its own arena: every batch comes
// through, the memory is used again, and nothing is left.
func TestSharedOutputs(t *testing.T) {
	a := newArena(t, 1<<20)
	before := descriptors(t)
	h := host(t, worker.Config{Outputs: worker.Shared, ChildBytes: 1 << 16})
	var arenas = map[*shm.Arena]bool{}
	var rows float64
	job := worker.Job{Stage: "double", Inputs: one(a, 200), OnBatch: func(_ context.Context, out *worker.Output) error {
		if !out.Arena.Shared() {
			t.Errorf("output %d came sealed", out.Sequence)
		}
		arenas[out.Arena] = true
		if x := out.Batch.Column(0).(*array.Float64); !out.Arena.Contains(x.Data().Buffers()[1].Bytes()) || x.Value(0) != 2*float64(out.Sequence) {
			t.Errorf("output %d: copied or wrong: %v", out.Sequence, x)
		}
		rows += float64(out.Batch.NumRows())
		return nil
	}}
	for range 2 {
		if err := h.Do(t.Context(), job); err != nil {
			t.Fatal(err)
		}
	}
	if rows != 800 || len(arenas) != 1 {
		t.Errorf("%v rows in %d arenas", rows, len(arenas))
	}
	if st := h.Stats(); st.OutShared != 400 || st.CopiedBytes != 0 {
		t.Errorf("%+v", st)
	}
	for arena := range arenas {
		if s := arena.Stats(); s.Slots != 0 || s.Published != 400 || s.Capacity != 1<<16 {
			t.Errorf("%+v", s)
		}
	}
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the child's arena is unmapped", func() bool {
		for arena := range arenas {
			if arena.Stats().Arenas != 0 {
				return false
			}
		}
		return descriptors(t) == before
	})
}

// TestPatienceBeginsWithTheWait: that the process did not run before does not count.
func TestPatienceBeginsWithTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		brief, end := worker.Patience(t.Context())
		defer end()
		<-time.After(time.Minute) // of the bubble
		if err := brief.Err(); err != nil {
			t.Error(err)
		}
		begun := time.Now()
		<-brief.Done()
		if err := brief.Err(); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		brief, end = worker.Patience(ctx)
		defer end()
		if err := brief.Err(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		<-brief.Done()
	})
}

// TestSharedOutputsOutliveTheChild keeps batches of a child that is then killed,
// lends one to another child, and drops them.
func TestSharedOutputsOutliveTheChild(t *testing.T) {
	a := newArena(t, 1<<20)
	before := descriptors(t)
	h := host(t, worker.Config{Outputs: worker.Shared})
	type kept struct {
		arena  *shm.Arena
		handle shm.Handle
	}
	var all []kept
	err := h.Do(t.Context(), worker.Job{Stage: "double", Inputs: one(a, 3), OnBatch: func(_ context.Context, out *worker.Output) error {
		out.Keep()
		all = append(all, kept{out.Arena, out.Handle})
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if s := all[0].arena.Stats(); s.Slots != 3 {
		t.Errorf("%+v", s)
	}
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := host(t, worker.Config{})
	var got []float64
	err = other.Do(t.Context(), worker.Job{Stage: "double", Inputs: []worker.Input{{Name: "in", Batches: again(all[1].arena, all[1].handle)}}, OnBatch: func(_ context.Context, out *worker.Output) error {
		got = append(got, out.Batch.Column(0).(*array.Float64).Float64Values()...)
		return nil
	}})
	if err != nil || len(got) != 2 || got[0] != 4 {
		t.Error(got, err)
	}
	for _, k := range all {
		if err := k.arena.Drop(k.handle); err != nil {
			t.Error(err)
		}
	}
	if s := all[0].arena.Stats(); s.Slots != 0 || s.Arenas != 0 || s.Capacity != 0 {
		t.Errorf("%+v", s)
	}
	// The other child is told that the arena is gone and works on.
	if err := other.Do(t.Context(), worker.Job{Stage: "double", Inputs: one(a, 1)}); err != nil {
		t.Error(err)
	}
	if err := other.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "descriptors are back", func() bool { return descriptors(t) == before })
}

// TestFullChildArena keeps everything, so that the child runs out of room and
// goes on with segments; then it gets room again.
func TestFullChildArena(t *testing.T) {
	a := newArena(t, 1<<20)
	h := host(t, worker.Config{Outputs: worker.Shared, ChildBytes: 4096})
	var keep []*worker.Output
	shared := 0
	job := worker.Job{Stage: "double", Inputs: one(a, 20), OnBatch: func(_ context.Context, out *worker.Output) error {
		out.Keep()
		keep = append(keep, out)
		if out.Arena.Shared() {
			shared++
		}
		return nil
	}}
	if err := h.Do(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	if shared == 0 || shared == 20 {
		t.Errorf("%d of 20 shared", shared)
	}
	for _, out := range keep {
		if err := out.Arena.Drop(out.Handle); err != nil {
			t.Error(err)
		}
	}
	keep = nil
	until(t, "the child has room again", func() bool {
		shared = 0
		job.Inputs = one(a, 1)
		if err := h.Do(t.Context(), job); err != nil {
			t.Fatal(err)
		}
		for _, out := range keep {
			if err := out.Arena.Drop(out.Handle); err != nil {
				t.Error(err)
			}
		}
		keep = nil
		return shared == 1
	})
}

// TestChildBuildsInPlace has a child make batches where they are read: none is
// copied on the way, while there is room.
func TestChildBuildsInPlace(t *testing.T) {
	for mode, bytes := range map[worker.OutputMode]int64{worker.Shared: 1 << 20, worker.Sealed: 1 << 20, "": 4 << 10} {
		cfg := worker.Config{Outputs: mode, ChildBytes: bytes}
		if mode == "" { // an arena that is too small
			cfg.Outputs = worker.Shared
		}
		h := host(t, cfg)
		n := 0
		err := h.Do(t.Context(), worker.Job{Stage: "build", OnBatch: func(_ context.Context, out *worker.Output) error {
			n++
			x := out.Batch.Column(0).(*array.Float64)
			if x.Len() != 1000 || x.Value(999) != float64(out.Sequence)+999 || out.Arena.Shared() != (mode == worker.Shared) {
				t.Errorf("%q: output %d of %d: %v", mode, out.Sequence, x.Len(), out.Arena.Shared())
			}
			return nil
		}})
		st := h.Stats()
		if err != nil || n != 49 || (st.WrittenBytes == 0) != (mode == worker.Shared) || st.CopiedBytes != 0 {
			t.Errorf("%q: %d outputs, %+v, %v", mode, n, st, err)
		}
	}
}

func TestModel(t *testing.T) {
	h := host(t, worker.Config{ModelBytes: 1000})
	var got worker.Model
	var note string
	job := worker.Job{
		Stage: "model", Params: []byte(`"some bytes"`),
		OnModel: func(_ context.Context, m *worker.Model) (worker.SavedModel, error) {
			got = *m
			got.Artifact = bytes.Clone(m.Artifact)
			return worker.SavedModel{Model: "m", Version: "v1"}, nil
		},
		OnProgress: func(p worker.Progress) error { note = p.Note; return nil },
	}
	if err := h.Do(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	if note != "m@v1" || string(got.Artifact) != `"some bytes"` || got.Metrics["auc"] != 0.9 || got.Precision != "fp16" || got.Format != "safetensors" || got.Kind != "external" {
		t.Errorf("%s %+v", note, got)
	}
	refuse := errors.New("no such thing")
	job.OnModel = func(context.Context, *worker.Model) (worker.SavedModel, error) { return worker.SavedModel{}, refuse }
	if err := h.Do(t.Context(), job); !errors.Is(err, refuse) {
		t.Error(err)
	}
	job.OnModel = nil
	if err := h.Do(t.Context(), job); !errors.Is(err, worker.ErrModel) || !strings.Contains(err.Error(), "no registry") {
		t.Error(err)
	}
	var failed *worker.StageError
	job.Params = []byte(`"` + strings.Repeat("x", 1000) + `"`)
	if err := h.Do(t.Context(), job); !errors.As(err, &failed) || !strings.Contains(failed.Message, "at most 1000 bytes") {
		t.Error(err)
	}
	if st := h.Stats(); st.Died != 0 || st.Models != 1 {
		t.Errorf("%+v", st)
	}
}

func TestDeadlineReachesTheChild(t *testing.T) {
	h := host(t, worker.Config{})
	var m map[string]float64
	job := worker.Job{Stage: "when", OnMetrics: func(got map[string]float64) error { m = got; return nil }}
	if err := h.Do(t.Context(), job); err != nil || m["has"] != 0 {
		t.Error(m, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if err := h.Do(ctx, job); err != nil || m["has"] != 1 || m["seconds"] > 3600 || m["seconds"] < 3000 {
		t.Error(m, err)
	}
	// The host cancels at the deadline, and says so itself.
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := h.Do(ctx, worker.Job{Stage: "obey"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if st := h.Stats(); st.Died != 0 {
		t.Errorf("%+v", st)
	}
}

func TestMemoryLimit(t *testing.T) {
	h := host(t, worker.Config{MemoryBytes: 512 << 20})
	err := h.Do(t.Context(), worker.Job{Stage: "eat"})
	var died *worker.DiedError
	if !errors.As(err, &died) || died.MemoryLimit != 512<<20 || died.MemoryPeak < 64<<20 || !strings.Contains(err.Error(), "limited to 512 MiB") || died.Output == "" {
		t.Errorf("%.2000v", err)
	}
	// Shared memory does not count.
	a := newArena(t, 1<<20)
	if err := h.Do(t.Context(), worker.Job{Stage: "double", Inputs: one(a, 10)}); err != nil {
		t.Error(err)
	}
	if st := h.Stats(); st.Died != 1 {
		t.Errorf("%+v", st)
	}
}

func TestTraceback(t *testing.T) {
	h := host(t, worker.Config{})
	var failed *worker.StageError
	err := h.Do(t.Context(), worker.Job{Stage: "traced"})
	if !errors.As(err, &failed) || failed.Message != "went wrong" || len(failed.Traceback) > 16<<10 || len(failed.Traceback) < 16_000 || !strings.HasSuffix(err.Error(), "at the end") {
		t.Errorf("%d %.200v", len(failed.Traceback), err)
	}
	err = h.Do(t.Context(), worker.Job{Stage: "panic"})
	if !errors.As(err, &failed) || failed.Message != "panic: at the worst time" || !strings.Contains(failed.Traceback, "main_test.go") {
		t.Error(err)
	}
}

// again lends a slot that is published.
func again(a *shm.Arena, h shm.Handle) func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
	return func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
		return func(yield func(worker.InputBatch, error) bool) {
			l, err := a.Hold(h, "test")
			yield(worker.InputBatch{Lease: l}, err)
		}
	}
}
