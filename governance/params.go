package governance

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/common/types"
	"go.yaml.in/yaml/v3"

	"github.com/stokehold/stokehold/events"
)

// MaxParams bounds the parameters of one policy; their values together have at
// most events.MaxDataBytes as JSON.
const MaxParams = 64

// paramSpec is a parameter of a policy with the value in effect: the binding's,
// or else the default.
type paramSpec struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Value any    `json:"value,omitempty"` // nil: none, so that what reads it fails

	typ  *dataType
	line int
}

// bindingSpec is a document that gives a policy's parameters values.
type bindingSpec struct {
	name, policy string
	params       []*yaml.Node // keys and values in turn

	d    *document
	line int
}

// scalarParam returns a type that lists and maps may hold; nil if there is none of
// that name.
func scalarParam(name string) *dataType {
	switch name {
	case "bool":
		return &dataType{kind: kindBool, cel: types.BoolType}
	case "int":
		return &dataType{kind: kindInt, cel: types.IntType}
	case "double":
		return &dataType{kind: kindDouble, cel: types.DoubleType}
	case "string":
		return &dataType{kind: kindString, cel: types.StringType}
	case "duration":
		return &dataType{kind: kindDuration, cel: types.DurationType}
	case "timestamp":
		return &dataType{kind: kindTimestamp, cel: types.TimestampType}
	default:
		return nil
	}
}

var paramScalars = []string{"bool", "int", "double", "string", "duration", "timestamp"} //nolint:gochecknoglobals // a constant table

func paramType(text string) *dataType {
	for _, kind := range []string{"list", "map"} {
		inner, ok := strings.CutPrefix(text, kind+"(")
		if !ok {
			continue
		}
		inner, ok = strings.CutSuffix(inner, ")")
		elem := scalarParam(inner)
		switch {
		case !ok || elem == nil:
			return nil
		case kind == "list":
			return &dataType{kind: kindList, cel: types.NewListType(elem.cel), elem: elem}
		default:
			return &dataType{kind: kindMap, cel: types.NewMapType(types.StringType, elem.cel), elem: elem}
		}
	}
	return scalarParam(text)
}

func (d *document) readParams(n *yaml.Node, path string, spec *policySpec) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, path, "must be a mapping of names to types")
		return
	}
	if len(n.Content)/2 > MaxParams {
		d.fault(n, path, "%d parameters; the limit is %d", len(n.Content)/2, MaxParams)
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		p := paramSpec{Name: k.Value, line: k.Line}
		sub := path + "." + k.Value
		if !d.plain(k, path) || !d.plain(v, sub) {
			continue
		}
		var description string
		var value *yaml.Node
		found := d.fields(v, sub, map[string]func(*yaml.Node, string){
			"type":        d.text(&p.Type, 64),
			"default":     func(n *yaml.Node, _ string) { value = n },
			"description": d.text(&description, 4096),
		})
		d.require(v, sub, found, "type")
		switch {
		case !identRule.MatchString(p.Name):
			d.fault(k, sub, "%q is not an identifier", p.Name)
			continue
		case seen[p.Name]:
			d.fault(k, sub, "parameter %q is already defined", p.Name)
			continue
		case p.Type == "":
			continue
		}
		seen[p.Name] = true
		if p.typ = paramType(p.Type); p.typ == nil {
			f := d.fault(v, sub+".type", "%q is not a type; use one of %s, list(T) or map(T)", p.Type, strings.Join(paramScalars, ", "))
			f.Suggestion = closest(p.Type, paramScalars)
			continue
		}
		if value != nil {
			p.Value = d.paramValue(value, sub+".default", p.typ)
		}
		spec.Params = append(spec.Params, p)
	}
	slices.SortFunc(spec.Params, func(a, b paramSpec) int { return strings.Compare(a.Name, b.Name) })
}

// paramValue reads a value as what encodes to the JSON that its type decodes from;
// nil after a fault.
func (d *document) paramValue(n *yaml.Node, path string, t *dataType) any {
	if !d.plain(n, path) {
		return nil
	}
	bad := func() any {
		d.fault(n, path, "must be %s", t.cel)
		return nil
	}
	switch t.kind {
	case kindList:
		if n.Kind != yaml.SequenceNode {
			return bad()
		}
		out := []any{}
		for i, c := range n.Content {
			out = append(out, d.paramValue(c, fmt.Sprintf("%s[%d]", path, i), t.elem))
		}
		return out
	case kindMap:
		if n.Kind != yaml.MappingNode {
			return bad()
		}
		out := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if _, dup := out[k.Value]; dup {
				d.fault(k, path+"."+k.Value, "duplicate field")
			}
			out[k.Value] = d.paramValue(n.Content[i+1], path+"."+k.Value, t.elem)
		}
		return out
	default:
		if v, ok := scalarValue(n, t); ok {
			return v
		}
		return bad()
	}
}

func scalarValue(n *yaml.Node, t *dataType) (any, bool) {
	if n.Kind != yaml.ScalarNode {
		return nil, false
	}
	switch t.kind {
	case kindBool:
		return n.Value == "true", n.Tag == "!!bool" && (n.Value == "true" || n.Value == "false")
	case kindInt:
		var v int64
		if n.Tag != "!!int" || n.Decode(&v) != nil {
			return nil, false
		}
		return v, true
	case kindDouble:
		var v float64
		if n.Tag != "!!float" && n.Tag != "!!int" || n.Decode(&v) != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, false
		}
		return v, true
	case kindString:
		return n.Value, n.Tag == "!!str"
	case kindDuration:
		v, err := time.ParseDuration(n.Value)
		return v.Nanoseconds(), err == nil
	case kindTimestamp:
		v, err := time.Parse(time.RFC3339Nano, n.Value)
		return v.UTC().Format(time.RFC3339Nano), err == nil
	default:
		return nil, false
	}
}

