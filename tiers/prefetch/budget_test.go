package prefetch_test

import (
	"context"
	"errors"

	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

// TestBudgetIsShared: loops side by side read ahead no more together than one may,
// each goes on whatever the others take, and all of it comes back.
func TestBudgetIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := prefetch.NewBudget(4 * batchBytes)
		from := newSlow(t)
		from.latency = 50 * time.Millisecond
		var all prefetch.Stats
		var loops sync.WaitGroup
		for range 5 {
			loops.Go(func() {
				n := 0
				for _, err := range prefetch.Batches(t.Context(), from, refs(40), prefetch.Config{Budget: budget, Parallel: 8}, all.Part()) {
					if err != nil {
						t.Error(err)
					}
					if used := budget.Used(); used > 4*batchBytes {
						t.Errorf("%d bytes are read ahead", used)
					}
					n++
					work(10 * time.Millisecond)
				}
				if n != 40 {
					t.Errorf("%d of 40 batches", n)
				}
			})
		}
		loops.Wait()
		if budget.Used() != 0 {
			t.Errorf("%d bytes are left", budget.Used())
		}
		if n := all.Counts(); n.Hits+n.Misses != 200 || n.Stall == 0 {
			t.Errorf("%+v", n)
		}
	})
}

// TestStarved: a consumer that has batches to work on is not kept waiting by one that
// does not come.
func TestStarved(t *testing.T) {
	for name, tc := range map[string]struct {
		starved func(begun time.Time) func() (time.Time, bool)
		want    time.Duration // of 100 ms for each of three batches
	}{
		"at all times": {func(time.Time) func() (time.Time, bool) { return nil }, 300 * time.Millisecond},
		"never": {func(time.Time) func() (time.Time, bool) {
			return func() (time.Time, bool) { return time.Time{}, false }
		}, 0},
		"since long ago": {func(b time.Time) func() (time.Time, bool) { return func() (time.Time, bool) { return b, true } }, 300 * time.Millisecond},
		"for a part of the end": {func(b time.Time) func() (time.Time, bool) {
			return func() (time.Time, bool) { return b.Add(260 * time.Millisecond), true }
		}, 40 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from := newSlow(t)
				from.latency = 100 * time.Millisecond
				var stats prefetch.Stats
				cfg := prefetch.Config{MaxBatches: 1, Parallel: 1, Starved: tc.starved(time.Now())}
				for range prefetch.Batches(t.Context(), from, refs(3), cfg, &stats) {
				}
				if got := stats.Counts(); got.Stall != tc.want {
					t.Errorf("stalled for %v, want %v: %+v", got.Stall, tc.want, got)
				}
			})
		})
	}
}

// TestTail: the time in which a batch is made is not the store's.
func TestTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := newSlow(t)
		from.latency = 10 * time.Millisecond
		var stats prefetch.Stats
		made := func(yield func(arrowio.Ref, error) bool) {
			for r, err := range refs(5) {
				work(100 * time.Millisecond)
				if !yield(r, err) {
					return
				}
			}
		}
		for range prefetch.Batches(t.Context(), from, made, prefetch.Config{Tail: true}, &stats) {
		}
		n := stats.Counts()
		if n.Fresh != 5 || n.Hits+n.Misses != 0 || n.HitRate() != 0 || n.Stall != 50*time.Millisecond || n.Idle < 400*time.Millisecond {
			t.Errorf("%+v", n)
		}
	})
}

// shelf brings batches nearer as far as it has room.
type shelf struct {
	from *slow
	warm int // how many have room
	hot  int
	fail error

	moved []uint64
}

func (s *shelf) Promote(_ context.Context, ref arrowio.Ref) (bool, error) {
	if s.warm == 0 || s.fail != nil {
		return false, s.fail
	}
	s.warm--
	s.moved = append(s.moved, ref.Sequence)
	return true, nil
}

func (s *shelf) OpenAhead(ctx context.Context, ref arrowio.Ref) (*tiers.Batch, error) {
	s.hot++
	return s.from.OpenBatch(ctx, ref, false) // without a lease: there was no room
}

func TestPrepare(t *testing.T) {
	broken := errors.New("broken")
	synctest.Test(t, func(t *testing.T) {
		for name, tc := range map[string]struct {
			to    shelf
			bytes int64
			warm  int // moved
			hot   int // opened
		}{
			"to the disk alone":       {shelf{warm: 100}, 0, 20, 0},
			"as far as disk has room": {shelf{warm: 3}, 0, 3, 0},
			"until memory is full":    {shelf{warm: 3}, 1 << 40, 3, 1},
			"one larger than memory":  {shelf{}, 1, 0, 0},
			"what cannot be moved":    {shelf{fail: broken}, 0, 0, 0},
		} {
			tc.to.from = newSlow(t)
			var stats prefetch.Stats
			if err := prefetch.Prepare(t.Context(), &tc.to, refs(20), tc.bytes, &stats); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if n := stats.Counts(); len(tc.to.moved) != tc.warm || tc.to.hot != tc.hot || n.Prepared != uint64(tc.warm) || n.PreparedBytes != int64(tc.warm)*batchBytes {
				t.Errorf("%s: %+v, %+v", name, tc.to, n)
			}
		}
	})
}
