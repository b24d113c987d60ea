package policy

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

// Catalog is what planning reads of a *tiers.Store.
type Catalog interface {
	Datasets(ctx context.Context) iter.Seq2[tiers.Head, error]
	Entries(ctx context.Context, dataset string, from, to uint64) iter.Seq2[tiers.BatchInfo, error]
	Pins(ctx context.Context, dataset string) ([]tiers.Pin, error)
}

// Cursor is where planning goes on; the zero value is the beginning. Small and
// serialisable.
type Cursor struct {
	Dataset string `json:"dataset,omitempty"`
	Next    uint64 `json:"next,omitempty"`
}

// maxTasks bounds the tasks of one plan: they travel through workflow histories.
const maxTasks = 128

// Task is what is to be done with batches From..To-1 of a dataset.
type Task struct {
	Dataset  string   `json:"dataset"`
	From     uint64   `json:"from"`
	To       uint64   `json:"to"`
	Decision Decision `json:"decision"`
}

// Overlaps reports whether both are of some same batches, whatever is to be done with
// them.
func (t Task) Overlaps(o Task) bool {
	return t.Dataset == o.Dataset && t.From < o.To && o.From < t.To
}

// Without is what of a task is left without the batches of another: one or two parts,
// or none.
func (t Task) Without(o Task) []Task {
	if !t.Overlaps(o) {
		return []Task{t}
	}
	var parts []Task
	if before := t; t.From < o.From {
		before.To = o.From
		parts = append(parts, before)
	}
	if after := t; o.To < t.To {
		after.From = o.To
		parts = append(parts, after)
	}
	return parts
}

func (t Task) covers(dataset string, seq uint64) bool {
	return t.Dataset == dataset && seq >= t.From && seq < t.To
}

// Conditions of the moment, for all batches.
type Conditions struct {
	Now      time.Time
	Pressure float64                                             // of the warm tier, see doc
	Next     func(dataset string, sequence uint64) time.Duration // see Facts; nil: no use is known
}

// Plan looks at no more than limit batches from the cursor on and returns what is to
// be done with them, neighbours together and at most 128 tasks, and where to go on;
// done after the last dataset. What has been done already is not in the plan. Conditions that could not
// be evaluated give faults, the first of them, which is no reason not to do the rest.
func (s *Set) Plan(ctx context.Context, c Catalog, at Cursor, limit int, cond Conditions) (tasks []Task, next Cursor, done bool, faults, err error) {
	var heads []tiers.Head
	for h, err := range c.Datasets(ctx) {
		if err != nil {
			return nil, at, false, faults, err
		}
		if h.Dataset >= at.Dataset {
			heads = append(heads, h)
		}
	}
	slices.SortFunc(heads, func(a, b tiers.Head) int { return strings.Compare(a.Dataset, b.Dataset) })
	for _, h := range heads {
		if h.Dataset != at.Dataset {
			at = Cursor{Dataset: h.Dataset}
		}
		if !s.concerns(h.Dataset) {
			continue
		}
		pins, err := c.Pins(ctx, h.Dataset)
		if err != nil {
			return tasks, at, false, faults, err
		}
		for b, err := range c.Entries(ctx, h.Dataset, at.Next, tiers.End) {
			if err != nil {
				return tasks, at, false, faults, err
			}
			if limit--; limit < 0 || len(tasks) == maxTasks {
				return tasks, at, false, faults, nil
			}
			at.Next = b.Ref.Sequence + 1
			d, fault := s.decide(ctx, h, b, cond)
			if fault != nil && faults == nil { // one is enough: the next batches have the same
				faults = fmt.Errorf("%s: %w", b.Ref.ID(), fault)
			}
			if d = d.Allowed(pins, b.Ref.Sequence); !pending(d, b) {
				continue
			}
			if n := len(tasks); n > 0 && tasks[n-1].Dataset == h.Dataset && tasks[n-1].To == b.Ref.Sequence && tasks[n-1].Decision == d {
				tasks[n-1].To++
				continue
			}
			tasks = append(tasks, Task{h.Dataset, b.Ref.Sequence, b.Ref.Sequence + 1, d})
		}
	}
	return tasks, Cursor{}, true, faults, nil
}

func (s *Set) concerns(dataset string) bool {
	return slices.ContainsFunc(s.policies, func(p *policy) bool { return len(p.rules) > 0 && p.matches(dataset) })
}

func (s *Set) decide(ctx context.Context, h tiers.Head, b tiers.BatchInfo, cond Conditions) (Decision, error) {
	if b.State != "" {
		return Decision{}, nil
	}
	next := time.Duration(-1)
	if cond.Next != nil {
		next = cond.Next(h.Dataset, b.Ref.Sequence)
	}
	d, err := s.Decide(ctx, FactsOf(h, b, cond.Now, cond.Pressure, next))
	if d.Action != Expire {
		return d, err
	}
	// What expires does not come back, and a clock may have been moved: it has to be
	// over by a clock that is earlier, too.
	was, err := s.Decide(ctx, FactsOf(h, b, cond.Now.Add(-ClockStep), cond.Pressure, next))
	if was != d {
		return Decision{}, err
	}
	return d, err
}

// ClockStep is how far a clock may have been moved forward without a batch expiring
// before its time: so much later batches expire.
const ClockStep = tiers.ClockStep

// pending reports whether the decision is not carried out yet.
func pending(d Decision, b tiers.BatchInfo) bool {
	_, warm := b.Ref.In(arrowio.Warm)
	_, cold := b.Ref.In(arrowio.Cold)
	switch d.Action {
	case Move:
		return !cold
	case Evict:
		return warm
	case Expire:
		return b.State == ""
	case Pin:
	}
	return false
}
