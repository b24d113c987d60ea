package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages/worker"
	"github.com/stokehold/stokehold/tiers"
)

// Assignment is one attempt at one stage of a run. Serialisable and small: it
// travels through workflow histories.
type Assignment struct {
	Pipeline     string          `json:"pipeline"`
	Run          string          `json:"run"`
	Stage        string          `json:"stage"`
	Kind         string          `json:"kind"` // ingest, preprocess, train, finetune, evaluate, deploy, monitor
	Attempt      int             `json:"attempt"`
	Cause        string          `json:"cause,omitempty"`
	Actor        string          `json:"actor,omitempty"` // on whose behalf the run works
	Seed         uint64          `json:"seed"`
	Params       json.RawMessage `json:"params,omitempty"`
	RunParams    json.RawMessage `json:"run_params,omitempty"`
	Inputs       []Binding       `json:"inputs,omitempty"`
	Output       string          `json:"output,omitempty"` // dataset the stage writes
	Seal         bool            `json:"seal,omitempty"`   // seal Output when the stage completes
	Model        string          `json:"model,omitempty"`  // model the stage makes versions of
	ChildProcess bool            `json:"child_process,omitempty"`
	Worker       string          `json:"worker,omitempty"` // with ChildProcess: whose program; "": this one's
	// Labels are declared for what the stage makes, beside those of what it is made of;
	// Declassify takes labels off, if governance allows.
	Labels     []string                `json:"labels,omitempty"`
	Declassify *label.Declassification `json:"declassify,omitempty"`
	// Prior are the attempts made before the stage was parked, and Resume is what the
	// last of them reported: one that goes on counts its attempts from there.
	Prior int `json:"prior,omitempty"`
	// Upcoming is what stages of the run that have not begun will read and what is
	// there already.
	Upcoming []Upcoming `json:"upcoming,omitempty"`
	Resume   *Progress  `json:"resume,omitempty"`
}

// Progress is what a stage last reported. It is the heartbeat's detail, so it
// also carries the checkpoint from which a retry continues.
type Progress struct {
	Done       int64           `json:"done"`
	Total      int64           `json:"total,omitempty"` // 0: unknown
	Note       string          `json:"note,omitempty"`
	Data       DataStats       `json:"data"`
	Checkpoint json.RawMessage `json:"checkpoint,omitempty"`
	Written    Written         `json:"written,omitzero"` // what the output had when Checkpoint was made
	// Used is what the attempt has used so far. Whoever runs it sets it; should the
	// attempt die before that is on the books, the next one puts it there.
	Used *budget.Report `json:"used,omitempty"`
}

// Written is how much of its output a stage has written.
type Written struct {
	Batches int64  `json:"batches"`
	Rows    int64  `json:"rows"`
	From    uint64 `json:"from"`
	To      uint64 `json:"to"` // exclusive
}

// Hooks connect an attempt to whatever runs it.
type Hooks struct {
	Report   func(Progress) // called on every change, from any goroutine; must be cheap
	Previous Progress       // what the attempt before this one last reported
	// Class and Region are those of the worker that runs the attempt; "": it has none.
	Class, Region string
	// Idle is called when the attempt begins to wait for a worker, and what it returns
	// when it has one or gives up: in between it uses no accelerator. nil: nobody
	// counts.
	Idle func() (resume func())
	// Stage returns a stage of the run's pipeline with its parameters, nil if this
	// process does not have it. nil: it has none.
	Stage func(name string) (s Stage, params json.RawMessage)
}

// Device is what an attempt holds while it runs.
type Device struct {
	Accelerator string // e.g. nvidia-h100; empty: budget.CPU
	Count       int    // 0 is 1
}

// Runtime feeds stages: it opens inputs, fences outputs, counts, and publishes
// stage.started and stage.completed. Safe for concurrent use.
type Runtime struct {
	Store    *tiers.Store
	Registry *models.Registry
	Bus      *events.Bus
	Children *worker.Pool            // of this program; nil: stages marked ChildProcess fail
	Workers  map[string]*worker.Pool // of other programs, by name
	Local    Device                  // that stages of this process hold
	Ahead    Ahead                   // how far ahead of the stages batches are read
	Log      *slog.Logger

	ahead readAhead
}

