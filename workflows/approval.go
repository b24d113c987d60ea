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
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/stages"
)

// Approvals asks people and says what they decided. *approval.Coordinator is the
// one outside tests.
type Approvals interface {
	Request(ctx context.Context, need events.ApprovalNeed, workflow string) (approval.Status, error)
	Settle(ctx context.Context, id string) (approval.Status, error)
}

// errTypeApproval is the type of a stage's error whose event people must approve
// first. Only it parks a stage, and no history from before there were approvals
// has it: so these replay as they did.
const errTypeApproval = "stokehold.ApprovalRequired"

const (
	askActivity    = "stokehold.approval.ask"
	settleActivity = "stokehold.approval.settle"
	approvalSignal = "stokehold.approval"
)

// maxParks bounds how often one stage may wait: each wait is for another approval.
const maxParks = 16

// needDetail is the second detail of an errTypeApproval.
type needDetail struct {
	Need     events.ApprovalNeed `json:"need"`
	Progress stages.Progress     `json:"progress"`
}

// approvalWait is a stage's wait for people.
type approvalWait struct {
	parks  int
	need   events.ApprovalNeed
	since  time.Time
	over   workflow.Future // gives approvalState
	settle workflow.Settable
	last   approvalState
}

// approvalState is what a look at an approval tells the workflow.
type approvalState struct {
	State    approval.State `json:"state"`
	Deadline time.Time      `json:"deadline"`
	By       []string       `json:"by,omitempty"`
	Reason   string         `json:"reason,omitempty"`
}

// approvalError is what an attempt ends with that must wait for people.
func approvalError(f stageFailure, err error, last stages.Progress) error {
	var e *events.ApprovalRequiredError
	if !errors.As(err, &e) {
		return temporal.NewApplicationErrorWithOptions(f.Reason, errTypePermanent, temporal.ApplicationErrorOptions{NonRetryable: true, Details: []any{f}})
	}
	need := e.Need
	need.Reason = clip(need.Reason, maxReasonBytes)
	return temporal.NewApplicationErrorWithOptions(f.Reason, errTypeApproval, temporal.ApplicationErrorOptions{
		NonRetryable: true, Details: []any{f, needDetail{need, last}}, Category: temporal.ApplicationErrorCategoryBenign,
	})
}

// mayPark reports whether a stage's error is a wait for people, and prepares it.
// What was approved and is asked for again will not get better: the approval has
// lapsed, or this deployment's policies do not accept it.
func (in *interpreter) mayPark(s *stageRun) bool {
	var app *temporal.ApplicationError
	if in.failed != nil || !errors.As(s.err, &app) || app.Type() != errTypeApproval || s.wait.parks >= maxParks {
		return false
	}
	var f stageFailure
	var d needDetail
	if app.Details(&f, &d) != nil || d.Need.ID == "" || d.Need.ID == s.wait.need.ID {
		return false
	}
	s.wait.parks++
	s.wait.need = d.Need
	s.assigned.Prior, s.assigned.Resume = f.Attempts, &d.Progress
	return true
}

// park asks people and lets a coroutine wait for them.
func (in *interpreter) park(ctx workflow.Context, s *stageRun) {
	in.listen(ctx)
	s.state, s.wait.since, s.ended = parked, workflow.Now(ctx), time.Time{}
	s.wait.last = approvalState{State: approval.Pending}
	s.wait.over, s.wait.settle = workflow.NewFuture(ctx)
	workflow.Go(ctx, func(ctx workflow.Context) { s.wait.settle.Set(in.awaitPeople(ctx, s)) })
}

// listen takes the signals of those who vote.
func (in *interpreter) listen(ctx workflow.Context) {
	if in.told == nil {
		in.told = listenForVotes(ctx)
	}
}

// votes counts the signals of those who vote, by approval.
type votes map[string]int

// listenForVotes counts until the workflow ends.
func listenForVotes(ctx workflow.Context) votes {
	told := votes{}
	root, _ := workflow.NewDisconnectedContext(ctx)
	workflow.Go(root, func(ctx workflow.Context) {
		signals := workflow.GetSignalChannel(ctx, approvalSignal)
		for {
			var id string
			signals.Receive(ctx, &id)
			told[id]++
		}
	})
	return told
}

func (in *interpreter) awaitPeople(ctx workflow.Context, s *stageRun) (approvalState, error) {
	return s.wait.awaitPeople(ctx, in.run, in.told, in.show)
}

