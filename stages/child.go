package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages/worker"
	"github.com/stokehold/stokehold/tiers"
)

// childJob is what the parameters of a worker job hold: all that the child needs
// to make the Task.
type childJob struct {
	Assignment Assignment      `json:"assignment"`
	Checkpoint json.RawMessage `json:"checkpoint,omitempty"`
	Written    Written         `json:"written,omitzero"`
}

// restored is the progress value by which a child says that its stage continues
// from the checkpoint.
const restored = "stokehold.restored"

// ChildName is the name under which a stage is known in a child process.
func ChildName(pipeline, stage string) string { return pipeline + "/" + stage }

// RunIfChild serves stages, keyed by ChildName, and exits if this process was
// started as a worker's child; otherwise it returns at once. Programs that host
// stages marked for a child process call it first thing in main.
func RunIfChild(set map[string]Stage) {
	funcs := make(map[string]worker.Func, len(set))
	for name, s := range set {
		funcs[name] = func(ctx context.Context, t *worker.ChildTask) error { return serveChild(ctx, s, t) }
	}
	worker.RunIfChild(funcs)
}

func serveChild(ctx context.Context, s Stage, t *worker.ChildTask) error {
	var job childJob
	if err := json.Unmarshal(t.Params, &job); err != nil {
		return fmt.Errorf("job of stage %s: %w", t.Stage, err)
	}
	d := &childDriver{task: t, job: job}
	if err := d.run(ctx, s); err != nil {
		return err
	}
	return d.finish()
}

func (d *childDriver) run(ctx context.Context, s Stage) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked(p)
		}
	}()
	err = s.Run(ctx, d.job.Assignment.task(d.task.Logger(), d))
	if err != nil && IsPermanent(err) {
		return Permanent(err) // what makes it so may be lost on the way to the host
	}
	return err
}

// childDriver feeds a Task in the child process over the worker's connection.
type childDriver struct {
	task   *worker.ChildTask
	job    childJob
	result Result
	last   worker.Progress
}

func (d *childDriver) Inputs() []Binding        { return d.job.Assignment.Inputs }
func (d *childDriver) Output() string           { return d.job.Assignment.Output }
func (d *childDriver) Models() *models.Registry { return nil }
func (d *childDriver) Result() *Result          { return &d.result }

func (d *childDriver) Batches(ctx context.Context, dataset string, from, to uint64) iter.Seq2[*tiers.Batch, error] {
	return func(yield func(*tiers.Batch, error) bool) {
		for b, err := range d.task.Batches(ctx, dataset, from, to) {
			if err != nil {
				yield(nil, err)
				return
			}
			d.result.Data.BatchesIn++
			// The loop in the worker package releases its reference; the batch has one of
			// its own for as long as this loop's body runs.
			b.Retain()
			batch := &tiers.Batch{
				Ref:    arrowio.Ref{Dataset: dataset, Sequence: b.Sequence, Rows: b.NumRows()},
				Record: b.RecordBatch, Tier: arrowio.Hot,
			}
			more := yield(batch, nil)
			batch.Release()
			if !more {
				return
			}
		}
	}
}

// Base is counted by the host: WriteAt tells it which sequences start there.
func (d *childDriver) Base(context.Context, *arrow.Schema) (uint64, error) { return appended, nil }

// WriteAt hands the batch to the host. The reference names it but has no
// locations: those are the host's.
func (d *childDriver) WriteAt(ctx context.Context, seq uint64, batch arrow.RecordBatch) (arrowio.Ref, error) {
	if err := d.task.Write(ctx, seq, batch); err != nil {
		return arrowio.Ref{}, err
	}
	d.result.Data.BatchesOut++
	return arrowio.Ref{Dataset: d.Output(), Sequence: seq &^ appended, Rows: batch.NumRows()}, nil
}

// SaveModel hands the model to the host, which registers it.
func (d *childDriver) SaveModel(ctx context.Context, draft models.Version, artifact []byte) (models.Version, error) {
	if want := d.job.Assignment.Model; draft.Model != "" && draft.Model != want {
		return models.Version{}, Permanent(fmt.Errorf("stage %s: model %q: in a child process a stage makes versions of the pipeline's model, which is %q", d.job.Assignment.Stage, draft.Model, want))
	}
	saved, err := d.task.SaveModel(ctx, worker.ModelDraft{Format: draft.Format, Kind: draft.Kind, Metrics: draft.Metrics, Metadata: draft.Metadata}, artifact)
	if err != nil {
		if errors.Is(err, worker.ErrModel) {
			err = Permanent(err)
		}
		return models.Version{}, err
	}
	draft.Model, draft.ID, draft.Bytes, draft.Status = saved.Model, saved.Version, int64(len(artifact)), models.Registered
	return draft, nil
}

