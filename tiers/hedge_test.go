package tiers_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

// stalling is an object store some of whose answers do not come.
type stalling struct {
	tiers.ObjectStore
	gets, stopped atomic.Int64

	mu    sync.Mutex
	stall int           // of the next Gets, how many never answer
	delay time.Duration // of each
}

func (s *stalling) Get(ctx context.Context, key string) ([]byte, error) {
	s.gets.Add(1)
	s.mu.Lock()
	stall, delay := s.stall > 0, s.delay
	s.stall = max(s.stall-1, 0)
	s.mu.Unlock()
	if stall {
		<-ctx.Done()
		s.stopped.Add(1)
		return nil, ctx.Err()
	}
	select {
	case <-time.After(delay): // the latency that is under test
	case <-ctx.Done():
		s.stopped.Add(1)
		return nil, ctx.Err()
	}
	return s.ObjectStore.Get(ctx, key)
}

func (s *stalling) set(stall int, delay time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stall, s.delay = stall, delay
}

// coldOnly makes batches of which the refs name the object alone.
func coldOnly(t *testing.T, w *world, s *tiers.Store, dataset string, n uint64) []arrowio.Ref {
	t.Helper()
	wr := w.writer(s, dataset, fence("r", 1))
	var refs []arrowio.Ref
	for seq := range n {
		w.write(wr, seq)
		if err := s.MigrateBatch(w.ctx, dataset, seq); err != nil {
			t.Fatal(err)
		}
		ref, err := s.Ref(w.ctx, dataset, seq)
		if err != nil {
			t.Fatal(err)
		}
		loc, _ := ref.In(arrowio.Cold)
		ref.Locations = []arrowio.Location{loc}
		refs = append(refs, ref)
	}
	return refs
}

func openSame(t *testing.T, w *world, s *tiers.Store, ref arrowio.Ref) *tiers.Batch {
	t.Helper()
	b, err := s.OpenBatch(w.ctx, ref, false)
	if err != nil {
		t.Fatal(err)
	}
	same(t, b.Record, ref.Sequence, 100)
	return b
}

// TestAStalledObjectIsAskedForOnceMore: a read of the cold tier that does not come is
// overtaken by a second one, and ended.
func TestAStalledObjectIsAskedForOnceMore(t *testing.T) {
	w := newWorld(t)
	var cold *stalling
	w.wrap = func(o tiers.ObjectStore) tiers.ObjectStore { cold = &stalling{ObjectStore: o}; return cold }
	w.set = func(c *tiers.Config) { c.HedgeAfter = 20 * time.Millisecond }
	s, _ := w.store(0)
	refs := coldOnly(t, w, s, "d", 20)
	reader, _ := w.store(1 << 20)
	for _, ref := range refs {
		openSame(t, w, reader, ref).Release()
	}
	before := reader.Stats()
	for _, toArena := range []bool{false, true} {
		cold.set(1, 0)
		b, err := reader.OpenBatch(w.ctx, refs[3], toArena)
		if err != nil {
			t.Fatal(err)
		}
		same(t, b.Record, 3, 100)
		b.Release()
	}
	if st := reader.Stats(); st.Hedges < before.Hedges+2 || st.HedgesWon < before.HedgesWon+2 || st.Cold != before.Cold+2 {
		t.Errorf("%+v, before %+v", st, before)
	}
	if err := reader.Close(w.ctx); err != nil { // waits for whoever was overtaken
		t.Fatal(err)
	}
	if n := cold.stopped.Load(); n != 2 {
		t.Errorf("%d of 2 stalled reads were ended", n)
	}
}

// TestASlowSourceGetsFewHedges: a source that is slow for all is not asked twice for
// all.
func TestASlowSourceGetsFewHedges(t *testing.T) {
	w := newWorld(t)
	var cold *stalling
	w.wrap = func(o tiers.ObjectStore) tiers.ObjectStore { cold = &stalling{ObjectStore: o}; return cold }
	w.set = func(c *tiers.Config) { c.HedgeAfter = time.Millisecond }
	s, _ := w.store(0)
	refs := coldOnly(t, w, s, "d", 4)
	reader, _ := w.store(0)
	const reads = 60
	for i := range 20 {
		openSame(t, w, reader, refs[i%4]).Release()
	}
	gets := cold.gets.Load()
	for i := range reads {
		cold.set(0, time.Duration(10+i)*time.Millisecond) // ever slower: each is later than most before
		openSame(t, w, reader, refs[i%4]).Release()
	}
	if st := reader.Stats(); st.Hedges == 0 || st.Hedges > 8+(reads+20)/20 || cold.gets.Load()-gets > reads+st.Hedges {
		t.Errorf("%d reads, %d requests, %+v", reads, cold.gets.Load()-gets, st)
	}
}

