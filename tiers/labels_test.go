package tiers_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/tiers"
)

// engine judges by policies, in YAML.
func engine(t *testing.T, log governance.DecisionLog, policies ...string) *governance.Engine {
	t.Helper()
	types, err := events.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	var sources []governance.Source
	for _, p := range policies {
		sources = append(sources, governance.Source{Name: "p.yaml", Data: []byte(p)})
	}
	set, err := governance.Load(governance.Options{Types: types}, sources...)
	if err != nil {
		t.Fatal(err)
	}
	key, err := governance.NewKey("k")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := governance.NewKeyRing(key)
	if err != nil {
		t.Fatal(err)
	}
	e, err := governance.NewEngine(governance.Config{Policies: set, Log: log, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// labelsOf lists the labels of the events of that type, by id.
func (w *world) labelsOf(typ string) map[string][]string {
	w.tb.Helper()
	got := map[string][]string{}
	for d, err := range w.bus.Replay(w.ctx, events.Subscription{Types: []string{typ}}) {
		if err != nil {
			w.tb.Fatal(err)
		}
		ls, err := events.LabelsOf(&d.Event)
		if err != nil {
			w.tb.Fatal(err)
		}
		got[d.ID()] = ls
	}
	return got
}

func (w *world) headLabels(s *tiers.Store, want ...string) {
	w.tb.Helper()
	h, err := s.Head(w.ctx, dataset)
	if err != nil {
		w.tb.Fatal(err)
	}
	if !slices.Equal(h.Labels, want) {
		w.tb.Errorf("labels %q, want %q", h.Labels, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLabelsAreJoinedFromCommitToCommit(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	first := w.writer(s, dataset, fence("run-1", 1))
	must(t, first.Label(label.Set{"residency:eu", "residency:us"}))
	w.write(first, 0)
	w.headLabels(s, "residency:eu", "residency:us")

	second := w.writer(s, dataset, fence("run-2", 1)) // says nothing
	w.write(second, 1)
	w.headLabels(s, "residency:eu", "residency:us")
	must(t, second.Label(label.Set{"pii", "residency:us"}))
	w.write(second, 2)
	w.headLabels(s, "pii", "residency:us")

	// Somebody else declares a label while the writer has the dataset open.
	must(t, s.AddLabels(w.ctx, dataset, label.Set{"licence:cc0-1.0"}))
	w.write(second, 3)
	w.headLabels(s, "licence:cc0-1.0", "pii", "residency:us")
	must(t, second.Label(label.Set{"embargo"}))
	must(t, second.Seal(w.ctx)) // nothing more was written
	w.headLabels(s, "embargo", "licence:cc0-1.0", "pii", "residency:us")

	want := [][]string{{"residency:eu", "residency:us"}, {"residency:eu", "residency:us"}, {"pii", "residency:us"}}
	n := 0
	for b, err := range s.Entries(w.ctx, dataset, 0, 3) {
		must(t, err)
		if !slices.Equal(b.Labels, want[n]) {
			t.Errorf("batch %d has %q, want %q", n, b.Labels, want[n])
		}
		if got := w.labelsOf(events.TypeBatchPublished)[b.Ref.ID()]; !slices.Equal(got, want[n]) {
			t.Errorf("the event of batch %d has %q, want %q", n, got, want[n])
		}
		n++
	}
	for b, err := range s.Batches(w.ctx, dataset, 2, 3, false) {
		must(t, err)
		if !slices.Equal(b.Labels, want[2]) {
			t.Errorf("read with %q", b.Labels)
		}
	}
	if got := w.labelsOf(events.TypeDatasetSealed)[dataset+"#sealed"]; !slices.Equal(got, []string{"embargo", "licence:cc0-1.0", "pii", "residency:us"}) {
		t.Errorf("the seal has %q", got)
	}
}

func TestFinishStoresLabels(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	wr := w.writer(s, dataset, fence("run-1", 1))
	w.write(wr, 0)
	must(t, wr.Label(label.Set{"pii"}))
	must(t, wr.Finish(w.ctx))
	w.headLabels(s, "pii")
}

// counting counts what reaches the object store.
type counting struct {
	tiers.ObjectStore
	puts *atomic.Int64
}

func (c counting) Put(ctx context.Context, key string, body []byte) error {
	c.puts.Add(1)
	return c.ObjectStore.Put(ctx, key, body)
}

// No policy is loaded: what labels forbid does not move, and not a byte of it does.
func TestLabelsKeepBatchesWhereTheyMayLie(t *testing.T) {
	for _, c := range []struct {
		name, labels string
		place        events.Place
		allowed      bool
	}{
		{"the region allowed", "residency:eu", events.Place{Region: "eu"}, true},
		{"another region", "residency:eu", events.Place{Region: "us"}, false},
		{"nobody knows where", "residency:eu", events.Place{}, false},
		{"nowhere", "residency:none", events.Place{Region: "eu"}, false},
		{"personal data", "pii:health", events.Place{Region: "eu", PII: []string{"contact"}}, false},
		{"personal data that it takes", "pii:health", events.Place{PII: []string{"health"}}, true},
		{"no labels", "", events.Place{}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			log := &governance.MemoryLog{}
			w.judge = engine(t, log)
			var puts atomic.Int64
			w.wrap = func(o tiers.ObjectStore) tiers.ObjectStore { return counting{o, &puts} }
			w.set = func(cfg *tiers.Config) { cfg.ColdPlace = c.place }
			s, _ := w.store(0)
			wr := w.writer(s, dataset, fence("run-1", 1))
			set, err := label.ParseText(c.labels)
			must(t, err)
			must(t, wr.Label(set))
			w.write(wr, 0)
			_, err = s.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil)
			if c.allowed {
				if err != nil || puts.Load() == 0 {
					t.Errorf("%v, %d objects", err, puts.Load())
				}
				return
			}
			if !errors.Is(err, events.ErrDenied) || puts.Load() != 0 || len(files(t, w.cold)) != 0 {
				t.Errorf("%v, %d objects put, files %q", err, puts.Load(), files(t, w.cold))
			}
			denied := false
			for d, err := range log.Read(w.ctx, time.Time{}) {
				must(t, err)
				denied = denied || d.Type == events.TypeTierMoveRequested && d.Action == events.Deny && d.Reason != ""
			}
			if !denied {
				t.Error("the log does not have the denial")
			}
		})
	}
}

const entitled = `apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: entitled}
spec:
  match: {types: [label.declassified]}
  rules:
    - {name: who, expression: event.actor == 'ada', message: ask ada}
`

func TestDeclassifyDataset(t *testing.T) {
	w := newWorld(t)
	w.judge = engine(t, &governance.MemoryLog{})
	s, _ := w.store(0)
	wr := w.writer(s, dataset, fence("run-1", 1))
	must(t, wr.Label(label.Set{"pii:health", "residency:eu"}))
	w.write(wr, 0)
	d := label.Declassification{Labels: []string{"pii"}, Reason: "hashed"}
	if _, err := s.Declassify(w.ctx, dataset, d, "ada"); !errors.Is(err, events.ErrDenied) {
		t.Errorf("without a policy: %v", err)
	}
	w.headLabels(s, "pii:health", "residency:eu")

	log := &governance.MemoryLog{}
	w.judge = engine(t, log, entitled)
	if _, err := s.Declassify(w.ctx, dataset, d, "bob"); !errors.Is(err, events.ErrDenied) {
		t.Errorf("by somebody else: %v", err)
	}
	if _, err := s.Declassify(w.ctx, dataset, label.Declassification{Labels: []string{"pii"}}, "ada"); !errors.Is(err, label.ErrInvalid) {
		t.Errorf("without a reason: %v", err)
	}
	w.headLabels(s, "pii:health", "residency:eu")
	removed, err := s.Declassify(w.ctx, dataset, d, "ada")
	if err != nil || !slices.Equal(removed, []string{"pii:health"}) {
		t.Fatalf("%v, %v", removed, err)
	}
	w.headLabels(s, "residency:eu")
	if removed, err = s.Declassify(w.ctx, dataset, d, "ada"); err != nil || removed != nil {
		t.Errorf("again: %v, %v", removed, err)
	}
	if got := w.published(events.TypeLabelDeclassified); len(got) != 1 {
		t.Errorf("events %v", got)
	}
	var last governance.Decision
	for d, err := range log.Read(w.ctx, time.Time{}) {
		must(t, err)
		if d.Point == events.OnPublish {
			last = d
		}
	}
	if last.Actor != "ada" || last.Reason != "pii:health taken off "+dataset+": hashed" {
		t.Errorf("the log has %+v", last)
	}

	// The writer that has it open brings back what it writes, and nothing else.
	other := w.writer(s, dataset, fence("run-2", 1))
	w.write(other, 1)
	w.headLabels(s, "residency:eu")
	must(t, other.Label(label.Set{"pii:health"}))
	w.write(other, 2)
	w.headLabels(s, "pii:health", "residency:eu")
}
