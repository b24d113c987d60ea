package governance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/stokehold/stokehold/events"
)

// Accepted values of the two fields that name the format.
const (
	APIVersion  = "stokehold.dev/v1"
	Kind        = "Policy"
	KindBinding = "Binding" // gives values to a policy's parameters
)

// Limits of what a policy matches.
const (
	maxPatternsOfMatch = 1000
	maxPatternBytes    = 256
)

// source is an expression with its place in a file.
type source struct {
	text  string
	field string
	node  *yaml.Node
	lines [][]byte
}

// position maps a place in the expression to one in the file. For folded and
// multi-line plain scalars, where YAML moves characters, the line of the
// scalar is given.
func (s *source) position(line, column int) (fileLine, fileColumn int) {
	n := s.node
	if n == nil {
		return line, column
	}
	if line <= 0 {
		return n.Line, n.Column
	}
	switch n.Style {
	case yaml.LiteralStyle:
		// The block is indented as its first line is.
		for _, raw := range s.lines[min(n.Line, len(s.lines)):] {
			if text := bytes.TrimLeft(raw, " "); len(bytes.TrimSpace(text)) > 0 {
				return n.Line + line, len(raw) - len(text) + column
			}
		}
		return n.Line + line, 0
	case yaml.FoldedStyle:
		return n.Line + 1, 0
	case yaml.SingleQuotedStyle, yaml.DoubleQuotedStyle:
		return n.Line, n.Column + column
	default:
		return n.Line, n.Column + column - 1
	}
}

// document reads one YAML document, collecting faults.
type document struct {
	l        *loader
	file     string
	lines    [][]byte
	policy   string
	nameLine int
	at       map[string]int // line of each field read
}

var yamlLine = regexp.MustCompile(`line (\d+)`)

// parse reads the documents of a file. Anchors, aliases, merge keys and tags
// are refused: a policy must read the same to a person and to the machine, and
// aliases can expand without bound.
func (l *loader) parse(src Source) []policySpec {
	if len(src.Data) > MaxFileBytes {
		l.fault(&PolicyError{File: src.Name, Msg: fmt.Sprintf("the file has %d bytes; the limit is %d", len(src.Data), MaxFileBytes)})
		return nil
	}
	lines := bytes.Split(src.Data, []byte("\n"))
	var out []policySpec
	dec := yaml.NewDecoder(bytes.NewReader(src.Data))
	for {
		var node yaml.Node
		err := decodeYAML(dec, &node)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			e := &PolicyError{File: src.Name, Msg: strings.TrimPrefix(err.Error(), "yaml: ")}
			if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
				e.Line, _ = strconv.Atoi(m[1]) // digits by the expression above
			}
			l.fault(e)
			return out
		}
		if len(node.Content) == 0 || node.Content[0].Tag == "!!null" {
			continue // an empty document, e.g. before the first ---
		}
		if len(out) >= MaxPolicies {
			l.fault(&PolicyError{File: src.Name, Line: node.Line, Msg: fmt.Sprintf("more than %d policies", MaxPolicies)})
			return out
		}
		d := &document{l: l, file: src.Name, lines: lines, at: map[string]int{}}
		before := l.faultCount()
		if kindOf(node.Content[0]) == KindBinding {
			l.bind(d, d.readBinding(node.Content[0]))
			continue
		}
		spec := d.read(node.Content[0])
		l.validate(d, &spec)
		if l.faultCount() == before {
			out = append(out, spec)
		}
	}
}

// decodeYAML turns a panic of the YAML library on hostile input into an error.
func decodeYAML(dec *yaml.Decoder, node *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("malformed YAML: %v", r)
		}
	}()
	return dec.Decode(node)
}

func (l *loader) faultCount() int {
	if l.faults == nil {
		return 0
	}
	return len(l.faults.Faults) + l.faults.More
}

func (d *document) faultAt(line int, field, format string, args ...any) *PolicyError {
	e := &PolicyError{File: d.file, Line: line, Policy: d.policy, Field: field, Msg: fmt.Sprintf(format, args...)}
	d.l.fault(e)
	return e
}

func (d *document) fault(n *yaml.Node, field, format string, args ...any) *PolicyError {
	e := d.faultAt(n.Line, field, format, args...)
	e.Column = n.Column
	return e
}

func (d *document) lineOf(field string) int {
	for f := field; f != ""; {
		if n, ok := d.at[f]; ok {
			return n
		}
		i := strings.LastIndexByte(f, '.')
		if i < 0 {
			break
		}
		f = f[:i]
	}
	return d.at[""]
}

