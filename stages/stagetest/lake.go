// Package stagetest runs stages against datasets kept in memory, without a
// server or a workflow: for the tests of stages. It is stricter than a real
// runtime: a batch's memory is overwritten as soon as the loop body ends, so a
// stage that keeps what it did not retain fails its test.
package stagetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/tiers"
)

// ErrMissing means: a stage asked for a batch that no stage has written. A real
// runtime would wait for it.
var ErrMissing = errors.New("stagetest: no such batch")

// Lake is a set of datasets in memory, where stages read and write, and a log of
// the events they published. Safe for concurrent use.
type Lake struct {
	// Models is the registry that stages see; it may be nil where none is used.
	Models *models.Registry
	// OnPublish judges an event that a stage publishes; nil accepts all. What it
	// returns is what the stage gets; only accepted events are logged.
	OnPublish func(ctx context.Context, e events.Event) error

	mu   sync.Mutex
	data map[string][][]byte // dataset -> sequence -> IPC stream of one batch
	refs map[string][]arrowio.Ref
	by   map[string][]string // RUN/STAGE that wrote the batch; "" for Put
	log  []events.Event
}

// NewLake returns an empty lake.
func NewLake() *Lake {
	return &Lake{data: map[string][][]byte{}, refs: map[string][]arrowio.Ref{}, by: map[string][]string{}}
}

// Execute runs one attempt of s as a says. Inputs of a are datasets of the lake;
// a bounded one has what Execute wrote for that run's stage, and what was Put.
func (l *Lake) Execute(ctx context.Context, s stages.Stage, a stages.Assignment) (stages.Result, error) {
	d := &driver{lake: l, a: a}
	d.result.Dataset = a.Output
	if a.Attempt == 0 {
		a.Attempt = 1
	}
	task := stages.NewTask(stages.Task{
		Pipeline: a.Pipeline, Run: a.Run, Stage: a.Stage, Attempt: a.Attempt, Cause: a.Cause, Seed: a.Seed,
	}, a.Params, a.RunParams, d)
	err := s.Run(ctx, task)
	return d.result, err
}

// Put stores batch as sequence seq, replacing one that exists: for setting a
// test up. seq may be at most the number of batches there.
func (l *Lake) Put(dataset string, seq uint64, batch arrow.RecordBatch) error {
	_, err := l.put(dataset, seq, batch, true, "")
	return err
}

// Len is the number of batches in a dataset.
func (l *Lake) Len(dataset string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(len(l.data[dataset]))
}

// Batch returns a copy of one batch; release it.
func (l *Lake) Batch(dataset string, seq uint64) (arrow.RecordBatch, error) {
	rec, _, err := l.get(dataset, seq)
	return rec, err
}

// Bytes returns the stored IPC stream of one batch, for comparing.
func (l *Lake) Bytes(dataset string, seq uint64) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if seq >= uint64(len(l.data[dataset])) {
		return nil
	}
	return l.data[dataset][seq]
}

// Events returns what stages published, in order.
func (l *Lake) Events() []events.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]events.Event(nil), l.log...)
}

