package flights_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages/drift"
)

func openBus(t *testing.T) *events.Bus {
	t.Helper()
	types, err := events.NewRegistry(flights.EventTypes()...)
	if err != nil {
		t.Fatal(err)
	}
	bus, err := events.Open(t.Context(), events.Config{Conn: natstest.Start(t).Connect(), Types: types, Judge: events.AllowAll()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := bus.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return bus
}

func publish(t *testing.T, bus *events.Bus, typ, id string, data any) {
	t.Helper()
	e, err := events.New(typ, "/test", "flights", id, time.Now(), data)
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Publish(context.WithoutCancel(t.Context()), e); err != nil {
		t.Error(err)
	}
}

func champion(t *testing.T, bus *events.Bus) {
	t.Helper()
	publish(t, bus, events.TypeRunStarted, "s0", events.RunStarted{Pipeline: flights.TrainPipeline, Run: "r0"})
	publish(t, bus, events.TypeModelPromoted, "p0", events.ModelPromoted{Model: flights.Model, Version: "v0", Alias: models.Champion, Run: "r0"})
	publish(t, bus, events.TypeRunCompleted, "c0", events.RunCompleted{Pipeline: flights.TrainPipeline, Run: "r0"})
}

// pretend answers the feeder as the pipelines would. Week 8 drifts and the
// challenger wins, week 9 drifts and it loses, week 10's drift is denied, week
// 11's suppressed.
func pretend(t *testing.T, bus *events.Bus) {
	t.Helper()
	_, err := bus.Subscribe(t.Context(), events.Subscription{Types: []string{flights.TypeDataArrived, flights.TypeLabelsArrived}, Durable: "loop"},
		func(_ context.Context, d events.Delivery) error {
			var in flights.DataArrived
			if err := json.Unmarshal(d.Data(), &in); err != nil {
				return err
			}
			w := in.Week
			if d.Type() == flights.TypeDataArrived {
				publish(t, bus, flights.TypeScored, fmt.Sprint("scored", w), flights.Scored{Week: w, Rows: in.Rows, Version: "v"})
				return nil
			}
			r := drift.Report{Key: w, Rows: in.Rows, LogLoss: 0.5, Drift: w >= 8, Event: fmt.Sprint("drift", w)}
			if w == 10 {
				r.Denied = "too few rows"
			}
			publish(t, bus, flights.TypeWeekClosed, fmt.Sprint("closed", w), r)
			run := fmt.Sprint("r", w)
			switch w {
			case 8, 9:
				publish(t, bus, events.TypeTriggerFired, "f"+run, events.TriggerFired{Trigger: "drift", Run: run, Events: []string{r.Event}})
				if w == 8 {
					publish(t, bus, events.TypeModelPromoted, "p"+run, events.ModelPromoted{Model: flights.Model, Version: "v8", Alias: models.Champion, Run: run})
				} else {
					publish(t, bus, events.TypeModelRefused, "p"+run, events.ModelRefused{Model: flights.Model, Version: "v9", Run: run, Reason: "no better"})
				}
				publish(t, bus, events.TypeRunCompleted, "c"+run, events.RunCompleted{Pipeline: flights.TrainPipeline, Run: run})
			case 11:
				publish(t, bus, events.TypeTriggerSuppressed, "x"+run, events.TriggerSuppressed{Trigger: "drift", Events: []string{r.Event}, Reason: "cooling down"})
			}
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFeederWaitsForTheLoopAndGoesOnAfterACrash(t *testing.T) {
	bus, data := openBus(t), openData(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	champion(t, bus)
	pretend(t, bus)

	// The first feeder dies after week 8.
	dying, die := context.WithCancel(ctx)
	first := &flights.Feeder{Bus: bus, Data: data, To: 12, OnWeek: func(o flights.Outcome) {
		if o.Key == 8 {
			die()
		}
	}}
	if _, err := first.Run(dying); !errors.Is(err, context.Canceled) {
		t.Fatalf("the first feeder: %v", err)
	}
	var seen []uint64
	second := &flights.Feeder{Bus: bus, Data: data, To: 12, OnWeek: func(o flights.Outcome) { seen = append(seen, o.Key) }}
	out, err := second.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(seen, []uint64{7, 8, 9, 10, 11}) {
		t.Errorf("weeks %v", seen)
	}
	want := []flights.Outcome{
		{}, {Retrained: true, Run: "r8", Challenger: "v8", Promoted: true}, {Retrained: true, Run: "r9", Challenger: "v9", Reason: "no better"},
		{Reason: "drift was not acted upon: too few rows"}, {Reason: "not retrained: cooling down"},
	}
	for i, w := range want {
		got := out[i]
		got.Report = drift.Report{}
		if got != w {
			t.Errorf("week %d: %+v, want %+v", 7+i, got, w)
		}
	}
	arrived := map[string]int{}
	for d, err := range bus.Replay(ctx, events.Subscription{Types: []string{flights.TypeDataArrived, flights.TypeLabelsArrived}}) {
		if err != nil {
			t.Fatal(err)
		}
		arrived[d.ID()]++
		if d.ID() == "flights/data.arrived/7" && !d.Time().Equal(time.Date(2001, 2, 26, 0, 0, 0, 0, time.UTC)) {
			t.Errorf("week 7 is over at %v", d.Time())
		}
	}
	if len(arrived) != 10 {
		t.Errorf("%d events of the feeder, want 10: %v", len(arrived), arrived)
	}
	for id, n := range arrived {
		if n != 1 {
			t.Errorf("%s is %d times in the stream", id, n)
		}
	}
}

func TestFeederSaysWhyThereIsNoFirstModel(t *testing.T) {
	bus, data := openBus(t), openData(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	publish(t, bus, events.TypeRunStarted, "s0", events.RunStarted{Pipeline: flights.TrainPipeline, Run: "r0"})
	publish(t, bus, events.TypeModelRefused, "p0", events.ModelRefused{Model: flights.Model, Version: "v0", Run: "r0", Reason: "no better than chance"})
	publish(t, bus, events.TypeRunCompleted, "c0", events.RunCompleted{Pipeline: flights.TrainPipeline, Run: "r0"})
	_, err := (&flights.Feeder{Bus: bus, Data: data}).Run(ctx)
	if !errors.Is(err, flights.ErrFirstModel) || err.Error() == "" {
		t.Errorf("%v", err)
	}
}
