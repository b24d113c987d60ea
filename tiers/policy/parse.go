package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/stokehold/stokehold/governance"
)

// Accepted values of the two fields that name the format.
const (
	APIVersion = governance.APIVersion
	Kind       = "TierPolicy"
)

// Limits of policy files.
const (
	maxFileBytes = 1 << 20
	maxPolicies  = 256
	maxRules     = 256
	maxFaults    = 100
)

var (
	validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	yamlLine  = regexp.MustCompile(`line (\d+)`)
)

// Parse reads and compiles policies. All faults are in the one
// *governance.LoadError, with file, line and column; then nothing is returned.
func Parse(srcs ...governance.Source) (*Set, error) {
	p := &parser{}
	set := &Set{}
	for _, src := range srcs {
		for _, pol := range p.file(src) {
			if i := slices.IndexFunc(set.policies, func(o *policy) bool { return o.name == pol.name }); i >= 0 && pol.name != "" {
				p.fault(pol.node, "metadata.name", "another policy is called %q", pol.name)
			}
			set.policies = append(set.policies, pol)
		}
	}
	if len(set.policies) > maxPolicies {
		p.add(&governance.PolicyError{Msg: fmt.Sprintf("%d policies; the limit is %d", len(set.policies), maxPolicies)})
	}
	if p.faults != nil {
		return nil, p.faults
	}
	return set, nil
}

// parser collects faults; file and name say where it is.
type parser struct {
	faults     *governance.LoadError
	source     string
	name, rule string
}

func (p *parser) add(e *governance.PolicyError) {
	if p.faults == nil {
		p.faults = &governance.LoadError{}
	}
	if len(p.faults.Faults) >= maxFaults {
		p.faults.More++
		return
	}
	p.faults.Faults = append(p.faults.Faults, e)
}

func (p *parser) fault(n *yaml.Node, field, format string, args ...any) {
	p.add(&governance.PolicyError{File: p.source, Line: n.Line, Column: n.Column, Policy: p.name, Rule: p.rule, Field: field, Msg: fmt.Sprintf(format, args...)})
}

func (p *parser) file(src governance.Source) []*policy {
	p.source = src.Name
	if len(src.Data) > maxFileBytes {
		p.add(&governance.PolicyError{File: src.Name, Msg: fmt.Sprintf("the file has %d bytes; the limit is %d", len(src.Data), maxFileBytes)})
		return nil
	}
	var out []*policy
	dec := yaml.NewDecoder(bytes.NewReader(src.Data))
	for {
		var node yaml.Node
		err := decode(dec, &node)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			e := &governance.PolicyError{File: src.Name, Msg: err.Error()}
			if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
				e.Line, _ = strconv.Atoi(m[1]) // digits by the expression above
			}
			p.add(e)
			return out
		}
		if len(node.Content) == 0 || node.Content[0].Tag == "!!null" {
			continue
		}
		out = append(out, p.document(node.Content[0]))
	}
}

// decode turns a panic of the YAML library on hostile input into an error.
func decode(dec *yaml.Decoder, node *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("malformed YAML: %v", r)
		}
	}()
	return dec.Decode(node)
}

// fields reads a mapping: each known key at most once and no other. It calls the
// function of each key that there is.
func (p *parser) fields(n *yaml.Node, at string, known map[string]func(*yaml.Node), required ...string) {
	if n.Kind != yaml.MappingNode || n.Anchor != "" {
		p.fault(n, at, "want a mapping, without anchors")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		field := key.Value
		if at != "" {
			field = at + "." + key.Value
		}
		read, ok := known[key.Value]
		switch {
		case !ok:
			p.fault(key, field, "unknown field")
		case seen[key.Value]:
			p.fault(key, field, "given twice")
		case value.Kind == yaml.AliasNode || value.Anchor != "":
			p.fault(value, field, "anchors and aliases are not allowed")
		default:
			read(value)
		}
		seen[key.Value] = true
	}
	for _, r := range required {
		if !seen[r] {
			p.fault(n, at, "%s is missing", r)
		}
	}
}

func (p *parser) text(dst *string, at string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.ScalarNode || n.Tag != "!!str" || n.Value == "" {
			p.fault(n, at, "want a text that is not empty")
			return
		}
		*dst = n.Value
	}
}

func (p *parser) fraction(dst *float64, at string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		f, err := strconv.ParseFloat(n.Value, 64)
		if n.Kind != yaml.ScalarNode || err != nil || math.IsNaN(f) || f <= 0 || f > 1 {
			p.fault(n, at, "want a number above 0 and at most 1")
			return
		}
		*dst = f
	}
}

func (p *parser) list(n *yaml.Node, at string, each func(*yaml.Node, string)) {
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 || len(n.Content) > maxRules {
		p.fault(n, at, "want a list of 1 to %d", maxRules)
		return
	}
	for i, c := range n.Content {
		each(c, fmt.Sprintf("%s[%d]", at, i))
	}
}

