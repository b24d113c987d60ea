package governance

import (
	"context"
	"fmt"
	"reflect"
	"regexp"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/stokehold/stokehold/events"
)

// Condition is a compiled boolean expression over one event, and over variables
// of its own, in the language of the policies' rules but for `now` and `point`:
// the same event always gives the same result, on every machine and at every
// time, so that a condition may be evaluated in a Temporal workflow. It is
// bounded by cost, which is deterministic, and not by time. Immutable and safe
// for concurrent use.
type Condition struct {
	prg    *program
	data   *dataType
	vars   map[string]*dataType
	limits Limits
}

// Var declares a variable of a Condition by the zero value of its Go type; nil
// stands for a value of any type.
type Var struct {
	Name string
	Zero any
}

// CompileCondition compiles an expression over `event`, `data` (untyped) and
// the given variables. The error is a *PolicyError with line and column in the
// expression.
func CompileCondition(expr string, vars ...Var) (*Condition, error) {
	return compileCondition(expr, newTypeTable(), untypedData, vars)
}

// CompileWhen compiles a trigger's condition on events of one type, whose data
// are typed if the registry gives a Go type for it. A nil registry or a pattern
// with * or ? leaves data untyped; a literal type that the registry does not
// have is an error.
func CompileWhen(expr, eventType string, reg TypeSource) (*Condition, error) {
	table, data := newTypeTable(), untypedData
	if reg != nil && eventType != "" && !isGlob(eventType) {
		t, ok := reg.Lookup(eventType)
		if !ok {
			return nil, &PolicyError{Field: "eventType", Msg: fmt.Sprintf("no event type %q is registered", eventType)}
		}
		if t.Data != nil {
			if d := table.of(reflect.TypeOf(t.Data)); d.kind == kindObject || d.kind == kindMap {
				data = d
			}
		}
	}
	return compileCondition(expr, table, data, nil)
}

var varName = regexp.MustCompile(`^[a-z][a-zA-Z0-9_]{0,62}$`)

func compileCondition(expr string, table *typeTable, data *dataType, vars []Var) (*Condition, error) {
	opts := []cel.EnvOption{cel.Variable(declData, data.cel)}
	c := &Condition{data: data, vars: map[string]*dataType{}, limits: Limits{}.withDefaults()}
	for _, v := range vars {
		_, dup := c.vars[v.Name]
		if dup || !varName.MatchString(v.Name) || v.Name == declEvent || v.Name == declData {
			return nil, &PolicyError{Field: "vars", Msg: fmt.Sprintf("%q is not a free variable name", v.Name)}
		}
		t := dynType
		if v.Zero != nil {
			t = table.of(reflect.TypeOf(v.Zero))
		}
		c.vars[v.Name] = t
		opts = append(opts, cel.Variable(v.Name, t.cel))
	}
	env, err := newEnv(table)
	if err != nil {
		return nil, err
	}
	if env, err = env.Extend(opts...); err != nil {
		return nil, fmt.Errorf("governance: extend the expression environment: %w", err)
	}
	comp := &compiler{env: env, data: data, limits: c.limits}
	prg, faults := comp.compile(expr, types.BoolType)
	if len(faults) > 0 {
		f := faults[0]
		return nil, &PolicyError{Line: f.line, Column: f.column, Msg: f.msg, Suggestion: f.suggestion}
	}
	c.prg = prg
	return c, nil
}

// Expression returns the source.
func (c *Condition) Expression() string { return c.prg.src }

// Match evaluates the condition for an event. The error is an *EvalError: a
// field was missing, the data could not be read, or a limit was reached.
func (c *Condition) Match(ctx context.Context, ev *events.Event) (bool, error) {
	return c.Eval(ctx, ev, nil)
}

// Eval evaluates the condition for an event and values of the declared
// variables, which are converted by their JSON encoding. A declared variable
// without a value is an error if the expression reads it. Of ctx only the end
// matters.
func (c *Condition) Eval(ctx context.Context, ev *events.Event, values map[string]any) (bool, error) {
	ectx, ok := contextOf(ev)
	if !ok {
		return false, &EvalError{Expression: shorten(c.prg.src, 120), Msg: "not a CloudEvents 1.0 event", Kind: ErrData}
	}
	s := statePool.Get().(*evalState)
	defer s.release()
	ext := readAttributes(ectx)
	source := sourceString(&ectx.Source.URL)
	if tooLarge(ectx, source, &ext) || len(ev.DataEncoded) > events.MaxDataBytes {
		return false, &EvalError{Expression: shorten(c.prg.src, 120), Msg: "the event is larger than 64 KiB of data or 8 KiB of an attribute", Kind: ErrLimit}
	}
	s.reset(ctx, ectx, source, &ext, ev.DataEncoded, c.limits)
	s.pure = true
	s.use(c.data, nil)
	if len(c.vars) > 0 {
		s.extra = make(map[string]any, len(values))
		for name, t := range c.vars {
			v, err := toCEL(values, name, t)
			if err != nil {
				v = types.WrapErr(err)
			}
			s.extra[name] = v
		}
	}
	return s.evalBool(c.prg)
}
