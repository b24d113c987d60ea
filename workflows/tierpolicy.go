package workflows

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/tiers/policy"
)

// TierPlanner says what the tier policies want done. *policy.Runner is one.
type TierPlanner interface {
	// PlanTiers looks at a bounded number of batches from the cursor on. It changes
	// nothing.
	PlanTiers(ctx context.Context, at policy.Cursor) (policy.Step, error)
	// ExpireTier carries out a task whose action is policy.Expire. Repeatable.
	ExpireTier(ctx context.Context, t policy.Task) (int, error)
}

// TierPolicyWorkflow is the name of the workflow that carries out tier policies.
const TierPolicyWorkflow = "stokehold.tier-policies"

const (
	planTiersActivity  = "stokehold.plan-tiers"
	expireTierActivity = "stokehold.expire-tier"
	// migrationEndActivity looks at a migration that a pass did not wait for.
	migrationEndActivity = "stokehold.migration-end"
	// tierMoves is how many migrations of tier policies run at once. Store's own
	// bounds (Config.MoveBytesPerSecond, MoveConcurrency) count for each besides.
	tierMoves = 4
	// tierPatience is how long a pass waits for a migration, which goes on alone then.
	tierPatience = 10 * time.Minute
	// tierSteps is how many steps one execution's history holds.
	tierSteps = 20
	// maxTierHolds bounds the refused tasks that are remembered; tierHold is how many
	// passes one is left alone for at most.
	maxTierHolds = 256
	tierHold     = 64
	// holdParts marks executions that leave parts of tasks alone.
	holdParts = "hold-parts"
	// tierRejected is how many passes a task is left alone at least that people said no
	// to, or nothing in time: they are asked again, but not each hour.
	tierRejected = 1440
	// maxTierWaits bounds the migrations under way that passes do not wait for.
	maxTierWaits = 256
	// waitsVersion marks executions that know of those.
	waitsVersion = "tier-migrations-that-wait"
)

// tierState goes from execution to execution.
type tierState struct {
	At    policy.Cursor `json:"at,omitzero"`
	Pass  uint64        `json:"pass"`
	Holds []tierRefusal `json:"holds,omitempty"` // oldest first
	// Waits are tasks whose migrations a pass did not wait for, oldest first: people have
	// to approve them, or they take long. What overlaps one is left alone until it is over:
	// another range would be another question.
	Waits []policy.Task `json:"waits,omitempty"`
}

// tierRefusal is a task that was refused or failed: it is left alone for some
// passes, twice as many each time.
type tierRefusal struct {
	Task  policy.Task `json:"task"`
	Until uint64      `json:"until"` // pass
	Wait  uint64      `json:"wait"`
}

func (r tierRefusal) same(t policy.Task) bool {
	return r.Task.Dataset == t.Dataset && r.Task.From == t.From && r.Task.Decision == t.Decision
}

// held reports whether a task is left alone. Of executions that began before parts of
// tasks were.
func (s *tierState) held(t policy.Task) bool {
	return slices.ContainsFunc(s.Holds, func(r tierRefusal) bool { return r.same(t) && s.Pass < r.Until })
}

// free returns the parts of a task that are not left alone in this pass.
func (s *tierState) free(t policy.Task) []policy.Task {
	parts := []policy.Task{t}
	for _, r := range s.Holds {
		if s.Pass >= r.Until || r.Task.Decision != t.Decision {
			continue
		}
		var left []policy.Task
		for _, p := range parts {
			left = append(left, p.Without(r.Task)...)
		}
		parts = left
	}
	return parts
}

// settle notes what has come of a task: which of its parts were refused or failed, which are
// left alone for least passes or more.
func (s *tierState) settle(t policy.Task, least uint64, failed ...policy.Task) {
	var was []tierRefusal
	s.Holds = slices.DeleteFunc(s.Holds, func(r tierRefusal) bool {
		if r.Task.Decision != t.Decision || !r.Task.Overlaps(t) {
			return false
		}
		was = append(was, r)
		return true
	})
	for _, part := range failed {
		wait := max(least, 1)
		for _, r := range was {
			if r.Task.Overlaps(part) {
				wait = max(wait, min(2*r.Wait, tierHold))
			}
		}
		s.leave(part, wait)
	}
}