// Execute runs one attempt of s to its end and returns what it left behind. A
// panic in s is a permanent error with its stack: it would panic again.
func (r *Runtime) Execute(ctx context.Context, s Stage, a Assignment, h Hooks) (res Result, err error) {
	log := r.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log = log.With("pipeline", a.Pipeline, "run", a.Run, "stage", a.Stage, "attempt", a.Attempt)
	d := newRunDriver(r, a, h, log)
	if declared, ok := s.(Schemer); ok {
		d.declared = declared.Schema()
	}

	begun := time.Now()
	if err := d.begin(ctx, h); err != nil {
		return Result{}, err
	}
	if err := d.made.wired(ctx); err != nil {
		return Result{}, fmt.Errorf("stage %s of %s: %w", a.Stage, a.Pipeline, err)
	}
	stop := r.prepare(ctx, d)
	err = r.run(ctx, s, a, d)
	stop()
	if err != nil {
		return Result{}, fmt.Errorf("stage %s of %s: %w", a.Stage, a.Pipeline, err)
	}
	if err := d.finish(ctx); err != nil {
		return Result{}, fmt.Errorf("stage %s of %s: finish output %s: %w", a.Stage, a.Pipeline, a.Output, err)
	}
	res = d.snapshot()
	if err := d.announce(ctx, events.TypeStageCompleted, "completed", events.StageCompleted{
		Pipeline: a.Pipeline, Run: a.Run, Stage: a.Stage, Attempt: a.Attempt,
		Batches: res.Data.BatchesOut, Rows: res.Rows, Leased: res.Data.Leased,
		BodyBytes: res.Data.BodyBytes, CopiedBytes: res.Data.CopiedBytes,
		Seconds: time.Since(begun).Seconds(), Metrics: res.Metrics, Ahead: readAheadOf(res.Data.Ahead),
	}); err != nil {
		return Result{}, err
	}
	return res, nil
}

// Device is what an attempt at a stage holds: that of the worker which it runs in,
// for which worker.Config says it.
func (r *Runtime) Device(a Assignment) Device {
	if !a.ChildProcess {
		return r.Local
	}
	p, err := r.pool(a.Worker)
	if err != nil {
		return r.Local
	}
	kind, count := p.Accelerator()
	return Device{kind, count}
}

func (r *Runtime) run(ctx context.Context, s Stage, a Assignment, d *runDriver) (err error) {
	if a.ChildProcess {
		pool, err := r.pool(a.Worker)
		if err != nil {
			return err
		}
		return d.runInChild(ctx, pool)
	}
	defer func() {
		if p := recover(); p != nil {
			err = panicked(p)
		}
	}()
	return s.Run(ctx, a.task(d.log, d))
}

// pool is what starts the children of a program.
func (r *Runtime) pool(name string) (*worker.Pool, error) {
	switch p := r.Workers[name]; {
	case name == "" && r.Children != nil:
		return r.Children, nil
	case name == "":
		return nil, Permanent(errors.New("is to run in a child process, but this process starts none: give Runtime its Children"))
	case p == nil:
		return nil, Permanent(fmt.Errorf("is to run in worker %q, which this process does not have: give Runtime one of that name in Workers", name))
	default:
		return p, nil
	}
}

func panicked(p any) error {
	return Permanent(fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
}

// task makes the Task of an assignment over a driver.
func (a Assignment) task(log *slog.Logger, d Driver) *Task {
	return NewTask(Task{
		Pipeline: a.Pipeline, Run: a.Run, Stage: a.Stage, Attempt: a.Attempt,
		Cause: a.Cause, Actor: a.Actor, Seed: a.Seed, Log: log,
	}, a.Params, a.RunParams, d)
}
