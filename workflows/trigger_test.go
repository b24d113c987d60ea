package workflows_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/workflows"
)

// epoch is when the events of these tests begin; an hour is an hour of event time.
var epoch = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)

// watched runs a trigger's workflow and collects what it does.
type watched struct {
	t       *testing.T
	f       *fakes
	env     *testsuite.TestWorkflowEnvironment
	trigger workflows.Trigger
	updates int
	taken   int // deliveries that the trigger accepted
}

func watch(t *testing.T, tr workflows.Trigger) *watched {
	t.Helper()
	p := workflows.New("loop", "")
	p.Ingest("rows", nothing)
	tr.Types = []string{"data.arrived"}
	p.On(tr)
	d := build(t, p)
	f := &fakes{ended: map[string]bool{}}
	return &watched{t: t, f: f, env: environment(t, f, d), trigger: d.Triggers[0]}
}

// at delivers events of those numbers after a while on the workflow's clock.
func (w *watched) at(after time.Duration, numbers ...int) {
	w.env.RegisterDelayedCallback(func() { w.deliver(numbers...) }, after)
}

func (w *watched) deliver(numbers ...int) {
	var evs []*events.Event
	for _, n := range numbers {
		e, err := events.New("data.arrived", "/test", "flights", fmt.Sprintf("week-%d", n), epoch.Add(time.Duration(n)*time.Hour), map[string]int{"week": n})
		if err != nil {
			w.t.Error(err)
		}
		evs = append(evs, &e)
	}
	w.updates++
	w.env.UpdateWorkflow(workflows.DeliverUpdate, fmt.Sprint("u", w.updates), &testsuite.TestUpdateCallback{
		OnAccept: func() {}, OnReject: func(err error) { w.t.Errorf("delivery rejected: %v", err) },
		OnComplete: func(_ any, err error) {
			if err != nil {
				w.t.Errorf("delivery failed: %v", err)
			}
			w.taken++
		},
	}, workflows.NewDelivery(w.trigger, evs))
}

// endRun tells the trigger that the run it waits for has ended.
func (w *watched) endRun(after time.Duration) {
	w.env.RegisterDelayedCallback(func() { w.env.SignalWorkflow(workflows.EndedSignal, w.state().Active) }, after)
}

