package workflows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
)

// Executor runs one attempt of a stage to its end. *stages.Runtime is the one
// outside tests.
type Executor interface {
	Execute(ctx context.Context, s stages.Stage, a stages.Assignment, h stages.Hooks) (stages.Result, error)
}

// Publisher publishes events and returns once they are durable. *events.Bus is
// the one outside tests.
type Publisher interface {
	Publish(ctx context.Context, evs ...events.Event) error
}

// Aliases resolves model aliases; models.ErrNotFound where one is not set.
// *models.Registry is the one outside tests.
type Aliases interface {
	Alias(ctx context.Context, model, alias string) (models.Version, error)
}

// activities are what the interpreter, the triggers and the migration call.
type activities struct {
	client     client.Client
	executor   Executor
	publisher  Publisher
	aliases    Aliases
	migrator   Migrator
	tiers      TierPlanner
	approvals  Approvals
	budgets    Budgets // nil: nobody counts
	limits     Limits  // noLimits: it changes none
	log        *slog.Logger
	queue      string
	pipelines  map[string]*Definition
	stages     map[string]stages.Stage // by name, for calls without a pipeline
	attributes bool
	seed       uint64 // of runs that triggers start
	here       Place  // class and region of this worker
	now        func() time.Time
}

// stopGrace is how long a stage that was told to stop is waited for.
const stopGrace = 10 * time.Second

// errStopping is the cause of a context that ends because the worker stops.
var errStopping = errors.New("the worker is stopping")

// errCanceled is the cause of a context that ends because the run does.
var errCanceled = errors.New("the run was cancelled or another stage failed")

// runStage is the activity behind every kind of stage.
func (a *activities) runStage(ctx context.Context, as stages.Assignment) (stages.Result, error) {
	info := activity.GetInfo(ctx)
	as.Attempt = as.Prior + int(info.Attempt)
	stage, err := a.lookup(as)
	if err != nil {
		return stages.Result{}, err
	}
	hooks := stages.Hooks{Stage: a.stageOf(as.Pipeline), Class: a.here.Workers, Region: a.here.Region}
	if as.Resume != nil {
		hooks.Previous = *as.Resume
	}
	if activity.HasHeartbeatDetails(ctx) {
		if err := activity.GetHeartbeatDetails(ctx, &hooks.Previous); err != nil {
			a.log.Warn("the last attempt's progress cannot be read: the stage starts over", "run", as.Run, "stage", as.Stage, "error", err)
		}
	}
	beat := newHeart(ctx, hooks.Previous)
	hooks.Report = beat.report
	stageCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopBeat := beat.start(ctx, cancel)
	res, err := a.metered(stageCtx, cancel, stage, as, hooks, beat)
	stopBeat()
	if err == nil {
		if err = checkResult(res); err == nil {
			return res, nil
		}
	}
	return stages.Result{}, a.stageError(stageCtx, as, err, beat.last())
}

func (a *activities) lookup(as stages.Assignment) (stages.Stage, error) {
	if d, ok := a.pipelines[as.Pipeline]; ok {
		if s, ok := d.impl[as.Stage]; ok {
			return s, nil
		}
	}
	if s, ok := a.stages[as.Stage]; ok && as.Pipeline == "" {
		return s, nil
	}
	// Retryable: during a rollout a worker that has the stage may be there soon.
	return nil, temporal.NewApplicationErrorWithOptions(
		fmt.Sprintf("this worker has no stage %q of pipeline %q: give it the pipeline that the run is of", as.Stage, as.Pipeline),
		"stokehold.UnknownStage", temporal.ApplicationErrorOptions{Details: []any{stageFailure{Stage: as.Stage, Attempts: as.Attempt}}})
}

// stageOf finds the other stages of a pipeline, by which the runtime knows what they
// will read.
func (a *activities) stageOf(pipeline string) func(string) (stages.Stage, json.RawMessage) {
	d, ok := a.pipelines[pipeline]
	if !ok {
		return nil
	}
	return func(name string) (stages.Stage, json.RawMessage) {
		for _, def := range d.Graph {
			if def.Name == name {
				return d.impl[name], def.Params
			}
		}
		return nil, nil
	}
}

