package train

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
)

// Registry is what the built-in stages need of a model registry;
// *models.Registry is one.
type Registry interface {
	Register(ctx context.Context, draft models.Version, artifact []byte) (models.Version, error)
	AddMetrics(ctx context.Context, model, id string, metrics map[string]float64) error
	Get(ctx context.Context, model, id string) (models.Version, error)
	Artifact(ctx context.Context, v models.Version) ([]byte, error)
	Alias(ctx context.Context, model, alias string) (models.Version, error)
	Promote(ctx context.Context, p models.Promotion) error
	Refuse(ctx context.Context, p models.Promotion, policy string) error
	Versions(ctx context.Context, model string) iter.Seq2[models.Version, error]
}

// Window says which batches a run reads: from..to-1.
type Window func(*stages.Task) (from, to uint64, err error)

// FromTo is the Window of the parameters "from" and "to" (exclusive).
func FromTo(task *stages.Task) (from, to uint64, err error) {
	var p struct{ From, To uint64 }
	err = task.Decode(&p)
	return p.From, p.To, err
}

// Stage fits a logistic regression and registers it as a version of Model.
type Stage struct {
	Model    string // name of the model
	Features string // input of float32 columns
	Labels   string // input with the target's column, same rows in the same order
	Target   Target
	Fit      Logistic
	Window   Window // default FromTo
	// Holdout, where set, says on which batches the version will be measured; it is
	// kept in the version's metadata as "holdout", for whoever watches the model.
	Holdout  Window
	Registry Registry // nil: the task's
}

// HoldoutKey is the version metadata that names the holdout, "FROM-TO" (TO
// exclusive).
const HoldoutKey = "holdout"

// HoldoutOf reads it.
func HoldoutOf(v models.Version) (from, to uint64, err error) {
	if _, err := fmt.Sscanf(v.Metadata[HoldoutKey], "%d-%d", &from, &to); err != nil || from >= to {
		return 0, 0, fmt.Errorf("train: model %s version %s: metadata %q is %q, want FROM-TO", v.Model, v.Short(), HoldoutKey, v.Metadata[HoldoutKey])
	}
	return from, to, nil
}

// Forecast implements stages.Forecaster.
func (s *Stage) Forecast(task *stages.Task, _ stages.Binding) (from, to uint64, err error) {
	if s.Window == nil {
		return FromTo(task)
	}
	return s.Window(task)
}

// Run implements stages.Stage. The notes name what was made: "model", "version".
func (s *Stage) Run(ctx context.Context, task *stages.Task) error {
	window := s.Window
	if window == nil {
		window = FromTo
	}
	from, to, err := window(task)
	if err != nil {
		return err
	}
	task.Progress(0, 2, fmt.Sprintf("reading %d to %d", from, to-1))
	examples, err := ReadExamples(ctx, task, s.Features, s.Labels, from, to, s.Target)
	if err != nil {
		return err
	}
	task.Progress(1, 2, fmt.Sprintf("fitting %d rows", examples.Rows()))
	model, err := s.Fit.Fit(ctx, examples)
	if err != nil {
		if errors.Is(err, ErrFit) {
			return stages.Permanent(fmt.Errorf("%s: %w", s.Model, err))
		}
		return err
	}
	model.Target = s.Target.String()
	artifact, err := model.Encode()
	if err != nil {
		return stages.Permanent(err)
	}
	draft := models.Version{
		Model: s.Model, Format: "safetensors", Kind: LogisticKind,
		Metrics:  map[string]float64{"train_loss": model.Loss, "train_rows": float64(examples.Rows())},
		Lineage:  models.Lineage{Datasets: examples.Use},
		Metadata: map[string]string{"target": model.Target, "window": fmt.Sprintf("%d-%d", from, to)},
	}
	if s.Holdout != nil {
		from, to, err := s.Holdout(task)
		if err != nil {
			return err
		}
		draft.Metadata[HoldoutKey] = fmt.Sprintf("%d-%d", from, to)
	}
	if draft.Lineage.Parent, err = s.parent(ctx, task); err != nil {
		return err
	}
	version, err := s.save(ctx, task, draft, artifact)
	if err != nil {
		return err
	}
	task.Metric("train_loss", model.Loss)
	task.Metric("train_rows", float64(examples.Rows()))
	task.Note("model", version.Model)
	task.Note("version", version.ID)
	task.Progress(2, 2, "version "+version.Short())
	return nil
}

// parent is the version that the new one is to replace: the champion, if there is
// one yet.
func (s *Stage) parent(ctx context.Context, task *stages.Task) (string, error) {
	registry := s.Registry
	if registry == nil {
		if task.Models() == nil {
			return "", nil // saving the model says what is wrong
		}
		registry = task.Models()
	}
	champion, err := registry.Alias(ctx, s.Model, models.Champion)
	if err != nil && !errors.Is(err, models.ErrNotFound) {
		return "", err
	}
	return champion.ID, nil
}

func (s *Stage) save(ctx context.Context, task *stages.Task, draft models.Version, artifact []byte) (models.Version, error) {
	if s.Registry == nil {
		return task.SaveModel(ctx, draft, artifact)
	}
	l := &draft.Lineage
	l.Pipeline, l.Run, l.Stage, l.Cause, l.Seed = task.Pipeline, task.Run, task.Stage, task.Cause, task.Seed
	draft.Created = time.Time{}
	return s.Registry.Register(ctx, draft, artifact)
}

// Open loads version id of a model, checked against what the registry says of it.
func Open(ctx context.Context, r Registry, kinds Kinds, model, id string) (models.Version, Predictor, error) {
	v, err := r.Get(ctx, model, id)
	if err != nil {
		return models.Version{}, nil, err
	}
	artifact, err := r.Artifact(ctx, v)
	if err != nil {
		return models.Version{}, nil, err
	}
	p, err := kinds.Load(v.Kind, artifact)
	if err != nil {
		return models.Version{}, nil, stages.Permanent(fmt.Errorf("model %s version %s: %w", model, v.Short(), err))
	}
	return v, p, nil
}

// Check reports whether p wants exactly the features names, in order.
func Check(p Predictor, names []string) error {
	want := p.Features()
	if len(want) != len(names) {
		return fmt.Errorf("train: %w: have %d features (%s), the model wants %d (%s)", ErrShape, len(names), joined(names), len(want), joined(want))
	}
	for i := range want {
		if want[i] != names[i] {
			return fmt.Errorf("train: %w: feature %d is %q, the model wants %q", ErrShape, i, names[i], want[i])
		}
	}
	return nil
}
