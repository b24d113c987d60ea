package tiers_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/tiers"
)

// leaseKeys are the keys of leases in the catalog, and the marks of removed ones.
func leaseKeys(t *testing.T, w *world) uint64 {
	t.Helper()
	st, err := catalogBucket(t, w).Status(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	return st.Values()
}

// announced waits until another process sees what a reader has announced as ok wants.
func announced(t *testing.T, w *world, s *tiers.Store, what string, ok func([]tiers.Leased) bool) (seen []tiers.Leased) {
	t.Helper()
	eventually(t, what, func() bool {
		var err error
		if seen, err = s.Leases(w.ctx, dataset); err != nil {
			t.Fatal(err)
		}
		return ok(seen)
	})
	return seen
}

// Where a reader is goes with its lease: others see it move on, what it comes to next
// cannot be removed, and what it has passed can.
func TestReadersAnnounceWhereTheyAre(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	reading, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0, 1, 2, 3)
	before := leaseKeys(t, w)
	tiers.SetLeaseTTL(reading, 90*time.Millisecond) // it beats each 30 ms
	a := reading.Announce(dataset, "run-2/train", tiers.Reads{At: 0, To: tiers.End})
	defer a.End()
	first := announced(t, w, s, "it is announced", func(l []tiers.Leased) bool { return len(l) == 1 })[0]
	if first.Owner != "run-2/train" || first.Reads == nil || first.Reads.At != 0 || first.Reads.To != tiers.End || !first.Holds(0) || !first.Holds(3) {
		t.Errorf("%+v, %+v", first, first.Reads)
	}
	m := tiers.Migration{Dataset: dataset, Sequence: 1, Evict: true}
	if _, err := s.Move(w.ctx, m, nil); !errors.Is(err, tiers.ErrLeased) || !strings.Contains(err.Error(), "run-2/train") {
		t.Errorf("batch 1, which it comes to next: %v", err)
	}
	a.Done(2)
	moved := announced(t, w, s, "it has moved on", func(l []tiers.Leased) bool { return len(l) == 1 && l[0].Reads.At == 2 })[0]
	if _, ok := moved.Reads.Until(1); ok || moved.Holds(1) || !moved.Holds(2) || moved.Reads.PerSecond <= 0 {
		t.Errorf("%+v, %+v", moved, moved.Reads)
	}
	if _, err := s.MoveStep(w.ctx, m, tiers.StepDrop); err != nil {
		t.Errorf("batch 1, which it has passed: %v", err)
	}
	a.End()
	a.End()
	ended := func(l []tiers.Leased) bool { return len(l) == 0 }
	announced(t, w, s, "it ends", ended)
	after := leaseKeys(t, w)
	// The next ones have the same key, so that marks of removed ones do not add up.
	for range 3 {
		a := reading.Announce(dataset, "run-3/train", tiers.Reads{At: 0, To: tiers.End})
		announced(t, w, s, "the next is announced", func(l []tiers.Leased) bool { return len(l) == 1 && l[0].Owner == "run-3/train" })
		a.End()
		announced(t, w, s, "the next ends", ended)
		eventually(t, "its key is free", func() bool { return tiers.Readers(reading) == 0 })
	}
	if now := leaseKeys(t, w); now > after || after > before+2 { // a mark of it, and one of the move
		t.Errorf("%d keys and marks, %d after the first, %d before", now, after, before)
	}
}

// A loop that is over soon writes nothing, and neither does one that makes no sense.
func TestShortLoopsAnnounceNothing(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	before := leaseKeys(t, w)
	for range 100 {
		s.Announce(dataset, "", tiers.Reads{To: 5}).End()
	}
	for name, reads := range map[string]tiers.Reads{"none": {At: 5, To: 5}, "order": {To: 5, Order: json.RawMessage(strings.Repeat("x", 2000))}} {
		if a := s.Announce(dataset, "", reads); a != nil {
			t.Errorf("%s: it is announced", name)
		}
	}
	if a := s.Announce("", "", tiers.Reads{To: 5}); a != nil {
		t.Error("a dataset without a name is announced")
	}
	if err := s.Close(w.ctx); err != nil {
		t.Fatal(err)
	}
	if a := s.Announce(dataset, "", tiers.Reads{To: 5}); a != nil {
		t.Error("a closed store announces")
	}
	if after := leaseKeys(t, w); after != before {
		t.Errorf("%d keys, %d before", after, before)
	}
}

// What a reader announced ends with its store, and by itself if its process dies.
func TestAnnouncementsEndWithTheirHolder(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	tiers.SetLeaseTTL(s, 90*time.Millisecond)
	closing, _ := w.store(0)
	tiers.SetLeaseTTL(closing, 90*time.Millisecond)
	closing.Announce(dataset, "closing", tiers.Reads{To: 5})
	announced(t, w, s, "it is announced", func(l []tiers.Leased) bool { return len(l) == 1 })
	if err := closing.Close(w.ctx); err != nil {
		t.Fatal(err)
	}
	announced(t, w, s, "it ended with its store", func(l []tiers.Leased) bool { return len(l) == 0 })

	// This one's process loses the server, as if it had died.
	conn := w.srv.Connect()
	mine := w.conn
	w.conn = conn
	dying, _ := w.store(0)
	w.conn = mine
	tiers.SetLeaseTTL(dying, 90*time.Millisecond)
	defer dying.Announce(dataset, "dying", tiers.Reads{To: 5}).End()
	announced(t, w, s, "it is announced", func(l []tiers.Leased) bool { return len(l) == 1 })
	conn.Close()
	announced(t, w, s, "it ends by itself", func(l []tiers.Leased) bool { return len(l) == 0 })
	if _, err := s.Move(context.WithoutCancel(w.ctx), tiers.Migration{Dataset: dataset, Evict: true}, nil); err != nil {
		t.Error(err)
	}
}
