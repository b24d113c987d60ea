package arrowio_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/float16"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
)

// wide builds a batch with a column of each family of types, every third value
// null.
func wide(tb testing.TB, rows int) arrow.RecordBatch {
	tb.Helper()
	dict := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int16, ValueType: arrow.BinaryTypes.String}
	point := arrow.StructOf(
		arrow.Field{Name: "x", Type: arrow.PrimitiveTypes.Float32, Nullable: true},
		arrow.Field{Name: "tag", Type: arrow.BinaryTypes.String, Nullable: true})
	md := arrow.NewMetadata([]string{"unit"}, []string{"m"})
	root := arrow.NewMetadata([]string{"b", "a"}, []string{"2", "1"})
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "i64", Type: arrow.PrimitiveTypes.Int64, Nullable: true, Metadata: md},
		{Name: "u8", Type: arrow.PrimitiveTypes.Uint8, Nullable: true},
		{Name: "f16", Type: arrow.FixedWidthTypes.Float16, Nullable: true},
		{Name: "f64", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
		{Name: "bool", Type: arrow.FixedWidthTypes.Boolean, Nullable: true},
		{Name: "str", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "big", Type: arrow.BinaryTypes.LargeString, Nullable: true},
		{Name: "view", Type: arrow.BinaryTypes.StringView, Nullable: true},
		{Name: "ts", Type: &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}, Nullable: true},
		{Name: "day", Type: arrow.FixedWidthTypes.Date32, Nullable: true},
		{Name: "dict", Type: dict, Nullable: true},
		{Name: "list", Type: arrow.ListOf(arrow.PrimitiveTypes.Int32), Nullable: true},
		{Name: "vec", Type: arrow.FixedSizeListOf(3, arrow.PrimitiveTypes.Float32), Nullable: true},
		{Name: "point", Type: point, Nullable: true},
		{Name: "none", Type: arrow.Null, Nullable: true},
		{Name: "nones", Type: arrow.StructOf(arrow.Field{Name: "n", Type: arrow.Null, Nullable: true}), Nullable: true},
	}, &root)
	b := array.NewRecordBuilder(memory.NewGoAllocator(), schema)
	defer b.Release()
	for i := range rows {
		if i%3 == 2 {
			for j := range schema.NumFields() {
				b.Field(j).AppendNull()
			}
			continue
		}
		s := strings.Repeat(fmt.Sprint("värde ", i%7), i%4)
		b.Field(0).(*array.Int64Builder).Append(int64(i))
		b.Field(1).(*array.Uint8Builder).Append(uint8(i))
		b.Field(2).(*array.Float16Builder).Append(float16.New(float32(i)))
		b.Field(3).(*array.Float64Builder).Append(math.Sqrt(float64(i)))
		b.Field(4).(*array.BooleanBuilder).Append(i%2 == 0)
		b.Field(5).(*array.StringBuilder).Append(s)
		b.Field(6).(*array.LargeStringBuilder).Append(s)
		b.Field(7).(*array.StringViewBuilder).Append(s)
		b.Field(8).(*array.TimestampBuilder).Append(arrow.Timestamp(i))
		b.Field(9).(*array.Date32Builder).Append(arrow.Date32(i))
		if err := b.Field(10).(*array.BinaryDictionaryBuilder).AppendString(fmt.Sprint("k", i%5)); err != nil {
			tb.Fatal(err)
		}
		l := b.Field(11).(*array.ListBuilder)
		l.Append(true)
		for k := range i % 4 {
			l.ValueBuilder().(*array.Int32Builder).Append(int32(k))
		}
		v := b.Field(12).(*array.FixedSizeListBuilder)
		v.Append(true)
		v.ValueBuilder().(*array.Float32Builder).AppendValues([]float32{1, 2, float32(i)}, nil)
		p := b.Field(13).(*array.StructBuilder)
		p.Append(true)
		p.FieldBuilder(0).(*array.Float32Builder).Append(float32(i))
		p.FieldBuilder(1).(*array.StringBuilder).Append(s)
		b.Field(14).AppendNull()
		n := b.Field(15).(*array.StructBuilder)
		n.Append(true)
		n.FieldBuilder(0).AppendNull()
	}
	rec := b.NewRecordBatch()
	tb.Cleanup(rec.Release)
	return rec
}

