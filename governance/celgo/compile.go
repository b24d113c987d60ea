package celgo

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// ErrUnsupported is wrapped where an expression has a part that is left to cel-go.
var ErrUnsupported = errors.New("not compiled to closures")

// Scope says how closures read what expressions name. S is what they are given at
// evaluation, such as a pointer to the state of one event.
type Scope[S any] interface {
	// Path returns how to find the value of a variable, or of a field that is
	// reached from it through structs; nil where it has no place in memory. The
	// closure returns nil for what is cel-go's to find, such as an error. What
	// it points to must not change while an expression is evaluated. A field that is
	// not set is Absent, or whatever plain access to it gives. If fields[i]
	// is not set and i >= from, the result must be Absent, also when more fields
	// follow; if i < from and more fields follow, nil.
	Path(name string, fields []string, from int) func(s S) *Value
	// Ident returns how to read a variable that has no place in memory; nil leaves
	// expressions that name it to cel-go. ok is false for what is cel-go's to find.
	Ident(name string) func(s S) (v Value, ok bool)
	// Field returns how to read a field of a struct type by the type's CEL name;
	// nil as above.
	Field(typ, name string) FieldFunc
}

// FieldFunc reads a field of x, which is what OfOther was given. Plain access gets
// v, and an error where that is Absent; has() and optional access go by set. ok is
// false where x is not the struct.
type FieldFunc func(x any) (v Value, set, ok bool)

// Program is a compiled expression. Safe for concurrent use.
type Program[S any] struct {
	test  boolFunc[S] // of an expression of type bool; otherwise nil
	value operand[S]
}

// Bool evaluates an expression of type bool. Without ok the result is cel-go's to
// find, which may be an error.
func (p *Program[S]) Bool(s S) (v, ok bool) {
	if p.test != nil {
		return p.test(s)
	}
	return asBool(p.value.get(s))
}

// Eval evaluates an expression. Without ok the result is cel-go's to find, which may
// be an error. The value is never Absent.
func (p *Program[S]) Eval(s S) (v Value, ok bool) {
	if p.test == nil {
		return p.value.get(s)
	}
	b, ok := p.test(s)
	return OfBool(b), ok
}

type boolFunc[S any] func(s S) (v, ok bool)

// operand is a compiled expression of any type but an optional one: a literal, a
// place in memory, or a computation. Values are seven words, which is why they are
// passed by pointer wherever they lie somewhere already.
type operand[S any] struct {
	literal *Value
	place   func(s S) *Value
	compute func(s S) (v Value, ok bool)
}

// load returns the operand's value, in tmp if it lies nowhere else; nil if it is
// cel-go's to find.
func (o *operand[S]) load(s S, tmp *Value) *Value {
	switch {
	case o.place != nil:
		if v := o.place(s); v != nil && v.kind != Absent {
			return v
		}
		return nil
	case o.literal != nil:
		return o.literal
	default:
		var ok bool
		if *tmp, ok = o.compute(s); !ok || tmp.kind == Absent {
			return nil
		}
		return tmp
	}
}

// get is load by value.
func (o *operand[S]) get(s S) (Value, bool) {
	var tmp Value
	if v := o.load(s, &tmp); v != nil {
		return *v, true
	}
	return Value{}, false
}

// optional is the value of an optional, Absent for optional.none().
func (o *operand[S]) optional(s S) (Value, bool) {
	switch {
	case o.place != nil:
		if v := o.place(s); v != nil {
			return *v, true
		}
		return Value{}, false
	case o.literal != nil:
		return *o.literal, true
	default:
		return o.compute(s)
	}
}

func computed[S any](f func(s S) (Value, bool)) operand[S] { return operand[S]{compute: f} }

func asBool(v Value, ok bool) (bool, bool) { return v.isTrue(), ok && v.kind == Bool }

// Compile compiles a checked expression. The error wraps ErrUnsupported and names
// the first part that is not for closures.
func Compile[S any](checked *cel.Ast, scope Scope[S]) (*Program[S], error) {
	c := &compilation[S]{ast: checked.NativeRep(), scope: scope}
	if c.isOptional(c.ast.Expr()) {
		return nil, fmt.Errorf("%w: an optional result", ErrUnsupported)
	}
	p := &Program[S]{}
	if c.typeOf(c.ast.Expr()).Kind() == types.BoolKind {
		p.test = c.bool(c.ast.Expr())
	} else {
		p.value = c.value(c.ast.Expr())
	}
	if c.err != nil {
		return nil, c.err
	}
	return p, nil
}

// compilation holds the first fault, after which what the methods return is never
// used.
type compilation[S any] struct {
	ast   *ast.AST
	scope Scope[S]
	err   error
}

func (c *compilation[S]) typeOf(e ast.Expr) *types.Type { return c.ast.GetType(e.ID()) }

func (c *compilation[S]) isOptional(e ast.Expr) bool { return isOptionalType(c.typeOf(e)) }

func isOptionalType(t *types.Type) bool {
	return t.Kind() == types.OpaqueKind && t.TypeName() == types.OptionalType.TypeName()
}

func (c *compilation[S]) unsupported(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
	}
}

func (c *compilation[S]) giveUp(format string, args ...any) operand[S] {
	c.unsupported(format, args...)
	return computed(func(S) (Value, bool) { return Value{}, false })
}

