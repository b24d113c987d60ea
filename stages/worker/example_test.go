package worker_test

import (
	"context"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/stokehold/stokehold/stages/worker"
)

// squares makes its batches where the host reads them, and then a model.
func squares(ctx context.Context, task *worker.ChildTask) error {
	schema := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int64}}, nil)
	for seq := range uint64(2) {
		out, err := task.Build(ctx, schema, 4096)
		if err != nil {
			return err
		}
		b := array.NewRecordBuilder(out.Allocator(), schema)
		for i := range int64(3) {
			b.Field(0).(*array.Int64Builder).Append(i * i)
		}
		rec := b.NewRecordBatch()
		b.Release()
		err = out.Write(ctx, seq, rec)
		rec.Release()
		if err != nil {
			return err
		}
	}
	saved, err := task.SaveModel(ctx, worker.ModelDraft{Format: "opaque", Kind: "squares/v1"}, []byte("y = x * x"))
	if err != nil {
		return err
	}
	return task.Progress(worker.Progress{Done: 2, Note: "saved " + saved.Version})
}

func ExampleChildTask_Build() {
	// In main, before anything else:
	//
	//	worker.RunIfChild(map[string]worker.Func{"squares": squares})
	ctx := context.Background()
	pool, err := worker.StartPool(ctx, worker.Config{Outputs: worker.Shared, Processes: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = pool.Do(ctx, worker.Job{
		Stage: "squares",
		OnBatch: func(_ context.Context, out *worker.Output) error {
			fmt.Println(out.Sequence, out.Batch.Column(0), "in the child's arena:", out.Arena.Shared())
			return nil
		},
		OnModel: func(_ context.Context, m *worker.Model) (worker.SavedModel, error) {
			fmt.Printf("%s: %s\n", m.Kind, m.Artifact)
			return worker.SavedModel{Model: "squares", Version: "1"}, nil
		},
		OnProgress: func(p worker.Progress) error {
			fmt.Println(p.Note)
			return nil
		},
	})
	fmt.Println(err, "copied:", pool.Stats().WrittenBytes+pool.Stats().CopiedBytes)
	if err := pool.Close(ctx); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 0 [0 1 4] in the child's arena: true
	// 1 [0 1 4] in the child's arena: true
	// squares/v1: y = x * x
	// saved 1
	// <nil> copied: 0
}
