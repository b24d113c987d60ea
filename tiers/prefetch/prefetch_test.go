package prefetch_test

import (
	"context"
	"errors"
	"iter"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

const batchBytes = 16 << 20

// slow opens batches as slowly as it is told. Time is the test bubble's.
type slow struct {
	latency time.Duration // of each, all at once
	link    time.Duration // of each, one after another: a link's bandwidth
	fail    map[uint64]error
	mem     *memory.CheckedAllocator

	line chan struct{}

	mu                   sync.Mutex
	opening, out         int // now
	mostOpening, mostOut int
	opened               int
}

func (s *slow) OpenBatch(ctx context.Context, ref arrowio.Ref, _ bool) (*tiers.Batch, error) {
	var latency time.Duration
	s.count(func() { s.opening++; s.mostOpening = max(s.mostOpening, s.opening); latency = s.latency })
	defer s.count(func() { s.opening-- })
	if err := pass(ctx, latency); err != nil {
		return nil, err
	}
	if s.link > 0 {
		if err := s.transfer(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.fail[ref.Sequence]; err != nil {
		return nil, err
	}
	b := array.NewInt64Builder(s.mem)
	defer b.Release()
	b.Append(int64(ref.Sequence))
	col := b.NewArray()
	defer col.Release()
	schema := arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)
	s.count(func() { s.opened++; s.out++; s.mostOut = max(s.mostOut, s.out) })
	return &tiers.Batch{Ref: ref, Record: array.NewRecordBatch(schema, []arrow.Array{col}, 1)}, nil
}

// transfer takes the link's time in turns of a millisecond, as flows share a link.
func (s *slow) transfer(ctx context.Context) error {
	for left := s.link; left > 0; left -= time.Millisecond {
		s.line <- struct{}{} // a mutex would stop the bubble's clock
		err := pass(ctx, min(left, time.Millisecond))
		<-s.line
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *slow) count(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// work is what an accelerator does with a batch, in the bubble's time.
func work(d time.Duration) { _ = pass(context.Background(), d) }

// pass lets time pass in the bubble.
func pass(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func refs(n uint64) iter.Seq2[arrowio.Ref, error] {
	return func(yield func(arrowio.Ref, error) bool) {
		for i := range n {
			if !yield(arrowio.Ref{Dataset: "d", Sequence: i, Rows: 1, BodyBytes: batchBytes}, nil) {
				return
			}
		}
	}
}

func newSlow(t *testing.T) *slow {
	s := &slow{mem: memory.NewCheckedAllocator(memory.DefaultAllocator), line: make(chan struct{}, 1)}
	t.Cleanup(func() { s.mem.AssertSize(t, 0) })
	return s
}

// consume reads n batches, takes a time for each, and returns how much of the time
// after the first few it was kept waiting.
func consume(t *testing.T, from *slow, n uint64, compute time.Duration, cfg prefetch.Config, stats *prefetch.Stats) (idle float64) {
	t.Helper()
	const first = 8
	var begun time.Time
	seen := uint64(0)
	for b, err := range prefetch.Batches(t.Context(), from, refs(n), cfg, stats) {
		if err != nil {
			t.Fatal(err)
		}
		if b.Ref.Sequence != seen || b.Record.Column(0).(*array.Int64).Value(0) != int64(seen) {
			t.Fatalf("batch %d in place of %d", b.Ref.Sequence, seen)
		}
		if seen == first {
			begun = time.Now()
		}
		seen++
		work(compute)
	}
	if seen != n {
		t.Fatalf("%d of %d batches", seen, n)
	}
	wall := time.Since(begun)
	return 1 - float64(compute)*float64(n-first)/float64(wall)
}

// TestKeepsAConsumerFed: with what opening takes hidden, the consumer hardly waits;
// without reading ahead it would most of the time.
func TestKeepsAConsumerFed(t *testing.T) {
	const compute = 20 * time.Millisecond
	for name, tc := range map[string]struct{ latency, link time.Duration }{
		"a store that answers late":                {latency: 70 * time.Millisecond},
		"a link just faster than the consumer":     {link: 19 * time.Millisecond},
		"a late store behind such a link":          {latency: 30 * time.Millisecond, link: 19 * time.Millisecond},
		"a store as fast as the consumer":          {latency: compute},
		"a store that is faster than the consumer": {latency: time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from := newSlow(t)
				from.latency, from.link = tc.latency, tc.link
				var stats prefetch.Stats
				if idle := consume(t, from, 300, compute, prefetch.Config{Parallel: 8}, &stats); idle > 0.02 {
					t.Errorf("the consumer waited for %.1f%% of the time: %+v", 100*idle, stats.Counts())
				}
				n := stats.Counts()
				if n.Hits+n.Misses != 300 || n.HitRate() < 0.9 || n.BytesEarly != int64(n.Hits)*batchBytes || n.BytesLate != int64(n.Misses)*batchBytes {
					t.Errorf("%+v", n)
				}
				if from.mostOpening > 8 {
					t.Errorf("%d opened at once", from.mostOpening)
				}
			})
		})
	}
	t.Run("without reading ahead", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			from := newSlow(t)
			from.link = 19 * time.Millisecond
			begun := time.Now()
			for i := range uint64(100) {
				b, err := from.OpenBatch(t.Context(), arrowio.Ref{Sequence: i}, false)
				if err != nil {
					t.Fatal(err)
				}
				work(compute)
				b.Release()
			}
			if idle := 1 - float64(100*compute)/float64(time.Since(begun)); idle < 0.4 {
				t.Errorf("the consumer waited for %.1f%% of the time", 100*idle)
			}
		})
	})
}

