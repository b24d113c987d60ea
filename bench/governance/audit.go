package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/governance/audit/proof"
)

// auditing is what becomes of a bus's decisions.
type auditing int

const (
	unaudited auditing = iota // they go nowhere
	logged                    // they are entries of the log: checkpoints are signed elsewhere
	signed                    // as a worker process does it: log, tree and signed checkpoints
	auditings
)

// auditRates publishes through buses that are audited in each of these ways, in turns
// on one server, and returns the medians in events per second.
func auditRates(ctx context.Context, rounds, messages int, sync bool) (rates [auditings]float64, err error) {
	dir, err := os.MkdirTemp("", "stokehold-bench-")
	if err != nil {
		return rates, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: filepath.Join(dir, "nats"), JetStreamMaxStore: 16 << 30, SyncAlways: sync,
	})
	if err != nil {
		return rates, err
	}
	srv.Start()
	defer srv.Shutdown()
	if !srv.ReadyForConnections(10 * time.Second) {
		return rates, errors.New("embedded nats-server not ready within 10 s")
	}
	var all [auditings][]float64
	for round := range rounds {
		for k := range auditings {
			how := (k + auditing(round)) % auditings
			p := publishing{url: srv.ClientURL(), prefix: fmt.Sprintf("bench-%d-%d", round, how), dir: filepath.Join(dir, strconv.Itoa(round))}
			rate, err := p.rate(ctx, how, messages)
			if err != nil {
				return rates, err
			}
			all[how] = append(all[how], rate)
		}
	}
	for how := range all {
		rates[how] = median(all[how])
	}
	return rates, nil
}

// publishing is one round of one case.
type publishing struct {
	url, prefix, dir string
	closers          []func(context.Context) error
}

func (p *publishing) rate(ctx context.Context, how auditing, messages int) (rate float64, err error) {
	conn, err := nats.Connect(p.url)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	bus, err := p.open(ctx, conn, how)
	if err != nil {
		return 0, errors.Join(err, p.close(ctx))
	}
	evs := make([]events.Event, messages)
	for i := range evs {
		ev, err := newEvent(fmt.Sprintf("ev-%d", i))
		if err != nil {
			return 0, errors.Join(err, p.close(ctx))
		}
		evs[i] = *ev
	}
	const perCall = 10_000
	start := time.Now()
	for chunk := range slices.Chunk(evs, perCall) {
		if err := bus.Publish(ctx, chunk...); err != nil {
			return 0, errors.Join(err, p.close(ctx))
		}
	}
	took := time.Since(start)
	if err := p.close(ctx); err != nil {
		return 0, err
	}
	return float64(messages) / took.Seconds(), dropStreams(ctx, conn)
}

// open opens the bus and what audits it, in the order in which an App does.
func (p *publishing) open(ctx context.Context, conn *nats.Conn, how auditing) (*events.Bus, error) {
	var log governance.DecisionLog = discard{}
	if how != unaudited {
		l, err := audit.Open(ctx, audit.Config{Conn: conn, Prefix: p.prefix})
		if err != nil {
			return nil, err
		}
		p.closers = append(p.closers, l.Close)
		log = l
		if how == signed {
			if err := p.startSequencer(l); err != nil {
				return nil, err
			}
		}
	}
	engine, err := newEngine(log, policyFile(20, true)...)
	if err != nil {
		return nil, err
	}
	reg, err := events.NewRegistry(events.Type{Name: eventType, Data: Promotion{}})
	if err != nil {
		return nil, err
	}
	bus, err := events.Open(ctx, events.Config{Conn: conn, Prefix: p.prefix, Judge: engine, Types: reg, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, bus.Close)
	return bus, nil
}

// startSequencer signs checkpoints into a directory. A round is shorter than what a
// deployment waits for by default, so that it reads and signs more often here.
func (p *publishing) startSequencer(l *audit.JetStreamLog) error {
	keys, err := proof.OpenKeyFile(p.dir+".key", "bench/decisions")
	if err != nil {
		return err
	}
	seq, err := audit.NewSequencer(audit.SequencerConfig{
		Reader: l.Reader, Store: audit.NewDirStore(p.dir), Keys: keys, Poll: 50 * time.Millisecond, MaxEntries: 8192,
	})
	if err != nil {
		return err
	}
	seq.Start()
	p.closers = append(p.closers, seq.Stop)
	return nil
}

func (p *publishing) close(ctx context.Context) error {
	var errs []error
	for _, c := range slices.Backward(p.closers) {
		errs = append(errs, c(ctx))
	}
	p.closers = nil
	return errors.Join(errs...)
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
