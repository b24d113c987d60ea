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

// Ident implements celgo.Scope.
func (sc scope) Ident(name string) func(*evalState) (celgo.Value, bool) {
	switch name {
	case declEvent:
		return func(s *evalState) (celgo.Value, bool) { return celgo.OfOther(&s.event), true }
	case declData:
		return (*evalState).dataValue
	case declPoint:
		return func(s *evalState) (celgo.Value, bool) { return celgo.OfString(string(s.point)), !s.pure }
	case declNow:
		return func(s *evalState) (celgo.Value, bool) { return celgo.OfTimestamp(s.now.Time), !s.pure }
	}
	if strings.HasPrefix(name, variablePrefix) {
		if i := slices.Index(sc.c.vars, name); i >= 0 {
			return func(s *evalState) (celgo.Value, bool) {
				if i >= len(s.vars) || s.vars[i].name != name {
					return celgo.Value{}, false
				}
				return s.variableValue(i)
			}
		}
	}
	return func(s *evalState) (celgo.Value, bool) {
		v, ok := s.ResolveName(name)
		if !ok {
			return celgo.Value{}, false
		}
		return celgo.Of(v)
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