// fields reads a mapping, calling the reader of each key. Unknown and duplicate
// keys are faults; it reports which keys were there.
func (d *document) fields(n *yaml.Node, path string, readers map[string]func(n *yaml.Node, path string)) map[string]bool {
	found := map[string]bool{}
	d.at[path] = n.Line
	if !d.plain(n, path) {
		return found
	}
	if n.Kind != yaml.MappingNode {
		d.fault(n, path, "must be a mapping")
		return found
	}
	if d.l.watch != nil {
		d.l.watch(path, slices.Collect(maps.Keys(readers)))
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		name := k.Value
		sub := name
		if path != "" {
			sub = path + "." + name
		}
		read, known := readers[name]
		switch {
		case k.Kind != yaml.ScalarNode || !d.plain(k, path):
			d.fault(k, path, "a field name must be plain text")
		case found[name]:
			d.fault(k, sub, "duplicate field")
		case !known:
			names := make([]string, 0, len(readers))
			for r := range readers {
				names = append(names, r)
			}
			d.fault(k, sub, "unknown field").Suggestion = closest(name, names)
		default:
			d.at[sub] = k.Line
			if d.plain(v, sub) {
				read(v, sub)
			}
		}
		found[name] = true
	}
	return found
}

// plain refuses YAML's indirections.
func (d *document) plain(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "" || n.Tag == "!!merge":
		d.fault(n, path, "anchors, aliases and merge keys are not supported")
	case n.Style&yaml.TaggedStyle != 0:
		d.fault(n, path, "tags are not supported")
	default:
		return true
	}
	return false
}

func (d *document) str(n *yaml.Node, path string) string {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		d.fault(n, path, "must be text")
		return ""
	}
	if n.Tag != "!!str" {
		d.fault(n, path, "must be text; put quotes around %s", n.Value)
		return ""
	}
	return n.Value
}

func (d *document) list(n *yaml.Node, path string, limit int, item func(n *yaml.Node, path string)) {
	if n.Kind != yaml.SequenceNode {
		d.fault(n, path, "must be a list")
		return
	}
	if len(n.Content) > limit {
		d.fault(n, path, "%d items; the limit is %d", len(n.Content), limit)
		return
	}
	for i, c := range n.Content {
		p := fmt.Sprintf("%s[%d]", path, i)
		if d.plain(c, p) {
			item(c, p)
		}
	}
}

func (d *document) patterns(out *[]string) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		d.list(n, path, maxPatternsOfMatch, func(n *yaml.Node, path string) {
			s := d.str(n, path)
			switch {
			case s == "":
				d.fault(n, path, "an empty pattern matches nothing")
			case len(s) > maxPatternBytes || strings.Count(s, "*") > 8:
				d.fault(n, path, "a pattern may have at most %d bytes and 8 asterisks", maxPatternBytes)
			default:
				*out = append(*out, s)
			}
		})
	}
}

func choice[T ~string](d *document, out *T, allowed ...T) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		s := d.str(n, path)
		names := make([]string, len(allowed))
		for i, a := range allowed {
			names[i] = string(a)
		}
		if d.l.watch != nil {
			d.l.watch(path, names)
		}
		if i := slices.Index(names, s); i >= 0 {
			*out = allowed[i]
			return
		}
		if s != "" || n.Tag == "!!str" {
			d.fault(n, path, "%q is not one of %s", s, strings.Join(names, ", ")).Suggestion = closest(s, names)
		}
	}
}

func (d *document) text(out *string, limit int) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		*out = d.str(n, path)
		if len(*out) > limit {
			d.fault(n, path, "%d bytes; the limit is %d", len(*out), limit)
		}
	}
}

func (d *document) expression(out *string, at **source) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		*out = d.str(n, path)
		*at = &source{text: *out, field: path, node: n, lines: d.lines}
	}
}

func (d *document) require(n *yaml.Node, path string, found map[string]bool, names ...string) {
	for _, name := range names {
		if !found[name] {
			sub := name
			if path != "" {
				sub = path + "." + name
			}
			d.fault(n, sub, "required field is missing")
		}
	}
}

