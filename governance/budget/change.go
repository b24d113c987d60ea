package budget

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Changing is who asks for limits to be changed.
type Changing struct {
	Store  *Store // where the limits are read that are there
	Gate   Maker  // has the change judged, and makes it
	Actor  string // who
	Reason string // why; required
}

// Maker has a change judged, puts it on record, and makes it. A Gate is one, for who may
// publish events and write limits; workflows.BudgetGate another, for who may only propose.
// An error, in particular one that wraps events.ErrDenied or events.ErrApprovalRequired,
// leaves the limits as they are.
type Maker interface {
	Make(ctx context.Context, p Proposal) (Entry, error)
}

func (c *Changing) check() error {
	if c.Store == nil || c.Gate == nil {
		return fmt.Errorf("%w: Store and Gate are required", ErrConfig)
	}
	c.Reason = strings.Join(strings.Fields(c.Reason), " ")
	return Proposal{Actor: c.Actor, Reason: c.Reason, How: applied}.check()
}

// Apply puts a whole document in place of what there is, of the revision over; 0:
// of none. Another one there by now is ErrConflict.
func Apply(ctx context.Context, c Changing, raw []byte, over uint64) (Entry, error) {
	if err := c.check(); err != nil {
		return Entry{}, err
	}
	d, err := ParseDocument(raw)
	if err != nil {
		return Entry{}, err
	}
	return c.propose(ctx, d, over, applied)
}

// Set gives a scope's budget new limits, and adds the budget if there is none. A
// limit that more does not name stays. window may be empty where the scope has one
// budget.
func Set(ctx context.Context, c Changing, scope string, window Window, more Limits) (Entry, error) {
	return c.change(ctx, scope, window, set, func(l *Limits) error {
		if more.Money != nil {
			l.Money = more.Money
		}
		if more.AcceleratorSeconds != nil {
			l.AcceleratorSeconds = more.AcceleratorSeconds
		}
		for kind, s := range more.Seconds {
			l.Seconds = maps.Clone(l.Seconds)
			if l.Seconds == nil {
				l.Seconds = map[string]Micro{}
			}
			l.Seconds[kind] = s
		}
		return nil
	})
}

// Raise adds to limits that a scope's budget has.
func Raise(ctx context.Context, c Changing, scope string, window Window, by Limits) (Entry, error) {
	return c.change(ctx, scope, window, raised, func(l *Limits) error {
		none := func(resource string) error {
			return fmt.Errorf("%w: %s has no limit of %s to raise: set one", ErrNotFound, scope, resource)
		}
		if by.Money != nil {
			if l.Money == nil {
				return none(Money)
			}
			l.Money = new(min(maxAmount, *l.Money+*by.Money))
		}
		if by.AcceleratorSeconds != nil {
			if l.AcceleratorSeconds == nil {
				return none(AcceleratorSeconds)
			}
			l.AcceleratorSeconds = new(min(maxAmount, *l.AcceleratorSeconds+*by.AcceleratorSeconds))
		}
		l.Seconds = maps.Clone(l.Seconds)
		for kind, s := range by.Seconds {
			have, ok := l.Seconds[kind]
			if !ok {
				return none("seconds of " + kind)
			}
			l.Seconds[kind] = min(maxAmount, have+s)
		}
		return nil
	})
}

func (c Changing) change(ctx context.Context, scope string, window Window, how string, alter func(*Limits) error) (Entry, error) {
	if err := c.check(); err != nil {
		return Entry{}, err
	}
	kind, err := checkScope(scope)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: scope %.80q: %w", ErrInvalid, scope, err)
	}
	if kind == "run" && window == "" {
		window = PerRun
	}
	e, err := c.Store.Get(ctx)
	if errors.Is(err, ErrNotFound) && how == set {
		e, err = Entry{Document: &Document{APIVersion: DocumentVersion, Kind: DocumentKind}}, nil
	}
	if err == nil {
		err = e.Err
	}
	if err != nil {
		return Entry{}, err
	}
	next := *e.Document
	next.Budgets = slices.Clone(next.Budgets)
	i, err := next.find(scope, window)
	switch {
	case errors.Is(err, ErrNotFound) && kind == "run" && how == raised:
		// Of a run that a pattern covers, the raise makes a budget of its own.
		if b, ok := next.ofRun(scope); ok {
			next.Budgets, i, err = append(next.Budgets, b), len(next.Budgets), nil
		}
	case errors.Is(err, ErrNotFound) && how == set && window != "":
		next.Budgets, i, err = append(next.Budgets, Budget{Scope: scope, Window: window}), len(next.Budgets), nil
	}
	if err != nil {
		return Entry{}, err
	}
	b := &next.Budgets[i]
	before := b.text(next.Currency)
	if err := alter(&b.Limits); err != nil {
		return Entry{}, err
	}
	if before == b.text(next.Currency) {
		return e, fmt.Errorf("%w: nothing to change: give --money, --accelerator-seconds or --seconds other than what there is", ErrInvalid)
	}
	if err := next.check(); err != nil {
		return Entry{}, err
	}
	return c.propose(ctx, &next, e.Revision, how)
}

func (c Changing) propose(ctx context.Context, d *Document, over uint64, how string) (Entry, error) {
	doc, err := json.Marshal(d)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return c.Gate.Make(ctx, Proposal{Actor: c.Actor, Reason: c.Reason, How: how, Over: over, Document: doc})
}

// find returns the index of a scope's budget.
func (d *Document) find(scope string, window Window) (int, error) {
	var found []int
	for i, b := range d.Budgets {
		if b.Scope == scope && (window == "" || b.Window == window) {
			found = append(found, i)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return 0, fmt.Errorf("%w: %s has several budgets: say of which window", ErrInvalid, scope)
	case window == "":
		return 0, fmt.Errorf("%w: %s: say of which window (day or month) to set a new one", ErrNotFound, scope)
	}
	return 0, fmt.Errorf("%w: %s per %s", ErrNotFound, scope, window)
}
