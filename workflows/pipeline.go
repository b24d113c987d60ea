// Package workflows turns pipelines into Temporal workflows: the typed builder,
// the interpreter that runs a pipeline, and the triggers that start runs.
package workflows

import (
	"time"

	"github.com/stokehold/stokehold/stages"
)

// Dataset, Model, Evaluation and Deployment are handles to what a stage makes.
// Their types are the graph's: Train takes a Dataset, Deploy takes a Model, and
// the compiler refuses anything else. A handle belongs to the pipeline that made
// it; using it in another is a fault that Build reports.
type (
	Dataset    struct{ node }
	Model      struct{ node }
	Evaluation struct{ node }
	Deployment struct{ node }
)

type node struct {
	pipeline *Pipeline
	name     string
}

// Pipeline is a graph of stages under construction. Not safe for concurrent use.
type Pipeline struct{}

// New starts a pipeline. Its name is lower-case words joined by dashes.
func New(name, description string) *Pipeline { panic("contract") }

// Option sets up one stage of the graph.
type Option func(*stageOptions)

type stageOptions struct{}

// With gives the stage its fixed parameters (a struct marshalled as JSON).
func With(params any) Option { panic("contract") }

// Into names the long-lived dataset that the stage appends to. Without it the
// stage writes a dataset of the run's own, PIPELINE/RUN/STAGE, sealed when the
// stage completes.
func Into(dataset string) Option { panic("contract") }

// Reads adds further dataset inputs, e.g. history beside the main input.
func Reads(more ...Dataset) Option { panic("contract") }

// Named says which model the stage makes versions of; default: the pipeline's name.
func Named(model string) Option { panic("contract") }

// InChildProcess runs the stage in a separate worker process fed through shared
// memory.
func InChildProcess() Option { panic("contract") }

// Timeout bounds one attempt (default 10 minutes); Attempts bounds retries (default 10).
func Timeout(d time.Duration) Option { panic("contract") }
func Attempts(n int) Option         { panic("contract") }

// After makes a stage wait until others are complete.
func After(others ...interface{ stageName() string }) Option { panic("contract") }

func (n node) stageName() string { return n.name }

// Source brings an existing long-lived dataset into the graph.
func (p *Pipeline) Source(dataset string) Dataset { panic("contract") }

// Current brings an existing model into the graph by alias (e.g. models.Champion),
// resolved when the stage that takes it starts.
func (p *Pipeline) Current(model, alias string) Model { panic("contract") }

// Ingest brings data in from outside.
func (p *Pipeline) Ingest(name string, s stages.Stage, o ...Option) Dataset { panic("contract") }

// Preprocess turns a dataset into another.
func (p *Pipeline) Preprocess(name string, in Dataset, s stages.Stage, o ...Option) Dataset {
	panic("contract")
}

// Train makes a model of a dataset.
func (p *Pipeline) Train(name string, in Dataset, s stages.Stage, o ...Option) Model {
	panic("contract")
}

// FineTune makes a model of another and a dataset.
func (p *Pipeline) FineTune(name string, base Model, in Dataset, s stages.Stage, o ...Option) Model {
	panic("contract")
}

// Evaluate measures a model on a dataset.
func (p *Pipeline) Evaluate(name string, m Model, in Dataset, s stages.Stage, o ...Option) Evaluation {
	panic("contract")
}

// Deploy puts an evaluated model into service, or refuses it.
func (p *Pipeline) Deploy(name string, m Model, e Evaluation, s stages.Stage, o ...Option) Deployment {
	panic("contract")
}

// Monitor watches a dataset (scores, labels) and publishes what it finds.
func (p *Pipeline) Monitor(name string, in Dataset, s stages.Stage, o ...Option) { panic("contract") }

// On starts a run for events.
func (p *Pipeline) On(t Trigger) { panic("contract") }

// Build validates the graph and returns every fault at once.
func (p *Pipeline) Build() (*Definition, error) { panic("contract") }

// Trigger says which events start runs, and how often. Zero values: no
// condition, one key, no debounce, no cooldown.
type Trigger struct {
	Name  string   // unique in the pipeline; default: the first event type
	Types []string // event types
	When  string   // CEL over event and data; empty: always
	Key   string   // CEL giving a string; one durable trigger state per key; empty: one for all
	// Debounce waits for this much quiet before the run starts; every event is kept.
	Debounce time.Duration
	// Cooldown is the least time between the starts of two runs of a key; events in
	// between are suppressed, with a trigger.suppressed event.
	Cooldown time.Duration
	// EventTime measures Cooldown by the events' own time rather than the clock, so
	// that a replay of history decides as history did.
	EventTime bool
	// MaxPending bounds events kept while a run of the key is active; default 10,000.
	MaxPending int
}

// Definition is a built pipeline: data, serialisable as JSON.
type Definition struct{}

// Stages returns the stage implementations by stage name.
func (d *Definition) Stages() map[string]stages.Stage { panic("contract") }
