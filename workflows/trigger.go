package workflows

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/events"
)

// The update, the signal and the query of the workflow stokehold.trigger.
const (
	deliverName = "deliver"
	endedSignal = "run-ended"
	stateQuery  = "state"
)

const (
	// A trigger continues as new well before the server's limits of 2,000 updates
	// and 51,200 events, so that a replay stays quick.
	maxDeliveries = 1000
	maxHistory    = 6000
	// A trigger that saw nothing for this long ends; the next event starts it
	// again, without its memory of old events, which the bus has forgotten by then.
	idleAfter = 8 * 24 * time.Hour
	// lookFirst is when a trigger with events waiting first checks that the run it
	// waits for still exists, in case the message of its end was lost.
	lookFirst = 15 * time.Second
	lookMax   = 5 * time.Minute
	// retryStart is when a run that could not be started is tried again.
	retryStart = 15 * time.Second
)

// settings of a trigger travel with every delivery, so that a changed pipeline
// changes triggers that already exist.
type settings struct {
	Debounce   time.Duration `json:"debounce,omitempty"`
	Cooldown   time.Duration `json:"cooldown,omitempty"`
	EventTime  bool          `json:"event_time,omitempty"`
	MaxPending int           `json:"max_pending"`
}

func (t Trigger) settings() settings {
	return settings{t.Debounce, t.Cooldown, t.EventTime, t.maxPending()}
}

type triggerArgs struct {
	Pipeline string       `json:"pipeline"`
	Trigger  string       `json:"trigger"`
	Key      string       `json:"key"`
	Place    Place        `json:"place,omitzero"` // where governance routes these events
	State    TriggerState `json:"state"`
}

// TriggerState is what a trigger knows of its key. It answers the query "state".
type TriggerState struct {
	Received   int64     `json:"received"`   // events, duplicates included
	Duplicates int64     `json:"duplicates"` // seen before
	Suppressed int64     `json:"suppressed"`
	Fired      int64     `json:"fired"`            // runs started
	Active     string    `json:"active,omitempty"` // run that is not known to have ended
	Pending    backlog   `json:"pending"`
	LastStart  time.Time `json:"last_start,omitzero"` // of a run, by the clock
	LastEvent  time.Time `json:"last_event,omitzero"` // newest event time of a started run
	Arrived    time.Time `json:"arrived,omitzero"`    // when the newest pending event came
}

// triggerRun is a running trigger. As in the interpreter, nothing here may depend
// on anything but arguments and history.
type triggerRun struct {
	args    triggerArgs
	state   TriggerState
	seen    *seenSet
	set     settings
	inbox   workflow.Channel // deliveries taken by the update handler
	taken   int              // deliveries processed in this execution
	lookAt  time.Time        // when to check on the active run; zero: no need
	lookIn  time.Duration    // the interval after that
	retryAt time.Time        // when to try again to start a run
	touched time.Time        // when anything last happened
}

