package governance

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/governance/celgo"
)

// exprGen draws well-typed expressions of the language that closures are made of.
type exprGen struct {
	t     *rapid.T
	typed bool
	vars  []string // by name "variables.vN"; of the types of varTypes
	kinds []string
}

func (g *exprGen) pick(of ...string) string { return rapid.SampledFrom(of).Draw(g.t, "pick") }

func (g *exprGen) coin(n int) bool { return rapid.IntRange(0, n-1).Draw(g.t, "coin") == 0 }

// expr draws an expression of a type: bool, int, uint, double, string, time,
// duration or dyn.
func (g *exprGen) expr(typ string, depth int) string {
	if depth <= 0 || g.coin(4) {
		return g.leaf(typ)
	}
	sub := func(typ string) string { return g.expr(typ, depth-1) }
	if g.coin(8) {
		return fmt.Sprintf("(%s ? %s : %s)", sub("bool"), sub(typ), sub(typ))
	}
	number := func() string { return g.pick("int", "uint", "double") }
	switch typ {
	case "bool":
		switch rapid.IntRange(0, 11).Draw(g.t, "bool") {
		case 0, 1:
			return fmt.Sprintf("(%s && %s)", sub("bool"), sub("bool"))
		case 2, 3:
			return fmt.Sprintf("(%s || %s)", sub("bool"), sub("bool"))
		case 4:
			return "!" + sub("bool")
		case 5: // numbers of any two kinds
			return fmt.Sprintf("(%s %s %s)", sub(number()), g.pick("<", "<=", ">", ">="), sub(number()))
		case 6:
			t := g.pick("bool", "int", "uint", "double", "string", "time", "duration", "dyn")
			return fmt.Sprintf("(%s %s %s)", sub(t), g.pick("<", "<=", ">", ">="), sub(t))
		case 7:
			t := g.pick("bool", "int", "uint", "double", "string", "time", "duration", "dyn")
			return fmt.Sprintf("(%s %s %s)", sub(t), g.pick("==", "!="), sub(t))
		case 8:
			return fmt.Sprintf("(%s %s %s)", sub("dyn"), g.pick("==", "!=", "<", ">="), sub(g.pick("int", "double", "string", "bool", "uint", "dyn")))
		case 9:
			t := g.pick("int", "double", "string", "bool", "uint", "dyn")
			if g.coin(3) {
				return fmt.Sprintf("(%s in %s)", sub(g.pick("string", "dyn")), g.pick("data.labels", "data.tags", "data.scores", "data.extra.list"))
			}
			n := rapid.IntRange(0, 4).Draw(g.t, "n")
			elems := make([]string, n)
			for i := range elems {
				elems[i] = g.literal(g.pick(t, t, t, "int", "double"))
			}
			return fmt.Sprintf("(dyn(%s) in %s)", sub(t), "["+strings.Join(elems, ", ")+"]")
		case 10:
			return fmt.Sprintf("%s.%s(%s)", sub("string"), g.pick("startsWith", "endsWith", "contains"), sub("string"))
		default:
			return g.pick("has(data.champion)", "has(data.champion.rows)", "has(data.labels)", "has(data.extra.n)", "has(data.extra.deep.n)",
				"has(data.extra.n.x)", "has(event.pipeline)", "has(event.run)", "has(data.tags.team)", "data.?champion.hasValue()",
				"data.?extra.?deep.?n.hasValue()", "event.?run.hasValue()", "has(data.nothing)", sub("string")+".matches('^l|o.s$')")
		}
	case "int":
		switch rapid.IntRange(0, 3).Draw(g.t, "int") {
		case 0:
			return "int(" + sub(number()) + ")"
		case 1:
			return "size(" + g.pick(sub("string"), "data.labels", "data.tags") + ")"
		case 2:
			return "(-" + sub("int") + ")"
		default:
			return fmt.Sprintf("(%s %s %s)", sub("int"), g.pick("+", "-", "*", "/", "%"), sub("int"))
		}
	case "uint":
		if g.coin(4) {
			return "uint(" + sub(number()) + ")"
		}
		return fmt.Sprintf("(%s %s %s)", sub("uint"), g.pick("+", "-", "*", "/", "%"), sub("uint"))
	case "double":
		switch rapid.IntRange(0, 3).Draw(g.t, "double") {
		case 0:
			return "double(" + sub(number()) + ")"
		case 1:
			return "(-" + sub("double") + ")"
		default:
			return fmt.Sprintf("(%s %s %s)", sub("double"), g.pick("+", "-", "*", "/"), sub("double"))
		}
	case "time":
		return fmt.Sprintf("(%s %s %s)", sub("time"), g.pick("+", "-"), sub("duration"))
	case "duration":
		return g.pick(
			fmt.Sprintf("(%s - %s)", sub("time"), sub("time")),
			fmt.Sprintf("(%s %s %s)", sub("duration"), g.pick("+", "-"), sub("duration")),
		)
	case "dyn":
		return g.pick(
			fmt.Sprintf("(%s %s %s)", sub("dyn"), g.pick("-", "*", "/", "%"), sub("dyn")),
			"dyn("+sub(g.pick("int", "double", "string", "bool", "time"))+")",
		)
	default:
		return g.leaf(typ)
	}
}

