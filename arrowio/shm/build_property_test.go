package shm_test

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

// TestBuildAllocatorAgainstModel allocates, grows, shrinks and frees at random:
// no two pieces overlap, all keep what was written to them, new bytes are zero,
// and the slot is free when the last piece is.
func TestBuildAllocatorAgainstModel(t *testing.T) {
	a := arena(t, 256*page)
	schema := numbersSchema()
	rapid.Check(t, func(t *rapid.T) {
		b, err := a.Build(context.Background(), schema, 16*page)
		if err != nil {
			t.Fatal(err)
		}
		mem := b.Allocator()
		type piece struct {
			b    []byte
			mark byte
		}
		var held []piece
		mark := byte(0)
		check := func(p piece, n int) {
			for i, x := range p.b[:n] {
				if x != p.mark {
					t.Fatalf("byte %d of %d is %d, was written %d", i, len(p.b), x, p.mark)
				}
			}
		}
		write := func(p *piece, from int) {
			for i, x := range p.b[from:] {
				if x != 0 {
					t.Fatalf("byte %d of %d, new, is %d", from+i, len(p.b), x)
				}
			}
			mark++
			p.mark = mark
			for i := range p.b {
				p.b[i] = mark
			}
		}
		size := rapid.SampledFrom([]int{1, 63, 64, 65, 1000, page, 5 * page, 20 * page})
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			do := rapid.SampledFrom([]string{"allocate", "allocate", "reallocate", "free"}).Draw(t, "do")
			if do == "allocate" || len(held) == 0 {
				p := piece{b: mem.Allocate(size.Draw(t, "bytes"))}
				if uintptr(unsafe.Pointer(unsafe.SliceData(p.b)))%shm.Alignment != 0 {
					t.Fatal("not aligned")
				}
				write(&p, 0)
				held = append(held, p)
				continue
			}
			i := rapid.IntRange(0, len(held)-1).Draw(t, "which")
			p := held[i]
			check(p, len(p.b))
			if do == "free" {
				mem.Free(p.b)
				held = append(held[:i], held[i+1:]...)
				continue
			}
			n := size.Draw(t, "bytes")
			was := len(p.b)
			p.b = mem.Reallocate(n, p.b)
			if len(p.b) != n {
				t.Fatalf("%d bytes, asked for %d", len(p.b), n)
			}
			check(p, min(n, was))
			write(&p, min(n, was))
			held[i] = p
		}
		ended := rapid.Bool().Draw(t, "ended before freed")
		if ended {
			b.Cancel()
		}
		for _, p := range held {
			check(p, len(p.b))
			mem.Free(p.b)
		}
		b.Cancel()
		if s := a.Stats(); s.Used != 0 || s.Builds != 0 || s.LargestFree != a.Size() {
			t.Fatalf("left behind: %+v", s)
		}
	})
}

// TestBuildOfAnySchema builds batches of random columns in random order, sized or
// growing, with columns from elsewhere between them.
func TestBuildOfAnySchema(t *testing.T) {
	a := arena(t, 16<<20)
	types := manySchema().Fields()
	dictionary := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int16, ValueType: arrow.BinaryTypes.String}
	rapid.Check(t, func(t *rapid.T) {
		rows := rapid.SampledFrom([]int{0, 1, 2, 31, 64, 65, 500}).Draw(t, "rows")
		var fields []arrow.Field
		dicts, foreign := 0, 0
		for i := range rapid.IntRange(1, 8).Draw(t, "columns") {
			k := rapid.IntRange(0, len(types)).Draw(t, "type")
			f := arrow.Field{Name: strconv.Itoa(i), Type: dictionary, Nullable: true}
			if k < len(types) {
				f.Type = types[k].Type
			} else {
				dicts++
			}
			fields = append(fields, f)
		}
		schema := arrow.NewSchema(fields, nil)
		b, err := a.Build(context.Background(), schema, int64(rapid.SampledFrom([]int{256, 64 << 10, 2 << 20}).Draw(t, "room")))
		if err != nil {
			t.Fatal(err)
		}
		var columns, want []arrow.Array
		for _, f := range fields {
			mem := b.Allocator()
			if rapid.IntRange(0, 4).Draw(t, "elsewhere") == 0 {
				mem = memory.NewGoAllocator()
				foreign++
			}
			sized := rapid.Bool().Draw(t, "sized")
			columns = append(columns, column(mem, f.Type, rows, sized))
			want = append(want, column(memory.NewGoAllocator(), f.Type, rows, false))
		}
		rec, same := array.NewRecordBatch(schema, columns, int64(rows)), array.NewRecordBatch(schema, want, int64(rows))
		for _, c := range columns {
			c.Release()
		}
		outside := b.Outside()
		var copies arrowio.Copies
		h, copied, err := b.Publish(context.Background(), rec, &copies)
		if err != nil {
			t.Fatal(err)
		}
		body, err := arrowio.BodyBytes(same)
		if err != nil {
			t.Fatal(err)
		}
		if copied != copies.Bytes() || copied > body || outside == 0 && dicts == 0 && foreign == 0 && copied != 0 {
			t.Fatalf("copied %d, counted %d, body %d, %d outside, %d dictionaries, %d foreign columns", copied, copies.Bytes(), body, outside, dicts, foreign)
		}
		l, err := a.Hold(h, "x")
		if err != nil {
			t.Fatal(err)
		}
		got, err := l.Batch()
		if err != nil {
			t.Fatal(err)
		}
		if !array.RecordEqual(same, got) || !array.RecordEqual(same, rec) || arrowio.BytesOutside(got, l.Bytes()) != 0 {
			t.Fatalf("got %v\nhave %v\nwant %v", got, rec, same)
		}
		// What a frame with gaps decodes to is framed like any other.
		one, err := arrowio.Encode(got, nil)
		if err != nil {
			t.Fatal(err)
		}
		two, err := arrowio.Encode(same, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(one, two) {
			t.Fatal("framed again it has other bytes")
		}
		got.Release()
		rec.Release()
		if err := a.Drop(h); err != nil {
			t.Fatal(err)
		}
		if s := a.Stats(); s.Used != 0 || s.Builds != 0 || s.Leases != 0 {
			t.Fatalf("left behind: %+v", s)
		}
	})
}

