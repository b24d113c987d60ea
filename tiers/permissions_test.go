package tiers_test

import (
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/tiers"
)

// TestTheGateMayDoWhatAStoreDoes: with the least permissions of a process that hosts
// pipelines batches are written, read, moved, announced and removed, and the catalog
// is made smaller.
func TestTheGateMayDoWhatAStoreDoes(t *testing.T) {
	grants, err := events.Permissions(events.Access{Role: events.RoleGate})
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan error, 64)
	srv := natstest.Start(t, natstest.Users(t, fmt.Sprintf("{user: gate, password: x, %s}\n", grants.Config())))
	w := worldOn(t, srv, nats.UserInfo("gate", "x"), nats.CustomInboxPrefix(grants.Inbox),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	s, _ := w.store(1 << 20)
	wr := w.writer(s, dataset, fence("run-1", 1))
	w.write(wr, 0, 1, 2)
	if err := wr.Seal(w.ctx); err != nil {
		t.Error(err)
	}
	for b, err := range s.Batches(w.ctx, dataset, 0, tiers.End, true) {
		if err != nil {
			t.Fatal(err)
		}
		same(t, b.Record, b.Ref.Sequence, 100)
	}
	if err := s.MigrateBatch(w.ctx, dataset, 1); err != nil {
		t.Error(err)
	}
	lease, err := s.Lease(w.ctx, dataset, 0, 2, "reader")
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Release(w.ctx); err != nil {
		t.Error(err)
	}
	const old = 3 * 1024
	if err := tiers.Fill(w.ctx, s, "old", old+100); err != nil {
		t.Fatal(err)
	}
	if to, err := s.Compact(w.ctx, "old"); err != nil || to != old {
		t.Errorf("%d entries in blocks, %v", to, err)
	}
	if err := s.Collect(w.ctx, 0, true, func(tiers.Orphan) error { return nil }); err != nil {
		t.Error(err)
	}
	select {
	case err := <-refused:
		t.Error(err)
	default:
	}
}
