package celgo

import (
	"regexp"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

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