func encode(tb testing.TB, rec arrow.RecordBatch) []byte {
	tb.Helper()
	buf, err := arrowio.Encode(rec, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return buf
}

// buffers calls f for each buffer of the batch that has bytes, dictionaries and
// children included.
func buffers(rec arrow.RecordBatch, f func(*memory.Buffer)) {
	var walk func(arrow.ArrayData)
	walk = func(d arrow.ArrayData) {
		for _, b := range d.Buffers() {
			if b != nil && b.Len() > 0 {
				f(b)
			}
		}
		for _, c := range d.Children() {
			walk(c)
		}
		if d.DataType().ID() == arrow.DICTIONARY {
			walk(d.Dictionary())
		}
	}
	for _, c := range rec.Columns() {
		walk(c.Data())
	}
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

func TestFrameRoundTripInPlace(t *testing.T) {
	for _, rows := range []int{0, 1, 3, 1000} {
		t.Run(fmt.Sprint(rows, " rows"), func(t *testing.T) {
			rec := wide(t, rows)
			size, err := arrowio.EncodedSize(rec)
			if err != nil {
				t.Fatal(err)
			}
			var copies arrowio.Copies
			buf, err := arrowio.Encode(rec, &copies)
			if err != nil {
				t.Fatal(err)
			}
			body, err := arrowio.BodyBytes(rec)
			if err != nil {
				t.Fatal(err)
			}
			if int64(len(buf)) != size || copies.Bytes() != body || copies.Batches() != 1 {
				t.Fatalf("frame %d bytes, EncodedSize %d; copied %d body bytes of %d", len(buf), size, copies.Bytes(), body)
			}
			released := 0
			got, err := arrowio.Decode(buf, func() { released++ })
			if err != nil {
				t.Fatal(err)
			}
			if !array.RecordEqual(rec, got) || !got.Schema().Equal(rec.Schema()) {
				t.Fatalf("got %v\nwant %v", got, rec)
			}
			low, high, n := address(buf), address(buf)+uintptr(len(buf)), 0
			buffers(got, func(b *memory.Buffer) {
				n++
				p := address(b.Bytes())
				if p < low || p+uintptr(b.Len()) > high {
					t.Errorf("buffer at %x+%d is not in the frame at %x..%x", p, b.Len(), low, high)
				}
				if p%arrowio.Alignment != 0 {
					t.Errorf("buffer at %x is not %d-byte aligned", p, arrowio.Alignment)
				}
			})
			if rows > 3 && n < 20 {
				t.Errorf("looked at %d buffers only", n)
			}
			again := encode(t, got)
			if !bytes.Equal(buf, again) {
				t.Error("framing a decoded batch gives other bytes")
			}
			got.Retain()
			got.Release()
			if released != 0 && rows > 0 {
				t.Fatal("released while the batch is held")
			}
			got.Release()
			if released != 1 {
				t.Fatalf("release called %d times", released)
			}
		})
	}
}

func TestFrameIsAStandardStream(t *testing.T) {
	rec := wide(t, 50)
	r, err := ipc.NewReader(bytes.NewReader(encode(t, rec)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	if !r.Next() || !array.RecordEqual(rec, r.RecordBatch()) {
		t.Fatal("the plain IPC reader sees another batch:", r.Err())
	}
	if r.Next() || r.Err() != nil {
		t.Fatal("stream does not end:", r.Err())
	}
}

func TestDecodeForeignStream(t *testing.T) {
	rec := wide(t, 50)
	var out bytes.Buffer
	w := ipc.NewWriter(&out, ipc.WithSchema(rec.Schema()))
	if err := w.Write(rec); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := arrowio.Decode(out.Bytes(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	if !array.RecordEqual(rec, got) {
		t.Fatal("differs")
	}
}

func TestFrameOfSlice(t *testing.T) {
	rec := wide(t, 100)
	cut := rec.NewSlice(13, 77)
	defer cut.Release()
	got, err := arrowio.Decode(encode(t, cut), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	if !array.RecordEqual(cut, got) {
		t.Fatal("differs")
	}
	whole, _ := arrowio.BodyBytes(rec)
	part, _ := arrowio.BodyBytes(cut)
	if part >= whole {
		t.Errorf("slice of 64 rows has a body of %d bytes, the whole %d", part, whole)
	}
}

func TestEncodeToShortDestination(t *testing.T) {
	rec := wide(t, 10)
	size, _ := arrowio.EncodedSize(rec)
	var copies arrowio.Copies
	if _, err := arrowio.EncodeTo(make([]byte, size-1), rec, &copies); !errors.Is(err, arrowio.ErrSize) {
		t.Fatal(err)
	}
	if copies.Bytes() != 0 {
		t.Error("counted a copy that was not made")
	}
}

func BenchmarkFrame(b *testing.B) {
	for _, rows := range []int{100, 10_000} {
		rec := wide(b, rows)
		buf := encode(b, rec)
		b.Run(fmt.Sprintf("encode/%d", len(buf)), func(b *testing.B) {
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := arrowio.EncodeTo(buf, rec, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
		for name, opts := range map[string][]arrowio.DecodeOption{"validated": nil, "trusted": {arrowio.Trusted()}} {
			b.Run(fmt.Sprintf("decode-%s/%d", name, len(buf)), func(b *testing.B) {
				b.SetBytes(int64(len(buf)))
				b.ReportAllocs()
				for b.Loop() {
					got, err := arrowio.Decode(buf, nil, opts...)
					if err != nil {
						b.Fatal(err)
					}
					got.Release()
				}
			})
		}
	}
}