// awaitPeople asks on behalf of the workflow of that id, and waits until the approval
// is decided or expires. Whoever votes sends a signal; a look from time to time covers
// those that are lost. show is called when there is news.
func (w *approvalWait) awaitPeople(ctx workflow.Context, who string, told votes, show func(workflow.Context)) (approvalState, error) {
	id := w.need.ID
	heard := told[id]
	err := workflow.ExecuteLocalActivity(local(ctx, clip("ask for approval "+id, 190)), askActivity, w.need, who).Get(ctx, &w.last)
	if err != nil {
		return approvalState{}, err
	}
	show(ctx)
	for w.last.State == approval.Pending {
		until := lookEvery(w.need.Expires)
		if left := w.last.Deadline.Add(2 * approval.DefaultSkew).Sub(workflow.Now(ctx)); left > 0 {
			until = min(until, left)
		}
		if _, err := workflow.AwaitWithTimeout(ctx, until, func() bool { return told[id] > heard }); err != nil {
			return approvalState{}, err
		}
		heard = told[id]
		err := workflow.ExecuteLocalActivity(local(ctx, clip("look at approval "+id, 190)), settleActivity, id).Get(ctx, &w.last)
		var app *temporal.ApplicationError
		switch {
		case temporal.IsCanceledError(err), errors.As(err, &app) && app.NonRetryable():
			return approvalState{}, err
		case err != nil: // the bucket is away: people have time, and so has the workflow
			workflow.GetLogger(ctx).Warn("the approval could not be looked at; again later", "approval", id, "error", err)
		}
		show(ctx)
	}
	return w.last, nil
}

// lookEvery makes about 500 looks of the longest wait, which keeps the history
// small: a look is about six events of the 51,200 that a run may have.
func lookEvery(expires time.Duration) time.Duration {
	return min(max(expires/500, 15*time.Second), 6*time.Hour)
}

// unpark lets a stage run again, whatever people decided: it publishes the same
// event, and governance lets it pass or denies it with their reason.
func (in *interpreter) unpark(ctx workflow.Context, s *stageRun) {
	var st approvalState
	s.err = s.wait.over.Get(ctx, &st)
	switch {
	case s.err == nil:
		s.state = waiting
		return
	case temporal.IsCanceledError(s.err):
		s.state = stopped
	default:
		s.state = failed
		s.failure = stageFailure{Stage: s.def.Name, Attempts: s.assigned.Prior, Reason: "people could not be asked for approval: " + reason(s.err), Permanent: true}
		if in.failed == nil {
			in.failed = s
		}
	}
	s.ended = workflow.Now(ctx)
}

// waiters are the stages, and the run's start where people must approve that.
func (in *interpreter) waiters() []*stageRun {
	if in.start == nil {
		return in.stages
	}
	return append([]*stageRun{in.start}, in.stages...)
}

func (in *interpreter) everParked() bool {
	return slices.ContainsFunc(in.waiters(), func(s *stageRun) bool { return s.wait.parks > 0 || s.budget.pauses > 0 })
}

// begin publishes that the run has started. Where people must approve that, it
// waits for them as a stage does, and publishes the same event again: it passes, or
// is denied with the reason that they gave.
func (in *interpreter) begin(ctx workflow.Context) error {
	started := in.announceStarted(ctx)
	for {
		err := publishEvents(ctx, started)
		if err == nil || temporal.IsCanceledError(err) {
			return err
		}
		if !in.mayWait(err) {
			return temporal.NewApplicationErrorWithOptions("the run's start could not be published: "+reason(err), errTypeRun,
				temporal.ApplicationErrorOptions{NonRetryable: true, Cause: err})
		}
		in.park(ctx, in.start)
		in.attributes(ctx)
		in.show(ctx)
		if err := in.start.wait.over.Get(ctx, nil); err != nil {
			in.start.state = failed
			if temporal.IsCanceledError(err) {
				return err
			}
			return temporal.NewApplicationErrorWithOptions("people could not be asked whether the run may start: "+reason(err), errTypeRun,
				temporal.ApplicationErrorOptions{NonRetryable: true, Cause: err})
		}
		in.start.state = done
		in.attributes(ctx)
		in.show(ctx)
	}
}

// mayWait reports whether the event of the run's start waits for people, and prepares
// that, as mayPark does for a stage.
func (in *interpreter) mayWait(err error) bool {
	start := in.start
	if start == nil {
		start = &stageRun{def: StageDef{Name: "the start of the run"}}
	}
	if !start.wait.begin(err) {
		return false
	}
	in.start = start
	return true
}

