package tiers_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/internal/arrowtest"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/objectdir"
)

// vectors makes rows of eight random floats and a number, without nulls.
func vectors(seed uint64, rows int) arrow.RecordBatch {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int64},
		{Name: "vector", Type: arrow.FixedSizeListOfNonNullable(8, arrow.PrimitiveTypes.Float32)},
	}, nil)
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // not a secret
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	list := b.Field(1).(*array.FixedSizeListBuilder)
	values := list.ValueBuilder().(*array.Float32Builder)
	for i := range rows {
		b.Field(0).(*array.Int64Builder).Append(int64(i))
		list.Append(true)
		for range 8 {
			values.Append(random.Float32())
		}
	}
	return b.NewRecordBatch()
}

// coldVectors writes n batches of vectors and returns refs to their cold copies alone.
func coldVectors(t *testing.T, w *world, s *tiers.Store, n uint64, rows int) (refs []arrowio.Ref) {
	t.Helper()
	first := vectors(0, 1)
	defer first.Release()
	wr, err := s.Writer(w.ctx, "vectors", first.Schema(), fence("run-1", 1))
	if err != nil {
		t.Fatal(err)
	}
	for seq := range n {
		rec := vectors(seq, rows)
		_, err := wr.WriteAt(w.ctx, seq, rec)
		rec.Release()
		if err == nil {
			err = s.MigrateBatch(w.ctx, "vectors", seq)
		}
		if err != nil {
			t.Fatal(err)
		}
		ref, err := s.Ref(w.ctx, "vectors", seq)
		if err != nil {
			t.Fatal(err)
		}
		loc, _ := ref.In(arrowio.Cold)
		ref.Locations = []arrowio.Location{loc}
		refs = append(refs, ref)
	}
	return refs
}

// withoutWarm removes the warm copies of all batches.
func withoutWarm(t *testing.T, w *world) {
	t.Helper()
	for _, path := range files(t, w.warm) {
		if err := os.Remove(filepath.Join(w.warm, path)); err != nil {
			t.Fatal(err)
		}
	}
}

func isVectors(t *testing.T, got arrow.RecordBatch, seed uint64, rows int) {
	t.Helper()
	want := vectors(seed, rows)
	defer want.Release()
	if err := tiers.SameRecord(want, got); err != nil {
		t.Errorf("batch %d: %v", seed, err)
	}
}

// TestColdBatchesAreDecodedInPlace: what comes from the cold tier for the arena is
// decoded there, so that none of it is copied, and each batch has memory of its own
// although that of the objects is used again.
func TestColdBatchesAreDecodedInPlace(t *testing.T) {
	const rows = 5000
	w := newWorld(t)
	s, _ := w.store(0)
	refs := coldVectors(t, w, s, 4, rows)
	reader, arena := w.store(2 << 20)
	var held []*tiers.Batch
	for _, ref := range refs {
		b, err := reader.OpenBatch(w.ctx, ref, true)
		if err != nil {
			t.Fatal(err)
		}
		if b.Tier != arrowio.Cold || b.Lease == nil {
			t.Errorf("%s: from %s, leased: %t", ref.ID(), b.Tier, b.Lease != nil)
		}
		held = append(held, b)
	}
	for i, b := range held {
		isVectors(t, b.Record, uint64(i), rows)
	}
	st := arena.Stats()
	if st.Built != 4 || st.Builds != 0 || st.CopiedBytes != 0 {
		t.Errorf("%d of 4 batches were decoded in place, %d builds are held, %d bytes were copied", st.Built, st.Builds, st.CopiedBytes)
	}
	again, err := reader.OpenBatch(w.ctx, refs[0], true)
	if err != nil || again.Tier != arrowio.Hot {
		t.Fatalf("again from %v, %v", again, err)
	}
	again.Release()
	for _, b := range held {
		b.Release()
	}
}

// TestColdBatchesAsArrow go into the arena as they come, and to the heap without one.
func TestColdBatchesAsArrow(t *testing.T) {
	const rows = 5000
	w := newWorld(t)
	w.set = func(c *tiers.Config) { c.ColdCodec = tiers.CodecArrow }
	s, _ := w.store(0)
	refs := coldVectors(t, w, s, 3, rows)
	for _, ref := range refs {
		loc, _ := ref.In(arrowio.Cold)
		if loc.Codec != tiers.CodecArrow || !strings.HasSuffix(loc.URI, loc.SHA256+".arrow") {
			t.Errorf("%+v", loc)
		}
	}
	w.set = nil // it is read whatever this process writes
	reader, arena := w.store(2 << 20)
	for _, toArena := range []bool{false, true} {
		var held []*tiers.Batch
		for _, ref := range refs {
			b, err := reader.OpenBatch(w.ctx, ref, toArena)
			if err != nil {
				t.Fatal(err)
			}
			if b.Tier != arrowio.Cold || toArena != (b.Lease != nil) {
				t.Errorf("%s: from %s, leased: %t", ref.ID(), b.Tier, b.Lease != nil)
			}
			held = append(held, b)
		}
		for i, b := range held {
			isVectors(t, b.Record, uint64(i), rows)
			b.Release()
		}
	}
	if st := arena.Stats(); st.CopiedBytes != 0 || st.Loans != 0 {
		t.Errorf("%d bytes were copied, %d loans are held", st.CopiedBytes, st.Loans)
	}
	// Nothing of them is taken for an orphan.
	if err := s.Collect(w.ctx, 0, true, func(o tiers.Orphan) error { return fmt.Errorf("%+v", o) }); err != nil {
		t.Error(err)
	}
	// What was damaged at rest is told, and leaves nothing behind.
	loc, _ := refs[2].In(arrowio.Cold)
	flipFile(t, loc)
	withoutWarm(t, w)
	other, empty := w.store(2 << 20)
	for _, toArena := range []bool{false, true} {
		if _, err := other.OpenBatch(w.ctx, refs[2], toArena); !errors.Is(err, arrowio.ErrCorrupt) {
			t.Errorf("damaged: %v", err)
		}
	}
	if st := empty.Stats(); st.Used != 0 {
		t.Errorf("%d bytes of the arena are taken", st.Used)
	}
}