func (d *childDriver) Publish(context.Context, events.Event) error {
	return Permanent(errors.New("a stage in a child process has no bus: publish from a stage of the worker process"))
}

func (d *childDriver) Checkpoint(_ context.Context, state json.RawMessage) error {
	d.last.Checkpoint = state
	return d.task.Progress(d.last)
}

func (d *childDriver) Restore(context.Context) (json.RawMessage, error) {
	if d.last.Checkpoint != nil {
		return d.last.Checkpoint, nil
	}
	if d.job.Written.Batches > 0 && d.result.Data.BatchesOut == 0 {
		d.result.Data.BatchesOut = d.job.Written.Batches
		p := d.last
		p.Values = map[string]float64{restored: 1}
		if err := d.task.Progress(p); err != nil {
			return nil, err
		}
	}
	return d.job.Checkpoint, nil
}

func (d *childDriver) Progress(done, total int64, note string) {
	d.last.Done, d.last.Total, d.last.Note = done, total, note
	_ = d.task.Progress(d.last) // a broken connection ends the stage by its context
}

// finish hands over what the stage recorded beside its batches.
func (d *childDriver) finish() error {
	if len(d.result.Metrics) > 0 {
		if err := d.task.Metrics(d.result.Metrics); err != nil {
			return err
		}
	}
	if len(d.result.Notes) > 0 {
		d.last.Notes = d.result.Notes
		return d.task.Progress(d.last)
	}
	return nil
}

// runInChild runs the attempt in another process: its inputs are leased to the
// child, its outputs are adopted as they are.
func (d *runDriver) runInChild(ctx context.Context, pool *worker.Pool) error {
	d.lending = newLending(d.rt.Store.ArenaSize(), d.rt.ahead.stuck)
	params, err := json.Marshal(childJob{Assignment: d.a, Checkpoint: d.hooks.Previous.Checkpoint, Written: d.hooks.Previous.Written})
	if err != nil {
		return Permanent(err)
	}
	started := func() {}
	if d.hooks.Idle != nil {
		started = d.hooks.Idle()
	}
	defer started()
	job := worker.Job{
		Stage: ChildName(d.a.Pipeline, d.a.Stage), Params: params, OnStart: started,
		OnBatch: d.adopt, OnModel: d.saveModel,
		OnProgress: func(p worker.Progress) error {
			if p.Values[restored] != 0 {
				if _, err := d.Restore(ctx); err != nil {
					return err
				}
			}
			d.mu.Lock()
			maps.Copy(notes(&d.result), p.Notes)
			d.mu.Unlock()
			if p.Checkpoint != nil {
				if err := d.Checkpoint(ctx, p.Checkpoint); err != nil {
					return err
				}
			}
			d.Progress(p.Done, p.Total, p.Note)
			return nil
		},
		OnMetrics: func(m map[string]float64) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.result.Metrics == nil {
				d.result.Metrics = map[string]float64{}
			}
			maps.Copy(d.result.Metrics, m)
			return nil
		},
		OnLog: func(l worker.Log) {
			d.log.LogAttrs(ctx, l.Level, l.Message, slog.Any("attrs", l.Attrs))
		},
		OnCopied: func(bytes uint64) { d.count(func(s *DataStats) { s.CopiedBytes += int64(bytes) }) },
	}
	for _, b := range d.a.Inputs {
		if b.Dataset == "" {
			continue
		}
		job.Inputs = append(job.Inputs, worker.Input{
			Name: b.Dataset,
			Batches: func(ctx context.Context, from, to uint64) iter.Seq2[worker.InputBatch, error] {
				return d.lend(ctx, b.Dataset, from, to)
			},
		})
	}
	err = pool.Do(ctx, job)
	var failed *worker.StageError
	if errors.As(err, &failed) && failed.Permanent || errors.Is(err, worker.ErrModel) {
		return Permanent(err)
	}
	return err
}

// maxUseSums bounds the checksums in a model's lineage: beyond it says which
// batches were read, not which bytes they had.
const maxUseSums = 2048

// used notes a batch that the child reads, for the lineage of what it makes.
func (d *runDriver) used(ref arrowio.Ref) {
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.use[ref.Dataset]
	if u == nil {
		if d.use == nil {
			d.use = map[string]*models.DatasetUse{}
		}
		u = &models.DatasetUse{Dataset: ref.Dataset, From: ref.Sequence, To: ref.Sequence}
		d.use[ref.Dataset] = u
	}
	if ref.Sequence < u.To && u.To > u.From {
		return // read again
	}
	sum := ""
	for _, l := range ref.Locations {
		if l.SHA256 != "" && l.Codec == "arrow-ipc" {
			sum = l.SHA256
		}
	}
	u.To = ref.Sequence + 1
	if len(u.SHA256) <= maxUseSums {
		u.SHA256 = append(u.SHA256, sum)
	}
}

