package workflowstest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.temporal.io/api/sdk/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"github.com/stokehold/stokehold/cmd/internal/workflowstest"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

// training is a pipeline whose stage fit holds two accelerators.
func training() (*workflows.Definition, error) {
	p := workflows.New("budgeted", "")
	p.Train("fit", p.Ingest("rows", workflowstest.Nothing), workflowstest.Nothing)
	return p.Build()
}

const (
	fitSteps = 300
	fitStep  = 10 * time.Millisecond // of the accelerators
)

// fit descends a gradient, and can go on from where it was.
func fit(ctx context.Context, a stages.Assignment, h stages.Hooks) (stages.Result, error) {
	state := struct {
		Step int
		W, V float64
	}{W: float64(a.Seed)}
	if c := h.Previous.Checkpoint; len(c) > 0 {
		if err := json.Unmarshal(c, &state); err != nil {
			return stages.Result{}, err
		}
	}
	for state.Step < fitSteps {
		select {
		case <-time.After(fitStep): // the accelerators are at work
		case <-ctx.Done():
			return stages.Result{}, ctx.Err()
		}
		state.V = 0.9*state.V - 0.01*(state.W-math.Pi)
		state.W += state.V
		state.Step++
		c, err := json.Marshal(state)
		if err != nil {
			return stages.Result{}, err
		}
		h.Report(stages.Progress{Done: int64(state.Step), Total: fitSteps, Checkpoint: c})
	}
	return stages.Result{Model: a.Model, Version: "v1", Metrics: map[string]float64{"w": state.W}}, nil
}

func fitting() *workflowstest.Light {
	light := &workflowstest.Light{Devices: map[string]stages.Device{"fit": {Accelerator: "nvidia-h100", Count: 2}}}
	light.Set("fit", fit)
	return light
}

// heard is a ledger that says what is reported to it.
type heard struct {
	*budget.Ledger
	say func(budget.Report)
}

func (h heard) Record(ctx context.Context, r budget.Report) (budget.Standing, error) {
	h.say(r)
	return h.Ledger.Record(ctx, r)
}

// trainer hosts training in a process of its own, and prints each report.
func trainer(ctx context.Context, conn *nats.Conn, bus *events.Bus, c client.Client) error {
	ledger, err := budget.Open(ctx, budget.Config{Conn: conn})
	if err != nil {
		return err
	}
	d, err := training()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	say := func(r budget.Report) {
		raw, err := json.Marshal(r)
		if err != nil {
			panic(err)
		}
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(string(raw))
	}
	w, err := workflows.NewWorker(workflows.WorkerConfig{
		Client: c, Bus: bus, Pipelines: []*workflows.Definition{d}, Executor: fitting(), Aliases: workflowstest.NoAliases{}, Budgets: heard{ledger, say},
	})
	if err != nil {
		return err
	}
	if err := w.Start(ctx); err != nil {
		return err
	}
	fmt.Println("working")
	select {}
}

// reports collects what trainers print, until they end.
type reports struct {
	wait   sync.WaitGroup
	mu     sync.Mutex
	newest map[string]budget.Report
}

func (r *reports) read(t *testing.T, said *bufio.Reader) {
	r.wait.Go(func() {
		for {
			line, err := said.ReadBytes('\n')
			if err != nil {
				return // it was killed
			}
			var one budget.Report
			if err := json.Unmarshal(line, &one); err != nil {
				t.Errorf("%s: %v", line, err)
			}
			r.mu.Lock()
			key := fmt.Sprint(one.Run, " ", one.Stage, " ", one.Attempt)
			if have, ok := r.newest[key]; !ok || one.Number > have.Number {
				if r.newest == nil {
					r.newest = map[string]budget.Report{}
				}
				r.newest[key] = one
			}
			r.mu.Unlock()
		}
	})
}

// sum is what all attempts of a run reported together, by accelerator.
func (r *reports) sum(run string) map[string]budget.Use {
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := map[string]budget.Use{}
	for _, one := range r.newest {
		for _, u := range one.Used {
			if one.Run == run {
				have := sum[u.Accelerator]
				have.Accelerator, have.Seconds, have.Money = u.Accelerator, have.Seconds+u.Seconds, have.Money+u.Money
				sum[u.Accelerator] = have
			}
		}
	}
	return sum
}

const runLimits = `
apiVersion: stokehold.dev/v1
kind: Budgets
currency: EUR
prices: {nvidia-h100: 1}
teams: {ml: [budgeted]}
budgets:
  - {scope: run/*, money: %s}
`

