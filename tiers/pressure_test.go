package tiers_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

// Rows of a batch of almost a third of crampedArena, of which it then holds three.
const (
	crampedRows  = 14_000
	crampedArena = 1 << 20
)

// cramped is a store whose arena holds three of a dataset's batches, none of them
// there, and refs to them.
func cramped(t *testing.T, w *world, batches uint64) (*tiers.Store, []arrowio.Ref) {
	t.Helper()
	first, _ := w.store(0)
	wr := w.writer(first, "d", fence("r", 1))
	var refs []arrowio.Ref
	for seq := range batches {
		rec := batch(seq, crampedRows)
		ref, err := wr.WriteAt(w.ctx, seq, rec)
		rec.Release()
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	if err := wr.Seal(w.ctx); err != nil {
		t.Fatal(err)
	}
	s, _ := w.store(crampedArena)
	return s, refs
}

// TestWaitingForRoom: a reader that waits gets the memory of whoever gives back a
// batch, although that stays a hot copy, which nobody else is about to push out.
func TestWaitingForRoom(t *testing.T) {
	w := newWorld(t)
	s, refs := cramped(t, w, 5)
	var held []*tiers.Batch
	for _, ref := range refs[:3] {
		b, err := s.OpenBatch(w.ctx, ref, true)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, b)
	}
	soon, cancel := context.WithTimeout(w.ctx, 50*time.Millisecond)
	defer cancel()
	if b, err := s.OpenBatch(soon, refs[3], true); err == nil {
		b.Release()
		t.Fatal("there is room for a fourth")
	}
	got := make(chan *tiers.Batch, 1)
	go func() {
		b, err := s.OpenBatch(w.ctx, refs[3], true)
		if err != nil {
			t.Error(err)
		}
		got <- b
	}()
	// Ahead nothing waits: what finds no room is opened where it is.
	b, err := s.OpenAhead(w.ctx, refs[4])
	if err != nil {
		t.Fatal(err)
	}
	if b.Lease != nil {
		t.Error("a fifth batch is in the arena")
	}
	same(t, b.Record, 4, crampedRows)
	for _, h := range held {
		h.Release()
	}
	fourth := <-got
	if fourth == nil || fourth.Lease == nil {
		t.Fatalf("%+v", fourth)
	}
	same(t, fourth.Record, 3, crampedRows)
	in, err := s.Bring(w.ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	if in.Lease == nil {
		t.Error("what was brought is not in the arena")
	}
	same(t, in.Record, 4, crampedRows)
	in.Release()
	fourth.Release()
}

// TestPressure: whoever could do without memory is asked for it when a reader wants
// it, and not before.
func TestPressure(t *testing.T) {
	w := newWorld(t)
	s, refs := cramped(t, w, 4)
	var spare []*tiers.Batch
	for _, ref := range refs[:3] {
		b, err := s.OpenAhead(w.ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		if b.Lease == nil {
			t.Fatal("there is room, and it is not used")
		}
		spare = append(spare, b)
	}
	asked := 0
	stop := s.OnPressure(func() bool {
		asked++
		if len(spare) == 0 {
			return false
		}
		spare[0].Release()
		spare = spare[1:]
		return true
	})
	ahead, err := s.OpenAhead(w.ctx, refs[3])
	if err != nil {
		t.Fatal(err)
	}
	if asked != 0 || ahead.Lease != nil {
		t.Errorf("what is read ahead asked %d times", asked)
	}
	ahead.Release()
	wanted, err := s.OpenBatch(w.ctx, refs[3], true)
	if err != nil {
		t.Fatal(err)
	}
	if asked == 0 || len(spare) == 0 || wanted.Lease == nil { // of two small holes one may not do
		t.Errorf("asked %d times, %d are left", asked, len(spare))
	}
	wanted.Release()
	stop()
	for _, b := range spare {
		b.Release()
	}
}

// TestLoopsInASmallArena: loops that would each read ahead more than there is go on
// side by side, in whatever order their consumers come.
func TestLoopsInASmallArena(t *testing.T) {
	w := newWorld(t)
	const batches = 12
	s, _ := cramped(t, w, batches)
	var running atomic.Int64
	done := make(chan error, 2)
	for range 2 {
		go func() {
			done <- func() error {
				r := s.Reading("d", 0, tiers.End)
				seen := uint64(0)
				for b, err := range prefetch.Batches(w.ctx, r, r.Refs(w.ctx), prefetch.Config{ToArena: true, Parallel: 8, Tail: true}, nil) {
					if err != nil {
						return err
					}
					if b.Lease == nil || b.Ref.Sequence != seen {
						t.Errorf("batch %d in place of %d, leased %v", b.Ref.Sequence, seen, b.Lease != nil)
					}
					same(t, b.Record, seen, crampedRows)
					if n := running.Add(1); n > 2 {
						t.Errorf("%d at once", n)
					}
					running.Add(-1)
					seen++
				}
				if seen != batches {
					t.Errorf("%d of %d batches", seen, batches)
				}
				return nil
			}()
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// TestReadingTakesColumnsOut: reading in two halves shows no more than in one.
func TestReadingTakesColumnsOut(t *testing.T) {
	w := newWorld(t)
	w.deny = func(ev *events.Event) string {
		if ev.Type() == events.TypeBatchPublished {
			ev.SetExtension(events.ExtColumns, events.Columns{Drop: []string{"place"}}.String())
		}
		return ""
	}
	s, _ := w.store(1 << 20)
	wr := w.writer(s, "d", fence("r", 1))
	w.write(wr, 0, 1)
	if err := wr.Finish(w.ctx); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*tiers.Reading{
		"range": s.Reading("d", 0, 2), "part": s.ReadingAppended("d", "r", "features"),
	} {
		n := uint64(0)
		check := func(how string, b *tiers.Batch, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			if b.Record.NumCols() != 2 || b.Ref.Sequence != n {
				t.Errorf("%s, %s: batch %d has %v", name, how, b.Ref.Sequence, b.Record.Schema())
			}
		}
		for ref, err := range r.Refs(w.ctx) {
			if err != nil {
				t.Fatal(err)
			}
			b, err := r.OpenAhead(w.ctx, ref)
			check("ahead", b, err)
			b.Release()
			// Again, when it is no longer among those just named.
			b, err = r.OpenBatch(w.ctx, ref, false)
			check("again", b, err)
			b, err = r.Bring(w.ctx, b)
			check("brought", b, err)
			b.Release()
			n++
		}
		if n != 2 {
			t.Errorf("%s: %d batches", name, n)
		}
	}
}
