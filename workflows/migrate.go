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

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
)

// Migrator moves one batch to the tier where it belongs, verified, and returns
// once the catalog says so. Moving a batch that has moved is a success. An error
// that stages.IsPermanent reports is not tried again.
type Migrator interface {
	MigrateBatch(ctx context.Context, dataset string, seq uint64) error
}

// Mover is a Migrator that also takes batches back, and takes away what a move has
// replaced. Each call may be repeated.
type Mover interface {
	Migrator
	// CopyBatch makes the verified copy and announces it; nothing is removed.
	CopyBatch(ctx context.Context, m tiers.Migration) error
	// DropBatch removes what the copy replaces. It fails while a reader holds it.
	DropBatch(ctx context.Context, m tiers.Migration) error
}

const (
	migrateActivity = "stokehold.migrate-range"
	dropActivity    = "stokehold.drop-range"
	// defaultGrace is longer than a reader may look at a ref before it opens it.
	defaultGrace = time.Minute
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
	// Refused and Refusals are those of executions before this one; leave them 0.
	Refused  uint64    `json:"refused,omitempty"`
	Refusals []Refusal `json:"refusals,omitempty"`
	// Tier is where they go: arrowio.Cold, also for "", or arrowio.Warm.
	Tier arrowio.Tier `json:"tier,omitempty"`
	// Evict removes the warm copies once Grace has passed; see tiers.Migration.
	Evict bool `json:"evict,omitempty"`
	// Grace is measured by the workers' monotonic clocks, as the sum of what attempts
	// waited: a clock that is set does not shorten it. Default one minute.
	Grace  time.Duration `json:"grace,omitempty"`
	Reason string        `json:"reason,omitempty"` // told in tier.migration.requested and tier.move.requested
	// Actor is on whose behalf it is asked for, and cannot approve it; "": nobody's.
	Actor string `json:"actor,omitempty"`
	// Judged is the first of the executions that continue one another, where that had the
	// migration judged. It is nothing that anybody could know before; leave it "".
	Judged string `json:"judged,omitempty"`
}

// plain reports whether the migration is one that any Migrator makes.
func (m Migration) plain() bool { return !m.Evict && (m.Tier == "" || m.Tier == arrowio.Cold) }

func (m Migration) batch(seq uint64) tiers.Migration {
	return tiers.Migration{Dataset: m.Dataset, Sequence: seq, Evict: m.Evict, To: m.Tier, Reason: m.Reason}
}

// workflowID is the same for migrations that do the same.
func (m Migration) workflowID() string {
	id := fmt.Sprintf("migrate/%s/%d-%d", m.Dataset, m.From, m.To)
	if m.Tier == arrowio.Warm {
		id += "/warm"
	} else if m.Evict {
		id += "/evict"
	}
	return id
}

func (m Migration) summary() string {
	return clip(fmt.Sprintf("move %s %d..%d", m.Dataset, m.From, m.To), 190)
}

// StartMigration starts moving m, or joins the migration of the same range if it
// is under way, and returns its workflow id.
func StartMigration(ctx context.Context, c client.Client, m Migration, o StartOptions) (string, error) {
	if m.Dataset == "" || m.From >= m.To || m.PerSecond < 0 {
		return "", fmt.Errorf("workflows: migrate %q %d..%d: name a dataset and a range that is not empty", m.Dataset, m.From, m.To)
	}
	if m.Grace < 0 || m.Tier == arrowio.Warm && m.Evict || m.Tier != "" && m.Tier != arrowio.Cold && m.Tier != arrowio.Warm {
		return "", fmt.Errorf("workflows: migrate %s to tier %q (evict %t, grace %v): want cold, which may evict, or warm, and a grace that is not negative", m.Dataset, m.Tier, m.Evict, m.Grace)
	}
	id := m.workflowID()
	opts := client.StartWorkflowOptions{
		ID: id, TaskQueue: queueOr(o.TaskQueue), EnableEagerStart: true,
		WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		WorkflowTaskTimeout:      workflowTaskTimeout,
		StaticSummary:            m.summary(),
	}
	if !o.WithoutSearchAttributes {
		opts.TypedSearchAttributes = temporal.NewSearchAttributes(attrDataset.ValueSet(m.Dataset))
	}
	if _, err := c.ExecuteWorkflow(ctx, opts, MigrateWorkflow, m); err != nil {
		return "", fmt.Errorf("workflows: migrate %s: %w", m.Dataset, explain(err))
	}
	return id, nil
}

