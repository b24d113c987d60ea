package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit"
)

// decide is "decide FIRST LAST": appends the decisions numbered so to the log of a
// NATS server, which it starts the first time and whose URL is then in NATS_URL.
func decide(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: decide FIRST LAST")
	}
	first, err := strconv.Atoi(args[0])
	ts.Check(err)
	last, err := strconv.Atoi(args[1])
	ts.Check(err)
	if ts.Getenv("NATS_URL") == "" {
		srv, err := server.NewServer(&server.Options{
			Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: ts.MkAbs("jetstream"), NoLog: true, NoSigs: true, JetStreamMaxStore: 1 << 30,
		})
		ts.Check(err)
		srv.Start()
		ts.Defer(func() { srv.Shutdown(); srv.WaitForShutdown() })
		if !srv.ReadyForConnections(waitLimit) {
			ts.Fatalf("nats-server is not ready")
		}
		ts.Setenv("NATS_URL", srv.ClientURL())
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	nc, err := nats.Connect(ts.Getenv("NATS_URL"))
	ts.Check(err)
	defer nc.Close()
	log, err := audit.Open(ctx, audit.Config{Conn: nc})
	ts.Check(err)
	for i := first; i <= last; i++ {
		d := governance.Decision{
			ID: fmt.Sprintf("%032x", i), Time: time.Date(2026, 3, 1, 12, 0, i, 0, time.UTC), Point: events.OnPublish, Action: events.Allow,
			EventID: fmt.Sprintf("b#%d", i), Type: "batch.published", Source: "stokehold/flights", Subject: "features", Pipeline: "flights-train", Run: "run-7",
			Digest: "0123456789abcdef0123456789abcdef",
		}
		if i%5 == 0 {
			d.Action, d.Policy, d.Rule, d.Code, d.Reason = events.Deny, "gate", "better", "NotBetter", "=the challenger lost"
		}
		ts.Check(log.Append(ctx, []governance.Decision{d}))
	}
	ts.Check(log.Close(ctx))
}

// undecide is "undecide MESSAGE": does what an administrator of the server can, and
// replaces the log's stream by one without that message.
func undecide(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: undecide MESSAGE")
	}
	without, err := strconv.ParseUint(args[0], 10, 64)
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	nc, err := nats.Connect(ts.Getenv("NATS_URL"))
	ts.Check(err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	ts.Check(err)
	s, err := js.Stream(ctx, "STOKEHOLD_DECISIONS")
	ts.Check(err)
	cfg, n := s.CachedInfo().Config, s.CachedInfo().State.LastSeq
	var kept []*nats.Msg
	for i := uint64(1); i <= n; i++ {
		m, err := s.GetMsg(ctx, i)
		ts.Check(err)
		m.Header.Del(nats.MsgIdHdr)
		if i != without {
			kept = append(kept, &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data})
		}
	}
	ts.Check(js.DeleteStream(ctx, cfg.Name))
	_, err = js.CreateStream(ctx, cfg)
	ts.Check(err)
	for _, m := range kept {
		_, err := js.PublishMsg(ctx, m)
		ts.Check(err)
	}
}
