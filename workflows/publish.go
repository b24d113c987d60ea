package workflows

import (
	"context"
	"errors"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
)

// Small steps are local activities: they run in the workflow's own process
// within its task, so they cost no trip through the server's queues.
const (
	publishActivity = "stokehold.publish"
	aliasActivity   = "stokehold.alias"
	notifyActivity  = "stokehold.notify"
	fireActivity    = "stokehold.fire"
	lookActivity    = "stokehold.look"
)

// announcement is an event to publish: what is needed to build it again, so that
// a repeated step publishes the same event.
type announcement struct {
	Type     string    `json:"type"`
	ID       string    `json:"id"`
	Source   string    `json:"source"`
	Subject  string    `json:"subject"`
	Time     time.Time `json:"time"`
	Pipeline string    `json:"pipeline"`
	Run      string    `json:"run,omitempty"`
	Cause    string    `json:"cause,omitempty"`
	Actor    string    `json:"actor,omitempty"`
	Data     any       `json:"data"`
}

func (a announcement) event() (events.Event, error) {
	e, err := events.New(a.Type, a.Source, a.Subject, a.ID, a.Time, a.Data)
	if err != nil {
		return events.Event{}, err
	}
	for name, value := range map[string]string{events.ExtPipeline: a.Pipeline, events.ExtRun: a.Run, events.ExtCause: a.Cause, events.ExtActor: a.Actor} {
		if value != "" {
			e.SetExtension(name, value)
		}
	}
	return e, nil
}

// publish is the local activity behind every event of the workflows' own. An
// event that is refused is not tried again.
func (a *activities) publish(ctx context.Context, list []announcement) error {
	evs := make([]events.Event, 0, len(list))
	for _, an := range list {
		e, err := an.event()
		if err != nil {
			return temporal.NewNonRetryableApplicationError(err.Error(), errTypePermanent, err)
		}
		evs = append(evs, e)
	}
	err := a.publisher.Publish(ctx, evs...)
	if errors.Is(err, events.ErrApprovalRequired) && len(list) == 1 {
		return approvalError(stageFailure{Reason: clip(err.Error(), maxReasonBytes)}, err, stages.Progress{})
	}
	if err != nil && (errors.Is(err, events.ErrDenied) || errors.Is(err, events.ErrInvalid) ||
		errors.Is(err, events.ErrUnknownType) || errors.Is(err, events.ErrTooLarge) || errors.Is(err, events.ErrApprovalRequired)) {
		return temporal.NewNonRetryableApplicationError(err.Error(), errTypePermanent, err)
	}
	return err
}

// alias resolves a model alias; "" where it is not set.
func (a *activities) alias(ctx context.Context, model, alias string) (string, error) {
	if a.aliases == nil {
		return "", temporal.NewNonRetryableApplicationError("this worker has no model registry", errTypePermanent, nil)
	}
	v, err := a.aliases.Alias(ctx, model, alias)
	if errors.Is(err, models.ErrNotFound) {
		return "", nil
	}
	return v.ID, err
}

// local sets up a local activity: quick tries at first, then patient ones, for
// ten minutes in all, which a restart of the bus fits into.
func local(ctx workflow.Context, summary string) workflow.Context {
	return workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{
		StartToCloseTimeout:    10 * time.Second,
		ScheduleToCloseTimeout: 10 * time.Minute,
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval: 50 * time.Millisecond, BackoffCoefficient: 2, MaximumInterval: 10 * time.Second,
			NonRetryableErrorTypes: []string{errTypePermanent},
		},
		Summary: summary,
	})
}

func publishEvents(ctx workflow.Context, list ...announcement) error {
	return workflow.ExecuteLocalActivity(local(ctx, clip("publish "+list[0].Type, 190)), publishActivity, list).Get(ctx, nil)
}

func resolveAlias(ctx workflow.Context, model, alias string) (string, error) {
	var version string
	err := workflow.ExecuteLocalActivity(local(ctx, clip("resolve "+model+"@"+alias, 190)), aliasActivity, model, alias).Get(ctx, &version)
	return version, err
}

func (in *interpreter) announce(ctx workflow.Context, typ string, data any) announcement {
	return announcement{
		Type: typ, ID: in.run + "/" + typ, Source: "/stokehold/" + in.args.Definition.Name, Subject: in.run,
		Time: workflow.Now(ctx), Pipeline: in.args.Definition.Name, Run: in.run, Cause: in.args.Input.Cause, Actor: in.args.Input.Actor, Data: data,
	}
}

func (in *interpreter) announceStarted(ctx workflow.Context) announcement {
	return in.announce(ctx, events.TypeRunStarted, events.RunStarted{
		Pipeline: in.args.Definition.Name, Run: in.run, Trigger: in.args.Input.Trigger, Cause: in.args.Input.Cause,
	})
}

func (in *interpreter) publishEnded(ctx workflow.Context, seconds float64, failure error) error {
	name := in.args.Definition.Name
	if failure == nil {
		return publishEvents(ctx, in.announce(ctx, events.TypeRunCompleted, events.RunCompleted{Pipeline: name, Run: in.run, Seconds: seconds}))
	}
	data := events.RunFailed{Pipeline: name, Run: in.run, Reason: reason(failure)}
	switch {
	case in.failed != nil:
		data.Stage, data.Reason = in.failed.def.Name, in.failed.failure.Reason
	case temporal.IsCanceledError(failure):
		data.Reason = "the run was cancelled"
	}
	return publishEvents(ctx, in.announce(ctx, events.TypeRunFailed, data))
}

// notify tells the trigger that started the run that it has ended. A trigger
// that misses it looks for itself.
func (in *interpreter) notify(ctx workflow.Context) {
	if in.args.Notify == "" {
		return
	}
	if err := workflow.ExecuteLocalActivity(local(ctx, "tell the trigger"), notifyActivity, in.args.Notify, in.run).Get(ctx, nil); err != nil {
		workflow.GetLogger(ctx).Warn("the trigger was not told that the run ended; it will look", "trigger", in.args.Notify, "error", err)
	}
}