// runTrigger is the workflow stokehold.trigger. seen is a seenSet's memory.
func runTrigger(ctx workflow.Context, args triggerArgs, seen []byte) error {
	t := &triggerRun{
		args: args, state: args.State, seen: newSeenSet(seen),
		inbox: workflow.NewBufferedChannel(ctx, 1<<16), touched: workflow.Now(ctx),
	}
	if t.state.Active != "" {
		t.expectEnd(ctx)
	}
	if err := workflow.SetQueryHandler(ctx, stateQuery, func() (TriggerState, error) { return t.state, nil }); err != nil {
		return err
	}
	err := workflow.SetUpdateHandler(ctx, deliverName, func(ctx workflow.Context, d delivery) error {
		t.inbox.Send(ctx, d)
		return nil
	})
	if err != nil {
		return err
	}
	ended := workflow.GetSignalChannel(ctx, endedSignal)
	var idle, alarm timer
	for {
		// Everything that has come is taken before anything is decided, and before
		// continuing as new: nothing is left behind.
		for t.takeOne(ctx, ended) {
		}
		if err := t.fireIfDue(ctx); err != nil {
			return err
		}
		if t.takeAny(ended) {
			continue // came in while a run was being started
		}
		t.show(ctx)
		if t.full(ctx) && workflow.AllHandlersFinished(ctx) {
			args.State = t.state
			return workflow.NewContinueAsNewError(ctx, TriggerWorkflow, args, t.seen.bytes())
		}
		now := workflow.Now(ctx)
		quietFor := now.Sub(t.touched)
		limit := max(idleAfter, t.set.Cooldown+idleAfter)
		if quietFor >= limit && t.state.Active == "" && t.state.Pending.Count == 0 {
			return nil
		}
		idle.ensure(ctx, now.Add(max(limit-quietFor, time.Hour)), false)
		alarm.ensure(ctx, t.nextAlarm(), true)
		sel := workflow.NewSelector(ctx)
		sel.AddReceive(ended, func(c workflow.ReceiveChannel, _ bool) { t.takeEnd(ctx, c) })
		sel.AddReceive(t.inbox, func(c workflow.ReceiveChannel, _ bool) { t.takeDelivery(ctx, c) })
		idle.add(sel)
		alarm.add(sel)
		sel.Select(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// takeOne processes one message if there is one.
func (t *triggerRun) takeOne(ctx workflow.Context, ended workflow.ReceiveChannel) bool {
	var d delivery
	if t.inbox.ReceiveAsync(&d) {
		t.process(ctx, d)
		return true
	}
	var run string
	if ended.ReceiveAsync(&run) {
		t.end(ctx, run)
		return true
	}
	return false
}

func (t *triggerRun) takeAny(ended workflow.ReceiveChannel) bool {
	return t.inbox.Len() > 0 || ended.Len() > 0
}

func (t *triggerRun) takeDelivery(ctx workflow.Context, c workflow.ReceiveChannel) {
	var d delivery
	c.Receive(ctx, &d)
	t.process(ctx, d)
}

func (t *triggerRun) takeEnd(ctx workflow.Context, c workflow.ReceiveChannel) {
	var run string
	c.Receive(ctx, &run)
	t.end(ctx, run)
}

func (t *triggerRun) end(ctx workflow.Context, run string) {
	t.touched = workflow.Now(ctx)
	if run == t.state.Active {
		t.state.Active, t.lookAt = "", time.Time{}
	}
}

// expectEnd starts waiting for the active run.
func (t *triggerRun) expectEnd(ctx workflow.Context) {
	t.lookIn = lookFirst
	t.lookAt = workflow.Now(ctx).Add(t.lookIn)
}

// full reports whether this execution's history has grown enough.
func (t *triggerRun) full(ctx workflow.Context) bool {
	info := workflow.GetInfo(ctx)
	return t.taken >= maxDeliveries || info.GetCurrentHistoryLength() >= maxHistory || info.GetContinueAsNewSuggested()
}

// process decides on each event of a delivery, in order: what a trigger decides
// does not depend on how its events were batched.
func (t *triggerRun) process(ctx workflow.Context, d delivery) {
	t.taken++
	t.set = d.Settings
	t.touched = workflow.Now(ctx)
	sup := &suppressed{}
	for i, n := 0, d.len(); i < n; i++ {
		now := workflow.Now(ctx)
		ev := d.at(i)
		t.state.Received++
		if !t.seen.add(ev.hash) {
			t.state.Duplicates++
			continue
		}
		switch {
		case t.cooling(now, ev):
			sup.add("cooldown", ev)
			continue
		case t.state.Pending.Count >= t.set.MaxPending && t.state.Active != "":
			sup.add("pending", ev)
			continue
		}
		t.state.Pending.add(ev)
		t.state.Arrived = now
		if t.set.Debounce == 0 || t.state.Pending.Count >= t.set.MaxPending {
			// An error means that the workflow itself is ending.
			_ = t.fireIfDue(ctx)
		}
	}
	t.publishSuppressed(ctx, sup)
}

func (t *triggerRun) cooling(now time.Time, ev incoming) bool {
	switch {
	case t.set.Cooldown == 0 || t.state.LastStart.IsZero():
		return false
	case t.set.EventTime:
		return ev.time.Sub(t.state.LastEvent) < t.set.Cooldown
	}
	return now.Sub(t.state.LastStart) < t.set.Cooldown
}

// due is when pending events start a run; zero: not by time.
func (t *triggerRun) due() time.Time {
	p := t.state.Pending
	switch {
	case p.Count == 0 || t.state.Active != "":
		return time.Time{}
	case p.Count >= t.set.MaxPending && t.set.MaxPending > 0:
		return later(t.state.Arrived, t.retryAt)
	}
	return later(t.state.Arrived.Add(t.set.Debounce), t.retryAt)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// nextAlarm is when the trigger must wake of itself; zero: never.
func (t *triggerRun) nextAlarm() time.Time {
	if t.state.Pending.Count == 0 {
		return time.Time{}
	}
	if t.state.Active != "" {
		return t.lookAt
	}
	return t.due()
}

// fireIfDue starts a run if one is due, or checks on the one that is waited for.
func (t *triggerRun) fireIfDue(ctx workflow.Context) error {
	now := workflow.Now(ctx)
	if t.state.Active != "" && t.state.Pending.Count > 0 && !t.lookAt.IsZero() && !now.Before(t.lookAt) {
		t.look(ctx)
		now = workflow.Now(ctx)
	}
	if at := t.due(); at.IsZero() || now.Before(at) {
		return nil
	}
	return t.fire(ctx)
}

func (t *triggerRun) fire(ctx workflow.Context) error {
	p := t.state.Pending
	req := fireRequest{
		Pipeline: t.args.Pipeline, Trigger: t.args.Trigger, Key: t.args.Key, Events: p,
		Notify: workflow.GetInfo(ctx).WorkflowExecution.ID, Time: workflow.Now(ctx), Place: t.args.Place,
	}
	var res fireResult
	err := workflow.ExecuteLocalActivity(local(ctx, clip("start run for "+p.First, 190)), fireActivity, req).Get(ctx, &res)
	t.touched = workflow.Now(ctx)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && isPermanent(err):
		// No retry will start this run: the events are given up, in public.
		t.state.Pending = backlog{}
		sup := &suppressed{}
		sup.all("start failed: "+reason(err), p)
		t.publishSuppressed(ctx, sup)
		return nil
	case err != nil:
		workflow.GetLogger(ctx).Warn("a run could not be started and is tried again", "trigger", t.args.Trigger, "key", t.args.Key, "error", err)
		t.retryAt = workflow.Now(ctx).Add(retryStart)
		return nil
	}
	t.state.Fired++
	t.state.Pending = backlog{}
	t.state.LastStart = workflow.Now(ctx)
	t.state.LastEvent = later(t.state.LastEvent, p.Latest)
	t.retryAt = time.Time{}
	if !res.Ended {
		t.state.Active = res.Run
		t.expectEnd(ctx)
	}
	return nil
}

// look asks whether the active run has ended unheard.
func (t *triggerRun) look(ctx workflow.Context) {
	var ended bool
	err := workflow.ExecuteLocalActivity(local(ctx, "check on run"), lookActivity, t.state.Active).Get(ctx, &ended)
	if err == nil && ended {
		t.state.Active, t.lookAt = "", time.Time{}
		return
	}
	t.lookIn = min(2*t.lookIn, lookMax)
	t.lookAt = workflow.Now(ctx).Add(t.lookIn)
}

func isPermanent(err error) bool {
	var app *temporal.ApplicationError
	return errors.As(err, &app) && app.NonRetryable()
}

// publishSuppressed says in public which events started nothing, one event for
// each reason. Not being able to is no reason to hold up the trigger.
func (t *triggerRun) publishSuppressed(ctx workflow.Context, s *suppressed) {
	var list []announcement
	name := t.args.Pipeline + "/" + t.args.Trigger
	for _, g := range s.groups {
		t.state.Suppressed += int64(g.count)
		list = append(list, announcement{
			Type: events.TypeTriggerSuppressed, Source: "/stokehold/" + t.args.Pipeline, Subject: name,
			ID:   fmt.Sprintf("%s/%s/suppressed/%016x", name, keyToken(t.args.Key), g.first),
			Time: workflow.Now(ctx), Pipeline: t.args.Pipeline, Cause: g.cause(),
			Data: events.TriggerSuppressed{Trigger: name, Key: t.args.Key, Events: g.ids(), Reason: g.text(t.set)},
		})
	}
	if len(list) == 0 {
		return
	}
	if err := publishEvents(ctx, list...); err != nil {
		workflow.GetLogger(ctx).Warn("suppressed events could not be published", "trigger", name, "error", err)
	}
}

// show writes what the Temporal UI shows of the trigger.
func (t *triggerRun) show(ctx workflow.Context) {
	var b strings.Builder
	s := t.state
	fmt.Fprintf(&b, "| events | duplicates | suppressed | runs started | pending |\n|---|---|---|---|---|\n| %d | %d | %d | %d | %d |\n\n",
		s.Received, s.Duplicates, s.Suppressed, s.Fired, s.Pending.Count)
	if s.Active != "" {
		fmt.Fprintf(&b, "Waiting for run `%s` to end.\n\n", s.Active)
	}
	if at := t.due(); !at.IsZero() {
		fmt.Fprintf(&b, "Starts a run at %s unless more events come.\n\n", at.UTC().Format(time.RFC3339Nano))
	}
	if !s.LastStart.IsZero() {
		fmt.Fprintf(&b, "Last start %s.\n", s.LastStart.UTC().Format(time.RFC3339Nano))
	}
	workflow.SetCurrentDetails(ctx, b.String())
}

// timer is one timer that is kept rather than replaced whenever it can be: each
// costs two events in the history.
type timer struct {
	at     time.Time
	future workflow.Future
	cancel workflow.CancelFunc
}

// ensure makes the timer fire at or before at. A timer that fires early only
// leads to another look, so one already set for an earlier time stays; one set
// for a later time is replaced if urgent.
func (t *timer) ensure(ctx workflow.Context, at time.Time, urgent bool) {
	if t.future != nil && t.future.IsReady() {
		t.future = nil
	}
	if at.IsZero() || (t.future != nil && (!at.Before(t.at) || !urgent)) {
		return
	}
	if t.future != nil {
		t.cancel()
	}
	timerCtx, cancel := workflow.WithCancel(ctx)
	t.at, t.cancel = at, cancel
	t.future = workflow.NewTimer(timerCtx, max(at.Sub(workflow.Now(ctx)), time.Millisecond))
}

func (t *timer) add(sel workflow.Selector) {
	if t.future != nil {
		sel.AddFuture(t.future, func(workflow.Future) {})
	}
}
