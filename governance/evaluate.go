package governance

import (
	"context"
	"fmt"
	"slices"
	"time"

	"cel.dev/cel-go/common/types"

	"github.com/stokehold/stokehold/events"
)

// Evaluator decides on events as an Engine of a set would, without a log, a
// stamp or a count: for tests of policies, and for asking what other policies
// would have said. Not safe for concurrent use.
type Evaluator struct {
	engine *Engine
	before *Engine // stamps with a set without policies, which engine accepts; made on demand
	keys   *KeyRing
	set    *PolicySet
	log    lastLog
	now    time.Time
	after  *events.Event // the last event, as the judge left it

	scratch scratch
}

// NewEvaluator returns an Evaluator of the set.
func NewEvaluator(set *PolicySet) (*Evaluator, error) {
	if set == nil {
		return nil, fmt.Errorf("%w: an Evaluator needs policies", ErrConfig)
	}
	key, err := NewKey("evaluator")
	if err != nil {
		return nil, err
	}
	e := &Evaluator{set: set}
	if e.keys, err = NewKeyRing(key); err != nil {
		return nil, err
	}
	e.engine, err = e.newEngine(set)
	return e, err
}

func (e *Evaluator) newEngine(set *PolicySet, accept ...string) (*Engine, error) {
	return NewEngine(Config{Policies: set, Log: &e.log, Keys: e.keys, Accept: accept, Clock: func() time.Time { return e.now }})
}

// Suppose sets what expressions see beside the event, and the approvals that were
// given. Without it, only what the event says is known.
func (e *Evaluator) Suppose(facts Facts, approvals Approvals) {
	e.engine.facts, e.engine.approvals = facts, approvals
}

// Evaluate returns the decision on an event. The event is not changed, and a
// stamp on it is ignored: on receive all policies with that point are evaluated,
// as for a stamp of an earlier set. now is the variable of that name.
func (e *Evaluator) Evaluate(ctx context.Context, at events.Point, now time.Time, ev *events.Event) (Decision, error) {
	if ev == nil {
		return Decision{}, fmt.Errorf("%w: there is no event to evaluate", ErrConfig)
	}
	e.now = now
	ev = withoutStamp(ev)
	if at == events.OnReceive {
		if err := e.stampBefore(ctx, ev); err != nil {
			return Decision{}, err
		}
	}
	if _, err := e.engine.Judge(ctx, at, []*events.Event{ev}); err != nil {
		return Decision{}, err
	}
	e.after = ev
	return e.log.last, nil
}

// Decide is Evaluate for those who want the decision alone: the decision has no ID,
// for which the event would have to be digested, and nothing is made of what rules
// do to the event. The event is neither copied nor changed.
func (e *Evaluator) Decide(ctx context.Context, at events.Point, now time.Time, ev *events.Event) (Decision, error) {
	if ev == nil {
		return Decision{}, fmt.Errorf("%w: there is no event to evaluate", ErrConfig)
	}
	if at != events.OnPublish && at != events.OnReceive {
		return Decision{}, fmt.Errorf("%w: unknown point %q", ErrConfig, at)
	}
	now = now.UTC()
	c, ok := contextOf(ev)
	if !ok {
		return notAnEvent(at, now, e.set.ref.short, ev), nil
	}
	source, ext, data := sourceString(&c.Source.URL), readAttributes(c), ev.DataEncoded
	ext.route, ext.columns, ext.approval, ext.released = "", "", "", "" // the Judge's alone
	d := newDecision(at, now, e.set.ref.short, c, source, &ext)
	if refuseInvalid(&d, c, source, &ext, data) || byLabels(&d, ext.labels, data) {
		return d, nil
	}
	s := statePool.Get().(*evalState)
	defer s.release()
	s.engine, s.ev, s.letGo = e.engine, ev, nil
	s.point, s.now, s.deadline, s.pure = types.String(at), types.Timestamp{Time: now}, e.engine.deadline, false
	s.reset(ctx, c, source, &ext, data, e.set.limits)
	s.judge(e.set, &d, false)
	s.settle(e.set, &d, &e.scratch, &outcome{ext: ext})
	sayDeclassified(&d, data)
	if err := ctx.Err(); err != nil { // an evaluation may have been cut short: that is no denial
		return Decision{}, fmt.Errorf("governance: evaluate on %s: %w", at, err)
	}
	return d, nil
}

// stampBefore stamps an event as a set without policies lets it pass.
func (e *Evaluator) stampBefore(ctx context.Context, ev *events.Event) error {
	if e.before == nil {
		none, err := Load(Options{})
		if err != nil {
			return err
		}
		if e.before, err = e.newEngine(none); err != nil {
			return err
		}
		accepting, err := e.newEngine(e.set, none.ShortDigest())
		if err != nil {
			return err
		}
		accepting.facts, accepting.approvals = e.engine.facts, e.engine.approvals
		e.engine = accepting
	}
	_, err := e.before.Judge(ctx, events.OnPublish, []*events.Event{ev})
	return err
}

// withoutStamp is a copy of the event whose attributes may be changed.
func withoutStamp(ev *events.Event) *events.Event {
	out := ev.Clone()
	if c, ok := contextOf(&out); ok {
		delete(c.Extensions, ExtStamp)
	}
	return &out
}

// lastLog keeps the last decision. Not safe for concurrent use.
type lastLog struct{ last Decision }

// Append implements DecisionLog.
func (l *lastLog) Append(_ context.Context, ds []Decision) error {
	if len(ds) > 0 {
		l.last = ds[len(ds)-1]
		l.last.Notes = slices.Clone(l.last.Notes)
	}
	return nil
}
