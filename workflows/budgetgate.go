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
	"github.com/stokehold/stokehold/governance/budget"
)

// BudgetChangeWorkflow is the name of the workflow that has a change of limits judged, and
// makes it.
const BudgetChangeWorkflow = "stokehold.budget-change"

const (
	draftBudgetActivity = "stokehold.budget.draft"
	enactBudgetActivity = "stokehold.budget.enact"
	// errTypeConflict is the type of the error that the limits are others by now.
	errTypeConflict = "stokehold.Conflict"
)

// Limits makes changes of limits that others have proposed. budget.Gate is one.
type Limits interface {
	// Draft is the event by which a proposal is judged.
	Draft(ctx context.Context, proposal string) (events.Event, error)
	// Enact makes the change once that was published. Repeatable.
	Enact(ctx context.Context, proposal string) (budget.Entry, error)
}

// budgetChange is what the workflow gets. All else is in the proposal, which is stored where
// only those can write who may propose limits.
type budgetChange struct {
	Proposal string `json:"proposal"`
}

// BudgetMade is a change of limits that was made.
type BudgetMade struct {
	Entry budget.Entry `json:"entry"` // without the document
	Told  int          `json:"told"`  // runs that waited for a budget
}

// BudgetGate is a budget.Maker for those who may propose limits, and neither write them nor
// publish events: a worker of the task queue does, by the deployment's policies and with its
// credentials. What is to change it works out by itself.
type BudgetGate struct {
	Client    client.Client
	Store     *budget.Store // where limits are proposed
	TaskQueue string        // default DefaultTaskQueue
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

// Make implements budget.Maker: see Change.
func (g BudgetGate) Make(ctx context.Context, p budget.Proposal) (budget.Entry, error) {
	made, err := g.Change(ctx, p)
	return made.Entry, err
}

// Change has a proposal judged and made, and the runs told that wait. The error wraps
// ErrNotPermitted, ErrNobodyJudged, budget.ErrConflict, or events.ErrApprovalRequired:
// people were asked, and the change is made once they have approved, by a worker.
func (g BudgetGate) Change(ctx context.Context, p budget.Proposal) (BudgetMade, error) {
	proposal, err := g.Store.Propose(ctx, p)
	if err != nil {
		return BudgetMade{}, err
	}
	wait := g.Wait
	if wait <= 0 {
		wait = defaultGateWait
	}
	id := "budget-change/" + proposal
	run, err := g.Client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: id, TaskQueue: queueOr(g.TaskQueue), WorkflowTaskTimeout: workflowTaskTimeout,
		WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		StaticSummary:            clip("limits "+p.How+" by "+p.Actor+": "+p.Reason, 190),
	}, BudgetChangeWorkflow, budgetChange{proposal})
	if err != nil {
		return BudgetMade{}, fmt.Errorf("workflows: have a change of budgets judged: %w", explain(err))
	}
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	need := make(chan string, 1)
	stop := lookWhether(within, g.Client, id, func(approval string) {
		need <- approval
		cancel()
	})
	defer stop()
	var made BudgetMade
	err = run.Get(within, &made)
	if err == nil {
		made.Entry.Document, err = budget.ParseDocument(p.Document)
		return made, err
	}
	select {
	case approval := <-need:
		return BudgetMade{}, fmt.Errorf("%w: approval %s: people are asked (stokehold approve %.12s --reason ...); the limits change once they have approved", events.ErrApprovalRequired, approval, approval)
	default:
	}
	var app *temporal.ApplicationError
	var late *serviceerror.DeadlineExceeded
	switch {
	case errors.As(err, &app) && app.Type() == errTypeConflict:
		return BudgetMade{}, fmt.Errorf("%w: %s", budget.ErrConflict, app.Message())
	case errors.As(err, &app):
		return BudgetMade{}, fmt.Errorf("budget: not changed: %w: %s", ErrNotPermitted, app.Message())
	case within.Err() != nil, errors.Is(err, context.DeadlineExceeded), errors.As(err, &late): // the call's own deadline may come first
		// It must not be made later, when nobody asks for it any more.
		after, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer done()
		return BudgetMade{}, errors.Join(fmt.Errorf("%w: %v on task queue %s: a worker must run (stokehold dev, or a program of yours)", ErrNobodyJudged, wait, queueOr(g.TaskQueue)),
			ctx.Err(), g.Client.TerminateWorkflow(after, id, run.GetRunID(), "nobody judged it while somebody waited"))
	}
	return BudgetMade{}, fmt.Errorf("workflows: have a change of budgets judged: %w", explain(err))
}