func (g *exprGen) literal(typ string) string {
	switch typ {
	case "bool":
		return g.pick("true", "false")
	case "int":
		return g.pick("0", "1", "-1", "2", "5000", "9223372036854775807", "-9223372036854775808", "9007199254740993", "-7")
	case "uint":
		return g.pick("0u", "1u", "4u", "18446744073709551615u", "9223372036854775808u")
	case "double":
		return g.pick("0.0", "-0.0", "1.0", "0.45", "1.5", "-2.0", "1e308", "9007199254740992.0", "9223372036854775807.0", "18446744073709551616.0", "5000.0", "1e-320")
	case "time":
		return "timestamp('" + g.pick("2026-03-01T12:00:00Z", "2026-03-01T13:00:00+01:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "1969-12-31T23:59:59.5Z") + "')"
	case "duration":
		return "duration('" + g.pick("0s", "1h", "-1ns", "90s", "2562047h", "-2562047h", "0.5s") + "')"
	case "dyn":
		return "dyn(" + g.literal(g.pick("int", "double", "string", "bool")) + ")"
	default:
		return g.pick("''", "'late'", "'ops'", "'l'", `'x\u00e9\n'`, "'publish'", "'flights'")
	}
}

func (g *exprGen) leaf(typ string) string {
	if g.coin(3) {
		return g.literal(typ)
	}
	if g.coin(4) {
		for i, k := range g.kinds {
			if k == typ {
				return g.vars[i]
			}
		}
	}
	switch typ {
	case "bool":
		return g.pick("data.final", "true", "(1 / 0 == 1)", "(data.champion.rows > 4)")
	case "int":
		if !g.typed {
			return "int(data.challenger.rows)"
		}
		return g.pick("data.challenger.rows", "data.champion.rows", "data.?champion.rows.orValue(7)", "data.?champion.?rows.orValue(8)")
	case "uint":
		if !g.typed {
			return "uint(data.challenger.calls)"
		}
		return g.pick("data.challenger.calls", "data.champion.calls", "data.?champion.?calls.orValue(1u)")
	case "double":
		if !g.typed {
			return g.pick("double(data.challenger.auc)", "double(data.champion.logloss)", "double(data.?champion.?auc.orValue(0.5))", "(0.0 / 0.0)")
		}
		return g.pick("data.challenger.auc", "data.champion.logloss", "data.?champion.?auc.orValue(0.5)", "data.scores.a", "data.scores['b']", "data.?scores[?'b'].orValue(2.5)", "(0.0 / 0.0)")
	case "time":
		if !g.typed {
			return g.pick("now", "event.time")
		}
		return g.pick("now", "event.time", "data.evaluated", "data.?evaluated.orValue(now)")
	case "duration":
		if !g.typed {
			return "duration('90s')"
		}
		return g.pick("data.took", "data.?took.orValue(duration('1s'))")
	case "dyn":
		return g.pick("data.extra.n", "data.extra.s", "data.extra.b", "data.extra.missing", "data.extra.list", "data.extra.list[0]", "data.extra.list[7]", "data.extra['null']",
			"data.extra.deep", "data.extra.deep.n", "data.?extra.?n.orValue(1.0)", "data.?extra.deep.n.orValue('none')", "data.?extra.n.x.orValue(2.0)", "data.extra")
	default:
		if !g.typed {
			return g.pick("event.pipeline", "event.run", "event.id", "point", "event.?run.orValue('none')")
		}
		return g.pick("data.model", "event.pipeline", "event.run", "event.id", "point", "data.labels[0]", "data.labels[9]", "data.tags.team", "data.tags['x']",
			"data.?tags.team.orValue('none')", "event.?run.orValue('none')", "data.?model.orValue('none')")
	}
}

// closureJSON draws data: whole, with parts left out or null, or of no use.
func closureJSON(t *rapid.T) string {
	part := func(s ...string) string { return rapid.SampledFrom(s).Draw(t, "part") }
	return "{" + strings.Join([]string{
		`"model":` + part(`"late"`, `""`, `null`),
		`"challenger":` + part(`{"logloss":0.4,"auc":0.71,"rows":5000,"calls":3}`, `{"logloss":-0,"rows":-1,"calls":0}`, `{"rows":9223372036854775807,"calls":18446744073709551615,"auc":1e308}`, `{}`),
		part(`"champion":{"logloss":0.45,"auc":0.7,"rows":5000,"calls":4}`, `"champion":{"rows":4}`, `"champion":null`, `"other":1`),
		part(`"labels":["late","eu"]`, `"labels":[]`, `"more":1`),
		part(`"tags":{"team":"ops","null":null}`, `"tags":{}`, `"most":1`),
		part(`"scores":{"a":1.5,"b":-0.0}`, `"scores":{"a":null}`, `"last":1`),
		`"evaluated":` + part(`"2026-03-01T12:00:00Z"`, `"0000-01-01T00:00:00+01:00"`, `"9999-12-31T23:59:59.999999999Z"`, `null`),
		`"took":` + part(`90000000000`, `9223372036854775807`, `-9223372036854775808`, `null`),
		`"final":` + part(`true`, `false`, `null`),
		part(`"extra":{"n":1.5,"s":"x","b":true,"null":null,"list":["late",1,null],"deep":{"n":-2}}`, `"extra":{"n":5000,"deep":{}}`, `"extra":"x"`, `"extra":null`, `"z":0`),
	}, ",") + "}"
}

// closuresAgree checks that closures give what cel-go gives, and give up only where
// that is an error.
func closuresAgree(t *rapid.T, typed, untyped *compiler, seen map[string]int) {
	g := &exprGen{t: t, typed: rapid.Bool().Draw(t, "typed")}
	c := *untyped
	if g.typed {
		c = *typed
	}
	var vars []variable
	for i := range rapid.IntRange(0, 2).Draw(t, "vars") {
		kind := g.pick("bool", "int", "double", "string", "time", "dyn")
		src, name := g.expr(kind, 2), fmt.Sprintf("%sv%d", variablePrefix, i)
		p, faults := c.compile(src, nil)
		if len(faults) > 0 {
			continue
		}
		if err := c.extend(name, p.out); err != nil {
			t.Fatal(err)
		}
		vars = append(vars, variable{name: name, prg: p})
		g.vars, g.kinds = append(g.vars, name), append(g.kinds, kind)
	}
	src := g.expr(g.pick("bool", "bool", "bool", "int", "uint", "double", "string", "time", "duration", "dyn"), 4)
	p, faults := c.compile(src, nil)
	if len(faults) > 0 {
		seen["refused"]++
		return
	}
	if p.fast == nil {
		seen["left to cel-go"]++
		return
	}
	raw := closureJSON(t)
	s, o := rawState(t, &c, []byte(raw)), rawState(t, &c, []byte(raw))
	// The oracle's variables are cel-go's as well.
	slow := make([]variable, len(vars))
	for i, v := range vars {
		prg := *v.prg
		prg.fast = nil
		slow[i] = variable{name: v.name, prg: &prg}
	}
	s.use(c.data, vars)
	o.use(c.data, slow)
	got, ok := p.fast.Eval(s)
	want, _, err := p.prg.Eval(o)
	switch {
	case ok && err != nil:
		t.Fatalf("%s\n%s\ngave %v; cel-go has the error %v", src, raw, got.Boxed(), err)
	case ok:
		seen["agreed"]++
		if !sameValue(got, want) {
			t.Fatalf("%s\n%s\ngave %v of kind %d, cel-go %v of %s", src, raw, got.Boxed(), got.Kind(), want, want.Type().TypeName())
		}
	case err != nil:
		seen["error"]++
	case strings.Contains(src, "data.extra") || strings.Contains(src, "dyn(") || strings.Contains(src, variablePrefix) || !g.typed:
		seen["gave up on a value"]++ // such as two lists that are compared
	default:
		t.Fatalf("%s\n%s\ngave up; cel-go has %v", src, raw, want)
	}
}

func sameValue(got celgo.Value, want ref.Val) bool {
	have := types.DefaultTypeAdapter.NativeToValue(got.Boxed())
	if have.Type().TypeName() != want.Type().TypeName() {
		return false
	}
	switch w := want.(type) {
	case types.Double:
		h := have.(types.Double)
		return math.Float64bits(float64(h)) == math.Float64bits(float64(w)) || math.IsNaN(float64(h)) && math.IsNaN(float64(w))
	case types.Timestamp: // the location shows in string()
		return have.(types.Timestamp).String() == w.String()
	default:
		return types.Equal(have, want) == types.True
	}
}

func TestClosuresAgreeWithCELGo(t *testing.T) {
	seen := map[string]int{}
	typed, untyped := closureCompiler(t, closureData{}), closureCompiler(t, nil)
	rapid.Check(t, func(t *rapid.T) {
		for range 20 {
			closuresAgree(t, typed, untyped, seen)
		}
	})
	t.Log(seen)
	all := 0
	for _, n := range seen {
		all += n
	}
	if seen["agreed"] < all/4 || seen["error"] == 0 || seen["left to cel-go"] > all/20 || seen["gave up on a value"] > all/10 {
		t.Errorf("the expressions test too little: %v", seen)
	}
}

func FuzzClosures(f *testing.F) {
	typed, untyped := closureCompiler(f, closureData{}), closureCompiler(f, nil)
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) { closuresAgree(t, typed, untyped, map[string]int{}) }))
}