// TestEveryTypeMigrates: a batch with a column of each type goes to the cold tier and
// comes back, nested ones and those that Parquet lacks included.
func TestEveryTypeMigrates(t *testing.T) {
	types := append(arrowtest.Leaves(), arrowtest.Canonical()...)
	for _, dt := range []arrow.DataType{arrow.PrimitiveTypes.Float32, arrow.BinaryTypes.String, arrow.BinaryTypes.BinaryView} {
		types = append(types, arrowtest.Nests(dt)...)
	}
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(3, 4))) //nolint:gosec // not a secret
	w := newWorld(t)
	s, _ := w.store(4 << 20)
	codecs := map[string]int{}
	// Many columns at once, so that it does not take a dataset for each.
	for at := 0; at < len(types); at += 8 {
		var fields []arrow.Field
		for i, dt := range types[at:min(at+8, len(types))] {
			fields = append(fields, arrow.Field{Name: strconv.Itoa(i), Type: dt, Nullable: true})
		}
		rec := g.Batch(arrow.NewSchema(fields, nil), 30)
		name := fmt.Sprintf("types-%d", at)
		wr, err := s.Writer(w.ctx, name, rec.Schema(), fence("run-1", 1))
		if err == nil {
			_, err = wr.WriteAt(w.ctx, 0, rec)
		}
		if err == nil {
			err = s.MigrateBatch(w.ctx, name, 0)
		}
		if err != nil {
			t.Fatalf("%s: %v", rec.Schema(), err)
		}
		ref, err := s.Ref(w.ctx, name, 0)
		if err != nil {
			t.Fatal(err)
		}
		loc, _ := ref.In(arrowio.Cold)
		codecs[loc.Codec]++
		ref.Locations = []arrowio.Location{loc}
		for _, toArena := range []bool{false, true} {
			reader, _ := w.store(1 << 20)
			b, err := reader.OpenBatch(w.ctx, ref, toArena)
			if err != nil {
				t.Fatalf("%s: %v", rec.Schema(), err)
			}
			if err := tiers.SameRecord(rec, b.Record); err != nil {
				t.Errorf("%s: %v", rec.Schema(), err)
			}
			b.Release()
		}
		rec.Release()
	}
	if codecs[tiers.CodecParquet] == 0 || codecs[tiers.CodecArrow] == 0 {
		t.Errorf("written as %v, want some as each", codecs)
	}
}

// TestColdBatchesThatParquetCannotHold are stored as Arrow.
func TestColdBatchesThatParquetCannotHold(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(1 << 20)
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(1, 2))) //nolint:gosec // not a secret
	number, text := arrow.Field{Name: "n", Type: arrow.PrimitiveTypes.Int64}, arrow.Field{Name: "s", Type: arrow.BinaryTypes.String}
	codes := []arrow.UnionTypeCode{0, 1}
	for name, dt := range map[string]arrow.DataType{
		"dense":   arrow.DenseUnionOf([]arrow.Field{number, text}, codes),
		"sparse":  arrow.SparseUnionOf([]arrow.Field{number, text}, codes),
		"seconds": arrow.FixedWidthTypes.Timestamp_s, // those of the filler overflow as milliseconds
	} {
		rec := g.Batch(arrow.NewSchema([]arrow.Field{{Name: "v", Type: dt}}, nil), 50)
		wr, err := s.Writer(w.ctx, name, rec.Schema(), fence("run-1", 1))
		if err == nil {
			_, err = wr.WriteAt(w.ctx, 0, rec)
		}
		if err == nil {
			err = s.MigrateBatch(w.ctx, name, 0)
		}
		if err != nil {
			t.Fatalf("%s: %v", dt, err)
		}
		ref, err := s.Ref(w.ctx, name, 0)
		if err != nil {
			t.Fatal(err)
		}
		loc, _ := ref.In(arrowio.Cold)
		ref.Locations = []arrowio.Location{loc}
		reader, _ := w.store(1 << 20)
		b, err := reader.OpenBatch(w.ctx, ref, true)
		if err != nil {
			t.Fatalf("%s: %v", dt, err)
		}
		if err := tiers.SameRecord(rec, b.Record); err != nil || loc.Codec != tiers.CodecArrow {
			t.Errorf("%s: as %s, %v", dt, loc.Codec, err)
		}
		b.Release()
		rec.Release()
	}
}

