package tiers

import (
	"context"
	"fmt"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
)

// tierOf is where governance wants a batch, as its event was approved: "" is
// anywhere. An error means that it must not be written, since it cannot be put
// there, or its route is of another kind.
func (s *Store) tierOf(ev *events.Event, hot bool) (arrowio.Tier, error) {
	route, err := events.RouteOf(ev)
	if err != nil {
		return "", err
	}
	switch tier := arrowio.Tier(route.Tier); {
	case route.Workers != "" || route.Region != "":
		return "", fmt.Errorf("%w: a batch has been written where it is, and cannot go to workers of another class or region: route stage.started", ErrRoute)
	case tier == arrowio.Hot && !hot:
		return "", fmt.Errorf("%w: there was no room for it in shared memory", ErrRoute)
	case tier == arrowio.Cold && (s.cold == nil || s.routed == nil):
		return "", fmt.Errorf("%w: this process has no cold tier, or nothing that moves batches there", ErrRoute)
	default:
		return tier, nil
	}
}

// send has the batch moved to where its event says.
func (s *Store) send(ctx context.Context, ref arrowio.Ref, ev *events.Event) error {
	route, err := events.RouteOf(ev)
	if err != nil {
		return fmt.Errorf("committed, but it is not known where it belongs: %w", err)
	}
	if arrowio.Tier(route.Tier) != arrowio.Cold || s.routed == nil {
		return nil // a process that could not do it does not commit it: see tierOf
	}
	if err := s.routed(ctx, ref, arrowio.Cold); err != nil {
		return fmt.Errorf("committed, but not on its way to the cold tier: %w", err)
	}
	return nil
}
