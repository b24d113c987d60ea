package governance

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/celgo"
)

// Explainer evaluates policies one by one, for people: which match an event, what
// came of each rule, and by which values. It decides nothing: that is Engine's.
//
// cel-go can record the values of all sub-expressions as it evaluates, but then
// heeds no cost limit. So a rule is evaluated as it always is, and the
// sub-expressions that decided are compiled and evaluated each by itself, under
// the limits of any other expression. That costs many times what a decision does;
// an Explainer is for command lines and tests, not for a bus.
//
// Not safe for concurrent use.
type Explainer struct {
	set       *PolicySet
	compilers map[*policy]*compiler
	parts     map[*policy]*compiler // that keep macros as they were written
	decide    *Evaluator
}

// Limits of an explanation.
const (
	maxExplained    = 16  // values of one rule
	maxExplainBytes = 200 // of one value
	explainTime     = 5 * time.Second
)

// NewExplainer loads policies as Load does.
func NewExplainer(opts Options, srcs ...Source) (*Explainer, error) {
	x := &Explainer{compilers: map[*policy]*compiler{}, parts: map[*policy]*compiler{}}
	var err error
	if x.set, err = load(opts, x.compilers, srcs...); err != nil {
		return nil, err
	}
	x.decide, err = NewEvaluator(x.set)
	return x, err
}

// Suppose sets what expressions see beside the event, and the approvals that
// were given. Without it, only what the event says is known.
func (x *Explainer) Suppose(facts Facts, approvals Approvals) { x.decide.Suppose(facts, approvals) }

// Set returns the policies.
func (x *Explainer) Set() *PolicySet { return x.set }

// Explanation says how an event comes to its decision.
type Explanation struct {
	Decision Decision
	Policies []PolicyOutcome // all of the set, by name
	// Facts are the variables of Facts that the policies which match read.
	Facts []string
	// Event is the event as the judge leaves it: redacted, routed, stamped by a key
	// that nobody has.
	Event *events.Event
}

// PolicyOutcome is what one policy says of an event.
type PolicyOutcome struct {
	Name string `json:"name"`
	Mode Mode   `json:"mode"`
	// Unmatched is why the policy has no say, e.g. `its types do not match
	// "run.started"`; "": it matches.
	Unmatched string        `json:"unmatched,omitempty"`
	Rules     []RuleOutcome `json:"rules,omitempty"` // if it matches
}

// Outcome is what came of a rule.
type Outcome string

// The outcomes.
const (
	Held   Outcome = "held"
	Failed Outcome = "failed" // the expression is false
	Errors Outcome = "error"  // the expression has no value
)

// RuleOutcome is what came of one rule.
type RuleOutcome struct {
	Name       string  `json:"name"`
	Expression string  `json:"expression"` // on one line, shortened
	Outcome    Outcome `json:"outcome"`
	// Effect is what the policy makes of it: events.Allow if it held, or is only
	// noted.
	Effect events.Action `json:"effect"`
	Reason string        `json:"reason,omitempty"` // unless it held
	Values []Value       `json:"values,omitempty"`
}

// Value is a sub-expression and what it evaluated to.
type Value struct {
	Expression string `json:"expression"`
	Value      string `json:"value"`
}

// Explain evaluates an event. The event is not changed; a stamp on it is
// ignored. now is the variable of that name.
func (x *Explainer) Explain(ctx context.Context, at events.Point, now time.Time, ev *events.Event) (*Explanation, error) {
	ctx, cancel := context.WithTimeout(ctx, explainTime)
	defer cancel()
	d, err := x.decide.Evaluate(ctx, at, now, ev)
	if err != nil {
		return nil, err
	}
	out := &Explanation{Decision: d, Event: x.decide.after}
	c, ok := contextOf(ev)
	if !ok || d.Code == CodeInvalid {
		return out, nil // no policy has a say
	}
	s := statePool.Get().(*evalState)
	defer s.release()
	ext := readAttributes(c)
	s.reset(ctx, c, sourceString(&c.Source.URL), &ext, ev.DataEncoded, x.set.limits)
	s.point, s.now, s.deadline, s.pure = types.String(at), types.Timestamp{Time: now.UTC()}, explainTime, false
	s.ev, s.engine, s.strict = ev, x.decide.engine, x.set.plan(c.Type).data
	var read [facts]bool
	for _, p := range x.set.policies {
		po := PolicyOutcome{Name: p.name, Mode: p.mode, Unmatched: p.unmatched(at, &s.event)}
		if po.Unmatched == "" {
			s.use(p.data, p.vars)
			s.params = p.params
			for i, found := range p.readsFacts() {
				read[i] = read[i] || found
			}
			for i := range p.rules {
				po.Rules = append(po.Rules, x.rule(s, p, &p.rules[i], at))
			}
		}
		out.Policies = append(out.Policies, po)
	}
	out.Facts = named(read)
	return out, nil
}

