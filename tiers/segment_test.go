package tiers_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
)

func (w *world) segment(s *tiers.Store, run string) tiers.Segment {
	w.tb.Helper()
	g, err := s.Segment(w.ctx, dataset, run, "features")
	if err != nil {
		w.tb.Fatal(err)
	}
	return g
}

// appendNth does what a stage's n-th write does.
func (w *world) appendNth(wr *tiers.Writer, n, seed uint64) (uint64, error) {
	w.tb.Helper()
	seq, err := wr.Place(w.ctx, n)
	if err != nil {
		return 0, err
	}
	rec := batch(seed, 100)
	defer rec.Release()
	_, err = wr.WriteAt(w.ctx, seq, rec)
	return seq, err
}

// appended reads a stage's part to its end, as rows' seeds.
func appended(ctx context.Context, s *tiers.Store, run string) (seqs []uint64, err error) {
	for b, err := range s.Appended(ctx, dataset, run, "features", false) {
		if err != nil {
			return seqs, err
		}
		seqs = append(seqs, b.Ref.Sequence)
	}
	return seqs, nil
}

func TestAppendedFollowsAStageToItsEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		deaf bool
	}{{"woken", false}, {"wake-ups lost", true}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.store(0)
			w.write(w.writer(s, dataset, fence("before", 1)), 0, 1)
			other, _ := w.store(0) // of another process: it hears nothing of this one's Finish
			reading := s
			if c.deaf {
				tiers.DeafenReaders(other)
				reading = other
			}
			got := make(chan uint64)
			done := make(chan error, 1)
			go func() {
				defer close(got)
				for b, err := range reading.Appended(w.ctx, dataset, "run-1", "features", false) {
					if err != nil {
						done <- err
						return
					}
					got <- b.Ref.Sequence
				}
				done <- nil
			}()
			wr := w.writer(s, dataset, fence("run-1", 1))
			for n := range uint64(3) {
				if _, err := w.appendNth(wr, n, n); err != nil {
					t.Fatal(err)
				}
				if seq := <-got; seq != 2+n {
					t.Errorf("got batch %d, want %d", seq, 2+n)
				}
			}
			if g := w.segment(s, "run-1"); g != (tiers.Segment{From: 2, To: 5, Batches: 3}) {
				t.Errorf("%+v", g)
			}
			if err := wr.Finish(w.ctx); err != nil {
				t.Fatal(err)
			}
			if err := wr.Finish(w.ctx); err != nil {
				t.Errorf("finishing twice: %v", err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if g := w.segment(s, "run-1"); g != (tiers.Segment{From: 2, To: 5, Batches: 3, Done: true}) {
				t.Errorf("%+v", g)
			}
		})
	}
}

// Two runs append at once and fence one another all the time: each finds its own
// batches again on every attempt, and nothing of either is lost.
func TestTwoRunsAppendAtOnce(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	const each = 4
	want := map[string][]uint64{}
	attempt := map[string]int{}
	for n := range uint64(each) {
		for _, run := range []string{"run-a", "run-b"} {
			// The other run has taken over since: this is a new attempt, which writes
			// everything from the start.
			attempt[run]++
			wr := w.writer(s, dataset, fence(run, attempt[run]))
			for i := range n + 1 {
				seq, err := w.appendNth(wr, i, 10*i)
				if err != nil {
					t.Fatal(err)
				}
				if i < n && seq != want[run][i] {
					t.Errorf("batch %d of %s is found at %d, it was stored at %d", i, run, seq, want[run][i])
				}
				if i == n {
					want[run] = append(want[run], seq)
				}
			}
			if _, err := wr.Place(w.ctx, n+2); !errors.Is(err, tiers.ErrGap) {
				t.Errorf("place beyond the next: %v", err)
			}
		}
	}
	head, err := s.Head(w.ctx, dataset)
	if err != nil || head.Next != 2*each {
		t.Errorf("%+v, %v", head, err)
	}
	for run, seqs := range want {
		// run-a has been displaced, which does not keep it from finishing.
		if err := s.Finish(w.ctx, dataset, fence(run, attempt[run])); err != nil {
			t.Fatal(err)
		}
		got, err := appended(w.ctx, s, run)
		if err != nil || !slices.Equal(got, seqs) {
			t.Errorf("%s: %v, %v; want %v", run, got, err, seqs)
		}
	}
}

