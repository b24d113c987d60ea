package governance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/celgo"
)

// evalState is what expressions see of one event: a concrete cel.Activation,
// reused from event to event. Not safe for concurrent use.
type evalState struct {
	used       bool // since it came from the pool
	event      eventVal
	attributes [maxAttributes]celgo.Value // of event, by field; Absent: not read yet
	raw        []byte                     // data as received
	json       bool                       // the data are JSON, as the content type says
	point      types.String
	now        types.Timestamp
	pure       bool // now, point, facts and parameters are not available

	ev         *events.Event // as the sources of facts get it
	engine     *Engine
	known      *extracted // what the event says of itself; nil: not read yet
	facts      [facts]any // nil: not asked for yet
	asking     context.Context
	stopAsking context.CancelFunc

	ctx      context.Context
	deadline time.Duration // of all tracked expressions of the event; 0: none
	bounded  context.Context
	cancel   context.CancelFunc
	spent    uint64
	limits   Limits

	// Policies of one event type see its data by the Go type, or untyped.
	dataType  *dataType // type that expressions now expect
	strict    *dataType // type that untyped data must fit too; nil: none
	decodings [2]decoding
	slab      slab

	// What the rules so far make of the event.
	current      bool            // its stamp is of this very set
	letGo        *events.Release // at the point OnRelease
	effects      effects
	waiting      []finding // for approvals
	decider      finding   // what d.Policy and d.Rule name; zero: nothing yet
	taintedNotes []bool    // by note
	secret       bool      // some data are to be redacted, or may be

	params *object // of the policy; nil: none
	vars   []variable
	values []variableValue // of vars
	extra  map[string]any
}

// decoding is the event's data by one type.
type decoding struct {
	of    *dataType // nil: not decoded yet
	value celgo.Value
	boxed any // value as cel-go takes it, or the error; nil until asked for
	err   error
}

// variableValue is a variable's value for the event at hand.
type variableValue struct {
	value celgo.Value
	known bool // value is it
	tried bool // the closures have been tried
	boxed any  // the value as cel-go takes it, or its error; nil until asked for
}

type variable struct {
	name string // with the prefix, as resolved
	prg  *program
}

var _ cel.Activation = (*evalState)(nil)

var statePool = sync.Pool{New: func() any { return &evalState{} }}

// reset prepares the state for one event. c must stay unchanged until release.
func (s *evalState) reset(ctx context.Context, c *event.EventContextV1, source string, ext *attributes, data []byte, limits Limits) {
	s.event.ctx, s.event.source, s.event.ext = c, source, *ext
	if s.used { // otherwise all is as release left it
		s.clean()
	}
	s.used = true
	s.raw, s.json = data, isJSON(c)
	s.ctx, s.limits = ctx, limits
}

// clean drops what the event before has left.
func (s *evalState) clean() {
	// Most of it is not used by most events, and clearing what holds pointers is dear.
	for i := range s.attributes {
		if s.attributes[i].Kind() != celgo.Absent {
			s.attributes[i] = celgo.Value{}
		}
	}
	for i := range s.decodings {
		if s.decodings[i].of != nil {
			s.decodings[i] = decoding{}
		}
	}
	for i := range s.facts {
		if s.facts[i] != nil {
			s.facts[i] = nil
		}
	}
	if s.decider.p != nil {
		s.decider = finding{}
	}
	if !s.effects.empty() {
		s.effects = effects{}
	}
	s.spent, s.current, s.secret = 0, false, false
	s.slab.reset()
	s.dataType, s.strict, s.known = nil, nil, nil
	s.vars, s.extra, s.values, s.params = nil, nil, s.values[:0], nil
	s.waiting, s.taintedNotes = nil, nil
}

// release drops references to the event and returns the state to its pool.
func (s *evalState) release() {
	s.endEvent()
	s.clean()
	clear(s.values[:cap(s.values)])
	s.event, s.raw, s.ev = eventVal{}, nil, nil
	s.engine, s.letGo, s.ctx = nil, nil, nil
	s.used = false
	statePool.Put(s)
}

func (s *evalState) endEvent() {
	if s.cancel != nil {
		s.cancel()
		s.cancel, s.bounded = nil, nil
	}
	if s.stopAsking != nil {
		s.stopAsking()
		s.stopAsking, s.asking = nil, nil
	}
}