// setter changes limits as the command line does.
func setter(t *testing.T, env *workflowstest.Env) (budget.Changing, *nats.Conn) {
	t.Helper()
	at := env.Stack.Endpoints()
	conn, err := nats.Connect(at.NATSURL, nats.UserInfo(at.NATSUser, string(at.NATSPassword)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	store, err := budget.NewStore(conn, "")
	if err != nil {
		t.Fatal(err)
	}
	return budget.Changing{Store: store, Gate: budget.Gate{Store: store, Log: &governance.MemoryLog{}, Bus: env.Bus}, Actor: "ann", Reason: "a test"}, conn
}

func ledgerOn(t *testing.T, conn *nats.Conn) *budget.Ledger {
	t.Helper()
	l, err := budget.Open(t.Context(), budget.Config{Conn: conn})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(context.Background()) })
	return l
}

// paused waits until the run waits for budget and holds no activity.
func paused(t *testing.T, env *workflowstest.Env, run *workflows.Run) {
	t.Helper()
	eventually(t, "a run that waits for budget and holds no activity", func() bool {
		info, err := env.Client.DescribeWorkflowExecution(t.Context(), run.ID, "")
		if err != nil || len(info.GetPendingActivities()) > 0 {
			return false
		}
		p := info.GetWorkflowExecutionInfo().GetSearchAttributes().GetIndexedFields()["StokeholdWaiting"]
		var value string
		return p != nil && converter.GetDefaultDataConverter().FromPayload(p, &value) == nil && value == "budget"
	})
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // says only that it was killed
}

