package models

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
)

// aliasRecord is what is stored of an alias.
type aliasRecord struct {
	ID         string          `json:"id"`
	Previous   string          `json:"previous,omitempty"`
	Generation uint64          `json:"generation"` // grows with each move
	Reason     string          `json:"reason,omitempty"`
	Event      json.RawMessage `json:"event"` // model.promoted as approved
}

// Alias resolves an alias.
func (r *Registry) Alias(ctx context.Context, model, alias string) (Version, error) {
	v, err := r.used(r.alias(ctx, model, alias))
	if err != nil {
		return Version{}, &Error{Op: "resolve", Model: model, What: alias, Err: err}
	}
	return v, nil
}

func (r *Registry) alias(ctx context.Context, model, alias string) (Version, error) {
	key, err := aliasKey(model, alias)
	if err != nil {
		return Version{}, err
	}
	var a aliasRecord
	if _, err := r.get(ctx, key, &a); err != nil {
		return Version{}, err
	}
	return r.find(ctx, model, a.ID)
}

// Promotion is a request to move an alias.
type Promotion struct {
	Model, Alias, ID, Previous string
	Run, Cause, Reason         string
}

// Promote points alias at version id if it still points at previous ("" when
// unset), marks the version promoted if the alias is Champion, and publishes
// model.promoted. Repeating a promotion that already holds is a success, and
// completes one that a crash cut off, whose reason it keeps if it gives none.
// ErrConflict if the alias points elsewhere; events.ErrDenied, and nothing
// changed, if governance refuses the event.
func (r *Registry) Promote(ctx context.Context, p Promotion) error {
	if err := r.promote(ctx, p); err != nil {
		return &Error{Op: "promote", Model: p.Model, What: p.ID + " to " + p.Alias, Err: err}
	}
	return nil
}

func (r *Registry) promote(ctx context.Context, p Promotion) error {
	key, err := aliasKey(p.Model, p.Alias)
	if err != nil {
		return err
	}
	vkey, err := versionKey(p.Model, p.ID)
	if err != nil {
		return err
	}
	v, err := r.find(ctx, p.Model, p.ID)
	if err != nil {
		return err
	}
	if err := checkMetrics(v.Metrics); err != nil {
		return err
	}
	var a aliasRecord
	rev, err := r.get(ctx, key, &a)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if a.ID != p.ID {
		if a.ID != p.Previous {
			return fmt.Errorf("%w: it points at %.12q, %.12q expected", ErrConflict, a.ID, p.Previous)
		}
		next := aliasRecord{ID: p.ID, Previous: a.ID, Generation: a.Generation + 1, Reason: p.Reason}
		// The generation makes the ids of A, B and A again differ.
		id := fmt.Sprintf("%s/promoted/%s/%s/%d", orDash(p.Run), p.Model, p.Alias, next.Generation)
		typ := events.TypeModelAliased
		if p.Alias == Champion {
			typ = events.TypeModelPromoted
		}
		bound := v
		if bound.Labels, err = r.EffectiveLabels(ctx, v); err != nil {
			return err
		}
		next.Event, err = r.approve(ctx, typ, &bound, id, p.Run, p.Cause, events.ModelPromoted{
			Model: p.Model, Version: p.ID, Previous: a.ID, Alias: p.Alias, Run: p.Run, Cause: p.Cause, Metrics: v.Metrics, Place: r.place(p.Alias),
		})
		if err != nil {
			return err
		}
		if _, err := r.set(ctx, key, next, rev); errors.Is(err, errConflict) {
			// Lost to another. If that one promoted the same version, all is well.
			if _, err := r.get(ctx, key, &a); err != nil {
				return err
			}
			if a.ID != p.ID {
				return fmt.Errorf("%w: it points at %.12q now", ErrConflict, a.ID)
			}
		} else if err != nil {
			return err
		} else {
			a = next
		}
	}
	// From here on the promotion holds; a repeat completes what was cut off.
	if p.Alias == Champion {
		reason := p.Reason
		if reason == "" {
			reason = a.Reason
		}
		if err := r.mark(ctx, vkey, Promoted, reason); err != nil {
			return err
		}
	}
	return r.announce(ctx, a.Event)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// mark sets a version's status and reason.
func (r *Registry) mark(ctx context.Context, key string, status Status, reason string) error {
	var rec versionRecord
	return r.update(ctx, key, &rec, func() (bool, error) {
		if rec.Status == status && (rec.Reason == reason || reason == "") {
			return false, nil
		}
		rec.Status, rec.Reason = status, reason
		return true, nil
	})
}

// Refuse marks a version as refused with its reason and publishes model.refused.
// policy is the rule that refused, "" if a person did. A champion, present or
// past, stays marked promoted. Repeatable.
func (r *Registry) Refuse(ctx context.Context, p Promotion, policy string) error {
	if err := r.refuse(ctx, p, policy); err != nil {
		return &Error{Op: "refuse", Model: p.Model, What: p.ID, Err: err}
	}
	return nil
}

func (r *Registry) refuse(ctx context.Context, p Promotion, policy string) error {
	key, err := versionKey(p.Model, p.ID)
	if err != nil {
		return err
	}
	v, err := r.find(ctx, p.Model, p.ID)
	if err != nil {
		return err
	}
	ev, err := r.approve(ctx, events.TypeModelRefused, &v, fmt.Sprintf("%s/refused/%s/%s", orDash(p.Run), p.Model, p.ID), p.Run, p.Cause, events.ModelRefused{
		Model: p.Model, Version: p.ID, Champion: p.Previous, Run: p.Run, Cause: p.Cause, Reason: p.Reason, Policy: policy,
	})
	if err != nil {
		return err
	}
	if v.Status != Promoted {
		if err := r.mark(ctx, key, Refused, p.Reason); err != nil {
			return err
		}
	}
	return r.announce(ctx, ev)
}

// WatchAlias calls fn with the version the alias points at, now (if it is set)
// and on every change, until ctx ends; it returns nil then. Calls come one after
// another; of changes in quick succession fn may see the last alone. It blocks:
// run it on a goroutine of its own.
func (r *Registry) WatchAlias(ctx context.Context, model, alias string, fn func(Version)) error {
	err := r.watchAlias(ctx, model, alias, fn)
	if err != nil && ctx.Err() == nil {
		return &Error{Op: "watch", Model: model, What: alias, Err: err}
	}
	return nil
}

func (r *Registry) watchAlias(ctx context.Context, model, alias string, fn func(Version)) error {
	key, err := aliasKey(model, alias)
	if err != nil {
		return err
	}
	w, err := r.kv.Watch(ctx, key, jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("watch %s: %w", key, err)
	}
	defer func() { _ = w.Stop() }() // the consumer is ephemeral: the server drops it anyway
	last := ""
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("watch %s: connection closed", key)
			}
			if e == nil { // no more of what was there at the start
				continue
			}
			var a aliasRecord
			if err := json.Unmarshal(e.Value(), &a); err != nil {
				return fmt.Errorf("decode %s: %w", key, err)
			}
			if a.ID == last { // seen again after a reconnection
				continue
			}
			v, err := r.find(ctx, model, a.ID)
			if err != nil {
				return err
			}
			last = a.ID
			fn(v)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
