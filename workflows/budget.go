package workflows

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/stages"
)

// errTypeBudget is the type of a stage's error that has nothing left to use. As
// errTypeApproval does, it parks a stage, and no earlier history has it.
const errTypeBudget = "stokehold.BudgetExhausted"

const (
	budgetActivity = "stokehold.budget.look"
	budgetSignal   = "stokehold.budget"
)

// maxPauses bounds how often one stage may be paused: each takes about twenty
// events of the 51,200 that a history may have.
const maxPauses = 1000

// pauseDetail is the second detail of an errTypeBudget.
type pauseDetail struct {
	Balance     budget.Balance  `json:"balance,omitzero"` // zero: nobody could tell
	Accelerator string          `json:"accelerator"`
	Progress    stages.Progress `json:"progress"`
}

// budgetWait is a stage's wait for a budget.
type budgetWait struct {
	pauses int
	detail pauseDetail
	since  time.Time
	last   budgetState
}

// budgetState is what a look at the budgets tells the workflow.
type budgetState struct {
	Open   bool      `json:"open"`             // there is something left
	Reason string    `json:"reason,omitempty"` // why not
	Scope  string    `json:"scope,omitempty"`
	Renews time.Time `json:"renews,omitzero"`
}

// pauseError is what an attempt ends with that has nothing left to use.
func (a *activities) pauseError(as stages.Assignment, f stageFailure, why *pausedError, last stages.Progress) error {
	f.Reason = clip(why.Error(), maxReasonBytes)
	d := pauseDetail{Accelerator: budget.CPU, Progress: last}
	if x, ok := a.executor.(Accelerated); ok {
		if kind := x.Device(as).Accelerator; kind != "" {
			d.Accelerator = kind
		}
	}
	var out *budget.ExhaustedError
	if errors.As(why, &out) {
		d.Balance = out.Balance
	}
	return temporal.NewApplicationErrorWithOptions(f.Reason, errTypeBudget, temporal.ApplicationErrorOptions{
		NonRetryable: true, Details: []any{f, d}, Category: temporal.ApplicationErrorCategoryBenign,
	})
}

// mayPause reports whether a stage's error is a wait for a budget, and prepares it.
func (in *interpreter) mayPause(s *stageRun) bool {
	var app *temporal.ApplicationError
	if in.failed != nil || !errors.As(s.err, &app) || app.Type() != errTypeBudget || s.budget.pauses >= maxPauses {
		return false
	}
	var f stageFailure
	var d pauseDetail
	if app.Details(&f, &d) != nil {
		return false
	}
	s.pausing = true
	s.budget.pauses++
	s.budget.detail = d
	s.budget.last = budgetState{Reason: f.Reason, Scope: d.Balance.Scope, Renews: d.Balance.Renews}
	s.assigned.Prior, s.assigned.Resume = f.Attempts, &d.Progress
	return true
}

// pause lets a coroutine wait for the budget.
func (in *interpreter) pause(ctx workflow.Context, s *stageRun) {
	in.listenForRaises(ctx)
	s.state, s.budget.since, s.ended = parked, workflow.Now(ctx), time.Time{}
	s.wait.over, s.wait.settle = workflow.NewFuture(ctx)
	workflow.Go(ctx, func(ctx workflow.Context) { s.wait.settle.Set(nil, in.awaitBudget(ctx, s)) })
}

// listenForRaises takes the signals of those who raise budgets.
func (in *interpreter) listenForRaises(ctx workflow.Context) {
	if in.raises != nil {
		return
	}
	in.raises = new(int)
	root, _ := workflow.NewDisconnectedContext(ctx)
	workflow.Go(root, func(ctx workflow.Context) {
		raised := workflow.GetSignalChannel(ctx, budgetSignal)
		for {
			raised.Receive(ctx, nil)
			*in.raises++
		}
	})
}

// awaitBudget tells that the budget is exhausted and waits until there is
// something left. Whoever raises a budget sends a signal, and a window's end is
// known; a look from time to time covers the rest.
func (in *interpreter) awaitBudget(ctx workflow.Context, s *stageRun) error {
	in.tellExhausted(ctx, s)
	for looks := 0; ; looks++ {
		heard := *in.raises
		err := workflow.ExecuteLocalActivity(local(ctx, clip("look at the budgets of "+in.run, 190)), budgetActivity,
			in.args.Definition.Name, in.run, s.budget.detail.Accelerator).Get(ctx, &s.budget.last)
		switch {
		case temporal.IsCanceledError(err):
			return err
		case err != nil: // the run has time
			workflow.GetLogger(ctx).Warn("the budgets could not be looked at; again later", "error", err)
		case s.budget.last.Open:
			return nil
		}
		in.show(ctx)
		until := lookAgain(looks)
		if renews := s.budget.last.Renews; !renews.IsZero() {
			until = min(until, max(renews.Sub(workflow.Now(ctx))+time.Second, time.Second))
		}
		if _, err := workflow.AwaitWithTimeout(ctx, until, func() bool { return *in.raises > heard }); err != nil {
			return err
		}
	}
}

