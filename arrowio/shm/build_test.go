package shm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/float16"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/internal/pythontest"
)

// manySchema has a column of each family of types that a builder can make
// without a dictionary.
func manySchema() *arrow.Schema {
	nullable := func(name string, t arrow.DataType) arrow.Field {
		return arrow.Field{Name: name, Type: t, Nullable: true}
	}
	md := arrow.NewMetadata([]string{"unit"}, []string{"kg"})
	return arrow.NewSchema([]arrow.Field{
		nullable("i64", arrow.PrimitiveTypes.Int64),
		nullable("f16", arrow.FixedWidthTypes.Float16),
		nullable("f64", arrow.PrimitiveTypes.Float64),
		nullable("bool", arrow.FixedWidthTypes.Boolean),
		nullable("text", arrow.BinaryTypes.String),
		nullable("large", arrow.BinaryTypes.LargeBinary),
		nullable("view", arrow.BinaryTypes.StringView),
		nullable("list", arrow.ListOf(arrow.PrimitiveTypes.Int32)),
		nullable("fixed", arrow.FixedSizeListOf(3, arrow.PrimitiveTypes.Float32)),
		nullable("struct", arrow.StructOf(nullable("a", arrow.PrimitiveTypes.Int8), nullable("b", arrow.BinaryTypes.String))),
		nullable("map", arrow.MapOf(arrow.BinaryTypes.String, arrow.PrimitiveTypes.Int16)),
		nullable("decimal", &arrow.Decimal128Type{Precision: 20, Scale: 2}),
		nullable("none", arrow.Null),
	}, &md)
}

// fill appends rows to a builder of manySchema, every fifth all null.
func fill(b *array.RecordBuilder, rows int) {
	for i := range rows {
		if i%5 == 4 {
			for j := range b.Fields() {
				b.Field(j).AppendNull()
			}
			continue
		}
		text := strings.Repeat(fmt.Sprint("värde ", i%13), i%5)
		b.Field(0).(*array.Int64Builder).Append(int64(i))
		b.Field(1).(*array.Float16Builder).Append(float16.New(float32(i % 100)))
		b.Field(2).(*array.Float64Builder).Append(float64(i) / 3)
		b.Field(3).(*array.BooleanBuilder).Append(i%2 == 0)
		b.Field(4).(*array.StringBuilder).Append(text)
		b.Field(5).(*array.BinaryBuilder).Append([]byte(text))
		b.Field(6).(*array.StringViewBuilder).Append(text)
		list := b.Field(7).(*array.ListBuilder)
		list.Append(true)
		for k := range i % 4 {
			list.ValueBuilder().(*array.Int32Builder).Append(int32(k))
		}
		fixed := b.Field(8).(*array.FixedSizeListBuilder)
		fixed.Append(true)
		for k := range 3 {
			fixed.ValueBuilder().(*array.Float32Builder).Append(float32(k))
		}
		s := b.Field(9).(*array.StructBuilder)
		s.Append(true)
		s.FieldBuilder(0).(*array.Int8Builder).Append(int8(i))
		s.FieldBuilder(1).(*array.StringBuilder).Append(text)
		m := b.Field(10).(*array.MapBuilder)
		m.Append(true)
		m.KeyBuilder().(*array.StringBuilder).Append("k")
		m.ItemBuilder().(*array.Int16Builder).Append(int16(i))
		b.Field(11).(*array.Decimal128Builder).Append(decimal128.FromI64(int64(i)))
		b.Field(12).AppendNull()
	}
}

// many builds rows of manySchema.
func many(mem memory.Allocator, rows int) arrow.RecordBatch {
	b := array.NewRecordBuilder(mem, manySchema())
	defer b.Release()
	fill(b, rows)
	return b.NewRecordBatch()
}

// plain is the same batch on the Go heap.
func plain(tb testing.TB, rows int) arrow.RecordBatch {
	tb.Helper()
	rec := many(memory.NewGoAllocator(), rows)
	tb.Cleanup(rec.Release)
	return rec
}

