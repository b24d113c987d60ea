package governance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"cel.dev/cel-go/common/types"

	"github.com/stokehold/stokehold/events"
)

const factPrefix = "stokehold.facts."

// The variables that facts fill in, and their types, by index.
const (
	factBatch = iota
	factDataset
	factModel
	factChampion
	factRun
	factActor
	factWorker
	factBudget
	facts
)

var (
	factNames = [facts]string{"batch", "dataset", "model", "champion", "run", "actor", "worker", "budget"} //nolint:gochecknoglobals // a constant table
	factTable = &typeTable{prefix: factPrefix, byGo: map[reflect.Type]*dataType{}, byName: map[string]*dataType{}}
	factTypes = [facts]*dataType{ //nolint:gochecknoglobals // never changed once made
		factTable.of(reflect.TypeFor[Batch]()), factTable.of(reflect.TypeFor[Dataset]()), factTable.of(reflect.TypeFor[Model]()),
		factTable.of(reflect.TypeFor[champion]()), factTable.of(reflect.TypeFor[Run]()), factTable.of(reflect.TypeFor[Actor]()),
		factTable.of(reflect.TypeFor[Worker]()), factTable.of(reflect.TypeFor[Budget]()),
	}
)

// champion is a type of its own for its name in messages.
type champion Model

func factIndex(name string) int { return slices.Index(factNames[:], name) }

// maxFactBytes bounds a fact as JSON: a table of a few thousand columns.
const maxFactBytes = 1 << 20

// fact returns the value of a variable that facts fill in, asking for it on first
// use. An error is itself the value.
func (s *evalState) fact(i int) any {
	if v := s.facts[i]; v != nil {
		return v
	}
	v, err := s.resolveFact(i)
	if err != nil {
		v = types.WrapErr(&factError{factNames[i], err})
	}
	s.facts[i] = v
	return v
}

// factError says which fact could not be had.
type factError struct {
	name string
	err  error
}

func (e *factError) Error() string { return fmt.Sprintf("the fact %s: %v", e.name, e.err) }

func (e *factError) Unwrap() []error { return []error{ErrFact, e.err} }

func (s *evalState) resolveFact(i int) (any, error) {
	known, err := s.extract()
	if err != nil {
		return nil, err
	}
	src := &s.engine.facts
	var value any
	var ask func(context.Context) error
	switch i {
	case factBatch:
		value, ask = &known.batch, bound(src.Batch, s.ev, &known.batch)
	case factDataset:
		value, ask = &known.dataset, bound(src.Dataset, s.ev, &known.dataset)
	case factModel:
		value, ask = &known.model, bound(src.Model, s.ev, &known.model)
	case factChampion:
		value, ask = &known.champion, bound(src.Champion, s.ev, &known.champion)
	case factRun:
		value, ask = &known.run, bound(src.Run, s.ev, &known.run)
	case factActor:
		value, ask = &known.actor, bound(src.Actor, s.ev, &known.actor)
	case factWorker:
		value, ask = &known.worker, bound(src.Worker, s.ev, &known.worker)
	case factBudget:
		value, ask = &known.budget, bound(src.Budget, s.ev, &known.budget)
	}
	if ask != nil {
		ctx, cancelled := s.outside()
		if cancelled != nil {
			return nil, cancelled
		}
		if err = ask(ctx); err != nil {
			return nil, err
		}
	}
	raw, err := json.Marshal(value) // NaN and infinities are errors here
	if err != nil {
		return nil, err
	}
	if len(raw) > maxFactBytes {
		return nil, fmt.Errorf("%w: %d bytes as JSON; the limit is %d", ErrLimit, len(raw), maxFactBytes)
	}
	return decodeData(raw, factTypes[i])
}

// extract reads what the event says of itself, once.
func (s *evalState) extract() (*extracted, error) {
	if s.known == nil {
		known := &extracted{}
		if err := known.from(s); err != nil {
			return nil, err
		}
		s.known = known
	}
	return s.known, nil
}

