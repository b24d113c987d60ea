package worker_test

import (
	"context"
	"iter"
	"runtime"
	"strconv"
	"testing"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/stages/worker"
)

// BenchmarkOutput has a child write its input back, in segments and in its own
// arena: bytes and allocations per batch, there and back, are the host's.
func BenchmarkOutput(b *testing.B) {
	for _, mode := range []worker.OutputMode{worker.Sealed, worker.Shared} {
		for _, rows := range []int{512, 128 << 10, 1 << 20} {
			b.Run(string(mode)+"/"+strconv.Itoa(rows*8), func(b *testing.B) {
				a := newArena(b, 64<<20)
				h := host(b, worker.Config{Outputs: mode})
				rec := numbers(make([]float64, rows)...)
				defer rec.Release()
				handle, err := a.Put(b.Context(), rec, nil)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(rows * 8))
				b.ReportAllocs()
				b.ResetTimer()
				err = h.Do(b.Context(), worker.Job{
					Stage: "mirror", Inputs: []worker.Input{{Name: "in", Batches: repeat(a, handle, b.N, int64(rows*8))}},
					OnBatch: func(context.Context, *worker.Output) error { return nil },
				})
				b.StopTimer()
				if s := h.Stats(); err != nil || s.CopiedBytes != 0 || s.OutBatches != uint64(b.N) {
					b.Errorf("%+v %v", s, err)
				}
			})
		}
	}
}

// TestLeasesAllocateNothing holds that a lease, its message and its release take
// nothing from the host's heap, whatever a job as such does.
func TestLeasesAllocateNothing(t *testing.T) {
	a := newArena(t, 1<<16)
	h := host(t, worker.Config{})
	rec := numbers(1, 2, 3)
	defer rec.Release()
	handle, err := a.Put(t.Context(), rec, nil)
	if err != nil {
		t.Fatal(err)
	}
	const n = 5000
	most := 0.5
	if raceEnabled {
		most = 3 // the detector's own
	}
	job := worker.Job{Stage: "drain", Inputs: []worker.Input{{Name: "in", Batches: repeat(a, handle, n, 64)}}}
	var before, after runtime.MemStats
	for range 2 { // the first warms up
		runtime.ReadMemStats(&before)
		if err := h.Do(t.Context(), job); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
	}
	if per := float64(after.Mallocs-before.Mallocs) / n; per > most {
		t.Errorf("%.2f allocations per batch", per)
	}
}

// TestOutputsAllocateLittle holds what an output takes from the host's heap: of a
// known schema what its arrays, its name and, where it is a segment, an arena and
// a descriptor are made of.
func TestOutputsAllocateLittle(t *testing.T) {
	if raceEnabled {
		t.Skip("the detector allocates too")
	}
	for mode, most := range map[worker.OutputMode]float64{worker.Sealed: 32, worker.Shared: 20} {
		a := newArena(t, 1<<16)
		h := host(t, worker.Config{Outputs: mode})
		rec := numbers(1, 2, 3)
		defer rec.Release()
		handle, err := a.Put(t.Context(), rec, nil)
		if err != nil {
			t.Fatal(err)
		}
		const n = 1000
		job := worker.Job{
			Stage: "mirror", Inputs: []worker.Input{{Name: "in", Batches: repeat(a, handle, n, 64)}},
			OnBatch: func(context.Context, *worker.Output) error { return nil },
		}
		var before, after runtime.MemStats
		for range 2 { // the first warms up
			runtime.ReadMemStats(&before)
			if err := h.Do(t.Context(), job); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
		}
		per := float64(after.Mallocs-before.Mallocs) / n
		if per > most {
			t.Errorf("%s: %.2f allocations per output, want at most %v", mode, per, most)
		}
		t.Logf("%s: %.2f allocations", mode, per)
	}
}

// repeat feeds one slot n times.
func repeat(a *shm.Arena, handle shm.Handle, n int, body int64) func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
	return func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
		return func(yield func(worker.InputBatch, error) bool) {
			for i := range n {
				l, err := a.Hold(handle, "bench")
				if !yield(worker.InputBatch{Sequence: uint64(i), Lease: l, BodyBytes: body}, err) {
					return
				}
			}
		}
	}
}
