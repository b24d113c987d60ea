package tiers_test

import (
	"testing"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

// bench makes a world with one batch of about rows*25 bytes.
func bench(b *testing.B, arena int64) (*world, *tiers.Store, arrow.RecordBatch, arrowio.Ref) {
	b.Helper()
	w := newWorld(b)
	s, _ := w.store(arena)
	rec := batch(0, 20_000)
	b.Cleanup(rec.Release)
	ref, err := w.writer(s, dataset, fence("run-1", 1)).WriteAt(w.ctx, 0, rec)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(ref.BodyBytes)
	b.ReportAllocs()
	b.ResetTimer()
	return w, s, rec, ref
}

// One batch through the whole protocol: arena, synced file, judgment, catalog,
// event.
func BenchmarkWriteAt(b *testing.B) {
	w, s, rec, _ := bench(b, 64<<20)
	wr := w.writer(s, dataset, fence("run-1", 2))
	for b.Loop() {
		if _, err := wr.WriteAt(w.ctx, wr.Next(), rec); err != nil {
			b.Fatal(err)
		}
	}
}

// TestOpeningAllocatesLittle holds what a batch of a known schema takes from the
// heap, wherever on this host it lies: nothing per row.
func TestOpeningAllocatesLittle(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		arena int64
		most  float64
	}{"hot": {64 << 20, 60}, "warm": {0, 75}} {
		s, _ := w.store(c.arena)
		rec := batch(0, 1000)
		ref, err := w.writer(s, dataset, fence("run-"+name, 1)).WriteAt(w.ctx, 0, rec)
		rec.Release()
		if err != nil {
			t.Fatal(err)
		}
		n := testing.AllocsPerRun(200, func() {
			b, err := s.OpenBatch(w.ctx, ref, false)
			if err != nil {
				t.Fatal(err)
			}
			b.Release()
		})
		if n > c.most {
			t.Errorf("%s: %v allocations, want at most %v", name, n, c.most)
		}
		t.Logf("%s: %v allocations", name, n)
	}
}

func BenchmarkOpenBatch(b *testing.B) {
	open := func(b *testing.B, w *world, s *tiers.Store, ref arrowio.Ref, want arrowio.Tier) {
		b.Helper()
		for b.Loop() {
			got, err := s.OpenBatch(w.ctx, ref, false)
			if err != nil {
				b.Fatal(err)
			}
			if got.Tier != want {
				b.Fatalf("read from %s", got.Tier)
			}
			got.Release()
		}
	}
	b.Run("hot", func(b *testing.B) {
		w, s, _, ref := bench(b, 64<<20)
		open(b, w, s, ref, arrowio.Hot)
	})
	b.Run("warm", func(b *testing.B) { // mapped and hashed each time
		w, s, _, ref := bench(b, 0)
		open(b, w, s, ref, arrowio.Warm)
	})
	b.Run("warm shared", func(b *testing.B) { // another reader has it mapped
		w, s, _, ref := bench(b, 0)
		held, err := s.OpenBatch(w.ctx, ref, false)
		if err != nil {
			b.Fatal(err)
		}
		defer held.Release()
		open(b, w, s, ref, arrowio.Warm)
	})
	b.Run("cold", func(b *testing.B) {
		w, s, _, ref := bench(b, 0)
		st, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Evict: true}, nil)
		if err != nil {
			b.Fatal(err)
		}
		ref.Locations = []arrowio.Location{st.Object}
		b.ResetTimer()
		open(b, w, s, ref, arrowio.Cold)
	})
}