// TestWindowFollows: it opens with a slow store and closes with a fast one.
func TestWindowFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := newSlow(t)
		from.latency = 200 * time.Millisecond
		var stats prefetch.Stats
		widest, n := 0, 0
		for b, err := range prefetch.Batches(t.Context(), from, refs(600), prefetch.Config{Parallel: 32}, &stats) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 200 {
				from.count(func() { from.latency = time.Millisecond })
			}
			widest = max(widest, stats.Counts().Window)
			work(20 * time.Millisecond)
			_ = b
		}
		if widest < 10 || widest > 20 {
			t.Errorf("widest window %d: 200 ms by 20 ms are 10", widest)
		}
		if now := stats.Counts().Window; now > 3 {
			t.Errorf("the window is still %d", now)
		}
	})
}

func TestLimits(t *testing.T) {
	for name, cfg := range map[string]prefetch.Config{
		"batches": {MaxBatches: 3, Parallel: 16},
		"bytes":   {MaxBytes: 3*batchBytes + 1, Parallel: 16},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from := newSlow(t)
				from.latency = time.Second
				most := 0
				for b, err := range prefetch.Batches(t.Context(), from, refs(50), cfg, nil) {
					if err != nil {
						t.Fatal(err)
					}
					work(10 * time.Millisecond)
					from.count(func() { most = max(most, from.opened); from.opened = 0 })
					_ = b
				}
				if from.mostOpening > 3 || most > 4 {
					t.Errorf("%d opened at once, %d between two", from.mostOpening, most)
				}
			})
		})
	}
	t.Run("a batch larger than all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			consume(t, newSlow(t), 20, time.Millisecond, prefetch.Config{MaxBytes: 1}, nil)
		})
	})
	t.Run("negative", func(t *testing.T) {
		for _, err := range prefetch.Batches(t.Context(), newSlow(t), refs(1), prefetch.Config{MaxBytes: -1}, nil) {
			if !errors.Is(err, prefetch.ErrConfig) {
				t.Error(err)
			}
		}
	})
}

// TestErrorsInTheirPlace: what could be read before one is.
func TestErrorsInTheirPlace(t *testing.T) {
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		fail map[uint64]error
		refs iter.Seq2[arrowio.Ref, error]
	}{
		"opening": {fail: map[uint64]error{5: broken}, refs: refs(20)},
		"listing": {refs: func(yield func(arrowio.Ref, error) bool) {
			for r, err := range refs(5) {
				if !yield(r, err) {
					return
				}
			}
			yield(arrowio.Ref{}, broken)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from := newSlow(t)
				from.latency, from.fail = time.Millisecond, tc.fail
				seen := 0
				var got error
				for _, err := range prefetch.Batches(t.Context(), from, tc.refs, prefetch.Config{}, nil) {
					if err != nil {
						got = err
						continue
					}
					seen++
				}
				if seen != 5 || !errors.Is(got, broken) {
					t.Errorf("%d batches, then %v", seen, got)
				}
			})
		})
	}
}

// TestEnds: whichever way a loop ends, what was opened ahead is given back (the
// allocator is checked), and no goroutine stays (the bubble would not end).
func TestEnds(t *testing.T) {
	gaveUp := errors.New("gave up")
	open := func(t *testing.T) *slow {
		from := newSlow(t)
		from.latency = 5 * time.Millisecond
		return from
	}
	t.Run("left", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			from := open(t)
			var stats prefetch.Stats
			n := 0
			for b, err := range prefetch.Batches(t.Context(), from, refs(100), prefetch.Config{}, &stats) {
				if err != nil {
					t.Fatal(err)
				}
				_ = b
				work(10 * time.Millisecond)
				if n++; n == 10 {
					break
				}
			}
			if c := stats.Counts(); c.Wasted == 0 || c.WastedBytes != int64(c.Wasted)*batchBytes {
				t.Errorf("%+v", c)
			}
		})
	})
	t.Run("panic", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			for range prefetch.Batches(t.Context(), open(t), refs(100), prefetch.Config{}, nil) {
				panic("the loop's body")
			}
		})
	})
	t.Run("cancelled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(33*time.Millisecond, func() { cancel(gaveUp) })
			from := open(t)
			var got error
			for b, err := range prefetch.Batches(ctx, from, refs(1<<40), prefetch.Config{}, nil) {
				if err != nil {
					got = err
					continue
				}
				_ = b
				work(10 * time.Millisecond)
			}
			if !errors.Is(got, gaveUp) && !errors.Is(got, context.Canceled) {
				t.Errorf("ended with %v", got)
			}
		})
	})
	t.Run("nothing", func(t *testing.T) {
		for range prefetch.Batches(t.Context(), newSlow(t), refs(0), prefetch.Config{}, nil) {
			t.Error("a batch of nothing")
		}
	})
	t.Run("retained", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var kept []arrow.RecordBatch
			for b, err := range prefetch.Batches(t.Context(), open(t), refs(10), prefetch.Config{}, nil) {
				if err != nil {
					t.Fatal(err)
				}
				b.Record.Retain()
				kept = append(kept, b.Record)
			}
			for i, rec := range kept {
				if v := rec.Column(0).(*array.Int64).Value(0); v != int64(i) {
					t.Errorf("batch %d holds %d", i, v)
				}
				rec.Release()
			}
		})
	})
}
