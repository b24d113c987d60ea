package stagetest_test

import (
	"context"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/stagetest"
)

// A bounded input holds what its stage of the run wrote, and what the test put
// there.
func TestBoundedInput(t *testing.T) {
	schema := arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)
	batch := func(n int64) arrow.RecordBatch {
		b := array.NewInt64Builder(memory.DefaultAllocator)
		defer b.Release()
		b.Append(n)
		return stagetest.Records(schema, b.NewArray())
	}
	lake := stagetest.NewLake()
	rec := batch(0)
	defer rec.Release()
	if err := lake.Put("long/lived", 0, rec); err != nil {
		t.Fatal(err)
	}
	for i, run := range []string{"run-1", "run-2"} {
		_, err := lake.Execute(t.Context(), stages.Func(func(ctx context.Context, task *stages.Task) error {
			rec := batch(int64(i + 1))
			defer rec.Release()
			_, err := task.Write(ctx, rec)
			return err
		}), stages.Assignment{Run: run, Stage: "rows", Output: "long/lived"})
		if err != nil {
			t.Fatal(err)
		}
	}
	var got []uint64
	_, err := lake.Execute(t.Context(), stages.Func(func(ctx context.Context, task *stages.Task) error {
		for b, err := range task.Batches(ctx) {
			if err != nil {
				return err
			}
			got = append(got, b.Ref.Sequence)
		}
		return nil
	}), stages.Assignment{Run: "run-2", Stage: "reads", Inputs: []stages.Binding{{Name: "rows", Dataset: "long/lived", Bounded: true}}})
	if err != nil || len(got) != 2 || got[0] != 0 || got[1] != 2 {
		t.Errorf("%v, %v", got, err)
	}
}
