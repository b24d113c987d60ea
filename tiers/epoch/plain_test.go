package epoch_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/epoch"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

// asked is a peer that has nothing, and notes which batches are being opened.
type asked struct {
	mu   sync.Mutex
	seqs []uint64
}

func (a *asked) Resolve(_ context.Context, ref arrowio.Ref) (arrow.RecordBatch, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seqs = append(a.seqs, ref.Sequence)
	return nil, arrowio.ErrGone
}

func (a *asked) all() []uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.seqs)
}

// A program that has a Store and nothing else reads ahead in the epoch's order, while
// its loop body works, and into an arena that is smaller than what it may read ahead.
func TestReadsAheadOnAPlainStore(t *testing.T) {
	const batches = 12
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn := natstest.Start(t).Connect()
	bus, err := events.Open(ctx, events.Config{Conn: conn, Judge: events.AllowAll()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bus.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	warm := filepath.Join(t.TempDir(), "warm")
	plain := func(peers arrowio.Resolver, arenaBytes int64) *tiers.Store {
		cfg := tiers.Config{Conn: conn, Bus: bus, Host: &shm.Host{}, Warm: warm, Peers: peers}
		if arenaBytes > 0 {
			if cfg.Arena, err = shm.New(shm.Config{Bytes: arenaBytes}); err != nil {
				t.Fatal(err)
			}
		}
		s, err := tiers.Open(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(s.Close(context.Background()), cfg.Host.Close()); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	w := &world{store: plain(nil, 0)}
	if w.writer, err = w.store.Writer(ctx, dataset, schema, tiers.Fence{Run: "r", Stage: "s", Attempt: 1}); err != nil {
		t.Fatal(err)
	}
	for range batches {
		w.append(t, 2000)
	}
	for name, c := range map[string]struct {
		arena  int64
		ahead  prefetch.Config
		atOnce int // opened while the body has the first
	}{
		"by default":              {0, prefetch.Config{}, 2},
		"one at a time":           {0, prefetch.Config{MaxBatches: 1}, 2},
		"into a small arena":      {1 << 20, prefetch.Config{ToArena: true}, 2},
		"without room for a loop": {1 << 20, prefetch.Config{ToArena: true, Budget: prefetch.NewBudget(0)}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			peer := &asked{}
			s := plain(peer, c.arena)
			order := epoch.Order{Kind: epoch.Shuffled, Seed: 7}
			d, err := epoch.Open(ctx, s, dataset, epoch.Config{Order: order, Prefetch: c.ahead})
			if err != nil {
				t.Fatal(err)
			}
			n := uint64(0)
			for b, err := range d.Epoch(ctx, 0) {
				if err != nil {
					t.Fatal(err)
				}
				if got, want := rowsOf(t, b)[0], int64(2000*order.At(0, batches, n)); got != want {
					t.Fatalf("batch %d begins with row %d, want %d", n, got, want)
				}
				for n == 0 && len(peer.all()) < c.atOnce {
					select {
					case <-time.After(time.Millisecond):
					case <-ctx.Done():
						t.Fatalf("while the first is worked on %v are opened", peer.all())
					}
				}
				n++
			}
			if got := d.Stats(); n != batches || got.Batches != batches || got.Prefetch.Hits+got.Prefetch.Misses != batches || got.CopiedBytes != 0 {
				t.Errorf("%d batches: %+v", n, got)
			}
			opened := peer.all()
			slices.Sort(opened)
			if opened = slices.Compact(opened); len(opened) != batches {
				t.Errorf("opened %v", opened)
			}
		})
	}
}
