package workflows

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/stokehold/stokehold/stages"
)

// Dataset, Model, Evaluation and Deployment are handles to what a stage makes.
// Their types are the graph's: Train takes a Dataset, Deploy takes a Model, and
// the compiler refuses anything else. A handle belongs to the pipeline that made
// it; using it in another is a fault that Build reports.
type (
	// Dataset is the handle to a dataset that a stage writes.
	Dataset struct{ node }
	// Model is the handle to a model that a stage trains.
	Model struct{ node }
	// Evaluation is the handle to a model's evaluation.
	Evaluation struct{ node }
	// Deployment is the handle to a model's deployment.
	Deployment struct{ node }
)

type node struct {
	pipeline *Pipeline
	name     string
}

func (n node) stageName() string { return n.name }
func (n node) self() node        { return n }

// Pipeline is a graph of stages under construction. Not safe for concurrent use.
type Pipeline struct {
	def    Definition
	faults []Fault
}

// New starts a pipeline. Its name is lower-case words joined by dashes.
func New(name, description string) *Pipeline {
	return &Pipeline{def: Definition{
		Name: name, Description: description, impl: make(map[string]stages.Stage),
	}}
}

// Option sets up one stage of the graph.
type Option func(*stageOptions)

type stageOptions struct {
	stage  StageDef
	reads  []node
	after  []node
	faults []Fault
}

func (o *stageOptions) fault(problem, hint string) {
	o.faults = append(o.faults, Fault{Stage: o.stage.Name, Problem: problem, Hint: hint})
}

// With gives the stage its fixed parameters (a struct marshalled as JSON).
func With(params any) Option {
	return func(o *stageOptions) {
		raw, err := json.Marshal(params)
		if err != nil {
			o.fault(fmt.Sprintf("parameters do not marshal: %v", err), "give With a struct of plain values")
			return
		}
		o.stage.Params = raw
	}
}

// Into names the long-lived dataset that the stage appends to. Without it the
// stage writes a dataset of the run's own, PIPELINE/RUN/STAGE, sealed when the
// stage completes.
func Into(dataset string) Option { return func(o *stageOptions) { o.stage.Into = dataset } }

// Reads adds further dataset inputs, e.g. history beside the main input.
func Reads(more ...Dataset) Option {
	return func(o *stageOptions) {
		for _, d := range more {
			o.reads = append(o.reads, d.node)
		}
	}
}

// Named says which model the stage makes versions of; default: the pipeline's name.
func Named(model string) Option { return func(o *stageOptions) { o.stage.Model = model } }

// InChildProcess runs the stage in a separate worker process fed through shared
// memory.
func InChildProcess() Option { return func(o *stageOptions) { o.stage.ChildProcess = true } }

// InWorker runs the stage in a child process of another program, fed through
// shared memory. worker is the name under which the process that hosts the
// pipeline configures that program (stages.Runtime.Workers); there the stage is
// called PIPELINE/NAME. Its implementation here may be a stages.Remote.
func InWorker(worker string) Option {
	return func(o *stageOptions) {
		if worker == "" {
			o.fault("InWorker without a name", "name the worker, or use InChildProcess for this program")
			return
		}
		o.stage.Worker = worker
	}
}

// Timeout bounds one attempt (default 10 minutes).
func Timeout(d time.Duration) Option {
	return func(o *stageOptions) {
		if d <= 0 {
			o.fault(fmt.Sprintf("timeout %v is not positive", d), "leave Timeout out for the default, 10 minutes")
			return
		}
		o.stage.Timeout = d
	}
}

// Attempts bounds how often the stage is tried (default 10).
func Attempts(n int) Option {
	return func(o *stageOptions) {
		if n < 1 {
			o.fault(fmt.Sprintf("attempts %d is not positive", n), "leave Attempts out for the default, 10")
			return
		}
		o.stage.Attempts = n
	}
}

// After makes a stage wait until others are complete.
func After(others ...interface{ stageName() string }) Option {
	return func(o *stageOptions) {
		for _, other := range others {
			n, ok := other.(interface{ self() node })
			if !ok || other == nil {
				o.after = append(o.after, node{})
				continue
			}
			o.after = append(o.after, n.self())
		}
	}
}

// Source brings an existing long-lived dataset into the graph. Bringing the same
// one twice gives the same handle.
func (p *Pipeline) Source(dataset string) Dataset {
	return Dataset{p.source(SourceDef{Name: dataset, Dataset: dataset})}
}

// Current brings an existing model into the graph by alias (e.g. models.Champion),
// resolved when the stage that takes it starts, once for all its attempts. Where
// the alias is not set yet the stage is bound to the model without a version.
func (p *Pipeline) Current(model, alias string) Model {
	return Model{p.source(SourceDef{Name: model + "@" + alias, Model: model, Alias: alias})}
}

