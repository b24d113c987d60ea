package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/workflowstest"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/workflows"
)

// judging is the played system with a worker on the embedded servers that judges by
// the policies of the file that PLAYED_POLICY names, and runs no stage.
type judging struct {
	*played
	closers []func(context.Context) error
}

func (j *judging) Close(ctx context.Context) error {
	var errs []error
	for i := len(j.closers) - 1; i >= 0; i-- {
		errs = append(errs, j.closers[i](ctx))
	}
	return errors.Join(errs...)
}

func playedHost(ctx context.Context, cfg config.Config) (_ system, err error) {
	path := os.Getenv("PLAYED_POLICY")
	if path == "" {
		return newPlayed(), nil
	}
	j := &judging{played: newPlayed()}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.Close(context.WithoutCancel(ctx)))
		}
	}()
	nc, err := nats.Connect(cfg.NATS.URL.Reveal(), nats.UserInfo(cfg.NATS.User, cfg.NATS.Password.Reveal()))
	if err != nil {
		return nil, err
	}
	j.closers = append(j.closers, func(context.Context) error { nc.Close(); return nil })
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	types, err := events.NewRegistry()
	if err != nil {
		return nil, err
	}
	set, err := governance.Load(governance.Options{Types: types}, governance.Source{Name: path, Data: raw})
	if err != nil {
		return nil, err
	}
	key, err := governance.NewKey("k")
	if err != nil {
		return nil, err
	}
	ring, err := governance.NewKeyRing(key)
	if err != nil {
		return nil, err
	}
	log, err := audit.Open(ctx, audit.Config{Conn: nc})
	if err != nil {
		return nil, err
	}
	j.closers = append(j.closers, log.Close)
	who, err := approval.NewDirectory(approval.Actor{Name: "carol", Roles: []string{"board"}})
	if err != nil {
		return nil, err
	}
	people, err := approval.Open(ctx, approval.Config{Conn: nc, Directory: who})
	if err != nil {
		return nil, err
	}
	engine, err := governance.NewEngine(governance.Config{Policies: set, Log: log, Keys: ring, Approvals: people})
	if err != nil {
		return nil, err
	}
	bus, err := events.Open(ctx, events.Config{Conn: nc, Types: types, Judge: engine})
	if err != nil {
		return nil, err
	}
	j.closers = append(j.closers, bus.Close)
	limits, err := budget.NewStore(nc, "")
	if err != nil {
		return nil, err
	}
	c, err := workflows.Dial(ctx, workflows.DialConfig{Address: cfg.Temporal.Address, Namespace: cfg.Temporal.Namespace})
	if err != nil {
		return nil, err
	}
	j.closers = append(j.closers, func(context.Context) error { c.Close(); return nil })
	w, err := workflows.NewWorker(workflows.WorkerConfig{
		Client: c, Bus: bus, Types: types, Executor: &workflowstest.Light{}, Aliases: workflowstest.NoAliases{}, TaskQueue: cfg.Temporal.TaskQueue,
		Approvals: &approval.Coordinator{Store: people, Bus: bus}, Limits: budget.Gate{Store: limits, Log: log},
	})
	if err != nil {
		return nil, err
	}
	starting, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := w.Start(starting); err != nil {
		return nil, err
	}
	j.closers = append(j.closers, w.Stop)
	return j, nil
}
