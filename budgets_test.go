package stokehold

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

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
	if _, err := budget.Apply(ctx, budget.Changing{Store: store, Gate: budget.Gate{Store: store, Log: &governance.MemoryLog{}, Bus: unjudged{}}, Actor: "ann", Reason: "a test"}, []byte(`
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

// relay has a proposal judged and made by another process, as workflows.BudgetGate does
// through Temporal.
type relay struct {
	desk *BudgetDesk
	gate budget.Gate
}

func (r relay) Make(ctx context.Context, p budget.Proposal) (budget.Entry, error) {
	id, err := r.desk.Store.Propose(ctx, p)
	if err != nil {
		return budget.Entry{}, err
	}
	ev, err := r.gate.Draft(ctx, id)
	if err == nil {
		err = r.gate.Bus.Publish(ctx, ev)
	}
	if err != nil {
		return budget.Entry{}, err
	}
	return r.gate.Enact(ctx, id)
}

// A budget author and a gate change limits together, each with the permissions of its role
// alone, as the person that the author's credentials are of.
func TestAnAuthorProposesAndAGateSets(t *testing.T) {
	as := permitted(t, events.RoleGate, events.RoleBudgetAuthor)
	gate := hosting(t, Config{NATS: as[events.RoleGate], StateDir: t.TempDir(), HotBytes: 1 << 20, NoPeers: true, Log: slog.New(slog.DiscardHandler)})
	actors := filepath.Join(t.TempDir(), "actors.yaml")
	if err := os.WriteFile(actors, []byte("apiVersion: stokehold.dev/v1\nkind: Actors\nactors:\n  - {name: ann, roles: [controller], nats: [budget-author]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	desk, err := ConnectBudgets(t.Context(), Config{NATS: as[events.RoleBudgetAuthor], Actors: actors, StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := desk.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	desk.app.nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { t.Error(err) })
	who, err := desk.Whoami(t.Context(), "")
	if err != nil || who != "ann" {
		t.Fatalf("%q, %v", who, err)
	}
	theirs, err := budget.NewStore(gate.nc, "")
	if err != nil {
		t.Fatal(err)
	}
	c := budget.Changing{Store: desk.Store, Gate: relay{desk, budget.Gate{Store: theirs, Log: gate.Decisions, Bus: gate.Bus}}, Actor: who, Reason: "a test"}
	if _, err := budget.Set(t.Context(), c, "run/*", "", budget.Limits{Money: new(budget.Micro(5e6))}); err != nil {
		t.Fatal(err)
	}
	e, err := budget.Raise(t.Context(), c, "run/*", "", budget.Limits{Money: new(budget.Micro(1e6))})
	if err != nil || e.Actor != "ann" || e.Change != "run/* per run: 6 money, was 5 money" {
		t.Errorf("%+v, %v", e, err)
	}
	if past, err := desk.Store.History(t.Context()); err != nil || len(past) != 2 {
		t.Errorf("%d entries, %v", len(past), err)
	}
}
