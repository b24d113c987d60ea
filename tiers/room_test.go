package tiers_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
)

// A copy that replaces nothing is over when it is announced: neither eviction, nor
// the way back, nor collecting waits for it; and each move is an event of its own.
func TestCopiesKeepNothingWaiting(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(1 << 20)
	w.write(w.writer(s, dataset, tiers.Fence{Run: "r", Stage: "s", Attempt: 1}), 0)
	collect := func() {
		t.Helper()
		if err := s.Collect(w.ctx, time.Hour, true, func(tiers.Orphan) error { return nil }); err != nil {
			t.Errorf("collect: %v", err)
		}
	}
	move := func(want string, m tiers.Migration) {
		t.Helper()
		m.Dataset = dataset
		err := s.CopyBatch(w.ctx, m)
		if err == nil && m.Evict {
			err = s.DropBatch(w.ctx, m)
		}
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		if at := tiersOf(mustRef(t, w, s, 0)); at != want {
			t.Errorf("%+v: it is in %s, want %s", m, at, want)
		}
		collect()
	}
	move("warm+cold", tiers.Migration{})
	move("warm+cold", tiers.Migration{})
	move("cold", tiers.Migration{Evict: true, Reason: "p/r"})
	if n, err := s.WarmBytes(w.ctx); n != 0 || err != nil {
		t.Errorf("%d bytes are left in the warm directory, %v", n, err)
	}
	move("warm+cold", tiers.Migration{To: arrowio.Warm})
	move("cold", tiers.Migration{Evict: true, Reason: "p/r"})
	if got := w.published(events.TypeTierMoved); len(got) != 4 {
		t.Errorf("moves %v, want 4", got)
	}
}

// What the process holds is measured, and given up oldest first, but for what is read.
func TestRoom(t *testing.T) {
	w := newWorld(t)
	s, arena := w.store(1 << 20)
	w.write(w.writer(s, dataset, tiers.Fence{Run: "r", Stage: "s", Attempt: 1}), 0, 1, 2)
	var sum int64
	for seq := range uint64(3) {
		l, ok := mustRef(t, w, s, seq).In(arrowio.Warm)
		if !ok || !s.HasWarm(mustRef(t, w, s, seq), l) {
			t.Errorf("batch %d has no warm copy here", seq)
		}
		sum += l.Bytes
		l.SHA256 = l.SHA256[1:] + "0"
		if s.HasWarm(mustRef(t, w, s, seq), l) {
			t.Errorf("another copy of batch %d is said to be here", seq)
		}
	}
	if n, err := s.WarmBytes(w.ctx); n != sum || err != nil {
		t.Errorf("%d bytes in the warm directory, %v, want %d", n, err, sum)
	}
	used, size := s.ArenaBytes()
	if size != arena.Size() || used <= 0 {
		t.Fatalf("%d of %d bytes of the arena", used, size)
	}
	b, err := s.OpenBatch(w.ctx, mustRef(t, w, s, 0), true)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.TrimHot(0); n != 2 {
		t.Errorf("%d hot copies went, want the 2 that nobody reads", n)
	}
	b.Release()
	if n := s.TrimHot(0); n != 1 {
		t.Errorf("%d went once nobody reads it, want 1", n)
	}
	if used, _ := s.ArenaBytes(); used != 0 {
		t.Errorf("%d bytes are still taken", used)
	}

	l, err := s.Lease(w.ctx, dataset, 1, 3, "trainer")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Leases(w.ctx, dataset); err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], tiers.Leased{From: 1, To: 3, Owner: "trainer"}) {
		t.Errorf("leases %+v, %v", got, err)
	}
	if err := l.Release(w.ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Leases(w.ctx, dataset); err != nil || len(got) != 0 {
		t.Errorf("leases %+v, %v", got, err)
	}
}
