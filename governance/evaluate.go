package governance

import (
	"context"
	"fmt"
	"time"

	"github.com/stokehold/stokehold/events"
)

// Evaluate returns the decision that an Engine of the set makes of an event,
// without a log, a stamp or a count: for tests of policies, and for asking what
// other policies would have said. The event is not changed, and a stamp on it is
// ignored: on receive all policies with that point are evaluated, as for a stamp
// of an earlier set. now is the variable of that name.
func Evaluate(ctx context.Context, set *PolicySet, at events.Point, now time.Time, ev *events.Event) (Decision, error) {
	if set == nil || ev == nil {
		return Decision{}, fmt.Errorf("%w: Evaluate needs policies and an event", ErrConfig)
	}
	ev, log := withoutStamp(ev), &lastLog{}
	cfg := Config{Policies: set, Log: log, Clock: func() time.Time { return now }}
	key, err := NewKey("evaluate")
	if err != nil {
		return Decision{}, err
	}
	if cfg.Keys, err = NewKeyRing(key); err != nil {
		return Decision{}, err
	}
	if at == events.OnReceive {
		// An event that a set without policies let pass comes to all of this one's.
		before, err := Load(Options{})
		if err != nil {
			return Decision{}, err
		}
		first, err := NewEngine(Config{Policies: before, Log: log, Keys: cfg.Keys, Clock: cfg.Clock})
		if err != nil {
			return Decision{}, err
		}
		if _, err := first.Judge(ctx, events.OnPublish, []*events.Event{ev}); err != nil {
			return Decision{}, err
		}
		cfg.Accept = []string{before.ShortDigest()}
	}
	e, err := NewEngine(cfg)
	if err != nil {
		return Decision{}, err
	}
	if _, err := e.Judge(ctx, at, []*events.Event{ev}); err != nil {
		return Decision{}, err
	}
	return log.last, nil
}

// withoutStamp is a copy of the event whose attributes may be changed.
func withoutStamp(ev *events.Event) *events.Event {
	out := ev.Clone()
	if c, ok := contextOf(&out); ok {
		removeStamp(c)
	}
	return &out
}

// lastLog keeps the last decision. Not safe for concurrent use.
type lastLog struct{ last Decision }

// Append implements DecisionLog.
func (l *lastLog) Append(_ context.Context, ds []Decision) error {
	if len(ds) > 0 {
		l.last = ds[len(ds)-1]
		l.last.Notes = append([]Note(nil), l.last.Notes...)
	}
	return nil
}
