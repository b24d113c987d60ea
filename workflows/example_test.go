package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

func ExamplePipeline() {
	read := stages.Func(func(ctx context.Context, task *stages.Task) error { return nil })
	fit := stages.Func(func(ctx context.Context, task *stages.Task) error { return nil })

	p := workflows.New("late-flights", "Learns which flights will be late.")
	weeks := p.Ingest("weeks", read, workflows.Into("flights/schedule"))
	p.Train("train", weeks, fit, workflows.Reads(p.Source("flights/labels")))
	p.On(workflows.Trigger{
		Types: []string{"drift.detected"}, When: "data.statistic > data.threshold",
		Cooldown: 24 * time.Hour, EventTime: true,
	})
	d, err := p.Build()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(d.Text())
	// Output:
	// late-flights: Learns which flights will be late.
	//   weeks  ingest  -> flights/schedule
	//   train  train   <- weeks, flights/labels  => model late-flights
	//   on drift.detected when data.statistic > data.threshold, cooldown 24h0m0s of event time
}

func ExampleInWorker() {
	read := stages.Func(func(ctx context.Context, task *stages.Task) error { return nil })

	p := workflows.New("churn", "")
	features := p.Preprocess("features", p.Ingest("events", read), read, workflows.InChildProcess())
	p.Train("train", features, stages.Remote{}, workflows.InWorker("python"))
	d, err := p.Build()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(d.Text())
	// Output:
	// churn
	//   events    ingest
	//   features  preprocess  <- events  [child process]
	//   train     train       <- features  => model churn  [worker python]
}

func ExamplePipeline_Build_faults() {
	p := workflows.New("late-flights", "")
	p.Train("train", workflows.Dataset{}, nil, workflows.Attempts(0))
	_, err := p.Build()
	var faults *workflows.BuildError
	if errors.As(err, &faults) {
		for _, f := range faults.Faults {
			fmt.Println(f)
		}
	}
	// Output:
	// train: attempts 0 is not positive (leave Attempts out for the default, 10)
	// train: input 1 is an empty handle (pass what a method of this pipeline returned)
	// train: has no implementation (pass a stages.Stage, or stages.Func for a function)
}

// A workflow of one's own calls stages as a pipeline does: with heartbeats,
// retries and resumption. Here one stage's outcome decides whether another runs,
// which a pipeline cannot say.
func ExampleExecuteStage() {
	retrainIfStale := func(ctx workflow.Context, dataset string) (string, error) {
		checked, err := workflows.ExecuteStage(ctx, workflows.StageCall{
			Stage: "check", Kind: workflows.KindMonitor,
			Inputs: []stages.Binding{{Name: "rows", Dataset: dataset}},
		}).Get(ctx)
		if err != nil || checked.Metrics["staleness"] < 0.5 {
			return "fresh enough", err
		}
		model, err := workflows.ExecuteStage(ctx, workflows.StageCall{
			Stage: "train", Kind: workflows.KindTrain, Model: "flights",
			Params: map[string]int{"epochs": 3},
			Inputs: []stages.Binding{{Name: "rows", Dataset: dataset}},
		}).Get(ctx)
		return "trained " + model.Model, err
	}

	// A Worker takes the stages as WorkerConfig.Stages; this test environment
	// stands in for it and for Temporal.
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(workflows.Logger(slog.New(slog.DiscardHandler)))
	env := suite.NewTestWorkflowEnvironment()
	f := &fakes{stages: map[string]stageFunc{
		"check": func(context.Context, stages.Assignment, stages.Hooks) (stages.Result, error) {
			return stages.Result{Metrics: map[string]float64{"staleness": 0.8}}, nil
		},
	}}
	err := workflows.Register(env, workflows.WorkerConfig{
		Client: f, Executor: f, Publisher: f, Stages: map[string]stages.Stage{"check": nothing, "train": nothing},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	env.RegisterWorkflowWithOptions(retrainIfStale, workflow.RegisterOptions{Name: "retrain-if-stale"})
	env.ExecuteWorkflow("retrain-if-stale", "flights/features")
	var outcome string
	fmt.Println(env.GetWorkflowResult(&outcome), outcome)
	// Output: <nil> trained flights
}