// A run that reaches its limit in the middle of training stops at a checkpoint and
// waits, through kill -9 of its workers before and while it waits; after a raise
// it ends with what an unlimited run ends with, and the books hold what all
// attempts reported, once.
func TestBudgetPausesTheRun(t *testing.T) {
	env := open(t)
	d, err := training()
	if err != nil {
		t.Fatal(err)
	}
	change, conn := setter(t, env)
	ledger := ledgerOn(t, conn)
	said := &reports{}
	first, out := startChild(t, env, "training")
	said.read(t, out)
	free := mustStart(t, env, d, workflows.RunInput{Run: "free", Seed: 7})
	want, err := free.Result(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := len(said.sum(free.ID)); n > 0 {
		t.Errorf("%d kinds on the books without limits", n)
	}

	if _, err := budget.Apply(t.Context(), change, fmt.Appendf(nil, runLimits, "4"), 0); err != nil {
		t.Fatal(err)
	}
	run := mustStart(t, env, d, workflows.RunInput{Run: "limited", Seed: 7})
	eventually(t, "progress with what was used", func() bool {
		info, err := run.Describe(t.Context())
		return err == nil && len(info.Active) == 1 && info.Active[0].Progress.Done > 10 && info.Active[0].Progress.Used != nil
	})
	kill(t, first)
	second, out := startChild(t, env, "training")
	said.read(t, out)
	paused(t, env, run)
	meta, err := env.Client.QueryWorkflow(t.Context(), run.ID, "", "__temporal_workflow_metadata")
	if err != nil {
		t.Fatal(err)
	}
	var shown sdk.WorkflowMetadata
	if err := meta.Get(&shown); err != nil || !strings.Contains(shown.GetCurrentDetails(), "stokehold budget raise run/budgeted/limited") || !strings.Contains(shown.GetCurrentDetails(), "waits for budget") {
		t.Errorf("the UI shows %s, %v", shown.GetCurrentDetails(), err)
	}
	before, err := ledger.Standing(t.Context(), "budgeted", run.ID)
	if err != nil || len(before.Balances) != 1 || before.Balances[0].Spent < 4e6 || before.Balances[0].Spent > 5.9e6 {
		t.Errorf("when it was paused: %+v, %v", before, err)
	}
	kill(t, second)
	third, out := startChild(t, env, "training")
	said.read(t, out)
	if _, err := budget.Raise(t.Context(), change, "run/"+run.ID, "", budget.Limits{Money: new(budget.Micro(100e6))}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run in the list of those that wait", func() bool {
		n, err := workflows.TellBudget(t.Context(), env.Client)
		if err != nil {
			t.Fatal(err)
		}
		return n == 1
	})
	got, err := run.Result(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a, _ := want.Stage("fit")
	b, _ := got.Stage("fit")
	if a.Metrics["w"] != b.Metrics["w"] || a.Metrics["w"] == 0 {
		t.Errorf("unlimited %v, limited %v", a.Metrics, b.Metrics)
	}
	replay(t, env, "run-paused", run.ID)

	// What is printed is printed before it is on the books.
	kill(t, third)
	said.wait.Wait()
	spent, err := ledger.Spent("run/"+run.ID, budget.PerRun)
	if err != nil {
		t.Fatal(err)
	}
	sum := said.sum(run.ID)
	for _, u := range spent {
		s := sum[u.Accelerator]
		if u.Seconds != s.Seconds || u.Money != s.Money {
			t.Errorf("on the books %+v, reported %+v", u, s)
		}
	}
	// Two accelerators held for all steps, at least.
	if least := budget.Micro(2 * fitSteps * fitStep.Microseconds()); len(spent) != 2 || sum["nvidia-h100"].Seconds < least {
		t.Errorf("%+v is less than %s", spent, least)
	}
	exhausted := 0
	for e, err := range env.Bus.Replay(t.Context(), events.Subscription{Types: []string{events.TypeBudgetExhausted}}) {
		if err != nil {
			t.Fatal(err)
		}
		var data events.BudgetExhausted
		if err := e.DataAs(&data); err != nil || data.Scope != "run/budgeted/limited" || data.Resource != budget.Money || data.Limit != 4 {
			t.Errorf("%+v, %v", data, err)
		}
		exhausted++
	}
	if exhausted != 1 {
		t.Errorf("%d events of an exhausted budget", exhausted)
	}
	t.Logf("attempts reported: %d; used %s accelerator-seconds", len(said.newest), sum["nvidia-h100"].Seconds)
}

// What has nothing left does not begin; where nobody can tell, it waits too.
func TestNothingLeftDoesNotBegin(t *testing.T) {
	env := open(t)
	d, err := training()
	if err != nil {
		t.Fatal(err)
	}
	change, conn := setter(t, env)
	ledger := ledgerOn(t, conn)
	if _, err := budget.Apply(t.Context(), change, fmt.Appendf(nil, runLimits, "0"), 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the limits", func() bool { d, err := ledger.Document(); return err == nil && d != nil })
	light := fitting()
	var mu sync.Mutex
	var began []int
	light.Set("fit", func(_ context.Context, a stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		mu.Lock()
		defer mu.Unlock()
		began = append(began, a.Attempt)
		return stages.Result{}, nil
	})
	books := &flaky{Ledger: ledger}
	w, err := workflows.NewWorker(workflows.WorkerConfig{
		Client: env.Client, Bus: env.Bus, Types: env.Types, Pipelines: []*workflows.Definition{d}, Executor: light, Aliases: workflowstest.NoAliases{}, Budgets: books,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, w) })
	run := mustStart(t, env, d, workflows.RunInput{Run: "nothing"})
	paused(t, env, run)
	books.fail(true)
	blind := mustStart(t, env, d, workflows.RunInput{Run: "blind"})
	paused(t, env, blind)
	mu.Lock()
	if len(began) > 0 {
		t.Errorf("attempts %v began", began)
	}
	mu.Unlock()
	books.fail(false)
	if _, err := budget.Set(t.Context(), change, "run/*", "", budget.Limits{Money: new(budget.Micro(1e6))}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new limit", func() bool {
		s, err := ledger.Standing(t.Context(), "budgeted", run.ID)
		return err == nil && s.Exhausted("nvidia-h100") == nil
	})
	eventually(t, "both runs in the list of those that wait", func() bool {
		n, err := workflows.TellBudget(t.Context(), env.Client)
		if err != nil {
			t.Fatal(err)
		}
		return n == 2
	})
	for _, r := range []*workflows.Run{run, blind} {
		if _, err := r.Result(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(began)
	if !slices.Equal(began, []int{2, 2}) {
		t.Errorf("attempts %v ran", began)
	}
}

// flaky is a ledger that can be away.
type flaky struct {
	*budget.Ledger
	mu   sync.Mutex
	away bool
}

func (f *flaky) fail(away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
}

func (f *flaky) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return errors.Join(budget.ErrUnavailable, errors.New("the bucket is away"))
	}
	return nil
}

func (f *flaky) Record(ctx context.Context, r budget.Report) (budget.Standing, error) {
	if err := f.err(); err != nil {
		return budget.Standing{}, err
	}
	return f.Ledger.Record(ctx, r)
}

func (f *flaky) Standing(ctx context.Context, pipeline, run string) (budget.Standing, error) {
	if err := f.err(); err != nil {
		return budget.Standing{}, err
	}
	return f.Ledger.Standing(ctx, pipeline, run)
}
