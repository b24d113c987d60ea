package workflows

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"github.com/stokehold/stokehold/events"
)

// fireRequest asks for one run.
type fireRequest struct {
	Pipeline string    `json:"pipeline"`
	Trigger  string    `json:"trigger"`
	Key      string    `json:"key"`
	Events   backlog   `json:"events"`
	Notify   string    `json:"notify"`
	Time     time.Time `json:"time"`
	Place    Place     `json:"place,omitzero"`
}

type fireResult struct {
	Run   string `json:"run"`
	Ended bool   `json:"ended,omitempty"` // the run existed already and is over
}

// fire starts the run of a trigger and says so. Doing it twice does it once: the
// run's id comes from the first of its events.
func (a *activities) fire(ctx context.Context, req fireRequest) (fireResult, error) {
	d, ok := a.pipelines[req.Pipeline]
	if !ok {
		return fireResult{}, fmt.Errorf("this worker has no pipeline %q", req.Pipeline)
	}
	params, err := req.Events.params()
	if err != nil {
		return fireResult{}, temporal.NewNonRetryableApplicationError(err.Error(), errTypePermanent, err)
	}
	name := req.Pipeline + "/" + req.Trigger
	in := RunInput{
		Run: req.Events.runKey(req.Trigger, req.Key), Params: params, Cause: req.Events.cause(), Seed: a.seed, Trigger: name, Place: req.Place,
	}
	res := fireResult{Run: RunID(req.Pipeline, in.Run)}
	_, err = Start(ctx, a.client, d, in, StartOptions{TaskQueue: a.queue, WithoutSearchAttributes: !a.attributes, notify: req.Notify})
	switch {
	case errors.Is(err, ErrRunExists):
		if res.Ended, err = a.look(ctx, res.Run); err != nil {
			return fireResult{}, err
		}
	case errors.Is(err, ErrTooLarge) || errors.Is(err, ErrSearchAttributes) || isBuildError(err):
		return fireResult{}, temporal.NewNonRetryableApplicationError(err.Error(), errTypePermanent, err)
	case err != nil:
		return fireResult{}, err
	}
	err = a.publish(ctx, []announcement{{
		Type: events.TypeTriggerFired, ID: res.Run + "/" + events.TypeTriggerFired, Source: "/stokehold/" + req.Pipeline, Subject: name,
		Time: req.Time, Pipeline: req.Pipeline, Run: res.Run, Cause: in.Cause,
		Data: events.TriggerFired{Trigger: name, Key: req.Key, Run: res.Run, Events: req.Events.ids()},
	}})
	var app *temporal.ApplicationError
	if errors.As(err, &app) && app.NonRetryable() {
		// The run has started and cannot be taken back; that governance keeps quiet
		// about it is its right.
		a.log.Warn("trigger.fired was refused", "run", res.Run, "error", err)
		err = nil
	}
	return res, err
}

func isBuildError(err error) bool {
	var b *BuildError
	return errors.As(err, &b)
}

// look reports whether a run is over, or gone.
func (a *activities) look(ctx context.Context, run string) (bool, error) {
	resp, err := a.client.DescribeWorkflowExecution(ctx, run, "")
	var missing *serviceerror.NotFound
	switch {
	case errors.As(err, &missing):
		return true, nil
	case err != nil:
		return false, err
	}
	return resp.GetWorkflowExecutionInfo().GetStatus() != enums.WORKFLOW_EXECUTION_STATUS_RUNNING, nil
}

// notify tells a trigger that its run has ended.
func (a *activities) notify(ctx context.Context, trigger, run string) error {
	err := a.client.SignalWorkflow(ctx, trigger, "", endedSignal, run)
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return nil // it has ended, so it does not wait
	}
	return err
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9._=-]{1,64}$`)

// keyToken is a key as part of an id: itself where that is safe, else its
// readable part and a hash.
func keyToken(key string) string {
	switch {
	case key == "":
		return "~"
	case plainKey.MatchString(key):
		return key
	}
	return fmt.Sprintf("%s~%016x", slug(key, 40), eventHash(key))
}

// TriggerID is the id of the workflow that holds a trigger's state for a key.
func TriggerID(pipeline, trigger, key string) string {
	return "trigger/" + pipeline + "/" + trigger + "/" + keyToken(key)
}

// TriggerStateOf asks a trigger's workflow for its state. A worker must be there
// to answer. ErrRunNotFound: the trigger has seen no event of that key.
func TriggerStateOf(ctx context.Context, c client.Client, pipeline, trigger, key string) (TriggerState, error) {
	id := TriggerID(pipeline, trigger, key)
	v, err := c.QueryWorkflow(ctx, id, "", stateQuery)
	var missing *serviceerror.NotFound
	switch {
	case errors.As(err, &missing):
		return TriggerState{}, fmt.Errorf("workflows: %s: %w", id, ErrRunNotFound)
	case err != nil:
		return TriggerState{}, fmt.Errorf("workflows: %s: %w", id, explain(err))
	}
	var s TriggerState
	if err := v.Get(&s); err != nil {
		return TriggerState{}, fmt.Errorf("workflows: %s: %w", id, err)
	}
	return s, nil
}