func build(tb testing.TB, a *shm.Arena, schema *arrow.Schema, bytes int64) *shm.Build {
	tb.Helper()
	b, err := a.Build(tb.Context(), schema, bytes)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// published leases a slot and checks that its frame is in place, aligned, and
// equal to want for this package's reader and for the library's.
func published(tb testing.TB, a *shm.Arena, h shm.Handle, want arrow.RecordBatch) []byte {
	tb.Helper()
	lease, err := a.Lease(h, "reader")
	if err != nil {
		tb.Fatal(err)
	}
	frame := bytes.Clone(lease.Bytes())
	got, err := lease.Batch()
	if err != nil {
		tb.Fatal(err)
	}
	defer got.Release()
	if !array.RecordEqual(want, got) || !got.Schema().Equal(want.Schema()) {
		tb.Errorf("got %v\nwant %v", got, want)
	}
	if n := arrowio.BytesOutside(got, lease.Bytes()); n != 0 {
		tb.Errorf("%d bytes were copied by reading", n)
	}
	for _, col := range got.Columns() {
		for _, b := range col.Data().Buffers() {
			if b != nil && b.Len() > 0 && uintptr(unsafe.Pointer(unsafe.SliceData(b.Bytes())))%shm.Alignment != 0 {
				tb.Errorf("a buffer of %s is not aligned", col.DataType())
			}
		}
	}
	r, err := ipc.NewReader(bytes.NewReader(frame))
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Release()
	if !r.Next() || !array.RecordEqual(want, r.RecordBatch()) {
		tb.Fatal("the library's reader sees another batch:", r.Err())
	}
	if r.Next() || r.Err() != nil {
		tb.Error("the stream does not end:", r.Err())
	}
	return frame
}

func idle(tb testing.TB, a *shm.Arena) {
	tb.Helper()
	if s := a.Stats(); s.Used != 0 || s.Slots != 0 || s.Builds != 0 || s.Loans != 0 || s.Leases != 0 || s.LargestFree != a.Size() {
		tb.Errorf("left behind: %+v", s)
	}
}

func TestBuildInPlace(t *testing.T) {
	for _, rows := range []int{0, 1, 7, 1000, 5000} {
		t.Run(fmt.Sprint(rows, " rows"), func(t *testing.T) {
			a := arena(t, 8<<20)
			b := build(t, a, manySchema(), 4<<20)
			rec := many(b.Allocator(), rows)
			var copies arrowio.Copies
			h, copied, err := b.Publish(t.Context(), rec, &copies)
			if err != nil {
				t.Fatal(err)
			}
			if copied != 0 || copies.Bytes() != 0 || copies.Batches() != 0 || b.Outside() != 0 || a.Stats().CopiedBytes != 0 {
				t.Errorf("copied %d bytes, counted %d of %d batches, %d outside", copied, copies.Bytes(), copies.Batches(), b.Outside())
			}
			if _, _, err := b.Publish(t.Context(), rec, nil); !errors.Is(err, shm.ErrEnded) {
				t.Error("published twice:", err)
			}
			b.Cancel()
			if s := a.Stats(); s.Built != 1 || s.Used > 3<<20 {
				t.Errorf("%+v", s)
			}
			published(t, a, h, plain(t, rows))
			if err := a.Drop(h); err != nil {
				t.Fatal(err)
			}
			if rows > 0 && a.Stats().Slots != 1 {
				t.Error("the slot is free while the batch is held")
			}
			if !array.RecordEqual(rec, plain(t, rows)) {
				t.Error("the batch changed")
			}
			rec.Release()
			idle(t, a)
		})
	}
}

// TestBuildLeavesNothingOfOthers holds that a frame's gaps do not show what the
// memory held before.
func TestBuildLeavesNothingOfOthers(t *testing.T) {
	a := arena(t, 1<<20)
	dirty := loan(t, a, a.Size())
	for i := range dirty.Bytes() {
		dirty.Bytes()[i] = 0xA5
	}
	dirty.Cancel()
	b := build(t, a, manySchema(), a.Size()/2)
	rec := many(b.Allocator(), 300)
	defer rec.Release()
	h, _, err := b.Publish(t.Context(), rec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if frame := published(t, a, h, plain(t, 300)); bytes.Contains(frame, []byte{0xA5, 0xA5, 0xA5, 0xA5}) {
		t.Error("the frame holds old bytes")
	}
}

func TestPublishCopiesWhatLiesElsewhere(t *testing.T) {
	rec := plain(t, 500)
	body, err := arrowio.BodyBytes(rec)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("a foreign batch", func(t *testing.T) {
		a := arena(t, 4<<20)
		b := build(t, a, rec.Schema(), 1<<20)
		var copies arrowio.Copies
		h, copied, err := b.Publish(t.Context(), rec, &copies)
		if err != nil || copied != body || copies.Bytes() != body || copies.Batches() != 1 {
			t.Fatal(copied, copies.Bytes(), body, err)
		}
		published(t, a, h, rec)
		if s := a.Stats(); s.CopiedBytes != uint64(body) || s.Builds != 0 {
			t.Errorf("%+v", s)
		}
		if err := a.Drop(h); err != nil {
			t.Fatal(err)
		}
		idle(t, a)
	})
	t.Run("a foreign batch larger than the slot", func(t *testing.T) {
		a := arena(t, 4<<20)
		b := build(t, a, rec.Schema(), 128)
		var copies arrowio.Copies
		h, copied, err := b.Publish(t.Context(), rec, &copies)
		if err != nil || copied != body || copies.Bytes() != body {
			t.Fatal(copied, copies.Bytes(), body, err)
		}
		published(t, a, h, rec)
		if err := a.Drop(h); err != nil {
			t.Fatal(err)
		}
		idle(t, a)
	})
	t.Run("what did not fit", func(t *testing.T) {
		a := arena(t, 4<<20)
		b := build(t, a, rec.Schema(), 40<<10)
		mine := many(b.Allocator(), 500)
		if b.Outside() == 0 {
			t.Fatal("all fitted: the test shows nothing")
		}
		h, copied, err := b.Publish(t.Context(), mine, nil)
		if err != nil || copied <= 0 || copied > body {
			t.Fatal(copied, body, err)
		}
		published(t, a, h, rec)
		mine.Release()
		if err := a.Drop(h); err != nil {
			t.Fatal(err)
		}
		idle(t, a)
	})
	t.Run("one foreign column", func(t *testing.T) {
		a := arena(t, 4<<20)
		schema := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int64}, {Name: "y", Type: arrow.PrimitiveTypes.Int64}}, nil)
		b := build(t, a, schema, 1<<20)
		column := func(mem memory.Allocator) arrow.Array {
			c := array.NewInt64Builder(mem)
			defer c.Release()
			for i := range 1000 {
				c.Append(int64(i))
			}
			return c.NewArray()
		}
		here, there := column(b.Allocator()), column(memory.NewGoAllocator())
		mixed := array.NewRecordBatch(schema, []arrow.Array{here, there}, 1000)
		here.Release()
		h, copied, err := b.Publish(t.Context(), mixed, nil)
		if err != nil || copied != 8000 {
			t.Error(copied, err)
		}
		published(t, a, h, mixed)
		mixed.Release()
		if err := a.Drop(h); err != nil {
			t.Fatal(err)
		}
		idle(t, a)
	})
	t.Run("slices", func(t *testing.T) {
		a := arena(t, 4<<20)
		b := build(t, a, rec.Schema(), 1<<20)
		mine := many(b.Allocator(), 500)
		cut := mine.NewSlice(13, 401)
		want := rec.NewSlice(13, 401)
		defer want.Release()
		h, copied, err := b.Publish(t.Context(), cut, nil)
		if err != nil || copied <= 0 {
			t.Error(copied, err)
		}
		published(t, a, h, want)
		cut.Release()
		mine.Release()
		if err := a.Drop(h); err != nil {
			t.Fatal(err)
		}
		idle(t, a)
	})
}

