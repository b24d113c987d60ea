package governance

import (
	"context"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/stokehold/stokehold/events"
)

// Text is a compiled expression over one event that gives a string, such as the
// key of a trigger. It is as pure and as bounded as a Condition. Immutable and
// safe for concurrent use.
type Text struct {
	cond Condition
	src  string
}

// CompileText compiles an expression over `event` and `data` (untyped) that gives
// a string, or something that string() converts: a number, a bool, a time.
// The error is a *PolicyError with line and column in the expression.
func CompileText(expr string) (*Text, error) {
	table := newTypeTable()
	env, err := newEnv(table)
	if err != nil {
		return nil, err
	}
	if env, err = env.Extend(cel.Variable(declData, untypedData.cel)); err != nil {
		return nil, err
	}
	limits := Limits{}.withDefaults()
	comp := &compiler{env: env, data: untypedData, limits: limits}
	prg, faults := comp.compile("string(\n"+expr+"\n)", types.StringType)
	if len(faults) > 0 {
		f := faults[0]
		return nil, &PolicyError{Line: max(f.line-1, 1), Column: f.column, Msg: f.msg, Suggestion: f.suggestion}
	}
	return &Text{Condition{prg: prg, data: untypedData, limits: limits}, expr}, nil
}

// Expression returns the source.
func (t *Text) Expression() string { return t.src }

// Eval evaluates the expression for an event. The error is an *EvalError: a
// field was missing, the data could not be read, or a limit was reached.
func (t *Text) Eval(ctx context.Context, ev *events.Event) (string, error) {
	s, err := t.cond.enter(ctx, ev)
	if err != nil {
		return "", err
	}
	defer s.release()
	return s.evalString(t.cond.prg)
}

// enter prepares the evaluation of one event; the caller releases the state.
func (c *Condition) enter(ctx context.Context, ev *events.Event) (*evalState, error) {
	ectx, ok := contextOf(ev)
	if !ok {
		return nil, &EvalError{Expression: shorten(c.prg.src, 120), Msg: "not a CloudEvents 1.0 event", Kind: ErrData}
	}
	ext := readAttributes(ectx)
	source := sourceString(&ectx.Source.URL)
	if tooLarge(ectx, source, &ext) || len(ev.DataEncoded) > events.MaxDataBytes {
		return nil, &EvalError{Expression: shorten(c.prg.src, 120), Msg: "the event is larger than 64 KiB of data or 8 KiB of an attribute", Kind: ErrLimit}
	}
	s := statePool.Get().(*evalState)
	s.reset(ctx, ectx, source, &ext, ev.DataEncoded, c.limits)
	s.pure = true
	s.use(c.data, nil)
	return s, nil
}
