package tiers_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
)

// routing has governance route all batches.
func routing(w *world, r events.Routing) {
	w.deny = func(ev *events.Event) string {
		if ev.Type() == events.TypeBatchPublished {
			ev.SetExtension(events.ExtRoute, r.String())
		}
		return ""
	}
}

// mailbox is what stands behind Config.Routed.
type mailbox struct {
	mu   sync.Mutex
	fail error
	got  []string
}

func (m *mailbox) take(_ context.Context, ref arrowio.Ref, tier arrowio.Tier) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	m.got = append(m.got, ref.ID()+" "+string(tier))
	return nil
}

func TestBatchesGoToTheTierTheyAreRoutedTo(t *testing.T) {
	for _, c := range []struct {
		tier string
		hot  bool
		got  []string
	}{
		{"hot", true, nil}, {"warm", false, nil}, {"cold", false, []string{"flights#0 cold", "flights#1 cold"}},
	} {
		t.Run(c.tier, func(t *testing.T) {
			w := newWorld(t)
			routing(w, events.Routing{Tier: c.tier})
			box := &mailbox{}
			w.set = func(cfg *tiers.Config) { cfg.Routed = box.take }
			s, arena := w.store(1 << 20)
			wr := w.writer(s, "flights", tiers.Fence{Run: "r", Stage: "s", Attempt: 1})
			w.write(wr, 0, 1)
			for seq := range uint64(2) {
				ref, err := s.Ref(w.ctx, "flights", seq)
				if err != nil {
					t.Fatal(err)
				}
				if _, hot := ref.In(arrowio.Hot); hot != c.hot {
					t.Errorf("%s is hot: %t", ref.ID(), hot)
				}
			}
			if used := arena.Stats().Used; (used > 0) != c.hot {
				t.Errorf("%d bytes of shared memory are used", used)
			}
			n := 0
			for b, err := range s.Batches(w.ctx, "flights", 0, 2, false) {
				if err != nil {
					t.Fatal(err)
				}
				if (b.Tier == arrowio.Hot) != c.hot {
					t.Errorf("read from the %s tier", b.Tier)
				}
				n++
			}
			if n != 2 || !slices.Equal(box.got, c.got) {
				t.Errorf("%d batches, moved %v, want %v", n, box.got, c.got)
			}
		})
	}
}

// A batch whose move could not be arranged is committed and told of again, by a
// process that comes after, too.
func TestMoveIsArrangedInTheEnd(t *testing.T) {
	w := newWorld(t)
	routing(w, events.Routing{Tier: "cold"})
	box := &mailbox{fail: errors.New("away")}
	w.set = func(cfg *tiers.Config) { cfg.Routed = box.take }
	s, _ := w.store(1 << 20)
	wr := w.writer(s, "flights", tiers.Fence{Run: "r", Stage: "s", Attempt: 1})
	b := batch(0, 10)
	defer b.Release()
	if _, err := wr.WriteAt(w.ctx, 0, b); !errors.Is(err, box.fail) {
		t.Fatalf("got %v", err)
	}
	box.fail = nil
	next, _ := w.store(1 << 20)
	w.write(w.writer(next, "flights", tiers.Fence{Run: "r", Stage: "s", Attempt: 2}), 1)
	if want := []string{"flights#0 cold", "flights#1 cold"}; !slices.Equal(box.got, want) {
		t.Errorf("moved %v, want %v", box.got, want)
	}
}

func TestBatchRoutedWhereNothingIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		route events.Routing
		arena int64
	}{
		"cold without a mover": {events.Routing{Tier: "cold"}, 1 << 20},
		"hot without an arena": {events.Routing{Tier: "hot"}, 0},
		"to workers":           {events.Routing{Workers: "gpu"}, 1 << 20},
		"to a region":          {events.Routing{Region: "eu", Tier: "warm"}, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			routing(w, c.route)
			s, _ := w.store(c.arena)
			wr := w.writer(s, "flights", tiers.Fence{Run: "r", Stage: "s", Attempt: 1})
			b := batch(0, 10)
			defer b.Release()
			if _, err := wr.WriteAt(w.ctx, 0, b); !errors.Is(err, tiers.ErrRoute) {
				t.Errorf("got %v", err)
			}
			if _, err := s.Ref(w.ctx, "flights", 0); !errors.Is(err, tiers.ErrNotFound) {
				t.Errorf("it is there: %v", err)
			}
			if got := w.published(events.TypeBatchPublished); len(got) > 0 {
				t.Errorf("announced %v", got)
			}
		})
	}
}
