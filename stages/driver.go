package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

// maxCheckpointBytes keeps heartbeats far below the orchestrator's limits.
const maxCheckpointBytes = 32 << 10

// runDriver feeds one attempt of one stage in this process. The stage calls it
// from one goroutine, except Progress, which any may call.
type runDriver struct {
	rt     *Runtime
	log    *slog.Logger
	models *models.Registry // which notes what is read through it; nil: there is none
	a      Assignment
	hooks  Hooks
	writer *tiers.Writer
	made   *lineage
	// declared is the schema that the stage says its output has; nil: it says none.
	declared *arrow.Schema
	ahead    *prefetch.Stats
	lending  *lending // to a child; nil: there is none

	mu       sync.Mutex // guards what Progress reads, and use
	result   Result
	progress Progress
	use      map[string]*models.DatasetUse // what a child process has read
}

// appended marks a sequence as the count of the stage's own appends, from 0:
// where the dataset has it only its writer knows, which runs in the host.
const appended = uint64(1) << 63

func newRunDriver(rt *Runtime, a Assignment, h Hooks, log *slog.Logger) *runDriver {
	d := &runDriver{
		rt: rt, log: log, a: a, hooks: h, ahead: rt.ahead.stats.Part(),
		result:   Result{Dataset: a.Output, Model: a.Model},
		progress: Progress{Checkpoint: h.Previous.Checkpoint, Written: h.Previous.Written},
	}
	d.made = newLineage(d)
	if rt.Registry != nil {
		d.models = rt.Registry.Observed(d.made)
	}
	return d
}

func (d *runDriver) Inputs() []Binding        { return d.a.Inputs }
func (d *runDriver) Output() string           { return d.a.Output }
func (d *runDriver) Models() *models.Registry { return d.models }
func (d *runDriver) Result() *Result          { return &d.result }
func (d *runDriver) fence() tiers.Fence {
	return tiers.Fence{Run: d.a.Run, Stage: d.a.Stage, Attempt: d.a.Attempt}
}

func (d *runDriver) Batches(ctx context.Context, dataset string, from, to uint64) iter.Seq2[*tiers.Batch, error] {
	return d.batches(ctx, dataset, from, to, nil)
}

func (d *runDriver) count(f func(*DataStats)) {
	d.mu.Lock()
	f(&d.result.Data)
	d.mu.Unlock()
}

// open opens the output on the first write, fencing earlier attempts.
func (d *runDriver) open(ctx context.Context, schema *arrow.Schema) error {
	if d.writer != nil {
		return nil
	}
	if d.a.Output == "" {
		return Permanent(errors.New("this kind of stage has no output dataset"))
	}
	if d.declared != nil {
		if want, got := arrowio.Fingerprint(d.declared), arrowio.Fingerprint(schema); got != want {
			return fmt.Errorf("open output %s: %w: the stage declares %v and wrote %v", d.a.Output, tiers.ErrSchema, d.declared, schema)
		}
	}
	w, err := d.rt.Store.Writer(ctx, d.a.Output, schema, d.fence())
	if err != nil {
		return fmt.Errorf("open output %s: %w", d.a.Output, err)
	}
	d.writer = w
	return nil
}

func (d *runDriver) Base(ctx context.Context, schema *arrow.Schema) (uint64, error) {
	return appended, d.open(ctx, schema)
}

// place turns a count of appends into a sequence.
func (d *runDriver) place(ctx context.Context, seq uint64) (uint64, error) {
	if seq&appended == 0 {
		return seq, nil
	}
	return d.writer.Place(ctx, seq&^appended)
}

func (d *runDriver) WriteAt(ctx context.Context, seq uint64, batch arrow.RecordBatch) (arrowio.Ref, error) {
	return d.write(ctx, seq, batch, func(seq uint64) (arrowio.Ref, error) {
		return d.writer.WriteAt(ctx, seq, batch)
	})
}

// Build implements Builder.
func (d *runDriver) Build(ctx context.Context, schema *arrow.Schema, bytes int64) (*tiers.Build, error) {
	return d.rt.Store.Build(ctx, schema, bytes)
}

// WriteBuilt implements Builder.
func (d *runDriver) WriteBuilt(ctx context.Context, seq uint64, b *tiers.Build, batch arrow.RecordBatch) (arrowio.Ref, error) {
	defer b.Cancel()
	return d.write(ctx, seq, batch, func(seq uint64) (arrowio.Ref, error) {
		ref, copied, err := d.writer.WriteBuilt(ctx, seq, b, batch)
		if err == nil && b.InPlace() && copied == 0 {
			d.count(func(s *DataStats) { s.InPlace++ })
		}
		return ref, err
	})
}