func TestFinishedStageIsNotReopened(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	stale := w.writer(s, dataset, fence("run-1", 1))
	w.write(stale, 0)
	wr := w.writer(s, dataset, fence("run-1", 2))
	w.write(wr, 1)
	if err := stale.Finish(w.ctx); !errors.Is(err, tiers.ErrFenced) {
		t.Errorf("finish of a stale attempt: %v", err)
	}
	if err := s.Finish(w.ctx, dataset, fence("run-1", 1)); !errors.Is(err, tiers.ErrFenced) {
		t.Errorf("finish of a stale attempt without writer: %v", err)
	}
	if g := w.segment(s, "run-1"); g.Done {
		t.Errorf("%+v after a stale attempt's finish", g)
	}
	if err := wr.Finish(w.ctx); err != nil {
		t.Fatal(err)
	}
	next := w.writer(s, dataset, fence("run-2", 1))
	w.write(next, 2)
	again := w.writer(s, dataset, fence("run-1", 3))
	w.write(again, 0, 1) // found
	rec := batch(9, 10)
	defer rec.Release()
	if _, err := again.WriteAt(w.ctx, 3, rec); !errors.Is(err, tiers.ErrSealed) {
		t.Errorf("more of a stage that has completed: %v", err)
	}
	if err := again.Finish(w.ctx); err != nil {
		t.Error(err)
	}
	if err := again.Seal(w.ctx); !errors.Is(err, tiers.ErrFenced) {
		t.Errorf("seal under another run's writer: %v", err)
	}
	w.write(next, 3) // was not fenced
	if g := w.segment(s, "run-1"); g != (tiers.Segment{To: 2, Batches: 2, Done: true}) {
		t.Errorf("%+v", g)
	}
}

// The same attempt may open again after it was displaced: what it adds then is
// kept when it is displaced once more.
func TestPartGrowsWithinAnAttempt(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	w.write(w.writer(s, dataset, fence("run-2", 1)), 1)
	wr := w.writer(s, dataset, fence("run-1", 1))
	w.write(wr, 2)
	if err := wr.Finish(w.ctx); err != nil {
		t.Fatal(err)
	}
	w.write(w.writer(s, dataset, fence("run-3", 1)), 3)
	if g := w.segment(s, "run-1"); g != (tiers.Segment{To: 3, Batches: 2, Done: true}) {
		t.Errorf("%+v", g)
	}
}

func TestStageThatWroteNothing(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	if _, err := s.Segment(w.ctx, dataset, "run-1", "features"); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("segment of an absent dataset: %v", err)
	}
	ctx, cancel := context.WithTimeout(w.ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := appended(ctx, s, "run-1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for nothing: %v", err)
	}
	if err := s.Finish(w.ctx, dataset, fence("run-1", 1)); err != nil {
		t.Fatal(err)
	}
	if got, err := appended(w.ctx, s, "run-1"); err != nil || len(got) > 0 {
		t.Errorf("%v, %v", got, err)
	}
	active := w.writer(s, dataset, fence("run-2", 1))
	w.write(active, 0)
	if err := s.Finish(w.ctx, dataset, fence("run-3", 1)); err != nil {
		t.Fatal(err)
	}
	w.write(active, 1) // was not fenced
	if g := w.segment(s, "run-3"); g != (tiers.Segment{From: 1, To: 1, Done: true}) {
		t.Errorf("%+v", g)
	}

	// A run's own dataset ends in the same way, by its seal.
	for range 2 {
		if err := s.Seal(w.ctx, "run/empty", fence("run-1", 1)); err != nil {
			t.Fatal(err)
		}
	}
	for range s.Batches(w.ctx, "run/empty", 0, tiers.End, false) {
		t.Error("a batch of an empty dataset")
	}
	if got := w.published(events.TypeDatasetSealed); got["run/empty#sealed"] != 1 {
		t.Errorf("%v", got)
	}
	if _, err := s.Writer(w.ctx, "run/empty", schema, fence("run-2", 1)); !errors.Is(err, tiers.ErrSealed) {
		t.Errorf("another run's writer: %v", err)
	}
	late := w.writer(s, "run/empty", fence("run-1", 2))
	rec := batch(0, 1)
	defer rec.Release()
	if _, err := late.WriteAt(w.ctx, 0, rec); !errors.Is(err, tiers.ErrSealed) {
		t.Errorf("a batch after the seal: %v", err)
	}
}
