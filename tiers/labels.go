package tiers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
)

// Label makes what the writer commits from here on have labels, joined with those that
// the dataset has. The error is a *label.Error: there would be too many.
func (w *Writer) Label(labels label.Set) error {
	joined, err := label.Join(w.labels, labels)
	if err == nil {
		w.labels = joined
	}
	return err
}

// labelled is what the dataset's labels are with the next commit.
func (w *Writer) labelled() (label.Set, error) { return label.Join(w.head.Labels, w.labels) }

// settleLabels stores the writer's labels, and what it was made of, where no commit has.
func (w *Writer) settleLabels(ctx context.Context) error {
	if err := w.recordSources(ctx); err != nil {
		return err
	}
	if w.head.Labels.Covers(w.labels) {
		return nil
	}
	return w.store.addLabels(ctx, w.dataset, w.labels)
}

// AddLabels joins labels with a dataset's: it can make them more restrictive only. They
// bind what is made of the dataset, and what was made of it before: once it returns, half
// a second later, in every process. ErrNotFound if there is no such dataset.
func (s *Store) AddLabels(ctx context.Context, dataset string, labels label.Set) error {
	if err := s.addLabels(ctx, dataset, labels); err != nil {
		return err
	}
	if err := s.known.untilKnown(ctx); err != nil {
		return &Error{Op: "label", Dataset: dataset, Err: err}
	}
	return nil
}

func (s *Store) addLabels(ctx context.Context, dataset string, labels label.Set) error {
	var joined error
	_, err := s.setHead(ctx, dataset, func(r *headRecord) bool {
		var set label.Set
		if set, joined = label.Join(r.Labels, labels); joined != nil || r.Labels.Covers(labels) {
			return false
		}
		r.Labels = set
		return true
	})
	if err = errors.Join(err, joined); err != nil {
		return &Error{Op: "label", Dataset: dataset, Err: err}
	}
	return nil
}

// LabelsAt returns a dataset's head with the labels that bind it now (EffectiveLabels);
// those that batch seq was committed with may have been stronger. ErrNotFound before that batch is
// committed.
func (s *Store) LabelsAt(ctx context.Context, dataset string, seq uint64) (Head, error) {
	for range maxRaces {
		begun := time.Now()
		rec, _, err := s.head(ctx, dataset)
		if err == nil && rec.Next > seq {
			if rec.Labels, err = s.binding(ctx, rec.Head, begun); err != nil {
				return Head{}, &Error{Op: "labels", Dataset: dataset, Err: err}
			}
			return rec.Head, nil
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return Head{}, &Error{Op: "labels", Dataset: dataset, Err: err}
		}
		// A replica that is behind. Its labels may be behind, too.
		if err := backoff(ctx); err != nil {
			return Head{}, &Error{Op: "labels", Dataset: dataset, Err: err}
		}
	}
	return Head{}, &Error{Op: "labels", Dataset: dataset, Batch: batchID(dataset, seq), Err: ErrNotFound}
}

// Declassify takes labels off a dataset: the one way for them to become weaker. It is
// judged as label.declassified before, which governance denies unless a policy is about
// just that. actor says on whose behalf; "": nobody's. Batches keep the labels that they
// were committed with, as a record; what counts for readers is the dataset's. Labels that
// come from what it was made of are taken off too, and no longer come from there. What was
// made of the dataset before keeps its own. It returns what was taken off; nothing, and
// no event, if there was nothing to take off.
func (s *Store) Declassify(ctx context.Context, dataset string, d label.Declassification, actor string) (label.Set, error) {
	removed, err := s.declassify(ctx, dataset, d, actor)
	if err != nil {
		return nil, &Error{Op: "declassify", Dataset: dataset, Err: err}
	}
	return removed, nil
}

func (s *Store) declassify(ctx context.Context, dataset string, d label.Declassification, actor string) (label.Set, error) {
	if err := d.Check(); err != nil {
		return nil, err
	}
	name, err := token("dataset", dataset)
	if err != nil {
		return nil, err
	}
	for range maxRaces {
		rec, rev, err := s.head(ctx, dataset)
		if err != nil {
			return nil, err
		}
		made, madeRev, err := s.made(ctx, dataset)
		if err != nil {
			return nil, err
		}
		bound, err := s.effective(ctx, dataset)
		if err != nil {
			return nil, err
		}
		left, removed := d.Of(bound)
		if len(removed) == 0 {
			return nil, nil
		}
		ev, err := events.New(events.TypeLabelDeclassified, source, dataset, fmt.Sprintf("%s/declassified/%d", dataset, rev), time.Now().UTC(),
			events.LabelDeclassified{Dataset: dataset, Removed: removed, Labels: left, Reason: d.Reason})
		if err != nil {
			return nil, err
		}
		if actor != "" {
			ev.SetExtension(events.ExtActor, actor)
		}
		setLabels(&ev, bound)
		// Told before it takes effect: no label becomes weaker that no event says so of.
		if err := s.bus.Publish(ctx, ev); err != nil {
			return nil, err
		}
		// The sources first: what dies in between has taken off too little.
		if len(made.Sources) > 0 {
			made.stop(d.Labels)
			_, err = s.catalog.set(ctx, madeKey(name), made, madeRev)
		}
		if err == nil {
			rec.Labels, _ = d.Of(rec.Labels)
			_, err = s.catalog.set(ctx, headKey(name), rec, rev)
		}
		if err == nil {
			s.known.forget()
			return removed, nil
		}
		if !errors.Is(err, errConflict) {
			return nil, err
		}
		if err := backoff(ctx); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("lost %d compare-and-sets in a row", maxRaces)
}

// setLabels says in an event what the data that it is about are.
func setLabels(ev *events.Event, labels label.Set) {
	if len(labels) > 0 {
		ev.SetExtension(events.ExtLabels, labels.String())
	}
}

// place is where a tier of this store is; nil: nothing is known of it.
func (s *Store) place(t arrowio.Tier) *events.Place {
	p := s.here
	if t == arrowio.Cold {
		p = s.coldPlace
	}
	if p.IsZero() {
		return nil
	}
	return &p
}
