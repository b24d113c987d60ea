package tiers_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
)

func TestMoveMakesAVerifiedCopy(t *testing.T) {
	w := newWorld(t)
	s, arena := w.store(1 << 20)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	graced := 0
	st, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset}, func(context.Context) error {
		graced++
		if arena.Stats().Slots != 1 {
			t.Error("the hot copy went before the grace")
		}
		return nil
	})
	if err != nil || st.Done != tiers.StepDrop || graced != 1 {
		t.Fatalf("state %+v, grace called %d times, %v", st, graced, err)
	}
	ref, err := s.Ref(w.ctx, dataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	cold, ok := ref.In(arrowio.Cold)
	if !ok || cold != st.Object || cold.Codec != "parquet" {
		t.Errorf("cold location %+v, state %+v", cold, st)
	}
	if _, ok := ref.In(arrowio.Warm); !ok {
		t.Error("the warm location is gone")
	}
	if arena.Stats().Slots != 0 {
		t.Error("the hot copy is still there after the grace")
	}
	checkMovedOnce(t, w, s)
}

// checkMovedOnce fails unless batch 0 was moved, and once only.
func checkMovedOnce(t *testing.T, w *world, s *tiers.Store) {
	t.Helper()
	if got := files(t, w.cold); len(got) != 1 || !strings.HasPrefix(got[0], "batches/sha256/") {
		t.Errorf("objects %q", got)
	}
	if got := w.published(events.TypeTierMoved); fmt.Sprint(got) != fmt.Sprint(map[string]int{dataset + "#0/moved/cold": 1}) {
		t.Errorf("tier.moved: %v", got)
	}
	js, err := jetstream.New(w.conn)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(w.ctx, "stokehold_catalog")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := kv.Keys(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if strings.HasPrefix(k, "move.") {
			t.Errorf("the migration's record %s is left", k)
		}
	}
	ref, err := s.Ref(w.ctx, dataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	colds := 0
	for _, l := range ref.Locations {
		if l.Tier == arrowio.Cold {
			colds++
		}
	}
	if colds != 1 {
		t.Errorf("locations %+v", ref.Locations)
	}
	// The object alone can serve the batch.
	ref.Locations = []arrowio.Location{st(ref, arrowio.Cold)}
	far, _ := w.store(0)
	b, err := far.OpenBatch(w.ctx, ref, false)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	same(t, b.Record, 0, 100)
	if b.Tier != arrowio.Cold {
		t.Errorf("read from %s", b.Tier)
	}
}

func st(ref arrowio.Ref, tier arrowio.Tier) arrowio.Location {
	l, _ := ref.In(tier)
	return l
}

func TestCrashAtEveryStepOfAMove(t *testing.T) {
	for _, point := range []string{"moved intent", "put", "moved copy", "moved verify", "flipped", "moved flip", "moved announce", "moved drop"} {
		t.Run(strings.ReplaceAll(point, " ", "-"), func(t *testing.T) {
			w := newWorld(t)
			s1, _ := w.store(0)
			w.write(w.writer(s1, dataset, fence("run-1", 1)), 0)
			died := errors.New("killed")
			tiers.SetFault(s1, func(p string) error {
				if p == point {
					return died
				}
				return nil
			})
			if _, err := s1.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); !errors.Is(err, died) {
				t.Fatalf("got %v", err)
			}
			// Whatever the moment, the batch can be read.
			s2, _ := w.store(0)
			ref, err := s2.Ref(w.ctx, dataset, 0)
			if err != nil {
				t.Fatal(err)
			}
			b, err := s2.OpenBatch(w.ctx, ref, false)
			if err != nil {
				t.Fatal(err)
			}
			same(t, b.Record, 0, 100)
			b.Release()
			for range 2 { // the second time has nothing to do
				if st, err := s2.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); err != nil || st.Done != tiers.StepDrop {
					t.Fatalf("again: %+v, %v", st, err)
				}
			}
			checkMovedOnce(t, w, s2)
			if got := s1.Stats().Moved + s2.Stats().Moved; got > 1 {
				t.Errorf("counted %d moves", got)
			}
		})
	}
}