// begun is the task whose migration is under way and overlaps t.
func (s *tierState) begun(t policy.Task) (policy.Task, bool) {
	i := slices.IndexFunc(s.Waits, func(w policy.Task) bool { return w.Dataset == t.Dataset && w.From < t.To && t.From < w.To })
	if i < 0 {
		return policy.Task{}, false
	}
	return s.Waits[i], true
}

func (s *tierState) wait(t policy.Task) {
	if len(s.Waits) == maxTierWaits {
		s.Waits = s.Waits[1:]
	}
	s.Waits = append(s.Waits, t)
}

func (s *tierState) over(t policy.Task) {
	s.Waits = slices.DeleteFunc(s.Waits, func(w policy.Task) bool { return w == t })
}

// settleAll is settle, of executions that began before parts of tasks were left alone.
func (s *tierState) settleAll(t policy.Task, failed bool, least uint64) {
	wait := max(least, 1)
	s.Holds = slices.DeleteFunc(s.Holds, func(r tierRefusal) bool {
		if !r.same(t) {
			return false
		}
		wait = max(least, min(2*r.Wait, tierHold))
		return true
	})
	if failed {
		s.leave(t, wait)
	}
}

// leave has a task left alone for some passes.
func (s *tierState) leave(t policy.Task, wait uint64) {
	if len(s.Holds) == maxTierHolds {
		s.Holds = s.Holds[1:]
	}
	s.Holds = append(s.Holds, tierRefusal{t, s.Pass + 1 + wait, wait})
}

// StartTierPolicies starts carrying out the tier policies of the workers of a task
// queue, or joins what does: there is one execution of it, whoever starts it how
// often. It goes on until it is cancelled, and does nothing while no worker has
// policies. It returns the workflow id.
func StartTierPolicies(ctx context.Context, c client.Client, o StartOptions) (string, error) {
	id := "tier-policies/" + queueOr(o.TaskQueue)
	opts := client.StartWorkflowOptions{
		ID: id, TaskQueue: queueOr(o.TaskQueue), WorkflowTaskTimeout: workflowTaskTimeout,
		WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		StaticSummary:            "carry out the tier policies",
	}
	if _, err := c.ExecuteWorkflow(ctx, opts, TierPolicyWorkflow, tierState{}); err != nil {
		return "", fmt.Errorf("workflows: start the tier policies: %w", explain(err))
	}
	return id, nil
}

// runTierPolicies is the workflow stokehold.tier-policies. Planning reads, and what
// is planned is done again without harm, so a pass may end anywhere.
func runTierPolicies(ctx workflow.Context, s tierState) error {
	planning := workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: 10 * time.Minute,
		RetryPolicy:         &temporal.RetryPolicy{InitialInterval: time.Second, BackoffCoefficient: 2, MaximumInterval: time.Minute},
		Summary:             "plan by the tier policies",
	})
	parts := workflow.GetVersion(ctx, holdParts, workflow.DefaultVersion, 1) > workflow.DefaultVersion
	waits := workflow.GetVersion(ctx, waitsVersion, workflow.DefaultVersion, 1) != workflow.DefaultVersion
	parked := map[string]bool{}
	listenForParked(ctx, parked)
	for range tierSteps {
		var step policy.Step
		if err := workflow.ExecuteActivity(planning, planTiersActivity, s.At).Get(ctx, &step); err != nil {
			return err
		}
		var tasks []policy.Task
		for _, t := range step.Tasks {
			if parts {
				tasks = append(tasks, s.free(t)...)
			} else if !s.held(t) {
				tasks = append(tasks, t)
			}
		}
		settle := func(t policy.Task, err error) {
			if parts {
				s.settle(t, leastHold(err), RefusedTasks(t, err)...)
			} else {
				s.settleAll(t, err != nil, leastHold(err))
			}
		}
		pass := &tierPass{s: &s, waits: waits, parked: parked, settle: settle}
		if err := pass.carryOut(ctx, tasks, step.Grace); err != nil {
			return err
		}
		if s.At = step.Next; step.Done {
			s.At = policy.Cursor{}
			s.Pass++
			if err := workflow.Sleep(ctx, max(step.Every, time.Second)); err != nil {
				return err
			}
		}
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() {
			break
		}
	}
	return workflow.NewContinueAsNewError(ctx, TierPolicyWorkflow, s)
}

