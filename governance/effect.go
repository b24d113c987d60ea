package governance

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/stokehold/stokehold/events"
)

// redactSpec is what a rule with the action redact takes out.
type redactSpec struct {
	Drop        []string `json:"drop,omitempty"` // paths of event data
	Mask        []string `json:"mask,omitempty"`
	DropColumns []string `json:"dropColumns,omitempty"` // of the event's batch
	MaskColumns []string `json:"maskColumns,omitempty"`
}

// routeSpec is where a rule with the action route sends an event.
type routeSpec struct {
	Pipeline string `json:"pipeline,omitempty"`
	Tier     string `json:"tier,omitempty"`
	Workers  string `json:"workers,omitempty"`
	Region   string `json:"region,omitempty"`
}

// Limits of a redaction.
const (
	MaxRedactions = 64  // paths, or columns, of one rule
	maxPathSteps  = 16  // of a path
	maxPathBytes  = 256 // of a path or a column's name
)

func (d *document) readApproval(n *yaml.Node, path string) *approvalSpec {
	a := &approvalSpec{Quorum: 1, Expires: defaultExpiry}
	d.fields(n, path, map[string]func(*yaml.Node, string){
		"roles": func(n *yaml.Node, path string) {
			d.list(n, path, MaxRoles, func(n *yaml.Node, path string) {
				role := d.str(n, path)
				if !nameRule.MatchString(role) {
					d.fault(n, path, "%q is not a role: lower-case letters, digits, - and . only", role)
				}
				a.Roles = append(a.Roles, role)
			})
		},
		"quorum": func(n *yaml.Node, path string) {
			if n.Decode(&a.Quorum) != nil || n.Tag != "!!int" || a.Quorum < 1 || a.Quorum > MaxQuorum {
				d.fault(n, path, "must be a number of people, 1 to %d", MaxQuorum)
			}
		},
		"expires": func(n *yaml.Node, path string) {
			var err error
			if a.Expires, err = time.ParseDuration(d.str(n, path)); err != nil || a.Expires < time.Minute || a.Expires > MaxExpiry {
				d.fault(n, path, "must be a duration of 1m to %s, such as 24h", MaxExpiry)
			}
		},
	})
	return a
}

func (d *document) readRedact(n *yaml.Node, path string) *redactSpec {
	r := &redactSpec{}
	names := func(out *[]string) func(*yaml.Node, string) {
		return func(n *yaml.Node, path string) {
			d.list(n, path, MaxRedactions, func(n *yaml.Node, path string) {
				name := d.str(n, path)
				switch {
				case name == "" || len(name) > maxPathBytes:
					d.fault(n, path, "must have 1 to %d bytes", maxPathBytes)
				case slices.Contains(*out, name):
					d.fault(n, path, "%q is there twice", name)
				}
				*out = append(*out, name)
			})
		}
	}
	d.fields(n, path, map[string]func(*yaml.Node, string){
		"drop": names(&r.Drop), "mask": names(&r.Mask), "dropColumns": names(&r.DropColumns), "maskColumns": names(&r.MaskColumns),
	})
	if len(r.Drop)+len(r.Mask)+len(r.DropColumns)+len(r.MaskColumns) == 0 {
		d.fault(n, path, "must say what to drop or mask")
	}
	return r
}

func (d *document) readRoute(n *yaml.Node, path string) *routeSpec {
	r := &routeSpec{}
	name := func(out *string) func(*yaml.Node, string) {
		return func(n *yaml.Node, path string) {
			if *out = d.str(n, path); !nameRule.MatchString(*out) {
				d.fault(n, path, "%q is not a name: lower-case letters, digits, - and . only", *out)
			}
		}
	}
	d.fields(n, path, map[string]func(*yaml.Node, string){
		"pipeline": name(&r.Pipeline), "workers": name(&r.Workers), "region": name(&r.Region),
		"tier": choice(d, &r.Tier, tiersOfRefs()...),
	})
	if *r == (routeSpec{}) {
		d.fault(n, path, "must say where to: pipeline, tier, workers or region")
	}
	return r
}

// checkEffect holds a rule to having what its action needs, and nothing that
// another action does.
func (d *document) checkEffect(n *yaml.Node, path string, r *ruleSpec) {
	for _, e := range []struct {
		field  string
		action ruleAction
		given  bool
	}{
		{"redact", actionRedact, r.Redact != nil},
		{"route", actionRoute, r.Route != nil},
		{"approval", actionApproval, r.Approval != nil},
	} {
		switch {
		case e.given && r.Action != e.action:
			d.fault(n, path+"."+e.field, "is of no use with the action %s; did you mean action: %s?", r.Action, e.action)
		case !e.given && r.Action == actionApproval && e.action == actionApproval:
			r.Approval = &approvalSpec{Quorum: 1, Expires: defaultExpiry}
		case !e.given && r.Action == e.action:
			d.fault(n, path+"."+e.field, "required with the action %s", e.action)
		}
	}
}