func TestTwoMigratorsOneWinner(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	var wg sync.WaitGroup
	var moved int64
	var mu sync.Mutex
	for range 4 {
		one, _ := w.store(0)
		wg.Go(func() {
			for range 5 { // a step that lost a race is repeated, as an activity would be
				if _, err := one.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); err == nil {
					break
				} else if w.ctx.Err() != nil {
					t.Error(err)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			moved += one.Stats().Moved
		})
	}
	wg.Wait()
	if moved != 1 {
		t.Errorf("%d migrators flipped the catalog, want 1", moved)
	}
	checkMovedOnce(t, w, s)
}

// flippingStore damages what is put, or loses it.
type flippingStore struct {
	tiers.ObjectStore
	damage func([]byte) []byte
}

func (f *flippingStore) Put(ctx context.Context, key string, body []byte) error {
	if f.damage != nil && key != tiers.OwnerKey {
		body = f.damage(bytes.Clone(body))
	}
	return f.ObjectStore.Put(ctx, key, body)
}

func TestDamagedCopyIsNotFlippedTo(t *testing.T) {
	w := newWorld(t)
	bad := &flippingStore{damage: func(b []byte) []byte { b[len(b)/2] ^= 1; return b }}
	w.wrap = func(o tiers.ObjectStore) tiers.ObjectStore { bad.ObjectStore = o; return bad }
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); !errors.Is(err, arrowio.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
	ref, err := s.Ref(w.ctx, dataset, 0)
	if _, cold := ref.In(arrowio.Cold); err != nil || cold {
		t.Errorf("the catalog names it: %+v, %v", ref, err)
	}
	if got := w.published(events.TypeTierMoved); len(got) != 0 {
		t.Errorf("announced %v", got)
	}
	bad.damage = nil
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); err != nil {
		t.Fatalf("once the endpoint is sound: %v", err)
	}
	checkMovedOnce(t, w, s)
}

func TestDeniedMoveIsNotFlipped(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	w.deny = func(ev *events.Event) string {
		if ev.Type() == events.TypeTierMoved {
			return "stays here"
		}
		return ""
	}
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); !errors.Is(err, events.ErrDenied) {
		t.Fatalf("got %v", err)
	}
	ref, err := s.Ref(w.ctx, dataset, 0)
	if _, cold := ref.In(arrowio.Cold); err != nil || cold {
		t.Errorf("the catalog names it: %+v, %v", ref, err)
	}
	// It is over: nothing waits for it.
	if err := s.Collect(w.ctx, time.Hour, true, func(tiers.Orphan) error { return nil }); err != nil {
		t.Errorf("collect: %v", err)
	}
	w.deny = nil
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); err != nil {
		t.Fatalf("once it may: %v", err)
	}
	checkMovedOnce(t, w, s)
}

// lazyStore does not promise to sync, as the embedded gateway does not.
type lazyStore struct{ tiers.ObjectStore }

func TestMoveRefuses(t *testing.T) {
	w := newWorld(t)
	w.wrap = func(o tiers.ObjectStore) tiers.ObjectStore { return lazyStore{o} }
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Evict: true}, nil); !errors.Is(err, tiers.ErrNotDurable) {
		t.Errorf("evict to an endpoint that does not sync: %v", err)
	}
	if _, err := s.MoveStep(w.ctx, tiers.Migration{Dataset: dataset}, tiers.StepFlip); !errors.Is(err, tiers.ErrOrder) {
		t.Errorf("flip before anything else: %v", err)
	}
	if _, err := s.MoveStep(w.ctx, tiers.Migration{Dataset: dataset}, "leap"); !errors.Is(err, tiers.ErrMigration) {
		t.Errorf("unknown step: %v", err)
	}
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Sequence: 1}, nil); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("batch that does not exist: %v", err)
	}
}

