package workflows

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/stokehold/stokehold/events"
)

// Limits on a definition. It travels by value in every run's history.
const (
	MaxDefinitionBytes = 16 << 10
	MaxStages          = 64
	MaxTriggers        = 32
	maxNameBytes       = 63
	maxDatasetBytes    = 160
	maxAttempts        = 1000
	maxTimeout         = 7 * 24 * time.Hour
	maxPendingLimit    = 1_000_000
)

// Fault is one thing wrong with a pipeline.
type Fault struct {
	Stage   string // or "trigger NAME", "source NAME"; empty: the pipeline itself
	Problem string
	Hint    string // what to do
}

func (f Fault) String() string {
	s := f.Problem
	if f.Stage != "" {
		s = f.Stage + ": " + s
	}
	if f.Hint != "" {
		s += " (" + f.Hint + ")"
	}
	return s
}

// BuildError is every fault of a pipeline at once.
type BuildError struct {
	Pipeline string
	Faults   []Fault
}

func (e *BuildError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "workflows: pipeline %q cannot be built, faults: %d", e.Pipeline, len(e.Faults))
	for _, f := range e.Faults {
		b.WriteString("\n  - ")
		b.WriteString(f.String())
	}
	return b.String()
}

func buildError(pipeline string, faults []Fault) error {
	if len(faults) == 0 {
		return nil
	}
	return &BuildError{Pipeline: pipeline, Faults: faults}
}

