package tiers_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/tiers"
)

// peerWorld is a store that wrote batches 0 and 1, its own arena emptied of them
// (it has none), so that peers come next.
func peerWorld(t *testing.T, peers arrowio.Resolver, timeout time.Duration) (*world, *tiers.Store) {
	w := newWorld(t)
	w.set = func(c *tiers.Config) { c.Peers, c.PeerTimeout = peers, timeout }
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0, 1)
	return w, s
}

func open(w *world, s *tiers.Store, seq uint64) *tiers.Batch {
	w.tb.Helper()
	ref, err := s.Ref(w.ctx, dataset, seq)
	if err != nil {
		w.tb.Fatal(err)
	}
	b, err := s.OpenBatch(w.ctx, ref, false)
	if err != nil {
		w.tb.Fatal(err)
	}
	same(w.tb, b.Record, seq, 100)
	return b
}

var errPeerDown = errors.New("peer is down")

func TestPeersAreAskedBeforeTheWarmTier(t *testing.T) {
	asked := 0
	peer := arrowio.ResolverFunc(func(_ context.Context, ref arrowio.Ref) (arrow.RecordBatch, error) {
		asked++
		return batch(ref.Sequence, 100), nil
	})
	w, s := peerWorld(t, peer, 0)
	b := open(w, s, 1)
	defer b.Release()
	if st := s.Stats(); asked != 1 || !b.Peer || st.Peer != 1 || st.Warm != 0 || st.PeerErrors != 0 {
		t.Errorf("asked %d times, peer %t, %+v", asked, b.Peer, st)
	}
	for b, err := range s.Batches(w.ctx, dataset, 0, 2, false) {
		if err != nil || !b.Peer {
			t.Fatal(b, err)
		}
	}
	if st := s.Stats(); st.Peer != 3 {
		t.Errorf("batches read in sequence are not counted: %+v", st)
	}
}

func TestOwnArenaComesBeforePeers(t *testing.T) {
	w := newWorld(t)
	w.set = func(c *tiers.Config) {
		c.Peers = arrowio.ResolverFunc(func(context.Context, arrowio.Ref) (arrow.RecordBatch, error) {
			t.Error("a peer was asked for a batch that is hot here")
			return nil, errPeerDown
		})
	}
	s, _ := w.store(1 << 20)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	open(w, s, 0).Release()
}