// compile checks the paths of event data against its type.
func (r *redactSpec) compile(data *dataType) ([]dataPath, []*PolicyError) {
	var out []dataPath
	var faults []*PolicyError
	for _, kind := range []struct {
		field string
		paths []string
		mask  bool
	}{{"drop", r.Drop, false}, {"mask", r.Mask, true}} {
		for i, text := range kind.paths {
			p, fault := parsePath(text, data)
			if fault != nil {
				fault.Field = fmt.Sprintf("redact.%s[%d]", kind.field, i)
				faults = append(faults, fault)
				continue
			}
			p.mask = kind.mask
			out = append(out, p)
		}
	}
	return out, faults
}

// effects are what the rules that do not hold do to an event.
type effects struct {
	paths   []dataPath
	columns events.Columns
	route   events.Routing
}

// add takes in what a rule does. Of two routes of one kind the first stays: it
// reports false if it dropped a part.
func (e *effects) add(r *rule) bool {
	whole := true
	switch {
	case r.spec.Redact != nil:
		e.paths = append(e.paths, r.paths...)
		e.columns.Drop = union(e.columns.Drop, r.spec.Redact.DropColumns)
		e.columns.Mask = union(e.columns.Mask, r.spec.Redact.MaskColumns)
	case r.spec.Route != nil:
		for _, part := range []struct {
			to   *string
			from string
		}{
			{&e.route.Pipeline, r.spec.Route.Pipeline}, {&e.route.Tier, r.spec.Route.Tier},
			{&e.route.Workers, r.spec.Route.Workers}, {&e.route.Region, r.spec.Route.Region},
		} {
			switch {
			case *part.to == "":
				*part.to = part.from
			case part.from != "" && part.from != *part.to:
				whole = false
			}
		}
	}
	return whole
}

func (e *effects) empty() bool {
	return len(e.paths) == 0 && e.columns.IsZero() && e.route.IsZero()
}

// summary is Decision.Effect: what is done, without values of the event.
func (e *effects) summary() string {
	q := url.Values{}
	for i := range e.paths {
		if e.paths[i].mask {
			q.Add("mask", e.paths[i].text)
		} else {
			q.Add("drop", e.paths[i].text)
		}
	}
	for _, c := range e.columns.Drop {
		q.Add("drop.column", c)
	}
	for _, c := range e.columns.Mask {
		q.Add("mask.column", c)
	}
	for k, v := range map[string]string{"pipeline": e.route.Pipeline, "tier": e.route.Tier, "workers": e.route.Workers, "region": e.route.Region} {
		if v != "" {
			q.Set("route."+k, v)
		}
	}
	return q.Encode()
}

func union(a, b []string) []string {
	if len(b) == 0 {
		return a
	}
	return slices.Compact(slices.Sorted(slices.Values(slices.Concat(a, b))))
}

// dataPath names values of event data: data.a.b, where * stands for any key of a
// map and any element of a list.
type dataPath struct {
	text  string
	steps []string // without the leading data
	mask  bool
}

// parsePath reads a path and holds it to the data's type, if that is known.
func parsePath(text string, data *dataType) (dataPath, *PolicyError) {
	steps := strings.Split(text, ".")
	if len(steps) < 2 || steps[0] != declData || slices.Contains(steps, "") {
		return dataPath{}, &PolicyError{Msg: fmt.Sprintf("%q is not a path; write data.FIELD.FIELD, with * for any key or element", text)}
	}
	if len(steps)-1 > maxPathSteps {
		return dataPath{}, &PolicyError{Msg: fmt.Sprintf("%q has more than %d steps", text, maxPathSteps)}
	}
	t := data
	for _, step := range steps[1:] {
		if t == nil {
			break
		}
		switch t.kind {
		case kindObject:
			if step == "*" {
				t = nil // any of its fields: their types differ
				continue
			}
			i := t.find([]byte(step))
			if i < 0 {
				return dataPath{}, &PolicyError{Msg: fmt.Sprintf("%q: undefined field %q", text, step), Suggestion: closest(step, t.fieldNames())}
			}
			t = t.fields[i].typ
		case kindMap:
			t = t.elem
		case kindList:
			if step != "*" {
				return dataPath{}, &PolicyError{Msg: fmt.Sprintf("%q: %q is a step into a list; only * is", text, step)}
			}
			t = t.elem
		case kindDyn:
			t = nil
		default:
			return dataPath{}, &PolicyError{Msg: fmt.Sprintf("%q: %q is a step into %s, which has no fields", text, step, t.cel)}
		}
	}
	return dataPath{text: text, steps: steps[1:]}, nil
}
