package models

import (
	"context"

	"github.com/stokehold/stokehold/events"
)

// FailPublish makes the bus of r refuse to publish while fail returns an error.
func FailPublish(r *Registry, fail func() error) { r.bus = failingBus{r.bus, fail} }

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
