// Package policytest runs golden cases against policies and says which rules no
// case exercises. `stokehold policy test` is made of it; in Go tests, call
// [Check].
//
// A file of cases, *.cases.yaml, is a list of cases, or a mapping with defaults
// for all of them:
//
//	defaults: {type: model.promotion.requested, pipeline: flights-train}
//	cases:
//	  - name: not better by the margin
//	    data: {model: late, challenger: {logloss: 0.449}, champion: {logloss: 0.45}}
//	    action: deny
//	    policy: promotion-gate/better
//	    code: NotBetter
//	    reason: log loss improves by 0.0010; 0.0050 is needed
//
// The event is made of type, id, source, subject, time, pipeline, run, stage,
// cause, actor, labels, and data in YAML or json as it is; point is publish (the
// default) or receive, now the time of judging. facts are the other variables that
// expressions see, by name, and approved are who approved whatever asks for
// approval. Expected are action and policy ("" is: none); code, reason and notes if
// they are given.
package policytest

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// Limits of files of cases.
const (
	MaxFileBytes = 4 << 20
	MaxCases     = 10_000
)

// ErrCases means that a file of cases cannot be read. Wrapped by *CaseError.
var ErrCases = errors.New("invalid policy cases")

// CaseError is a fault in a file of cases. It wraps ErrCases.
type CaseError struct {
	File         string
	Line, Column int // 1-based; 0: unknown
	Case         string
	Msg          string
}

func (e *CaseError) Error() string {
	at := e.File
	if e.Line > 0 {
		at = fmt.Sprintf("%s:%d", at, e.Line)
		if e.Column > 0 {
			at = fmt.Sprintf("%s:%d", at, e.Column)
		}
	}
	if e.Case != "" {
		at += ": case " + e.Case
	}
	return at + ": " + e.Msg
}

func (e *CaseError) Unwrap() error { return ErrCases }

// Case is an event and what is to be decided of it.
type Case struct {
	Name     string       `yaml:"name"`
	Type     string       `yaml:"type"`
	ID       string       `yaml:"id"`
	Source   string       `yaml:"source"`
	Subject  string       `yaml:"subject"`
	Time     time.Time    `yaml:"time"`
	Pipeline string       `yaml:"pipeline"`
	Run      string       `yaml:"run"`
	Stage    string       `yaml:"stage"`
	Cause    string       `yaml:"cause"`
	Data     any          `yaml:"data"`
	JSON     string       `yaml:"json"` // data as they are, also such as YAML cannot say
	Point    events.Point `yaml:"point"`
	Now      time.Time    `yaml:"now"` // default: the event's time
	Actor    string       `yaml:"actor"`
	Labels   []string     `yaml:"labels"`

	Facts    map[string]any `yaml:"facts"`    // by variable: batch, dataset, model, champion, run, actor, worker, budget
	Approved []string       `yaml:"approved"` // who approved whatever asks for approval

	Action events.Action `yaml:"action"`
	Policy string        `yaml:"policy"` // POLICY/RULE; "": none decided
	Code   string        `yaml:"code"`
	Reason string        `yaml:"reason"`
	Notes  []string      `yaml:"notes"` // reasons of the decision's notes, in order
	// What the decision makes of the event: where it goes, which columns of its batch
	// are left out, as in its attributes, and its data.
	Route   string `yaml:"route"`
	Columns string `yaml:"columns"`
	After   any    `yaml:"after"`

	File string `yaml:"-"`
	Line int    `yaml:"-"`
}

// defaultTime is the time of an event that gives none.
func defaultTime() time.Time { return time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC) }

// Event makes the event.
func (c *Case) Event() (*events.Event, error) {
	data := c.Data
	if c.JSON != "" {
		data = nil
	}
	at := c.Time
	if at.IsZero() {
		at = defaultTime()
	}
	ev, err := events.New(c.Type, cmp.Or(c.Source, "stokehold/test"), c.Subject, cmp.Or(c.ID, "case-1"), at, data)
	if err != nil {
		return nil, &CaseError{File: c.File, Line: c.Line, Case: c.Name, Msg: err.Error()}
	}
	if c.JSON != "" {
		ev.DataEncoded = []byte(c.JSON)
	}
	for name, v := range map[string]string{events.ExtPipeline: c.Pipeline, events.ExtRun: c.Run, events.ExtStage: c.Stage, events.ExtCause: c.Cause,
		events.ExtActor: c.Actor, events.ExtLabels: strings.Join(c.Labels, ",")} {
		if v != "" {
			ev.SetExtension(name, v)
		}
	}
	return &ev, nil
}

