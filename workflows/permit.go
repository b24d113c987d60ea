package workflows

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/tiers"
)

// Requester is a Migrator that has a migration judged as a whole, before its first
// batch moves. *tiers.Store is one. The same request again must be the same event.
// What it returns for an event that people must approve, an
// *events.ApprovalRequiredError, makes the migration wait for them.
type Requester interface {
	RequestMigration(ctx context.Context, r tiers.MigrationRequest) error
}

const (
	permitActivity = "stokehold.request-migration"
	// permitVersion marks executions that ask; those begun earlier replay as they were.
	permitVersion = "migrations-are-judged"
	// errTypeRejected is of a migration that people said no to, or nothing in time.
	errTypeRejected = "stokehold.Rejected"
	// memoApproval is the memo of a migration that waits for people: the approval's id.
	// Unlike a search attribute each server has it, and unlike a query no worker needs to
	// be there.
	memoApproval = "stokehold.approval"
	// waitsSignal tells the workflow that started a migration that it waits for people.
	waitsSignal = "stokehold.migration-waits"
)

// permit has the migration judged as a whole, and waits for people where they must
// approve it. Executions that continue one that did ask nobody again.
func permit(ctx workflow.Context, m *Migration) error {
	info := workflow.GetInfo(ctx)
	first := info.FirstRunID
	if m.Judged != "" && m.Judged == first || workflow.GetVersion(ctx, permitVersion, workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return nil
	}
	asking := workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: time.Minute,
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 2, MaximumInterval: time.Minute, MaximumAttempts: 100,
			NonRetryableErrorTypes: []string{errTypePermanent},
		},
		Summary: clip("ask for "+m.summary(), 190),
	})
	own := info.WorkflowExecution
	req := tiers.MigrationRequest{
		ID: own.ID + "/requested@" + first, Dataset: m.Dataset, From: m.From, To: m.To, Tier: m.Tier, Evict: m.Evict, Reason: m.Reason, Actor: m.Actor,
	}
	err := throughGate(ctx, "the migration", func(ctx workflow.Context) error {
		return workflow.ExecuteActivity(asking, permitActivity, req).Get(ctx, nil)
	})
	if err == nil {
		m.Judged = first
	}
	return err
}

// throughGate has an event of the workflow's own judged by publish, and waits for people
// where they must approve it: then it is published again, the same, and passes, or is
// denied with the reason that they gave. what is what they are asked about.
func throughGate(ctx workflow.Context, what string, publish func(workflow.Context) error) error {
	var wait approvalWait
	var told votes
	show := func(ctx workflow.Context) {
		var b strings.Builder
		wait.tell(&b, what)
		workflow.SetCurrentDetails(ctx, clip(b.String(), 16<<10))
	}
	for {
		err := publish(ctx)
		switch {
		case err == nil || temporal.IsCanceledError(err):
			return err
		case !wait.begin(err):
			return notPermitted(&wait, err)
		}
		if told == nil {
			told = listenForVotes(ctx)
		}
		waits(ctx, wait.need.ID)
		wait.last = approvalState{State: approval.Pending}
		_, err = wait.awaitPeople(ctx, workflow.GetInfo(ctx).WorkflowExecution.ID, told, show)
		if err != nil && temporal.IsCanceledError(err) {
			return err
		}
		if err != nil {
			return temporal.NewNonRetryableApplicationError("people could not be asked about "+what+": "+reason(err), errTypePermanent, err)
		}
		waits(ctx, "")
	}
}

// notPermitted is how a workflow ends that may not go on.
func notPermitted(w *approvalWait, err error) error {
	kind := errTypePermanent
	if w.last.State == approval.Rejected || w.last.State == approval.Expired {
		kind = errTypeRejected
	}
	return temporal.NewNonRetryableApplicationError(reason(err), kind, err)
}

