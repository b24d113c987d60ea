package flights

import (
	"context"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/drift"
	"github.com/stokehold/stokehold/stages/train"
)

// Predictor answers predictions; *deploy.Client is one.
type Predictor interface {
	Predict(ctx context.Context, model, version string, x []float32, width int) (p []float32, served string, err error)
}

// Score asks the serving endpoint for the probabilities of one week's flights, by
// the champion and, to compare, by the first model. The champion is resolved once
// and asked for by its id, so that a promotion meanwhile does not mix two models
// in one batch and a run gives the same predictions when repeated.
type Score struct {
	Client   Predictor
	Data     *Data
	Registry train.Registry // nil: the task's
}

// Schema implements stages.Schemer.
func (*Score) Schema() *arrow.Schema {
	return arrow.NewSchema([]arrow.Field{
		{Name: drift.ColumnServed, Type: arrow.PrimitiveTypes.Float32},
		{Name: drift.ColumnFrozen, Type: arrow.PrimitiveTypes.Float32},
		{Name: drift.ColumnVersion, Type: arrow.BinaryTypes.String},
		{Name: drift.ColumnFrozenVersion, Type: arrow.BinaryTypes.String},
	}, nil)
}

// Run implements stages.Stage.
func (s *Score) Run(ctx context.Context, task *stages.Task) error {
	week, err := weekOf(task)
	if err != nil {
		return err
	}
	if week < FirstLive {
		return stages.Permanent(fmt.Errorf("flights: week %d is before the first live week, %d", week, FirstLive))
	}
	var names []string
	var x []float32
	for b, err := range task.Range(ctx, Features, week, week+1) {
		if err != nil {
			return err
		}
		if names, x, err = train.Matrix(b.Record); err != nil {
			return stages.Permanent(err)
		}
	}
	if len(x) == 0 {
		return stages.Permanent(fmt.Errorf("flights: no features of week %d", week))
	}
	champion, first, err := s.versions(ctx, task)
	if err != nil {
		return err
	}
	task.Progress(0, 2, "champion "+champion.Short())
	served, _, err := s.Client.Predict(ctx, Model, champion.ID, x, len(names))
	if err != nil {
		return err
	}
	task.Progress(1, 2, "first model")
	frozen := served
	if first.ID != champion.ID {
		if frozen, _, err = s.Client.Predict(ctx, Model, first.ID, x, len(names)); err != nil {
			return err
		}
	}
	rec := predictions(s.Schema(), served, frozen, champion.Short(), first.Short())
	defer rec.Release()
	if _, err := task.WriteAt(ctx, week-FirstLive, rec); err != nil {
		return err
	}
	task.Progress(2, 2, fmt.Sprintf("%d flights", len(served)))
	return task.Publish(ctx, TypeScored, subject, "scored", s.Data.End(week), Scored{
		Week: week, Rows: int64(len(served)), Version: champion.ID, Frozen: first.ID,
	})
}

func (s *Score) versions(ctx context.Context, task *stages.Task) (champion, first models.Version, err error) {
	registry := s.Registry
	if registry == nil {
		registry = task.Models()
	}
	if champion, err = registry.Alias(ctx, Model, models.Champion); err != nil {
		return champion, first, fmt.Errorf("flights: no champion to score with: %w", err)
	}
	for v, err := range registry.Versions(ctx, Model) {
		if err != nil {
			return champion, first, err
		}
		if v.Status == models.Promoted {
			return champion, v, nil // by time of creation: the first of all
		}
	}
	return champion, champion, nil
}

func predictions(schema *arrow.Schema, served, frozen []float32, version, frozenVersion string) arrow.RecordBatch {
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	b.Field(0).(*array.Float32Builder).AppendValues(served, nil)
	b.Field(1).(*array.Float32Builder).AppendValues(frozen, nil)
	for range served {
		b.Field(2).(*array.StringBuilder).Append(version)
		b.Field(3).(*array.StringBuilder).Append(frozenVersion)
	}
	return b.NewRecordBatch()
}
