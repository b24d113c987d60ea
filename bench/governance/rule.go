package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"

	"github.com/stokehold/stokehold/governance/celgo"
)

// The rule that all evaluate: numbers of two records, a bound, a prefix and a list.
const (
	fiveClauses = `data.challenger.logloss < data.champion.logloss - 0.001 && data.challenger.rows >= 1000 && ` +
		`data.challenger.auc > 0.6 && event.pipeline.startsWith('flights') && data.model in ['late', 'early']`
	fiveClausesExpr = `data.challenger.logloss < data.champion.logloss - 0.001 && data.challenger.rows >= 1000 && ` +
		`data.challenger.auc > 0.6 && event.pipeline startsWith 'flights' && data.model in ['late', 'early']`
	fiveClausesRego = `input.data.challenger.logloss < input.data.champion.logloss - 0.001
	input.data.challenger.rows >= 1000
	input.data.challenger.auc > 0.6
	startswith(input.event.pipeline, "flights")
	input.data.model in {"late", "early"}`
)

// Metrics and Promotion are the event's data; exported for the libraries that read
// structs by reflection.
type Metrics struct {
	LogLoss float64 `json:"logloss" cel:"logloss" expr:"logloss"`
	AUC     float64 `json:"auc" cel:"auc" expr:"auc"`
	Rows    int64   `json:"rows" cel:"rows" expr:"rows"`
}

// Promotion asks for a challenger to be promoted.
type Promotion struct {
	Model      string  `json:"model" cel:"model" expr:"model"`
	Challenger Metrics `json:"challenger" cel:"challenger" expr:"challenger"`
	Champion   Metrics `json:"champion" cel:"champion" expr:"champion"`
	Requester  string  `json:"requester" cel:"requester" expr:"requester"`
}

// Attributes are the event's.
type Attributes struct {
	Pipeline string `cel:"pipeline" expr:"pipeline"`
}

// inputs is what a rule sees.
type inputs struct {
	Data  Promotion  `expr:"data"`
	Event Attributes `expr:"event"`
}

func thePromotion() Promotion {
	return Promotion{Model: "late", Challenger: Metrics{0.40, 0.71, 5000}, Champion: Metrics{0.45, 0.70, 5000}, Requester: "ada"}
}

func asMaps(p Promotion) map[string]any {
	m := func(m Metrics) map[string]any {
		return map[string]any{"logloss": m.LogLoss, "auc": m.AUC, "rows": float64(m.Rows)}
	}
	return map[string]any{"model": p.Model, "challenger": m(p.Challenger), "champion": m(p.Champion), "requester": p.Requester}
}

//go:noinline
func handWritten(in *inputs) bool {
	d := &in.Data
	return d.Challenger.LogLoss < d.Champion.LogLoss-0.001 && d.Challenger.Rows >= 1000 && d.Challenger.AUC > 0.6 &&
		strings.HasPrefix(in.Event.Pipeline, "flights") && (d.Model == "late" || d.Model == "early")
}

// activation is a concrete cel.Activation.
type activation struct{ event, data any }

func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case "event":
		return a.event, true
	case "data":
		return a.data, true
	default:
		return nil, false
	}
}

func (a *activation) Parent() cel.Activation { return nil }

// closureState is what the closures read: the values as the engine's decoder
// leaves them, or maps.
type closureState struct {
	event celgo.Value
	data  celgo.Value
}

// typedScope gives each path through the structs its place.
type typedScope struct{ places map[string]*celgo.Value }

func (sc typedScope) Path(name string, fields []string, _ int) func(*closureState) *celgo.Value {
	v := sc.places[strings.Join(append([]string{name}, fields...), ".")]
	if v == nil {
		return nil
	}
	return func(*closureState) *celgo.Value { return v }
}

func (typedScope) Ident(string) func(*closureState) (celgo.Value, bool) { return nil }
func (typedScope) Field(string, string) celgo.FieldFunc                 { return nil }

// mapScope has maps for event and data.
type mapScope struct{}

func (mapScope) Path(name string, fields []string, _ int) func(*closureState) *celgo.Value {
	if len(fields) > 0 {
		return nil
	}
	if name == "event" {
		return func(s *closureState) *celgo.Value { return &s.event }
	}
	return func(s *closureState) *celgo.Value { return &s.data }
}

