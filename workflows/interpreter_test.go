package workflows_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

func execute(t *testing.T, env *testsuite.TestWorkflowEnvironment, d *workflows.Definition, in workflows.RunInput) (workflows.RunResult, error) {
	t.Helper()
	env.ExecuteWorkflow(workflows.PipelineWorkflow, runArgs(t, d, in))
	if !env.IsWorkflowCompleted() {
		t.Fatal("the run did not end")
	}
	if err := env.GetWorkflowError(); err != nil {
		return workflows.RunResult{}, err
	}
	var r workflows.RunResult
	if err := env.GetWorkflowResult(&r); err != nil {
		t.Fatal(err)
	}
	return r, nil
}

// gate lets each of its stages pass once all are there.
type gate struct {
	mu   sync.Mutex
	left int
	open chan struct{}
}

func newGate(n int) *gate { return &gate{left: n, open: make(chan struct{})} }

func (g *gate) pass(ctx context.Context, a stages.Assignment, _ stages.Hooks) (stages.Result, error) {
	g.mu.Lock()
	if g.left--; g.left == 0 {
		close(g.open)
	}
	g.mu.Unlock()
	select {
	case <-g.open:
		return stages.Result{Dataset: a.Output, Rows: 10, Data: stages.DataStats{BatchesOut: 2}}, nil
	case <-ctx.Done():
		return stages.Result{}, context.Cause(ctx)
	}
}

