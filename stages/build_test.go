package stages_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/ingest"
)

// built is double with its batches built where they are written.
var built = stages.Func(func(ctx context.Context, task *stages.Task) error {
	for b, err := range task.Batches(ctx) {
		if err != nil {
			return err
		}
		if err := buildDouble(ctx, task, b.Record); err != nil {
			return err
		}
	}
	return nil
})

func buildDouble(ctx context.Context, task *stages.Task, in arrow.RecordBatch) error {
	build, err := task.Build(ctx, schema, 9*in.NumRows()+1024)
	if err != nil {
		return err
	}
	defer build.Cancel()
	b := array.NewRecordBuilder(build.Allocator(), schema)
	defer b.Release()
	b.Field(0).Resize(int(in.NumRows()))
	for _, n := range in.Column(0).(*array.Int64).Int64Values() {
		b.Field(0).(*array.Int64Builder).Append(2 * n)
	}
	rec := b.NewRecordBatch()
	defer rec.Release()
	_, err = task.WriteBuilt(ctx, build, rec)
	return err
}

func TestBuiltBatchesAreNotCopied(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	const batches, rows = 10, 5000
	p.fill("in", batches, rows)
	p.run(double, childAssignment("double", false))
	before := p.Store.Stats().CopiedBytes
	a := childAssignment("built", false)
	res := p.run(built, a)
	if copied := p.Store.Stats().CopiedBytes - before; copied != 0 || p.arena.Stats().Built != batches {
		t.Errorf("%d bytes copied, arena %+v", copied, p.arena.Stats())
	}
	if d := res.Data; d.InPlace != batches || d.BatchesOut != batches || d.CopiedBytes != 0 {
		t.Errorf("%+v", d)
	}
	equal(t, "batches", p.stored(a.Output), p.stored("out-false/double")...)
	for b, err := range p.Store.Batches(w.ctx, a.Output, 0, batches, true) {
		if err != nil {
			t.Fatal(err)
		}
		if b.Tier != arrowio.Hot || !p.arena.Contains(b.Lease.Bytes()) {
			t.Errorf("%s was read from %s", b.Ref.ID(), b.Tier)
		}
	}
	// A retry builds again and stores nothing.
	a.Attempt = 2
	if again := p.run(built, a); again.Rows != res.Rows || p.arena.Stats().Builds != 0 {
		t.Errorf("%+v, arena %+v", again, p.arena.Stats())
	}
	if copied := p.Store.Stats().CopiedBytes - before; copied != 0 {
		t.Errorf("%d bytes copied by a retry", copied)
	}
}

func TestBuiltInAChild(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process().children()
	p.fill("in", 5, 100)
	here, there := p.run(built, childAssignment("built", false)), p.run(built, childAssignment("built", true))
	if here.Data.InPlace != 5 || there.Data.InPlace != 0 || there.Data.CopiedBytes != 0 || there.Rows != here.Rows {
		t.Errorf("here %+v, there %+v", here, there)
	}
	equal(t, "batches", p.stored("out-true/built"), p.stored("out-false/built")...)
}

func TestIngestBuildsInTheArena(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	var csv strings.Builder
	csv.WriteString("at,n,who\n")
	for i := range 2000 {
		fmt.Fprintf(&csv, "2001-01-%02d %02d:00:00,%d,name %d\n", 1+i%3, i%24, i, i%7)
	}
	source, err := ingest.NewSource(ingest.Config{
		Data: []byte(csv.String()), Name: "f.csv", Key: ingest.ByTime{Column: "at", Width: 24 * time.Hour},
		Schema: arrow.NewSchema([]arrow.Field{
			{Name: "at", Type: &arrow.TimestampType{Unit: arrow.Microsecond}},
			{Name: "n", Type: arrow.PrimitiveTypes.Int64}, {Name: "who", Type: arrow.BinaryTypes.String},
		}, nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	stage := &ingest.Stage{Source: source, Columns: []string{"who", "n"}}
	res := p.run(stage, stages.Assignment{Pipeline: pipeline, Run: "run-1", Stage: "ingest", Attempt: 1, Output: "days", Seal: true})
	if res.Data.InPlace != 3 || res.Rows != 2000 || p.Store.Stats().CopiedBytes != 0 {
		t.Errorf("%+v, store %+v", res, p.Store.Stats())
	}
	for b, err := range p.Store.Batches(w.ctx, "days", 0, 3, false) {
		if err != nil {
			t.Fatal(err)
		}
		whole, err := source.Batch(w.ctx, b.Ref.Sequence)
		if err != nil {
			t.Fatal(err)
		}
		if !array.Equal(b.Record.Column(0), whole.Column(2)) || !array.Equal(b.Record.Column(1), whole.Column(1)) {
			t.Errorf("day %d differs", b.Ref.Sequence)
		}
		whole.Release()
	}
}