// TestHedgesOff: without hedging a late answer is waited for.
func TestHedgesOff(t *testing.T) {
	w := newWorld(t)
	var cold *stalling
	w.wrap = func(o tiers.ObjectStore) tiers.ObjectStore { cold = &stalling{ObjectStore: o}; return cold }
	w.set = func(c *tiers.Config) { c.HedgeAfter = -1 }
	s, _ := w.store(0)
	refs := coldOnly(t, w, s, "d", 4)
	for i := range 20 {
		openSame(t, w, s, refs[i%4]).Release()
	}
	cold.set(0, 60*time.Millisecond)
	openSame(t, w, s, refs[0]).Release()
	if st := s.Stats(); st.Hedges != 0 {
		t.Errorf("%+v", st)
	}
}

// late is another host that has a batch, and answers when it is let.
type late struct {
	hold  chan struct{}
	quick atomic.Bool
	mem   *memory.CheckedAllocator
	lent  atomic.Int64
}

func newLate() *late {
	return &late{hold: make(chan struct{}), mem: memory.NewCheckedAllocator(memory.DefaultAllocator)}
}

func (l *late) Resolve(_ context.Context, ref arrowio.Ref) (arrow.RecordBatch, error) {
	if !l.quick.Load() {
		select {
		case <-l.hold: // too late for whoever asked
		case <-time.After(10 * time.Second):
			return nil, errors.New("never let")
		}
	}
	l.lent.Add(1)
	return batchIn(l.mem, ref.Sequence, 100), nil
}

// TestALatePeerIsOvertaken: what it brings after all is given back, whichever side of
// the warm tier it is asked on.
func TestALatePeerIsOvertaken(t *testing.T) {
	for name, far := range map[string]bool{"this host": false, "another host": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.store(0)
			refs := coldOnly(t, w, s, "d", 2)
			peer := newLate()
			w.set = func(c *tiers.Config) {
				c.HedgeAfter = 10 * time.Millisecond
				if c.Peers = peer; far {
					c.Peers, c.Far = nil, peer
				}
			}
			reader, _ := w.store(0)
			peer.quick.Store(true)
			for range 20 {
				openSame(t, w, reader, refs[0]).Release()
			}
			peer.quick.Store(false)
			b := openSame(t, w, reader, refs[1])
			if b.Peer || b.Tier != arrowio.Cold {
				t.Errorf("read from %s, peer %v", b.Tier, b.Peer)
			}
			b.Release()
			close(peer.hold)
			if err := reader.Close(w.ctx); err != nil {
				t.Fatal(err)
			}
			if peer.lent.Load() != 21 {
				t.Errorf("%d batches lent", peer.lent.Load())
			}
			peer.mem.AssertSize(t, 0)
			if st := reader.Stats(); st.HedgesWon != 1 || st.Hedges != 1 || st.Cold != 1 || st.PeerErrors != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestWarmComesBeforeAnotherHost: the order is this host's memory, its disk, others.
func TestWarmComesBeforeAnotherHost(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, "d", fence("r", 1)), 0)
	ref, err := s.Ref(w.ctx, "d", 0)
	if err != nil {
		t.Fatal(err)
	}
	far := newLate()
	far.quick.Store(true)
	w.set = func(c *tiers.Config) { c.Far = far }
	reader, _ := w.store(0)
	b := openSame(t, w, reader, ref)
	if b.Peer || b.Tier != arrowio.Warm {
		t.Errorf("read from %s, peer %v", b.Tier, b.Peer)
	}
	b.Release()
	w.warm = t.TempDir() // a host that has no file of it
	reader, _ = w.store(0)
	b = openSame(t, w, reader, ref)
	if !b.Peer {
		t.Errorf("read from %s", b.Tier)
	}
	b.Release()
}