// unmatched says why a policy has no say; "": it has.
func (p *policy) unmatched(at events.Point, ev *eventVal) string {
	m := &p.spec.Match
	for _, c := range []struct {
		what     string
		patterns []string
		value    string
	}{
		{"points", m.Points, string(at)}, {"types", m.Types, ev.ctx.GetType()}, {"subjects", m.Subjects, ev.ctx.GetSubject()},
		{"pipelines", m.Pipelines, ev.ext.pipeline}, {"stages", m.Stages, ev.ext.stage},
	} {
		if !matchAny(c.patterns, c.value) {
			return fmt.Sprintf("its %s (%s) do not match %q", c.what, strings.Join(c.patterns, ", "), c.value)
		}
	}
	if !p.matches(ev) {
		return "its match does not select the event"
	}
	return ""
}

func (x *Explainer) rule(s *evalState, p *policy, r *rule, at events.Point) RuleOutcome {
	out := RuleOutcome{Name: r.name, Expression: shorten(r.check.src, maxExplainBytes), Outcome: Held, Effect: events.Allow}
	s.spent = 0
	holds, err := s.evalBool(r.check)
	switch {
	case err != nil:
		out.Outcome, out.Reason = Errors, reasonOf(err)
	case !holds:
		out.Outcome = Failed
	}
	if out.Outcome != Held {
		// By itself, as if no other rule had a say.
		s.waiting, s.taintedNotes, s.effects, s.decider = nil, nil, effects{}, finding{}
		d := Decision{Action: events.Allow, Point: at}
		s.rule(p, r, &d)
		out.Effect = d.Action
		switch {
		case len(s.waiting) > 0:
			out.Effect, out.Reason = events.RequireApproval, s.waiting[0].reason
		case d.Reason != "":
			out.Reason = d.Reason
		case len(d.Notes) > 0:
			out.Reason = d.Notes[0].Reason
		}
	}
	if c := x.partsOf(p); c != nil {
		out.Values = c.values(s, r.check.src)
	}
	return out
}

// partsOf returns a compiler for parts of a policy's expressions; nil: there is
// none, and no values are shown.
func (x *Explainer) partsOf(p *policy) *compiler {
	if c, ok := x.parts[p]; ok {
		return c
	}
	c := *x.compilers[p]
	env, err := c.env.Extend(cel.EnableMacroCallTracking())
	if err != nil {
		return nil
	}
	c.env = env
	x.parts[p] = &c
	return &c
}

// values evaluates the sub-expressions that decided an expression.
func (c *compiler) values(s *evalState, src string) []Value {
	parsed, iss := c.env.Parse(src)
	if iss.Err() != nil {
		return nil // it was compiled before
	}
	e := &explaining{c: c, s: s, info: parsed.NativeRep().SourceInfo(), seen: map[string]bool{}}
	e.decided(parsed.NativeRep().Expr())
	return e.out
}

type explaining struct {
	c    *compiler
	s    *evalState
	info *ast.SourceInfo
	seen map[string]bool
	out  []Value
}

// decided follows what made a boolean expression what it is: the operands of &&
// and || that settle it, the branch that a condition took. What is no such
// operator is shown with its operands.
func (e *explaining) decided(x ast.Expr) {
	if len(e.out) >= maxExplained {
		return
	}
	if x.Kind() != ast.CallKind || e.macro(x) {
		e.show(x)
		return
	}
	call := x.AsCall()
	args := call.Args()
	switch call.FunctionName() {
	case operators.LogicalAnd, operators.LogicalOr:
		settles := types.Bool(call.FunctionName() == operators.LogicalOr)
		settled := slices.ContainsFunc(args, func(a ast.Expr) bool { v, err := e.eval(a); return err == nil && v == settles })
		for _, a := range args {
			v, err := e.eval(a)
			if !settled || err == nil && v == settles {
				e.decided(a)
			}
		}
	case operators.LogicalNot:
		e.decided(args[0])
	case operators.Conditional:
		e.decided(args[0])
		if v, err := e.eval(args[0]); err == nil {
			if v == types.True {
				e.decided(args[1])
			} else {
				e.decided(args[2])
			}
		}
	default:
		if call.IsMemberFunction() {
			args = append([]ast.Expr{call.Target()}, args...)
		}
		e.show(x)
		for _, a := range args {
			e.show(a)
		}
	}
}

