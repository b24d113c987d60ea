package workflows

import (
	"context"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// condition decides whether an event concerns a trigger; keyOf says whose it is.
type (
	condition func(context.Context, *events.Event) (bool, error)
	keyOf     func(context.Context, *events.Event) (string, error)
)

func compileCondition(expr string) (condition, error) {
	if expr == "" {
		return func(context.Context, *events.Event) (bool, error) { return true, nil }, nil
	}
	c, err := governance.CompileCondition(expr)
	if err != nil {
		return nil, err
	}
	return c.Match, nil
}

func compileKey(expr string) (keyOf, error) {
	if expr == "" {
		return func(context.Context, *events.Event) (string, error) { return "", nil }, nil
	}
	t, err := governance.CompileText(expr)
	if err != nil {
		return nil, err
	}
	return t.Eval, nil
}

// typedWhen compiles a condition once more against the types of the events it is
// for, which finds fields that they do not have.
func typedWhen(expr, eventType string, types *events.Registry) error {
	if expr == "" {
		return nil
	}
	_, err := governance.CompileWhen(expr, eventType, types)
	return err
}