// bound is a source with its arguments; nil without a source.
func bound[T any](source func(context.Context, *events.Event, *T) error, ev *events.Event, known *T) func(context.Context) error {
	if source == nil {
		return nil
	}
	return func(ctx context.Context) error { return source(ctx, ev, known) }
}

var errFactsDeadline = errors.New("the time for asking about one event ran out")

// outside returns the context of what is asked for beside the event: facts and
// approvals share one deadline for each event.
func (s *evalState) outside() (context.Context, error) {
	if s.asking == nil {
		s.asking, s.stopAsking = context.WithTimeoutCause(s.ctx, s.engine.factsTimeout, errFactsDeadline)
	}
	if s.asking.Err() != nil {
		return nil, context.Cause(s.asking)
	}
	return s.asking, nil
}

// extracted is what an event says of itself.
type extracted struct {
	batch           Batch
	dataset         Dataset
	model, champion Model
	run             Run
	actor           Actor
	worker          Worker
	budget          Budget
}

// from reads the standard event types' data and the attributes of any event.
func (x *extracted) from(s *evalState) error {
	e := &s.event
	x.run = Run{ID: e.ext.run, Pipeline: e.ext.pipeline, Stage: e.ext.stage, Cause: e.ext.cause}
	x.actor.Name = e.ext.actor
	x.model.Run = e.ext.run
	var labels []string
	if e.ext.labels != "" {
		labels = strings.Split(e.ext.labels, ",")
		for _, l := range labels {
			if err := events.CheckLabel(l); err != nil {
				return fmt.Errorf("%w: %s: %w", ErrData, events.ExtLabels, err)
			}
		}
	}
	read, ok := extractors[e.ctx.Type]
	if !ok {
		x.label(e.ctx.Type, labels)
		return nil
	}
	if len(s.raw) == 0 || !s.json {
		return fmt.Errorf("%w: the event carries no JSON", ErrData)
	}
	if err := read(x, s.raw); err != nil {
		return err
	}
	x.label(e.ctx.Type, labels)
	return nil
}

// label gives what the event is about the labels that it carries.
func (x *extracted) label(typ string, labels []string) {
	x.batch.Labels, x.dataset.Labels = labels, labels
	if strings.HasPrefix(typ, "model.") {
		x.batch.Labels, x.dataset.Labels, x.model.Labels = nil, nil, labels
	}
}