// listenForParked takes the word of migrations that wait for people, by workflow id.
func listenForParked(ctx workflow.Context, parked map[string]bool) {
	root, _ := workflow.NewDisconnectedContext(ctx)
	workflow.Go(root, func(ctx workflow.Context) {
		told := workflow.GetSignalChannel(ctx, waitsSignal)
		for {
			var id string
			told.Receive(ctx, &id)
			parked[id] = true
		}
	})
}

// tierPass carries out the tasks of a pass.
type tierPass struct {
	s      *tierState
	waits  bool            // migrations that wait are remembered; false: of an execution from before
	parked map[string]bool // migrations that said that they wait for people
	settle func(policy.Task, error)
}

// carryOut does what a step asks for, a few tasks at a time, and waits for it.
func (p *tierPass) carryOut(ctx workflow.Context, tasks []policy.Task, grace time.Duration) error {
	slots, wg := workflow.NewSemaphore(ctx, tierMoves), workflow.NewWaitGroup(ctx)
	for _, t := range tasks {
		if begun, ok := p.s.begun(t); ok && !p.ended(ctx, begun) {
			continue
		}
		if err := slots.Acquire(ctx, 1); err != nil {
			return err
		}
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			defer slots.Release(1)
			err := p.carryOutTask(ctx, t, grace)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				workflow.GetLogger(ctx).Warn("a tier policy was not carried out; it is left alone for some passes",
					"policy", t.Decision.Reason(), "dataset", t.Dataset, "from", t.From, "to", t.To, "error", err)
			}
			p.settle(t, err)
		})
	}
	wg.Wait(ctx)
	return ctx.Err()
}

// leastHold is how many passes what failed so is left alone at least.
func leastHold(err error) uint64 {
	var app *temporal.ApplicationError
	if errors.As(err, &app) && app.Type() == errTypeRejected {
		return tierRejected
	}
	return 1
}

// ended looks whether the migration of a task that a pass did not wait for is over. How
// it ended is seen from what the next pass plans; only that people said no is remembered.
func (p *tierPass) ended(ctx workflow.Context, t policy.Task) bool {
	var end migrationEnd
	id := TierMigration(t, 0).workflowID()
	if err := workflow.ExecuteLocalActivity(local(ctx, clip("look at "+id, 190)), migrationEndActivity, id).Get(ctx, &end); err != nil {
		return false // looked at again in the next pass
	}
	if !end.Over {
		return false
	}
	p.s.over(t)
	delete(p.parked, id)
	if end.Rejected {
		p.settle(t, temporal.NewNonRetryableApplicationError("people said no", errTypeRejected, nil))
		return false
	}
	return true
}

