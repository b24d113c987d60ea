package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/testsuite"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

// purse is a ledger whose standing a test decides, look by look.
type purse struct {
	document *budget.Document
	// left says whether something is left, at a report of a stage or, with stage "", a
	// look by the workflow.
	left func(look int, stage string) (bool, error)

	mu      sync.Mutex
	looks   int
	records []budget.Report
}

func (p *purse) Document() (*budget.Document, error) { return p.document, nil }

func (p *purse) Record(_ context.Context, r budget.Report) (budget.Standing, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.records = append(p.records, r)
	if r.Final {
		return budget.Standing{}, nil
	}
	return p.look(r.Stage)
}

func (p *purse) Standing(context.Context, string, string) (budget.Standing, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.look("")
}

func (p *purse) look(stage string) (budget.Standing, error) {
	p.looks++
	some, err := p.left(p.looks, stage)
	if err != nil || some {
		return budget.Standing{}, err
	}
	return budget.Standing{Balances: []budget.Balance{{Scope: "team/ml", Window: budget.Month, Resource: "seconds:cpu"}}}, nil
}

func budgeted(t *testing.T, f *fakes, p *purse, ds ...*workflows.Definition) *testsuite.TestWorkflowEnvironment {
	t.Helper()
	d, err := budget.ParseDocument([]byte("apiVersion: stokehold.dev/v1\nkind: Budgets\nbudgets: []\n"))
	if err != nil {
		t.Fatal(err)
	}
	p.document = d
	suite := &testsuite.WorkflowTestSuite{}
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(20 * time.Second)
	err = workflows.Register(env, workflows.WorkerConfig{
		Client: f, Executor: f, Publisher: f, Aliases: f, Pipelines: ds, Budgets: p, WithoutSearchAttributes: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// Without a signal a run finds for itself that there is something left again, also
// when the books were away meanwhile.
func TestLostRaiseIsFoundByLooking(t *testing.T) {
	d := oneStage(t)
	f := &fakes{}
	p := &purse{left: func(look int, _ string) (bool, error) {
		if look == 3 {
			return false, budget.ErrUnavailable
		}
		return look >= 6, nil
	}}
	res, err := execute(t, budgeted(t, f, p, d), d, workflows.RunInput{Run: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	if n := f.attempts("ask"); n != 1 || res.Seconds < 15+30+60+120 || res.Seconds > 300 {
		t.Errorf("%d attempts, waited %v s", n, res.Seconds)
	}
	var told events.BudgetExhausted
	if e := f.last(t, events.TypeBudgetExhausted, &told); told.Scope != "team/ml" || told.Attempt != 1 || !strings.HasSuffix(e.ID(), "/ask/1") {
		t.Errorf("told %+v as %s", told, e.ID())
	}
	// The first attempt said that it used nothing, the second what it used.
	var attempts []string
	for _, r := range p.records {
		attempts = append(attempts, fmt.Sprint(r.Attempt, r.Final))
	}
	if got := strings.Join(attempts, " "); got != "1 false 1 true 2 false 2 true" {
		t.Errorf("reports of attempts %s", got)
	}
}

// What the books refuse for good fails the stage; what an attempt before left
// unreported goes on them first.
func TestBooksThatContradictFailTheStage(t *testing.T) {
	d := oneStage(t)
	f := &fakes{}
	p := &purse{left: func(int, string) (bool, error) { return false, budget.ErrConflict }}
	_, err := execute(t, budgeted(t, f, p, d), d, workflows.RunInput{Run: "r1"})
	if err == nil || !strings.Contains(err.Error(), "cannot be put on the books") || f.attempts("ask") != 0 {
		t.Errorf("%v after %d attempts", err, f.attempts("ask"))
	}
}

// Another stage's failure ends the wait.
func TestFailureEndsTheWaitForBudget(t *testing.T) {
	pl := workflows.New("two", "")
	pl.Ingest("fail", nothing)
	pl.Ingest("wait", nothing)
	d := build(t, pl)
	waits := make(chan struct{})
	var once sync.Once
	p := &purse{left: func(_ int, stage string) (bool, error) {
		if stage == "" {
			once.Do(func() { close(waits) })
		}
		return stage == "fail", nil
	}}
	f := &fakes{stages: map[string]stageFunc{"fail": func(ctx context.Context, _ stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		select {
		case <-waits:
		case <-ctx.Done():
		}
		return stages.Result{}, stages.Permanent(errors.New("no such file"))
	}}}
	_, err := execute(t, budgeted(t, f, p, d), d, workflows.RunInput{Run: "r1"})
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
}
