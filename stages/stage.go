package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

// Stage is one step of a pipeline. Run may be called again after a failure or a
// crash, with a higher attempt: it should continue from Task.Restore and must
// give the same output for the same input. Run stops soon after ctx ends. A
// nil error means that the stage is complete. One Stage value serves many runs
// at once, so it holds no per-run state.
type Stage interface {
	Run(ctx context.Context, task *Task) error
}

// Func makes a stage of a function.
type Func func(ctx context.Context, task *Task) error

// Run calls f.
func (f Func) Run(ctx context.Context, task *Task) error { return f(ctx, task) }

// Schemer is an optional power: a stage that writes batches may declare their
// schema: writing another is an error, also for a stage in a child process. A nil
// schema declares none.
type Schemer interface {
	Schema() *arrow.Schema
}

// Remote declares a stage whose code is in another program, written in any
// language: one that runs in a worker (workflows.InWorker).
type Remote struct {
	// Output is the schema of what the stage writes, which is then checked; nil:
	// whatever it writes first.
	Output *arrow.Schema
}

// Run fails: the code is elsewhere.
func (r Remote) Run(context.Context, *Task) error {
	return Permanent(errors.New("the stage's code is in another program: say in which worker it runs"))
}

// Schema implements Schemer.
func (r Remote) Schema() *arrow.Schema { return r.Output }

// Permanent marks err as one that no retry will mend.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Permanent lets a worker in another process see it.
func (e *permanentError) Permanent() bool { return true }

// IsPermanent reports whether err, or an error it wraps, must not be retried:
// marked so, denied by governance, an event that is malformed, a schema that does
// not fit, or a batch more than a dataset can take that has ended. Being fenced
// is not: the run that took the dataset over does not keep it.
func IsPermanent(err error) bool {
	var p *permanentError
	return errors.As(err, &p) || errors.Is(err, events.ErrDenied) || errors.Is(err, events.ErrInvalid) ||
		errors.Is(err, tiers.ErrSchema) || errors.Is(err, tiers.ErrSealed)
}

// Task is what a stage gets: its inputs, its output, its parameters and a way to
// report. A Task is used by one goroutine at a time and only until Run returns.
type Task struct {
	Pipeline string
	Run      string // run id, unique for ever
	Stage    string // the stage's name in the pipeline
	Attempt  int    // 1 on the first
	Cause    string // id of the event that started the run; "" if a person did
	Actor    string // on whose behalf the run works; "" if nobody's
	Seed     uint64 // of the run: the only source of randomness a stage may use
	Log      *slog.Logger

	params    json.RawMessage // of the stage, fixed in the pipeline
	runParams json.RawMessage // of the run, e.g. the data of the event that started it
	driver    Driver
}

// Start is, as the from of Driver.Batches, where the input begins for this run:
// at the first batch that the stage which it comes from appended, where
// Binding.Bounded says that this stage is one of this run's.
const Start = ^uint64(0)

// Driver is what a runtime implements to feed a Task; stages call Task's methods.
type Driver interface {
	Inputs() []Binding
	Output() string // dataset name; "" when the stage writes none
	// Batches yields from..to-1 of a dataset. Start (with tiers.End) is used for
	// bounded inputs alone.
	Batches(ctx context.Context, dataset string, from, to uint64) iter.Seq2[*tiers.Batch, error]
	WriteAt(ctx context.Context, seq uint64, batch arrow.RecordBatch) (arrowio.Ref, error)
	// Base is what WriteAt gets for the stage's first append; for the n-th, n more.
	// It need not be a sequence of the dataset.
	Base(ctx context.Context, schema *arrow.Schema) (uint64, error)
	Publish(ctx context.Context, e events.Event) error
	Checkpoint(ctx context.Context, state json.RawMessage) error
	Restore(ctx context.Context) (json.RawMessage, error)
	Progress(done, total int64, note string)
	Models() *models.Registry
	Result() *Result
}

// Builder is an optional power of a Driver: one that lets a stage build batches
// in shared memory. Without it they are built on the Go heap.
type Builder interface {
	Build(ctx context.Context, schema *arrow.Schema, bytes int64) (*tiers.Build, error)
	// WriteBuilt is WriteAt for a batch made in b, which it ends, errors included.
	WriteBuilt(ctx context.Context, seq uint64, b *tiers.Build, batch arrow.RecordBatch) (arrowio.Ref, error)
}

