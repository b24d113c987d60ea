package stokehold

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/internal/natstest"
)

const placement = `
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: placement}
spec:
  match: {types: [stage.started]}
  rules:
    - name: money
      expression: budget.team.money.spent < budget.team.money.limit
      messageExpression: "'team ' + budget.team.name + ' has spent ' + string(budget.team.money.spent)"
    - name: device-time
      expression: budget.pipeline.accelerator_seconds.spent < 30.0
      message: the pipeline had its share
    - name: where
      expression: worker.region == 'eu' && worker.accelerator == 'nvidia-h100'
      messageExpression: "'not on ' + worker.accelerator + ' in ' + worker.region"
`

// unjudged lets limits be set that are not what a test is about.
type unjudged struct{}

func (unjudged) Publish(context.Context, ...events.Event) error { return nil }

// Policies deny by what the ledger holds of an event's team and pipeline, and by
// where it is published, on a real server.
func TestPoliciesSeeBudgetsAndWorkers(t *testing.T) {
	ctx := t.Context()
	nc := natstest.Start(t).Connect()
	worker := Worker{Name: "w1", Region: "eu", Accelerator: "nvidia-h100", Accelerators: 2}
	a := &App{nc: nc, cfg: Config{Worker: worker}.withDefaults()}
	if err := a.openBudgets(ctx, options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	store, err := budget.NewStore(nc, "")
	if err != nil {
		t.Fatal(err)
	}
	types, err := events.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	set, err := governance.Load(governance.Options{Types: types}, governance.Source{Name: "p.yaml", Data: []byte(placement)})
	if err != nil {
		t.Fatal(err)
	}
	key, err := governance.NewKey("k")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := governance.NewKeyRing(key)
	if err != nil {
		t.Fatal(err)
	}
	engine, err := governance.NewEngine(governance.Config{Policies: set, Log: &governance.MemoryLog{}, Keys: keys, Facts: a.facts()})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(id, reason string) {
		t.Helper()
		ev, err := events.New(events.TypeStageStarted, "test", "train/r1", id, time.Now(), events.StageStarted{Pipeline: "train", Run: "train/r1", Stage: "fit", Attempt: 1})
		if err != nil {
			t.Fatal(err)
		}
		ev.SetExtension(events.ExtPipeline, "train")
		ev.SetExtension(events.ExtRun, "train/r1")
		ev.SetExtension(events.ExtStage, "fit")
		vs, err := engine.Judge(ctx, events.OnPublish, []*events.Event{&ev})
		if err != nil {
			t.Fatal(err)
		}
		if v := vs[0]; v.Action.Permits() != (reason == "") || !strings.Contains(v.Reason, reason) {
			t.Errorf("%s: %+v, want %q", id, v, reason)
		}
	}
	expect("no limits", "missing field: the fact budget has no field")
	if _, err := budget.Apply(ctx, budget.Changing{Store: store, Log: &governance.MemoryLog{}, Bus: unjudged{}, Actor: "ann", Reason: "a test"}, []byte(`
apiVersion: stokehold.dev/v1
kind: Budgets
prices: {nvidia-h100: 0.5}
teams: {late: [train, score]}
budgets:
  - {scope: team/late, window: month, money: 20}
`), 0); err != nil {
		t.Fatal(err)
	}
	for d, err := a.Budgets.Document(); d == nil || err != nil; d, err = a.Budgets.Document() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
	expect("nothing spent", "")
	a.cfg.Worker.Region = "us"
	expect("elsewhere", "not on nvidia-h100 in us")
	a.cfg.Worker = Worker{Region: "eu"}
	expect("no accelerator", "not on none in eu")
	a.cfg.Worker = worker
	spend := func(pipeline string, seconds time.Duration) {
		t.Helper()
		now := time.Now()
		m := budget.NewMeter(a.Budgets, budget.Attempt{Pipeline: pipeline, Run: pipeline + "/r", Stage: "fit", Attempt: 1, Accelerator: "nvidia-h100"}, func() time.Time {
			defer func() { now = now.Add(seconds) }()
			return now
		})
		if _, err := m.Report(ctx, true); err != nil {
			t.Fatal(err)
		}
	}
	spend("train", 10*time.Second)
	expect("some spent", "")
	spend("score", 40*time.Second)
	expect("another pipeline of the team spent the rest", "team late has spent 2")

	// An observer sees the same.
	looking := &App{nc: nc, cfg: a.cfg}
	if err := looking.openBudgets(ctx, options{observing: true}); err != nil {
		t.Fatal(err)
	}
	var known governance.Budget
	ev, err := events.New(events.TypeStageStarted, "test", "train/r1", "seen", time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ev.SetExtension(events.ExtPipeline, "train")
	if err := looking.budgetFacts(ctx, &ev, &known); err != nil || known.Team == nil || known.Team.Money.Spent != 25 || *known.Team.Money.Limit != 20 || known.Pipeline.AcceleratorSeconds.Spent != 10 {
		t.Errorf("%+v, %v", known, err)
	}
	if err := looking.Close(ctx); err != nil {
		t.Error(err)
	}
}