// column builds one column of rows values, every third null.
func column(mem memory.Allocator, dt arrow.DataType, rows int, sized bool) arrow.Array {
	b := array.NewBuilder(mem, dt)
	defer b.Release()
	if sized {
		b.Resize(rows)
	}
	for i := range rows {
		if i%3 == 2 {
			b.AppendNull()
			continue
		}
		appendValue(b, i)
	}
	return b.NewArray()
}

func appendValue(b array.Builder, i int) {
	text := strings.Repeat(fmt.Sprint("värde ", i%11), i%4)
	switch b := b.(type) {
	case *array.StringBuilder:
		b.Append(text)
	case *array.StringViewBuilder:
		b.Append(text)
	case *array.BinaryBuilder:
		b.Append([]byte(text))
	case *array.BinaryDictionaryBuilder:
		if err := b.AppendString(text); err != nil {
			panic(err)
		}
	case *array.ListBuilder:
		b.Append(true)
		for k := range i % 3 {
			appendValue(b.ValueBuilder(), k)
		}
	case *array.FixedSizeListBuilder:
		b.Append(true)
		for k := range 3 {
			appendValue(b.ValueBuilder(), k)
		}
	case *array.StructBuilder:
		b.Append(true)
		for k := range b.NumField() {
			appendValue(b.FieldBuilder(k), i)
		}
	case *array.MapBuilder:
		b.Append(true)
		appendValue(b.KeyBuilder(), i)
		appendValue(b.ItemBuilder(), i)
	case *array.NullBuilder:
		b.AppendNull()
	case *array.BooleanBuilder:
		b.Append(i%2 == 0)
	default:
		if err := b.AppendValueFromString(strconv.Itoa(i % 100)); err != nil {
			panic(err)
		}
	}
}

// TestBuildersShareABuild uses one allocator from several goroutines, as builders
// of several columns may.
func TestBuildersShareABuild(t *testing.T) {
	a := arena(t, 16<<20)
	schema := numbersSchema()
	b := build(t, a, schema, 8<<20)
	columns := make([]arrow.Array, schema.NumFields())
	var wg sync.WaitGroup
	for i := range columns {
		wg.Go(func() {
			columns[i] = column(b.Allocator(), arrow.PrimitiveTypes.Float64, 20_000, i%2 == 0)
		})
	}
	wg.Wait()
	rec := array.NewRecordBatch(schema, columns, 20_000)
	for _, c := range columns {
		c.Release()
	}
	h, copied, err := b.Publish(t.Context(), rec, nil)
	if err != nil || copied != 0 {
		t.Fatal(copied, err)
	}
	// The last holders end at the same moment.
	lease, err := a.Lease(h, "x")
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []func(){rec.Release, lease.Release, func() {
		if err := a.Drop(h); err != nil {
			t.Error(err)
		}
	}} {
		wg.Go(end)
	}
	wg.Wait()
	idle(t, a)
}
