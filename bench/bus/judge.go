package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit"
)

// policies is what the benchmark's events are judged by, on both sides of the
// stream: rules of the kind that a deployment writes for all of its events.
const policies = `apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: bench}
spec:
  match: {points: [publish, receive]}
  rules:
    - name: sized
      expression: event.id.size() < 200
      message: the id is too long
`

// governor is the judge of a bus as a deployment has it: the engine with
// policies and keys, and its decision log in the stream of that bus's server.
type governor struct {
	*governance.Engine
	log  *audit.JetStreamLog
	conn *nats.Conn
}

func newGovernor(ctx context.Context, url, prefix string) (_ *governor, err error) {
	g := &governor{}
	if g.conn, err = nats.Connect(url); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			g.conn.Close()
		}
	}()
	if g.log, err = audit.Open(ctx, audit.Config{Conn: g.conn, Prefix: prefix}); err != nil {
		return nil, err
	}
	set, err := governance.Load(governance.Options{}, governance.Source{Name: "bench.yaml", Data: []byte(policies)})
	if err != nil {
		return nil, err
	}
	key, err := governance.NewKey("bench")
	if err != nil {
		return nil, err
	}
	keys, err := governance.NewKeyRing(key)
	if err != nil {
		return nil, err
	}
	g.Engine, err = governance.NewEngine(governance.Config{Policies: set, Log: g.log, Keys: keys})
	return g, err
}

// close ends the log, and reports decisions that are not the ones expected: a
// benchmark of events that were not judged would measure something else.
func (g *governor) close(ctx context.Context, want uint64) error {
	defer g.conn.Close()
	if err := g.log.Close(ctx); err != nil {
		return err
	}
	counts, err := g.log.Count(ctx, time.Time{})
	if err != nil {
		return err
	}
	n := counts.Judged(events.OnPublish) + counts.Judged(events.OnReceive)
	denied := counts.Denied(events.OnPublish) + counts.Denied(events.OnReceive)
	if n < want || denied > 0 {
		return fmt.Errorf("%d decisions and %d denials in the log, expected %d and none", n, denied, want)
	}
	return nil
}
