package budget_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/internal/natstest"
)

func TestRaise(t *testing.T) {
	s := natstest.Start(t)
	l := open(t, s, nil)
	if d, err := l.Document(); d != nil || err != nil {
		t.Errorf("before there is one: %v, %v", d, err)
	}
	c, log := changing(t, s)
	ctx := t.Context()
	_, err := budget.Raise(ctx, c, "team/late", "", budget.Limits{Money: new(budget.Micro(1))})
	if !errors.Is(err, budget.ErrNotFound) {
		t.Errorf("raised what is not there: %v", err)
	}
	apply(t, s, limits)
	knows(t, l)
	e, err := budget.Raise(ctx, c, "team/late", "", budget.Limits{Money: new(budget.Micro(50e6))})
	if err != nil || e.Actor != "ann" || e.Change != "team/late per month: 150 EUR, 1000 accelerator-seconds, was 100 EUR, 1000 accelerator-seconds" {
		t.Fatalf("%+v, %v", e, err)
	}
	eventually(t, "the raise", func() bool {
		st, err := l.Standing(ctx, "score", "")
		return err == nil && balance(t, st, "team/late", budget.Money).Limit == 150e6
	})
	if e, err = budget.Raise(ctx, c, "run/train/r1", "", budget.Limits{Money: new(budget.Micro(5e6))}); err != nil || !strings.Contains(e.Change, "35 EUR, was 30 EUR") {
		t.Errorf("a run of its own: %+v, %v", e, err)
	}
	if _, err = budget.Set(ctx, c, "pipeline/score", budget.Day, budget.Limits{Seconds: map[string]budget.Micro{budget.CPU: 5e6}}); err != nil {
		t.Error(err)
	}
	for name, try := range map[string]func() error{
		"no reason": func() error {
			c := c
			c.Reason = " "
			_, err := budget.Set(ctx, c, "run/*", "", budget.Limits{})
			return err
		},
		"no scope": func() error {
			_, err := budget.Set(ctx, c, "all", "", budget.Limits{Money: new(budget.Micro(1))})
			return err
		},
		"no team": func() error {
			_, err := budget.Set(ctx, c, "team/x", budget.Day, budget.Limits{Money: new(budget.Micro(1))})
			return err
		},
		"nothing":  func() error { _, err := budget.Raise(ctx, c, "run/*", "", budget.Limits{}); return err },
		"conflict": func() error { _, err := budget.Apply(ctx, c, []byte(limits), 1); return err },
	} {
		if err := try(); !errors.Is(err, budget.ErrInvalid) && !errors.Is(err, budget.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	past, err := c.Store.History(ctx)
	if err != nil || len(past) != 4 || past[3].Document == nil || past[1].Reason != "a test" {
		t.Errorf("history: %+v, %v", past, err)
	}
	var codes []string
	for d, err := range log.Read(ctx, time.Time{}) {
		if err != nil || d.Type != budget.DecisionType || d.Actor != "ann" || !strings.HasSuffix(d.Reason, ": a test") {
			t.Errorf("on record: %+v", d)
		}
		codes = append(codes, d.Code)
	}
	if got := strings.Join(codes, " "); got != "BudgetRaised BudgetRaised BudgetSet" {
		t.Errorf("on record: %s", got)
	}
	// What is not on record does not happen.
	c.Gate = budget.Gate{Store: c.Store, Log: &governance.MemoryLog{Limit: 1}, Bus: &told{}}
	for range 2 {
		_, err = budget.Raise(ctx, c, "run/*", "", budget.Limits{Money: new(budget.Micro(1))})
	}
	if err == nil || !strings.Contains(err.Error(), "not on record, so not changed") {
		t.Errorf("without a record: %v", err)
	}
}

// A change is told before it takes effect, by what it changes and whether that lets more
// be spent; what is refused changes nothing, and is not on record as done.
func TestChangesAreJudged(t *testing.T) {
	s := natstest.Start(t)
	c, log := changing(t, s)
	bus := &told{}
	c.Gate = budget.Gate{Store: c.Store, Log: log, Bus: bus}
	ctx := t.Context()
	money := func(m int64) budget.Limits { return budget.Limits{Money: new(budget.Micro(m * 1e6))} }
	document := func(doc string) func() (budget.Entry, error) {
		return func() (budget.Entry, error) {
			e, err := c.Store.Get(ctx)
			if err != nil && !errors.Is(err, budget.ErrNotFound) {
				return e, err
			}
			return budget.Apply(ctx, c, []byte(doc), e.Revision)
		}
	}
	types, err := events.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name   string
		do     func() (budget.Entry, error)
		how    string
		weaker bool
	}{
		{"the first document", document(limits), "applied", false},
		{"the same again", document(limits), "applied", false},
		{"a raise", func() (budget.Entry, error) { return budget.Raise(ctx, c, "team/late", "", money(5)) }, "raised", true},
		{"less", func() (budget.Entry, error) { return budget.Set(ctx, c, "team/late", "", money(50)) }, "set", false},
		{"more", func() (budget.Entry, error) { return budget.Set(ctx, c, "team/late", "", money(60)) }, "set", true},
		{"one more budget", func() (budget.Entry, error) { return budget.Set(ctx, c, "pipeline/train", budget.Month, money(1)) }, "set", false},
		{"a run of its own", func() (budget.Entry, error) { return budget.Raise(ctx, c, "run/train/r1", "", money(5)) }, "raised", true},
		{"a document with less", document(strings.Replace(limits, "money: 20", "money: 10", 1)), "applied", true}, // what was set above is gone
		{"one with a limit less", document(strings.Replace(limits, ", cpu: 3600", "", 1)), "applied", true},
		{"one with another price", document(strings.Replace(limits, "prices: {", "prices: {gpu: 1, ", 1)), "applied", true},
	} {
		before, _ := c.Store.Get(ctx)
		bus.events = nil
		e, err := step.do()
		if err != nil || len(bus.events) != 1 || e.Revision == before.Revision {
			t.Fatalf("%s: %+v, %v, %d events", step.name, e, err, len(bus.events))
		}
		ev := bus.events[0]
		var d events.BudgetChanged
		if err := errors.Join(types.Check(&ev), ev.DataAs(&d)); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if d.How != step.how || d.Weaker != step.weaker || d.Change != e.Change || d.Reason != "a test" || d.Over != int64(before.Revision) || ev.Extensions()[events.ExtActor] != "ann" {
			t.Errorf("%s: %+v", step.name, d)
		}
		if step.name == "a raise" && (ev.Subject() != "team/late" || *d.Before.Money != 100 || *d.After.Money != 105 || *d.After.AcceleratorSeconds != 1000 || d.Window != "month") {
			t.Errorf("%s: %s %+v", step.name, ev.Subject(), d)
		}
	}
	before, err := c.Store.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		for range log.Read(ctx, time.Time{}) {
			n++
		}
		return n
	}
	records := count()
	for _, why := range []error{events.ErrDenied, events.ErrApprovalRequired, context.DeadlineExceeded} {
		bus.err = why
		if _, err := budget.Raise(ctx, c, "run/*", "", money(1)); !errors.Is(err, why) || !strings.Contains(err.Error(), "not changed") {
			t.Errorf("%v: %v", why, err)
		}
	}
	if after, err := c.Store.Get(ctx); err != nil || after.Revision != before.Revision || count() != records {
		t.Errorf("revision %d, %v, %d records", after.Revision, err, count()-records)
	}
	for _, gate := range []budget.Maker{nil, budget.Gate{Store: c.Store, Log: log}, budget.Gate{Store: c.Store, Bus: bus}, budget.Gate{Log: log, Bus: bus}} {
		c.Gate = gate
		if _, err := budget.Raise(ctx, c, "run/*", "", money(1)); !errors.Is(err, budget.ErrConfig) {
			t.Errorf("without a judge, a record or limits: %v", err)
		}
	}
}

