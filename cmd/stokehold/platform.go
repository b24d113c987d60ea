package main

import (
	"context"
	"errors"

	"github.com/stokehold/stokehold"
	"github.com/stokehold/stokehold/cmd/devstack"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/examples/flights"
)

// embedded fills in what the embedded stack gives, and what makers of policies
// need of the binary.
func embedded(p platform) platform {
	p.Types = func() (*events.Registry, error) { return events.NewRegistry(flights.EventTypes()...) }
	p.Policies = func(ctx context.Context, cfg config.Config) (*stokehold.PolicyDesk, error) {
		return stokehold.ConnectPolicies(ctx, settings(cfg), brought()...)
	}
	p.Budgets = func(ctx context.Context, cfg config.Config) (*stokehold.BudgetDesk, error) {
		return stokehold.ConnectBudgets(ctx, settings(cfg))
	}
	p.Stack = devstack.Start
	p.Discover = func(dir string) (config.Found, bool, error) {
		e, err := devstack.Discover(dir)
		if errors.Is(err, devstack.ErrNotRunning) {
			return config.Found{}, false, nil
		}
		return found(e), err == nil, err
	}
	return p
}

// found says in the configuration's words where a stack is.
func found(e devstack.Endpoints) config.Found {
	return config.Found{
		NATS:     config.NATS{URL: config.Endpoint(e.NATSURL), User: e.NATSUser, Password: e.NATSPassword},
		Temporal: config.Temporal{Address: e.TemporalAddress, Namespace: e.Namespace, UI: e.UIURL},
		S3: config.S3{Endpoint: config.Endpoint(e.S3Endpoint), Region: e.S3Region, Bucket: e.S3Bucket,
			AccessKey: config.Secret(e.S3AccessKey), SecretKey: e.S3SecretKey, Syncs: true}, // the stack syncs what it acknowledges
	}
}

// within is base with the servers of a stack of this process, whatever base says.
func within(base config.Config, e devstack.Endpoints, dir string) config.Config {
	f, queue := found(e), base.Temporal.TaskQueue
	base.NATS, base.Temporal, base.S3, base.StateDir = f.NATS, f.Temporal, f.S3, dir
	base.Temporal.TaskQueue = queue
	return base
}

// starting runs what must not outlive an interrupt: errors of a start that the
// person ended are about the end, not about the start.
func starting[T any](ctx context.Context, start func() (T, error)) (T, error) {
	v, err := start()
	if err != nil && ctx.Err() != nil {
		return v, context.Cause(ctx)
	}
	return v, err
}
