package tiers_test

import (
	"fmt"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stokehold/stokehold/tiers"
)

// TestListingIsBounded lists a million batches, whose entries would take a gigabyte, and
// looks at the heap at each block. The server is of the same process.
func TestListingIsBounded(t *testing.T) {
	n := uint64(1_000_000)/tiers.BlockBatches*tiers.BlockBatches + tiers.BlockBatches
	if testing.Short() || raceEnabled { // ten times as slow
		n = 200 * tiers.BlockBatches
	}
	w := newWorld(t)
	s, _ := w.store(0)
	if err := tiers.FillAlike(w.ctx, s, dataset, n); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	before, most, count := heapBytes(), uint64(0), uint64(0)
	for _, err := range s.Entries(t.Context(), dataset, 0, tiers.End) {
		if err != nil {
			t.Fatal(err)
		}
		if count++; count%tiers.BlockBatches == 0 {
			most = max(most, heapBytes())
		}
	}
	if count != n {
		t.Fatalf("listed %d batches of %d", count, n)
	}
	// Garbage counts: the collector lets the heap double before it runs.
	if most > 2*before+32<<20 {
		t.Errorf("the heap came to %d MiB, from %d before", most>>20, before>>20)
	}
	t.Logf("%d batches: the heap came to %.1f MiB at most, from %.1f before", n, float64(most)/(1<<20), float64(before)/(1<<20))
}

func heapBytes() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// What the catalog costs for a batch, as the dataset grows: listing all, moving 512
// in compare-and-sets of 256, moving one, and appending while a reader follows,
// through everything that a write does. bench/tiers tells the sizes apart by the name.
func BenchmarkCatalog(b *testing.B) {
	for _, n := range []uint64{1_000, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("batches=%d", n), func(b *testing.B) { benchmarkCatalog(b, n) })
	}
}

func benchmarkCatalog(b *testing.B, n uint64) {
	w := newWorld(b)
	w.ctx = b.Context() // a million takes longer than a test may
	s, _ := w.store(0)
	if err := tiers.FillBlocks(w.ctx, s, dataset, n); err != nil {
		b.Fatal(err)
	}
	const together, rounds, alone = 2 * tiers.BlockBatches, 16, 64
	starts := n/tiers.BlockBatches - 2 // the newest have keys of their own
	flip := func(round int, count uint64) {
		seqs := make([]uint64, count)
		for i := range seqs {
			seqs[i] = uint64(round)%starts*tiers.BlockBatches + uint64(i)
		}
		if err := tiers.Flip(w.ctx, s, dataset, seqs, strconv.Itoa(round)); err != nil {
			b.Fatal(err)
		}
	}
	for round := range rounds { // so that it is the same for the first and the last
		flip(round, together)
	}
	b.ResetTimer()
	for b.Loop() {
		begun := time.Now()
		checkEntries(b, w, s, n)
		b.ReportMetric(float64(time.Since(begun).Nanoseconds())/float64(n), "list-ns/batch")
		begun = time.Now()
		for round := range rounds {
			flip(round, together)
		}
		b.ReportMetric(rounds*together/time.Since(begun).Seconds(), "flips/s")
		begun = time.Now()
		for round := range alone {
			flip(round, 1)
		}
		b.ReportMetric(float64(time.Since(begun).Microseconds())/alone, "flip-us")
	}
	b.StopTimer()
	each, seal := followWriter(b, w, s, n)
	b.ReportMetric(float64(each.Microseconds()), "append-us/batch")
	b.ReportMetric(float64(seal.Microseconds()), "seal-us")
}

// followWriter appends to a dataset of n batches while a reader follows, then seals
// it, and returns what a batch took until it was read and what sealing took.
func followWriter(b *testing.B, w *world, s *tiers.Store, n uint64) (each, seal time.Duration) {
	b.Helper()
	const appended = tiers.BlockBatches + 64 // so that a block is completed
	wr, err := s.Writer(w.ctx, dataset, schema, fence("run-1", 1))
	if err != nil {
		b.Fatal(err)
	}
	rec := batch(n, 1)
	defer rec.Release()
	begun := time.Now()
	done := make(chan error, 1)
	go func() {
		next := n
		for got, err := range s.Batches(w.ctx, dataset, n, n+appended, false) {
			if err != nil {
				done <- err
				return
			}
			if got.Ref.Sequence != next {
				done <- fmt.Errorf("read %s where %d comes", got.Ref.ID(), next)
				return
			}
			next++
		}
		done <- nil
	}()
	for range appended {
		if _, err := wr.WriteAt(w.ctx, wr.Next(), rec); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	each = time.Since(begun) / appended
	begun = time.Now()
	if err := wr.Seal(w.ctx); err != nil {
		b.Fatal(err)
	}
	return each, time.Since(begun)
}
