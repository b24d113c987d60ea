package handoff_test

import (
	"context"
	"errors"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

func statusOf(t *testing.T, path string) handoff.Status {
	t.Helper()
	c, err := handoff.Dial(t.Context(), path, handoff.DialConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestLeaseAcrossConnection(t *testing.T) {
	o := serve(t, nil)
	h := put(t, o.arena, 7)
	c := dial(t, o.Path(), handoff.DialConfig{})
	l, err := c.Lease(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	if n := o.arena.Stats().Leases; n != 1 {
		t.Fatalf("%d leases, want 1", n)
	}
	rec, err := l.Batch()
	if err != nil {
		t.Fatal(err)
	}
	if v, err := value(rec); err != nil || v != 7 {
		t.Errorf("read %d, %v", v, err)
	}
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Arenas) != 1 || st.Arenas[0].Leases != 1 || len(st.Peers) != 1 || st.Peers[0].Leases != 1 || st.Peers[0].Bytes != h.Length {
		t.Errorf("status: %+v", st)
	}
	rec.Release()
	eventually(t, "released", func() bool { return o.arena.Stats().Leases == 0 })
	if err := o.arena.Drop(h); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Lease(t.Context(), h); !errors.Is(err, arrowio.ErrGone) {
		t.Errorf("lease of a dropped slot: %v", err)
	}
}

// Batches that a client holds outlive its Close and the server's wish to close.
func TestHeldBatchesOutliveClose(t *testing.T) {
	o := serve(t, nil)
	h := put(t, o.arena, 7)
	c := dial(t, o.Path(), handoff.DialConfig{})
	l, err := c.Lease(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Lease(t.Context(), h); !errors.Is(err, arrowio.ErrGone) {
		t.Errorf("lease after Close: %v", err)
	}
	rec, err := l.Batch()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = rec.Column(0).(*array.Int64)
	if n := o.arena.Stats().Leases; n != 1 {
		t.Errorf("%d leases while the batch is held", n)
	}
	if _, err := value(rec); err != nil {
		t.Error(err)
	}
	rec.Release()
	<-c.Over()
	eventually(t, "released", func() bool { return o.arena.Stats().Leases == 0 })
	_ = ctx
}