func TestBuildWithDictionaries(t *testing.T) {
	dict := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int32, ValueType: arrow.BinaryTypes.String}
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "a", Type: dict, Nullable: true}, {Name: "n", Type: arrow.PrimitiveTypes.Int64}, {Name: "b", Type: dict},
	}, nil)
	coded := func(mem memory.Allocator, words int) arrow.RecordBatch {
		b := array.NewRecordBuilder(mem, schema)
		defer b.Release()
		for i := range 2000 {
			if err := b.Field(0).(*array.BinaryDictionaryBuilder).AppendString(fmt.Sprint("word ", i%words)); err != nil {
				t.Fatal(err)
			}
			b.Field(1).(*array.Int64Builder).Append(int64(i))
			if err := b.Field(2).(*array.BinaryDictionaryBuilder).AppendString(fmt.Sprint("other ", i%words)); err != nil {
				t.Fatal(err)
			}
		}
		return b.NewRecordBatch()
	}
	for _, words := range []int{3, 40, 2000} { // the last have no room in the head
		t.Run(fmt.Sprint(words, " words"), func(t *testing.T) {
			a := arena(t, 4<<20)
			b := build(t, a, schema, 256<<10)
			rec := coded(b.Allocator(), words)
			h, copied, err := b.Publish(t.Context(), rec, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := coded(memory.NewGoAllocator(), words)
			defer want.Release()
			published(t, a, h, want)
			body, err := arrowio.BodyBytes(want)
			if err != nil {
				t.Fatal(err)
			}
			dictionaries := body - 2000*8 - 2*8000
			if words < 2000 && copied > dictionaries || copied > body {
				t.Errorf("copied %d of a body of %d with dictionaries of %d", copied, body, dictionaries)
			}
			rec.Release()
			if err := a.Drop(h); err != nil {
				t.Fatal(err)
			}
			idle(t, a)
		})
	}
}