func (p *parser) document(n *yaml.Node) *policy {
	pol := &policy{node: n}
	p.name, p.rule = "", ""
	var version, kind string
	p.fields(n, "", map[string]func(*yaml.Node){
		"apiVersion": p.text(&version, "apiVersion"),
		"kind":       p.text(&kind, "kind"),
		"metadata": func(n *yaml.Node) {
			p.fields(n, "metadata", map[string]func(*yaml.Node){"name": p.text(&pol.name, "metadata.name")}, "name")
			if pol.name != "" && !validName.MatchString(pol.name) {
				p.fault(n, "metadata.name", "%.80q: want lower-case letters, digits and -, at most 63", pol.name)
			}
			p.name = pol.name
		},
		"spec": func(n *yaml.Node) { p.spec(n, pol) },
	}, "apiVersion", "kind", "metadata", "spec")
	if version != "" && version != APIVersion {
		p.fault(n, "apiVersion", "%.40q: want %s", version, APIVersion)
	}
	if kind != "" && kind != Kind {
		p.fault(n, "kind", "%.40q: want %s", kind, Kind)
	}
	return pol
}

func (p *parser) spec(n *yaml.Node, pol *policy) {
	p.fields(n, "spec", map[string]func(*yaml.Node){
		"match": func(n *yaml.Node) {
			p.fields(n, "spec.match", map[string]func(*yaml.Node){"datasets": func(n *yaml.Node) {
				p.list(n, "spec.match.datasets", func(n *yaml.Node, at string) {
					var glob string
					p.text(&glob, at)(n)
					if _, err := path.Match(glob, ""); err != nil {
						p.fault(n, at, "malformed pattern %.80q", glob)
					}
					pol.datasets = append(pol.datasets, glob)
				})
			}}, "datasets")
		},
		"rules": func(n *yaml.Node) {
			p.list(n, "spec.rules", func(n *yaml.Node, at string) { pol.rules = append(pol.rules, p.ruleOf(n, at, pol)) })
			p.rule = ""
		},
		"watermarks": func(n *yaml.Node) { p.watermarks(n, &pol.marks) },
	})
	if len(pol.rules) == 0 && pol.marks.High == 0 {
		p.fault(n, "spec", "has neither rules nor watermarks")
	}
}

func (p *parser) watermarks(n *yaml.Node, w *Watermarks) {
	const at = "spec.watermarks"
	pair := func(n *yaml.Node, at string, high, low float64) {
		if high != 0 && low >= high {
			p.fault(n, at, "low %g is not below high %g", low, high)
		}
	}
	w.Order = Oldest
	p.fields(n, at, map[string]func(*yaml.Node){
		"high": p.fraction(&w.High, at+".high"), "low": p.fraction(&w.Low, at+".low"),
		"order": func(n *yaml.Node) {
			var order string
			p.text(&order, at+".order")(n)
			if w.Order = Order(order); order != "" && !slices.Contains(orders(), w.Order) {
				p.fault(n, at+".order", "%.40q: want one of %v", order, orders())
			}
		},
		"hot": func(n *yaml.Node) {
			p.fields(n, at+".hot", map[string]func(*yaml.Node){
				"high": p.fraction(&w.HotHigh, at+".hot.high"), "low": p.fraction(&w.HotLow, at+".hot.low"),
			}, "high", "low")
			pair(n, at+".hot", w.HotHigh, w.HotLow)
		},
	}, "high", "low")
	pair(n, at, w.High, w.Low)
}

func orders() []Order { return []Order{Oldest, Idle, Largest} }

func (p *parser) ruleOf(n *yaml.Node, at string, pol *policy) rule {
	var r rule
	var when, action string
	var whenNode, actionNode *yaml.Node
	p.rule = ""
	p.fields(n, at, map[string]func(*yaml.Node){
		"name":   p.text(&r.name, at+".name"),
		"when":   func(n *yaml.Node) { whenNode = n; p.text(&when, at+".when")(n) },
		"action": func(n *yaml.Node) { actionNode = n; p.text(&action, at+".action")(n) },
	}, "name", "when", "action")
	p.rule = r.name
	if r.name != "" && slices.ContainsFunc(pol.rules, func(o rule) bool { return o.name == r.name }) {
		p.fault(n, at+".name", "another rule of the policy is called %q", r.name)
	}
	if r.action = Action(action); action != "" && !slices.Contains(actions(), r.action) {
		p.fault(actionNode, at+".action", "%.40q: want one of %v", action, actions())
	}
	if when == "" {
		return r
	}
	var err error
	if r.when, err = governance.CompileCondition(when, variables()...); err != nil {
		p.condition(whenNode, at+".when", err)
	}
	return r
}

// condition places a fault of an expression in the file.
func (p *parser) condition(n *yaml.Node, field string, err error) {
	e := &governance.PolicyError{Msg: err.Error(), File: p.source, Line: n.Line, Column: n.Column, Policy: p.name, Rule: p.rule, Field: field}
	var in *governance.PolicyError
	if errors.As(err, &in) {
		e.Msg, e.Suggestion = in.Msg, in.Suggestion
		switch {
		case n.Style == yaml.LiteralStyle || n.Style == yaml.FoldedStyle:
			e.Line, e.Column = n.Line+max(in.Line, 1), 0
		case in.Line <= 1 && in.Column > 0:
			e.Column = n.Column + in.Column - 1
			if n.Style == yaml.SingleQuotedStyle || n.Style == yaml.DoubleQuotedStyle {
				e.Column++
			}
		}
	}
	p.add(e)
}