func (w *watched) state() workflows.TriggerState {
	w.t.Helper()
	v, err := w.env.QueryWorkflow("state")
	if err != nil {
		w.t.Fatal(err)
	}
	var s workflows.TriggerState
	if err := v.Get(&s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// run lets the trigger live for that long.
func (w *watched) run(life time.Duration) {
	w.t.Helper()
	w.env.RegisterDelayedCallback(w.env.CancelWorkflow, life)
	w.env.ExecuteWorkflow(workflows.TriggerWorkflow, workflows.TriggerArgs{Pipeline: "loop", Trigger: "data.arrived"}, []byte(nil))
}

// runs lists which events each started run is said to be of.
func (w *watched) runs() []string {
	w.t.Helper()
	var out []string
	for _, raw := range w.f.args {
		encoded, err := json.Marshal(raw)
		if err != nil {
			w.t.Fatal(err)
		}
		var args struct {
			Input workflows.RunInput `json:"input"`
		}
		if err := json.Unmarshal(encoded, &args); err != nil {
			w.t.Fatal(err)
		}
		var p workflows.RunParams
		if err := json.Unmarshal(args.Input.Params, &p); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%d: %s", p.EventCount, strings.Join(p.EventIDs, " ")))
	}
	return out
}

func (w *watched) want(runs ...string) {
	w.t.Helper()
	if !slices.Equal(w.runs(), runs) {
		w.t.Errorf("started runs of %q, want %q", w.runs(), runs)
	}
}

func (w *watched) wantSuppressed(reason string, ids ...string) {
	w.t.Helper()
	var got []string
	for _, e := range w.f.published {
		var data events.TriggerSuppressed
		if e.Type() == events.TypeTriggerSuppressed && e.DataAs(&data) == nil && strings.HasPrefix(data.Reason, reason) {
			got = append(got, data.Events...)
		}
	}
	if !slices.Equal(got, ids) {
		w.t.Errorf("suppressed by %s: %q, want %q", reason, got, ids)
	}
}

func TestTriggerFiresAtOnce(t *testing.T) {
	w := watch(t, workflows.Trigger{})
	w.at(time.Second, 7)
	w.run(time.Minute)
	w.want("1: week-7")
	var data events.TriggerFired
	e := w.f.last(t, events.TypeTriggerFired, &data)
	if id := w.f.started[0].ID; data.Run != id || !strings.HasPrefix(id, "loop/data.arrived-week-7-") || e.ID() != id+"/trigger.fired" {
		t.Errorf("trigger.fired %s says %+v, the run is %s", e.ID(), data, id)
	}
}

func TestTriggerKeepsEventsWhileARunIsActive(t *testing.T) {
	w := watch(t, workflows.Trigger{})
	w.at(time.Second, 1)
	w.at(2*time.Second, 2, 3)
	w.at(3*time.Second, 4)
	w.endRun(5 * time.Second)
	w.run(time.Minute)
	w.want("1: week-1", "3: week-2 week-3 week-4")
}

func TestTriggerDebounces(t *testing.T) {
	w := watch(t, workflows.Trigger{Debounce: 10 * time.Second})
	for i := range 5 {
		w.at(time.Duration(i+1)*8*time.Second, i)
	}
	w.env.RegisterDelayedCallback(func() {
		if s := w.state(); s.Fired != 0 || s.Pending.Count != 5 {
			t.Errorf("before the quiet: %+v", s)
		}
	}, 49*time.Second)
	w.run(time.Minute)
	w.want("5: week-0 week-1 week-2 week-3 week-4")
}

func TestTriggerCoolsDownByTheClock(t *testing.T) {
	w := watch(t, workflows.Trigger{Cooldown: time.Minute})
	w.at(time.Second, 1)
	w.endRun(2 * time.Second)
	w.at(30*time.Second, 2)
	w.at(62*time.Second, 3)
	w.run(2 * time.Minute)
	w.want("1: week-1", "1: week-3")
	w.wantSuppressed("cooldown", "week-2")
}

// What is decided by event time does not depend on when events come or how they
// are batched.
func TestTriggerCoolsDownByEventTime(t *testing.T) {
	for name, deliver := range map[string]func(*watched){
		"one by one": func(w *watched) {
			for i := range 9 {
				w.at(time.Duration(i)*10*time.Second+time.Second, i+1)
				w.endRun(time.Duration(i)*10*time.Second + 2*time.Second)
			}
		},
		"in one batch": func(w *watched) {
			w.at(time.Second, 1, 2, 3, 4, 5, 6, 7, 8, 9)
			for i := range 9 {
				w.endRun(time.Duration(i+2) * time.Second)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := watch(t, workflows.Trigger{Cooldown: 4 * time.Hour, EventTime: true})
			deliver(w)
			w.run(5 * time.Minute)
			if name == "one by one" {
				w.want("1: week-1", "1: week-5", "1: week-9")
				w.wantSuppressed("cooldown", "week-2", "week-3", "week-4", "week-6", "week-7", "week-8")
				return
			}
			// The run of the first is still active when the others come, so that those
			// beyond the cooldown wait and make one run together.
			w.want("1: week-1", "5: week-5 week-6 week-7 week-8 week-9")
			w.wantSuppressed("cooldown", "week-2", "week-3", "week-4")
		})
	}
}

func TestTriggerDedupes(t *testing.T) {
	w := watch(t, workflows.Trigger{})
	w.at(time.Second, 1)
	w.endRun(2 * time.Second)
	w.at(3*time.Second, 1, 1)
	w.at(4*time.Second, 2)
	w.env.RegisterDelayedCallback(func() {
		if s := w.state(); s.Received != 4 || s.Duplicates != 2 {
			t.Errorf("state %+v", s)
		}
	}, 5*time.Second)
	w.run(time.Minute)
	w.want("1: week-1", "1: week-2")
}

func TestTriggerBoundsWhatWaits(t *testing.T) {
	w := watch(t, workflows.Trigger{MaxPending: 3})
	w.at(time.Second, 1, 2, 3, 4, 5, 6)
	w.endRun(2 * time.Second)
	w.run(time.Minute)
	w.want("1: week-1", "3: week-2 week-3 week-4")
	w.wantSuppressed("a run is active and 3 events wait", "week-5", "week-6")
}

// At its bound a debounced trigger starts a run rather than losing events.
func TestTriggerStartsWhenFull(t *testing.T) {
	w := watch(t, workflows.Trigger{Debounce: time.Hour, MaxPending: 3})
	w.at(time.Second, 1, 2, 3, 4)
	w.run(time.Minute)
	w.want("3: week-1 week-2 week-3")
}

func TestTriggerLooksForARunThatEndedUnheard(t *testing.T) {
	w := watch(t, workflows.Trigger{})
	w.at(time.Second, 1)
	w.at(2*time.Second, 2)
	w.env.RegisterDelayedCallback(func() {
		w.f.mu.Lock()
		defer w.f.mu.Unlock()
		w.f.ended[w.f.started[0].ID] = true
	}, 20*time.Second)
	w.run(5 * time.Minute)
	w.want("1: week-1", "1: week-2")
}

func TestTriggerGivesUpARunThatCannotStart(t *testing.T) {
	w := watch(t, workflows.Trigger{})
	w.f.startErr = fmt.Errorf("start: %w", workflows.ErrTooLarge)
	w.at(time.Second, 1)
	w.run(time.Minute)
	w.want()
	w.wantSuppressed("start failed", "week-1")
}

func TestTriggerTriesAgainToStart(t *testing.T) {
	w := watch(t, workflows.Trigger{})
	w.f.startErr = errors.New("no connection")
	w.at(time.Second, 1)
	w.env.RegisterDelayedCallback(func() {
		w.f.mu.Lock()
		defer w.f.mu.Unlock()
		w.f.startErr = nil
	}, time.Minute)
	w.run(time.Hour)
	w.want("1: week-1")
}

func TestTriggerContinuesAsNew(t *testing.T) {
	w := watch(t, workflows.Trigger{Debounce: time.Hour})
	// More than one execution takes. Those that come too late are not accepted, and
	// the bridge would send them again; all that were accepted must be carried on.
	for part := range 5 {
		w.env.RegisterDelayedCallback(func() {
			for i := range workflows.MaxDeliveries/5 + 1 {
				w.deliver(part*(workflows.MaxDeliveries/5+1) + i)
			}
		}, time.Duration(part+1)*time.Second)
	}
	w.env.ExecuteWorkflow(workflows.TriggerWorkflow, workflows.TriggerArgs{Pipeline: "loop", Trigger: "data.arrived"}, []byte(nil))
	var next *workflow.ContinueAsNewError
	if err := w.env.GetWorkflowError(); !errors.As(err, &next) {
		t.Fatalf("ended with %v, want to continue as new", err)
	}
	// Run what it continues as, with its very arguments.
	after := watch(t, workflows.Trigger{Debounce: time.Hour})
	after.at(time.Second, 3, workflows.MaxDeliveries+7)
	after.env.RegisterDelayedCallback(after.env.CancelWorkflow, 3*time.Hour)
	var args workflows.TriggerArgs
	var seen []byte
	decode(t, next, &args, &seen)
	after.env.ExecuteWorkflow(workflows.TriggerWorkflow, args, seen)
	if got := after.runs(); len(got) != 1 || !strings.HasPrefix(got[0], fmt.Sprintf("%d: ", w.taken+1)) || w.taken < workflows.MaxDeliveries {
		t.Errorf("started runs of %.60q, want one of all events and none twice", got)
	}
}

func TestIdleTriggerEnds(t *testing.T) {
	w := watch(t, workflows.Trigger{})
	w.at(time.Second, 1)
	w.endRun(2 * time.Second)
	w.env.ExecuteWorkflow(workflows.TriggerWorkflow, workflows.TriggerArgs{Pipeline: "loop", Trigger: "data.arrived"}, []byte(nil))
	if !w.env.IsWorkflowCompleted() || w.env.GetWorkflowError() != nil {
		t.Errorf("ended with %v", w.env.GetWorkflowError())
	}
}