func (mapScope) Ident(string) func(*closureState) (celgo.Value, bool) { return nil }
func (mapScope) Field(string, string) celgo.FieldFunc                 { return nil }

var errWrong = errors.New("the rule does not hold, and should")

func repeat(f func() bool) func(int) error {
	return func(n int) error {
		for range n {
			if !f() {
				return errWrong
			}
		}
		return nil
	}
}

func ruleContenders() ([]contender, error) {
	in := &inputs{Data: thePromotion(), Event: Attributes{Pipeline: "flights-train"}}
	cs := []contender{{name: byHand, f: repeat(func() bool { return handWritten(in) })}}
	for _, more := range []func(*inputs) ([]contender, error){celContenders, exprContender, opaContenders} {
		some, err := more(in)
		if err != nil {
			return nil, err
		}
		cs = append(cs, some...)
	}
	return cs, nil
}

func check(env *cel.Env, src string) (*cel.Ast, error) {
	a, iss := env.Compile(src)
	if iss.Err() != nil {
		return nil, iss.Err()
	}
	return a, nil
}

func celContenders(in *inputs) ([]contender, error) {
	common := []cel.EnvOption{cel.OptionalTypes(), cel.CrossTypeNumericComparisons(true)}
	typedEnv, err := cel.NewEnv(append(common,
		ext.NativeTypes(ext.ParseStructTag("cel"), reflect.TypeFor[Promotion](), reflect.TypeFor[Metrics](), reflect.TypeFor[Attributes]()),
		cel.Variable("data", cel.ObjectType("main.Promotion")), cel.Variable("event", cel.ObjectType("main.Attributes")))...)
	if err != nil {
		return nil, err
	}
	mapType := cel.MapType(cel.StringType, cel.DynType)
	mapEnv, err := cel.NewEnv(append(common, cel.Variable("data", mapType), cel.Variable("event", mapType))...)
	if err != nil {
		return nil, err
	}
	typed, err := check(typedEnv, fiveClauses)
	if err != nil {
		return nil, err
	}
	untyped, err := check(mapEnv, fiveClauses)
	if err != nil {
		return nil, err
	}
	fast := cel.EvalOptions(cel.OptOptimize)
	typedPrg, err := typedEnv.Program(typed, fast)
	if err != nil {
		return nil, err
	}
	mapPrg, err := mapEnv.Program(untyped, fast)
	if err != nil {
		return nil, err
	}
	trackedPrg, err := mapEnv.Program(untyped, fast, cel.CostLimit(500_000))
	if err != nil {
		return nil, err
	}

	p := &in.Data
	places := map[string]*celgo.Value{}
	for path, v := range map[string]celgo.Value{
		"data.challenger.logloss": celgo.OfDouble(p.Challenger.LogLoss), "data.challenger.auc": celgo.OfDouble(p.Challenger.AUC),
		"data.challenger.rows": celgo.OfInt(p.Challenger.Rows), "data.champion.logloss": celgo.OfDouble(p.Champion.LogLoss),
		"data.model": celgo.OfString(p.Model), "event.pipeline": celgo.OfString(in.Event.Pipeline),
	} {
		places[path] = &v
	}
	closures, err := celgo.Compile(typed, celgo.Scope[*closureState](typedScope{places}))
	if err != nil {
		return nil, err
	}
	mapClosures, err := celgo.Compile(untyped, celgo.Scope[*closureState](mapScope{}))
	if err != nil {
		return nil, err
	}

	maps, event := celMaps(asMaps(*p)), map[string]any{"pipeline": types.String(in.Event.Pipeline)}
	state := &closureState{event: celgo.OfOther(event), data: celgo.OfOther(maps)}
	concrete := &activation{event: &in.Event, data: p}
	concreteMaps := &activation{event: event, data: maps}
	whole := map[string]any{"event": event, "data": maps}
	run := func(prg cel.Program, vars any) func() bool {
		return func() bool { v, _, err := prg.Eval(vars); return err == nil && v == types.True }
	}
	return []contender{
		{name: byClosures, f: repeat(func() bool { v, ok := closures.Bool(state); return v && ok })},
		{name: byClosureMap, f: repeat(func() bool { v, ok := mapClosures.Bool(state); return v && ok })},
		{name: byCELTyped, f: repeat(run(typedPrg, concrete))},
		{name: byCEL, f: repeat(run(mapPrg, concreteMaps))},
		{name: byCELMap, f: repeat(run(mapPrg, whole))},
		{name: byCELBuild, f: repeat(func() bool {
			return run(mapPrg, map[string]any{"event": map[string]any{"pipeline": in.Event.Pipeline}, "data": asMaps(*p)})()
		})},
		{name: byCELTracked, f: repeat(run(trackedPrg, concreteMaps))},
	}, nil
}

