package tiers_test

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/tiers"
)

// made writes a batch of a dataset that is made of others.
func (w *world) made(s *tiers.Store, dataset, run string, from ...label.Source) {
	w.tb.Helper()
	wr := w.writer(s, dataset, fence(run, 1))
	wr.MadeOf(from...)
	w.write(wr, wr.Next())
	if err := wr.Finish(w.ctx); err != nil {
		w.tb.Fatal(err)
	}
}

func (w *world) binds(s *tiers.Store, dataset string, want ...string) {
	w.tb.Helper()
	if got, err := s.EffectiveLabels(w.ctx, dataset); err != nil || !slices.Equal(got, want) {
		w.tb.Errorf("%s is bound by %q, %v, want %q", dataset, got, err, want)
	}
}

func of(datasets ...string) (out []label.Source) {
	for _, d := range datasets {
		out = append(out, label.Source{Dataset: d})
	}
	return out
}

// A label that is put on a dataset after others were made of it keeps these where they
// are, before a byte of them moves, whichever process is asked.
func TestLabelAddedLaterReachesWhatWasMade(t *testing.T) {
	w := newWorld(t)
	log := &governance.MemoryLog{}
	w.judge = engine(t, log)
	var puts atomic.Int64
	w.wrap = func(o tiers.ObjectStore) tiers.ObjectStore { return counting{o, &puts} }
	w.set = func(cfg *tiers.Config) { cfg.ColdPlace = events.Place{Region: "us"} }
	s, _ := w.store(0)
	w.made(s, "raw", "r0")
	w.made(s, "features", "r1", of("raw")...)
	w.made(s, "scores", "r2", of("features")...)
	w.made(s, "free", "r3")
	other, _ := w.store(0)
	w.binds(other, "scores") // and remembers it
	w.binds(s, "scores")
	must(t, s.AddLabels(w.ctx, "raw", label.Set{"residency:eu"}))
	w.binds(s, "scores", "residency:eu")
	w.binds(other, "scores", "residency:eu")
	if h, err := s.LabelsAt(w.ctx, "scores", 0); err != nil || !slices.Equal(h.Labels, label.Set{"residency:eu"}) {
		t.Errorf("%v, %v", h.Labels, err)
	}
	for _, st := range []*tiers.Store{s, other} {
		if _, err := st.Move(w.ctx, tiers.Migration{Dataset: "scores"}, nil); !errors.Is(err, events.ErrDenied) || puts.Load() != 0 {
			t.Errorf("%v, %d objects", err, puts.Load())
		}
		if err := st.RequestMigration(w.ctx, tiers.MigrationRequest{ID: "m", Dataset: "scores", To: 1}); !errors.Is(err, events.ErrDenied) {
			t.Errorf("the migration: %v", err)
		}
	}
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: "free"}, nil); err != nil {
		t.Error(err)
	}
}

// Labels that were looked up before the batch that brings more of them was committed do
// not count for it, whichever process it was that looked.
func TestLabelsThatACommitBringsCountAtOnce(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	other, _ := w.store(0)
	wr := w.writer(s, "raw", fence("r0", 1))
	for i, brought := range []label.Set{{"licence:x"}, {"residency:eu"}} {
		seq := uint64(i)
		for _, st := range []*tiers.Store{s, other} {
			if _, err := st.EffectiveLabels(w.ctx, "raw"); err != nil { // and remembers them
				t.Fatal(err)
			}
		}
		must(t, wr.Label(brought))
		w.write(wr, seq)
		want := []string{"licence:x", "residency:eu"}[:i+1]
		for _, st := range []*tiers.Store{s, other} {
			w.binds(st, "raw", want...)
			if h, err := st.LabelsAt(w.ctx, "raw", seq); err != nil || !slices.Equal(h.Labels, want) {
				t.Errorf("batch %d has %v, %v", seq, h.Labels, err)
			}
		}
	}
}