// Binding is one input as the pipeline wired it.
type Binding struct {
	Name    string `json:"name"`              // of the stage or source it comes from
	Dataset string `json:"dataset,omitempty"` // set for datasets
	Model   string `json:"model,omitempty"`   // set for models: the model's name
	Version string `json:"version,omitempty"` // full version id, once known
	// Bounded: the dataset is a long-lived one that stage Name of this run appends
	// to. As an input it begins and ends with what that stage appends, rather than
	// at the first batch and the seal.
	Bounded bool `json:"bounded,omitempty"`
}

// Result is what a stage leaves behind for the stages after it and for the
// run's history. Small values only.
type Result struct {
	Dataset string             `json:"dataset,omitempty"`
	From    uint64             `json:"from,omitempty"`
	To      uint64             `json:"to,omitempty"` // exclusive
	Rows    int64              `json:"rows,omitempty"`
	Model   string             `json:"model,omitempty"`
	Version string             `json:"version,omitempty"`
	Metrics map[string]float64 `json:"metrics,omitempty"`
	Notes   map[string]string  `json:"notes,omitempty"`
	Data    DataStats          `json:"data"`
}

// DataStats counts what went through a stage.
type DataStats struct {
	BatchesIn   int64 `json:"batches_in"`
	BatchesOut  int64 `json:"batches_out"`
	InPlace     int64 `json:"in_place,omitempty"` // of them written from where they were built, without a copy
	Leased      int64 `json:"leased"`             // batches handed to another process by reference
	BodyBytes   int64 `json:"body_bytes"`         // Arrow bodies that passed by reference
	CopiedBytes int64 `json:"copied_bytes"`       // body bytes copied between processes
	// Ahead is what reading ahead of this attempt achieved.
	Ahead prefetch.Counts `json:"ahead,omitzero"`
}

// NewTask is for runtimes and tests.
func NewTask(t Task, params, runParams json.RawMessage, d Driver) *Task {
	t.params, t.runParams, t.driver = params, runParams, d
	if t.Log == nil {
		t.Log = slog.New(slog.DiscardHandler)
	}
	return &t
}

// Decode reads the stage's parameters, then the run's over them, into v (a
// pointer to a struct). Fields that v does not have are ignored, since the run's
// parameters are shared by all stages.
func (t *Task) Decode(v any) error {
	for _, p := range []json.RawMessage{t.params, t.runParams} {
		if len(p) == 0 {
			continue
		}
		if err := json.Unmarshal(p, v); err != nil {
			return Permanent(fmt.Errorf("stage %s: parameters: %w", t.Stage, err))
		}
	}
	return nil
}

// Batches yields the sole (or first) dataset input from its start to its end,
// waiting for what is not there yet; see All.
func (t *Task) Batches(ctx context.Context) iter.Seq2[*tiers.Batch, error] {
	for _, b := range t.driver.Inputs() {
		if b.Dataset != "" {
			return t.all(ctx, b)
		}
	}
	return fail(Permanent(fmt.Errorf("stage %s has no dataset input", t.Stage)))
}

// All yields the dataset that input name brings from its start to its end. What
// another stage of this run writes ends when that stage has completed; where it
// appends to a long-lived dataset, only what it appended in this run is yielded.
// Any other dataset begins with its first batch and ends at its seal.
//
// A batch is valid until the loop body ends; retain its Record to keep it.
func (t *Task) All(ctx context.Context, name string) iter.Seq2[*tiers.Batch, error] {
	b, err := t.dataset(name)
	if err != nil {
		return fail(err)
	}
	return t.all(ctx, b)
}

func (t *Task) all(ctx context.Context, b Binding) iter.Seq2[*tiers.Batch, error] {
	if b.Bounded {
		return t.driver.Batches(ctx, b.Dataset, Start, tiers.End)
	}
	return t.driver.Batches(ctx, b.Dataset, 0, tiers.End)
}

// Range yields sequences from..to-1 of the dataset that input name brings,
// whoever wrote them, waiting for those not yet there: with tiers.End until the
// dataset is sealed, which a long-lived one never is. name is that of the stage
// or source wired in the pipeline, or the dataset's own.
func (t *Task) Range(ctx context.Context, name string, from, to uint64) iter.Seq2[*tiers.Batch, error] {
	b, err := t.dataset(name)
	if err != nil {
		return fail(err)
	}
	return t.driver.Batches(ctx, b.Dataset, from, to)
}