func TestBuildLimits(t *testing.T) {
	a := arena(t, 64*page)
	schema := manySchema()
	var limit *shm.LimitError
	if _, err := a.Build(t.Context(), schema, a.Size()+1); !errors.Is(err, shm.ErrTooLarge) || !errors.As(err, &limit) || limit.Limit != a.Size() {
		t.Error(err)
	}
	if _, err := a.Build(t.Context(), schema, 0); err == nil {
		t.Error("a build of nothing")
	}
	all := loan(t, a, a.Size())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Build(ctx, schema, 1000); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	all.Cancel()

	// Memory that outlives a cancelled build stays its own.
	b := build(t, a, schema, 10*page)
	mem := b.Allocator()
	kept := mem.Allocate(page)
	b.Cancel()
	b.Cancel()
	if s := a.Stats(); s.Builds != 1 || s.Slots != 1 {
		t.Errorf("%+v", s)
	}
	if late := mem.Allocate(64); a.Contains(late) {
		t.Error("allocated from a build that has ended")
	}
	kept = mem.Reallocate(2*page, kept)
	if a.Contains(kept) {
		t.Error("grew in a build that has ended")
	}
	idle(t, a)

	b = build(t, a, schema, 10*page)
	mem = b.Allocator()
	first := mem.Allocate(100)
	grown := mem.Reallocate(5*page, first)
	if !a.Contains(grown) || &grown[0] != &first[0] {
		t.Error("the last buffer did not grow in place")
	}
	second := mem.Allocate(100)
	moved := mem.Reallocate(6*page, grown)
	if a.Contains(moved) || len(moved) != 6*page || b.Outside() != 6*page {
		t.Error("more than there is was given")
	}
	mem.Free(second)
	mem.Free(moved)
	mem.Free(nil)
	mem.Free([]byte{1})
	b.Cancel()
	idle(t, a)
}

// A batch that does not fit in its build, and could not fit beside it either, is
// refused at once: its own memory is not given back before it is released.
func TestPublishWithoutRoomBesideTheBuild(t *testing.T) {
	s := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int64}}, nil)
	a := arena(t, 16*page)
	b := build(t, a, s, 8*page)
	// The first array takes the slot, the second comes to lie on the Go heap.
	col := func() arrow.Array {
		xs := array.NewInt64Builder(b.Allocator())
		defer xs.Release()
		xs.Resize(6 * page / 8)
		xs.AppendValues(make([]int64, 6*page/8), nil)
		return xs.NewArray()
	}
	first, second := col(), col()
	batch := array.NewRecordBatch(arrow.NewSchema([]arrow.Field{s.Field(0), {Name: "y", Type: arrow.PrimitiveTypes.Int64}}, nil), []arrow.Array{first, second}, 6*page/8)
	first.Release()
	second.Release()
	if _, _, err := b.Publish(t.Context(), batch, nil); !errors.Is(err, shm.ErrTooLarge) {
		t.Errorf("%v", err)
	}
	batch.Release()
	idle(t, a)
}

