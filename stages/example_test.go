package stages_test

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/stagetest"
)

// A stage is a function of a Task. This one keeps the delays of at least so many
// minutes; it is run here against datasets in memory.
func Example() {
	schema := arrow.NewSchema([]arrow.Field{{Name: "delay", Type: arrow.PrimitiveTypes.Int64}}, nil)
	late := stages.Func(func(ctx context.Context, task *stages.Task) error {
		params := struct{ Minutes int64 }{Minutes: 1}
		if err := task.Decode(&params); err != nil {
			return err
		}
		kept := 0
		for batch, err := range task.Batches(ctx) {
			if err != nil {
				return err
			}
			// batch is lent until the end of this loop's body; out is ours.
			out := array.NewInt64Builder(memory.DefaultAllocator)
			for _, delay := range batch.Record.Column(0).(*array.Int64).Int64Values() {
				if delay >= params.Minutes {
					out.Append(delay)
				}
			}
			kept += out.Len()
			rec := stagetest.Records(schema, out.NewArray())
			out.Release()
			_, err := task.Write(ctx, rec)
			rec.Release()
			if err != nil {
				return err
			}
		}
		task.Metric("kept", float64(kept))
		return nil
	})

	lake := stagetest.NewLake()
	for week, delays := range [][]int64{{-3, 20, 61}, {5, 16}} {
		b := array.NewInt64Builder(memory.DefaultAllocator)
		b.AppendValues(delays, nil)
		rec := stagetest.Records(schema, b.NewArray())
		if err := lake.Put("flights/delays", uint64(week), rec); err != nil {
			fmt.Println(err)
			return
		}
		rec.Release()
		b.Release()
	}
	result, err := lake.Execute(context.Background(), late, stages.Assignment{
		Pipeline: "flights", Run: "1", Stage: "late", Output: "flights/late",
		Params: json.RawMessage(`{"minutes": 15}`),
		Inputs: []stages.Binding{{Name: "delays", Dataset: "flights/delays"}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for week := range lake.Len("flights/late") {
		rec, err := lake.Batch("flights/late", week)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("week", week, rec.Column(0))
		rec.Release()
	}
	fmt.Println(result.Rows, "rows,", result.Metrics["kept"], "kept")
	// Output:
	// week 0 [20 61]
	// week 1 [16]
	// 3 rows, 3 kept
}