// What was taken off on the way stays off, for what was made like that alone.
func TestTakenOffStaysOff(t *testing.T) {
	w := newWorld(t)
	w.judge = engine(t, &governance.MemoryLog{}, entitled)
	s, _ := w.store(0)
	w.made(s, "raw", "r0")
	hashed := label.Source{Dataset: "raw", Stops: []string{"pii"}}
	w.made(s, "hashed", "r1", hashed)
	w.made(s, "plain", "r1", of("raw")...)
	must(t, s.AddLabels(w.ctx, "raw", label.Set{"licence:x", "pii:health"}))
	w.binds(s, "hashed", "licence:x")
	w.binds(s, "plain", "licence:x", "pii:health")

	// By hand, of what comes from elsewhere too; then no more comes of it.
	removed, err := s.Declassify(w.ctx, "plain", label.Declassification{Labels: []string{"pii"}, Reason: "dropped"}, "ada")
	if err != nil || !slices.Equal(removed, label.Set{"pii:health"}) {
		t.Fatalf("%v, %v", removed, err)
	}
	w.binds(s, "plain", "licence:x")
	if removed, err = s.Declassify(w.ctx, "plain", label.Declassification{Labels: []string{"pii"}, Reason: "dropped"}, "ada"); err != nil || removed != nil {
		t.Errorf("again: %v, %v", removed, err)
	}
	if _, err = s.Declassify(w.ctx, "plain", label.Declassification{Labels: []string{"licence"}, Reason: "bought"}, "bob"); !errors.Is(err, events.ErrDenied) {
		t.Errorf("by somebody else: %v", err)
	}
	w.binds(s, "plain", "licence:x")

	// Another run of the same: off. A run that takes nothing off: on again, for good.
	w.made(s, "hashed", "r2", hashed)
	w.binds(s, "hashed", "licence:x")
	w.made(s, "hashed", "r3", of("raw")...)
	must(t, s.AddLabels(w.ctx, "raw", label.Set{"embargo"}))
	w.binds(s, "hashed", "embargo", "licence:x", "pii:health")
	w.made(s, "hashed", "r4", hashed)
	must(t, s.AddLabels(w.ctx, "raw", label.Set{"later"}))
	w.binds(s, "hashed", "embargo", "later", "licence:x", "pii:health")
}

// A writer that learns only later that it may take a label off takes it off.
func TestWriterTakesOffLater(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.made(s, "raw", "r0")
	wr := w.writer(s, "hashed", fence("r1", 1))
	wr.MadeOf(of("raw")...)
	w.write(wr, 0)
	must(t, s.AddLabels(w.ctx, "raw", label.Set{"pii"}))
	w.binds(s, "hashed", "pii")
	wr.MadeOf(label.Source{Dataset: "raw", Stops: []string{"pii"}})
	must(t, wr.Finish(w.ctx))
	must(t, s.AddLabels(w.ctx, "raw", label.Set{"x"}))
	w.binds(s, "hashed", "x")
}

// What is made of something that is not there, or cannot be asked for, does not move.
func TestUnknownAncestorKeepsBatches(t *testing.T) {
	w := newWorld(t)
	w.judge = engine(t, &governance.MemoryLog{})
	s, _ := w.store(0)
	w.made(s, "orphan", "r1", of("gone")...)
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: "orphan"}, nil); !errors.Is(err, label.ErrUnknown) || errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if len(files(t, w.cold)) != 0 {
		t.Errorf("files %q", files(t, w.cold))
	}
}

// A dataset that each run appends to from a dataset of its own stays bound by what those
// were made of, however many there are.
func TestManySourcesAreFolded(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.made(s, "raw", "r0")
	const runs = label.MaxSources + 20
	for i := range runs {
		step := fmt.Sprint("step-", i)
		w.made(s, step, "r", label.Source{Dataset: "raw", Stops: []string{"pii"}})
		if i == 3 {
			must(t, s.AddLabels(w.ctx, step, label.Set{"early"}))
		}
	}
	wr := w.writer(s, "sum", fence("r", 1))
	for i := range runs {
		wr.MadeOf(of(fmt.Sprint("step-", i))...)
		if i == 2 || i == runs-1 {
			w.write(wr, wr.Next())
		}
	}
	w.binds(s, "sum", "early")
	must(t, s.AddLabels(w.ctx, "raw", label.Set{"later", "pii"}))
	must(t, s.AddLabels(w.ctx, fmt.Sprint("step-", runs-1), label.Set{"newest"}))
	w.binds(s, "sum", "early", "later", "newest")
}