// Read reads files of cases. All faults are in the error.
func Read(paths ...string) ([]Case, error) {
	var out []Case
	var faults []error
	for _, p := range paths {
		info, err := os.Stat(p)
		if err == nil && info.Size() > MaxFileBytes {
			err = &CaseError{File: p, Msg: fmt.Sprintf("%d bytes; the limit is %d", info.Size(), MaxFileBytes)}
		}
		var raw []byte
		if err == nil {
			raw, err = os.ReadFile(p)
		}
		var cases []Case
		if err == nil {
			cases, err = Parse(p, raw)
		}
		if err != nil {
			faults = append(faults, err)
		}
		if out = append(out, cases...); len(out) > MaxCases {
			faults = append(faults, &CaseError{File: p, Msg: fmt.Sprintf("more than %d cases", MaxCases)})
			break
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return out, nil
}

// Parse reads the cases of a file; name is for messages. All faults are in the
// error.
func Parse(name string, raw []byte) (_ []Case, err error) {
	defer func() {
		if r := recover(); r != nil { // the YAML library, on hostile input
			err = &CaseError{File: name, Msg: fmt.Sprintf("malformed YAML: %v", r)}
		}
	}()
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return nil, &CaseError{File: name, Msg: strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	if len(doc.Content) == 0 {
		return nil, &CaseError{File: name, Msg: "no cases"}
	}
	p := &parser{file: name}
	list := doc.Content[0]
	var defaults Case
	if list.Kind == yaml.MappingNode {
		list = p.head(list, &defaults)
	}
	if list == nil || list.Kind != yaml.SequenceNode {
		p.fault(doc.Content[0], "", "want a list of cases, or a mapping of defaults and cases")
		return nil, errors.Join(p.faults...)
	}
	seen := map[string]bool{}
	var out []Case
	for _, n := range list.Content {
		c := defaults
		p.decode(n, &c)
		c.File, c.Line = name, n.Line
		p.check(n, &c, seen)
		out = append(out, c)
	}
	return out, errors.Join(p.faults...)
}

type parser struct {
	file   string
	faults []error
}

func (p *parser) fault(n *yaml.Node, name, format string, args ...any) {
	if len(p.faults) < 100 {
		p.faults = append(p.faults, &CaseError{File: p.file, Line: n.Line, Column: n.Column, Case: name, Msg: fmt.Sprintf(format, args...)})
	}
}

// head reads the mapping form and returns the list of cases.
func (p *parser) head(n *yaml.Node, defaults *Case) (list *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		switch k, v := n.Content[i], n.Content[i+1]; k.Value {
		case "defaults":
			p.decode(v, defaults)
		case "cases":
			list = v
		default:
			p.fault(k, "", "unknown field %q; there are defaults and cases", k.Value)
		}
	}
	return list
}

// fields are the keys of a case.
func fields() []string {
	return []string{"name", "type", "id", "source", "subject", "time", "pipeline", "run", "stage", "cause", "data", "json", "point", "now",
		"actor", "labels", "facts", "approved", "action", "policy", "code", "reason", "notes", "route", "columns", "after"}
}

func (p *parser) decode(n *yaml.Node, c *Case) {
	if n.Kind != yaml.MappingNode {
		p.fault(n, "", "a case is a mapping")
		return
	}
	name := ""
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "name" {
			name = n.Content[i+1].Value
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k := n.Content[i]; !slices.Contains(fields(), k.Value) {
			p.fault(k, name, "unknown field %q; there are %s", k.Value, strings.Join(fields(), ", "))
		}
	}
	if err := n.Decode(c); err != nil {
		p.fault(n, name, "%s", strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " "))
	}
}

func (p *parser) check(n *yaml.Node, c *Case, seen map[string]bool) {
	switch {
	case c.Name == "":
		p.fault(n, "", "a case needs a name")
	case seen[c.Name]:
		p.fault(n, c.Name, "there is another case of this name")
	}
	seen[c.Name] = true
	if c.Type == "" {
		p.fault(n, c.Name, "a case needs a type")
	}
	switch c.Point {
	case "":
		c.Point = events.OnPublish
	case events.OnPublish, events.OnReceive:
	default:
		p.fault(n, c.Name, "point %q: want publish or receive", c.Point)
	}
	if c.Action == "" {
		p.fault(n, c.Name, "a case needs the action that is expected, e.g. allow or deny")
	}
	if _, err := c.facts(); err != nil {
		p.fault(n, c.Name, "facts: %v", err)
	}
	if c.Data != nil && c.JSON != "" {
		p.fault(n, c.Name, "data and json: give one of them")
	}
}

// isCases reports whether a file is one of cases by its name.
func isCases(name string) bool { return strings.HasSuffix(name, governance.CasesSuffix) }