// MigrationOutcome waits for the migration of that id. If batches were refused the
// error wraps ErrMoveRefused and the result says which.
func MigrationOutcome(ctx context.Context, c client.Client, id string) (MigrationResult, error) {
	var r MigrationResult
	err := c.GetWorkflow(ctx, id, "").Get(ctx, &r)
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return r, fmt.Errorf("workflows: %s: %w", id, ErrRunNotFound)
	}
	if refused, ok := refusedBy(err); ok {
		return refused, fmt.Errorf("workflows: %s: %w", id, &moveRefusedError{err})
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
	if err := permit(ctx, &m); err != nil {
		return MigrationResult{}, err
	}
	result := MigrationResult{m.Dataset, m.Moved, m.Refused, m.Refusals}
	for chunks := 0; m.From < m.To; chunks++ {
		if chunks == migrateChunks {
			m.Moved, m.Refused, m.Refusals = result.Moved, result.Refused, result.Refusals
			return MigrationResult{}, workflow.NewContinueAsNewError(ctx, MigrateWorkflow, m)
		}
		step := m
		step.To = min(m.To, m.From+migrateChunk)
		var part MigrationResult // activities of older workers return none: they moved all
		if err := workflow.ExecuteActivity(ctx, migrateActivity, step).Get(ctx, &part); err != nil {
			return MigrationResult{}, err
		}
		size := step.To - step.From
		if m.Evict && part.Refused < size {
			step.Refusals = part.Refusals
			var kept MigrationResult
			if err := workflow.ExecuteActivity(ctx, dropActivity, step).Get(ctx, &kept); err != nil {
				return MigrationResult{}, err
			}
			part.add(kept)
		}
		result.Moved += size - min(part.Refused, size)
		result.add(part)
		if m.From = step.To; part.Refused == size && size == migrateChunk && m.From < m.To {
			// Each refusal is a decision in the log: what refused so many in a row is likely
			// to refuse the rest.
			result.refuse(Refusal{m.From, m.To, fmt.Sprintf("not tried, since all of the %d before were refused", size)})
			break
		}
		workflow.SetCurrentDetails(ctx, fmt.Sprintf("%d moved, %d refused, %d to go", result.Moved, result.Refused, m.To-m.From))
	}
	return result, result.err()
}

// moveProgress is the heartbeat of a move.
type moveProgress struct {
	Next uint64 `json:"next"`
	MigrationResult
}

func (p *moveProgress) restore(ctx context.Context, m Migration) {
	if !activity.HasHeartbeatDetails(ctx) {
		return
	}
	var was moveProgress
	if err := activity.GetHeartbeatDetails(ctx, &was); err != nil {
		var next uint64 // all that older workers have written
		if err := activity.GetHeartbeatDetails(ctx, &next); err != nil {
			return
		}
		was = moveProgress{Next: next}
	}
	if was.Next > m.From && was.Next <= m.To {
		*p = was
	}
}

// migrate moves one chunk. Its heartbeat is the next sequence, so that a retry
// continues there. What is refused is left, and told.
func (a *activities) migrate(ctx context.Context, m Migration) (MigrationResult, error) {
	if a.migrator == nil {
		return MigrationResult{}, temporal.NewApplicationError("this worker moves no batches: set WorkerConfig.Migrator", errTypeStage)
	}
	move := func(seq uint64) error { return a.migrator.MigrateBatch(ctx, m.Dataset, seq) }
	if mover, err := a.mover(); err != nil && !m.plain() {
		return MigrationResult{}, err
	} else if err == nil {
		move = func(seq uint64) error { return mover.CopyBatch(ctx, m.batch(seq)) }
	}
	at := moveProgress{Next: m.From}
	at.restore(ctx, m)
	var pace <-chan time.Time
	if m.PerSecond > 0 {
		tick := time.NewTicker(max(time.Duration(float64(time.Second)/m.PerSecond), time.Microsecond))
		defer tick.Stop()
		pace = tick.C
	}
	beat := time.NewTicker(heartbeatEvery)
	defer beat.Stop()
	for ; at.Next < m.To; at.Next++ {
		activity.RecordHeartbeat(ctx, at)
		moved := make(chan error, 1)
		go func() { moved <- move(at.Next) }()
		if err := a.awaitMove(ctx, moved, beat.C, at); err != nil {
			if ctx.Err() != nil || !refusedMove(err) {
				return MigrationResult{}, migrateError(ctx, m.Dataset, at.Next, err)
			}
			at.refuse(Refusal{at.Next, at.Next + 1, whyRefused(err)})
		}
		if pace == nil {
			continue
		}
		select {
		case <-pace:
		case <-ctx.Done():
			return MigrationResult{}, ctx.Err()
		case <-activity.GetWorkerStopChannel(ctx):
			return MigrationResult{}, temporal.NewApplicationErrorWithOptions(errStopping.Error(), errTypeStopping,
				temporal.ApplicationErrorOptions{NextRetryDelay: 100 * time.Millisecond})
		}
	}
	return at.MigrationResult, nil
}