func TestConsumerOverlapsProducer(t *testing.T) {
	p := workflows.New("overlap", "")
	a := p.Ingest("a", nothing)
	b := p.Preprocess("b", a, nothing)
	p.Preprocess("c", b, nothing)
	d := build(t, p)
	g := newGate(3)
	f := &fakes{stages: map[string]stageFunc{"a": g.pass, "b": g.pass, "c": g.pass}}
	res, err := execute(t, environment(t, f, d), d, workflows.RunInput{Run: "r1", Cause: "event-1", Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := res.Stage("c"); !ok || got.Dataset != "overlap/r1/c" || got.Rows != 10 {
		t.Errorf("result %+v", res)
	}
	if want := []string{events.TypeRunStarted, events.TypeRunCompleted}; !slices.Equal(f.types(), want) {
		t.Errorf("published %v, want %v", f.types(), want)
	}
	e := f.last(t, events.TypeRunStarted, &events.RunStarted{})
	if e.ID() != "overlap/r1/run.started" || e.Extensions()[events.ExtCause] != "event-1" {
		t.Errorf("run.started is %v", e)
	}
}

func TestModelsWaitAndAreBound(t *testing.T) {
	d := loop(t)
	f := &fakes{aliases: map[string]string{"flights@champion": "v1"}, stages: map[string]stageFunc{}}
	var mu sync.Mutex
	var ended []string
	for name, version := range map[string]string{"weeks": "", "features": "", "train": "v2", "tune": "v3", "evaluate": "", "deploy": "", "watch": ""} {
		f.stages[name] = func(_ context.Context, a stages.Assignment, _ stages.Hooks) (stages.Result, error) {
			mu.Lock()
			defer mu.Unlock()
			switch name { // what each must find done
			case "tune":
				if !slices.Contains(ended, "train") {
					t.Error("tune did not wait for train")
				}
			case "deploy":
				if !slices.Contains(ended, "evaluate") || !slices.Contains(ended, "tune") {
					t.Error("deploy did not wait for its inputs")
				}
			}
			ended = append(ended, name)
			return stages.Result{Dataset: a.Output, Model: a.Model, Version: version}, nil
		}
	}
	if _, err := execute(t, environment(t, f, d), d, workflows.RunInput{Run: "r1"}); err != nil {
		t.Fatal(err)
	}
	got := map[string]stages.Assignment{}
	for _, a := range f.calls {
		got[a.Stage] = a
	}
	check := func(stage string, want ...stages.Binding) {
		t.Helper()
		if !slices.Equal(got[stage].Inputs, want) {
			t.Errorf("%s is bound to %+v, want %+v", stage, got[stage].Inputs, want)
		}
	}
	features := stages.Binding{Name: "features", Dataset: "flights/features", Bounded: true}
	check("features", stages.Binding{Name: "weeks", Dataset: "flights/schedule", Bounded: true})
	check("train", features, stages.Binding{Name: "flights/labels", Dataset: "flights/labels"})
	check("tune", stages.Binding{Name: "flights@champion", Model: "flights", Version: "v1"}, features)
	check("deploy", stages.Binding{Name: "tune", Model: "flights", Version: "v3"}, stages.Binding{Name: "evaluate"})
	if a := got["features"]; a.Output != "flights/features" || a.Seal || !a.ChildProcess || a.Run != "flights-train/r1" {
		t.Errorf("features is assigned %+v", a)
	}
}

func TestFailureCancelsTheOthers(t *testing.T) {
	p := workflows.New("failing", "")
	a := p.Ingest("a", nothing)
	p.Preprocess("b", a, nothing)
	p.Preprocess("late", a, nothing, workflows.After(a))
	d := build(t, p)
	f := &fakes{}
	working := make(chan struct{})
	f.stages = map[string]stageFunc{
		"a": func(context.Context, stages.Assignment, stages.Hooks) (stages.Result, error) {
			<-working
			return stages.Result{}, stages.Permanent(errors.New("column DELAY is missing"))
		},
		"b": func(ctx context.Context, _ stages.Assignment, _ stages.Hooks) (stages.Result, error) {
			close(working)
			// Temporal's test environment reports the cancellation without telling the
			// activity; the test against the real server sees that the stage is told.
			select {
			case <-ctx.Done():
			case <-t.Context().Done():
			}
			return stages.Result{}, errFlaky
		},
	}
	_, err := execute(t, environment(t, f, d), d, workflows.RunInput{Run: "r1"})
	var app *temporal.ApplicationError
	if !errors.As(err, &app) || app.Message() != "stage a failed on attempt 1: column DELAY is missing" || !app.NonRetryable() {
		t.Errorf("the run failed with %v", err)
	}
	if f.attempts("a") != 1 || f.attempts("late") != 0 {
		t.Errorf("a ran %d times, late %d times", f.attempts("a"), f.attempts("late"))
	}
	var data events.RunFailed
	f.last(t, events.TypeRunFailed, &data)
	if data.Stage != "a" || data.Reason != "column DELAY is missing" {
		t.Errorf("run.failed says %+v", data)
	}
}

func TestRetryResumes(t *testing.T) {
	p := workflows.New("flaky", "")
	p.Ingest("a", nothing, workflows.Attempts(4))
	d := build(t, p)
	f := &fakes{}
	f.stages = map[string]stageFunc{"a": func(_ context.Context, a stages.Assignment, h stages.Hooks) (stages.Result, error) {
		if want := int64(a.Attempt-1) * 10; h.Previous.Done != want {
			t.Errorf("attempt %d starts at %d, want %d", a.Attempt, h.Previous.Done, want)
		}
		if a.Attempt == 4 {
			return stages.Result{Rows: h.Previous.Done}, nil
		}
		h.Report(stages.Progress{Done: int64(a.Attempt) * 10, Checkpoint: []byte(`{"at":1}`)})
		if a.Attempt == 2 {
			panic("the stage has a bug")
		}
		return stages.Result{}, errFlaky
	}}
	res, err := execute(t, environment(t, f, d), d, workflows.RunInput{Run: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := res.Stage("a"); got.Rows != 30 {
		t.Errorf("result %+v", res)
	}
}

func TestAttemptsAreBounded(t *testing.T) {
	p := workflows.New("hopeless", "")
	p.Ingest("a", nothing, workflows.Attempts(3))
	d := build(t, p)
	for name, c := range map[string]struct {
		result   stages.Result
		err      error
		attempts int
		reason   string
	}{
		"keeps failing":     {err: errFlaky, attempts: 3, reason: "attempt 3: the network hiccuped"},
		"denied":            {err: &events.Error{Op: "publish", Type: "batch.published", Err: events.ErrDenied}, attempts: 1, reason: "denied"},
		"result too large":  {result: stages.Result{Notes: map[string]string{"x": strings.Repeat("y", workflows.MaxPayloadBytes)}}, attempts: 1, reason: "at most 65536"},
		"metric not finite": {result: stages.Result{Metrics: map[string]float64{"auc": math.NaN()}}, attempts: 1, reason: "not finite"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakes{stages: map[string]stageFunc{"a": func(context.Context, stages.Assignment, stages.Hooks) (stages.Result, error) { return c.result, c.err }}}
			_, err := execute(t, environment(t, f, d), d, workflows.RunInput{Run: "r1"})
			if err == nil || !strings.Contains(err.Error(), c.reason) || f.attempts("a") != c.attempts {
				t.Errorf("failed after %d attempts with %v, want %d and %q", f.attempts("a"), err, c.attempts, c.reason)
			}
		})
	}
}

func TestRefusedStart(t *testing.T) {
	p := workflows.New("refused", "")
	p.Ingest("a", nothing)
	d := build(t, p)
	f := &fakes{refuse: map[string]error{events.TypeRunStarted: events.ErrDenied}}
	_, err := execute(t, environment(t, f, d), d, workflows.RunInput{Run: "r1"})
	if err == nil || !strings.Contains(err.Error(), "event denied") || f.attempts("a") != 0 {
		t.Errorf("%v after %d attempts, want a refusal before any", err, f.attempts("a"))
	}
}

func TestCancelledRun(t *testing.T) {
	p := workflows.New("cancelled", "")
	p.Ingest("a", nothing)
	d := build(t, p)
	f := &fakes{}
	env := environment(t, f, d)
	f.stages = map[string]stageFunc{"a": func(ctx context.Context, _ stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		env.CancelWorkflow()
		<-ctx.Done()
		return stages.Result{}, ctx.Err()
	}}
	_, err := execute(t, env, d, workflows.RunInput{Run: "r1"})
	if !temporal.IsCanceledError(err) {
		t.Errorf("ended with %v, want a cancellation", err)
	}
	var data events.RunFailed
	f.last(t, events.TypeRunFailed, &data)
	if data.Reason != "the run was cancelled" || data.Stage != "" {
		t.Errorf("run.failed says %+v", data)
	}
}

func TestStartRefusesBadInput(t *testing.T) {
	p := workflows.New("strict", "")
	p.Ingest("a", nothing)
	d := build(t, p)
	for name, c := range map[string]struct {
		in   workflows.RunInput
		want string
	}{
		"key":       {workflows.RunInput{Run: "Not A Key"}, "run key"},
		"no object": {workflows.RunInput{Params: []byte(`[1]`)}, "JSON object"},
		"too large": {workflows.RunInput{Params: []byte(`{"x":"` + strings.Repeat("y", workflows.MaxPayloadBytes) + `"}`)}, "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := workflows.Start(t.Context(), &fakes{}, d, c.in, workflows.StartOptions{}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestStartSaysWhatToDo(t *testing.T) {
	p := workflows.New("strict", "")
	p.Ingest("a", nothing)
	d := build(t, p)
	for name, c := range map[string]struct {
		err, want error
		hint      string
	}{
		"no search attributes": {serviceerror.NewInvalidArgument("Namespace default has no mapping defined for search attribute StokeholdRun"), workflows.ErrSearchAttributes, "register those of workflows.SearchAttributes"},
		"no server":            {serviceerror.NewUnavailable("connection refused"), workflows.ErrUnavailable, "check its address"},
		"run exists":           {serviceerror.NewWorkflowExecutionAlreadyStarted("started", "", ""), workflows.ErrRunExists, "choose another key"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := workflows.Start(t.Context(), &fakes{startErr: c.err}, d, workflows.RunInput{}, workflows.StartOptions{})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.hint) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.hint)
			}
		})
	}
}

func TestWorkerReportsEveryFault(t *testing.T) {
	d := loop(t)
	raw, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	unbound, err := workflows.ParseDefinition(raw)
	if err != nil {
		t.Fatal(err)
	}
	_, err = workflows.NewWorker(workflows.WorkerConfig{Pipelines: []*workflows.Definition{d, unbound, nil}, MaxStages: -1})
	for _, want := range []string{"Client is missing", "Runtime is missing", "Bus is missing", "two pipelines", "holds nil", "train: has no implementation", "MaxStages"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestStopWithoutStart(t *testing.T) {
	f := &fakes{}
	w, err := workflows.NewWorker(workflows.WorkerConfig{Client: f, Executor: f, Publisher: f})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := w.Start(t.Context()); !errors.Is(err, workflows.ErrStopped) {
		t.Errorf("got %v, want ErrStopped", err)
	}
}

func TestExecuteStageFromOwnWorkflow(t *testing.T) {
	f := &fakes{}
	suite := &testsuite.WorkflowTestSuite{}
	env := suite.NewTestWorkflowEnvironment()
	err := workflows.Register(env, workflows.WorkerConfig{
		Client: f, Executor: f, Publisher: f, Stages: map[string]stages.Stage{"clean": nothing},
	})
	if err != nil {
		t.Fatal(err)
	}
	env.RegisterWorkflow(ownWorkflow)
	env.ExecuteWorkflow(ownWorkflow, "flights/raw")
	var r stages.Result
	if err := env.GetWorkflowResult(&r); err != nil {
		t.Fatal(err)
	}
	if r.Dataset != "flights/clean" || string(f.calls[0].Params) != `{"drop":"nulls"}` {
		t.Errorf("result %+v of %+v", r, f.calls)
	}
}

func ownWorkflow(ctx workflow.Context, dataset string) (stages.Result, error) {
	return workflows.ExecuteStage(ctx, workflows.StageCall{
		Stage:  "clean",
		Params: map[string]string{"drop": "nulls"},
		Inputs: []stages.Binding{{Name: "raw", Dataset: dataset}},
		Output: "flights/clean",
	}).Get(ctx)
}

func TestMigration(t *testing.T) {
	f := &fakes{}
	failed := false
	f.move = func(seq uint64) error {
		if seq == 300 && !failed {
			failed = true
			return errFlaky
		}
		return nil
	}
	env := environment(t, f)
	env.ExecuteWorkflow(workflows.MigrateWorkflow, workflows.Migration{Dataset: "flights/schedule", From: 10, To: 600})
	var r workflows.MigrationResult
	if err := env.GetWorkflowResult(&r); err != nil {
		t.Fatal(err)
	}
	if r.Moved != 590 || len(f.moved) != 590 || f.moved[0] != 10 || f.moved[589] != 599 {
		t.Errorf("moved %d of %d calls, want each once: a retry continues where it stopped", r.Moved, len(f.moved))
	}
}

// TestLaterStagesAreAnnounced: a stage is told what stages will read that cannot begin
// before it has ended, as far as that is there.
func TestLaterStagesAreAnnounced(t *testing.T) {
	p := workflows.New("ahead", "")
	weeks := p.Ingest("weeks", nothing, workflows.Into("all/weeks"))
	model := p.Train("train", weeks, nothing, workflows.Reads(p.Source("all/labels")), workflows.Named("m"))
	p.Evaluate("evaluate", model, weeks, nothing, workflows.Reads(p.Source("all/labels")))
	d := build(t, p)
	f := &fakes{stages: map[string]stageFunc{"train": func(_ context.Context, a stages.Assignment, h stages.Hooks) (stages.Result, error) {
		if s, _ := h.Stage("evaluate"); s == nil {
			t.Error("the stage to come is not known")
		}
		if s, _ := h.Stage("none"); s != nil {
			t.Errorf("%v", s)
		}
		return stages.Result{Model: a.Model, Version: "v1"}, nil
	}}}
	if _, err := execute(t, environment(t, f, d), d, workflows.RunInput{Run: "r1"}); err != nil {
		t.Fatal(err)
	}
	labels := stages.Upcoming{Stage: "evaluate", Input: stages.Binding{Name: "all/labels", Dataset: "all/labels"}}
	got := map[string][]stages.Upcoming{}
	for _, a := range f.calls {
		got[a.Stage] = a.Upcoming
	}
	if len(got["evaluate"]) != 0 || !slices.Contains(got["weeks"], labels) || !slices.Contains(got["train"], labels) {
		t.Errorf("%+v", got)
	}
}
