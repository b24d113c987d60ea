package workflows

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/events"
)

// BudgetChangeWorkflow is the name of the workflow that has a change of limits judged.
const BudgetChangeWorkflow = "stokehold.budget-change"

// budgetChange is what it gets: an event of the type budget.changed, and of no other.
type budgetChange struct {
	ID      string               `json:"id"`
	Subject string               `json:"subject"`
	Time    time.Time            `json:"time"`
	Actor   string               `json:"actor,omitempty"`
	Data    events.BudgetChanged `json:"data"`
}

// BudgetGate is a budget.Publisher for those who may set limits and publish no events: a
// worker of the task queue publishes on their behalf, and so judges, by the deployment's
// policies and with its key. Neither of both can change limits alone.
type BudgetGate struct {
	Client    client.Client
	TaskQueue string // default DefaultTaskQueue
	// Wait bounds the wait for a worker's judgement; default 30 s.
	Wait time.Duration
}

// Sentinels of a BudgetGate.
var (
	// ErrNotPermitted means that governance, or people whom it asked, refused.
	ErrNotPermitted = errors.New("not permitted")
	// ErrNobodyJudged means that no worker has judged in time.
	ErrNobodyJudged = errors.New("no worker has judged it in time")
)

const defaultGateWait = 30 * time.Second

// Publish has each event judged and published, of the type budget.changed alone. The error
// wraps ErrNotPermitted, ErrNobodyJudged, or events.ErrApprovalRequired: people were asked,
// and may answer for as long as the policy says. Publish the same event again once they
// have approved.
func (g BudgetGate) Publish(ctx context.Context, evs ...events.Event) error {
	for i := range evs {
		if err := g.publish(ctx, &evs[i]); err != nil {
			return err
		}
	}
	return nil
}

func (g BudgetGate) publish(ctx context.Context, ev *events.Event) error {
	c := budgetChange{ID: ev.ID(), Subject: ev.Subject(), Time: ev.Time()}
	c.Actor, _ = ev.Extensions()[events.ExtActor].(string)
	if ev.Type() != events.TypeBudgetChanged {
		return fmt.Errorf("%w: a BudgetGate publishes %s, not %s", events.ErrInvalid, events.TypeBudgetChanged, ev.Type())
	}
	if err := ev.DataAs(&c.Data); err != nil {
		return fmt.Errorf("%w: data: %w", events.ErrInvalid, err)
	}
	wait := g.Wait
	if wait <= 0 {
		wait = defaultGateWait
	}
	id := "budget-change/" + c.ID
	run, err := g.Client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: id, TaskQueue: queueOr(g.TaskQueue), WorkflowTaskTimeout: workflowTaskTimeout,
		WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		StaticSummary:            clip("have judged: "+c.Data.Change, 190),
	}, BudgetChangeWorkflow, c)
	if err != nil {
		return fmt.Errorf("workflows: have a change of budgets judged: %w", explain(err))
	}
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	need := make(chan string, 1)
	stop := lookWhether(within, g.Client, id, func(approval string) {
		need <- approval
		cancel()
	})
	defer stop()
	err = run.Get(within, nil)
	if err == nil {
		return nil
	}
	select {
	case approval := <-need:
		return fmt.Errorf("%w: approval %s: people are asked (stokehold approve %.12s --reason ...); do the same again once they have approved", events.ErrApprovalRequired, approval, approval)
	default:
	}
	var app *temporal.ApplicationError
	var late *serviceerror.DeadlineExceeded
	switch {
	case errors.As(err, &app):
		return fmt.Errorf("%w: %s", ErrNotPermitted, app.Message())
	case within.Err() != nil, errors.Is(err, context.DeadlineExceeded), errors.As(err, &late): // the call's own deadline may come first
		// It must not be announced later, when nobody makes the change any more.
		after, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer done()
		return errors.Join(fmt.Errorf("%w: %v on task queue %s: a worker must run (stokehold dev, or a program of yours)", ErrNobodyJudged, wait, queueOr(g.TaskQueue)),
			ctx.Err(), g.Client.TerminateWorkflow(after, id, run.GetRunID(), "nobody judged it while somebody waited"))
	}
	return fmt.Errorf("workflows: have a change of budgets judged: %w", explain(err))
}

// runBudgetChange is the workflow stokehold.budget-change.
func runBudgetChange(ctx workflow.Context, c budgetChange) error {
	a := announcement{
		Type: events.TypeBudgetChanged, ID: c.ID, Source: "/stokehold/budgets", Subject: c.Subject, Time: c.Time, Actor: c.Actor, Data: c.Data,
	}
	return throughGate(ctx, "the change of budgets", func(ctx workflow.Context) error { return publishEvents(ctx, a) })
}
