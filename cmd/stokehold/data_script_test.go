package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/tiers"
)

// fill is the command "fill DATASET BATCHES" of the scripts: it appends batches of two
// rows, through the deployment that stokehold would find, too.
func fill() {
	if err := fillDataset(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fill:", err)
		os.Exit(1)
	}
}

func fillDataset(ctx context.Context, args []string) (err error) {
	if len(args) != 2 {
		return errors.New("usage: fill DATASET BATCHES")
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	p := newPlatform()
	cfg, err := config.Load(config.Options{Discover: p.Discover})
	if err != nil {
		return err
	}
	d, err := p.Data(ctx, cfg)
	if err != nil {
		return err
	}
	defer closing(ctx, &err, d.Close)
	system, ok := d.(stored)
	if !ok {
		return fmt.Errorf("a %T writes nothing", d)
	}
	schema := arrow.NewSchema([]arrow.Field{{Name: "id", Type: arrow.PrimitiveTypes.Int64}}, nil)
	w, err := system.Writer(ctx, args[0], schema, tiers.Fence{Run: "filled", Stage: "fill", Attempt: 1})
	if err != nil {
		return err
	}
	for seq := range n {
		b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		b.Field(0).(*array.Int64Builder).AppendValues([]int64{int64(seq), 7}, nil)
		rec := b.NewRecordBatch()
		b.Release()
		_, err := w.WriteAt(ctx, uint64(seq), rec)
		rec.Release()
		if err != nil {
			return err
		}
	}
	return nil
}
