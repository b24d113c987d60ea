package evaluate

import (
	"context"
	"errors"
	"fmt"

	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/train"
)

// Stage measures the version that its model input brings, and adds the measures
// to that version.
type Stage struct {
	Features string
	Labels   string
	Target   train.Target
	Window   train.Window   // default train.FromTo
	Kinds    train.Kinds    // nil: train.Builtin()
	Registry train.Registry // nil: the task's
}

// Forecast implements stages.Forecaster.
func (s *Stage) Forecast(task *stages.Task, _ stages.Binding) (from, to uint64, err error) {
	if s.Window == nil {
		return train.FromTo(task)
	}
	return s.Window(task)
}

// Run implements stages.Stage.
func (s *Stage) Run(ctx context.Context, task *stages.Task) error {
	window, kinds, registry := s.Window, s.Kinds, s.Registry
	if window == nil {
		window = train.FromTo
	}
	if kinds == nil {
		kinds = train.Builtin()
	}
	if registry == nil {
		registry = task.Models()
	}
	from, to, err := window(task)
	if err != nil {
		return err
	}
	var model, version string
	for _, b := range task.Inputs() {
		if b.Model != "" && b.Version != "" {
			model, version = b.Model, b.Version
			break
		}
	}
	if version == "" {
		return stages.Permanent(errors.New("evaluate: no model version among the inputs: wire a model into the stage"))
	}
	examples, err := train.ReadExamples(ctx, task, s.Features, s.Labels, from, to, s.Target)
	if err != nil {
		return err
	}
	_, p, err := train.Open(ctx, registry, kinds, model, version)
	if err != nil {
		return err
	}
	scores, err := Of(p, examples)
	if err != nil {
		return stages.Permanent(fmt.Errorf("model %s: %w", model, err))
	}
	metrics := scores.Map()
	if err := registry.AddMetrics(ctx, model, version, metrics); err != nil {
		return err
	}
	for name, v := range metrics {
		task.Metric(name, v)
	}
	task.Progress(1, 1, fmt.Sprintf("log loss %.4f, AUC %.4f", scores.LogLoss, scores.AUC))
	return nil
}

// Of measures a predictor on examples.
func Of(p train.Predictor, e *train.Examples) (Scores, error) {
	if err := train.Check(p, e.Names); err != nil {
		return Scores{}, err
	}
	q, err := p.Predict(e.X)
	if err != nil {
		return Scores{}, err
	}
	return Measure(q, e.Y)
}
