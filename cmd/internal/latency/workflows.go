package main

import (
	"context"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

const (
	signalName          = "work"
	childSignal         = "child"
	updateName          = "update"
	conflictUseExisting = enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
)

// handled tells the measuring round that its signal was handled. Workflow code may not normally reach outside;
// here worker and round share a process and nothing is ever replayed from another.
var handled = make(chan int, 1024) //nolint:gochecknoglobals // workflow functions have no receiver to hold it

func register(w worker.Worker) {
	for _, wf := range []any{emptyWorkflow, oneActivity, threeActivities, threeRemote, threeLocal, longWorkflow} {
		w.RegisterWorkflow(wf)
	}
	w.RegisterActivity(step)
}

func step(context.Context) error { return nil }

func emptyWorkflow(workflow.Context) error { return nil }

func activities(ctx workflow.Context, n int, eager bool) error {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: time.Minute, DisableEagerExecution: !eager,
	})
	for range n {
		if err := workflow.ExecuteActivity(ctx, step).Get(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

func oneActivity(ctx workflow.Context) error     { return activities(ctx, 1, true) }
func threeActivities(ctx workflow.Context) error { return activities(ctx, 3, true) }
func threeRemote(ctx workflow.Context) error     { return activities(ctx, 3, false) }

func threeLocal(ctx workflow.Context) error {
	ctx = workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{StartToCloseTimeout: time.Minute})
	for range 3 {
		if err := workflow.ExecuteLocalActivity(ctx, step).Get(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

// longWorkflow handles signals and updates for ever.
func longWorkflow(ctx workflow.Context) error {
	if err := workflow.SetUpdateHandler(ctx, updateName, func(workflow.Context, int) error { return nil }); err != nil {
		return err
	}
	signals, children := workflow.GetSignalChannel(ctx, signalName), workflow.GetSignalChannel(ctx, childSignal)
	selector := workflow.NewSelector(ctx)
	selector.AddReceive(signals, func(c workflow.ReceiveChannel, _ bool) {
		var i int
		c.Receive(ctx, &i)
		if !workflow.IsReplaying(ctx) {
			handled <- i
		}
	})
	selector.AddReceive(children, func(c workflow.ReceiveChannel, _ bool) {
		var i int
		c.Receive(ctx, &i)
		if err := workflow.ExecuteChildWorkflow(ctx, emptyWorkflow).Get(ctx, nil); err == nil && !workflow.IsReplaying(ctx) {
			handled <- i
		}
	})
	for {
		selector.Select(ctx)
	}
}
