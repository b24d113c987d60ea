package workflows

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/stages"
)

// Kinds of stages, in the order of a loop.
const (
	KindIngest     = "ingest"
	KindPreprocess = "preprocess"
	KindTrain      = "train"
	KindFineTune   = "finetune"
	KindEvaluate   = "evaluate"
	KindDeploy     = "deploy"
	KindMonitor    = "monitor"
)

// Defaults of a stage.
const (
	DefaultTimeout  = 10 * time.Minute
	DefaultAttempts = 10
)

// Definition is a built pipeline: data, serialisable as JSON (docs/PIPELINES.md
// has the schema). One from a Build also carries the stages' implementations;
// one from JSON is bound to them by the worker that has a pipeline of that name.
// Treat it as read-only once built.
type Definition struct {
	Name        string      `json:"name"`
	Description string      `json:"description,omitempty"`
	Sources     []SourceDef `json:"sources,omitempty"`
	Graph       []StageDef  `json:"stages"`
	Triggers    []Trigger   `json:"triggers,omitempty"`

	impl map[string]stages.Stage
}

// SourceDef is something that exists outside the pipeline: a dataset (its name
// is the source's name) or a model by alias (named MODEL@ALIAS).
type SourceDef struct {
	Name    string `json:"name"`
	Dataset string `json:"dataset,omitempty"`
	Model   string `json:"model,omitempty"`
	Alias   string `json:"alias,omitempty"`
}

// StageDef is one stage of the graph. Inputs and After name stages or sources;
// inputs come in the order that the kind wants (a model before its dataset).
type StageDef struct {
	Name         string
	Kind         string
	Inputs       []string
	After        []string
	Params       json.RawMessage // a JSON object
	Into         string          // long-lived dataset that it appends to
	Model        string          // model it makes versions of; default: the pipeline's name
	ChildProcess bool
	Worker       string        // program whose child process it runs in; "": this one, if ChildProcess
	Timeout      time.Duration // of one attempt; 0: DefaultTimeout
	Attempts     int           // 0: DefaultAttempts
	// Labels are declared for what the stage makes, beside those of its inputs;
	// Declassify takes labels of its inputs off, if governance allows; nil: none.
	Labels     []string
	Declassify *label.Declassification

	broken bool // a handle was unusable and is reported already
}

// stageJSON is StageDef's JSON form, with durations as Go writes them ("10m").
type stageJSON struct {
	Name         string          `json:"name"`
	Kind         string          `json:"kind"`
	Inputs       []string        `json:"inputs,omitempty"`
	After        []string        `json:"after,omitempty"`
	Params       json.RawMessage `json:"params,omitempty"`
	Into         string          `json:"into,omitempty"`
	Model        string          `json:"model,omitempty"`
	ChildProcess bool            `json:"child_process,omitempty"`
	Worker       string          `json:"worker,omitempty"`
	Timeout      duration        `json:"timeout,omitempty"`
	Attempts     int             `json:"attempts,omitempty"`

	Labels     []string                `json:"labels,omitempty"`
	Declassify *label.Declassification `json:"declassify,omitempty"`
}

// MarshalJSON writes the stage with its timeout as text.
func (s StageDef) MarshalJSON() ([]byte, error) {
	return json.Marshal(stageJSON{s.Name, s.Kind, s.Inputs, s.After, s.Params, s.Into, s.Model,
		s.ChildProcess, s.Worker, duration(s.Timeout), s.Attempts, s.Labels, s.Declassify})
}

// UnmarshalJSON refuses unknown fields.
func (s *StageDef) UnmarshalJSON(raw []byte) error {
	var j stageJSON
	if err := strictUnmarshal(raw, &j); err != nil {
		return err
	}
	*s = StageDef{Name: j.Name, Kind: j.Kind, Inputs: j.Inputs, After: j.After, Params: j.Params, Into: j.Into,
		Model: j.Model, ChildProcess: j.ChildProcess, Worker: j.Worker, Timeout: time.Duration(j.Timeout), Attempts: j.Attempts,
		Labels: j.Labels, Declassify: j.Declassify}
	return nil
}