// celMaps boxes the leaves as CEL's own values, as the engine's decoder does.
func celMaps(m map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		switch v := v.(type) {
		case string:
			out[k] = types.String(v)
		case float64:
			out[k] = types.Double(v)
		case map[string]any:
			out[k] = celMaps(v)
		}
	}
	return out
}

func exprContender(in *inputs) ([]contender, error) {
	prg, err := expr.Compile(fiveClausesExpr, expr.Env(inputs{}), expr.AsBool())
	if err != nil {
		return nil, err
	}
	machine := &vm.VM{}
	return []contender{{name: byExpr, f: repeat(func() bool { v, err := machine.Run(prg, in); return err == nil && v == true })}}, nil
}

func opaContenders(in *inputs) ([]contender, error) {
	ctx := context.Background()
	q, err := rego.New(rego.Query("data.bench.allow"), rego.Module("bench.rego", "package bench\n\nallow if {\n\t"+fiveClausesRego+"\n}\n")).PrepareForEval(ctx)
	if err != nil {
		return nil, err
	}
	input := map[string]any{"event": map[string]any{"pipeline": in.Event.Pipeline}, "data": asMaps(in.Data)}
	parsed, err := ast.InterfaceToValue(input)
	if err != nil {
		return nil, err
	}
	holds := func(opts ...rego.EvalOption) bool {
		rs, err := q.Eval(ctx, opts...)
		return err == nil && rs.Allowed()
	}
	return []contender{
		{name: byOPA, f: repeat(func() bool { return holds(rego.EvalParsedInput(parsed)) })},
		{name: byOPAInput, f: repeat(func() bool { return holds(rego.EvalInput(input)) })},
	}, nil
}

// regoPolicies is the set of n policies that the engine has, in Rego: a policy denies
// an event of its type and pipeline for which its rule does not hold.
func regoPolicies(n int) string {
	var b strings.Builder
	b.WriteString("package bench\n\n")
	for i := range n {
		fmt.Fprintf(&b, "holds_%d if {\n\t%s\n}\n\ndeny contains \"policy-%d\" if {\n\tinput.event.type == %q\n\tinput.event.pipeline == %q\n\tnot holds_%d\n}\n\n",
			i, ruleRego(i), i, typeOfPolicy(i), pipelineOfPolicy(i), i)
	}
	return b.String()
}

// Three of the policies match the event: those of its type and pipeline.
const matching = 3

func matches(i int) bool { return i < matching }

func typeOfPolicy(i int) string {
	if matches(i) || i%2 == 0 {
		return eventType
	}
	return "other.type"
}

func pipelineOfPolicy(i int) string {
	if matches(i) {
		return "flights-train"
	}
	return fmt.Sprintf("pipeline-%d", i)
}

// ruleCEL and ruleRego are the rules of the three that match, one of them the five
// clauses, in turns.
func ruleCEL(i int) string {
	return [matching]string{
		fiveClauses, `data.requester != '' && data.requester != 'nobody'`, `data.challenger.auc >= data.champion.auc - 0.01 && event.subject == data.model`,
	}[i%matching]
}

func ruleRego(i int) string {
	return [matching]string{
		fiveClausesRego, "input.data.requester != \"\"\n\tinput.data.requester != \"nobody\"",
		"input.data.challenger.auc >= input.data.champion.auc - 0.01\n\tinput.event.subject == input.data.model",
	}[i%matching]
}

// deniedNothing reports whether a set of denials is there and empty.
func deniedNothing(rs rego.ResultSet) bool {
	if len(rs) != 1 || len(rs[0].Expressions) != 1 {
		return false
	}
	l, ok := rs[0].Expressions[0].Value.([]any)
	return ok && len(l) == 0
}
