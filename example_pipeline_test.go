package stokehold_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

// A pipeline from rows to a served model, built in Go and started by an event.
func Example_pipeline() {
	read := stages.Func(func(ctx context.Context, task *stages.Task) error {
		sold := soldHouses()
		defer sold.Release()
		_, err := task.Write(ctx, sold) // judged, stored and announced
		return err
	})
	clean := stages.Func(func(ctx context.Context, task *stages.Task) error {
		for batch, err := range task.Batches(ctx) { // as they come
			if err != nil {
				return err
			}
			if _, err := task.Write(ctx, batch.Record); err != nil {
				return err
			}
		}
		return nil
	})
	fit := stages.Func(func(ctx context.Context, task *stages.Task) error {
		_, err := task.SaveModel(ctx, models.Version{Model: "houses"}, []byte("weights"))
		return err
	})
	measure := stages.Func(func(ctx context.Context, task *stages.Task) error { task.Metric("mae", 0.1); return nil })
	promote := stages.Func(func(ctx context.Context, task *stages.Task) error {
		made, err := task.Input("train")
		if err != nil {
			return err
		}
		champion, err := task.Models().Alias(ctx, made.Model, models.Champion)
		if err != nil && !errors.Is(err, models.ErrNotFound) {
			return err
		}
		return task.Models().Promote(ctx, models.Promotion{ // a policy may refuse it
			Model: made.Model, Alias: models.Champion, ID: made.Version, Previous: champion.ID,
		})
	})

	p := workflows.New("houses", "Learn what houses cost")
	rows := p.Ingest("rows", read, workflows.Into("houses/sold"))
	features := p.Preprocess("features", rows, clean, workflows.InChildProcess())
	model := p.Train("train", features, fit, workflows.Timeout(time.Hour))
	score := p.Evaluate("evaluate", model, features, measure)
	p.Deploy("deploy", model, score, promote)
	p.On(workflows.Trigger{Types: []string{"drift.detected"}, When: "data.model == 'houses'", Cooldown: 24 * time.Hour})
	def, err := p.Build()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(def.Text())
	// Output:
	// houses: Learn what houses cost
	//   rows      ingest      -> houses/sold
	//   features  preprocess  <- rows  [child process]
	//   train     train       <- features  => model houses
	//   evaluate  evaluate    <- train, features
	//   deploy    deploy      <- train, evaluate
	//   on drift.detected when data.model == 'houses', cooldown 24h0m0s
}

// Build reports all that is wrong with a pipeline at once, and what to do.
func Example_buildError() {
	nothing := stages.Func(func(context.Context, *stages.Task) error { return nil })
	elsewhere := workflows.New("elsewhere", "").Ingest("rows", nothing)
	p := workflows.New("Houses", "")
	rows := p.Ingest("rows", nil, workflows.Timeout(-time.Second))
	p.Preprocess("features", elsewhere, nothing)
	p.Train("features", rows, nothing)
	p.On(workflows.Trigger{Types: []string{"data.arrived"}, When: "data.week + 1"})
	p.On(workflows.Trigger{Name: "never"})
	_, err := p.Build()
	fmt.Println(err)
	// Output:
	// workflows: pipeline "Houses" cannot be built, faults: 7
	//   - rows: timeout -1s is not positive (leave Timeout out for the default, 10 minutes)
	//   - rows: has no implementation (pass a stages.Stage, or stages.Func for a function)
	//   - features: input 1 "rows" belongs to pipeline "elsewhere" (bring its dataset in with Source, its model with Current)
	//   - pipeline name "Houses" is not usable (use lower-case words joined by dashes, at most 63 bytes)
	//   - features: duplicate name (stages and sources of a pipeline need names of their own)
	//   - trigger data.arrived: When: 1:1: the expression gives int, not bool (write a CEL expression over event and data that gives a bool)
	//   - trigger never: names no event type (set Trigger.Types: a trigger for every event would also fire on its own runs)
}

func soldHouses() arrow.RecordBatch {
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{
		{Name: "rooms", Type: arrow.PrimitiveTypes.Int64}, {Name: "price", Type: arrow.PrimitiveTypes.Float64},
	}, nil))
	defer b.Release()
	b.Field(0).(*array.Int64Builder).AppendValues([]int64{3, 5}, nil)
	b.Field(1).(*array.Float64Builder).AppendValues([]float64{210e3, 340e3}, nil)
	return b.NewRecordBatch()
}
