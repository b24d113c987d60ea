package celgo

import (
	"slices"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/traits"
)

// optional compiles an expression of an optional type: Absent stands for
// optional.none(), any other value for an optional that has it.
func (c *compilation[S]) optional(e ast.Expr) operand[S] {
	name, args := callOf(e)
	switch {
	case e.Kind() == ast.SelectKind && !e.AsSelect().IsTestOnly(),
		(name == operators.OptSelect || name == operators.OptIndex || name == operators.Index) && len(args) == 2:
		return c.selection(e)
	case name == "or" && len(args) == 2 && c.isOptional(args[0]) && c.isOptional(args[1]):
		f, or := c.optional(args[0]), c.optional(args[1])
		return computed(func(s S) (Value, bool) {
			v, ok := f.optional(s)
			if ok && v.kind == Absent {
				return or.optional(s)
			}
			return v, ok
		})
	default:
		return c.giveUp("an optional of another kind than a selection")
	}
}

// step is one access to a field or an element.
type step[S any] struct {
	field    string     // of a struct or a map; "" with key
	get      FieldFunc  // of a struct
	key      operand[S] // of a map or list
	of       *types.Type
	keyed    bool
	optional bool // what is not there is Absent, and so is all that is taken of it
}

// has compiles a test for a field.
func (c *compilation[S]) has(e ast.Expr) boolFunc[S] {
	if c.isOptional(e.AsSelect().Operand()) {
		c.unsupported("has() of an optional")
	}
	f := c.selection(e)
	return func(s S) (bool, bool) {
		v, ok := f.optional(s)
		return v.kind != Absent, ok
	}
}

// selection compiles a chain of accesses to fields and elements. Those by the names
// of struct fields from a variable on are the scope's to make one of.
func (c *compilation[S]) selection(e ast.Expr) operand[S] {
	root, steps := c.chain(e, nil)
	if c.err != nil {
		return c.giveUp("a selection")
	}
	var base operand[S]
	lenient := false // what the first of the remaining steps is taken of may be Absent
	if root.Kind() == ast.IdentKind {
		var fields []string
		for _, st := range steps {
			if st.keyed || st.of.Kind() != types.StructKind {
				break
			}
			fields = append(fields, st.field)
		}
		from := slices.IndexFunc(steps, func(st step[S]) bool { return st.optional })
		if from < 0 || from > len(fields) {
			from = len(fields)
		}
		if place := c.scope.Path(root.AsIdent(), fields, from); place != nil && len(fields) > 0 {
			base.place, steps, lenient = place, steps[len(fields):], from < len(fields)
			if len(steps) == 0 {
				return base
			}
		}
	}
	if base.place == nil {
		base = c.value(root)
	}
	for i := range steps {
		if st := &steps[i]; !st.keyed && st.of.Kind() == types.StructKind {
			if st.get = c.scope.Field(st.of.TypeName(), st.field); st.get == nil {
				return c.giveUp("the field %s of %s", st.field, st.of.TypeName())
			}
		}
	}
	whole := c.mapPath(base, steps)
	return computed(func(s S) (Value, bool) {
		if whole != nil {
			if x, found := whole(s); found {
				return Of(x)
			}
		}
		v, ok := base.optional(s)
		mayLack := lenient
		for i := range steps {
			st := &steps[i]
			switch {
			case !ok:
				return Value{}, false
			case v.kind == Absent:
				return v, mayLack
			case st.get != nil:
				var set bool
				if v, set, ok = st.get(v.Ref()); st.optional && !set {
					v = Value{}
				}
			default:
				var t Value
				key := st.key.load(s, &t)
				if key == nil {
					return Value{}, false
				}
				v, ok = element(&v, key, st.optional)
			}
			mayLack = st.optional
		}
		return v, ok
	})
}

// mapPath finds what lies at the end of literal keys, as long as all on the way are
// maps that have them, and converts nothing on the way; nil for other steps.
func (c *compilation[S]) mapPath(base operand[S], steps []step[S]) func(s S) (x any, found bool) {
	if base.place == nil {
		return nil
	}
	keys := make([]string, len(steps))
	for i := range steps {
		k := steps[i].key.literal
		if k == nil || k.kind != String {
			return nil
		}
		keys[i] = k.str
	}
	return func(s S) (x any, found bool) {
		v := base.place(s)
		if v == nil {
			return nil, false
		}
		x = v.Ref()
		for _, k := range keys {
			m, ok := x.(map[string]any)
			if !ok {
				return nil, false
			}
			if x, ok = m[k]; !ok {
				return nil, false
			}
		}
		return x, true
	}
}

// chain takes a selection apart: what it is taken of, and its steps from there.
// Once one is optional, so are all that follow it.
func (c *compilation[S]) chain(e ast.Expr, steps []step[S]) (root ast.Expr, all []step[S]) {
	st := step[S]{}
	var of ast.Expr
	name, args := callOf(e)
	switch {
	case e.Kind() == ast.SelectKind:
		sel := e.AsSelect()
		of, st.field, st.optional = sel.Operand(), sel.FieldName(), sel.IsTestOnly()
	case name == operators.OptSelect && len(args) == 2:
		field, ok := literalString(args[1])
		if !ok {
			c.unsupported("a computed field name")
		}
		of, st.field, st.optional = args[0], field, true
	case (name == operators.Index || name == operators.OptIndex) && len(args) == 2:
		of, st.keyed, st.optional = args[0], true, name == operators.OptIndex
		if args[1].Kind() != ast.LiteralKind && c.typeOf(args[1]).Kind() != types.StringKind {
			c.unsupported("an index that is no literal")
		}
		st.key = c.value(args[1])
	default:
		slices.Reverse(steps)
		return e, steps
	}
	st.of = c.typeOf(of)
	if isOptionalType(st.of) && len(st.of.Parameters()) == 1 {
		st.of, st.optional = st.of.Parameters()[0], true
	}
	switch k := st.of.Kind(); {
	case k == types.MapKind, k == types.DynKind, k == types.ListKind && st.keyed:
		if !st.keyed {
			name := OfString(st.field)
			st.key, st.keyed = operand[S]{literal: &name}, true
		}
	case k == types.StructKind && !st.keyed:
	default:
		c.unsupported("a part of %s", st.of)
	}
	if e.Kind() == ast.SelectKind && e.AsSelect().IsTestOnly() && len(steps) > 0 {
		c.unsupported("a part of has()")
	}
	return c.chain(of, append(steps, st))
}

// element takes an element of a map or list; Absent if there is none, and by
// optional access of a scalar.
func element(of, key *Value, optional bool) (Value, bool) {
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
