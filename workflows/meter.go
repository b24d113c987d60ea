package workflows

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/activity"

	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/stages"
)

// Budgets keeps the books of what stages use. *budget.Ledger is the one outside
// tests.
type Budgets interface {
	budget.Recorder
	Standing(ctx context.Context, pipeline, run string) (budget.Standing, error)
}

// Accelerated is an optional power of an Executor: it says what an attempt holds
// while it runs. Without it that is one budget.CPU. *stages.Runtime has it.
type Accelerated interface {
	Device(a stages.Assignment) stages.Device
}

const (
	// reportEvery is how often what a stage uses goes on the books; sooner where a
	// budget would not last as long.
	reportEvery = 5 * time.Second
	reportSoon  = 50 * time.Millisecond
	// unreported is how long a stage goes on while the books cannot be written: what
	// it uses meanwhile is put on them later.
	unreported = 30 * time.Second
	// settleFor is how long the last report is tried.
	settleFor      = 30 * time.Second
	settleStopping = 5 * time.Second
)

// pausedError is why a stage is paused: a budget has nothing left, or nobody can
// tell.
type pausedError struct{ err error }

func (e *pausedError) Error() string { return e.err.Error() }
func (e *pausedError) Unwrap() error { return e.err }

// refusal turns an error of the books into what becomes of the stage. What no
// retry mends fails it.
func refusal(err error) error {
	if errors.Is(err, budget.ErrConflict) || errors.Is(err, budget.ErrInvalid) {
		return stages.Permanent(fmt.Errorf("what the stage uses cannot be put on the books: %w", err))
	}
	return &pausedError{err}
}

// metered executes a stage while its use goes on the books. It does not begin one
// that has nothing left to use, and stops one that has used all.
func (a *activities) metered(ctx context.Context, cancel context.CancelCauseFunc, s stages.Stage, as stages.Assignment, h stages.Hooks, beat *heart) (stages.Result, error) {
	ended := make(chan struct{})
	if a.budgets == nil {
		return a.execute(ctx, s, as, h, ended)
	}
	b, err := a.openBooks(ctx, as, h.Previous.Used)
	if err != nil {
		return stages.Result{}, err
	}
	beat.meter(b.meter.Snapshot)
	h.Idle = b.meter.Idle
	go b.keep(ctx, cancel)
	res, err := a.execute(ctx, s, as, h, ended)
	select {
	case <-ended:
	default:
		// It was told to stop and did not. It still holds what it holds.
		go func() {
			<-ended
			_ = b.close(context.WithoutCancel(ctx), settleFor) // logged; nobody waits for it
		}()
		return res, err
	}
	patience := settleFor
	if ctx.Err() != nil {
		patience = settleStopping
	}
	if unsettled := b.close(context.WithoutCancel(ctx), patience); unsettled != nil && err == nil {
		// The result would be there and what it cost would not.
		return stages.Result{}, refusal(unsettled)
	}
	return res, err
}

// books are those of one attempt.
type books struct {
	a     *activities
	as    stages.Assignment
	meter *budget.Meter
	left  budget.Standing
	quit  chan struct{}
}

// openBooks puts what the attempt before left unreported on the books and opens
// an account for this one.
func (a *activities) openBooks(ctx context.Context, as stages.Assignment, before *budget.Report) (*books, error) {
	if before != nil && before.Run == as.Run && before.Stage == as.Stage && before.Attempt < as.Attempt {
		switch _, err := a.budgets.Record(ctx, *before); {
		case errors.Is(err, budget.ErrConflict), errors.Is(err, budget.ErrInvalid):
			a.log.Error("what an earlier attempt used cannot be put on the books", "run", as.Run, "stage", as.Stage, "attempt", before.Attempt, "error", err)
		case err != nil:
			return nil, refusal(err)
		}
	}
	var device stages.Device
	if x, ok := a.executor.(Accelerated); ok {
		device = x.Device(as)
	}
	b := &books{a: a, as: as, quit: make(chan struct{})}
	b.meter = budget.NewMeter(a.budgets, budget.Attempt{
		Pipeline: as.Pipeline, Run: as.Run, Stage: as.Stage, Call: callOf(ctx, as), Attempt: as.Attempt,
		Accelerator: device.Accelerator, Count: device.Count,
	}, nil)
	var err error
	if b.left, err = b.meter.Report(ctx, false); err != nil {
		return nil, refusal(err)
	}
	kind, _ := b.meter.Accelerator()
	if err := b.left.Exhausted(kind); err != nil {
		_ = b.close(context.WithoutCancel(ctx), settleStopping) // nothing was used
		return nil, refusal(err)
	}
	return b, nil
}

// callOf tells calls of a stage apart that are of workflows of the user's own,
// which may call one several times and continue as new. Those of a pipeline are
// named by their stage.
func callOf(ctx context.Context, as stages.Assignment) string {
	info := activity.GetInfo(ctx)
	if info.ActivityID == as.Stage {
		return ""
	}
	return info.WorkflowExecution.RunID + "/" + info.ActivityID
}

// keep reports until the books are closed. It cancels the stage when a budget has
// nothing left, or when nothing could be reported for too long.
func (b *books) keep(ctx context.Context, cancel context.CancelCauseFunc) {
	kind, count := b.meter.Accelerator()
	last := time.Now()
	timer := time.NewTimer(max(reportSoon, b.left.Lasts(kind, count, reportEvery)))
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-b.quit:
			return
		}
		left, err := b.report(ctx, false)
		var stop error
		switch {
		case err == nil:
			last = time.Now()
			if out := left.Exhausted(kind); out != nil {
				stop = refusal(out)
			}
		case ctx.Err() != nil: // it is being stopped; the last report says it all
		case errors.Is(err, budget.ErrConflict), errors.Is(err, budget.ErrInvalid), time.Since(last) > unreported:
			stop = refusal(err)
		default:
			b.a.log.Warn("what a stage uses cannot be put on the books: trying again", "run", b.as.Run, "stage", b.as.Stage, "error", err)
		}
		if stop != nil {
			cancel(stop)
		}
		timer.Reset(max(reportSoon, left.Lasts(kind, count, reportEvery)))
		if err != nil || stop != nil {
			timer.Reset(time.Second)
		}
	}
}

// report is bounded by the closing of the books.
func (b *books) report(ctx context.Context, final bool) (budget.Standing, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if !final {
		go func() {
			select {
			case <-b.quit:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	return b.meter.Report(ctx, final)
}

// close stops the meter and makes the last report, for as long as it takes or
// patience lasts.
func (b *books) close(ctx context.Context, patience time.Duration) error {
	b.meter.Idle() // for good
	close(b.quit)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		_, err := b.report(ctx, true)
		if err == nil {
			return nil
		}
		again := time.NewTimer(200 * time.Millisecond)
		select {
		case <-again.C:
		case <-ctx.Done():
		}
		again.Stop()
		if ctx.Err() != nil || errors.Is(err, budget.ErrConflict) || errors.Is(err, budget.ErrInvalid) {
			b.a.log.Error("what a stage used is not on the books yet", "run", b.as.Run, "stage", b.as.Stage, "attempt", b.as.Attempt, "error", err)
			return err
		}
	}
}