// inChild reports whether the stage runs in a process of its own.
func (s StageDef) inChild() bool { return s.ChildProcess || s.Worker != "" }

func (s StageDef) timeout() time.Duration {
	if s.Timeout == 0 {
		return DefaultTimeout
	}
	return s.Timeout
}

func (s StageDef) attempts() int {
	if s.Attempts == 0 {
		return DefaultAttempts
	}
	return s.Attempts
}

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

// DefaultMaxPending is Trigger.MaxPending where it is zero.
const DefaultMaxPending = 10_000

type triggerJSON struct {
	Name       string   `json:"name"`
	Types      []string `json:"types"`
	When       string   `json:"when,omitempty"`
	Key        string   `json:"key,omitempty"`
	Debounce   duration `json:"debounce,omitempty"`
	Cooldown   duration `json:"cooldown,omitempty"`
	EventTime  bool     `json:"event_time,omitempty"`
	MaxPending int      `json:"max_pending,omitempty"`
}

// MarshalJSON writes the trigger with its durations as text.
func (t Trigger) MarshalJSON() ([]byte, error) {
	return json.Marshal(triggerJSON{t.Name, t.Types, t.When, t.Key, duration(t.Debounce), duration(t.Cooldown), t.EventTime, t.MaxPending})
}

// UnmarshalJSON refuses unknown fields. A name left out is the first type.
func (t *Trigger) UnmarshalJSON(raw []byte) error {
	var j triggerJSON
	if err := strictUnmarshal(raw, &j); err != nil {
		return err
	}
	if j.Name == "" && len(j.Types) > 0 {
		j.Name = j.Types[0]
	}
	*t = Trigger{j.Name, j.Types, j.When, j.Key, time.Duration(j.Debounce), time.Duration(j.Cooldown), j.EventTime, j.MaxPending}
	return nil
}

func (t Trigger) maxPending() int {
	if t.MaxPending == 0 {
		return DefaultMaxPending
	}
	return t.MaxPending
}

// duration is a time.Duration written as text.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("duration %q: write it like 30s or 10m", text)
	}
	*d = duration(v)
	return nil
}

// Stages returns the stage implementations by stage name; empty for a definition
// that was read from JSON.
func (d *Definition) Stages() map[string]stages.Stage { return maps.Clone(d.impl) }

// Stage returns the stage of that name.
func (d *Definition) Stage(name string) (StageDef, bool) {
	i := slices.IndexFunc(d.Graph, func(s StageDef) bool { return s.Name == name })
	if i < 0 {
		return StageDef{}, false
	}
	return d.Graph[i], true
}

// ParseDefinition reads a definition written by hand or by json.Marshal and
// validates it. Unknown fields are refused. The error is a *BuildError where the
// JSON itself is well formed.
func ParseDefinition(raw []byte) (*Definition, error) {
	var d Definition
	if err := strictUnmarshal(raw, &d); err != nil {
		return nil, fmt.Errorf("workflows: pipeline definition: %w", err)
	}
	if err := d.Validate(); err != nil {
		return nil, err
	}
	return &d, nil
}

// Fingerprint is the lower-case hex SHA-256 of the definition's canonical JSON
// (keys sorted, no spaces), everything included.
func (d *Definition) Fingerprint() string {
	raw, err := json.Marshal(d)
	if err == nil {
		raw, err = canonicalJSON(raw)
	}
	if err != nil {
		// Only parameters that are no JSON get here, and Validate refuses those.
		raw = []byte(err.Error())
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

func (d *Definition) clone() *Definition {
	c := *d
	c.Sources, c.Graph, c.Triggers = slices.Clone(d.Sources), slices.Clone(d.Graph), slices.Clone(d.Triggers)
	c.impl = maps.Clone(d.impl)
	return &c
}

// forRun is what a run needs of the definition: it goes into every run's history.
func (d *Definition) forRun() Definition {
	return Definition{Name: d.Name, Sources: d.Sources, Graph: d.Graph}
}

// canonicalJSON sorts object keys at every level and keeps numbers as written.
func canonicalJSON(raw []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// strictUnmarshal refuses unknown fields and anything after the value.
func strictUnmarshal(raw []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the JSON value")
	}
	return nil
}