// begin reports whether err is of an event of the workflow's own that waits for
// people, and prepares the wait.
func (w *approvalWait) begin(err error) bool {
	var app *temporal.ApplicationError
	var d needDetail
	if !errors.As(err, &app) || app.Type() != errTypeApproval || app.Details(&stageFailure{}, &d) != nil || d.Need.ID == "" {
		return false
	}
	if w.parks >= maxParks || d.Need.ID == w.need.ID {
		return false
	}
	w.parks++
	w.need = d.Need
	return true
}

func (in *interpreter) waitingAttribute() temporal.SearchAttributeUpdate {
	if what := in.waitsFor(); what != "" {
		return attrWaiting.ValueSet(what)
	}
	return attrWaiting.ValueUnset()
}

// approvals says in the run's details what people are asked.
func (in *interpreter) approvals(b *strings.Builder) {
	for _, s := range in.waiters() {
		if s.wait.parks > 0 {
			s.wait.tell(b, s.def.Name)
		}
	}
}

// tell says what people are asked on behalf of who.
func (w *approvalWait) tell(b *strings.Builder, who string) {
	n, st := w.need, w.last
	whom := "anybody who may approve"
	if len(n.Roles) > 0 {
		whom = "one of the roles " + strings.Join(n.Roles, ", ")
	}
	fmt.Fprintf(b, "\n**%s** waited for %d to approve %s %s, with %s. Asks %s: %s\n\n", who, max(n.Quorum, 1), n.Type, n.Subject, whom, n.Policy, n.Reason)
	switch st.State {
	case approval.Approved, approval.Rejected, approval.Expired:
		fmt.Fprintf(b, "Approval `%s` is %s: %s\n", n.ID, st.State, st.Reason)
	default:
		by := "nobody yet"
		if len(st.By) > 0 {
			by = strings.Join(st.By, ", ")
		}
		fmt.Fprintf(b, "Approved by %s; until %s. `stokehold approve %s --reason ...` or `stokehold reject`\n", by, st.Deadline.UTC().Format(time.RFC3339), n.ID)
	}
}

// ask is the local activity that asks people.
func (a *activities) ask(ctx context.Context, need events.ApprovalNeed, run string) (approvalState, error) {
	if a.approvals == nil {
		return approvalState{}, temporal.NewNonRetryableApplicationError("this worker cannot ask: give WorkerConfig its Approvals", errTypePermanent, nil)
	}
	st, err := a.approvals.Request(ctx, need, run)
	if err == nil && st.Outcome.State != approval.Pending && !st.Outcome.Sealed {
		st, err = a.approvals.Settle(ctx, need.ID) // asked by an earlier attempt, and answered since
	}
	return lookedAt(st, err)
}

// settle is the local activity that looks at an approval.
func (a *activities) settle(ctx context.Context, id string) (approvalState, error) {
	if a.approvals == nil {
		return approvalState{}, errors.New("this worker cannot look at approvals: give WorkerConfig its Approvals") // another may have them
	}
	return lookedAt(a.approvals.Settle(ctx, id))
}

func lookedAt(st approval.Status, err error) (approvalState, error) {
	if err != nil {
		for _, never := range []error{events.ErrDenied, events.ErrInvalid, events.ErrApprovalRequired, approval.ErrInvalid, approval.ErrNotFound, approval.ErrCorrupt} {
			if errors.Is(err, never) {
				return approvalState{}, temporal.NewNonRetryableApplicationError(err.Error(), errTypePermanent, err)
			}
		}
		return approvalState{}, err
	}
	// A decision that is not sealed yet is not one: the engine goes by the seal.
	out := approvalState{State: st.Outcome.State, Deadline: st.Deadline(), By: st.Outcome.By(), Reason: clip(st.Outcome.Reason, maxReasonBytes)}
	if !st.Outcome.Sealed {
		out.State = approval.Pending
	}
	return out, nil
}

// TellApproval tells the run that waits for an approval that somebody voted. A run
// that is not told looks for itself, later; one that has ended needs no word.
func TellApproval(ctx context.Context, c client.Client, run, id string) error {
	err := c.SignalWorkflow(ctx, run, "", approvalSignal, id)
	var missing *serviceerror.NotFound
	if err == nil || errors.As(err, &missing) {
		return nil
	}
	return fmt.Errorf("workflows: tell run %s of approval %s: %w", run, id, explain(err))
}