// runBudgetChange is the workflow stokehold.budget-change.
func runBudgetChange(ctx workflow.Context, c budgetChange) (made BudgetMade, err error) {
	var draft announcement
	if err := workflow.ExecuteLocalActivity(local(ctx, "what the proposal changes"), draftBudgetActivity, c.Proposal).Get(ctx, &draft); err != nil {
		return made, err
	}
	draft.Time = workflow.Now(ctx)
	if err := throughGate(ctx, "the change of budgets", func(ctx workflow.Context) error { return publishEvents(ctx, draft) }); err != nil {
		return made, err
	}
	err = workflow.ExecuteLocalActivity(local(ctx, "change the limits"), enactBudgetActivity, c.Proposal).Get(ctx, &made)
	return made, err
}

// noLimits are the Limits of a worker that is given none.
type noLimits struct{}

var errNoLimits = fmt.Errorf("%w: this worker changes no limits: give it WorkerConfig.Limits", budget.ErrConfig)

func (noLimits) Draft(context.Context, string) (events.Event, error) {
	return events.Event{}, errNoLimits
}
func (noLimits) Enact(context.Context, string) (budget.Entry, error) {
	return budget.Entry{}, errNoLimits
}

// draftBudget is the event by which a proposal is judged.
func (a *activities) draftBudget(ctx context.Context, proposal string) (announcement, error) {
	ev, err := a.limits.Draft(ctx, proposal)
	if err != nil {
		return announcement{}, limitsError(err)
	}
	var data events.BudgetChanged
	if err := ev.DataAs(&data); err != nil {
		return announcement{}, limitsError(fmt.Errorf("%w: %w", budget.ErrInvalid, err))
	}
	actor, _ := ev.Extensions()[events.ExtActor].(string)
	return announcement{Type: ev.Type(), ID: ev.ID(), Source: ev.Source(), Subject: ev.Subject(), Actor: actor, Data: data}, nil
}

// enactBudget makes the change of a proposal that was judged, and tells the runs that wait.
func (a *activities) enactBudget(ctx context.Context, proposal string) (BudgetMade, error) {
	e, err := a.limits.Enact(ctx, proposal)
	if err != nil {
		return BudgetMade{}, limitsError(err)
	}
	e.Document = nil     // it may be larger than a payload
	if a.client == nil { // in a test environment: nobody waits
		return BudgetMade{Entry: e}, nil
	}
	told, err := TellBudget(ctx, a.client)
	if err != nil { // they look for themselves
		a.log.WarnContext(ctx, "the limits are changed, but not all runs were told", "error", err)
	}
	return BudgetMade{e, told}, nil
}

// limitsError keeps what trying again does not mend from being tried again.
func limitsError(err error) error {
	switch {
	case errors.Is(err, budget.ErrConflict):
		return temporal.NewNonRetryableApplicationError(err.Error(), errTypeConflict, err)
	case errors.Is(err, budget.ErrInvalid), errors.Is(err, budget.ErrNotFound), errors.Is(err, budget.ErrCorrupt), errors.Is(err, budget.ErrConfig):
		return temporal.NewNonRetryableApplicationError(err.Error(), errTypePermanent, err)
	}
	return err
}