func (p *Pipeline) source(s SourceDef) node {
	for _, have := range p.def.Sources {
		if have == s {
			return node{p, s.Name}
		}
	}
	p.def.Sources = append(p.def.Sources, s)
	return node{p, s.Name}
}

// Ingest brings data in from outside.
func (p *Pipeline) Ingest(name string, s stages.Stage, o ...Option) Dataset {
	return Dataset{p.add(name, KindIngest, s, o)}
}

// Preprocess turns a dataset into another.
func (p *Pipeline) Preprocess(name string, in Dataset, s stages.Stage, o ...Option) Dataset {
	return Dataset{p.add(name, KindPreprocess, s, o, in.node)}
}

// Train makes a model of a dataset.
func (p *Pipeline) Train(name string, in Dataset, s stages.Stage, o ...Option) Model {
	return Model{p.add(name, KindTrain, s, o, in.node)}
}

// FineTune makes a model of another and a dataset.
func (p *Pipeline) FineTune(name string, base Model, in Dataset, s stages.Stage, o ...Option) Model {
	return Model{p.add(name, KindFineTune, s, o, base.node, in.node)}
}

// Evaluate measures a model on a dataset.
func (p *Pipeline) Evaluate(name string, m Model, in Dataset, s stages.Stage, o ...Option) Evaluation {
	return Evaluation{p.add(name, KindEvaluate, s, o, m.node, in.node)}
}

// Deploy puts an evaluated model into service, or refuses it.
func (p *Pipeline) Deploy(name string, m Model, e Evaluation, s stages.Stage, o ...Option) Deployment {
	return Deployment{p.add(name, KindDeploy, s, o, m.node, e.node)}
}

// Monitor watches a dataset (scores, labels) and publishes what it finds.
func (p *Pipeline) Monitor(name string, in Dataset, s stages.Stage, o ...Option) {
	p.add(name, KindMonitor, s, o, in.node)
}

func (p *Pipeline) add(name, kind string, s stages.Stage, opts []Option, inputs ...node) node {
	o := stageOptions{stage: StageDef{Name: name, Kind: kind}}
	for _, opt := range opts {
		if opt != nil {
			opt(&o)
		}
	}
	for i, in := range append(inputs, o.reads...) {
		if ref, ok := p.resolve(&o, in, fmt.Sprintf("input %d", i+1)); ok {
			o.stage.Inputs = append(o.stage.Inputs, ref)
		} else {
			o.stage.broken = true
		}
	}
	for _, other := range o.after {
		if ref, ok := p.resolve(&o, other, "After"); ok {
			o.stage.After = append(o.stage.After, ref)
		}
	}
	if isNilStage(s) {
		o.fault("has no implementation", "pass a stages.Stage, or stages.Func for a function")
	}
	if isRemote(s) && o.stage.Worker == "" {
		o.fault("its code is in another program, but no worker is named", "add the option InWorker")
	}
	p.faults = append(p.faults, o.faults...)
	p.def.Graph = append(p.def.Graph, o.stage)
	if _, ok := p.def.impl[name]; !ok {
		p.def.impl[name] = s
	}
	return node{p, name}
}

// resolve checks that a handle is one of this pipeline's.
func (p *Pipeline) resolve(o *stageOptions, n node, what string) (string, bool) {
	switch {
	case n.pipeline == nil:
		o.fault(what+" is an empty handle", "pass what a method of this pipeline returned")
		return "", false
	case n.pipeline != p:
		o.fault(fmt.Sprintf("%s %q belongs to pipeline %q", what, n.name, n.pipeline.def.Name),
			"bring its dataset in with Source, its model with Current")
		return "", false
	}
	return n.name, true
}

func isNilStage(s stages.Stage) bool {
	if s == nil {
		return true
	}
	f, ok := s.(stages.Func)
	return ok && f == nil
}

func isRemote(s stages.Stage) bool {
	switch s.(type) {
	case stages.Remote, *stages.Remote:
		return true
	}
	return false
}

// On starts a run for events.
func (p *Pipeline) On(t Trigger) {
	if t.Name == "" && len(t.Types) > 0 {
		t.Name = t.Types[0]
	}
	p.def.Triggers = append(p.def.Triggers, t)
}

// Build validates the graph and returns every fault at once, as a *BuildError.
// Event types are not checked here but by [Definition.ValidateEvents], which a
// Worker does with the types of its bus.
func (p *Pipeline) Build() (*Definition, error) {
	d := p.def.clone()
	if err := buildError(d.Name, append(p.faults[:len(p.faults):len(p.faults)], d.faults()...)); err != nil {
		return nil, err
	}
	return d, nil
}
