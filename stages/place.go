package stages

import (
	"context"
	"fmt"

	"github.com/stokehold/stokehold/events"
)

// ElsewhereError means that governance routes a stage to workers of another class
// or region: nothing was done here.
type ElsewhereError struct {
	Stage string
	Route events.Routing
}

// Error implements error.
func (e *ElsewhereError) Error() string {
	return fmt.Sprintf("stage %s is routed to other workers (%s)", e.Stage, e.Route)
}

// begin publishes that the stage has started, unless governance sends it elsewhere.
func (d *runDriver) begin(ctx context.Context, h Hooks) error {
	e, err := d.event(events.TypeStageStarted, "started", events.StageStarted{
		Pipeline: d.a.Pipeline, Run: d.a.Run, Stage: d.a.Stage, Attempt: d.a.Attempt,
	})
	if err != nil {
		return err
	}
	if err := d.rt.Bus.Approve(ctx, &e); err != nil {
		return err
	}
	route, err := events.RouteOf(&e)
	switch {
	case err != nil:
		return Permanent(fmt.Errorf("stage %s: %w", d.a.Stage, err))
	case route.Pipeline != "" || route.Tier != "":
		return Permanent(fmt.Errorf("stage %s is routed to %s, which a stage cannot be: route it to workers or a region", d.a.Stage, route))
	case route.Workers != "" && route.Workers != h.Class, route.Region != "" && route.Region != h.Region:
		return &ElsewhereError{Stage: d.a.Stage, Route: route}
	}
	return d.rt.Bus.Publish(ctx, e)
}