func TestMigrateDataset(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(1 << 20)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0, 1, 2)
	n, err := s.MigrateDataset(w.ctx, dataset, 1, tiers.End, false, nil)
	if err != nil || n != 2 {
		t.Fatalf("%d batches, %v", n, err)
	}
	for seq := range uint64(3) {
		ref, err := s.Ref(w.ctx, dataset, seq)
		if _, cold := ref.In(arrowio.Cold); err != nil || cold != (seq > 0) {
			t.Errorf("batch %d: %+v, %v", seq, ref, err)
		}
	}
	if n, err := s.MigrateDataset(w.ctx, dataset, 0, 3, false, nil); err != nil || n != 3 || s.Stats().Moved != 3 {
		t.Errorf("again: %d batches, %v, %+v", n, err, s.Stats())
	}
}

func TestSameRecordIsBitForBit(t *testing.T) {
	one := arrow.NewSchema([]arrow.Field{{Name: "v", Type: arrow.PrimitiveTypes.Float64, Nullable: true}}, nil)
	floats := func(values []float64, valid []bool) arrow.RecordBatch {
		b := array.NewRecordBuilder(memory.DefaultAllocator, one)
		defer b.Release()
		b.Field(0).(*array.Float64Builder).AppendValues(values, valid)
		return b.NewRecordBatch()
	}
	nan2 := math.Float64frombits(math.Float64bits(math.NaN()) ^ 1)
	for _, c := range []struct {
		name string
		a, b arrow.RecordBatch
		same bool
	}{
		{"equal", floats([]float64{1, 2}, nil), floats([]float64{1, 2}, nil), true},
		{"a NaN equals itself", floats([]float64{math.NaN()}, nil), floats([]float64{math.NaN()}, nil), true},
		{"a NaN of other bits", floats([]float64{math.NaN()}, nil), floats([]float64{nan2}, nil), false},
		{"zero and minus zero", floats([]float64{0}, nil), floats([]float64{math.Copysign(0, -1)}, nil), false},
		{"what is behind a null", floats([]float64{1, 2}, []bool{true, false}), floats([]float64{1, 3}, []bool{true, false}), true},
		{"null and value", floats([]float64{1}, []bool{false}), floats([]float64{1}, nil), false},
		{"last row", floats([]float64{1, 2}, nil), floats([]float64{1, 3}, nil), false},
		{"fewer rows", floats([]float64{1, 2}, nil), floats([]float64{1}, nil), false},
		{"a slice and its copy", floats([]float64{9, 1, 2}, nil).NewSlice(1, 3), floats([]float64{1, 2}, nil), true},
		{"other schema", floats([]float64{1}, nil), batch(0, 1), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := tiers.SameRecord(c.a, c.b); (err == nil) != c.same {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestSameRecordLooksThroughDictionaries(t *testing.T) {
	typ := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int32, ValueType: arrow.BinaryTypes.String}
	one := arrow.NewSchema([]arrow.Field{{Name: "v", Type: typ, Nullable: true}}, nil)
	dict := func(words []string, index []int32) arrow.RecordBatch {
		values := array.NewStringBuilder(memory.DefaultAllocator)
		defer values.Release()
		values.AppendValues(words, nil)
		idx := array.NewInt32Builder(memory.DefaultAllocator)
		defer idx.Release()
		idx.AppendValues(index, nil)
		return array.NewRecordBatch(one, []arrow.Array{array.NewDictionaryArray(typ, idx.NewArray(), values.NewArray())}, int64(len(index)))
	}
	a := dict([]string{"x", "y"}, []int32{0, 1, 0})
	if err := tiers.SameRecord(a, dict([]string{"y", "x"}, []int32{1, 0, 1})); err != nil {
		t.Errorf("same values in another order: %v", err)
	}
	if err := tiers.SameRecord(a, dict([]string{"y", "x"}, []int32{0, 1, 0})); err == nil {
		t.Error("other values with the same indices are taken for the same")
	}
}