// macro reports whether the expression stands for a macro such as all(), whose
// operands mean nothing outside it.
func (e *explaining) macro(x ast.Expr) bool {
	_, ok := e.info.GetMacroCall(x.ID())
	return ok
}

// selfEvident reports whether an expression says its value itself, as 5 and
// duration("5m") do.
func selfEvident(x ast.Expr) bool {
	return x.Kind() == ast.LiteralKind ||
		x.Kind() == ast.CallKind && !x.AsCall().IsMemberFunction() && !slices.ContainsFunc(x.AsCall().Args(), func(a ast.Expr) bool { return !selfEvident(a) })
}

// show evaluates an expression that is no constant and notes its value.
func (e *explaining) show(x ast.Expr) {
	if selfEvident(x) || len(e.out) >= maxExplained {
		return
	}
	text, err := cel.ExprToString(x, e.info)
	if err != nil || e.seen[text] {
		return
	}
	e.seen[text] = true
	var value string
	if v, err := e.eval(x); err != nil {
		value = "no value: " + err.Error()
	} else {
		value = showValue(v, 0)
	}
	e.out = append(e.out, Value{shorten(text, maxExplainBytes), shorten(value, maxExplainBytes)})
	if x.Kind() == ast.ComprehensionKind || e.macro(x) {
		return
	}
	// The operands of arithmetic and calls inside say where a number came from.
	if x.Kind() == ast.CallKind {
		for _, a := range x.AsCall().Args() {
			e.show(a)
		}
	}
}

// eval compiles and evaluates a part of an expression under the limits of a whole
// one.
func (e *explaining) eval(x ast.Expr) (ref.Val, error) {
	text, err := cel.ExprToString(x, e.info)
	if err != nil {
		return nil, err
	}
	prg, faults := e.c.compile(text, nil)
	if len(faults) > 0 {
		return nil, fmt.Errorf("%w: not to be evaluated by itself: %s", ErrEval, faults[0].msg)
	}
	v, err := e.s.eval(prg)
	if err != nil {
		msg, kind := evalKind(err, text)
		return nil, fmt.Errorf("%w: %s", kind, msg)
	}
	return v, nil
}

// showValue writes a value on one line, cut where it is long.
func showValue(v ref.Val, depth int) string {
	const most = 8
	switch t := v.(type) {
	case types.String:
		return strconv.Quote(shorten(string(t), maxExplainBytes))
	case types.Bytes:
		return fmt.Sprintf("%d bytes", len(t))
	case types.Null:
		return "null"
	case *types.Optional:
		if !t.HasValue() {
			return "none"
		}
		return showValue(t.GetValue(), depth)
	case *object:
		var parts []string
		for i, f := range t.vals {
			if f.Kind() != celgo.Absent && len(parts) < most {
				parts = append(parts, t.typ.fields[i].name+": "+showValue(types.DefaultTypeAdapter.NativeToValue(f.Boxed()), depth+1))
			}
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case *eventVal:
		return "the event"
	}
	if depth > 3 {
		return "…"
	}
	if l, ok := v.(traits.Lister); ok {
		var parts []string
		for it := l.Iterator(); it.HasNext() == types.True; {
			if len(parts) == most {
				parts = append(parts, "…")
				break
			}
			parts = append(parts, showValue(it.Next(), depth+1))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	if m, ok := v.(traits.Mapper); ok {
		var parts []string
		for it := m.Iterator(); it.HasNext() == types.True && len(parts) < 64; {
			k := it.Next()
			parts = append(parts, showValue(k, depth+1)+": "+showValue(m.Get(k), depth+1))
		}
		slices.Sort(parts)
		if len(parts) > most {
			parts = append(parts[:most], "…")
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	if s, ok := v.ConvertToType(types.StringType).(types.String); ok {
		return string(s)
	}
	return v.Type().TypeName()
}