// use selects whose data type and variables the next expressions see.
func (s *evalState) use(data *dataType, vars []variable) {
	s.dataType, s.vars = data, vars
	s.values = s.values[:0]
	for range vars {
		s.values = append(s.values, variableValue{})
	}
}

// Parent implements cel.Activation.
func (s *evalState) Parent() cel.Activation { return nil }

// ResolveName implements cel.Activation.
func (s *evalState) ResolveName(name string) (any, bool) {
	switch name {
	case declEvent:
		return &s.event, true
	case declData:
		return s.data(), true
	case declPoint:
		return s.point, !s.pure
	case declNow:
		return s.now, !s.pure
	}
	if strings.HasPrefix(name, variablePrefix) {
		for i := range s.vars {
			if s.vars[i].name == name {
				return s.variable(i), true
			}
		}
	}
	if !s.pure {
		if name == declParams && s.params != nil {
			return s.params, true
		}
		if i := factIndex(name); i >= 0 {
			return s.fact(i), true
		}
	}
	v, ok := s.extra[name]
	return v, ok
}

// maxAttributes is how many fields eventType has.
const maxAttributes = 10

// decoding decodes the event's data on first use.
func (s *evalState) decoding() *decoding {
	d := &s.decodings[0]
	if d.of != s.dataType && d.of != nil {
		d = &s.decodings[1]
	}
	if d.of != s.dataType {
		value, err := s.decode()
		*d = decoding{of: s.dataType, value: value, err: err}
	}
	return d
}

// dataValue returns the event's data; nil if they cannot be decoded.
func (s *evalState) dataValue() *celgo.Value {
	if d := s.decoding(); d.err == nil {
		return &d.value
	}
	return nil
}

// data returns the data as cel-go takes them. An error is itself the value, as
// cel-go expects of lazy values.
func (s *evalState) data() any {
	d := s.decoding()
	switch {
	case d.boxed != nil:
	case d.err == nil:
		d.boxed = d.value.Boxed()
	default:
		d.boxed = types.WrapErr(d.err)
	}
	return d.boxed
}

func (s *evalState) decode() (v celgo.Value, err error) {
	switch {
	case len(s.raw) == 0:
		return v, fmt.Errorf("%w: the event carries no data", ErrData)
	case !s.json:
		return v, fmt.Errorf("%w: content type %q is not JSON", ErrData, s.event.ctx.GetDataContentType())
	}
	if s.strict != nil && s.dataType == untypedData {
		if _, err := decodeValue(s.raw, s.strict, &s.slab); err != nil {
			return v, err
		}
	}
	return decodeValue(s.raw, s.dataType, &s.slab)
}

// variableValue evaluates a variable on first use; nil if it has no value.
func (s *evalState) variableValue(i int) *celgo.Value {
	v := &s.values[i]
	if prg := s.vars[i].prg; prg.fast != nil && !v.tried {
		v.tried = true
		v.value, v.known = prg.fast.Eval(s)
	}
	if !v.known {
		v.value, v.known = celgo.Of(s.variable(i))
	}
	if !v.known {
		return nil
	}
	return &v.value
}

// variable returns a variable's value, or its error, as cel-go takes it.
func (s *evalState) variable(i int) any {
	v, prg := &s.values[i], s.vars[i].prg
	if v.boxed != nil {
		return v.boxed
	}
	if prg.fast != nil && !v.tried {
		v.tried = true
		v.value, v.known = prg.fast.Eval(s)
	}
	if v.known {
		v.boxed = v.value.Boxed()
		return v.boxed
	}
	out, err := s.eval(prg)
	if err == nil && valueSize(out) > maxVariableSize {
		err = fmt.Errorf("%w: the value of %s is larger than %d", ErrLimit, s.vars[i].name, maxVariableSize)
	}
	v.boxed = out
	if err != nil {
		v.boxed = types.WrapErr(err)
	}
	return v.boxed
}

