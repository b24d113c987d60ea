// Package workflowstest starts the servers that tests and benchmarks of
// workflows run against: the real ones, embedded.
package workflowstest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.temporal.io/sdk/client"

	"github.com/stokehold/stokehold/cmd/devstack"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

// Env is a stack with a bus and a Temporal client on it.
type Env struct {
	Stack  *devstack.Stack
	Bus    *events.Bus
	Client client.Client
	Types  *events.Registry

	conn *nats.Conn
}

// Open starts a stack in dir and connects to it. extra are event types beside
// the standard ones. Every event is allowed.
func Open(ctx context.Context, dir string, extra ...events.Type) (*Env, error) {
	stack, err := devstack.Start(ctx, devstack.Options{Dir: dir, FreePorts: true, WithoutUI: true, WithoutS3: true})
	if err != nil {
		return nil, err
	}
	e := &Env{Stack: stack}
	if err := e.connect(ctx, extra); err != nil {
		return nil, errors.Join(err, e.Close(ctx))
	}
	return e, nil
}

func (e *Env) connect(ctx context.Context, extra []events.Type) error {
	var err error
	if e.Types, err = events.NewRegistry(extra...); err != nil {
		return err
	}
	at := e.Stack.Endpoints()
	if e.conn, err = nats.Connect(at.NATSURL, nats.UserInfo(at.NATSUser, string(at.NATSPassword))); err != nil {
		return fmt.Errorf("workflowstest: nats: %w", err)
	}
	if e.Bus, err = events.Open(ctx, events.Config{Conn: e.conn, Types: e.Types, Judge: events.AllowAll()}); err != nil {
		return err
	}
	e.Client, err = workflows.Dial(ctx, workflows.DialConfig{Address: e.Stack.Endpoints().TemporalAddress, Namespace: devstack.Namespace})
	return err
}

// Close disconnects and stops the servers.
func (e *Env) Close(ctx context.Context) error {
	var errs []error
	if e.Client != nil {
		e.Client.Close()
	}
	if e.Bus != nil {
		errs = append(errs, e.Bus.Close(ctx))
	}
	if e.conn != nil {
		e.conn.Close()
	}
	return errors.Join(append(errs, e.Stack.Close(ctx))...)
}

// NoAliases is a model registry without models.
type NoAliases struct{}

// Alias finds nothing.
func (NoAliases) Alias(context.Context, string, string) (models.Version, error) {
	return models.Version{}, models.ErrNotFound
}

// NoMoves is a migrator for which every batch is in its place.
type NoMoves struct{}

// MigrateBatch does nothing.
func (NoMoves) MigrateBatch(context.Context, string, uint64) error { return nil }

// Light executes stages as functions of their assignment alone: no data plane.
// Safe for concurrent use.
type Light struct {
	// Devices are what stages hold, by name; others hold a processor. Set before use.
	Devices map[string]stages.Device

	mu    sync.Mutex
	funcs map[string]LightFunc
}

// LightFunc is one stage.
type LightFunc func(context.Context, stages.Assignment, stages.Hooks) (stages.Result, error)

// Set says what a stage does. Stages without a function succeed at once.
func (l *Light) Set(stage string, f LightFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.funcs == nil {
		l.funcs = make(map[string]LightFunc)
	}
	l.funcs[stage] = f
}

// Execute implements workflows.Executor.
func (l *Light) Execute(ctx context.Context, _ stages.Stage, a stages.Assignment, h stages.Hooks) (stages.Result, error) {
	l.mu.Lock()
	f := l.funcs[a.Stage]
	l.mu.Unlock()
	if f == nil {
		return stages.Result{Dataset: a.Output}, nil
	}
	return f(ctx, a, h)
}

// Device implements workflows.Accelerated.
func (l *Light) Device(a stages.Assignment) stages.Device { return l.Devices[a.Stage] }

// Nothing is a stage for Light, which does not call it.
var Nothing = stages.Func(func(context.Context, *stages.Task) error { return errors.New("not called") })

// StopTimeout is ample for stopping a worker in a test.
const StopTimeout = 20 * time.Second
