package budget

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stokehold/stokehold/events"
)

// difference says what next changes, for events and for people. how is what was asked for;
// what turns out to change more than one budget is told as a whole document. d is nil if
// what there is cannot be read, or there is none.
func (d *Document) difference(next *Document, how string) events.BudgetChanged {
	if b := d.only(next); b != nil && how != applied {
		was := d.covering(*b)
		return events.BudgetChanged{
			How: how, Scope: b.Scope, Window: string(b.Window), Before: was.event(), After: b.event(),
			Change: fmt.Sprintf("%s per %s: %s, was %s", b.Scope, b.Window, b.text(next.Currency), was.text(next.Currency)),
		}
	}
	return events.BudgetChanged{How: applied, Change: fmt.Sprintf("%d budgets applied", len(next.Budgets))}
}

// only is the budget of next that is all that it changes, or adds; nil: it changes more.
func (d *Document) only(next *Document) *Budget {
	if d == nil {
		d = &Document{}
	}
	if !d.sameTerms(next) {
		return nil
	}
	var found *Budget
	for i := range next.Budgets {
		b := &next.Budgets[i]
		was := slices.IndexFunc(d.Budgets, b.replaces)
		switch {
		case was >= 0 && b.text("") == d.Budgets[was].text(""):
		case found != nil:
			return nil
		default:
			found = b
		}
	}
	gone := slices.ContainsFunc(d.Budgets, func(was Budget) bool { return !slices.ContainsFunc(next.Budgets, was.replaces) })
	if gone {
		return nil
	}
	return found
}

func (b Budget) replaces(was Budget) bool { return b.Scope == was.Scope && b.Window == was.Window }

// covering are the limits that hold in place of a budget before there is that: of a run
// those of the pattern that covers it.
func (d *Document) covering(b Budget) Limits {
	if d == nil {
		return Limits{}
	}
	if i := slices.IndexFunc(d.Budgets, b.replaces); i >= 0 {
		return d.Budgets[i].Limits
	}
	pattern, _ := d.ofRun(b.Scope)
	return pattern.Limits
}

// ofRun is the budget that counts for the run of a scope, as one of its own.
func (d *Document) ofRun(scope string) (Budget, bool) {
	run, ok := strings.CutPrefix(scope, "run/")
	if !ok {
		return Budget{}, false
	}
	pipeline, _, _ := strings.Cut(run, "/")
	for _, b := range d.concern(pipeline, run) {
		if b.Scope == scope {
			return b, true
		}
	}
	return Budget{}, false
}

// event is the limits as events tell of them; nil: there are none.
func (l Limits) event() *events.BudgetLimits {
	if l.Money == nil && l.AcceleratorSeconds == nil && len(l.Seconds) == 0 {
		return nil
	}
	out := &events.BudgetLimits{}
	if l.Money != nil {
		out.Money = new(l.Money.Float())
	}
	if l.AcceleratorSeconds != nil {
		out.AcceleratorSeconds = new(l.AcceleratorSeconds.Float())
	}
	for kind, s := range l.Seconds {
		if out.Seconds == nil {
			out.Seconds = map[string]float64{}
		}
		out.Seconds[kind] = s.Float()
	}
	return out
}

// weakened reports whether next lets something be spent that d does not. What cannot be
// compared counts as that.
func (d *Document) weakened(next *Document) bool {
	if !d.sameTerms(next) {
		return true
	}
	higher := func(was, is *Micro) bool { return was != nil && (is == nil || *is > *was) }
	for _, was := range d.Budgets {
		i := slices.IndexFunc(next.Budgets, func(b Budget) bool { return b.Scope == was.Scope && b.Window == was.Window })
		if i < 0 {
			return true
		}
		is := next.Budgets[i]
		if higher(was.Money, is.Money) || higher(was.AcceleratorSeconds, is.AcceleratorSeconds) {
			return true
		}
		for kind, s := range was.Seconds {
			if left, ok := is.Seconds[kind]; !ok || left > s {
				return true
			}
		}
	}
	// Of budgets of runs the most particular counts, so that a new one may be a raise.
	return slices.ContainsFunc(next.Budgets, func(b Budget) bool {
		return b.Window == PerRun && !slices.ContainsFunc(d.Budgets, func(was Budget) bool { return was.Scope == b.Scope && was.Window == b.Window })
	})
}

// sameTerms reports whether all is the same that budgets are reckoned by.
func (d *Document) sameTerms(next *Document) bool {
	return d.Currency == next.Currency && d.TimeZone == next.TimeZone && maps.EqualFunc(d.Teams, next.Teams, slices.Equal) && maps.Equal(d.Prices, next.Prices)
}

// text is the limits for people.
func (l Limits) text(currency string) string {
	var parts []string
	add := func(resource string, v Micro) {
		parts = append(parts, v.String()+" "+Balance{Resource: resource, Currency: currency}.unit())
	}
	if l.Money != nil {
		add(Money, *l.Money)
	}
	if l.AcceleratorSeconds != nil {
		add(AcceleratorSeconds, *l.AcceleratorSeconds)
	}
	for _, kind := range slices.Sorted(maps.Keys(l.Seconds)) {
		add(secondsOf+kind, l.Seconds[kind])
	}
	if len(parts) == 0 {
		return "no limit"
	}
	return strings.Join(parts, ", ")
}