// callOf returns the function and operands, the target first.
func callOf(e ast.Expr) (name string, args []ast.Expr) {
	if e.Kind() != ast.CallKind {
		return "", nil
	}
	call := e.AsCall()
	args = call.Args()
	if call.IsMemberFunction() {
		args = append([]ast.Expr{call.Target()}, args...)
	}
	return call.FunctionName(), args
}

// value compiles an expression that is not optional.
func (c *compilation[S]) value(e ast.Expr) operand[S] {
	if c.isOptional(e) {
		return c.giveUp("an optional where a value is wanted")
	}
	switch e.Kind() {
	case ast.LiteralKind:
		v, ok := Of(e.AsLiteral())
		if !ok || v.kind == Other {
			return c.giveUp("a literal of type %s", e.AsLiteral().Type().TypeName())
		}
		return operand[S]{literal: &v}
	case ast.IdentKind:
		if f := c.scope.Path(e.AsIdent(), nil, 0); f != nil {
			return operand[S]{place: f}
		}
		if f := c.scope.Ident(e.AsIdent()); f != nil {
			return computed(f)
		}
		return c.giveUp("the variable %s", e.AsIdent())
	case ast.SelectKind:
		if e.AsSelect().IsTestOnly() {
			f := c.has(e)
			return computed(func(s S) (Value, bool) { v, ok := f(s); return OfBool(v), ok })
		}
		return c.selection(e)
	case ast.CallKind:
		return c.call(e)
	default:
		return c.giveUp("an expression that is a loop, list, map or struct")
	}
}

func (c *compilation[S]) call(e ast.Expr) operand[S] {
	name, args := callOf(e)
	switch {
	case len(args) == 2 && arithmeticOf(name) != 0:
		return c.arithmetic(arithmeticOf(name), args[0], args[1])
	case name == operators.Negate && len(args) == 1:
		return c.unary(negate, args[0])
	case name == operators.Conditional && len(args) == 3:
		test, yes, no := c.bool(args[0]), c.value(args[1]), c.value(args[2])
		return computed(func(s S) (Value, bool) {
			v, ok := test(s)
			switch {
			case !ok:
				return Value{}, false
			case v:
				return yes.get(s)
			default:
				return no.get(s)
			}
		})
	case name == operators.Index && len(args) == 2:
		return c.selection(e)
	case name == "orValue" && len(args) == 2 && c.isOptional(args[0]):
		f, or := c.optional(args[0]), c.value(args[1])
		return computed(func(s S) (Value, bool) {
			v, ok := f.optional(s)
			if ok && v.kind == Absent {
				return or.get(s)
			}
			return v, ok
		})
	case name == "value" && len(args) == 1 && c.isOptional(args[0]):
		return c.optional(args[0])
	case name == "size" && len(args) == 1:
		return c.unary(size, args[0])
	case name == "int" && len(args) == 1:
		return c.unary(toInt, args[0])
	case name == "uint" && len(args) == 1:
		return c.unary(toUint, args[0])
	case name == "double" && len(args) == 1:
		return c.unary(toDouble, args[0])
	case name == "duration" && len(args) == 1:
		return c.constant(args[0], types.DurationType)
	case name == "timestamp" && len(args) == 1:
		return c.constant(args[0], types.TimestampType)
	case name == "dyn" && len(args) == 1:
		return c.value(args[0])
	default:
		if f := c.test(e); f != nil {
			return computed(func(s S) (Value, bool) { v, ok := f(s); return OfBool(v), ok })
		}
		return c.giveUp("the function %s", name)
	}
}

func arithmeticOf(name string) byte {
	switch name {
	case operators.Add:
		return '+'
	case operators.Subtract:
		return '-'
	case operators.Multiply:
		return '*'
	case operators.Divide:
		return '/'
	case operators.Modulo:
		return '%'
	default:
		return 0
	}
}

func (c *compilation[S]) arithmetic(op byte, a, b ast.Expr) operand[S] {
	switch c.typeOf(a).Kind() {
	case types.StringKind, types.BytesKind, types.ListKind:
		return c.giveUp("a join")
	default:
	}
	x, y := c.value(a), c.value(b)
	return computed(func(s S) (Value, bool) {
		var t, u Value
		v := x.load(s, &t)
		if v == nil {
			return Value{}, false
		}
		w := y.load(s, &u)
		if w == nil {
			return Value{}, false
		}
		return arithmetic(op, v, w)
	})
}

func (c *compilation[S]) unary(f func(Value) (Value, bool), arg ast.Expr) operand[S] {
	x := c.value(arg)
	return computed(func(s S) (Value, bool) {
		v, ok := x.get(s)
		if !ok {
			return Value{}, false
		}
		return f(v)
	})
}

// size is a string's length in code points, and a list's or map's in elements.
func size(v Value) (Value, bool) {
	if v.kind == String {
		return OfInt(int64(utf8.RuneCountInString(v.str))), true
	}
	switch x := v.Ref().(type) {
	case []any:
		return OfInt(int64(len(x))), true
	case map[string]any:
		return OfInt(int64(len(x))), true
	default:
		return Value{}, false
	}
}

// constant compiles duration() and timestamp() of a literal.
func (c *compilation[S]) constant(arg ast.Expr, t *types.Type) operand[S] {
	s, ok := literalString(arg)
	if !ok {
		return c.giveUp("%s() of other than a literal string", t)
	}
	v, ok := Of(types.String(s).ConvertToType(t))
	if !ok {
		return c.giveUp("a malformed %s", t)
	}
	return operand[S]{literal: &v}
}
