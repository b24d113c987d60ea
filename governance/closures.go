package governance

import (
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types/ref"

	"github.com/stokehold/stokehold/governance/celgo"
)

// closures compiles an expression to closures, which are tried before cel-go; nil
// if it has parts that they lack, or if its evaluation is accounted for at run
// time, which closures do not do. What a closure does for an expression is bounded
// by what cel-go would do, so that the static bound that lets an expression go
// without accounting holds for both, and at most twice it is spent where a
// closure leaves the result to cel-go.
func (c *compiler) closures(checked *cel.Ast, p *program) *celgo.Program[*evalState] {
	if p.tracked {
		return nil
	}
	fast, err := celgo.Compile(checked, scope{c})
	if err != nil {
		return nil // cel-go evaluates it
	}
	return fast
}

// scope tells closures what an expression's names stand for.
type scope struct{ c *compiler }

var _ celgo.Scope[*evalState] = scope{}

// Path implements celgo.Scope.
func (sc scope) Path(name string, fields []string, from int) func(*evalState) *celgo.Value {
	switch {
	case name == declEvent && len(fields) == 1:
		return attribute(fields[0], from == 0)
	case name == declData:
		return fieldOfData(sc.c.data, fields, from)
	case strings.HasPrefix(name, variablePrefix) && len(fields) == 0:
		i := slices.Index(sc.c.vars, name)
		if i < 0 {
			return nil
		}
		return func(s *evalState) *celgo.Value {
			if i >= len(s.vars) || s.vars[i].name != name {
				return nil
			}
			return s.variableValue(i)
		}
	default:
		return nil
	}
}

// attribute finds an attribute of the event.
func attribute(name string, optional bool) func(*evalState) *celgo.Value {
	i := eventType.find(name)
	if i < 0 || i >= maxAttributes {
		return nil
	}
	get := eventType.fields[i].get
	return func(s *evalState) *celgo.Value {
		v := &s.attributes[i]
		if v.Kind() == celgo.Absent {
			*v, _, _ = get(&s.event)
		}
		if optional {
			if _, set, _ := get(&s.event); !set {
				return &absent
			}
		}
		return v
	}
}

// absent is what optional access to an attribute finds that an event lacks.
var absent celgo.Value //nolint:gochecknoglobals // never changed

// fieldOfData finds the event's data, or a field in them.
func fieldOfData(t *dataType, fields []string, from int) func(*evalState) *celgo.Value {
	indices := make([]int, len(fields))
	for k, name := range fields {
		if indices[k] = t.find(name); indices[k] < 0 {
			return nil
		}
		t = t.fields[indices[k]].typ
	}
	return func(s *evalState) *celgo.Value {
		v := s.dataValue()
		if v == nil {
			return nil
		}
		for k, i := range indices {
			o, ok := v.Ref().(*object)
			if !ok {
				if v.Kind() == celgo.Absent && k > from {
					return v
				}
				return nil
			}
			v = &o.vals[i]
		}
		return v
	}
}

// Ident implements celgo.Scope.
func (sc scope) Ident(name string) func(*evalState) (celgo.Value, bool) {
	switch name {
	case declEvent:
		return func(s *evalState) (celgo.Value, bool) { return celgo.OfOther(&s.event), true }
	case declPoint:
		return func(s *evalState) (celgo.Value, bool) { return celgo.OfString(string(s.point)), !s.pure }
	case declNow:
		return func(s *evalState) (celgo.Value, bool) { return celgo.OfTimestamp(s.now.Time), !s.pure }
	default:
		return func(s *evalState) (celgo.Value, bool) {
			v, ok := s.ResolveName(name)
			if !ok {
				return celgo.Value{}, false
			}
			return celgo.Of(v)
		}
	}
}

// Field implements celgo.Scope.
func (sc scope) Field(typ, name string) celgo.FieldFunc {
	if p, ok := sc.c.env.CELTypeProvider().(*provider); ok {
		if t, ok := p.object(typ); ok {
			if i := t.find(name); i >= 0 && t.fields[i].get != nil {
				return t.fields[i].get
			}
		}
	}
	ft, ok := sc.c.env.CELTypeProvider().FindStructFieldType(typ, name)
	if !ok || ft.IsSet == nil || ft.GetFrom == nil {
		return nil
	}
	return func(x any) (v celgo.Value, set, ok bool) {
		if rv, isVal := x.(ref.Val); isVal {
			x = rv.Value()
		}
		set = ft.IsSet(x)
		got, err := ft.GetFrom(x)
		if err != nil {
			return v, set, !set
		}
		v, ok = celgo.Of(got)
		return v, set, ok
	}
}