// lookAgain waits longer with each look, up to an hour, which keeps the history of
// a year's wait small enough.
func lookAgain(looks int) time.Duration {
	return min(15*time.Second<<min(looks, 10), time.Hour)
}

// tellExhausted publishes budget.exhausted. A policy that denies the event does not
// make the budget larger.
func (in *interpreter) tellExhausted(ctx workflow.Context, s *stageRun) {
	b := s.budget.detail.Balance
	if b.Scope == "" {
		return
	}
	a := in.announce(ctx, events.TypeBudgetExhausted, events.BudgetExhausted{
		Pipeline: in.args.Definition.Name, Run: in.run, Stage: s.def.Name, Attempt: s.assigned.Prior, Accelerator: s.budget.detail.Accelerator,
		Scope: b.Scope, Window: string(b.Window), Resource: b.Resource, Spent: b.Spent.Float(), Limit: b.Limit.Float(),
	})
	a.ID += fmt.Sprintf("/%s/%d", s.def.Name, s.budget.pauses)
	if err := publishEvents(ctx, a); err != nil && !temporal.IsCanceledError(err) {
		workflow.GetLogger(ctx).Warn("that a budget is exhausted could not be published", "error", err)
	}
}

// unpause lets a stage run again, from its checkpoint.
func (in *interpreter) unpause(ctx workflow.Context, s *stageRun) {
	s.pausing = false
	if s.err = s.wait.over.Get(ctx, nil); s.err == nil {
		s.state = waiting
		return
	}
	s.state, s.ended = stopped, workflow.Now(ctx)
}

// label is a stage's state for people.
func (s *stageRun) label() string {
	if s.pausing && (s.state == parked || s.state == parking) {
		return "waits for budget"
	}
	return s.state.String()
}

// waitsFor is what the stages of the run wait for that are parked.
func (in *interpreter) waitsFor() string {
	holds := func(pausing bool) bool {
		return slices.ContainsFunc(in.waiters(), func(s *stageRun) bool { return s.pausing == pausing && (s.state == parked || s.state == parking) })
	}
	switch approval, budget := holds(false), holds(true); {
	case approval && budget:
		return waitsForBoth
	case budget:
		return waitsForBudget
	case approval:
		return waitsForApproval
	}
	return ""
}

// Values of the search attribute StokeholdWaiting.
const (
	waitsForApproval = "approval"
	waitsForBudget   = "budget"
	waitsForBoth     = "approval and budget"
)

// budgets says in the run's details what stages wait for.
func (in *interpreter) budgets(b *strings.Builder) {
	for _, s := range in.stages {
		if !s.pausing || s.state != parked {
			continue
		}
		fmt.Fprintf(b, "\n**%s** waits for budget since %s: %s\n", s.def.Name, s.budget.since.UTC().Format(time.RFC3339), s.budget.last.Reason)
		if s.budget.last.Scope != "" {
			fmt.Fprintf(b, "\n`stokehold budget raise %s ... --reason ...` lets it go on.\n", s.budget.last.Scope)
		}
	}
}

// lookAtBudget is the local activity that says whether a stage may go on. Where
// nobody can tell, it may not.
func (a *activities) lookAtBudget(ctx context.Context, pipeline, run, accelerator string) (budgetState, error) {
	if a.budgets == nil {
		return budgetState{Reason: "this worker has no ledger of budgets: give WorkerConfig its Budgets"}, nil // another may have
	}
	left, err := a.budgets.Standing(ctx, pipeline, run)
	if err == nil {
		err = left.Exhausted(accelerator)
	}
	var out *budget.ExhaustedError
	switch {
	case err == nil:
		return budgetState{Open: true}, nil
	case errors.As(err, &out):
		return budgetState{Reason: clip(err.Error(), maxReasonBytes), Scope: out.Balance.Scope, Renews: out.Balance.Renews}, nil
	}
	return budgetState{Reason: clip(err.Error(), maxReasonBytes)}, nil
}

// maxTold bounds how many runs TellBudget tells; the others look for themselves.
const maxTold = 1000

// TellBudget tells the runs that wait for a budget that one was changed, and says
// how many there are. A run that is not told looks for itself, later.
func TellBudget(ctx context.Context, c client.Client) (int, error) {
	told := 0
	query := fmt.Sprintf("ExecutionStatus = 'Running' AND (%s = '%s' OR %[1]s = '%[3]s')", attrWaiting.GetName(), waitsForBudget, waitsForBoth)
	for run, err := range Runs(ctx, c, query) {
		if err != nil {
			return told, err
		}
		if told == maxTold {
			break
		}
		err := c.SignalWorkflow(ctx, run.ID, "", budgetSignal, nil)
		var missing *serviceerror.NotFound
		if err != nil && !errors.As(err, &missing) {
			return told, fmt.Errorf("workflows: tell run %s of a budget: %w", run.ID, explain(err))
		}
		told++
	}
	return told, nil
}