func (d *document) read(root *yaml.Node) policySpec {
	spec := policySpec{file: d.file, line: root.Line}
	d.nameLine = root.Line
	var version, kind, description string
	found := d.fields(root, "", map[string]func(*yaml.Node, string){
		"apiVersion": d.text(&version, 64),
		"kind":       d.text(&kind, 64),
		"metadata": func(n *yaml.Node, path string) {
			f := d.fields(n, path, map[string]func(*yaml.Node, string){
				"name":        d.text(&spec.Name, 63),
				"description": d.text(&description, 4096),
			})
			d.require(n, path, f, "name")
			if line, ok := d.at["metadata.name"]; ok {
				d.nameLine = line
			}
			d.policy = spec.Name
		},
		"spec": func(n *yaml.Node, path string) { d.readSpec(n, path, &spec) },
	})
	d.require(root, "", found, "apiVersion", "kind", "metadata", "spec")
	if found["apiVersion"] && version != APIVersion {
		d.faultAt(d.at["apiVersion"], "apiVersion", "%q is not supported; it must be %s", version, APIVersion)
	}
	if found["kind"] && kind != Kind {
		d.faultAt(d.at["kind"], "kind", "%q is not supported; it must be %s", kind, Kind)
	}
	return spec
}

func (d *document) readSpec(n *yaml.Node, path string, spec *policySpec) {
	d.fields(n, path, map[string]func(*yaml.Node, string){
		"match": func(n *yaml.Node, path string) {
			d.fields(n, path, map[string]func(*yaml.Node, string){
				"types":     d.patterns(&spec.Match.Types),
				"subjects":  d.patterns(&spec.Match.Subjects),
				"pipelines": d.patterns(&spec.Match.Pipelines),
				"stages":    d.patterns(&spec.Match.Stages),
				"points": func(n *yaml.Node, path string) {
					d.list(n, path, 2, func(n *yaml.Node, path string) {
						var p string
						choice(d, &p, string(events.OnPublish), string(events.OnReceive))(n, path)
						spec.Match.Points = append(spec.Match.Points, p)
					})
				},
			})
		},
		"params": func(n *yaml.Node, path string) { d.readParams(n, path, spec) },
		"variables": func(n *yaml.Node, path string) {
			names := map[string]bool{}
			d.list(n, path, MaxRules, func(n *yaml.Node, path string) {
				v := variableSpec{}
				f := d.fields(n, path, map[string]func(*yaml.Node, string){
					"name":       d.text(&v.Name, 63),
					"expression": d.expression(&v.Expression, &v.at),
				})
				d.require(n, path, f, "name", "expression")
				switch {
				case v.Name == "":
				case !identRule.MatchString(v.Name):
					d.fault(n, path+".name", "%q is not an identifier", v.Name)
				case names[v.Name]:
					d.fault(n, path+".name", "variable %q is already defined", v.Name)
				}
				names[v.Name] = true
				if v.at != nil {
					spec.Variables = append(spec.Variables, v)
				}
			})
		},
		"rules": func(n *yaml.Node, path string) {
			names := map[string]bool{}
			d.list(n, path, 10*MaxRules, func(n *yaml.Node, path string) { d.readRule(n, path, spec, names) })
		},
		"failure": choice(d, &spec.Failure, failDeny, failIgnore),
		"mode":    choice(d, &spec.Mode, Enforce, WarnOnly, Audit),
	})
}

func (d *document) readRule(n *yaml.Node, path string, spec *policySpec, names map[string]bool) {
	r := ruleSpec{Action: actionDeny, line: n.Line}
	f := d.fields(n, path, map[string]func(*yaml.Node, string){
		"name":              d.text(&r.Name, 63),
		"expression":        d.expression(&r.Expression, &r.at),
		"message":           d.text(&r.Message, maxReasonBytes),
		"messageExpression": d.expression(&r.MessageExpression, &r.messageAt),
		"reason":            d.text(&r.Reason, 63),
		"action":            choice(d, &r.Action, ruleActions()...),
		"approval":          func(n *yaml.Node, path string) { r.Approval = d.readApproval(n, path) },
		"redact":            func(n *yaml.Node, path string) { r.Redact = d.readRedact(n, path) },
		"route":             func(n *yaml.Node, path string) { r.Route = d.readRoute(n, path) },
	})
	d.checkEffect(n, path, &r)
	d.require(n, path, f, "name", "expression")
	switch {
	case r.Name == "":
	case !nameRule.MatchString(r.Name):
		d.fault(n, path+".name", "%q is not a name: lower-case letters, digits, - and . only", r.Name)
	case names[r.Name]:
		d.fault(n, path+".name", "rule %q is already defined", r.Name)
	}
	names[r.Name] = true
	if r.Reason != "" && !reasonRule.MatchString(r.Reason) {
		d.fault(n, path+".reason", "%q is not a word of letters and digits", r.Reason)
	}
	if strings.TrimSpace(r.Message) == "" && r.messageAt == nil {
		r.Message = "must hold: " + shorten(r.Expression, 200)
	}
	if r.at != nil {
		spec.Rules = append(spec.Rules, r)
	}
}