// waits says for others that the workflow waits for an approval; "": for none.
func waits(ctx workflow.Context, approval string) {
	info := workflow.GetInfo(ctx)
	if err := workflow.UpsertMemo(ctx, map[string]any{memoApproval: approval}); err != nil {
		workflow.GetLogger(ctx).Warn("what the migration waits for is not in its memo", "error", err)
	}
	if _, has := workflow.GetTypedSearchAttributes(ctx).GetKeyword(attrDataset); has {
		update := attrWaiting.ValueUnset()
		if approval != "" {
			update = attrWaiting.ValueSet(waitsForApproval)
		}
		if err := workflow.UpsertTypedSearchAttributes(ctx, update); err != nil {
			workflow.GetLogger(ctx).Warn("search attributes were not set", "error", err)
		}
	}
	if parent := info.ParentWorkflowExecution; parent != nil && approval != "" {
		// One that has ended meanwhile, or does not listen, is told in vain.
		workflow.SignalExternalWorkflow(ctx, parent.ID, "", waitsSignal, info.WorkflowExecution.ID)
	}
}

// permit is the activity that has a migration judged.
func (a *activities) permit(ctx context.Context, r tiers.MigrationRequest) error {
	if a.migrator == nil {
		return temporal.NewApplicationError("this worker moves no batches: set WorkerConfig.Migrator", errTypeStage)
	}
	asks, ok := a.migrator.(Requester)
	if !ok {
		return nil // it has each batch judged, or nothing
	}
	err := asks.RequestMigration(ctx, r)
	if err == nil || ctx.Err() != nil {
		return err
	}
	msg := clip(err.Error(), maxReasonBytes)
	switch {
	case errors.Is(err, events.ErrApprovalRequired):
		return approvalError(stageFailure{Reason: msg}, err, stages.Progress{})
	case stages.IsPermanent(err) || refusedMove(err) || errors.Is(err, events.ErrUnknownType) || errors.Is(err, events.ErrTooLarge):
		return temporal.NewNonRetryableApplicationError(msg, errTypePermanent, nil)
	}
	return temporal.NewApplicationError(msg, errTypeStage)
}

// Bounds of how soon a workflow is looked at again for what it waits for.
const (
	firstLook = 250 * time.Millisecond
	lastLook  = 30 * time.Second
)

// AwaitMigration waits for the end of the migration of that id, as MigrationOutcome
// does, and calls parked, once, when it finds that the migration waits for people.
func AwaitMigration(ctx context.Context, c client.Client, id string, parked func(approval string)) (MigrationResult, error) {
	stop := lookWhether(ctx, c, id, parked)
	defer stop()
	return MigrationOutcome(ctx, c, id)
}

// lookWhether calls parked, once, when the workflow of that id is found to wait for
// people, unless stop is called before, which waits for it to return.
func lookWhether(ctx context.Context, c client.Client, id string, parked func(approval string)) (stop func()) {
	looking, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for pause := firstLook; ; pause = min(2*pause, lastLook) {
			t := time.NewTimer(pause)
			select {
			case <-looking.Done():
				t.Stop()
				return
			case <-t.C:
			}
			// A look that fails is made up for by the next.
			if need, err := MigrationWaits(looking, c, id); err == nil && need != "" {
				parked(need)
				return
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// MigrationWaits returns the approval that the migration of that id waits for; "": for
// none, or it is over. ErrRunNotFound if there is no such migration.
func MigrationWaits(ctx context.Context, c client.Client, id string) (approval string, err error) {
	d, err := c.DescribeWorkflowExecution(ctx, id, "")
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return "", fmt.Errorf("workflows: %s: %w", id, ErrRunNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("workflows: %s: %w", id, explain(err))
	}
	p, ok := d.GetWorkflowExecutionInfo().GetMemo().GetFields()[memoApproval]
	if !ok || d.GetWorkflowExecutionInfo().GetCloseTime() != nil {
		return "", nil
	}
	if err := converter.GetDefaultDataConverter().FromPayload(p, &approval); err != nil {
		return "", fmt.Errorf("workflows: %s: the memo %s: %w", id, memoApproval, err)
	}
	return approval, nil
}
