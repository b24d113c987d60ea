package workflows

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/stages"
)

// heartbeatTimeout is how long a silent attempt is believed to be alive: after a
// kill -9 its stage runs again this much later at most. The activity beats every
// heartbeatEvery, so several beats may be lost.
const (
	heartbeatTimeout = 5 * time.Second
	heartbeatEvery   = time.Second
)

// workflowTaskTimeout is the same for a workflow's next step (the server's default
// is 10 s). A step is quick; while its local activities are not, the SDK asks for
// more time.
const workflowTaskTimeout = 5 * time.Second

// StageCall is a stage called from a workflow of the user's own.
type StageCall struct {
	// Pipeline and Stage name the implementation: a stage of a pipeline of the
	// worker's or, with Pipeline empty, one of WorkerConfig.Stages.
	Pipeline, Stage string
	Kind            string           // default KindPreprocess; decides nothing, but is shown
	Params          any              // marshalled as JSON; the stage's fixed parameters
	RunParams       json.RawMessage  // laid over Params
	Inputs          []stages.Binding // datasets and models
	Output          string           // dataset to write; empty: none
	Seal            bool             // seal Output when the stage completes
	Model           string           // model to make versions of
	Cause           string           // id of the event that led here
	Actor           string           // on whose behalf the stage works
	Seed            uint64           // the stage's only source of randomness
	ChildProcess    bool             // run in a separate worker process
	Worker          string           // run in one of another program, see InWorker
	Timeout         time.Duration    // of one attempt; default DefaultTimeout
	Attempts        int              // default DefaultAttempts
	TaskQueue       string           // default: the workflow's own

	Labels     []string                // declared for what the stage makes
	Declassify *label.Declassification // labels that it may take off; nil: none
}

// StageFuture is a stage's result to come. Its Future goes into selectors, which
// take no others than Temporal's own.
type StageFuture struct{ Future workflow.Future }

// Get blocks until the stage has ended.
func (f StageFuture) Get(ctx workflow.Context) (stages.Result, error) {
	var r stages.Result
	err := f.Future.Get(ctx, &r)
	return r, err
}

// ExecuteStage runs a stage as part of the calling workflow, with the heartbeats,
// retries and resumption that stages of a pipeline have. The run's id is the
// workflow's, so that must be unique for ever. Call it again before the first
// has ended to let a consumer overlap its producer.
func ExecuteStage(ctx workflow.Context, call StageCall) StageFuture {
	params, err := json.Marshal(call.Params)
	if call.Params == nil {
		params = nil
	}
	if err != nil {
		future, set := workflow.NewFuture(ctx)
		set.SetError(temporal.NewNonRetryableApplicationError(
			fmt.Sprintf("stage %s: parameters do not marshal: %v", call.Stage, err), errTypePermanent, err))
		return StageFuture{future}
	}
	if call.Kind == "" {
		call.Kind = KindPreprocess
	}
	if call.Timeout <= 0 {
		call.Timeout = DefaultTimeout
	}
	if call.Attempts <= 0 {
		call.Attempts = DefaultAttempts
	}
	return executeAssignment(ctx, stages.Assignment{
		Pipeline: call.Pipeline, Run: workflow.GetInfo(ctx).WorkflowExecution.ID, Stage: call.Stage, Kind: call.Kind,
		Cause: call.Cause, Actor: call.Actor, Seed: call.Seed, Params: params, RunParams: call.RunParams, Inputs: call.Inputs,
		Output: call.Output, Seal: call.Seal, Model: call.Model, ChildProcess: call.ChildProcess || call.Worker != "", Worker: call.Worker,
		Labels: call.Labels, Declassify: call.Declassify,
	}, "", call.Timeout, call.Attempts, call.TaskQueue)
}

func executeAssignment(ctx workflow.Context, a stages.Assignment, id string, timeout time.Duration, attempts int, queue string) StageFuture {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue:           queue,
		ActivityID:          id,
		StartToCloseTimeout: timeout,
		HeartbeatTimeout:    heartbeatTimeout,
		// A stage that is told to stop is waited for: what it holds is given back
		// before the run ends.
		WaitForCancellation: true,
		Summary:             summaryOf(a),
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 2, MaximumInterval: 10 * time.Second,
			MaximumAttempts: int32(attempts), NonRetryableErrorTypes: []string{errTypePermanent},
		},
	})
	return StageFuture{workflow.ExecuteActivity(ctx, activityName(a.Kind), a)}
}

// summaryOf is the line the Temporal UI shows beside the activity.
func summaryOf(a stages.Assignment) string {
	var s strings.Builder
	s.WriteString(a.Stage)
	for i, b := range a.Inputs {
		sep := ", "
		if i == 0 {
			sep = " <- "
		}
		s.WriteString(sep + b.Name)
	}
	switch {
	case a.Output != "":
		s.WriteString(" -> " + a.Output)
	case a.Model != "":
		s.WriteString(" => " + a.Model)
	}
	return clip(s.String(), 190)
}

// activityName is the activity type of a kind of stage: the UI's timeline shows it.
func activityName(kind string) string { return "stokehold.stage." + kind }

func allKinds() []string {
	return []string{KindIngest, KindPreprocess, KindTrain, KindFineTune, KindEvaluate, KindDeploy, KindMonitor}
}
