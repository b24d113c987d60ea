package models_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/models"
)

// nodes are datasets as they are now.
type nodes map[string]label.Node

func (n nodes) LabelNode(_ context.Context, of label.Source) (label.Node, error) {
	node, ok := n[of.Dataset]
	if !ok {
		return node, errors.New("no such dataset")
	}
	return node, nil
}

func (n nodes) DatasetLabels(ctx context.Context, dataset string) (label.Set, error) {
	return label.Graph{Datasets: n}.Effective(ctx, label.Source{Dataset: dataset})
}

// judge is an engine with a policy that lets ada declassify.
func judge(t *testing.T, log governance.DecisionLog, policies ...string) *governance.Engine {
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
	ring, err := governance.NewKeyRing(key)
	if err != nil {
		t.Fatal(err)
	}
	e, err := governance.NewEngine(governance.Config{Policies: set, Log: log, Keys: ring})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

const entitled = `apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: entitled}
spec:
  match: {types: [label.declassified]}
  rules:
    - {name: who, expression: "event.actor == 'ada' && data.model == event.subject && data.version != ''", message: ask ada}
`

func promote(w *world, r *models.Registry, model, id string) error {
	return r.Promote(w.ctx, models.Promotion{Model: model, Alias: models.Champion, ID: id, Run: "by-hand"})
}

// A label that a dataset gets after a version was made of it keeps the version, and what
// was made of that, out of service.
func TestLabelAddedLaterKeepsVersionsOutOfService(t *testing.T) {
	w := newWorld(t)
	w.judge = judge(t, &governance.MemoryLog{})
	all := nodes{"raw": {}, "features": {From: []label.Source{{Dataset: "raw"}}}}
	w.cfg.Labels, w.cfg.Datasets, w.cfg.Serving = all, all, events.Place{Region: "us", Use: "commercial"}
	r := w.open()
	first := draft("r1")
	first.Lineage.Datasets = []models.DatasetUse{{Dataset: "features"}}
	v, err := r.Register(w.ctx, first, artifact(t, 1))
	if err != nil || len(v.Labels) > 0 {
		t.Fatalf("%v, %v", v.Labels, err)
	}
	child := draft("r2")
	child.Model, child.Lineage.Datasets, child.Lineage.Parent = "tuned", nil, v.ID
	c, err := r.Register(w.ctx, child, artifact(t, 2))
	if err != nil {
		t.Fatal(err)
	}
	all["raw"] = label.Node{Labels: label.Set{"residency:eu"}}
	for _, at := range []models.Version{v, c} {
		if err := promote(w, r, at.Model, at.ID); !errors.Is(err, events.ErrDenied) {
			t.Errorf("%s: %v", at.Model, err)
		}
		if _, err := r.Alias(w.ctx, at.Model, models.Champion); !errors.Is(err, models.ErrNotFound) {
			t.Errorf("%s: %v", at.Model, err)
		}
	}
	if got, err := r.EffectiveLabels(w.ctx, c); err != nil || !slices.Equal(got, label.Set{"residency:eu"}) {
		t.Errorf("%v, %v", got, err)
	}
	all["raw"] = label.Node{}
	if err := promote(w, r, model, v.ID); err != nil {
		t.Error(err)
	}
	delete(all, "raw") // and nobody knows what it was
	if err := promote(w, r, "tuned", c.ID); !errors.Is(err, label.ErrUnknown) || errors.Is(err, models.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestDeclassifyVersion(t *testing.T) {
	w := newWorld(t)
	log := &governance.MemoryLog{}
	w.judge = judge(t, log, entitled)
	all := nodes{"features": {Labels: label.Set{"licence:x", "pii:health"}}}
	w.cfg.Labels, w.cfg.Datasets, w.cfg.Cold = all, all, nil
	r := w.open()
	d := draft("r1")
	d.Lineage.Datasets = []models.DatasetUse{{Dataset: "features"}}
	v, err := r.Register(w.ctx, d, artifact(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	all["features"] = label.Node{Labels: label.Set{"embargo", "licence:x", "pii:health"}}
	off := label.Declassification{Labels: []string{"embargo", "pii"}, Reason: "only sums are left"}
	for name, c := range map[string]struct {
		id    string
		d     label.Declassification
		actor string
		want  error
	}{
		"by somebody else":   {v.ID, off, "bob", events.ErrDenied},
		"without a reason":   {v.ID, label.Declassification{Labels: off.Labels}, "ada", label.ErrInvalid},
		"of another version": {"abcdef", off, "ada", models.ErrNotFound},
	} {
		if _, _, err := r.Declassify(w.ctx, model, c.id, c.d, c.actor); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	binds := func(want ...string) {
		t.Helper()
		if got, err := r.EffectiveLabels(w.ctx, v); err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
	}
	binds("embargo", "licence:x", "pii:health")
	removed, left, err := r.Declassify(w.ctx, model, v.ID[:8], off, "ada")
	if err != nil || !slices.Equal(removed, label.Set{"embargo", "pii:health"}) || !slices.Equal(left, label.Set{"licence:x"}) {
		t.Fatalf("%v off, %v left, %v", removed, left, err)
	}
	binds("licence:x")
	if got, err := r.Get(w.ctx, model, v.ID); err != nil || !slices.Equal(got.Labels, label.Set{"licence:x"}) {
		t.Errorf("%v, %v", got.Labels, err)
	}
	if removed, left, err = r.Declassify(w.ctx, model, v.ID, off, "ada"); err != nil || removed != nil || !slices.Equal(left, label.Set{"licence:x"}) {
		t.Errorf("again: %v, %v, %v", removed, left, err)
	}
	all["features"] = label.Node{Labels: label.Set{"later", "licence:x", "pii:contact"}}
	binds("later", "licence:x")
	if got := w.published(events.TypeLabelDeclassified); len(got) != 1 {
		t.Errorf("%d events", len(got))
	}
	var last governance.Decision
	for d, err := range log.Read(w.ctx, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		if d.Point == events.OnPublish && d.Type == events.TypeLabelDeclassified && d.Action == events.Allow {
			last = d
		}
	}
	if last.Actor != "ada" || last.Reason != "embargo, pii:health taken off "+model+" "+v.Short()+": only sums are left" {
		t.Errorf("the log has %+v", last)
	}
	// The same bytes made again of the same, with nothing taken off.
	if _, err := r.Register(w.ctx, d, artifact(t, 1)); err != nil {
		t.Fatal(err)
	}
	binds("later", "licence:x", "pii:contact")
}
