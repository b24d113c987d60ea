package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit"
)

// decisionLog is a durable log under test.
type decisionLog interface {
	governance.DecisionLog
	Close(ctx context.Context) error
}

// openLog opens the log that a deployment has.
func openLog(ctx context.Context, conn *nats.Conn, prefix string) (decisionLog, error) {
	return audit.Open(ctx, audit.Config{Conn: conn, Prefix: prefix})
}

type noLog struct{ discard }

func (noLog) Close(context.Context) error { return nil }

// auditRates publishes through a bus whose decisions go to the log and through one
// whose decisions go nowhere, in turns on one server, and returns the medians in
// events per second.
func auditRates(ctx context.Context, rounds, messages int) (audited, bare float64, err error) {
	dir, err := os.MkdirTemp("", "stokehold-bench-")
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, JetStream: true, StoreDir: dir, JetStreamMaxStore: 16 << 30,
	})
	if err != nil {
		return 0, 0, err
	}
	srv.Start()
	defer srv.Shutdown()
	if !srv.ReadyForConnections(10 * time.Second) {
		return 0, 0, errors.New("embedded nats-server not ready within 10 s")
	}
	var with, without []float64
	for round := range rounds {
		for k := range 2 {
			logged := (k+round)%2 == 0
			rate, err := publishRate(ctx, srv.ClientURL(), fmt.Sprintf("bench-%d-%t", round, logged), logged, messages)
			if err != nil {
				return 0, 0, err
			}
			if logged {
				with = append(with, rate)
			} else {
				without = append(without, rate)
			}
		}
	}
	return median(with), median(without), nil
}

func publishRate(ctx context.Context, url, prefix string, logged bool, messages int) (rate float64, err error) {
	conn, err := nats.Connect(url)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	var log decisionLog = noLog{}
	if logged {
		if log, err = openLog(ctx, conn, prefix); err != nil {
			return 0, err
		}
	}
	engine, err := newEngine(log, policyFile(20, true)...)
	if err != nil {
		return 0, err
	}
	reg, err := events.NewRegistry(events.Type{Name: eventType, Data: Promotion{}})
	if err != nil {
		return 0, err
	}
	bus, err := events.Open(ctx, events.Config{Conn: conn, Prefix: prefix, Judge: engine, Types: reg, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return 0, err
	}
	evs := make([]events.Event, messages)
	for i := range evs {
		ev, err := newEvent(fmt.Sprintf("ev-%d", i))
		if err != nil {
			return 0, err
		}
		evs[i] = *ev
	}
	const perCall = 10_000
	start := time.Now()
	for chunk := range slices.Chunk(evs, perCall) {
		if err := bus.Publish(ctx, chunk...); err != nil {
			return 0, err
		}
	}
	took := time.Since(start)
	if err := errors.Join(bus.Close(ctx), log.Close(ctx)); err != nil {
		return 0, err
	}
	return float64(messages) / took.Seconds(), dropStreams(ctx, conn)
}

// dropStreams makes room for the next round.
func dropStreams(ctx context.Context, conn *nats.Conn) error {
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	names := js.StreamNames(ctx)
	for name := range names.Name() {
		if err := js.DeleteStream(ctx, name); err != nil {
			return err
		}
	}
	return names.Err()
}
