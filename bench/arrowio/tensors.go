package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/stages/worker"
)

// A batch of samples for PyTorch: 16 rows of 7 columns, each value a tensor. It
// goes through the worker protocol as one batch, which needs no descriptor of its
// own, and the stage makes torch tensors of it where it lies. As a DataLoader does,
// the producer works ahead: what is timed is from one batch to the next.

const (
	samples = 16
	tensors = 7
)

type tensoring struct {
	host  *worker.Host
	stage string
}

func startTensors(stage string) func(context.Context, *env) (handover, error) {
	return func(ctx context.Context, e *env) (handover, error) {
		host, err := worker.Start(ctx, e.workerConfig(true))
		if err != nil {
			return nil, err
		}
		return tensoring{host, stage}, nil
	}
}

func (t tensoring) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	return t.host.Close(ctx)
}

// tensorBatch has tensors of size bytes in all, less what does not divide.
func tensorBatch(size int64) arrow.RecordBatch {
	n := int32(size / (4 * samples * tensors))
	fields, cols := make([]arrow.Field, tensors), make([]arrow.Array, tensors)
	for i := range fields {
		b := array.NewFixedSizeListBuilder(memory.DefaultAllocator, n, arrow.PrimitiveTypes.Float32)
		v := b.ValueBuilder().(*array.Float32Builder)
		for range samples {
			b.Append(true)
			for j := range n {
				v.Append(float32(j))
			}
		}
		cols[i] = b.NewArray()
		b.Release()
		defer cols[i].Release()
		fields[i] = arrow.Field{Name: fmt.Sprint("t", i), Type: cols[i].DataType()}
	}
	return array.NewRecordBatch(arrow.NewSchema(fields, nil), cols, samples)
}

func (t tensoring) measure(ctx context.Context, o order) (_ []time.Duration, err error) {
	batch := tensorBatch(o.Size)
	defer batch.Release()
	arena, err := shm.New(shm.Config{Bytes: 6 * (o.Size + 64<<10), Name: "stokehold-bench", Prefault: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, arena.Close()) }()
	p := pacer{o: o}
	var handed, seen float64
	feed := func(ctx context.Context, _, _ uint64) iter.Seq2[worker.InputBatch, error] {
		return func(yield func(worker.InputBatch, error) bool) {
			at := time.Now()
			for more := true; more; handed++ {
				h, err := arena.Put(ctx, batch, nil)
				if err != nil {
					yield(worker.InputBatch{}, err)
					return
				}
				l, err := arena.Hold(h, "bench")
				if err = errors.Join(err, arena.Drop(h)); err != nil {
					yield(worker.InputBatch{}, err)
					return
				}
				if !yield(worker.InputBatch{Sequence: uint64(handed), Lease: l}, nil) {
					return
				}
				now := time.Now()
				more = p.add(now.Sub(at))
				at = now
			}
		}
	}
	err = t.host.Do(ctx, worker.Job{
		Stage: t.stage, Inputs: []worker.Input{{Name: "batches", Batches: feed}},
		OnMetrics: func(m map[string]float64) error { seen = m["batches"]; return nil },
	})
	if err == nil && seen != handed {
		err = fmt.Errorf("the stage saw %g of %g batches", seen, handed)
	}
	return p.took, err
}