func (d *runDriver) write(ctx context.Context, seq uint64, batch arrow.RecordBatch, put func(seq uint64) (arrowio.Ref, error)) (arrowio.Ref, error) {
	if err := d.open(ctx, batch.Schema()); err != nil {
		return arrowio.Ref{}, err
	}
	seq, err := d.place(ctx, seq)
	if err != nil {
		return arrowio.Ref{}, fmt.Errorf("write to %s: %w", d.a.Output, err)
	}
	if err := d.label(ctx); err != nil {
		return arrowio.Ref{}, fmt.Errorf("write %s#%d: %w", d.a.Output, seq, err)
	}
	ref, err := put(seq)
	if err != nil {
		return arrowio.Ref{}, fmt.Errorf("write %s#%d: %w", d.a.Output, seq, err)
	}
	d.wrote(seq, batch.NumRows())
	return ref, nil
}

// label makes the next commit have the labels of what was read so far.
func (d *runDriver) label(ctx context.Context) error {
	labels, err := d.made.output(ctx, events.LabelDeclassified{Dataset: d.a.Output})
	if err != nil {
		return err
	}
	d.writer.MadeOf(d.made.sources(d.a.Output)...)
	return Permanent(d.writer.Label(labels))
}

// wrote counts a batch that is now in the output.
func (d *runDriver) wrote(seq uint64, rows int64) {
	d.mu.Lock()
	r := &d.result
	if r.Data.BatchesOut == 0 || seq < r.From {
		r.From = seq
	}
	r.To = max(r.To, seq+1)
	r.Rows += rows
	r.Data.BatchesOut++
	d.mu.Unlock()
	d.report()
}

func (d *runDriver) Publish(ctx context.Context, e events.Event) error {
	if err := d.made.label(ctx, &e); err != nil {
		return err
	}
	return d.rt.Bus.Publish(ctx, e)
}

func (d *runDriver) Checkpoint(_ context.Context, state json.RawMessage) error {
	if len(state) > maxCheckpointBytes {
		return Permanent(fmt.Errorf("checkpoint of %d bytes exceeds %d: save large state as a dataset or a model", len(state), maxCheckpointBytes))
	}
	d.mu.Lock()
	r := &d.result
	d.progress.Checkpoint, d.progress.Written = state, Written{r.Data.BatchesOut, r.Rows, r.From, r.To}
	d.mu.Unlock()
	d.report()
	return nil
}

func (d *runDriver) Restore(context.Context) (json.RawMessage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := &d.result; r.Data.BatchesOut == 0 {
		w := d.progress.Written
		r.Data.BatchesOut, r.Rows, r.From, r.To = w.Batches, w.Rows, w.From, w.To
	}
	return d.progress.Checkpoint, nil
}

func (d *runDriver) Progress(done, total int64, note string) {
	d.mu.Lock()
	d.progress.Done, d.progress.Total, d.progress.Note = done, total, note
	d.mu.Unlock()
	d.report()
}

func (d *runDriver) report() {
	if d.hooks.Report == nil {
		return
	}
	d.mu.Lock()
	p := d.progress
	p.Data = d.result.Data
	p.Data.Ahead = d.ahead.Counts()
	d.mu.Unlock()
	d.hooks.Report(p)
}

// finish ends the output, so that its readers end: for good where the run owns
// it, else for this run. An attempt may have had nothing (more) to write.
func (d *runDriver) finish(ctx context.Context) error {
	if d.a.Output == "" {
		return nil
	}
	// What the inputs are may have been found out since the stage began.
	if err := d.made.wired(ctx); err != nil {
		return err
	}
	if d.writer != nil {
		if err := d.label(ctx); err != nil {
			return err
		}
	}
	switch {
	case d.writer == nil && d.a.Seal:
		return d.rt.Store.Seal(ctx, d.a.Output, d.fence())
	case d.writer == nil:
		return d.rt.Store.Finish(ctx, d.a.Output, d.fence())
	case d.a.Seal:
		return d.writer.Seal(ctx)
	}
	return d.writer.Finish(ctx)
}

func (d *runDriver) snapshot() Result {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.result
	r.Data.Ahead = d.ahead.Counts()
	r.Metrics, r.Notes = maps.Clone(r.Metrics), maps.Clone(r.Notes)
	return r
}

// announce publishes an event about the stage itself. The id names the run and
// stage but not the attempt, so that a retried stage is announced once.
func (d *runDriver) announce(ctx context.Context, typ, key string, data any) error {
	e, err := d.event(typ, key, data)
	if err != nil {
		return err
	}
	return d.rt.Bus.Publish(ctx, e)
}

// event makes an event of the stage's; its id is key within the run and the stage.
func (d *runDriver) event(typ, key string, data any) (events.Event, error) {
	e, err := events.New(typ, "/stokehold/"+d.a.Pipeline+"/"+d.a.Stage, d.a.Pipeline, d.a.Run+"/"+d.a.Stage+"/"+key, time.Now(), data)
	if err != nil {
		return e, err
	}
	d.a.extend(&e)
	return e, nil
}
