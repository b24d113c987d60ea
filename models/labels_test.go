package models_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/models"
)

// datasets are what a test's catalog says of labels.
type datasets map[string]label.Set

func (d datasets) DatasetLabels(_ context.Context, dataset string) (label.Set, error) {
	set, ok := d[dataset]
	if !ok {
		return nil, errors.New("no such dataset")
	}
	return set, nil
}

func (w *world) labels(typ string) [][]string {
	w.tb.Helper()
	var out [][]string
	for d, err := range w.bus.Replay(w.ctx, events.Subscription{Types: []string{typ}}) {
		if err != nil {
			w.tb.Fatal(err)
		}
		ls, err := events.LabelsOf(&d.Event)
		if err != nil {
			w.tb.Fatal(err)
		}
		out = append(out, ls)
	}
	return out
}

func TestVersionsInheritLabels(t *testing.T) {
	w := newWorld(t)
	w.cfg.Labels = datasets{"features": {"residency:eu", "residency:us"}, "late": {"pii:contact"}}
	w.cfg.Serving = events.Place{Region: "eu"}
	r := w.open()
	first := draft("r1")
	first.Lineage.Datasets = []models.DatasetUse{{Dataset: "features"}, {Dataset: "late"}}
	first.Metadata = map[string]string{"labels": "licence:cc0-1.0,residency:eu"}
	v, err := r.Register(w.ctx, first, artifact(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	want := label.Set{"licence:cc0-1.0", "pii:contact", "residency:eu"}
	if !slices.Equal(v.Labels, want) {
		t.Errorf("%v, want %v", v.Labels, want)
	}
	child := draft("r2")
	child.Model = "flights/tuned"
	child.Lineage.Datasets, child.Lineage.Parent = nil, v.ID
	c, err := r.Register(w.ctx, child, artifact(t, 2))
	if err != nil || !slices.Equal(c.Labels, want) {
		t.Errorf("made of another: %v, %v", c.Labels, err)
	}

	// The same bytes made of other data: of both.
	again := draft("r3")
	again.Lineage.Datasets, again.Labels = nil, label.Set{"embargo"}
	v, err = r.Register(w.ctx, again, artifact(t, 1))
	want = label.Set{"embargo", "licence:cc0-1.0", "pii:contact", "residency:eu"}
	if err != nil || !slices.Equal(v.Labels, want) {
		t.Errorf("registered again: %v, %v", v.Labels, err)
	}
	if err := r.Promote(w.ctx, models.Promotion{Model: model, Alias: models.Champion, ID: v.ID, Run: "r"}); err != nil {
		t.Fatal(err)
	}
	if got := w.labels(events.TypeModelPromoted); len(got) != 1 || !slices.Equal(got[0], want) {
		t.Errorf("the event has %v", got)
	}
}

func TestVersionsOfUnknownLabelsAreRefused(t *testing.T) {
	w := newWorld(t)
	w.cfg.Labels = datasets{}
	r := w.open()
	d := draft("r1")
	d.Lineage.Datasets = []models.DatasetUse{{Dataset: "features"}}
	if _, err := r.Register(w.ctx, d, artifact(t, 1)); err == nil {
		t.Error("a dataset that nobody knows")
	}
	d = draft("r1")
	d.Lineage.Datasets, d.Metadata = nil, map[string]string{"labels": "PII"}
	if _, err := r.Register(w.ctx, d, artifact(t, 1)); !errors.Is(err, models.ErrInvalid) || !errors.Is(err, label.ErrInvalid) {
		t.Errorf("a label that is none: %v", err)
	}
	d = draft("r1")
	d.Lineage.Datasets, d.Lineage.Parent = nil, "nobody"
	if _, err := r.Register(w.ctx, d, artifact(t, 1)); err == nil {
		t.Error("a parent that nobody knows")
	}
	if n := len(w.published(events.TypeModelRegistered)); n != 0 {
		t.Errorf("%d registered", n)
	}
}

// observer notes what is read, and has one label of its own.
type observer struct{ seen label.Set }

func (o *observer) Used(v models.Version) (err error) {
	o.seen, err = label.Join(o.seen, v.Labels)
	return err
}

func (o *observer) MadeOf(_ context.Context, _ string, lineage label.Set) (labels label.Set, from []label.Source, stops []string, err error) {
	labels, err = label.Join(o.seen, lineage)
	return labels, nil, nil, err
}

func TestObservedRegistry(t *testing.T) {
	w := newWorld(t)
	r := w.open()
	d := draft("r1")
	d.Lineage.Datasets, d.Labels = nil, label.Set{"pii"}
	v, err := r.Register(w.ctx, d, artifact(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Promote(w.ctx, models.Promotion{Model: model, Alias: models.Champion, ID: v.ID}); err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func(*models.Registry) error{
		"get":   func(r *models.Registry) error { _, err := r.Get(w.ctx, model, v.ID[:8]); return err },
		"alias": func(r *models.Registry) error { _, err := r.Alias(w.ctx, model, models.Champion); return err },
		"artifact": func(r *models.Registry) error {
			_, err := r.Artifact(w.ctx, models.Version{Model: model, ID: v.ID})
			return err
		},
		"versions": func(r *models.Registry) error {
			for _, err := range r.Versions(w.ctx, model) {
				if err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			view := r.Observed(&observer{})
			if err := read(view); err != nil {
				t.Fatal(err)
			}
			d := draft("r-" + name)
			d.Lineage.Datasets = nil
			got, err := view.Register(w.ctx, d, artifact(t, float64(len(name))+10))
			if err != nil || !got.Labels.Covers(v.Labels) {
				t.Errorf("%v, %v", got.Labels, err)
			}
		})
	}
}
