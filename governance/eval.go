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
)

// evalState is what expressions see of one event: a concrete cel.Activation,
// reused from event to event. Not safe for concurrent use.
type evalState struct {
	event eventVal
	raw   []byte // data as received
	json  bool   // the data are JSON, as the content type says
	point types.String
	now   types.Timestamp
	pure  bool // now and point are not available

	ctx      context.Context
	deadline time.Duration // of all tracked expressions of the event; 0: none
	bounded  context.Context
	cancel   context.CancelFunc
	spent    uint64
	limits   Limits

	// One decoding is kept: policies of one event type share its Go type.
	dataType *dataType // type that expressions now expect
	strict   *dataType // type that untyped data must fit too; nil: none
	decoded  any
	decodeOf *dataType

	vars   []variable
	values []any // of vars; nil: not evaluated yet
	extra  map[string]any
}

type variable struct {
	name string // with the prefix, as resolved
	prg  *program
}

var _ cel.Activation = (*evalState)(nil)

var statePool = sync.Pool{New: func() any { return &evalState{} }}

// reset prepares the state for one event. c must stay unchanged until release.
func (s *evalState) reset(ctx context.Context, c *event.EventContextV1, source string, ext attributes, data []byte, limits Limits) {
	s.event = eventVal{ctx: c, source: source, ext: ext}
	s.raw, s.json = data, isJSON(c)
	s.ctx, s.limits, s.spent = ctx, limits, 0
	s.decoded, s.decodeOf, s.dataType, s.strict = nil, nil, nil, nil
	s.vars, s.extra, s.values = nil, nil, s.values[:0]
}

// release drops references to the event and returns the state to its pool.
func (s *evalState) release() {
	s.endEvent()
	values := s.values
	clear(values[:cap(values)])
	*s = evalState{values: values[:0]}
	statePool.Put(s)
}

func (s *evalState) endEvent() {
	if s.cancel != nil {
		s.cancel()
		s.cancel, s.bounded = nil, nil
	}
}

// use selects whose data type and variables the next expressions see.
func (s *evalState) use(data *dataType, vars []variable) {
	s.dataType, s.vars = data, vars
	s.values = s.values[:0]
	for range vars {
		s.values = append(s.values, nil)
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
	v, ok := s.extra[name]
	return v, ok
}

// data decodes the event's data on first use. An error is itself the value, as
// cel-go expects of lazy values.
func (s *evalState) data() any {
	if s.decodeOf == s.dataType && s.decoded != nil {
		return s.decoded
	}
	v, err := s.decode()
	if err != nil {
		v = types.WrapErr(err)
	}
	s.decoded, s.decodeOf = v, s.dataType
	return v
}

func (s *evalState) decode() (any, error) {
	switch {
	case len(s.raw) == 0:
		return nil, fmt.Errorf("%w: the event carries no data", ErrData)
	case !s.json:
		return nil, fmt.Errorf("%w: content type %q is not JSON", ErrData, s.event.ctx.GetDataContentType())
	}
	if s.strict != nil && s.dataType == untypedData {
		if _, err := decodeData(s.raw, s.strict); err != nil {
			return nil, err
		}
	}
	return decodeData(s.raw, s.dataType)
}

func (s *evalState) variable(i int) any {
	if v := s.values[i]; v != nil {
		return v
	}
	v, err := s.eval(s.vars[i].prg)
	if err == nil && valueSize(v) > maxVariableSize {
		err = fmt.Errorf("%w: the value of %s is larger than %d", ErrLimit, s.vars[i].name, maxVariableSize)
	}
	if err != nil {
		var out any = types.WrapErr(err)
		s.values[i] = out
		return out
	}
	s.values[i] = v
	return v
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

// extension returns an extension attribute as its canonical string, "" if
// absent.
func extension(c *event.EventContextV1, name string) string {
	v, ok := c.Extensions[name]
	if !ok {
		return ""
	}
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