// eval evaluates one expression within the limits. The error wraps one of the
// evaluation sentinels only after explain; callers pass it there.
func (s *evalState) eval(p *program) (ref.Val, error) {
	if !p.tracked {
		v, _, err := p.prg.Eval(s)
		return v, err
	}
	if s.spent >= s.limits.EventCost {
		return nil, fmt.Errorf("%w: the expressions for this event cost more than %d", ErrLimit, s.limits.EventCost)
	}
	ctx := s.ctx
	if s.deadline > 0 {
		if s.bounded == nil {
			s.bounded, s.cancel = context.WithTimeoutCause(s.ctx, s.deadline, errDeadline)
		}
		ctx = s.bounded
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLimit, context.Cause(ctx))
	}
	v, det, err := p.prg.ContextEval(ctx, s)
	if spent := det.ActualCost(); spent != nil {
		s.spent += *spent
	}
	return v, err
}

var errDeadline = errors.New("the time for evaluating one event ran out")

// evalBool evaluates an expression compiled to give a bool.
func (s *evalState) evalBool(p *program) (bool, error) {
	if p.fast != nil {
		if v, ok := p.fast.Bool(s); ok {
			return v, nil
		}
	}
	v, err := s.eval(p)
	if err != nil {
		return false, s.explain(p, err)
	}
	b, ok := v.(types.Bool)
	if !ok {
		return false, s.explain(p, fmt.Errorf("the expression gave %s, not bool", v.Type().TypeName()))
	}
	return bool(b), nil
}

// evalString evaluates a message expression.
func (s *evalState) evalString(p *program) (string, error) {
	if p.fast != nil {
		if v, ok := p.fast.Eval(s); ok && v.Kind() == celgo.String {
			return v.Text(), nil
		}
	}
	v, err := s.eval(p)
	if err != nil {
		return "", s.explain(p, err)
	}
	str, ok := v.(types.String)
	if !ok {
		return "", s.explain(p, fmt.Errorf("the expression gave %s, not string", v.Type().TypeName()))
	}
	return string(str), nil
}

func (s *evalState) explain(p *program, err error) *EvalError {
	msg, kind := evalKind(err, s.sources(p))
	return &EvalError{Expression: shorten(p.src, 120), Msg: msg, Kind: kind}
}

// shorten makes one line of at most n bytes.
func shorten(s string, n int) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "\ufffd")), " ")
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 { // not inside a rune
		n--
	}
	return s[:n] + "…"
}

func isJSON(c *event.EventContextV1) bool {
	if c.DataContentType == nil {
		return true // CloudEvents 1.0: absent means application/json
	}
	mt := *c.DataContentType
	if mt == event.ApplicationJSON {
		return true
	}
	if i := strings.IndexByte(mt, ';'); i >= 0 {
		mt = mt[:i]
	}
	mt = strings.ToLower(strings.TrimSpace(mt))
	return mt == event.ApplicationJSON || mt == "text/json" || strings.HasSuffix(mt, "+json")
}

// sourceString is URL.String without its allocation for plain paths, which most
// sources are.
func sourceString(u *url.URL) string {
	if u.Scheme == "" && u.Opaque == "" && u.Host == "" && u.User == nil && u.RawPath == "" && u.RawQuery == "" &&
		!u.ForceQuery && u.Fragment == "" && !strings.HasPrefix(u.Path, "//") && plainPath(u.Path) {
		return u.Path
	}
	return u.String()
}

func plainPath(p string) bool {
	for i := range len(p) {
		switch c := p[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c == '/', c == '-', c == '_', c == '.', c == '~':
		default:
			return false
		}
	}
	return true
}

// extensionText gives the value of an extension attribute as its canonical
// string.
func extensionText(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	return formatExtension(v)
}

// toCEL converts a variable's value by way of JSON, so that a Go struct, a map
// and a decoded event all look the same to an expression.
func toCEL(values map[string]any, name string, t *dataType) (any, error) {
	v, ok := values[name]
	if !ok {
		return nil, &missingFieldError{name: name}
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%w: variable %s: %w", ErrData, name, err)
	}
	if len(raw) > events.MaxDataBytes {
		return nil, fmt.Errorf("%w: variable %s has %d bytes as JSON; the limit is %d", ErrLimit, name, len(raw), events.MaxDataBytes)
	}
	out, err := decodeData(raw, t)
	if err != nil {
		return nil, fmt.Errorf("variable %s: %w", name, err)
	}
	return out, nil
}
