package workflowstest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stokehold/stokehold/cmd/internal/workflowstest"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

// Events that come while no worker is there, and while one is replaced by
// another, are in runs in the end, each once.
func TestTriggerLosesNothing(t *testing.T) {
	const events1, events2 = 250, 350
	env := open(t)
	p := workflows.New("careful", "")
	p.Ingest("rows", workflowstest.Nothing)
	p.On(workflows.Trigger{Types: []string{"data.arrived"}, Debounce: 200 * time.Millisecond})
	d, err := p.Build()
	if err != nil {
		t.Fatal(err)
	}
	light := &workflowstest.Light{}
	counts := make(chan int, 100)
	light.Set("rows", func(_ context.Context, a stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		var params workflows.RunParams
		if err := json.Unmarshal(a.RunParams, &params); err != nil {
			return stages.Result{}, stages.Permanent(err)
		}
		counts <- params.EventCount
		return stages.Result{}, nil
	})
	publish := func(from, n int) {
		t.Helper()
		evs := make([]events.Event, n)
		for i := range evs {
			if evs[i], err = events.New("data.arrived", "/test", "site", fmt.Sprint("arrival-", from+i), time.Now(), map[string]int{"week": from + i}); err != nil {
				t.Fatal(err)
			}
		}
		if err := env.Bus.Publish(t.Context(), evs...); err != nil {
			t.Fatal(err)
		}
	}
	publish(0, events1)
	first := startWorker(t, env, light, d)
	publish(events1, events2)
	publish(0, 10) // again
	stop(t, first) // wherever it is
	startWorker(t, env, light, d)
	total := 0
	for total < events1+events2 {
		select {
		case n := <-counts:
			total += n
		case <-time.After(20 * time.Second):
			t.Fatalf("%d events are in runs, want %d", total, events1+events2)
		}
	}
	eventually(t, "the trigger's rest", func() bool {
		s, err := workflows.TriggerStateOf(t.Context(), env.Client, "careful", "data.arrived", "")
		return err == nil && s.Pending.Count == 0 && s.Active == "" && s.Received-s.Duplicates == events1+events2
	})
	if len(counts) > 0 || total != events1+events2 {
		t.Errorf("%d events are in runs and %d runs are too many, want each of %d once", total, len(counts), events1+events2)
	}
}