func TestColdCodecIsChecked(t *testing.T) {
	w := newWorld(t)
	_, err := tiers.Open(w.ctx, tiers.Config{Conn: w.conn, Bus: w.bus, Host: w.host(), Warm: w.warm, ColdCodec: "orc"})
	if err == nil || !strings.Contains(err.Error(), `"orc"`) || !strings.Contains(err.Error(), "parquet or arrow-ipc") {
		t.Errorf("got %v", err)
	}
}

// TestColdBatchesOfAnyType: what cannot be decoded in place is copied there.
func TestColdBatchesOfAnyType(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	refs := coldOnly(t, w, s, "d", 2) // with nulls and strings
	reader, arena := w.store(1 << 20)
	for _, ref := range refs {
		b, err := reader.OpenBatch(w.ctx, ref, true)
		if err != nil {
			t.Fatal(err)
		}
		same(t, b.Record, ref.Sequence, 100)
		if b.Lease == nil {
			t.Error("not in the arena")
		}
		b.Release()
	}
	if st := arena.Stats(); st.Built != 2 || st.Builds != 0 {
		t.Errorf("%d of 2 batches were decoded there, %d builds are held", st.Built, st.Builds)
	}
}

// TestColdBatchAndNoRoom: without room a batch that is read ahead stays on the heap,
// and one that no arena could hold is an error.
func TestColdBatchAndNoRoom(t *testing.T) {
	const rows = 5000
	w := newWorld(t)
	s, _ := w.store(0)
	refs := coldVectors(t, w, s, 2, rows)
	reader, arena := w.store(256 << 10) // holds one
	first, err := reader.OpenBatch(w.ctx, refs[0], true)
	if err != nil {
		t.Fatal(err)
	}
	ahead, err := reader.OpenAhead(w.ctx, refs[1])
	if err != nil || ahead.Lease != nil {
		t.Fatalf("%+v, %v, want one that is not leased", ahead, err)
	}
	isVectors(t, ahead.Record, 1, rows)
	first.Release()
	second, err := reader.Bring(w.ctx, ahead)
	if err != nil {
		t.Fatal(err)
	}
	isVectors(t, second.Record, 1, rows)
	second.Release()
	if st := arena.Stats(); st.Builds != 0 {
		t.Errorf("%d builds are held", st.Builds)
	}
	tiny, _ := w.store(64 << 10)
	if _, err := tiny.OpenBatch(w.ctx, refs[0], true); !errors.Is(err, shm.ErrTooLarge) {
		t.Errorf("into a small arena: %v, want ErrTooLarge", err)
	}
}

// flipping damages what it reads: the first times on its way, or each time.
type flipping struct {
	*objectdir.Store
	fills, gets atomic.Int64 // damaged reads to come
}

func (f *flipping) Fill(ctx context.Context, key string, dst []byte, sum hash.Hash) (int, error) {
	n, err := f.Store.Fill(ctx, key, dst, nil)
	if n > 0 && f.fills.Add(-1) >= 0 {
		dst[n/2] ^= 1
	}
	if sum != nil {
		_, _ = sum.Write(dst[:n])
	}
	return n, err
}

func (f *flipping) Get(ctx context.Context, key string) ([]byte, error) {
	b, err := f.Store.Get(ctx, key)
	if len(b) > 0 && f.gets.Add(-1) >= 0 {
		b = bytes.Clone(b)
		b[len(b)/2] ^= 1
	}
	return b, err
}

// TestColdBatchDamagedOnItsWay is got once more; one that is damaged each time is
// ErrCorrupt, and nothing of it stays.
func TestColdBatchDamagedOnItsWay(t *testing.T) {
	const rows = 100
	for _, c := range []struct {
		name        string
		fills, gets int64
		whole       bool
	}{{"once", 1, 0, true}, {"each time", 9, 9, false}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.store(0)
			refs := coldVectors(t, w, s, 1, rows)
			withoutWarm(t, w)
			var cold *flipping
			w.wrap = func(o tiers.ObjectStore) tiers.ObjectStore {
				cold = &flipping{Store: o.(*objectdir.Store)}
				return cold
			}
			reader, arena := w.store(1 << 20)
			cold.fills.Store(c.fills)
			cold.gets.Store(c.gets)
			b, err := reader.OpenBatch(w.ctx, refs[0], true)
			if !c.whole {
				if !errors.Is(err, arrowio.ErrCorrupt) {
					t.Fatalf("%v, want ErrCorrupt", err)
				}
				if st := arena.Stats(); st.Used != 0 {
					t.Errorf("%d bytes of the arena are taken", st.Used)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			isVectors(t, b.Record, 0, rows)
			b.Release()
		})
	}
}
