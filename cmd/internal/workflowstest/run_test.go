package workflowstest_test

import (
	"context"
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/stokehold/stokehold/cmd/devstack"
	"github.com/stokehold/stokehold/cmd/internal/workflowstest"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

func open(t *testing.T) *workflowstest.Env {
	t.Helper()
	env, err := workflowstest.Open(t.Context(), t.TempDir(), events.Type{Name: "data.arrived"}, events.Type{Name: "labels.arrived"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), workflowstest.StopTimeout)
		defer cancel()
		if err := env.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return env
}

func twoStages(t *testing.T) *workflows.Definition {
	t.Helper()
	p := workflows.New("two-stages", "Rows in, rows out.")
	rows := p.Ingest("rows", workflowstest.Nothing)
	p.Preprocess("doubled", rows, workflowstest.Nothing)
	p.On(workflows.Trigger{Types: []string{"data.arrived"}, When: "data.rows > 0", Key: "data.site"})
	d, err := p.Build()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func startWorker(t *testing.T, env *workflowstest.Env, x workflows.Executor, ds ...*workflows.Definition) *workflows.Worker {
	t.Helper()
	w, err := workflows.NewWorker(workflows.WorkerConfig{
		Client: env.Client, Bus: env.Bus, Types: env.Types, Pipelines: ds, Executor: x, Aliases: workflowstest.NoAliases{}, Migrator: workflowstest.NoMoves{},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, w) })
	return w
}

func stop(t *testing.T, w *workflows.Worker) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), workflowstest.StopTimeout)
	defer cancel()
	if err := w.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// The stack registers what runs set.
func TestSearchAttributesAgree(t *testing.T) {
	if have, want := devstack.SearchAttributes(), workflows.SearchAttributes(); !maps.Equal(have, want) {
		t.Errorf("the stack registers %v, runs need %v", have, want)
	}
}

func TestRun(t *testing.T) {
	env := open(t)
	d := twoStages(t)
	light := &workflowstest.Light{}
	producing, consuming := make(chan struct{}), make(chan struct{})
	light.Set("rows", func(ctx context.Context, a stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		close(producing)
		select {
		case <-consuming: // the consumer runs while its producer does
		case <-ctx.Done():
			return stages.Result{}, ctx.Err()
		}
		return stages.Result{Dataset: a.Output, To: 3, Data: stages.DataStats{BatchesOut: 3}}, nil
	})
	light.Set("doubled", func(_ context.Context, a stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		<-producing
		close(consuming)
		return stages.Result{Dataset: a.Output, Metrics: map[string]float64{"mean": 2}}, nil
	})
	startWorker(t, env, light, d)

	run, err := workflows.Start(t.Context(), env.Client, d, workflows.RunInput{Run: "first"}, workflows.StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	res, err := run.Result(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := res.Stage("rows"); got.Dataset != "two-stages/first/rows" || got.To != 3 {
		t.Errorf("rows: %+v", got)
	}
	if got, _ := res.Stage("doubled"); got.Metrics["mean"] != 2 {
		t.Errorf("doubled: %+v", got)
	}
	_, err = workflows.Start(t.Context(), env.Client, d, workflows.RunInput{Run: "first"}, workflows.StartOptions{})
	if !errors.Is(err, workflows.ErrRunExists) {
		t.Errorf("starting the same run again: %v, want ErrRunExists", err)
	}
	info, err := run.Describe(t.Context())
	if err != nil || info.Status != "completed" || info.Pipeline != "two-stages" || len(info.Active) != 0 {
		t.Errorf("described as %+v, %v", info, err)
	}
	t.Logf("history: %d events, %d bytes, %v", info.HistoryEvents, info.HistoryBytes, info.Closed.Sub(info.Started).Round(time.Microsecond))
}

func TestTriggerStartsRuns(t *testing.T) {
	env := open(t)
	d := twoStages(t)
	light := &workflowstest.Light{}
	runs := make(chan stages.Assignment, 10)
	light.Set("rows", func(_ context.Context, a stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		runs <- a
		return stages.Result{Dataset: a.Output}, nil
	})
	startWorker(t, env, light, d)
	for i := range 3 {
		e, err := events.New("data.arrived", "/test", "site", "arrival-"+string(rune('a'+i)), time.Now(), map[string]any{"rows": i, "site": "north"})
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := env.Bus.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			continue // no rows: the condition does not hold
		}
		a := <-runs
		t.Logf("event to stage: %v, %s", time.Since(begin), a.RunParams)
		if a.Cause != e.ID() {
			t.Errorf("caused by %q, want %q", a.Cause, e.ID())
		}
		if _, err := workflows.Handle(env.Client, a.Run).Result(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
