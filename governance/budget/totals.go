package budget

import (
	"slices"
	"strings"
	"time"
)

// totals are sums over the records, kept as these change. Not safe for
// concurrent use. Memory: a few hundred bytes a record, and a sum for each scope,
// day and accelerator.
type totals struct {
	records map[string]known             // by key
	spent   map[string]map[dayOf]*amount // by scope
}

// known is a record as it was counted.
type known struct {
	revision uint64
	pipeline string
	run      string
	used     []Use
	touched  time.Time
}

type dayOf struct{ day, accelerator string }

type amount struct {
	seconds, money Micro
	of             int // records that have it
}

func newTotals() *totals {
	return &totals{records: map[string]known{}, spent: map[string]map[dayOf]*amount{}}
}

// set counts a record in place of what was known of its key. One that is older
// than that changes nothing.
func (t *totals) set(key string, k known) {
	old, ok := t.records[key]
	if ok && old.revision >= k.revision {
		return
	}
	if ok {
		t.count(old, -1)
	}
	t.count(k, 1)
	t.records[key] = k
}

func (t *totals) drop(key string) {
	if old, ok := t.records[key]; ok {
		t.count(old, -1)
		delete(t.records, key)
	}
}

func (t *totals) count(k known, sign int) {
	for _, u := range k.used {
		d := dayOf{u.Day, u.Accelerator}
		t.sum("run/"+k.run, dayOf{"", u.Accelerator}, u, sign)
		if u.Day == "" {
			continue // no window reaches back that far
		}
		if k.pipeline != "" {
			t.sum("pipeline/"+k.pipeline, d, u, sign)
		}
		if u.Team != "" {
			t.sum("team/"+u.Team, d, u, sign)
		}
	}
}

func (t *totals) sum(scope string, d dayOf, u Use, sign int) {
	days := t.spent[scope]
	if days == nil {
		days = map[dayOf]*amount{}
		t.spent[scope] = days
	}
	a := days[d]
	if a == nil {
		a = &amount{}
		days[d] = a
	}
	a.of += sign
	a.seconds += Micro(sign) * u.Seconds
	a.money += Micro(sign) * u.Money
	if a.of > 0 {
		return
	}
	if delete(days, d); len(days) == 0 {
		delete(t.spent, scope)
	}
}

// in returns what a scope spent in the window that a day of the calendar is in.
func (t *totals) in(scope string, w Window, today string) amounts {
	out := amounts{}
	for d, a := range t.spent[scope] {
		switch w {
		case PerRun:
		case Day:
			if d.day != today {
				continue
			}
		case Month:
			if !strings.HasPrefix(d.day, today[:len("2006-01")]) {
				continue
			}
		}
		u := out[d.accelerator]
		u.Accelerator, u.Seconds, u.Money = d.accelerator, plus(u.Seconds, a.seconds), plus(u.Money, a.money)
		out[d.accelerator] = u
	}
	return out
}

// runs are the runs that spent something, in order.
func (t *totals) runs() []string {
	var out []string
	for scope := range t.spent {
		if run, ok := strings.CutPrefix(scope, "run/"); ok {
			out = append(out, run)
		}
	}
	slices.Sort(out)
	return out
}