// execute calls the executor on a goroutine of its own, so that a stage that
// does not stop when told cannot hold the worker for ever. ended is closed when it
// has stopped.
func (a *activities) execute(ctx context.Context, s stages.Stage, as stages.Assignment, h stages.Hooks, ended chan<- struct{}) (stages.Result, error) {
	type outcome struct {
		res stages.Result
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if p := recover(); p != nil {
				a.log.Error("stage panicked", "run", as.Run, "stage", as.Stage, "attempt", as.Attempt, "panic", p, "stack", string(debug.Stack()))
				o.err = fmt.Errorf("stage panicked: %v", p)
			}
			close(ended)
			done <- o
		}()
		o.res, o.err = a.executor.Execute(ctx, s, as, h)
	}()
	select {
	case o := <-done:
		return o.res, o.err
	case <-ctx.Done():
	}
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case o := <-done:
		return o.res, o.err
	case <-grace.C:
		return stages.Result{}, fmt.Errorf("the stage did not stop within %v of being told: %w", stopGrace, context.Cause(ctx))
	}
}

// stageError turns a stage's error into what Temporal does next.
func (a *activities) stageError(ctx context.Context, as stages.Assignment, err error, last stages.Progress) error {
	cause := context.Cause(ctx)
	var elsewhere *stages.ElsewhereError
	detail := stageFailure{Stage: as.Stage, Attempts: as.Attempt, Reason: clip(err.Error(), maxReasonBytes), Permanent: stages.IsPermanent(err)}
	var paused *pausedError
	switch {
	case errors.Is(cause, errCanceled):
		return temporal.NewCanceledError(detail)
	case errors.Is(cause, errStopping):
		return temporal.NewApplicationErrorWithOptions(errStopping.Error(), errTypeStopping,
			temporal.ApplicationErrorOptions{Cause: err, Details: []any{detail}, NextRetryDelay: 100 * time.Millisecond,
				Category: temporal.ApplicationErrorCategoryBenign})
	case errors.As(cause, &paused), errors.As(err, &paused):
		return a.pauseError(as, detail, paused, last)
	case errors.Is(err, events.ErrApprovalRequired):
		return approvalError(detail, err, last)
	case errors.As(err, &elsewhere):
		return elsewhereError(detail, elsewhere)
	case detail.Permanent:
		return temporal.NewApplicationErrorWithOptions(detail.Reason, errTypePermanent,
			temporal.ApplicationErrorOptions{NonRetryable: true, Details: []any{detail}})
	}
	return temporal.NewApplicationErrorWithOptions(detail.Reason, errTypeStage, temporal.ApplicationErrorOptions{Details: []any{detail}})
}

func checkResult(r stages.Result) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return stages.Permanent(fmt.Errorf("the result does not marshal, e.g. a metric is not finite: %w", err))
	}
	if len(raw) > MaxPayloadBytes {
		return stages.Permanent(fmt.Errorf("the result is %d bytes, at most %d are allowed: %w: put it into a dataset or the model registry", len(raw), MaxPayloadBytes, ErrTooLarge))
	}
	return nil
}

// heart sends the newest progress as a heartbeat, at a steady pace whatever the
// pace of the reports, and learns from the answers that the run was cancelled.
type heart struct {
	mu      sync.Mutex
	current stages.Progress
	used    func() *budget.Report // nil: nobody counts
	ctx     context.Context       // of the activity; a heart lives no longer
}

func newHeart(ctx context.Context, previous stages.Progress) *heart {
	// Until the stage reports, beats repeat what the last attempt left: a second
	// crash before the first report must not lose the checkpoint.
	return &heart{ctx: ctx, current: previous}
}

func (h *heart) report(p stages.Progress) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(p.Checkpoint) == 0 {
		p.Checkpoint = h.current.Checkpoint
	}
	h.current = p
}

func (h *heart) last() stages.Progress {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.current
	if h.used != nil {
		p.Used = h.used()
	}
	return p
}

// meter puts what the attempt has used into each beat.
func (h *heart) meter(used func() *budget.Report) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.used = used
}

func (h *heart) beat() { activity.RecordHeartbeat(h.ctx, h.last()) }

// start beats until the returned function is called, which beats once more. It
// cancels the stage when the activity is cancelled or the worker stops.
func (h *heart) start(ctx context.Context, cancel context.CancelCauseFunc) (stop func()) {
	quit, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(heartbeatEvery)
		defer tick.Stop()
		workerStop, ended := activity.GetWorkerStopChannel(ctx), ctx.Done()
		for {
			select {
			case <-tick.C:
				h.beat()
			case <-workerStop:
				cancel(errStopping)
				workerStop = nil
			case <-ended:
				cancel(errCanceled)
				ended = nil
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-stopped
		h.beat()
	}
}