func (p *tierPass) carryOutTask(ctx workflow.Context, t policy.Task, grace time.Duration) error {
	if t.Decision.Action == policy.Expire {
		ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
			StartToCloseTimeout: 10 * time.Minute,
			RetryPolicy: &temporal.RetryPolicy{
				InitialInterval: time.Second, BackoffCoefficient: 2, MaximumInterval: time.Minute, MaximumAttempts: 5,
				NonRetryableErrorTypes: []string{errTypePermanent},
			},
			Summary: clip("expire batches of "+t.Dataset, 190),
		})
		return workflow.ExecuteActivity(ctx, expireTierActivity, t).Get(ctx, nil)
	}
	m := TierMigration(t, grace)
	opts := workflow.ChildWorkflowOptions{
		WorkflowID: m.workflowID(), WorkflowTaskTimeout: workflowTaskTimeout,
		ParentClosePolicy: enums.PARENT_CLOSE_POLICY_ABANDON,
		StaticSummary:     m.summary(),
	}
	// A migration is over by itself: what is cancelled here is the waiting.
	moving, _ := workflow.NewDisconnectedContext(ctx)
	delete(p.parked, opts.WorkflowID)
	child := workflow.ExecuteChildWorkflow(workflow.WithChildOptions(moving, opts), MigrateWorkflow, m)
	var err error
	patience, enough := workflow.WithCancel(ctx)
	defer enough()
	going := true
	parked, set := workflow.NewFuture(ctx)
	workflow.Go(patience, func(ctx workflow.Context) {
		set.SetError(workflow.Await(ctx, func() bool { return p.waits && p.parked[opts.WorkflowID] }))
	})
	workflow.NewSelector(ctx).
		AddFuture(child, func(f workflow.Future) { err, going = f.Get(ctx, nil), false }).
		AddFuture(workflow.NewTimer(patience, tierPatience), func(workflow.Future) {}).
		AddFuture(parked, func(workflow.Future) {}).
		AddReceive(ctx.Done(), func(workflow.ReceiveChannel, bool) {}).
		Select(ctx)
	var started *temporal.ChildWorkflowExecutionAlreadyStartedError
	if errors.As(err, &started) { // somebody moves the same batches
		err, going = nil, true
	}
	if going && p.waits {
		p.s.wait(t)
	}
	return err
}

// RefusedTasks returns what is left of a task whose migration came to err: the parts
// that were refused, all of it if it failed, nothing if it did not.
func RefusedTasks(t policy.Task, err error) []policy.Task {
	if err == nil {
		return nil
	}
	r, ok := refusedBy(err)
	if !ok {
		return []policy.Task{t}
	}
	parts := make([]policy.Task, 0, len(r.Refusals))
	for _, no := range r.Refusals {
		part := t
		if part.From, part.To = max(t.From, no.From), min(t.To, no.To); part.From < part.To {
			parts = append(parts, part)
		}
	}
	return parts
}

// migrationEnd is whether a migration is over, and that people said no to it.
type migrationEnd struct {
	Over     bool `json:"over"`
	Rejected bool `json:"rejected,omitempty"`
}

// migrationEnd is the local activity that looks at a migration.
func (a *activities) migrationEnd(ctx context.Context, id string) (migrationEnd, error) {
	over, err := a.look(ctx, id)
	if err != nil || !over {
		return migrationEnd{}, err
	}
	err = a.client.GetWorkflow(ctx, id, "").Get(ctx, nil)
	var app *temporal.ApplicationError
	return migrationEnd{Over: true, Rejected: errors.As(err, &app) && app.Type() == errTypeRejected}, ctx.Err()
}

// TierMigration is the migration that a task of a tier policy asks for. grace is that
// of Migration.
func TierMigration(t policy.Task, grace time.Duration) Migration {
	m := Migration{Dataset: t.Dataset, From: t.From, To: t.To, Reason: t.Decision.Reason()}
	if t.Decision.Action == policy.Evict {
		m.Evict, m.Grace = true, grace
	}
	return m
}

func (a *activities) planTiers(ctx context.Context, at policy.Cursor) (policy.Step, error) {
	if a.tiers == nil {
		return policy.Step{}, temporal.NewApplicationError("this worker plans no tiers: set WorkerConfig.Tiers", errTypeStage)
	}
	step, err := a.tiers.PlanTiers(ctx, at)
	if err != nil {
		return step, temporal.NewApplicationError(clip(err.Error(), maxReasonBytes), errTypeStage)
	}
	return step, nil
}

func (a *activities) expireTier(ctx context.Context, t policy.Task) (int, error) {
	if a.tiers == nil {
		return 0, temporal.NewApplicationError("this worker plans no tiers: set WorkerConfig.Tiers", errTypeStage)
	}
	n, err := a.tiers.ExpireTier(ctx, t)
	if err == nil || ctx.Err() != nil {
		return n, err
	}
	if msg := clip(err.Error(), maxReasonBytes); refusedMove(err) {
		return n, temporal.NewNonRetryableApplicationError(msg, errTypePermanent, nil)
	}
	return n, temporal.NewApplicationError(clip(err.Error(), maxReasonBytes), errTypeStage)
}
