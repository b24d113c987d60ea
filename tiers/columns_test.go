package tiers_test

import (
	"testing"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
)

// Columns that governance takes out when a batch is published are not there for
// whoever reads it, in place or in the arena, after a restart as before.
func TestColumnsAreTakenOutOfWhatIsRead(t *testing.T) {
	w := newWorld(t)
	w.deny = func(ev *events.Event) string {
		if ev.Type() == events.TypeBatchPublished {
			ev.SetExtension(events.ExtColumns, events.Columns{Drop: []string{"place", "no such"}, Mask: []string{"id"}}.String())
		}
		return ""
	}
	s, _ := w.store(1 << 20)
	wr := w.writer(s, "flights", tiers.Fence{Run: "r", Stage: "s", Attempt: 1})
	for seq := range uint64(3) {
		b := batch(seq, 10)
		if _, err := wr.WriteAt(w.ctx, seq, b); err != nil {
			t.Fatal(err)
		}
		b.Release()
	}
	again, _ := w.store(1 << 20) // reads from the warm tier
	for name, store := range map[string]*tiers.Store{"hot": s, "warm": again} {
		for _, toArena := range []bool{false, true} {
			n := 0
			for b, err := range store.Batches(w.ctx, "flights", 0, 3, toArena) {
				if err != nil {
					t.Fatal(err)
				}
				fields := b.Record.Schema().Fields()
				if len(fields) != 2 || fields[0].Name != "id" || !fields[0].Nullable || fields[1].Name != "value" || b.Record.NumRows() != 10 {
					t.Fatalf("%s: schema %v, %d rows", name, b.Record.Schema(), b.Record.NumRows())
				}
				if b.Record.Column(0).NullN() != 10 || b.Record.Column(1).NullN() == 10 {
					t.Errorf("%s: %v", name, b.Record)
				}
				if toArena != (b.Lease != nil) {
					t.Errorf("%s: a lease is on %v", name, b.Lease)
				}
				if b.Lease != nil { // what another process would map
					lease, err := b.Lease.Arena().Hold(b.Lease.Handle(), "test")
					if err != nil {
						t.Fatal(err)
					}
					rec, err := lease.Batch()
					if err != nil {
						t.Fatal(err)
					}
					if rec.NumCols() != 2 {
						t.Errorf("%s: the slot has %v", name, rec.Schema())
					}
					rec.Release()
				}
				n++
			}
			if n != 3 {
				t.Errorf("%s: %d batches", name, n)
			}
			// Nor for whoever opens it by its ref.
			ref, err := store.Ref(w.ctx, "flights", 1)
			if err != nil {
				t.Fatal(err)
			}
			one, err := store.OpenBatch(w.ctx, ref, toArena)
			if err != nil {
				t.Fatal(err)
			}
			if one.Record.NumCols() != 2 || one.Record.Column(0).NullN() != 10 || toArena != (one.Lease != nil) {
				t.Errorf("%s: opened by its ref: %v", name, one.Record)
			}
			one.Release()
		}
	}
}

// What the attribute says must be understood, or nothing is opened.
func TestUnreadableColumnsOpenNothing(t *testing.T) {
	w := newWorld(t)
	w.deny = func(ev *events.Event) string {
		ev.SetExtension(events.ExtColumns, "keep=id")
		return ""
	}
	s, _ := w.store(0)
	b := batch(1, 3)
	defer b.Release()
	if _, err := w.writer(s, "flights", tiers.Fence{Run: "r", Stage: "s", Attempt: 1}).WriteAt(w.ctx, 0, b); err != nil {
		t.Fatal(err)
	}
	for got, err := range s.Batches(w.ctx, "flights", 0, 1, false) {
		if err == nil {
			t.Errorf("opened %v", got.Record)
		}
	}
	ref, err := s.Ref(w.ctx, "flights", 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.OpenBatch(w.ctx, ref, false); err == nil {
		t.Errorf("opened %v by its ref", got.Record)
	}
}