var (
	nameForm    = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)
	triggerForm = regexp.MustCompile(`^[a-z][a-z0-9]*([._-][a-z0-9]+)*$`)
	datasetForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._=-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)*$`)
	modelForm   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
)

// what is the type of an edge.
type what int

const (
	nothing what = iota
	aDataset
	aModel
	anEvaluation
	aDeployment
)

func (w what) String() string {
	return [...]string{"nothing", "a dataset", "a model", "an evaluation", "a deployment"}[w]
}

// signature is what a kind of stage takes and makes.
type signature struct {
	takes []what // one of each, in this order
	reads bool   // further datasets may follow
	makes what
}

func signatureOf(kind string) (signature, bool) {
	switch kind {
	case KindIngest:
		return signature{nil, true, aDataset}, true
	case KindPreprocess:
		return signature{[]what{aDataset}, true, aDataset}, true
	case KindTrain:
		return signature{[]what{aDataset}, true, aModel}, true
	case KindFineTune:
		return signature{[]what{aModel, aDataset}, true, aModel}, true
	case KindEvaluate:
		return signature{[]what{aModel, aDataset}, true, anEvaluation}, true
	case KindDeploy:
		return signature{[]what{aModel, anEvaluation}, true, aDeployment}, true
	case KindMonitor:
		return signature{[]what{aDataset}, true, nothing}, true
	}
	return signature{}, false
}

// Validate checks a definition from anywhere, and returns every fault at once as
// a *BuildError.
func (d *Definition) Validate() error { return buildError(d.Name, d.faults()) }

// ValidateEvents checks that types has every event type that a trigger names.
// The error is a *BuildError.
func (d *Definition) ValidateEvents(types *events.Registry) error {
	var faults []Fault
	for _, t := range d.Triggers {
		for _, name := range t.Types {
			if _, ok := types.Lookup(name); ok {
				if err := typedWhen(t.When, name, types); err != nil {
					faults = append(faults, Fault{"trigger " + t.Name, fmt.Sprintf("When, on %s: %v", name, err), "guard fields that only some of the types have, or use a trigger for each type"})
				}
			} else {
				faults = append(faults, Fault{"trigger " + t.Name, fmt.Sprintf("unknown event type %q", name), "register the type with the bus, or correct its name"})
			}
		}
	}
	return buildError(d.Name, faults)
}

// check collects faults.
type check struct {
	d      *Definition
	kinds  map[string]what // what each stage or source makes
	faults []Fault
}

func (c *check) add(at, problem, hint string) {
	c.faults = append(c.faults, Fault{at, problem, hint})
}

func (d *Definition) faults() []Fault {
	c := &check{d: d, kinds: make(map[string]what)}
	if !nameForm.MatchString(d.Name) || len(d.Name) > maxNameBytes {
		c.add("", fmt.Sprintf("pipeline name %q is not usable", d.Name), nameHint)
	}
	switch {
	case len(d.Graph) == 0:
		c.add("", "there is no stage", "add at least one")
	case len(d.Graph) > MaxStages:
		c.add("", fmt.Sprintf("%d stages, at most %d are allowed", len(d.Graph), MaxStages), "split the pipeline and join the parts by a trigger")
	}
	if len(d.Triggers) > MaxTriggers {
		c.add("", fmt.Sprintf("%d triggers, at most %d are allowed", len(d.Triggers), MaxTriggers), "name several types in one trigger")
	}
	c.sources()
	c.names()
	into := make(map[string]string)
	for _, s := range d.Graph {
		c.stage(s)
		if s.Into == "" {
			continue
		}
		if other, ok := into[s.Into]; ok && other != s.Name {
			c.add(s.Name, fmt.Sprintf("appends to dataset %q, as does %s", s.Into, other), "one stage of a pipeline writes a dataset: a second would fence it")
		}
		into[s.Into] = s.Name
	}
	c.cycles()
	seen := make(map[string]bool)
	for _, t := range d.Triggers {
		c.trigger(t, seen)
	}
	c.size()
	return c.faults
}

const nameHint = "use lower-case words joined by dashes, at most 63 bytes"

func (c *check) sources() {
	for _, s := range c.d.Sources {
		at := "source " + s.Name
		switch {
		case s.Dataset != "" && s.Model == "" && s.Alias == "":
			if !datasetForm.MatchString(s.Dataset) || len(s.Dataset) > maxDatasetBytes {
				c.add(at, fmt.Sprintf("dataset name %q is not usable", s.Dataset), datasetHint)
			}
			if s.Name != s.Dataset {
				c.add(at, "has another name than its dataset", fmt.Sprintf("call it %q", s.Dataset))
			}
			c.declare(s.Name, at, aDataset)
		case s.Dataset == "" && s.Model != "" && s.Alias != "":
			if !modelForm.MatchString(s.Model) || !modelForm.MatchString(s.Alias) {
				c.add(at, fmt.Sprintf("model %q or alias %q is not usable", s.Model, s.Alias), modelHint)
			}
			if want := s.Model + "@" + s.Alias; s.Name != want {
				c.add(at, "has another name than its model and alias", fmt.Sprintf("call it %q", want))
			}
			c.declare(s.Name, at, aModel)
		default:
			c.add(at, "is neither a dataset nor a model with an alias", "give dataset, or model and alias")
			c.declare(s.Name, at, nothing)
		}
	}
}

const (
	datasetHint = "use letters, digits, '.', '_', '-' and '=', in parts joined by '/', at most 160 bytes"
	modelHint   = "use letters, digits, '.', '_' and '-'"
)

func (c *check) declare(name, at string, makes what) {
	if _, ok := c.kinds[name]; ok {
		c.add(at, "duplicate name", "stages and sources of a pipeline need names of their own")
		return
	}
	c.kinds[name] = makes
}

// names declares all stages first, so that an input may name a later one.
func (c *check) names() {
	for _, s := range c.d.Graph {
		if !nameForm.MatchString(s.Name) || len(s.Name) > maxNameBytes {
			c.add(s.Name, fmt.Sprintf("stage name %q is not usable", s.Name), nameHint)
		}
		sig, ok := signatureOf(s.Kind)
		if !ok {
			c.add(s.Name, fmt.Sprintf("unknown kind %q", s.Kind), "one of ingest, preprocess, train, finetune, evaluate, deploy, monitor")
		}
		c.declare(s.Name, s.Name, sig.makes)
	}
}

func (c *check) stage(s StageDef) {
	c.inputs(s)
	for _, name := range s.After {
		if _, ok := c.d.Stage(name); !ok {
			c.add(s.Name, fmt.Sprintf("After names %q, which is no stage", name), "wait for a stage of this pipeline")
		}
	}
	if s.Into != "" && (!datasetForm.MatchString(s.Into) || len(s.Into) > maxDatasetBytes) {
		c.add(s.Name, fmt.Sprintf("dataset name %q is not usable", s.Into), datasetHint)
	}
	if s.Model != "" {
		if sig, ok := signatureOf(s.Kind); ok && sig.makes != aModel {
			c.add(s.Name, fmt.Sprintf("names model %q but is of kind %s, which makes none", s.Model, s.Kind), "only train and finetune stages are Named")
		} else if !modelForm.MatchString(s.Model) {
			c.add(s.Name, fmt.Sprintf("model name %q is not usable", s.Model), modelHint)
		}
	}
	if s.Worker != "" && (!nameForm.MatchString(s.Worker) || len(s.Worker) > maxNameBytes) {
		c.add(s.Name, fmt.Sprintf("worker name %q is not usable", s.Worker), nameHint)
	}
	if len(s.Params) > 0 {
		if raw := bytes.TrimSpace(s.Params); !json.Valid(raw) || (raw[0] != '{' && !bytes.Equal(raw, []byte("null"))) {
			c.add(s.Name, "parameters are not a JSON object", "give With a struct or a map")
		}
	}
	if s.Timeout < 0 || s.Timeout > maxTimeout {
		c.add(s.Name, fmt.Sprintf("timeout %v is out of range", s.Timeout), "above 0 and at most 168h")
	}
	if s.Attempts < 0 || s.Attempts > maxAttempts {
		c.add(s.Name, fmt.Sprintf("attempts %d is out of range", s.Attempts), "1 to 1000")
	}
	c.labels(&s)
}

func (c *check) inputs(s StageDef) {
	sig, ok := signatureOf(s.Kind)
	if !ok || s.broken {
		return
	}
	for i, name := range s.Inputs {
		got, known := c.kinds[name]
		want := aDataset
		switch {
		case i < len(sig.takes):
			want = sig.takes[i]
		case !sig.reads:
			c.add(s.Name, fmt.Sprintf("input %q is one too many", name), "remove it")
			continue
		}
		switch {
		case !known:
			c.add(s.Name, fmt.Sprintf("input %d is %q, which is no stage or source", i+1, name), "name a stage or source of this pipeline")
		case got != want:
			c.add(s.Name, fmt.Sprintf("type mismatch: input %d, %q, is %v, %s wants %v", i+1, name, got, s.Kind, want), "wire "+wanted(sig)+", in this order")
		}
		if slices.Index(s.Inputs, name) != i {
			c.add(s.Name, fmt.Sprintf("duplicate input %q", name), "wire it once")
		}
	}
	if len(s.Inputs) < len(sig.takes) {
		c.add(s.Name, fmt.Sprintf("missing input: %s wants %v", s.Kind, sig.takes[len(s.Inputs)]), "wire "+wanted(sig)+", in this order")
	}
}

func wanted(sig signature) string {
	var parts []string
	for _, w := range sig.takes {
		parts = append(parts, w.String())
	}
	if sig.reads {
		parts = append(parts, "any further datasets")
	}
	return strings.Join(parts, ", ")
}

// cycles reports each group of stages that wait for one another.
func (c *check) cycles() {
	// A stage that can be taken away has all it waits for taken away; what is left
	// in the end waits for itself.
	left := make(map[string]StageDef)
	for _, s := range c.d.Graph {
		left[s.Name] = s
	}
	for again := true; again; {
		again = false
		for _, s := range c.d.Graph {
			if _, ok := left[s.Name]; !ok || slices.ContainsFunc(s.waitsFor(), func(n string) bool { _, ok := left[n]; return ok }) {
				continue
			}
			delete(left, s.Name)
			again = true
		}
	}
	for _, s := range c.d.Graph {
		if _, ok := left[s.Name]; !ok {
			continue
		}
		// Follow what is left until a stage repeats: that is a cycle.
		path := []string{s.Name}
		for {
			deps := left[path[len(path)-1]].waitsFor()
			next := deps[slices.IndexFunc(deps, func(n string) bool { _, ok := left[n]; return ok })]
			if i := slices.Index(path, next); i >= 0 {
				path = append(path[i:], next)
				break
			}
			path = append(path, next)
		}
		slices.Reverse(path)
		c.add(path[0], "cycle: "+strings.Join(path, " -> "), "a stage cannot wait for itself: remove one of these inputs or Afters")
		return
	}
}

func (s StageDef) waitsFor() []string { return append(slices.Clone(s.Inputs), s.After...) }

func (c *check) trigger(t Trigger, seen map[string]bool) {
	at := "trigger " + t.Name
	if !triggerForm.MatchString(t.Name) || len(t.Name) > maxNameBytes {
		if t.Name != "" || len(t.Types) > 0 {
			c.add(at, fmt.Sprintf("trigger name %q is not usable", t.Name), "use lower-case words joined by dots or dashes, at most 63 bytes")
		}
	}
	if seen[t.Name] {
		c.add(at, "duplicate trigger name", "set Trigger.Name")
	}
	seen[t.Name] = true
	if len(t.Types) == 0 {
		c.add(at, "names no event type", "set Trigger.Types: a trigger for every event would also fire on its own runs")
	}
	for _, typ := range t.Types {
		if !triggerForm.MatchString(typ) {
			c.add(at, fmt.Sprintf("event type %q is not usable", typ), "use lower-case words joined by dots")
		}
	}
	if _, err := compileCondition(t.When); err != nil {
		c.add(at, "When: "+err.Error(), "write a CEL expression over event and data that gives a bool")
	}
	if _, err := compileKey(t.Key); err != nil {
		c.add(at, "Key: "+err.Error(), "write a CEL expression over event and data that gives a string")
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"debounce", t.Debounce}, {"cooldown", t.Cooldown}} {
		if d.value < 0 || d.value > 366*24*time.Hour {
			c.add(at, fmt.Sprintf("%s %v is out of range", d.name, d.value), "0 to 8784h")
		}
	}
	if t.EventTime && t.Cooldown == 0 {
		c.add(at, "event time without a cooldown has no meaning", "set Cooldown, or leave EventTime out")
	}
	if t.MaxPending < 0 || t.MaxPending > maxPendingLimit {
		c.add(at, fmt.Sprintf("max pending %d is out of range", t.MaxPending), "1 to 1,000,000, or 0 for 10,000")
	}
}

func (c *check) size() {
	raw, err := json.Marshal(c.d)
	if err != nil {
		return // parameters that are no JSON are reported with their stage
	}
	if len(raw) > MaxDefinitionBytes {
		c.add("", fmt.Sprintf("the definition is %d bytes, at most %d are allowed", len(raw), MaxDefinitionBytes), "keep parameters small: put data into a dataset")
	}
}
