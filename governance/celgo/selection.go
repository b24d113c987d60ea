package celgo

import (
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/traits"
)

// optional compiles an expression of an optional type: Absent stands for
// optional.none(), any other value for an optional that has it.
func (c *compilation[S]) optional(e ast.Expr) valueFunc[S] {
	if e.Kind() == ast.SelectKind && !e.AsSelect().IsTestOnly() {
		return c.selection(e.AsSelect().Operand(), e.AsSelect().FieldName(), true)
	}
	name, args := callOf(e)
	switch {
	case name == operators.OptSelect && len(args) == 2:
		if field, ok := literalString(args[1]); ok {
			return c.selection(args[0], field, true)
		}
	case (name == operators.OptIndex || name == operators.Index) && len(args) == 2:
		return c.index(args[0], args[1], true)
	case name == "or" && len(args) == 2 && c.isOptional(args[0]) && c.isOptional(args[1]):
		f, or := c.optional(args[0]), c.optional(args[1])
		return func(s S) (Value, bool) {
			v, ok := f(s)
			if ok && v.kind == Absent {
				return or(s)
			}
			return v, ok
		}
	}
	return c.giveUp("an optional of another kind than a selection")
}

// operand compiles what a field or an element is taken of. Of an optional, the
// result may be Absent, and so is then all that is taken of it.
func (c *compilation[S]) operand(e ast.Expr, optional bool) (f valueFunc[S], t *types.Type) {
	t = c.typeOf(e)
	if isOptionalType(t) {
		if !optional || len(t.Parameters()) != 1 {
			return c.giveUp("an optional where a value is wanted"), t
		}
		return c.optional(e), t.Parameters()[0]
	}
	return c.value(e), t
}

// selection compiles the access to a field by its name. The result is Absent where
// the field is not set; if the access is optional, also where what it is taken
// of has no fields at all.
func (c *compilation[S]) selection(of ast.Expr, field string, optional bool) valueFunc[S] {
	f, t := c.operand(of, optional)
	switch t.Kind() {
	case types.StructKind:
		get := c.scope.Field(t.TypeName(), field)
		if get == nil {
			return c.giveUp("the field %s of %s", field, t.TypeName())
		}
		return func(s S) (Value, bool) {
			v, ok := f(s)
			if !ok || v.kind == Absent {
				return v, ok
			}
			v, set, ok := get(v.Ref())
			if optional && !set {
				return Value{}, ok
			}
			return v, ok
		}
	case types.MapKind, types.DynKind:
		key := OfString(field)
		return func(s S) (Value, bool) {
			v, ok := f(s)
			if !ok || v.kind == Absent {
				return v, ok
			}
			return element(v, key, optional)
		}
	default:
		return c.giveUp("a field of %s", t)
	}
}

// has compiles a test for a field.
func (c *compilation[S]) has(e ast.Expr) boolFunc[S] {
	sel := e.AsSelect()
	f := c.selection(sel.Operand(), sel.FieldName(), true)
	if c.isOptional(sel.Operand()) {
		c.unsupported("has() of an optional")
	}
	return func(s S) (bool, bool) {
		v, ok := f(s)
		return v.kind != Absent, ok
	}
}

// index compiles the access to an element by a literal, or by a string key.
func (c *compilation[S]) index(of, key ast.Expr, optional bool) valueFunc[S] {
	f, t := c.operand(of, optional)
	switch t.Kind() {
	case types.MapKind, types.ListKind, types.DynKind:
	default:
		return c.giveUp("an element of %s", t)
	}
	if key.Kind() != ast.LiteralKind && c.typeOf(key).Kind() != types.StringKind {
		return c.giveUp("an index that is no literal")
	}
	k := c.value(key)
	return func(s S) (Value, bool) {
		v, ok := f(s)
		if !ok || v.kind == Absent {
			return v, ok
		}
		i, ok := k(s)
		if !ok {
			return Value{}, false
		}
		return element(v, i, optional)
	}
}

// element takes an element of a map or list; Absent if there is none, and by
// optional access of a scalar.
func element(of, key Value, optional bool) (Value, bool) {
	if of.kind != Other {
		return Value{}, optional
	}
	var found bool
	var x any
	switch m := of.ref.(type) {
	case map[string]any:
		if key.kind != String {
			return Value{}, false
		}
		x, found = m[key.str]
	case []any:
		if key.kind != Int {
			return Value{}, false
		}
		if n := key.int(); n >= 0 && n < int64(len(m)) {
			x, found = m[n], true
		}
	case traits.Mapper: // made by cel-go, such as a variable's value
		if key.kind != String {
			return Value{}, false
		}
		x, found = m.Find(types.String(key.str))
	default:
		return Value{}, false
	}
	if !found {
		return Value{}, true
	}
	return Of(x)
}
