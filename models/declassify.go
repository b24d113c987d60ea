package models

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
)

// Declassify takes labels off a version, by full id or unique prefix: its own, and those
// that come from what it was made of, which then no longer come from there. It is judged
// as label.declassified before, which governance denies unless a policy is about just
// that. actor says on whose behalf; "": nobody's. What was made of the version before
// keeps its own, and a champion that serves goes on serving. It returns what was taken off
// and what is left; nothing taken off, and no event, if there was nothing to take off.
func (r *Registry) Declassify(ctx context.Context, model, id string, d label.Declassification, actor string) (removed, left label.Set, err error) {
	if removed, left, err = r.declassify(ctx, model, id, d, actor); err != nil {
		return nil, nil, &Error{Op: "declassify", Model: model, What: id, Err: err}
	}
	return removed, left, nil
}

func (r *Registry) declassify(ctx context.Context, model, id string, d label.Declassification, actor string) (removed, left label.Set, err error) {
	if err := d.Check(); err != nil {
		return nil, nil, err
	}
	v, err := r.find(ctx, model, id)
	if err != nil {
		return nil, nil, err
	}
	key, err := versionKey(model, v.ID)
	if err != nil {
		return nil, nil, err
	}
	for range maxRaces {
		var rec versionRecord
		rev, err := r.get(ctx, key, &rec)
		if err != nil {
			return nil, nil, err
		}
		bound, err := r.EffectiveLabels(ctx, rec.Version)
		if err != nil {
			return nil, nil, err
		}
		if left, removed = d.Of(bound); len(removed) == 0 {
			return nil, left, nil
		}
		ev, err := events.New(events.TypeLabelDeclassified, source, model, fmt.Sprintf("%s/%s/declassified/%d", model, v.ID, rev), time.Now().UTC(),
			events.LabelDeclassified{Model: model, Version: v.ID, Removed: removed, Labels: left, Reason: d.Reason})
		if err != nil {
			return nil, nil, err
		}
		if actor != "" {
			ev.SetExtension(events.ExtActor, actor)
		}
		setLabels(&ev, bound)
		// Told before it takes effect: no label becomes weaker that no event says so of.
		if err := r.bus.Publish(ctx, ev); err != nil {
			return nil, nil, err
		}
		node, err := r.node(ctx, &rec.Version)
		if err != nil {
			return nil, nil, err
		}
		rec.MadeOf = slices.Clone(node.From)
		for i := range rec.MadeOf {
			rec.MadeOf[i].Stops = label.EitherStops(rec.MadeOf[i].Stops, d.Labels)
		}
		rec.Labels, _ = d.Of(rec.Labels)
		if _, err = r.set(ctx, key, rec, rev); err == nil {
			return removed, left, nil
		}
		if !errors.Is(err, errConflict) {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("lost %d compare-and-sets in a row", maxRaces)
}