func (t *Task) dataset(name string) (Binding, error) {
	b, err := t.Input(name)
	if err == nil && b.Dataset == "" {
		err = Permanent(fmt.Errorf("stage %s: input %q is a model, which has no batches", t.Stage, name))
	}
	return b, err
}

func fail(err error) iter.Seq2[*tiers.Batch, error] {
	return func(yield func(*tiers.Batch, error) bool) { yield(nil, err) }
}

// Input returns the binding of that name, or of that dataset or model.
func (t *Task) Input(name string) (Binding, error) {
	var names []string
	for _, b := range t.driver.Inputs() {
		if b.Name == name || b.Dataset == name || b.Model == name {
			return b, nil
		}
		names = append(names, b.Name)
	}
	return Binding{}, Permanent(fmt.Errorf("stage %s has no input %q, only %q: wire it in the pipeline", t.Stage, name, names))
}

// Inputs lists what the pipeline wired to this stage.
func (t *Task) Inputs() []Binding { return t.driver.Inputs() }

// Write appends batch to the stage's output. On a retry the batches that an
// earlier attempt committed are recognised and not stored again, so the stage
// must write the same batches in the same order; after Restore, those that it
// had not written when it made the checkpoint. A stage uses either Write or
// WriteAt. The caller keeps its reference to batch.
//
// In a child process the reference's Sequence counts from the stage's own first
// batch, and a refusal may come as the end of ctx instead of here.
func (t *Task) Write(ctx context.Context, batch arrow.RecordBatch) (arrowio.Ref, error) {
	base, err := t.driver.Base(ctx, batch.Schema())
	if err != nil {
		return arrowio.Ref{}, err
	}
	r := t.driver.Result()
	return t.WriteAt(ctx, base+uint64(r.Data.BatchesOut), batch)
}

// WriteAt stores batch at a fixed sequence of the output dataset: for datasets
// whose sequence means something (a week, a day). One that exists is kept.
func (t *Task) WriteAt(ctx context.Context, seq uint64, batch arrow.RecordBatch) (arrowio.Ref, error) {
	return t.driver.WriteAt(ctx, seq, batch)
}

// Build takes memory for a batch that the stage will write: its Arrow builders get
// Build.Allocator, and what they make is written with WriteBuilt where it lies,
// without a copy. bytes is what the batch's buffers need at most; what is not used
// is given back. Where shared memory is full, or there is none (a stage in a child
// process), the memory is the Go heap's and the rest is the same.
//
//	build, err := task.Build(ctx, schema, bytes)
//	if err != nil {
//		return err
//	}
//	defer build.Cancel() // does nothing once the batch is written
//	b := array.NewRecordBuilder(build.Allocator(), schema)
//	defer b.Release()
//	... // append
//	batch := b.NewRecordBatch()
//	defer batch.Release() // soon: its memory is the arena's
//	_, err = task.WriteBuilt(ctx, build, batch)
func (t *Task) Build(ctx context.Context, schema *arrow.Schema, bytes int64) (*tiers.Build, error) {
	if d, ok := t.driver.(Builder); ok {
		return d.Build(ctx, schema, bytes)
	}
	return tiers.HeapBuild(), nil
}

// WriteBuilt is Write for a batch made in b, which it ends, errors included. What
// of the batch lies elsewhere is copied.
func (t *Task) WriteBuilt(ctx context.Context, b *tiers.Build, batch arrow.RecordBatch) (arrowio.Ref, error) {
	base, err := t.driver.Base(ctx, batch.Schema())
	if err != nil {
		b.Cancel()
		return arrowio.Ref{}, err
	}
	r := t.driver.Result()
	return t.WriteBuiltAt(ctx, base+uint64(r.Data.BatchesOut), b, batch)
}

// WriteBuiltAt is WriteAt likewise.
func (t *Task) WriteBuiltAt(ctx context.Context, seq uint64, b *tiers.Build, batch arrow.RecordBatch) (arrowio.Ref, error) {
	if d, ok := t.driver.(Builder); ok {
		return d.WriteBuilt(ctx, seq, b, batch)
	}
	defer b.Cancel()
	return t.driver.WriteAt(ctx, seq, batch)
}

// Checkpoint records where the stage is (at most 32 KiB of JSON), and how much it
// has written, with the next heartbeat; a retry may see an earlier one, never a
// later.
func (t *Task) Checkpoint(ctx context.Context, state any) error {
	raw, err := json.Marshal(state)
	if err != nil {
		return Permanent(fmt.Errorf("stage %s: checkpoint: %w", t.Stage, err))
	}
	return t.driver.Checkpoint(ctx, raw)
}