// extractors read the data of the standard types whose events say something of a
// batch, a dataset, a model or a run.
var extractors = map[string]func(x *extracted, raw []byte) error{ //nolint:gochecknoglobals // a constant table
	events.TypeBatchPublished: extractor(func(x *extracted, d *events.BatchPublished) {
		x.batch = Batch{
			Dataset: d.Dataset, Sequence: &d.Sequence, Rows: &d.Rows, Bytes: &d.BodyBytes,
			Fingerprint: d.Fingerprint, Tier: d.Tier, URI: d.URI,
		}
		x.dataset = Dataset{Name: d.Dataset, Fingerprint: d.Fingerprint}
	}),
	events.TypeMigrationRequested: extractor(func(x *extracted, d *events.TierMigrationRequested) {
		x.dataset = Dataset{Name: d.Dataset}
	}),
	events.TypeTierMoveRequested: extractor(func(x *extracted, d *events.TierMoveRequested) {
		x.batch = Batch{Dataset: d.Dataset, Sequence: &d.Sequence, Bytes: &d.Bytes, Tier: d.From}
		x.dataset = Dataset{Name: d.Dataset}
	}),
	events.TypeTierMoved: extractor(func(x *extracted, d *events.TierMoved) {
		x.batch = Batch{Dataset: d.Dataset, Sequence: &d.Sequence, Bytes: &d.Bytes, Tier: d.To}
		x.dataset = Dataset{Name: d.Dataset}
	}),
	events.TypeDatasetSealed: extractor(func(x *extracted, d *events.DatasetSealed) {
		x.dataset = Dataset{Name: d.Dataset, Batches: &d.Batches, Rows: &d.Rows, Sealed: new(true)}
	}),
	events.TypeModelRegistered: extractor(func(x *extracted, d *events.ModelRegistered) {
		x.model = Model{Name: d.Model, Version: d.Version, Run: d.Run, Metrics: d.Metrics}
		x.champion = Model{Name: d.Model}
	}),
	events.TypePromotionRequested: extractor(func(x *extracted, d *events.PromotionRequested) {
		x.model = Model{Name: d.Model, Version: d.Challenger, Run: d.Run, Metrics: d.Metrics.Challenger, Rows: &d.Rows}
		x.champion = Model{Name: d.Model}
		if d.Champion != "" {
			x.champion = Model{Name: d.Model, Version: d.Champion, Metrics: d.Metrics.Champion, Rows: &d.Rows}
		}
	}),
	events.TypeModelPromoted: extractor(extractPromoted),
	events.TypeModelAliased:  extractor(extractPromoted),
	events.TypeModelRefused: extractor(func(x *extracted, d *events.ModelRefused) {
		x.model = Model{Name: d.Model, Version: d.Version, Run: d.Run}
		x.champion = Model{Name: d.Model, Version: d.Champion}
	}),
	events.TypeDriftDetected: extractor(func(x *extracted, d *events.DriftDetected) {
		x.model = Model{Name: d.Model, Version: d.Version}
	}),
	events.TypeRunStarted: extractor(func(x *extracted, d *events.RunStarted) {
		x.run = Run{ID: d.Run, Pipeline: d.Pipeline, Trigger: d.Trigger, Cause: d.Cause}
	}),
	events.TypeRunCompleted: extractor(func(x *extracted, d *events.RunCompleted) {
		x.run.ID, x.run.Pipeline = d.Run, d.Pipeline
	}),
	events.TypeRunFailed: extractor(func(x *extracted, d *events.RunFailed) {
		x.run.ID, x.run.Pipeline, x.run.Stage = d.Run, d.Pipeline, d.Stage
	}),
	events.TypeStageStarted: extractor(func(x *extracted, d *events.StageStarted) {
		x.run = Run{ID: d.Run, Pipeline: d.Pipeline, Stage: d.Stage, Cause: x.run.Cause, Attempt: new(int64(d.Attempt))}
	}),
	events.TypeBudgetExhausted: extractor(func(x *extracted, d *events.BudgetExhausted) {
		x.run = Run{ID: d.Run, Pipeline: d.Pipeline, Stage: d.Stage, Cause: x.run.Cause, Attempt: new(int64(d.Attempt))}
	}),
	events.TypeStageCompleted: extractor(func(x *extracted, d *events.StageCompleted) {
		x.run = Run{ID: d.Run, Pipeline: d.Pipeline, Stage: d.Stage, Cause: x.run.Cause, Attempt: new(int64(d.Attempt))}
	}),
}

func extractPromoted(x *extracted, d *events.ModelPromoted) {
	x.model = Model{Name: d.Model, Version: d.Version, Run: d.Run, Metrics: d.Metrics, Aliases: []string{d.Alias}}
	x.champion = Model{Name: d.Model, Version: d.Previous}
}

// extractor decodes data as strictly as expressions see them, so that a fact says
// what data says.
func extractor[T any](use func(*extracted, *T)) func(*extracted, []byte) error {
	t := newTypeTable().of(reflect.TypeFor[T]())
	return func(x *extracted, raw []byte) error {
		if _, err := decodeData(raw, t); err != nil {
			return err
		}
		var d T
		if err := json.Unmarshal(raw, &d); err != nil {
			return fmt.Errorf("%w: %w", ErrData, err)
		}
		use(x, &d)
		return nil
	}
}