func TestBuildOutlivesItsArena(t *testing.T) {
	a := arena(t, 1<<20)
	b := build(t, a, manySchema(), 256<<10)
	rec := many(b.Allocator(), 100)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	h, _, err := b.Publish(t.Context(), rec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Lease(h, "x"); !errors.Is(err, arrowio.ErrGone) {
		t.Error(err)
	}
	if !array.RecordEqual(rec, plain(t, 100)) {
		t.Error("unmapped under the batch")
	}
	rec.Release()
	if a.Stats().Arenas != 0 {
		t.Error("the arena did not end")
	}
}

// TestAnyArrowReadsABuiltFrame gives frames with gaps, foreign buffers and
// dictionaries to pyarrow, which reads them in place and validates all values.
func TestAnyArrowReadsABuiltFrame(t *testing.T) {
	python := pythontest.Interpreter(t)
	dir := t.TempDir()
	a := arena(t, 8<<20)
	write := func(name string, rec arrow.RecordBatch, h shm.Handle) {
		want, err := arrowio.Encode(rec, nil)
		if err != nil {
			t.Fatal(name, err)
		}
		got := published(t, a, h, rec)
		for name, b := range map[string][]byte{name + ".got": got, name + ".want": want} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, rows := range []int{0, 3, 1000} {
		b := build(t, a, manySchema(), 1<<20)
		rec := many(b.Allocator(), rows)
		h, copied, err := b.Publish(t.Context(), rec, nil)
		if err != nil || copied != 0 {
			t.Fatal(copied, err)
		}
		write(fmt.Sprint("in place ", rows), plain(t, rows), h)
		rec.Release()
		b = build(t, a, manySchema(), 1<<20)
		if h, _, err = b.Publish(t.Context(), plain(t, rows), nil); err != nil {
			t.Fatal(err)
		}
		write(fmt.Sprint("foreign ", rows), plain(t, rows), h)
	}
	dict := arrow.NewSchema([]arrow.Field{{Name: "d", Type: &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}}}, nil)
	b := build(t, a, dict, 64<<10)
	db := array.NewRecordBuilder(b.Allocator(), dict)
	for i := range 100 {
		if err := db.Field(0).(*array.BinaryDictionaryBuilder).AppendString(strconv.Itoa(i % 7)); err != nil {
			t.Fatal(err)
		}
	}
	rec := db.NewRecordBatch()
	db.Release()
	h, _, err := b.Publish(t.Context(), rec, nil)
	if err != nil {
		t.Fatal(err)
	}
	write("dictionary", rec, h)
	rec.Release()
	out, err := exec.CommandContext(t.Context(), python, "-c", `
import glob, mmap, os, sys
import pyarrow as pa
def inside(batch, buf):
    for col in batch.columns:
        for b in col.buffers():
            if b is not None and b.size and not (buf.address <= b.address and b.address + b.size <= buf.address + buf.size):
                return False
    return True
names = sorted(glob.glob(os.path.join(sys.argv[1], "*.got")))
for name in names:
    buf = pa.memory_map(name).read_buffer()
    reader = pa.ipc.open_stream(buf)
    batch = reader.read_next_batch()
    batch.validate(full=True)
    want = pa.ipc.open_stream(pa.memory_map(name[:-4] + ".want")).read_next_batch()
    assert batch.equals(want, check_metadata=True), name
    assert inside(batch, buf), name
    try:
        reader.read_next_batch()
        raise AssertionError(name)
    except StopIteration:
        pass
print(len(names), "frames")
`, dir).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "7 frames" {
		t.Errorf("%v: %s", err, out)
	}
}
