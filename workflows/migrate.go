package workflows

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/stages"
)

// Migrator moves one batch to the tier where it belongs, verified, and returns
// once the catalog says so. Moving a batch that has moved is a success. An error
// that stages.IsPermanent reports is not tried again.
type Migrator interface {
	MigrateBatch(ctx context.Context, dataset string, seq uint64) error
}

const (
	migrateActivity = "stokehold.migrate-range"
	// migrateChunk is how many batches one activity moves, migrateChunks how many
	// activities one execution's history holds.
	migrateChunk  = 256
	migrateChunks = 200
)

// Migration asks for batches From..To-1 of a dataset to be moved.
type Migration struct {
	Dataset   string  `json:"dataset"`
	From      uint64  `json:"from"`
	To        uint64  `json:"to"`                   // exclusive
	PerSecond float64 `json:"per_second,omitempty"` // batches; 0: as fast as it goes
	Moved     uint64  `json:"moved,omitempty"`      // by executions before this one; leave it 0
}

// MigrationResult says what was done.
type MigrationResult struct {
	Dataset string `json:"dataset"`
	Moved   uint64 `json:"moved"` // batches in their place now
}

// StartMigration starts moving m, or joins the migration of the same range if it
// is under way, and returns its workflow id.
func StartMigration(ctx context.Context, c client.Client, m Migration, o StartOptions) (string, error) {
	if m.Dataset == "" || m.From >= m.To || m.PerSecond < 0 {
		return "", fmt.Errorf("workflows: migrate %q %d..%d: name a dataset and a range that is not empty", m.Dataset, m.From, m.To)
	}
	id := fmt.Sprintf("migrate/%s/%d-%d", m.Dataset, m.From, m.To)
	opts := client.StartWorkflowOptions{
		ID: id, TaskQueue: queueOr(o.TaskQueue), EnableEagerStart: true,
		WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		WorkflowTaskTimeout:      workflowTaskTimeout,
		StaticSummary:            clip(fmt.Sprintf("move %s %d..%d", m.Dataset, m.From, m.To), 190),
	}
	if !o.WithoutSearchAttributes {
		opts.TypedSearchAttributes = temporal.NewSearchAttributes(attrDataset.ValueSet(m.Dataset))
	}
	if _, err := c.ExecuteWorkflow(ctx, opts, MigrateWorkflow, m); err != nil {
		return "", fmt.Errorf("workflows: migrate %s: %w", m.Dataset, explain(err))
	}
	return id, nil
}

// MigrationOutcome waits for the migration of that id.
func MigrationOutcome(ctx context.Context, c client.Client, id string) (MigrationResult, error) {
	var r MigrationResult
	err := c.GetWorkflow(ctx, id, "").Get(ctx, &r)
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return r, fmt.Errorf("workflows: %s: %w", id, ErrRunNotFound)
	}
	if err != nil {
		return r, fmt.Errorf("workflows: %s: %w", id, explain(err))
	}
	return r, nil
}

// runMigrate is the workflow stokehold.migrate.
func runMigrate(ctx workflow.Context, m Migration) (MigrationResult, error) {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: time.Hour,
		HeartbeatTimeout:    heartbeatTimeout,
		WaitForCancellation: true,
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 2, MaximumInterval: time.Minute, MaximumAttempts: 100,
			NonRetryableErrorTypes: []string{errTypePermanent},
		},
		Summary: clip("move batches of "+m.Dataset, 190),
	})
	for chunks := 0; m.From < m.To; chunks++ {
		if chunks == migrateChunks {
			return MigrationResult{}, workflow.NewContinueAsNewError(ctx, MigrateWorkflow, m)
		}
		step := m
		step.To = min(m.To, m.From+migrateChunk)
		if err := workflow.ExecuteActivity(ctx, migrateActivity, step).Get(ctx, nil); err != nil {
			return MigrationResult{}, err
		}
		m.Moved += step.To - step.From
		m.From = step.To
		workflow.SetCurrentDetails(ctx, fmt.Sprintf("%d moved, %d to go", m.Moved, m.To-m.From))
	}
	return MigrationResult{m.Dataset, m.Moved}, nil
}

// migrate moves one chunk. Its heartbeat is the next sequence, so that a retry
// continues there.
func (a *activities) migrate(ctx context.Context, m Migration) error {
	if a.migrator == nil {
		return temporal.NewApplicationError("this worker moves no batches: set WorkerConfig.Migrator", errTypeStage)
	}
	next := m.From
	if activity.HasHeartbeatDetails(ctx) {
		var at uint64
		if err := activity.GetHeartbeatDetails(ctx, &at); err == nil && at > next && at <= m.To {
			next = at
		}
	}
	var pace <-chan time.Time
	if m.PerSecond > 0 {
		tick := time.NewTicker(max(time.Duration(float64(time.Second)/m.PerSecond), time.Microsecond))
		defer tick.Stop()
		pace = tick.C
	}
	beat := time.NewTicker(heartbeatEvery)
	defer beat.Stop()
	for ; next < m.To; next++ {
		activity.RecordHeartbeat(ctx, next)
		moved := make(chan error, 1)
		go func() { moved <- a.migrator.MigrateBatch(ctx, m.Dataset, next) }()
		if err := a.awaitMove(ctx, moved, beat.C, next); err != nil {
			return migrateError(ctx, m.Dataset, next, err)
		}
		if pace == nil {
			continue
		}
		select {
		case <-pace:
		case <-ctx.Done():
			return ctx.Err()
		case <-activity.GetWorkerStopChannel(ctx):
			return temporal.NewApplicationErrorWithOptions(errStopping.Error(), errTypeStopping,
				temporal.ApplicationErrorOptions{NextRetryDelay: 100 * time.Millisecond})
		}
	}
	return nil
}

func (a *activities) awaitMove(ctx context.Context, moved <-chan error, beat <-chan time.Time, seq uint64) error {
	for {
		select {
		case err := <-moved:
			return err
		case <-beat:
			activity.RecordHeartbeat(ctx, seq)
		}
	}
}

func migrateError(ctx context.Context, dataset string, seq uint64, err error) error {
	if ctx.Err() != nil {
		return temporal.NewCanceledError()
	}
	msg := fmt.Sprintf("%s#%d: %s", dataset, seq, clip(err.Error(), maxReasonBytes))
	if stages.IsPermanent(err) {
		return temporal.NewNonRetryableApplicationError(msg, errTypePermanent, nil)
	}
	return temporal.NewApplicationError(msg, errTypeStage)
}
