package handoff_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
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
	if n := o.arena.Stats().Leases; n != 1 {
		t.Errorf("%d leases while the batch is held", n)
	}
	if _, err := value(rec); err != nil {
		t.Error(err)
	}
	rec.Release()
	<-c.Over()
	eventually(t, "released", func() bool { return o.arena.Stats().Leases == 0 })
}

// TestArenasComeAndGo: what an owner has no more, or has too much of, is unmapped
// by its readers.
func TestArenasComeAndGo(t *testing.T) {
	before := ownFootprint()
	o := serve(t, func(c *handoff.ServerConfig) {
		c.MaxArenas, c.Heartbeat = 2, 20*time.Millisecond
	})
	c := dial(t, o.Path(), handoff.DialConfig{})
	var arenas []*shm.Arena
	var handles []shm.Handle
	for i := range int64(5) {
		a, err := shm.New(shm.Config{Bytes: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		if err := o.host.Add(a); err != nil {
			t.Fatal(err)
		}
		arenas, handles = append(arenas, a), append(handles, put(t, a, i))
	}
	for range 2 { // the second time they are granted again
		for i, h := range handles {
			l, err := c.Lease(t.Context(), h)
			if err != nil {
				t.Fatal(err)
			}
			rec, err := l.Batch()
			if err != nil {
				t.Fatal(err)
			}
			if v, err := value(rec); err != nil || v != int64(i) {
				t.Errorf("arena %d: %d, %v", i, v, err)
			}
			rec.Release()
			// An arena that is still leased cannot make room for another.
			eventually(t, "released", func() bool { return arenas[i].Stats().Leases == 0 })
		}
	}
	var held []handoff.Lease
	for _, h := range handles[:2] {
		l, err := c.Lease(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, l)
	}
	if _, err := c.Lease(t.Context(), handles[2]); !errors.Is(err, handoff.ErrQuota) {
		t.Errorf("a third arena while two are leased: %v", err)
	}
	for _, a := range arenas {
		_ = a.Close()
	}
	if held[0].Bytes() == nil {
		t.Error("bytes of a lease in a closed arena")
	}
	for _, l := range held {
		l.Release()
	}
	// What is left is the owner's own arena, mapped twice.
	eventually(t, "arenas unmapped", func() bool { return ownFootprint().Maps == before.Maps+2 })
}