func TestPeerBatchIsBroughtIntoTheArena(t *testing.T) {
	w := newWorld(t)
	writer, _ := w.store(0)
	w.write(w.writer(writer, dataset, fence("run-1", 1)), 0)
	w.set = func(c *tiers.Config) {
		c.Peers = arrowio.ResolverFunc(func(_ context.Context, ref arrowio.Ref) (arrow.RecordBatch, error) {
			return batch(ref.Sequence, 100), nil
		})
	}
	s, arena := w.store(1 << 20)
	ref, err := s.Ref(w.ctx, dataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 { // the second time it is here
		b, err := s.OpenBatch(w.ctx, ref, true)
		if err != nil {
			t.Fatal(err)
		}
		if b.Lease == nil || b.Peer != (i == 0) || arrowio.BytesOutside(b.Record, b.Lease.Bytes()) != 0 {
			t.Errorf("round %d: peer %t, lease %v", i, b.Peer, b.Lease)
		}
		b.Release()
	}
	if arena.Stats().Used == 0 {
		t.Error("nothing was kept")
	}
}

func TestFailingPeersDoNotFailAReadThatAnotherTierServes(t *testing.T) {
	hang := func(ctx context.Context, _ arrowio.Ref) (arrow.RecordBatch, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for _, c := range []struct {
		name    string
		peer    arrowio.ResolverFunc
		timeout time.Duration
		errors  int64
	}{
		{"does not have it", func(context.Context, arrowio.Ref) (arrow.RecordBatch, error) { return nil, arrowio.ErrGone }, 0, 0},
		{"is down", func(context.Context, arrowio.Ref) (arrow.RecordBatch, error) { return nil, errPeerDown }, 0, 1},
		{"has a damaged copy", func(context.Context, arrowio.Ref) (arrow.RecordBatch, error) {
			return nil, fmt.Errorf("%w: made so", arrowio.ErrCorrupt)
		}, 0, 1},
		{"gives another batch", func(context.Context, arrowio.Ref) (arrow.RecordBatch, error) { return batch(7, 99), nil }, 0, 1},
		{"hangs", hang, time.Millisecond, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, s := peerWorld(t, c.peer, c.timeout)
			b := open(w, s, 1)
			defer b.Release()
			if st := s.Stats(); b.Peer || b.Tier != arrowio.Warm || st.Peer != 0 || st.PeerErrors != c.errors {
				t.Errorf("peer %t, tier %s, %+v", b.Peer, b.Tier, st)
			}
		})
	}
}

func TestEachPeerHasItsOwnTime(t *testing.T) {
	hang := arrowio.ResolverFunc(func(ctx context.Context, _ arrowio.Ref) (arrow.RecordBatch, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	good := arrowio.ResolverFunc(func(ctx context.Context, ref arrowio.Ref) (arrow.RecordBatch, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return batch(ref.Sequence, 100), nil
	})
	w, s := peerWorld(t, arrowio.Resolvers{hang, good}, 20*time.Millisecond)
	b := open(w, s, 0)
	defer b.Release()
	if st := s.Stats(); !b.Peer || st.PeerErrors != 1 {
		t.Errorf("peer %t, %+v", b.Peer, st)
	}
}

func TestReadersContextEndsTheWaitForAPeer(t *testing.T) {
	asked := make(chan struct{})
	w, s := peerWorld(t, arrowio.ResolverFunc(func(ctx context.Context, _ arrowio.Ref) (arrow.RecordBatch, error) {
		close(asked)
		<-ctx.Done()
		return nil, ctx.Err()
	}), time.Hour)
	ref, err := s.Ref(w.ctx, dataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	go func() { <-asked; cancel() }()
	if b, err := s.OpenBatch(ctx, ref, false); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", b, err)
	}
	if st := s.Stats(); st.PeerErrors != 0 || st.Warm != 0 {
		t.Errorf("%+v", st)
	}
}

func TestErrorNamesThePeersReasonWhenNobodyCanServe(t *testing.T) {
	w, s := peerWorld(t, arrowio.ResolverFunc(func(context.Context, arrowio.Ref) (arrow.RecordBatch, error) {
		return nil, errPeerDown
	}), 0)
	ref, err := s.Ref(w.ctx, dataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	ref.Locations = []arrowio.Location{{Tier: arrowio.Hot, URI: "grpc+tcp://127.0.0.1:1", Codec: "arrow-ipc"}}
	ref.Sequence = 1 << 40 // the catalog has no better ref
	_, err = s.OpenBatch(w.ctx, ref, false)
	if !errors.Is(err, tiers.ErrNoTierHas) || !errors.Is(err, errPeerDown) {
		t.Error(err)
	}
}

func TestLocalGivesOutTheBytesOfTheCatalogsChecksum(t *testing.T) {
	w := newWorld(t)
	w.set = func(c *tiers.Config) { c.Advertise = "grpc+tls://gpu-7:8815" }
	a, _ := w.store(1 << 20)
	w.write(w.writer(a, dataset, fence("run-1", 1)), 0)
	ref, err := a.Ref(w.ctx, dataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	warm, ok := ref.In(arrowio.Warm)
	if last := ref.Locations[len(ref.Locations)-1]; !ok || last.Tier != arrowio.Hot || last.URI != "grpc+tls://gpu-7:8815" || last.SHA256 != warm.SHA256 {
		t.Errorf("%+v", ref.Locations)
	}
	cold, _ := w.store(0) // another process over the same files
	// A third frames the batch anew in its arena, which is not what it gives out.
	third, arena := w.store(1 << 20)
	b, err := third.OpenBatch(w.ctx, ref, true)
	if err != nil {
		t.Fatal(err)
	}
	b.Release()
	for name, s := range map[string]*tiers.Store{"hot": a, "warm": cold, "brought": third} {
		frame, digest, release, err := s.Local().Frame(w.ctx, dataset, 0)
		if err != nil {
			t.Fatal(name, err)
		}
		sum := sha256.Sum256(frame)
		if digest != warm.SHA256 || hex.EncodeToString(sum[:]) != digest || (name == "brought") && arena.Contains(frame) {
			t.Errorf("%s: %s, the catalog says %s", name, digest, warm.SHA256)
		}
		release()
		rec, err := s.Local().Resolve(w.ctx, arrowio.Ref{Dataset: dataset})
		if err != nil {
			t.Fatal(name, err)
		}
		same(t, rec, 0, 100)
		rec.Release()
	}
	for _, c := range []struct {
		dataset string
		seq     uint64
	}{{dataset, 1}, {"another", 0}, {"", 0}} {
		if _, _, _, err := a.Local().Frame(w.ctx, c.dataset, c.seq); !errors.Is(err, arrowio.ErrGone) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := cold.Close(w.ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := cold.Local().Frame(w.ctx, dataset, 0); !errors.Is(err, tiers.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	host := &shm.Host{}
	_, err = tiers.Open(w.ctx, tiers.Config{Conn: w.conn, Bus: w.bus, Host: host, Warm: w.warm, Advertise: "gpu-7:8815", PeerTimeout: -1})
	if !errors.Is(err, arrowio.ErrURI) || !strings.Contains(err.Error(), "PeerTimeout") {
		t.Errorf("bad configuration: %v", err)
	}
}
