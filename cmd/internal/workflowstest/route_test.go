package workflowstest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/cmd/internal/workflowstest"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

// at is where an attempt of a stage was made.
type at struct{ stage, class, region string }

// recording notes where stages are done, and sends train to other workers unless it
// is where wants says, as a Runtime does whose stage.started is routed.
func recording(done chan<- at, wants events.Routing) *workflowstest.Light {
	light := &workflowstest.Light{}
	for _, stage := range []string{"rows", "train"} {
		light.Set(stage, func(_ context.Context, a stages.Assignment, h stages.Hooks) (stages.Result, error) {
			if stage == "train" && (wants.Workers != "" && h.Class != wants.Workers || wants.Region != "" && h.Region != wants.Region) {
				return stages.Result{}, &stages.ElsewhereError{Stage: stage, Route: wants}
			}
			done <- at{stage, h.Class, h.Region}
			return stages.Result{Dataset: a.Output}, nil
		})
	}
	return light
}

func placed(t *testing.T, env *workflowstest.Env, x workflows.Executor, class, region string, d *workflows.Definition) {
	t.Helper()
	w, err := workflows.NewWorker(workflows.WorkerConfig{
		Client: env.Client, Bus: env.Bus, Types: env.Types, Pipelines: []*workflows.Definition{d}, Executor: x, Aliases: workflowstest.NoAliases{},
		Class: class, Region: region,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, w) })
}

func rowsAndTrain(t *testing.T) *workflows.Definition {
	t.Helper()
	p := workflows.New("placed", "")
	p.Train("train", p.Ingest("rows", workflowstest.Nothing), workflowstest.Nothing)
	p.On(workflows.Trigger{Types: []string{"data.arrived"}, Key: "event.subject"})
	d, err := p.Build()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func polled(t *testing.T, env *workflowstest.Env, d *workflows.Definition, in workflows.RunInput) *workflows.Run {
	t.Helper()
	var run *workflows.Run
	eventually(t, "workers in "+in.Place.String(), func() bool {
		var err error
		run, err = workflows.Start(t.Context(), env.Client, d, in, workflows.StartOptions{})
		if err != nil && !errors.Is(err, workflows.ErrNobody) {
			t.Fatal(err)
		}
		return err == nil
	})
	return run
}

func TestStageGoesToWorkersItIsRoutedTo(t *testing.T) {
	for _, c := range []struct {
		wants events.Routing
		fails string
	}{
		{wants: events.Routing{Workers: "gpu"}},
		{wants: events.Routing{Region: "eu"}},
		{wants: events.Routing{Workers: "gpu", Region: "eu"}},
		{wants: events.Routing{Workers: "tpu"}, fails: "no worker is there: of class tpu: start one"},
	} {
		t.Run(c.wants.String(), func(t *testing.T) {
			env := open(t)
			d := rowsAndTrain(t)
			done := make(chan at, 10)
			light := recording(done, c.wants)
			placed(t, env, light, "", "", d)
			placed(t, env, light, "gpu", "eu", d)
			// A run whose place is there shows that the workers serve it.
			if _, err := polled(t, env, d, workflows.RunInput{Run: "before", Place: workflows.Place{Workers: "gpu", Region: "eu"}}).Result(t.Context()); err != nil && c.fails == "" {
				t.Fatal(err)
			}
			for len(done) > 0 {
				if got := <-done; got != (at{got.stage, "gpu", "eu"}) {
					t.Errorf("a run for class gpu in region eu: %+v", got)
				}
			}
			for i := range 4 {
				_, err := mustStart(t, env, d, workflows.RunInput{Run: fmt.Sprint("run-", i)}).Result(t.Context())
				if c.fails != "" {
					var failed *workflows.RunError
					if !errors.As(err, &failed) || failed.Stage != "train" || !strings.Contains(failed.Reason, c.fails) {
						t.Fatalf("got %v", err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			trained := 0
			for len(done) > 0 {
				if got := <-done; got.stage == "train" {
					trained++
					if got != (at{"train", "gpu", "eu"}) {
						t.Errorf("trained at %+v", got)
					}
				}
			}
			if want := 4; c.fails == "" && trained != want {
				t.Errorf("trained %d times, want %d", trained, want)
			}
			if c.wants.Workers == "gpu" && c.wants.Region == "" {
				replay(t, env, "run-routed", "placed/run-0")
			}
		})
	}
}

// What a trigger takes is handled where it is routed; nobody there, it is in the
// dead letters with the reason, and what came beside it is handled.
func TestTriggerHandlesEventsWhereTheyAreRouted(t *testing.T) {
	env := open(t)
	d := rowsAndTrain(t)
	done := make(chan at, 10)
	light := recording(done, events.Routing{})
	placed(t, env, light, "", "", d)
	placed(t, env, light, "", "eu", d)
	if _, err := polled(t, env, d, workflows.RunInput{Run: "before", Place: workflows.Place{Region: "eu"}}).Result(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-done
	<-done
	var evs []events.Event
	for _, region := range []string{"mars", "eu"} {
		e, err := events.New("data.arrived", "/test", "site", "arrival-"+region, time.Now(), map[string]int{"week": 1})
		if err != nil {
			t.Fatal(err)
		}
		e.SetExtension(events.ExtRoute, events.Routing{Region: region}.String())
		evs = append(evs, e)
	}
	if err := env.Bus.Publish(t.Context(), evs...); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case got := <-done:
			if got.region != "eu" {
				t.Errorf("handled at %+v", got)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the event for region eu is not handled")
		}
	}
	eventually(t, "a dead letter", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for l, err := range env.Bus.DeadLetters(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if l.Header.Get("ce-id") == "arrival-mars" {
				if l.Kind != events.DeadTerminated || !strings.Contains(l.Reason, "no worker is there: of region mars") {
					raw, _ := json.Marshal(l)
					t.Errorf("%s", raw)
				}
				return true
			}
		}
		return false
	})
	if len(done) > 0 {
		t.Errorf("%d stages too many", len(done))
	}
	if _, err := workflows.Start(t.Context(), env.Client, d, workflows.RunInput{Place: workflows.Place{Workers: "gpu"}}, workflows.StartOptions{}); !errors.Is(err, workflows.ErrNobody) {
		t.Errorf("a run for nobody: %v", err)
	}
}
