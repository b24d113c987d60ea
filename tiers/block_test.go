package tiers_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

// keys counts the catalog's keys by their first word.
func keys(t testing.TB, w *world) map[string]int {
	t.Helper()
	got := map[string]int{}
	l, err := catalogBucket(t, w).ListKeys(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for k := range l.Keys() {
		kind, _, _ := strings.Cut(k, ".")
		got[kind]++
	}
	return got
}

func catalogBucket(t testing.TB, w *world) jetstream.KeyValue {
	t.Helper()
	js, err := jetstream.New(w.conn)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(w.ctx, "stokehold_catalog")
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

// checkEntries fails unless all n batches are listed in sequence, and returns how
// many have a cold copy.
func checkEntries(t testing.TB, w *world, s *tiers.Store, n uint64) (cold int) {
	t.Helper()
	next := uint64(0)
	for info, err := range s.Entries(w.ctx, dataset, 0, tiers.End) {
		if err != nil {
			t.Fatal(err)
		}
		if info.Ref.Sequence != next || info.Ref.Dataset != dataset {
			t.Fatalf("listed %s where %d comes", info.Ref.ID(), next)
		}
		if _, ok := info.Ref.In(arrowio.Cold); ok {
			cold++
		}
		next++
	}
	if next != n {
		t.Fatalf("listed %d batches of %d", next, n)
	}
	return cold
}

// A dataset that version 1 wrote is read as it is, and its entries become blocks.
func TestOldEntriesBecomeBlocks(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	const n = 3*1024 + 300
	if err := tiers.Fill(w.ctx, s, dataset, n); err != nil {
		t.Fatal(err)
	}
	checkEntries(t, w, s, n)
	to, err := s.Compact(w.ctx, dataset)
	if err != nil || to != 3*1024 {
		t.Fatalf("%d in blocks, %v", to, err)
	}
	for name, store := range map[string]*tiers.Store{"the same store": s, "another": func() *tiers.Store { o, _ := w.store(0); return o }()} {
		checkEntries(t, w, store, n)
		for _, seq := range []uint64{0, 255, 256, 3*1024 - 1, 3 * 1024, n - 1} {
			if ref, err := store.Ref(w.ctx, dataset, seq); err != nil || ref.Sequence != seq {
				t.Errorf("%s: %d: %+v, %v", name, seq, ref, err)
			}
		}
	}
	if got := keys(t, w); got["batch"] != 300 || got["block"] != 12 {
		t.Errorf("keys: %v", got)
	}
	st, err := catalogBucket(t, w).Status(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	// What is left of removed keys is of the last two shards at most.
	if got := st.Values(); got > 2*1024+300+12+10 {
		t.Errorf("the bucket holds %d values", got)
	}
	if again, err := s.Compact(w.ctx, dataset); err != nil || again != to {
		t.Errorf("again: %d, %v", again, err)
	}
}

// Whoever changes an entry while it moves into a block changes it for good, also if
// the one who moves it dies half-way.
func TestChangesSurviveCompaction(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	const n = 4*tiers.BlockBatches + 100
	if err := tiers.Fill(w.ctx, s, dataset, n); err != nil {
		t.Fatal(err)
	}
	died := errors.New("killed")
	crashing, _ := w.store(0)
	tiers.SetFault(crashing, func(p string) error {
		if p == "block stored" { // stored, and every key is still there
			if err := tiers.Flip(w.ctx, s, dataset, []uint64{7}, "early"); err != nil {
				t.Error(err)
			}
			return died
		}
		return nil
	})
	if _, err := crashing.Compact(w.ctx, dataset); !errors.Is(err, died) {
		t.Fatalf("got %v", err)
	}
	var wg sync.WaitGroup
	for range 2 {
		one, _ := w.store(0)
		wg.Go(func() {
			if _, err := one.Compact(w.ctx, dataset); err != nil {
				t.Error(err)
			}
		})
	}
	for k := range 4 {
		one, _ := w.store(0)
		wg.Go(func() {
			for seq := uint64(k); seq < n; seq += 36 { // every ninth: each is a compare-and-set of a block
				if seq == 7 {
					continue
				}
				if err := tiers.Flip(w.ctx, one, dataset, []uint64{seq}, "moved"); err != nil {
					t.Errorf("flip %d: %v", seq, err)
					return
				}
			}
		})
	}
	wg.Wait()
	for info, err := range s.Entries(w.ctx, dataset, 0, tiers.End) {
		if err != nil {
			t.Fatal(err)
		}
		want := 1
		if seq := info.Ref.Sequence; seq%36 < 4 || seq == 7 {
			want = 2
		}
		if got := len(info.Ref.Locations); got != want {
			t.Errorf("%s has %d locations, %d expected", info.Ref.ID(), got, want)
		}
	}
	if got := keys(t, w); got["batch"] != 100 || got["block"] != 4 {
		t.Errorf("keys: %v", got)
	}
}

// A writer compacts as it goes, and its retried attempt finds what it wrote.
func TestWriterCompacts(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	wr := w.writer(s, dataset, fence("run-1", 1))
	const n = tiers.BlockBatches + 70
	for seq := range uint64(n) {
		rec := batch(seq, 1)
		if _, err := wr.WriteAt(w.ctx, seq, rec); err != nil {
			t.Fatal(err)
		}
		rec.Release()
	}
	if got := keys(t, w); got["batch"] != 70 || got["block"] != 1 {
		t.Errorf("keys: %v", got)
	}
	far, _ := w.store(0)
	again := w.writer(far, dataset, fence("run-1", 2))
	rec := batch(3, 1)
	defer rec.Release()
	if ref, err := again.WriteAt(w.ctx, 3, rec); err != nil || ref.Sequence != 3 {
		t.Errorf("a repeated write: %+v, %v", ref, err)
	}
	seq := uint64(0)
	for b, err := range far.Batches(w.ctx, dataset, 0, n, false) {
		if err != nil {
			t.Fatal(err)
		}
		same(t, b.Record, seq, 1)
		seq++
	}
	if err := again.Seal(w.ctx); err != nil {
		t.Fatal(err)
	}
	checkEntries(t, w, far, n)
}

func TestCatalogOfALaterVersionIsRefused(t *testing.T) {
	w := newWorld(t)
	w.store(0)
	if _, err := catalogBucket(t, w).PutString(w.ctx, "format", fmt.Sprintf(`{"version":%d}`, tiers.CatalogFormat+1)); err != nil {
		t.Fatal(err)
	}
	_, err := tiers.Open(w.ctx, tiers.Config{Conn: w.conn, Bus: w.bus, Host: w.host(), Warm: w.warm})
	if !errors.Is(err, tiers.ErrFormat) || !strings.Contains(err.Error(), "use a newer program") {
		t.Errorf("got %v", err)
	}
}

func TestLastAccessIsKept(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0, 1)
	read := func(s *tiers.Store) time.Time {
		for info, err := range s.Entries(w.ctx, dataset, 1, 2) {
			if err != nil {
				t.Fatal(err)
			}
			return info.Read
		}
		return time.Time{}
	}
	if got := read(s); !got.IsZero() {
		t.Errorf("read at %v before anybody did", got)
	}
	before := time.Now()
	ref, err := s.Ref(w.ctx, dataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.OpenBatch(w.ctx, ref, false)
	if err != nil {
		t.Fatal(err)
	}
	b.Release()
	if err := tiers.FlushUses(w.ctx, s); err != nil {
		t.Fatal(err)
	}
	other, _ := w.store(0)
	if got := read(other); got.Before(before.Truncate(time.Second)) || got.After(time.Now()) {
		t.Errorf("another store sees it read at %v", got)
	}
}
