package celgo_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/stokehold/stokehold/governance/celgo"
)

// scores is what the expressions of these tests are evaluated on.
type scores struct{ values map[string]celgo.Value }

// scope reads every variable from the scores by its name, and knows no structs.
type scope struct{}

func (scope) Path(string, []string, int) func(*scores) *celgo.Value { return nil }

func (scope) Ident(name string) func(*scores) (celgo.Value, bool) {
	if name == "unknown" {
		return nil
	}
	return func(s *scores) (celgo.Value, bool) { v, ok := s.values[name]; return v, ok }
}

func (scope) Field(string, string) celgo.FieldFunc { return nil }

func newEnv(t testing.TB) *cel.Env {
	t.Helper()
	env, err := cel.NewEnv(
		cel.OptionalTypes(), cel.CrossTypeNumericComparisons(true),
		cel.Variable("loss", cel.DoubleType), cel.Variable("best", cel.DoubleType), cel.Variable("rows", cel.IntType), cel.Variable("unknown", cel.IntType),
		cel.Variable("name", cel.StringType), cel.Variable("tags", cel.MapType(cel.StringType, cel.DynType)), cel.Variable("any", cel.DynType),
		cel.Variable("labels", cel.ListType(cel.StringType)),
	)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func check(t testing.TB, env *cel.Env, src string) *cel.Ast {
	t.Helper()
	ast, iss := env.Compile(src)
	if iss.Err() != nil {
		t.Fatal(iss.Err())
	}
	return ast
}

func ExampleCompile() {
	env, err := cel.NewEnv(cel.Variable("loss", cel.DoubleType), cel.Variable("best", cel.DoubleType))
	if err != nil {
		fmt.Println(err)
		return
	}
	ast, iss := env.Compile("loss < best - 0.01")
	if iss.Err() != nil {
		fmt.Println(iss.Err())
		return
	}
	better, err := celgo.Compile(ast, celgo.Scope[*scores](scope{}))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(better.Bool(&scores{map[string]celgo.Value{"loss": celgo.OfDouble(0.4), "best": celgo.OfDouble(0.45)}}))
	fmt.Println(better.Bool(&scores{map[string]celgo.Value{"loss": celgo.OfDouble(0.4)}})) // cel-go has the error for it
	// Output:
	// true true
	// false false
}

// What closures do not do is refused when an expression is compiled, so that none
// loops and none allocates by what data say.
func TestUnsupportedExpressionsAreRefused(t *testing.T) {
	env := newEnv(t)
	for _, src := range []string{
		"labels.all(l, l != '')", "labels.exists(l, l == '')", "labels.map(l, l + l).size() == 0", "[1, rows].size() == 2", "{'a': rows}.a == 1",
		"name + name == ''", "labels + labels == labels", "name.matches(name)", "rows in [rows]", "unknown == 1", "optional.of(rows).hasValue()",
		"string(rows) == ''", "b'x' == b'y'", "type(rows) == int", "tags.?a == tags.?b", "duration(name) > duration('1s')", "labels[rows] == ''",
	} {
		p, err := celgo.Compile(check(t, env, src), celgo.Scope[*scores](scope{}))
		if !errors.Is(err, celgo.ErrUnsupported) {
			t.Errorf("%s: %v, %v", src, p, err)
		}
	}
}

// Values that only cel-go can judge make a closure give up, and never guess.
func TestClosuresGiveUp(t *testing.T) {
	env := newEnv(t)
	s := &scores{map[string]celgo.Value{
		"tags": celgo.OfOther(map[string]any{"list": []any{types.Double(1)}, "n": types.Double(1), "err": types.NewErr("no"), "bytes": types.Bytes("x")}),
		"any":  celgo.OfOther(types.OptionalNone), "rows": celgo.OfInt(1), "name": celgo.OfString("x"),
	}}
	for src, why := range map[string]string{
		"tags.list == tags.list":         "lists are compared",
		"tags.err == 1":                  "the value is an error",
		"tags.bytes == tags.bytes":       "bytes are compared",
		"tags.none == 1":                 "the key is missing",
		"loss > 1.0":                     "the variable is missing",
		"any == 1":                       "an optional of unknown type is compared",
		"rows / (rows - 1) == 1":         "divided by zero",
		"9223372036854775807 + rows < 0": "an integer overflows",
		"any && true":                    "the operand is no bool",
		"tags.n + tags.list == 1":        "the operands do not go together",
		"tags.n < name":                  "a number and a string have no order",
	} {
		p, err := celgo.Compile(check(t, env, src), celgo.Scope[*scores](scope{}))
		if err != nil {
			t.Errorf("%s: %v", src, err)
			continue
		}
		if v, ok := p.Bool(s); ok {
			t.Errorf("%s: gave %v, though %s", src, v, why)
		}
	}
}

// && and || give what the operands that have a value decide, wherever those stand.
func TestErrorsAreAbsorbed(t *testing.T) {
	env := newEnv(t)
	s := &scores{map[string]celgo.Value{"rows": celgo.OfInt(1)}}
	for src, want := range map[string][2]bool{
		"loss > 1.0 && rows == 2":       {false, true},
		"rows == 2 && loss > 1.0":       {false, true},
		"loss > 1.0 || rows == 1":       {true, true},
		"rows == 1 || loss > 1.0":       {true, true},
		"loss > 1.0 && rows == 1":       {false, false},
		"loss > 1.0 || rows == 2":       {false, false},
		"rows == 1 ? true : loss > 1.0": {true, true},
		"rows == 2 ? true : loss > 1.0": {false, false},
	} {
		p, err := celgo.Compile(check(t, env, src), celgo.Scope[*scores](scope{}))
		if err != nil {
			t.Fatal(err)
		}
		if v, ok := p.Bool(s); ok != want[1] || ok && v != want[0] {
			t.Errorf("%s: %v, %v", src, v, ok)
		}
	}
}

// A value comes back from cel-go's form as it went there.
func TestBoxedRoundTrip(t *testing.T) {
	zone := time.FixedZone("", 3600)
	for _, v := range []celgo.Value{
		celgo.OfNull(), celgo.OfBool(true), celgo.OfInt(-5), celgo.OfUint(1 << 63), celgo.OfDouble(-0.5), celgo.OfString("é"),
		celgo.OfDuration(-time.Second), celgo.OfTimestamp(time.Date(1, 1, 1, 0, 0, 0, 5, time.UTC)), celgo.OfTimestamp(time.Date(9999, 1, 1, 0, 0, 0, 0, zone)),
	} {
		got, ok := celgo.Of(v.Boxed())
		if !ok || got != v {
			t.Errorf("%v of kind %d became %v, %v", v.Boxed(), v.Kind(), got.Boxed(), ok)
		}
	}
	for _, x := range []any{types.NewErr("x"), types.OptionalNone, errors.New("x"), nil, struct{}{}} {
		if v, ok := celgo.Of(x); ok {
			t.Errorf("%T became %v", x, v)
		}
	}
}
