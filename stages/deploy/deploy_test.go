package deploy_test

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/deploy"
	"github.com/stokehold/stokehold/stages/stagetest"
	"github.com/stokehold/stokehold/stages/train"
)

const model = "late"

// weights registers a model that puts its weight on the one feature.
func weights(t *testing.T, r *stagetest.Registry, w float64) models.Version {
	t.Helper()
	m := &train.LogisticModel{Names: []string{"x"}, Mean: []float64{0}, Scale: []float64{1}, Weights: []float64{w}, Target: "y > 0"}
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.Register(t.Context(), models.Version{Model: model, Kind: train.LogisticKind, Format: "safetensors"}, b)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func holdout(t *testing.T, lake *stagetest.Lake, label func(i int) bool) {
	t.Helper()
	x, y := array.NewFloat32Builder(memory.DefaultAllocator), array.NewInt64Builder(memory.DefaultAllocator)
	for i := range 100 {
		x.Append(float32(i-50) / 10)
		v := int64(0)
		if label(i) {
			v = 1
		}
		y.Append(v)
	}
	err := errors.Join(
		lake.Put("x", 0, stagetest.Records(arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Float32}}, nil), x.NewArray())),
		lake.Put("y", 0, stagetest.Records(arrow.NewSchema([]arrow.Field{{Name: "y", Type: arrow.PrimitiveTypes.Int64}}, nil), y.NewArray())))
	if err != nil {
		t.Fatal(err)
	}
}

type bench struct {
	lake     *stagetest.Lake
	registry *stagetest.Registry
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{lake: stagetest.NewLake(), registry: stagetest.NewRegistry()}
	holdout(t, b.lake, func(i int) bool { return i >= 50 })
	return b
}

func (b *bench) deploy(t *testing.T, v models.Version) (stages.Result, error) {
	t.Helper()
	s := &deploy.Stage{Features: "x", Labels: "y", Target: train.Target{Column: "y"}, Registry: b.registry}
	return b.lake.Execute(t.Context(), s, stages.Assignment{
		Pipeline: "p", Run: "p/1", Stage: "deploy", Cause: "drift-1", Params: []byte(`{"from":0,"to":1}`),
		Inputs: []stages.Binding{{Name: "train", Model: model, Version: v.ID}, {Dataset: "x"}, {Dataset: "y"}},
	})
}

func (b *bench) champion(t *testing.T) string {
	t.Helper()
	v, err := b.registry.Alias(t.Context(), model, models.Champion)
	if err != nil && !errors.Is(err, models.ErrNotFound) {
		t.Fatal(err)
	}
	return v.ID
}

func TestFirstModelIsPromotedAndABetterOneFollows(t *testing.T) {
	b := newBench(t)
	weak, strong := weights(t, b.registry, 0.2), weights(t, b.registry, 2)
	r, err := b.deploy(t, weak)
	if err != nil || r.Notes["outcome"] != deploy.Promoted || b.champion(t) != weak.ID {
		t.Fatalf("%v, %v", r.Notes, err)
	}
	if r, err = b.deploy(t, strong); err != nil || r.Notes["outcome"] != deploy.Promoted || b.champion(t) != strong.ID {
		t.Fatalf("%v, %v", r.Notes, err)
	}
	if r.Notes["champion"] != weak.ID || r.Metrics["challenger_logloss"] >= r.Metrics["champion_logloss"] {
		t.Errorf("%+v", r)
	}
	// A retry after the promotion changes nothing.
	published := len(b.lake.Events())
	if r, err = b.deploy(t, strong); err != nil || r.Notes["outcome"] != deploy.Kept || len(b.lake.Events()) != published {
		t.Errorf("repeated: %v, %v", r.Notes, err)
	}
}

func TestDeniedRequestIsARefusalWithTheReason(t *testing.T) {
	b := newBench(t)
	strong, weak := weights(t, b.registry, 2), weights(t, b.registry, 0.2)
	if _, err := b.deploy(t, strong); err != nil {
		t.Fatal(err)
	}
	b.lake.OnPublish = func(_ context.Context, e events.Event) error {
		return &events.DeniedError{Verdict: events.Verdict{Action: events.Deny, Policy: "gate/better", Reason: "log loss is worse"}}
	}
	for range 2 { // again as a retry
		r, err := b.deploy(t, weak)
		if err != nil || r.Notes["outcome"] != deploy.Refused || r.Notes["reason"] != "log loss is worse" || r.Notes["policy"] != "gate/better" {
			t.Fatalf("%v, %v", r.Notes, err)
		}
	}
	v, err := b.registry.Get(t.Context(), model, weak.ID)
	if err != nil || v.Status != models.Refused || v.Reason != "log loss is worse" || b.champion(t) != strong.ID {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestUnusableMetricsAreNeverPromoted(t *testing.T) {
	b := newBench(t)
	holdout(t, b.lake, func(int) bool { return false }) // one class: AUC is NaN
	v := weights(t, b.registry, 1)
	r, err := b.deploy(t, v)
	if err != nil || r.Notes["outcome"] != deploy.Refused || b.champion(t) != "" || len(b.lake.Events()) != 0 {
		t.Errorf("NaN: %v, %v, champion %q", r.Notes, err, b.champion(t))
	}
	b = newBench(t)
	overflow := weights(t, b.registry, math.MaxFloat64) // predicts NaN or infinity
	if r, err = b.deploy(t, overflow); err != nil || r.Notes["outcome"] != deploy.Refused || b.champion(t) != "" {
		t.Errorf("a model that cannot predict: %v, %v", r.Notes, err)
	}
}

func TestFailureToAskIsNoRefusal(t *testing.T) {
	b := newBench(t)
	down := errors.New("the bus is down")
	b.lake.OnPublish = func(context.Context, events.Event) error { return down }
	v := weights(t, b.registry, 1)
	if _, err := b.deploy(t, v); !errors.Is(err, down) || b.champion(t) != "" {
		t.Fatalf("%v", err)
	}
	if got, _ := b.registry.Get(t.Context(), model, v.ID); got.Status == models.Refused {
		t.Error("refused although nothing was judged")
	}
}

// lateChampion moves the alias between comparison and promotion.
type lateChampion struct {
	*stagetest.Registry
	other models.Version
}

func (l lateChampion) Promote(ctx context.Context, p models.Promotion) error {
	if p.Alias == models.Champion && p.ID != l.other.ID {
		if err := l.Registry.Promote(ctx, models.Promotion{Model: model, Alias: models.Champion, ID: l.other.ID, Previous: p.Previous}); err != nil {
			return err
		}
	}
	return l.Registry.Promote(ctx, p)
}

func TestChampionThatChangedMeanwhileIsNotOverwritten(t *testing.T) {
	b := newBench(t)
	mine, other := weights(t, b.registry, 1), weights(t, b.registry, 2)
	s := &deploy.Stage{Features: "x", Labels: "y", Target: train.Target{Column: "y"}, Registry: lateChampion{b.registry, other}}
	_, err := b.lake.Execute(t.Context(), s, stages.Assignment{
		Run: "r", Stage: "deploy", Params: []byte(`{"from":0,"to":1}`),
		Inputs: []stages.Binding{{Name: "train", Model: model, Version: mine.ID}, {Dataset: "x"}, {Dataset: "y"}},
	})
	if !errors.Is(err, models.ErrConflict) || stages.IsPermanent(err) || b.champion(t) != other.ID {
		t.Errorf("%v, champion is mine: %t", err, b.champion(t) == mine.ID)
	}
}