// Restore reads the newest checkpoint of this run's stage into v and reports
// whether there was one. Write then goes on after the batches that had been
// written when it was made: call Restore before the first Write or not at all.
func (t *Task) Restore(ctx context.Context, v any) (bool, error) {
	raw, err := t.driver.Restore(ctx)
	if err != nil || len(raw) == 0 {
		return false, err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, Permanent(fmt.Errorf("stage %s: checkpoint: %w", t.Stage, err))
	}
	return true, nil
}

// Progress reports done of total units (0: unknown). Cheap; call it per batch.
func (t *Task) Progress(done, total int64, note string) { t.driver.Progress(done, total, note) }

// Metric records a result of the stage.
func (t *Task) Metric(name string, value float64) {
	r := t.driver.Result()
	if r.Metrics == nil {
		r.Metrics = map[string]float64{}
	}
	r.Metrics[name] = value
}

// Note records a short text result of the stage.
func (t *Task) Note(name, text string) {
	r := t.driver.Result()
	if r.Notes == nil {
		r.Notes = map[string]string{}
	}
	r.Notes[name] = text
}

// Publish sends an event of the stage's own. key makes its id, RUN/STAGE/KEY, so
// that a retry publishes nothing twice. at is the event's time: event time, not
// the clock's, where the data has one; zero means now.
func (t *Task) Publish(ctx context.Context, typ, subject, key string, at time.Time, data any) error {
	if at.IsZero() {
		at = time.Now()
	}
	e, err := events.New(typ, "/stokehold/"+t.Pipeline+"/"+t.Stage, subject, t.Run+"/"+t.Stage+"/"+key, at, data)
	if err != nil {
		return err
	}
	e.SetExtension(events.ExtRun, t.Run)
	e.SetExtension(events.ExtPipeline, t.Pipeline)
	e.SetExtension(events.ExtStage, t.Stage)
	if t.Cause != "" {
		e.SetExtension(events.ExtCause, t.Cause)
	}
	if t.Actor != "" {
		e.SetExtension(events.ExtActor, t.Actor)
	}
	return t.driver.Publish(ctx, e)
}

// Models is the registry.
func (t *Task) Models() *models.Registry { return t.driver.Models() }

// SaveModel registers artifact as a version of the model this stage makes. Run,
// stage, pipeline, cause and seed are filled into the lineage. The error is
// permanent where the artifact or its description can never be registered.
//
// In a child process the model is the pipeline's, whatever draft says, and the
// parent and the datasets of the lineage are what the host knows: the version of
// the stage's model input, and the batches that the stage has read.
func (t *Task) SaveModel(ctx context.Context, draft models.Version, artifact []byte) (models.Version, error) {
	draft.Lineage.Pipeline, draft.Lineage.Run, draft.Lineage.Stage = t.Pipeline, t.Run, t.Stage
	draft.Lineage.Cause, draft.Lineage.Seed = t.Cause, t.Seed
	v, err := t.saveModel(ctx, draft, artifact)
	if err != nil {
		return models.Version{}, err
	}
	r := t.driver.Result()
	r.Model, r.Version = v.Model, v.ID
	return v, nil
}

// modelSaver is a Driver without a registry that can have models saved.
type modelSaver interface {
	SaveModel(ctx context.Context, draft models.Version, artifact []byte) (models.Version, error)
}

func (t *Task) saveModel(ctx context.Context, draft models.Version, artifact []byte) (models.Version, error) {
	if s, ok := t.driver.(modelSaver); ok {
		return s.SaveModel(ctx, draft, artifact)
	}
	return register(ctx, t.Models(), t.Stage, draft, artifact)
}

func register(ctx context.Context, r *models.Registry, stage string, draft models.Version, artifact []byte) (models.Version, error) {
	if r == nil {
		return models.Version{}, Permanent(fmt.Errorf("stage %s: there is no model registry here: give Runtime its Registry", stage))
	}
	v, err := r.Register(ctx, draft, artifact)
	for _, never := range []error{models.ErrArtifact, models.ErrInvalid, models.ErrMetrics, models.ErrTooLarge} {
		if errors.Is(err, never) {
			return v, Permanent(err)
		}
	}
	return v, err
}