// What a proposal says of itself is not believed: that it sets one budget, or replaces
// limits that are others.
func TestProposalsAreNotBelieved(t *testing.T) {
	s := natstest.Start(t)
	c, log := changing(t, s)
	apply(t, s, limits)
	ctx := t.Context()
	before, err := c.Store.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	more := strings.NewReplacer("money: 100,", "money: 900,", "money: 20}", "money: 90}").Replace(limits)
	raw := documentJSON(t, more)
	p := budget.Proposal{Actor: "ann", Reason: "a test", How: "set", Over: before.Revision, Document: raw}
	g := budget.Gate{Store: c.Store, Log: log}
	id, err := c.Store.Propose(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := g.Draft(ctx, id)
	var told events.BudgetChanged
	if err := errors.Join(err, ev.DataAs(&told)); err != nil {
		t.Fatal(err)
	}
	if told.How != "applied" || !told.Weaker || told.Scope != "" || told.Change != "4 budgets applied" {
		t.Errorf("told %+v", told)
	}
	p.Over--
	if id, err = c.Store.Propose(ctx, p); err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]func() error{
		"drafted": func() error { _, err := g.Draft(ctx, id); return err },
		"enacted": func() error { _, err := g.Enact(ctx, id); return err },
	} {
		if err := try(); !errors.Is(err, budget.ErrConflict) {
			t.Errorf("%s over limits that are others: %v", name, err)
		}
	}
	// Nor is one that was changed since it was proposed.
	js, err := jetstream.New(s.Connect())
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(ctx, "stokehold_budget_proposals")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(ctx, id, "{}"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Enact(ctx, id); !errors.Is(err, budget.ErrCorrupt) {
		t.Errorf("changed: %v", err)
	}
	for _, id := range []string{"", "*", "none", strings.Repeat("a", 500)} {
		if _, err := g.Enact(ctx, id); !errors.Is(err, budget.ErrNotFound) {
			t.Errorf("proposal %.20q: %v", id, err)
		}
	}
	for name, p := range map[string]budget.Proposal{
		"how":      {Actor: "ann", Reason: "a test", How: "lowered", Document: raw},
		"reason":   {Actor: "ann", How: "set", Document: raw},
		"document": {Actor: "ann", Reason: "a test", How: "set", Document: json.RawMessage(`{"kind":"x"}`)},
	} {
		if _, err := c.Store.Propose(ctx, p); !errors.Is(err, budget.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after, err := c.Store.Get(ctx); err != nil || after.Revision != before.Revision {
		t.Errorf("revision %d, %v", after.Revision, err)
	}
}
