package celgo

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
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

// bool compiles an expression where a bool is wanted. That an operand of unknown
// type is none shows at evaluation.
func (c *compilation[S]) bool(e ast.Expr) boolFunc[S] {
	if f := c.test(e); f != nil {
		return f
	}
	f := c.value(e)
	return func(s S) (bool, bool) {
		var tmp Value
		v := f.load(s, &tmp)
		if v == nil || v.kind != Bool {
			return false, false
		}
		return v.isTrue(), true
	}
}

// test compiles the operators and functions that give a bool; nil for all else.
func (c *compilation[S]) test(e ast.Expr) boolFunc[S] {
	if e.Kind() == ast.SelectKind && e.AsSelect().IsTestOnly() {
		return c.has(e)
	}
	name, args := callOf(e)
	switch {
	case name == operators.LogicalAnd && len(args) >= 2:
		return and(c.terms(operators.LogicalAnd, e, nil))
	case name == operators.LogicalOr && len(args) >= 2:
		return or(c.terms(operators.LogicalOr, e, nil))
	case name == operators.LogicalNot && len(args) == 1:
		f := c.bool(args[0])
		return func(s S) (bool, bool) { v, ok := f(s); return !v, ok }
	case name == operators.Conditional && len(args) == 3 && c.typeOf(e).Kind() == types.BoolKind:
		test, yes, no := c.bool(args[0]), c.bool(args[1]), c.bool(args[2])
		return func(s S) (bool, bool) {
			v, ok := test(s)
			switch {
			case !ok:
				return false, false
			case v:
				return yes(s)
			default:
				return no(s)
			}
		}
	case (name == operators.Equals || name == operators.NotEquals) && len(args) == 2:
		return c.equality(args[0], args[1], name == operators.NotEquals)
	case len(args) == 2 && isOrder(name):
		return c.order(name, args[0], args[1])
	case (name == operators.In || name == operators.OldIn) && len(args) == 2:
		return c.in(args[0], args[1])
	case (name == "startsWith" || name == "endsWith" || name == "contains") && len(args) == 2 && c.isText(args[0]):
		return c.stringTest(name, args[0], args[1])
	case name == "matches" && len(args) == 2 && c.isText(args[0]):
		return c.matches(args[0], args[1])
	case name == "hasValue" && len(args) == 1 && c.isOptional(args[0]):
		f := c.optional(args[0])
		return func(s S) (bool, bool) { v, ok := f.optional(s); return v.kind != Absent, ok }
	default:
		return nil
	}
}

// terms flattens a chain of one operator.
func (c *compilation[S]) terms(operator string, e ast.Expr, to []boolFunc[S]) []boolFunc[S] {
	name, args := callOf(e)
	if name != operator {
		return append(to, c.bool(e))
	}
	for _, a := range args {
		to = c.terms(operator, a, to)
	}
	return to
}

// and is false if any term is, also where others have errors.
func and[S any](terms []boolFunc[S]) boolFunc[S] {
	return func(s S) (bool, bool) {
		known := true
		for _, f := range terms {
			v, ok := f(s)
			if ok && !v {
				return false, true
			}
			known = known && ok
		}
		return known, known
	}
}

// or is true if any term is, also where others have errors.
func or[S any](terms []boolFunc[S]) boolFunc[S] {
	return func(s S) (bool, bool) {
		known := true
		for _, f := range terms {
			v, ok := f(s)
			if ok && v {
				return true, true
			}
			known = known && ok
		}
		return false, known
	}
}

func (c *compilation[S]) equality(a, b ast.Expr, not bool) boolFunc[S] {
	if c.isOptional(a) || c.isOptional(b) {
		c.unsupported("a comparison of optionals")
	}
	x, y := c.value(a), c.value(b)
	if x.place != nil && y.literal != nil && y.literal.kind == String {
		return equalsText(x.place, y.literal.str, not)
	}
	return func(s S) (bool, bool) {
		var t, u Value
		v := x.load(s, &t)
		if v == nil {
			return false, false
		}
		w := y.load(s, &u)
		if w == nil {
			return false, false
		}
		eq, ok := equal(v, w)
		return eq != not, ok
	}
}

// equalsText is the most frequent comparison of all.
func equalsText[S any](x func(S) *Value, text string, not bool) boolFunc[S] {
	literal := OfString(text)
	return func(s S) (bool, bool) {
		v := x(s)
		switch {
		case v == nil:
			return false, false
		case v.kind == String:
			return (v.str == text) != not, true
		default:
			eq, ok := equal(v, &literal)
			return eq != not, ok
		}
	}
}

func isOrder(name string) bool {
	switch name {
	case operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals:
		return true
	default:
		return false
	}
}

func (c *compilation[S]) order(name string, a, b ast.Expr) boolFunc[S] {
	x, y := c.value(a), c.value(b)
	var want [4]bool // by the order from less to greater, and false for none
	switch name {
	case operators.Less:
		want = [4]bool{true, false, false}
	case operators.LessEquals:
		want = [4]bool{true, true, false}
	case operators.Greater:
		want = [4]bool{false, false, true}
	default:
		want = [4]bool{false, true, true}
	}
	if x.place != nil && y.literal != nil {
		literal := y.literal
		return func(s S) (bool, bool) {
			v := x.place(s)
			if v == nil {
				return false, false
			}
			o, ok := compare(v, literal)
			return want[o+1], ok
		}
	}
	return func(s S) (bool, bool) {
		var t, u Value
		v := x.load(s, &t)
		if v == nil {
			return false, false
		}
		w := y.load(s, &u)
		if w == nil {
			return false, false
		}
		o, ok := compare(v, w)
		return want[o+1], ok
	}
}

