package policy

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/tiers"
)

// Action is what a rule wants done with a batch.
type Action string

// The actions.
const (
	Move   Action = "move"   // a verified copy in the cold tier
	Evict  Action = "evict"  // that, and the warm copy goes
	Pin    Action = "pin"    // it stays in the warm tier: no later rule decides, nor do watermarks
	Expire Action = "expire" // all copies go
)

func actions() []Action { return []Action{Move, Evict, Pin, Expire} }

// Set is what policy files say. Immutable and safe for concurrent use.
type Set struct{ policies []*policy }

// Len is how many policies there are.
func (s *Set) Len() int { return len(s.policies) }

type policy struct {
	name     string
	node     *yaml.Node
	datasets []string // globs; none: all
	rules    []rule
	marks    Watermarks // zero: none
}

// Order says which batches leave the warm tier first.
type Order string

// The orders.
const (
	Oldest  Order = "oldest"  // committed first
	Idle    Order = "idle"    // not read for the longest time
	Largest Order = "largest" // the most bytes
)

// Watermarks bound what a host keeps. Above a high one the tier is emptied down to
// the low one.
type Watermarks struct {
	Policy          string  // that they are of
	High, Low       float64 // of the quota of the warm directory
	HotHigh, HotLow float64 // of the arena; 0: writers make room when they need it
	Order           Order   // in which batches leave the warm directory
}

type rule struct {
	name   string
	when   *governance.Condition
	action Action
}

func (p *policy) matches(dataset string) bool {
	return len(p.datasets) == 0 || slices.ContainsFunc(p.datasets, func(g string) bool {
		ok, err := path.Match(g, dataset)
		return ok && err == nil // patterns are checked when they are parsed
	})
}

// Facts are what conditions read of a batch.
type Facts struct {
	Dataset  string
	Age      time.Duration
	Idle     time.Duration
	Size     int64
	Pressure float64
	Next     time.Duration // negative: no use of it is known to come
	Labels   []string
	Tiers    []string
}

// FactsOf makes the facts of a batch. pressure is that of the warm tier; next is as
// in Facts. now must not run ahead of the clock that batches are committed by.
func FactsOf(head tiers.Head, b tiers.BatchInfo, now time.Time, pressure float64, next time.Duration) Facts {
	f := Facts{
		Dataset: head.Dataset, Age: max(now.Sub(b.Committed), 0), Size: b.Ref.BodyBytes,
		Pressure: pressure, Next: next, Labels: head.Labels, Tiers: []string{},
	}
	f.Idle = f.Age
	if !b.Read.IsZero() {
		f.Idle = min(f.Age, max(now.Sub(b.Read), 0))
	}
	for _, t := range []arrowio.Tier{arrowio.Warm, arrowio.Cold} {
		if _, ok := b.Ref.In(t); ok {
			f.Tiers = append(f.Tiers, string(t))
		}
	}
	return f
}

func variables() []governance.Var {
	return []governance.Var{
		{Name: "age", Zero: int64(0)}, {Name: "idle", Zero: int64(0)}, {Name: "size", Zero: int64(0)},
		{Name: "pressure", Zero: float64(0)}, {Name: "next", Zero: int64(0)},
		{Name: "labels", Zero: []string{}}, {Name: "tiers", Zero: []string{}},
		{Name: "minute", Zero: int64(0)}, {Name: "hour", Zero: int64(0)}, {Name: "day", Zero: int64(0)},
	}
}

func (f Facts) values() map[string]any {
	labels := f.Labels
	if labels == nil {
		labels = []string{}
	}
	next := int64(-1)
	if f.Next >= 0 {
		next = int64(f.Next / time.Second)
	}
	return map[string]any{
		"age": int64(f.Age / time.Second), "idle": int64(f.Idle / time.Second), "size": f.Size, "pressure": f.Pressure, "next": next,
		"labels": labels, "tiers": f.Tiers, "minute": int64(60), "hour": int64(3600), "day": int64(86400),
	}
}

// Decision is what is to be done with a batch, and why. The zero value is nothing.
type Decision struct {
	Action Action
	Policy string
	Rule   string
}

// Reason is "POLICY/RULE".
func (d Decision) Reason() string { return d.Policy + "/" + d.Rule }

// Decide says what is to be done with a batch. The error joins those of conditions
// that could not be evaluated, up to the one that decided.
func (s *Set) Decide(ctx context.Context, f Facts) (Decision, error) {
	var ev events.Event
	var values map[string]any
	var errs []error
	for _, p := range s.policies {
		if len(p.rules) == 0 || !p.matches(f.Dataset) {
			continue
		}
		if values == nil {
			var err error // conditions are of an event; this one says only which dataset
			if ev, err = events.New(events.TypeTierMoveRequested, "/stokehold/tiers/policy", f.Dataset, "facts", time.Unix(0, 0), nil); err != nil {
				return Decision{}, err
			}
			values = f.values()
		}
		for _, r := range p.rules {
			ok, err := r.when.Eval(ctx, &ev, values)
			if err != nil {
				errs = append(errs, fmt.Errorf("tier policy %s/%s: %w", p.name, r.name, err))
				continue
			}
			if ok {
				return Decision{r.action, p.name, r.name}, errors.Join(errs...)
			}
		}
	}
	return Decision{}, errors.Join(errs...)
}

// Allowed is d if the batch's pins and holds let it be done, and nothing otherwise.
func (d Decision) Allowed(pins []tiers.Pin, seq uint64) Decision {
	if d.Action != Evict && d.Action != Expire {
		return d
	}
	for _, p := range pins {
		if seq >= p.From && seq < p.To {
			return Decision{}
		}
	}
	return d
}

// Watermarks returns those of the first policy that has them; ok is false if no
// policy has any.
func (s *Set) Watermarks() (w Watermarks, ok bool) {
	for _, p := range s.policies {
		if p.marks.High > 0 {
			w = p.marks
			w.Policy = p.name
			return w, true
		}
	}
	return Watermarks{}, false
}
