package tiers

import (
	"context"

	"github.com/stokehold/stokehold/events"
)

// SetFault makes every step of s that a crash may follow call f; an error ends
// the operation there.
func SetFault(s *Store, f func(point string) error) { s.fault = f }

// FailPublish makes the bus of s refuse to publish while fail returns an error.
func FailPublish(s *Store, fail func() error) { s.bus = failingBus{s.bus, fail} }

type failingBus struct {
	bus
	fail func() error
}

func (b failingBus) Publish(ctx context.Context, evs ...events.Event) error {
	if err := b.fail(); err != nil {
		return err
	}
	return b.bus.Publish(ctx, evs...)
}

// DeafenReaders makes subscriptions of s never deliver anything.
func DeafenReaders(s *Store) { s.bus = deafBus{s.bus} }

type deafBus struct{ bus }

func (b deafBus) Subscribe(ctx context.Context, sub events.Subscription, _ events.Handler) (*events.Consumer, error) {
	return b.bus.Subscribe(ctx, sub, func(context.Context, events.Delivery) error { return nil })
}

var (
	Token      = token
	Untoken    = untoken
	SameRecord = sameRecord
)