// saveModel registers a model that the child hands over.
func (d *runDriver) saveModel(ctx context.Context, m *worker.Model) (worker.SavedModel, error) {
	if d.a.Model == "" {
		return worker.SavedModel{}, Permanent(fmt.Errorf("stage %s makes no model: only train and finetune stages do", d.a.Stage))
	}
	draft := models.Version{
		Model: d.a.Model, Format: m.Format, Kind: m.Kind, Metrics: m.Metrics, Metadata: m.Metadata,
		Lineage: models.Lineage{Pipeline: d.a.Pipeline, Run: d.a.Run, Stage: d.a.Stage, Cause: d.a.Cause, Seed: d.a.Seed},
	}
	if m.Precision != "" {
		draft.Metadata = maps.Clone(m.Metadata)
		if draft.Metadata == nil {
			draft.Metadata = map[string]string{}
		}
		draft.Metadata["precision"] = m.Precision
	}
	sums := 0
	d.mu.Lock()
	for _, b := range d.a.Inputs {
		if b.Model != "" && draft.Lineage.Parent == "" {
			draft.Lineage.Parent = b.Version
		}
		if u := d.use[b.Dataset]; u != nil {
			use := *u
			if sums += len(use.SHA256); sums > maxUseSums {
				use.SHA256 = nil
			}
			draft.Lineage.Datasets = append(draft.Lineage.Datasets, use)
		}
	}
	d.mu.Unlock()
	v, err := register(ctx, d.models, d.a.Stage, draft, m.Artifact)
	if err != nil {
		return worker.SavedModel{}, err
	}
	d.mu.Lock()
	d.result.Model, d.result.Version = v.Model, v.ID
	d.mu.Unlock()
	return worker.SavedModel{Model: v.Model, Version: v.ID}, nil
}

func notes(r *Result) map[string]string {
	if r.Notes == nil {
		r.Notes = map[string]string{}
	}
	return r.Notes
}

// lend leases the batches of an input for the child.
func (d *runDriver) lend(ctx context.Context, dataset string, from, to uint64) iter.Seq2[worker.InputBatch, error] {
	return func(yield func(worker.InputBatch, error) bool) {
		out := d.lending.input()
		defer out.end()
		for b, err := range d.batches(tiers.WithWaiter(ctx, out.waits), dataset, from, to, out.starved) {
			if err != nil {
				yield(worker.InputBatch{}, err)
				return
			}
			// The batch's own lease ends with this loop body, so the child gets another.
			lease, err := b.Lease.Arena().Hold(b.Lease.Handle(), "child/"+d.a.Run+"/"+d.a.Stage)
			if err != nil {
				yield(worker.InputBatch{}, fmt.Errorf("lease %s: %w", b.Ref.ID(), err))
				return
			}
			d.used(b.Ref)
			d.count(func(s *DataStats) {
				s.Leased++
				s.BodyBytes += b.Ref.BodyBytes
			})
			bytes := lease.Handle().Length
			out.took(bytes)
			if !yield(worker.InputBatch{Sequence: b.Ref.Sequence, Lease: lease, BodyBytes: b.Ref.BodyBytes, Released: func() { out.back(bytes) }}, nil) {
				return
			}
			out.room(ctx, bytes)
		}
	}
}

// adopt takes a batch that the child wrote into the output dataset, where its
// memory becomes the hot copy.
func (d *runDriver) adopt(ctx context.Context, out *worker.Output) error {
	if err := d.open(ctx, out.Batch.Schema()); err != nil {
		return err
	}
	seq, err := d.place(ctx, out.Sequence)
	if err != nil {
		return fmt.Errorf("write to %s: %w", d.a.Output, err)
	}
	if err := d.label(ctx); err != nil {
		return fmt.Errorf("write %s#%d: %w", d.a.Output, seq, err)
	}
	rows := out.Batch.NumRows()
	out.Keep()
	ref, err := d.writer.AdoptSlotAt(ctx, seq, out.Arena, out.Handle)
	if err != nil {
		return fmt.Errorf("write %s#%d: %w", d.a.Output, seq, err)
	}
	d.count(func(s *DataStats) {
		s.Leased++
		s.BodyBytes += ref.BodyBytes
	})
	d.wrote(seq, rows)
	return nil
}