func (l *Lake) put(dataset string, seq uint64, batch arrow.RecordBatch, replace bool, by string) (arrowio.Ref, error) {
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, ipc.WithSchema(batch.Schema()))
	if err := errors.Join(w.Write(batch), w.Close()); err != nil {
		return arrowio.Ref{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	have := uint64(len(l.data[dataset]))
	if seq > have {
		return arrowio.Ref{}, fmt.Errorf("stagetest: %s#%d: only %d batches: %w", dataset, seq, have, tiers.ErrGap)
	}
	if seq < have && !replace {
		return l.refs[dataset][seq], nil
	}
	ref := arrowio.Ref{Dataset: dataset, Sequence: seq, Rows: batch.NumRows(), BodyBytes: int64(buf.Len()), Fingerprint: batch.Schema().Fingerprint()}
	if seq == have {
		l.data[dataset] = append(l.data[dataset], buf.Bytes())
		l.refs[dataset] = append(l.refs[dataset], ref)
		l.by[dataset] = append(l.by[dataset], by)
	} else {
		l.data[dataset][seq], l.refs[dataset][seq] = buf.Bytes(), ref
	}
	return ref, nil
}

func (l *Lake) get(dataset string, seq uint64) (arrow.RecordBatch, arrowio.Ref, error) {
	l.mu.Lock()
	if seq >= uint64(len(l.data[dataset])) {
		l.mu.Unlock()
		return nil, arrowio.Ref{}, fmt.Errorf("%s#%d: %w", dataset, seq, ErrMissing)
	}
	raw, ref := l.data[dataset][seq], l.refs[dataset][seq]
	l.mu.Unlock()
	r, err := ipc.NewReader(bytes.NewReader(raw), ipc.WithAllocator(poison{}))
	if err != nil {
		return nil, ref, err
	}
	defer r.Release()
	rec, err := r.Read()
	if err != nil {
		return nil, ref, err
	}
	rec.Retain()
	return rec, ref, nil
}

// driver is one attempt.
type driver struct {
	lake   *Lake
	a      stages.Assignment
	base   *uint64
	result stages.Result
	check  json.RawMessage
}

func (d *driver) Inputs() []stages.Binding { return d.a.Inputs }
func (d *driver) Output() string           { return d.a.Output }
func (d *driver) Models() *models.Registry { return d.lake.Models }
func (d *driver) Result() *stages.Result   { return &d.result }

func (d *driver) Progress(int64, int64, string) {}

func (d *driver) Batches(ctx context.Context, dataset string, from, to uint64) iter.Seq2[*tiers.Batch, error] {
	return func(yield func(*tiers.Batch, error) bool) {
		wanted := func(uint64) bool { return true }
		if from == stages.Start {
			from, wanted = 0, d.boundedTo(dataset)
		}
		for seq := from; seq < to; seq++ {
			if to == tiers.End && seq >= d.lake.Len(dataset) {
				return
			}
			if !wanted(seq) {
				continue
			}
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			rec, ref, err := d.lake.get(dataset, seq)
			if err != nil {
				yield(nil, err)
				return
			}
			d.result.Data.BatchesIn++
			more := yield(&tiers.Batch{Ref: ref, Record: rec}, nil)
			rec.Release()
			if !more {
				return
			}
		}
	}
}

// boundedTo says which batches of a bounded input are this run's.
func (d *driver) boundedTo(dataset string) func(seq uint64) bool {
	return func(seq uint64) bool {
		d.lake.mu.Lock()
		defer d.lake.mu.Unlock()
		by := d.lake.by[dataset][seq]
		return by == "" || slices.ContainsFunc(d.a.Inputs, func(b stages.Binding) bool {
			return b.Dataset == dataset && by == d.a.Run+"/"+b.Name
		})
	}
}

func (d *driver) Base(context.Context, *arrow.Schema) (uint64, error) {
	if d.a.Output == "" {
		return 0, stages.Permanent(fmt.Errorf("stage %s writes no dataset", d.a.Stage))
	}
	if d.base == nil {
		n := d.lake.Len(d.a.Output)
		d.base = &n
	}
	return *d.base, nil
}

func (d *driver) WriteAt(ctx context.Context, seq uint64, batch arrow.RecordBatch) (arrowio.Ref, error) {
	if _, err := d.Base(ctx, batch.Schema()); err != nil {
		return arrowio.Ref{}, err
	}
	ref, err := d.lake.put(d.a.Output, seq, batch, false, d.a.Run+"/"+d.a.Stage)
	if err != nil {
		return ref, err
	}
	r := &d.result
	if r.Data.BatchesOut == 0 {
		r.From = seq
	}
	r.To = seq + 1
	r.Rows += ref.Rows
	r.Data.BatchesOut++
	return ref, nil
}

func (d *driver) Publish(ctx context.Context, e events.Event) error {
	if f := d.lake.OnPublish; f != nil {
		if err := f(ctx, e); err != nil {
			return err
		}
	}
	d.lake.mu.Lock()
	defer d.lake.mu.Unlock()
	for _, have := range d.lake.log {
		if have.ID() == e.ID() {
			return nil
		}
	}
	d.lake.log = append(d.lake.log, e)
	return nil
}

func (d *driver) Checkpoint(_ context.Context, state json.RawMessage) error {
	d.check = state
	return nil
}

func (d *driver) Restore(context.Context) (json.RawMessage, error) { return d.check, nil }

// poison allocates from the Go heap and overwrites what is freed.
type poison struct{}

const poisonByte = 0xA5

func (poison) Allocate(size int) []byte {
	const align = 64 // as Arrow's own allocators promise
	b := make([]byte, size+align)
	return alignTo(b, align)[:size:size]
}

func (p poison) Reallocate(size int, b []byte) []byte {
	if size <= cap(b) {
		return b[:size]
	}
	out := p.Allocate(size)
	copy(out, b)
	p.Free(b)
	return out
}

func (poison) Free(b []byte) {
	b = b[:cap(b)]
	for i := range b {
		b[i] = poisonByte
	}
}

// Records builds a batch of schema from columns, which it takes over.
func Records(schema *arrow.Schema, columns ...arrow.Array) arrow.RecordBatch {
	var rows int64
	if len(columns) > 0 {
		rows = int64(columns[0].Len())
	}
	rec := array.NewRecordBatch(schema, columns, rows)
	for _, c := range columns {
		c.Release()
	}
	return rec
}
