package workflowstest_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.temporal.io/api/enums/v1"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/workflows"
)

// lastProposal makes nothing of what is proposed, and notes under which id it is stored.
type lastProposal struct {
	store *budget.Store
	id    string
}

var errTrial = errors.New("a trial")

func (l *lastProposal) Make(ctx context.Context, p budget.Proposal) (budget.Entry, error) {
	var err error
	l.id, err = l.store.Propose(ctx, p)
	return budget.Entry{}, errors.Join(errTrial, err)
}

// A change of limits is judged, and made, by a worker: denied, or not approved by people,
// nothing changes, and nobody who is not there lets it pass.
func TestBudgetChangesPassTheGate(t *testing.T) {
	env := open(t)
	a := openArchive(t, env)
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
	gate := workflows.BudgetGate{Client: env.Client, Store: store, Wait: time.Second}
	c := budget.Changing{Store: store, Gate: gate, Actor: "ann", Reason: "a test"}
	const limits = "{apiVersion: stokehold.dev/v1, kind: Budgets, teams: {late: [train]}, budgets: [{scope: team/late, window: month, money: 100}]}"
	// Nobody works.
	if _, err := budget.Apply(t.Context(), c, []byte(limits), 0); !errors.Is(err, workflows.ErrNobodyJudged) {
		t.Errorf("without a worker: %v", err)
	}
	if _, err := store.Get(t.Context()); !errors.Is(err, budget.ErrNotFound) {
		t.Errorf("it took effect: %v", err)
	}
	// Nor does it later, when somebody works and nobody makes the change any more.
	trial := &lastProposal{store: store}
	c.Gate = trial
	if _, err := budget.Apply(t.Context(), c, []byte(limits), 0); !errors.Is(err, errTrial) {
		t.Fatal(err)
	}
	d, err := env.Client.DescribeWorkflowExecution(t.Context(), "budget-change/"+trial.id, "")
	if err != nil || d.GetWorkflowExecutionInfo().GetStatus() != enums.WORKFLOW_EXECUTION_STATUS_TERMINATED {
		t.Errorf("%v, %v", d.GetWorkflowExecutionInfo().GetStatus(), err)
	}
	a.limits = budget.Gate{Store: store, Log: &governance.MemoryLog{}}
	a.work(t, nil)
	gate.Wait = 0
	c.Gate = gate
	first, err := budget.Apply(t.Context(), c, []byte(limits), 0)
	if err != nil {
		t.Fatal(err)
	}
	unchanged := func(why string) {
		t.Helper()
		if e, err := store.Get(t.Context()); err != nil || e.Revision != first.Revision {
			t.Errorf("%s: revision %d, %v", why, e.Revision, err)
		}
	}
	raise := func(reason string) error {
		c := c
		c.Reason = reason
		_, err := budget.Raise(t.Context(), c, "team/late", "", budget.Limits{Money: new(budget.Micro(5e6))})
		return err
	}
	if err := raise("because"); !errors.Is(err, workflows.ErrNotPermitted) || !strings.Contains(err.Error(), "say why") {
		t.Errorf("denied: %v", err)
	}
	unchanged("denied")
	for range 2 { // the same again asks nobody else
		if err := raise("customers"); !errors.Is(err, events.ErrApprovalRequired) {
			t.Errorf("not approved: %v", err)
		}
	}
	unchanged("not approved")
	list, err := a.co.Store.List(t.Context(), true)
	if err != nil || len(list) != 1 || list[0].Type != events.TypeBudgetChanged || list[0].Requester != "ann" || list[0].Subject != "team/late" {
		t.Fatalf("asked %+v, %v", list, err)
	}
	a.vote(t, list[0], true)
	eventually(t, "the change, which nobody need ask for again", func() bool {
		e, err := store.Get(t.Context())
		return err == nil && e.Change == "team/late per month: 105 money, was 100 money" && e.Actor == "ann" && e.Reason == "customers"
	})
	eventually(t, "the end of the workflow", func() bool {
		d, err := env.Client.DescribeWorkflowExecution(t.Context(), list[0].Workflow, "")
		return err == nil && d.GetWorkflowExecutionInfo().GetStatus() == enums.WORKFLOW_EXECUTION_STATUS_COMPLETED
	})
	// Another raise is another question; a no ends it.
	if err := raise("more customers"); !errors.Is(err, events.ErrApprovalRequired) {
		t.Errorf("%v", err)
	}
	pending, err := a.co.Store.List(t.Context(), false)
	if err != nil || len(pending) != 1 || pending[0].Outcome.State != approval.Pending {
		t.Fatalf("%+v, %v", pending, err)
	}
	a.vote(t, pending[0], false)
	eventually(t, "the end of the second wait", func() bool {
		d, err := env.Client.DescribeWorkflowExecution(t.Context(), pending[0].Workflow, "")
		return err == nil && d.GetWorkflowExecutionInfo().GetCloseTime() != nil
	})
	if err := raise("more customers"); !errors.Is(err, workflows.ErrNotPermitted) || !strings.Contains(err.Error(), "rejected by bob") {
		t.Errorf("%v", err)
	}
	replay(t, env, "budget-change", list[0].Workflow)
	// What was approved takes the place of nothing else than what it was to replace.
	if err := raise("even more customers"); !errors.Is(err, events.ErrApprovalRequired) {
		t.Fatal(err)
	}
	last, err := a.co.Store.List(t.Context(), false)
	if err != nil || len(last) != 1 {
		t.Fatalf("%+v, %v", last, err)
	}
	own := c
	own.Gate = budget.Gate{Store: store, Log: &governance.MemoryLog{}, Bus: env.Bus}
	if _, err := budget.Set(t.Context(), own, "team/late", "", budget.Limits{Money: new(budget.Micro(50e6))}); err != nil {
		t.Fatal(err)
	}
	a.vote(t, last[0], true)
	eventually(t, "the end of the third wait", func() bool {
		d, err := env.Client.DescribeWorkflowExecution(t.Context(), last[0].Workflow, "")
		return err == nil && d.GetWorkflowExecutionInfo().GetStatus() == enums.WORKFLOW_EXECUTION_STATUS_FAILED
	})
	if e, err := store.Get(t.Context()); err != nil || e.Change != "team/late per month: 50 money, was 105 money" {
		t.Errorf("%q, %v", e.Change, err)
	}
	if _, err := gate.Make(t.Context(), budget.Proposal{Actor: "ann", Reason: "a test", How: "applied", Document: []byte(`{}`)}); !errors.Is(err, budget.ErrInvalid) {
		t.Errorf("a faulty document: %v", err)
	}
	if _, err := budget.Apply(t.Context(), c, []byte(limits), 1); !errors.Is(err, budget.ErrConflict) {
		t.Errorf("in place of others: %v", err)
	}
}
