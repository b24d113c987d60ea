package governance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ChangeKind says what happened to a part of a policy set.
type ChangeKind string

// The kinds of changes.
const (
	Added   ChangeKind = "added"
	Removed ChangeKind = "removed"
	Changed ChangeKind = "changed"
)

// Change is one difference between two policy sets.
type Change struct {
	Kind   ChangeKind `json:"kind"`
	Policy string     `json:"policy,omitempty"` // "": of the set
	// Part is the rule, variable or other named part of the policy, e.g. "rule
	// better"; "": the policy itself.
	Part   string `json:"part,omitempty"`
	Field  string `json:"field,omitempty"`  // e.g. "match.types"; "" of what was added or removed
	Before string `json:"before,omitempty"` // JSON; "" of what was added
	After  string `json:"after,omitempty"`  // JSON; "" of what was removed
}

// Diff returns how b differs from a, by content: files, layout and comments do not
// matter, nor does the order of policies. Either may be nil, which stands for no
// policies. Without differences the digests are equal.
func Diff(a, b *PolicySet) ([]Change, error) {
	x, err := canonicalMap(a)
	if err != nil {
		return nil, err
	}
	y, err := canonicalMap(b)
	if err != nil {
		return nil, err
	}
	var d differ
	d.object(Change{}, x, y)
	return d.out, nil
}

func canonicalMap(s *PolicySet) (map[string]any, error) {
	if s == nil {
		return map[string]any{}, nil
	}
	raw, err := s.Canonical()
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("governance: canonical content of the policies: %w", err)
	}
	return m, nil
}

// differ compares the canonical content of two sets. It knows of its shape only
// that lists of objects with names are compared by name, so that it shows
// whatever the language comes to have.
type differ struct{ out []Change }

// object compares two objects field by field. at says what they are of.
func (d *differ) object(at Change, x, y map[string]any) {
	keys := slices.Sorted(maps.Keys(x))
	for k := range y {
		if _, ok := x[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if at.Field == "" && k == "name" {
			continue
		}
		f := at
		if f.Field = k; at.Field != "" {
			f.Field = at.Field + "." + k
		}
		d.value(f, x[k], y[k])
	}
}

func (d *differ) value(at Change, v, w any) {
	before, after := showJSON(v), showJSON(w)
	if before == after {
		return
	}
	xs, xNamed := byName(v)
	ys, yNamed := byName(w)
	if (xNamed || v == nil) && (yNamed || w == nil) && (xNamed || yNamed) && at.Part == "" {
		d.named(at, xs, ys)
		return
	}
	x, xObject := v.(map[string]any)
	y, yObject := w.(map[string]any)
	if xObject && yObject {
		d.object(at, x, y)
		return
	}
	at.Kind, at.Before, at.After = Changed, before, after
	d.out = append(d.out, at)
}

// named compares lists of objects with names.
func (d *differ) named(at Change, xs, ys []item) {
	inside := func(name string) Change {
		if at.Policy == "" {
			return Change{Policy: name}
		}
		return Change{Policy: at.Policy, Part: strings.TrimSuffix(at.Field, "s") + " " + name}
	}
	var kept [2][]string // names of both, in the order of each
	for _, x := range xs {
		c := inside(x.name)
		if y, ok := find(ys, x.name); ok {
			kept[0] = append(kept[0], x.name)
			d.object(c, x.value, y.value)
			continue
		}
		c.Kind, c.Before = Removed, showJSON(x.value)
		d.out = append(d.out, c)
	}
	for _, y := range ys {
		if _, ok := find(xs, y.name); ok {
			kept[1] = append(kept[1], y.name)
			continue
		}
		c := inside(y.name)
		c.Kind, c.After = Added, showJSON(y.value)
		d.out = append(d.out, c)
	}
	if !slices.Equal(kept[0], kept[1]) { // the first denial gives the reason
		d.out = append(d.out, Change{Kind: Changed, Policy: at.Policy, Field: "order of " + at.Field,
			Before: strings.Join(kept[0], ", "), After: strings.Join(kept[1], ", ")})
	}
}

type item struct {
	name  string
	value map[string]any
}

func find(items []item, name string) (item, bool) {
	i := slices.IndexFunc(items, func(it item) bool { return it.name == name })
	if i < 0 {
		return item{}, false
	}
	return items[i], true
}

// byName reads a list whose elements are objects with names of their own.
func byName(v any) ([]item, bool) {
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return nil, false
	}
	var out []item
	for _, e := range list {
		m, _ := e.(map[string]any)
		name, ok := m["name"].(string)
		if _, dup := find(out, name); !ok || dup {
			return nil, false
		}
		out = append(out, item{name, m})
	}
	return out, true
}

func showJSON(v any) string {
	if v == nil {
		return ""
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSpace(b.String())
}
