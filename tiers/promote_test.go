package tiers_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
)

// evicted makes a dataset that is in the cold tier alone.
func evicted(t *testing.T, w *world, dataset string, n uint64) {
	t.Helper()
	w.wrap = syncing
	s, _ := w.store(0)
	wr := w.writer(s, dataset, fence("r", 1))
	for seq := range n {
		w.write(wr, seq)
		if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Sequence: seq, Evict: true}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if left := files(t, w.warm); len(left) != 0 {
		t.Fatalf("still warm: %v", left)
	}
}

// syncing makes objects whose only copy may be there.
func syncing(o tiers.ObjectStore) tiers.ObjectStore { return synced{o} }

type synced struct{ tiers.ObjectStore }

func (synced) Syncs() bool { return true }

// TestAColdReadLeavesAWarmCopy: verified, judged and announced as any move, and read
// from there the next time.
func TestAColdReadLeavesAWarmCopy(t *testing.T) {
	w := newWorld(t)
	evicted(t, w, "d", 1)
	var cold *stalling
	w.wrap = func(o tiers.ObjectStore) tiers.ObjectStore { cold = &stalling{ObjectStore: o}; return cold }
	w.set = func(c *tiers.Config) { c.Promote.WarmBytes = 1 << 20 }
	s, _ := w.store(1 << 20)
	ref, err := s.Ref(w.ctx, "d", 0)
	if err != nil {
		t.Fatal(err)
	}
	b := openSame(t, w, s, ref)
	if b.Tier != arrowio.Cold {
		t.Errorf("read from %s", b.Tier)
	}
	b.Release()
	eventually(t, "no copy is left", func() bool { return s.Stats().Promoted == 1 })
	if n := cold.gets.Load(); n != 1 {
		t.Errorf("the object was read %d times", n)
	}
	ref, err = s.Ref(w.ctx, "d", 0)
	if err != nil {
		t.Fatal(err)
	}
	loc, warm := ref.In(arrowio.Warm)
	if _, cold := ref.In(arrowio.Cold); !warm || !cold || s.Stats().PromotedBytes != loc.Bytes {
		t.Errorf("%+v, %+v", ref, s.Stats())
	}
	b = openSame(t, w, s, ref)
	if b.Tier != arrowio.Warm {
		t.Errorf("read from %s", b.Tier)
	}
	b.Release()
	asked, told := w.published(events.TypeTierMoveRequested), w.published(events.TypeTierMoved)
	count := func(m map[string]int, part string) int {
		n := 0
		for id, times := range m {
			if strings.Contains(id, part) {
				n += times
			}
		}
		return n
	}
	if count(asked, "/move/warm@") != 1 || count(told, "/moved/warm@") != 1 {
		t.Errorf("asked %v, told %v", asked, told)
	}
}

func TestNoWarmCopyIsLeft(t *testing.T) {
	for name, tc := range map[string]struct {
		bytes   int64 // of the quota
		deny    bool
		reads   int
		refused int64
	}{
		"unless asked for":   {bytes: 0, reads: 1},
		"without room":       {bytes: 1, reads: 1, refused: 1},
		"where it is denied": {bytes: 1 << 20, deny: true, reads: 1, refused: 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			evicted(t, w, "d", 2)
			asked := 0
			w.deny = func(ev *events.Event) string {
				if ev.Type() == events.TypeTierMoveRequested {
					asked++
					if tc.deny {
						return "not on this disk"
					}
				}
				return ""
			}
			w.set = func(c *tiers.Config) { c.Promote.WarmBytes = tc.bytes }
			s, _ := w.store(0)
			ref, err := s.Ref(w.ctx, "d", 0)
			if err != nil {
				t.Fatal(err)
			}
			openSame(t, w, s, ref).Release()
			eventually(t, "nothing is refused", func() bool { return s.Stats().NotPromoted == tc.refused })
			if tc.deny { // it is not asked for again at once
				next, err := s.Ref(w.ctx, "d", 1)
				if err != nil {
					t.Fatal(err)
				}
				openSame(t, w, s, next).Release()
			}
			if err := s.Close(w.ctx); err != nil {
				t.Fatal(err)
			}
			if left := files(t, w.warm); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
			if want := map[bool]int{true: 1}[tc.deny]; asked != want {
				t.Errorf("asked %d times, want %d", asked, want)
			}
		})
	}
}

// TestPromotionsStayWithinTheQuota: however many batches are read, what reads leave
// stays within it, beside what others have written.
func TestPromotionsStayWithinTheQuota(t *testing.T) {
	w := newWorld(t)
	const batches = 12
	evicted(t, w, "d", batches)
	w.set = nil
	other, _ := w.store(0)
	w.write(w.writer(other, "other", fence("r", 1)), 0)
	ref, err := other.Ref(w.ctx, "other", 0)
	if err != nil {
		t.Fatal(err)
	}
	loc, _ := ref.In(arrowio.Warm)
	quota := loc.Bytes * 5
	w.set = func(c *tiers.Config) { c.Promote.WarmBytes = quota }
	s, _ := w.store(0)
	eventually(t, "no use of the room", func() bool {
		for seq := range uint64(batches) {
			ref, err := s.Ref(w.ctx, "d", seq)
			if err != nil {
				t.Fatal(err)
			}
			openSame(t, w, s, ref).Release()
		}
		return s.Stats().Promoted >= 3 && s.Stats().NotPromoted > 0
	})
	if err := s.Close(w.ctx); err != nil {
		t.Fatal(err)
	}
	left := files(t, w.warm)
	left = slices.DeleteFunc(left, func(f string) bool { return !strings.HasSuffix(f, ".arrow") })
	if len(left) < 3 || len(left) > 5 {
		t.Errorf("%d files where 5 have room: %v", len(left), left)
	}
}

// TestAPromotionThatDiedKeepsNothing: whatever step the process died after, the batch
// can be taken to the cold tier again.
func TestAPromotionThatDiedKeepsNothing(t *testing.T) {
	for _, step := range tiers.Steps() {
		t.Run(string(step), func(t *testing.T) {
			w := newWorld(t)
			evicted(t, w, "d", 1)
			s, _ := w.store(0)
			for _, done := range tiers.Steps() {
				if _, err := s.MoveStep(w.ctx, tiers.Migration{Dataset: "d", To: arrowio.Warm}, done); err != nil {
					t.Fatal(err)
				}
				if done == step {
					break
				}
			}
			again, _ := w.store(0)
			if _, err := again.Move(w.ctx, tiers.Migration{Dataset: "d", Evict: true}, nil); err != nil {
				t.Fatal(err)
			}
			ref, err := again.Ref(w.ctx, "d", 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, warm := ref.In(arrowio.Warm); warm {
				t.Errorf("still warm: %+v", ref)
			}
			openSame(t, w, again, ref).Release()
		})
	}
}