// in compiles membership of a literal list, of a list or map value.
func (c *compilation[S]) in(elem, list ast.Expr) boolFunc[S] {
	x := c.value(elem)
	if list.Kind() == ast.ListKind {
		set := c.literalSet(list.AsList())
		if list.AsList().Size() == 0 { // cel-go does not evaluate the element then
			return func(S) (bool, bool) { return false, true }
		}
		return func(s S) (bool, bool) {
			var t Value
			v := x.load(s, &t)
			if v == nil {
				return false, false
			}
			return set.has(v)
		}
	}
	f := c.value(list)
	return func(s S) (bool, bool) {
		var t, u Value
		v := x.load(s, &t)
		if v == nil {
			return false, false
		}
		in := f.load(s, &u)
		if in == nil {
			return false, false
		}
		return member(v, in)
	}
}

// member reports whether a list has an element that equals v, or a map a key.
func member(v, in *Value) (found, ok bool) {
	switch in := in.Ref().(type) {
	case []any:
		if v.kind == Absent || v.kind == Other {
			return false, false
		}
		for _, x := range in {
			w, ok := Of(x)
			if !ok {
				return false, false
			}
			eq, ok := equal(v, &w)
			if !ok {
				return false, false
			}
			if eq {
				return true, true
			}
		}
		return false, true
	case map[string]any:
		if v.kind == Absent || v.kind == Other {
			return false, false
		}
		if v.kind == String {
			_, found = in[v.str]
		}
		return found, true
	default:
		return false, false
	}
}

// literals is a list of literals as cel-go's planner sees one: a set in which a
// number also stands for the same number of the other kinds where the conversion
// loses nothing.
type literals struct {
	strings []string
	ints    []int64
	uints   []uint64
	doubles []float64
	bools   [2]bool
}

// maxLiterals bounds a list that is searched from its start.
const maxLiterals = 64

func (c *compilation[S]) literalSet(list ast.ListExpr) *literals {
	set := &literals{}
	if len(list.OptionalIndices()) > 0 || list.Size() > maxLiterals {
		c.unsupported("a list with optional elements, or of more than %d", maxLiterals)
		return set
	}
	for _, e := range list.Elements() {
		if e.Kind() != ast.LiteralKind {
			c.unsupported("a list of other than literals")
			return set
		}
		v, ok := Of(e.AsLiteral())
		if !ok || !set.add(v) {
			c.unsupported("a list with elements of type %s", e.AsLiteral().Type().TypeName())
		}
	}
	return set
}

func (set *literals) add(v Value) bool {
	switch v.kind {
	case String:
		set.strings = append(set.strings, v.str)
	case Bool:
		set.bools[v.num] = true
	case Int:
		set.ints = append(set.ints, v.int())
		set.doubles = append(set.doubles, float64(v.int()))
		if u, ok := toUint(v); ok {
			set.uints = append(set.uints, u.num)
		}
	case Uint:
		set.uints = append(set.uints, v.num)
		set.doubles = append(set.doubles, float64(v.num))
		if i, ok := toInt(v); ok {
			set.ints = append(set.ints, i.int())
		}
	case Double:
		set.doubles = append(set.doubles, v.double())
		if i, ok := toInt(v); ok && float64(i.int()) == v.double() {
			set.ints = append(set.ints, i.int())
		}
		if u, ok := toUint(v); ok && float64(u.num) == v.double() {
			set.uints = append(set.uints, u.num)
		}
	default:
		return false
	}
	return true
}

func (set *literals) has(v *Value) (found, ok bool) {
	switch v.kind {
	case String:
		return among(set.strings, v.str), true
	case Int:
		return among(set.ints, v.int()), true
	case Uint:
		return among(set.uints, v.num), true
	case Double:
		return among(set.doubles, v.double()), true
	case Bool:
		return set.bools[v.num], true
	case Null, Timestamp, Duration:
		return false, true
	default:
		return false, false
	}
}

func among[T comparable](set []T, x T) bool {
	for _, y := range set {
		if x == y {
			return true
		}
	}
	return false
}

func (c *compilation[S]) stringTest(name string, a, b ast.Expr) boolFunc[S] {
	test := strings.Contains
	switch name {
	case "startsWith":
		test = strings.HasPrefix
	case "endsWith":
		test = strings.HasSuffix
	}
	x, y := c.value(a), c.value(b)
	return func(s S) (bool, bool) {
		var t, u Value
		v := x.load(s, &t)
		if v == nil || v.kind != String {
			return false, false
		}
		w := y.load(s, &u)
		if w == nil || w.kind != String {
			return false, false
		}
		return test(v.str, w.str), true
	}
}

func (c *compilation[S]) matches(text, pattern ast.Expr) boolFunc[S] {
	x := c.value(text)
	src, ok := literalString(pattern)
	if !ok {
		c.unsupported("a pattern that is no literal")
	}
	re, err := regexp.Compile(src)
	if err != nil {
		c.unsupported("a malformed pattern")
	}
	return func(s S) (bool, bool) {
		var t Value
		v := x.load(s, &t)
		if v == nil || v.kind != String {
			return false, false
		}
		return re.MatchString(v.str), true
	}
}

// isText reports whether an expression is or may be a string: other types may have
// functions of the same names.
func (c *compilation[S]) isText(e ast.Expr) bool {
	k := c.typeOf(e).Kind()
	return k == types.StringKind || k == types.DynKind
}

func literalString(e ast.Expr) (string, bool) {
	if e.Kind() != ast.LiteralKind {
		return "", false
	}
	s, ok := e.AsLiteral().(types.String)
	return string(s), ok
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
