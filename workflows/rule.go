package workflows

import (
	"context"
	"errors"

	"github.com/stokehold/stokehold/events"
)

// condition decides whether an event concerns a trigger; key says whose it is.
type (
	condition func(context.Context, *events.Event) (bool, error)
	keyOf     func(context.Context, *events.Event) (string, error)
)

func compileCondition(expr string) (condition, error) {
	if expr == "" {
		return func(context.Context, *events.Event) (bool, error) { return true, nil }, nil
	}
	return nil, errors.New("not yet")
}

func compileKey(expr string) (keyOf, error) {
	if expr == "" {
		return func(context.Context, *events.Event) (string, error) { return "", nil }, nil
	}
	return nil, errors.New("not yet")
}