func (a *activities) mover() (Mover, error) {
	if mover, ok := a.migrator.(Mover); ok {
		return mover, nil
	}
	return nil, temporal.NewNonRetryableApplicationError("this worker's Migrator evicts nothing and brings nothing back: it is no Mover", errTypePermanent, nil)
}

// dropProgress is the heartbeat of a drop.
type dropProgress struct {
	Waited time.Duration `json:"waited"` // of the grace, by all attempts together
	Next   uint64        `json:"next"`
	MigrationResult
}

// drop waits for the grace, and then removes what the moves of a chunk replaced, but
// for those that were refused.
// Attempts add up what they waited by their monotonic clocks, of which a heartbeat
// that was lost makes the wait longer.
func (a *activities) drop(ctx context.Context, m Migration) (MigrationResult, error) {
	mover, err := a.mover()
	if err != nil {
		return MigrationResult{}, err
	}
	refused := MigrationResult{Refusals: m.Refusals}
	at := dropProgress{Next: m.From}
	if activity.HasHeartbeatDetails(ctx) {
		var was dropProgress
		if err := activity.GetHeartbeatDetails(ctx, &was); err == nil && was.Next >= m.From && was.Next <= m.To && was.Waited >= 0 {
			at = was
		}
	}
	grace := m.Grace
	if grace == 0 {
		grace = defaultGrace
	}
	begun, before := a.now(), at.Waited
	for at.Waited = before + a.now().Sub(begun); at.Waited < grace; at.Waited = before + a.now().Sub(begun) {
		activity.RecordHeartbeat(ctx, at)
		t := time.NewTimer(min(heartbeatEvery, grace-at.Waited))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return MigrationResult{}, ctx.Err()
		case <-activity.GetWorkerStopChannel(ctx):
			t.Stop()
			return MigrationResult{}, temporal.NewApplicationErrorWithOptions(errStopping.Error(), errTypeStopping,
				temporal.ApplicationErrorOptions{NextRetryDelay: 100 * time.Millisecond})
		}
	}
	for ; at.Next < m.To; at.Next++ {
		activity.RecordHeartbeat(ctx, at)
		err := mover.DropBatch(ctx, m.batch(at.Next))
		switch {
		case err == nil || errors.Is(err, tiers.ErrOrder) && refused.covers(at.Next): // its move has not come so far
		case ctx.Err() == nil && refusedMove(err): // it moved, and has been ended or pinned since
			if !refused.covers(at.Next) {
				at.refuse(Refusal{at.Next, at.Next + 1, whyRefused(err)})
			}
		default:
			return MigrationResult{}, migrateError(ctx, m.Dataset, at.Next, err)
		}
	}
	return at.MigrationResult, nil
}

func (a *activities) awaitMove(ctx context.Context, moved <-chan error, beat <-chan time.Time, at moveProgress) error {
	for {
		select {
		case err := <-moved:
			return err
		case <-beat:
			activity.RecordHeartbeat(ctx, at)
		}
	}
}

func migrateError(ctx context.Context, dataset string, seq uint64, err error) error {
	if ctx.Err() != nil {
		return temporal.NewCanceledError()
	}
	msg := fmt.Sprintf("%s#%d: %s", dataset, seq, clip(err.Error(), maxReasonBytes))
	if errors.Is(err, events.ErrApprovalRequired) {
		// Each attempt is a move of its own, and each batch: nobody could answer them all.
		return temporal.NewNonRetryableApplicationError(msg+": the move of one batch asks nobody for approval: let the rule be about "+events.TypeMigrationRequested+", which is asked once for the whole range", errTypePermanent, nil)
	}
	if refusedMove(err) {
		return temporal.NewNonRetryableApplicationError(msg, errTypePermanent, nil)
	}
	return temporal.NewApplicationError(msg, errTypeStage)
}