// kindOf returns the kind of a document without looking at the rest.
func kindOf(root *yaml.Node) string {
	if root.Kind != yaml.MappingNode {
		return ""
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value == "kind" {
			return root.Content[i+1].Value
		}
	}
	return ""
}

func (d *document) readBinding(root *yaml.Node) *bindingSpec {
	b := &bindingSpec{d: d, line: root.Line}
	d.nameLine = root.Line
	var version, kind, description string
	found := d.fields(root, "", map[string]func(*yaml.Node, string){
		"apiVersion": d.text(&version, 64),
		"kind":       d.text(&kind, 64),
		"metadata": func(n *yaml.Node, path string) {
			f := d.fields(n, path, map[string]func(*yaml.Node, string){
				"name":        d.text(&b.name, 63),
				"description": d.text(&description, 4096),
			})
			d.require(n, path, f, "name")
		},
		"spec": func(n *yaml.Node, path string) {
			f := d.fields(n, path, map[string]func(*yaml.Node, string){
				"policy": d.text(&b.policy, 63),
				"params": func(n *yaml.Node, path string) {
					if n.Kind != yaml.MappingNode {
						d.fault(n, path, "must be a mapping of names to values")
						return
					}
					b.params = n.Content
				},
			})
			d.require(n, path, f, "policy", "params")
		},
	})
	d.require(root, "", found, "apiVersion", "kind", "metadata", "spec")
	if found["apiVersion"] && version != APIVersion {
		d.faultAt(d.at["apiVersion"], "apiVersion", "%q is not supported; it must be %s", version, APIVersion)
	}
	if b.name != "" && !nameRule.MatchString(b.name) {
		d.faultAt(d.lineOf("metadata.name"), "metadata.name", "%q is not a name: lower-case letters, digits, - and . only, at most 63", b.name)
	}
	return b
}

// bind keeps a binding until all policies are read.
func (l *loader) bind(d *document, b *bindingSpec) {
	if b.policy == "" {
		return
	}
	if prev := l.bindings[b.policy]; prev != nil {
		d.faultAt(b.line, "spec.policy", "policy %q is already bound by %q at %s:%d", b.policy, prev.name, prev.d.file, prev.line)
		return
	}
	l.bindings[b.policy] = b
}

// applyBindings puts the values of bindings in the policies they name.
func (l *loader) applyBindings(specs []policySpec) {
	if len(l.bindings) == 0 {
		return
	}
	byName := make(map[string]*policySpec, len(specs))
	for i := range specs {
		byName[specs[i].Name] = &specs[i]
	}
	for _, policy := range slices.Sorted(maps.Keys(l.bindings)) {
		b := l.bindings[policy]
		spec := byName[policy]
		if spec == nil {
			if l.seen[policy] == nil { // else its own faults say enough
				b.d.faultAt(b.d.lineOf("spec.policy"), "spec.policy", "no policy %q is loaded", policy).Suggestion = closest(policy, slices.Collect(maps.Keys(byName)))
			}
			continue
		}
		b.apply(spec)
	}
}

func (b *bindingSpec) apply(spec *policySpec) {
	seen := map[string]bool{}
	for i := 0; i+1 < len(b.params); i += 2 {
		k, v := b.params[i], b.params[i+1]
		path := "spec.params." + k.Value
		j := slices.IndexFunc(spec.Params, func(p paramSpec) bool { return p.Name == k.Value })
		switch {
		case !b.d.plain(k, path):
		case seen[k.Value]:
			b.d.fault(k, path, "duplicate field")
		case j < 0:
			var names []string
			for _, p := range spec.Params {
				names = append(names, p.Name)
			}
			b.d.fault(k, path, "policy %q has no such parameter", spec.Name).Suggestion = closest(k.Value, names)
		default:
			spec.Params[j].Value = b.d.paramValue(v, path, spec.Params[j].typ)
		}
		seen[k.Value] = true
	}
}

// params returns the value of the variable params; nil if the policy has none.
func (l *loader) params(spec *policySpec) *object {
	if len(spec.Params) == 0 {
		return nil
	}
	t := l.table.declare("Params")
	t.params = true
	values := map[string]any{}
	for _, p := range spec.Params {
		t.add(p.Name, p.typ)
		if p.Value != nil {
			values[p.Name] = p.Value
		}
	}
	fault := func(format string, args ...any) *object {
		l.fault(&PolicyError{File: spec.file, Line: spec.line, Policy: spec.Name, Field: "spec.params", Msg: fmt.Sprintf(format, args...)})
		return &object{typ: t, vals: make([]any, len(t.fields))}
	}
	raw, err := json.Marshal(values)
	switch {
	case err != nil:
		return fault("%v", err)
	case len(raw) > events.MaxDataBytes:
		return fault("the values have %d bytes as JSON; the limit is %d", len(raw), events.MaxDataBytes)
	}
	v, err := decodeData(raw, t)
	if err != nil {
		return fault("%v", err)
	}
	return v.(*object)
}
