package parquet_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/parquet"
	"github.com/stokehold/stokehold/internal/arrowtest"
)

// batch has a column of each supported type, with nulls, not in the order of
// their names.
func batch(tb testing.TB, rows int) arrow.RecordBatch {
	tb.Helper()
	dict := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}
	md := arrow.NewMetadata([]string{"z", "a"}, []string{"1", "2"})
	unit := arrow.NewMetadata([]string{"unit"}, []string{"min"})
	opt := func(name string, dt arrow.DataType) arrow.Field {
		return arrow.Field{Name: name, Type: dt, Nullable: true, Metadata: unit}
	}
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "week", Type: arrow.PrimitiveTypes.Int32},
		opt("i8", arrow.PrimitiveTypes.Int8), opt("i16", arrow.PrimitiveTypes.Int16), opt("i32", arrow.PrimitiveTypes.Int32), opt("i64", arrow.PrimitiveTypes.Int64),
		opt("u8", arrow.PrimitiveTypes.Uint8), opt("u16", arrow.PrimitiveTypes.Uint16), opt("u32", arrow.PrimitiveTypes.Uint32), opt("u64", arrow.PrimitiveTypes.Uint64),
		opt("f32", arrow.PrimitiveTypes.Float32), opt("f64", arrow.PrimitiveTypes.Float64), opt("bool", arrow.FixedWidthTypes.Boolean),
		opt("text", arrow.BinaryTypes.String), opt("large", arrow.BinaryTypes.LargeString), opt("bin", arrow.BinaryTypes.Binary),
		opt("day", arrow.FixedWidthTypes.Date32), opt("ms", &arrow.TimestampType{Unit: arrow.Millisecond}),
		opt("us", arrow.FixedWidthTypes.Timestamp_us), opt("ns", &arrow.TimestampType{Unit: arrow.Nanosecond, TimeZone: "Europe/Oslo"}),
		opt("code", dict),
		{Name: "always", Type: arrow.BinaryTypes.String},
	}, &md)
	b := array.NewRecordBuilder(memory.NewGoAllocator(), schema)
	defer b.Release()
	for i := range rows {
		b.Field(0).(*array.Int32Builder).Append(int32(i))
		b.Field(20).(*array.StringBuilder).Append(strings.Repeat("x", i%3))
		if i%7 == 3 {
			for j := 1; j < 20; j++ {
				b.Field(j).AppendNull()
			}
			continue
		}
		b.Field(1).(*array.Int8Builder).Append(int8(i))
		b.Field(2).(*array.Int16Builder).Append(int16(-i))
		b.Field(3).(*array.Int32Builder).Append(math.MinInt32 + int32(i))
		b.Field(4).(*array.Int64Builder).Append(math.MaxInt64 - int64(i))
		b.Field(5).(*array.Uint8Builder).Append(uint8(255 - i))
		b.Field(6).(*array.Uint16Builder).Append(uint16(65535 - i))
		b.Field(7).(*array.Uint32Builder).Append(math.MaxUint32 - uint32(i))
		b.Field(8).(*array.Uint64Builder).Append(math.MaxUint64 - uint64(i))
		b.Field(9).(*array.Float32Builder).Append(float32(math.Sin(float64(i))))
		b.Field(10).(*array.Float64Builder).Append(math.Sqrt(float64(i)))
		b.Field(11).(*array.BooleanBuilder).Append(i%3 == 0)
		b.Field(12).(*array.StringBuilder).Append(fmt.Sprint("värde ", i))
		b.Field(13).(*array.LargeStringBuilder).Append(strconv.Itoa(i % 11))
		b.Field(14).(*array.BinaryBuilder).Append([]byte{byte(i), 0, 0xff})
		b.Field(15).(*array.Date32Builder).Append(arrow.Date32(i - 50))
		for j := 16; j < 19; j++ {
			b.Field(j).(*array.TimestampBuilder).Append(arrow.Timestamp(int64(i) * 1_000_003))
		}
		if err := b.Field(19).(*array.BinaryDictionaryBuilder).AppendString(fmt.Sprint("c", i%13)); err != nil {
			tb.Fatal(err)
		}
	}
	rec := b.NewRecordBatch()
	tb.Cleanup(rec.Release)
	return rec
}

func write(tb testing.TB, batches ...arrow.RecordBatch) []byte {
	tb.Helper()
	var out bytes.Buffer
	if err := parquet.Write(&out, batches...); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func read(tb testing.TB, file []byte) []arrow.RecordBatch {
	tb.Helper()
	got, err := parquet.Read(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		for _, b := range got {
			b.Release()
		}
	})
	return got
}

func TestRoundTrip(t *testing.T) {
	for _, rows := range []int{1, 3, 4, 1000, 30_000} {
		t.Run(fmt.Sprint(rows, " rows"), func(t *testing.T) {
			a, b := batch(t, rows), batch(t, rows/2+1)
			got := read(t, write(t, a, b))
			if len(got) != 2 {
				t.Fatalf("%d batches", len(got))
			}
			for i, want := range []arrow.RecordBatch{a, b} {
				if !got[i].Schema().Equal(want.Schema()) || arrowio.Fingerprint(got[i].Schema()) != arrowio.Fingerprint(want.Schema()) {
					t.Errorf("schema %v\nwant %v", got[i].Schema(), want.Schema())
				}
				if !array.RecordEqual(want, got[i]) {
					t.Errorf("batch %d differs", i)
				}
				if err := array.ValidateRecordFull(got[i]); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestRoundTripOfSlice(t *testing.T) {
	rec := batch(t, 500)
	cut := rec.NewSlice(101, 405)
	defer cut.Release()
	if got := read(t, write(t, cut)); got[0].NumRows() != 304 || got[0].Column(12).ValueStr(0) != cut.Column(12).ValueStr(0) ||
		!array.Equal(got[0].Column(4), cut.Column(4)) || !array.Equal(got[0].Column(11), cut.Column(11)) || !array.Equal(got[0].Column(12), cut.Column(12)) {
		t.Error("differs")
	}
}

func TestAllNullAndNoRows(t *testing.T) {
	schema := batch(t, 0).Schema()
	got := read(t, write(t, batch(t, 0)))
	if len(got) != 1 || got[0].NumRows() != 0 || !got[0].Schema().Equal(schema) {
		t.Fatal(got)
	}
	s := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Float64, Nullable: true}, {Name: "s", Type: arrow.BinaryTypes.String, Nullable: true}}, nil)
	b := array.NewRecordBuilder(memory.NewGoAllocator(), s)
	defer b.Release()
	for range 10 {
		b.Field(0).AppendNull()
		b.Field(1).AppendNull()
	}
	rec := b.NewRecordBatch()
	defer rec.Release()
	if got := read(t, write(t, rec)); !array.RecordEqual(rec, got[0]) {
		t.Error("differs")
	}
}

func TestManyDistinctStrings(t *testing.T) {
	s := arrow.NewSchema([]arrow.Field{{Name: "s", Type: arrow.BinaryTypes.String, Nullable: true}}, nil)
	b := array.NewRecordBuilder(memory.NewGoAllocator(), s)
	defer b.Release()
	for i := range 100_000 { // the writer gives up its dictionary on the way
		if i%1000 == 7 {
			b.Field(0).AppendNull()
			continue
		}
		b.Field(0).(*array.StringBuilder).Append(fmt.Sprint("a string that appears once only, number ", i))
	}
	rec := b.NewRecordBatch()
	defer rec.Release()
	if got := read(t, write(t, rec)); !array.RecordEqual(rec, got[0]) {
		t.Error("differs")
	}
}

func TestReadPyarrow(t *testing.T) {
	file, err := os.ReadFile("testdata/pyarrow.parquet")
	if err != nil {
		t.Fatal(err)
	}
	got := read(t, file)
	if len(got) != 2 || got[0].NumRows() != 200 || got[1].NumRows() != 100 {
		t.Fatalf("%d batches", len(got))
	}
	var types []string
	for _, f := range got[0].Schema().Fields() {
		types = append(types, fmt.Sprint(f.Name, ":", f.Type, ":", f.Nullable))
	}
	want := "i16:int16:true i64:int64:false u32:uint32:true f32:float32:true f64:float64:true flag:bool:true text:utf8:true large:large_utf8:true " +
		"code:dictionary<values=utf8, indices=int32, ordered=false>:true us:timestamp[us]:true ns:timestamp[ns, tz=UTC]:true day:date32:true"
	if s := strings.Join(types, " "); s != want {
		t.Errorf("types %s\nwant  %s", s, want)
	}
	if md := got[0].Schema().Metadata(); md.FindKey("origin") < 0 {
		t.Error("schema metadata lost:", md)
	}
	row := 0
	for _, rec := range got {
		for i := range int(rec.NumRows()) {
			for j, col := range rec.Columns() {
				if null := row%5 == 3 && j != 1; col.IsNull(i) != null {
					t.Fatalf("row %d, column %s: null %v", row, rec.ColumnName(j), col.IsNull(i))
				}
			}
			if row%5 != 3 {
				have := fmt.Sprint(rec.Column(0).(*array.Int16).Value(i), rec.Column(2).(*array.Uint32).Value(i), rec.Column(4).(*array.Float64).Value(i), rec.Column(5).(*array.Boolean).Value(i),
					rec.Column(6).ValueStr(i), rec.Column(7).ValueStr(i), rec.Column(8).ValueStr(i), int64(rec.Column(9).(*array.Timestamp).Value(i)), int64(rec.Column(10).(*array.Timestamp).Value(i)), rec.Column(11).ValueStr(i)[:4])
				want := fmt.Sprint(row-100, uint32(math.MaxUint32-row), float64(row)/8, row%3 == 0, fmt.Sprint("t", row%7), fmt.Sprint("unique value ", row), fmt.Sprint("c", row%4), int64(978307200000000+row*60_000_000), int64(row)*1_000_000_000, "2001")
				if have != want {
					t.Fatalf("row %d: %s\nwant %s", row, have, want)
				}
			}
			row++
		}
	}
}

func TestUnsupportedColumnIsNamed(t *testing.T) {
	i8 := arrow.PrimitiveTypes.Int8
	pair := []arrow.Field{{Name: "a", Type: i8}, {Name: "b", Type: arrow.BinaryTypes.String}}
	for _, dt := range []arrow.DataType{
		arrow.DenseUnionOf(pair, []arrow.UnionTypeCode{0, 1}), arrow.SparseUnionOf(pair, []arrow.UnionTypeCode{0, 1}), arrow.StructOf(),
		&arrow.Decimal128Type{Precision: 5, Scale: -2}, &arrow.FixedSizeBinaryType{ByteWidth: 0},
		&arrow.DictionaryType{IndexType: i8, ValueType: arrow.ListOf(i8)},
	} {
		for path, f := range map[string]arrow.Field{
			"odd one":              {Name: "odd one", Type: dt},
			"odd one.x":            {Name: "odd one", Type: arrow.StructOf(arrow.Field{Name: "x", Type: dt})},
			"odd one.list.element": {Name: "odd one", Type: arrow.ListOf(dt)},
		} {
			s := arrow.NewSchema([]arrow.Field{{Name: "ok", Type: i8}, f}, nil)
			_, err := parquet.NewWriter(&bytes.Buffer{}, s)
			var u *parquet.UnsupportedError
			if !errors.As(err, &u) || u.Column != path || u.Hint == "" || !errors.Is(err, parquet.ErrUnsupported) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v", dt, err)
			}
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	w, err := parquet.NewWriter(&bytes.Buffer{}, batch(t, 0).Schema())
	if err != nil {
		t.Fatal(err)
	}
	s := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int8}}, nil)
	b := array.NewRecordBuilder(memory.NewGoAllocator(), s)
	defer b.Release()
	b.Field(0).AppendNull()
	other := b.NewRecordBatch()
	defer other.Release()
	if err := w.Write(other); err == nil {
		t.Error("a batch of another schema")
	}
	if err := parquet.Write(&bytes.Buffer{}, other); err == nil || !strings.Contains(err.Error(), "not nullable") {
		t.Error(err)
	}
	if err := parquet.Write(failing{}, batch(t, 2000)); !errors.Is(err, errDisk) {
		t.Error(err)
	}
}

var errDisk = errors.New("disk full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errDisk }

func TestTruncatedAndDamagedFiles(t *testing.T) {
	file := write(t, batch(t, 64))
	for n := 0; n < len(file); n += 1 + n/97 {
		if _, err := parquet.Read(bytes.NewReader(file[:n]), int64(n)); !errors.Is(err, arrowio.ErrCorrupt) {
			t.Fatalf("%d of %d bytes: %v", n, len(file), err)
		}
	}
	for at := 0; at < len(file); at += 29 { // must not panic; many bytes carry no meaning
		bad := bytes.Clone(file)
		bad[at] ^= 0x55
		recs, err := parquet.Read(bytes.NewReader(bad), int64(len(bad)))
		if err != nil && !errors.Is(err, arrowio.ErrCorrupt) && !errors.Is(err, parquet.ErrUnsupported) {
			t.Fatalf("byte %d: %v", at, err)
		}
		for _, r := range recs {
			if err := array.ValidateRecordFull(r); err != nil {
				t.Fatalf("byte %d: %v", at, err)
			}
			r.Release()
		}
	}
}

func TestPanicOfTheLibraryIsAnError(t *testing.T) {
	file := write(t, batch(t, 64))
	_, err := parquet.Open(panicking{bytes.NewReader(file)}, int64(len(file)))
	if !errors.Is(err, arrowio.ErrCorrupt) {
		t.Fatal(err)
	}
}

func TestFailedReadIsNotCorruption(t *testing.T) {
	file := write(t, batch(t, 64))
	for _, from := range []int64{0, 100} {
		_, err := parquet.Read(broken{bytes.NewReader(file), from}, int64(len(file)))
		if !errors.Is(err, errDisk) || errors.Is(err, arrowio.ErrCorrupt) {
			t.Error(err)
		}
	}
}

// broken fails to read the first bytes after the magic number.
type broken struct {
	*bytes.Reader
	from int64
}

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off >= b.from && off < 4096 {
		return 0, errDisk
	}
	return b.Reader.ReadAt(p, off)
}

type panicking struct{ *bytes.Reader }

func (panicking) ReadAt([]byte, int64) (int, error) { panic("index out of range") }

func FuzzRead(f *testing.F) {
	for _, rec := range []arrow.RecordBatch{batch(f, 20), nested(f, 20), nested(f, 0)} {
		for _, c := range []parquet.WriterConfig{{}, {Compression: parquet.Uncompressed, PageBytes: 1024}, {Compression: parquet.Snappy, RowGroupRows: 7}} {
			var out bytes.Buffer
			w, err := c.NewWriter(&out, rec.Schema())
			if err == nil {
				err = w.Write(rec)
			}
			if err == nil {
				err = w.Close()
			}
			if err != nil {
				f.Fatal(err)
			}
			f.Add(out.Bytes(), uint8(0))
			f.Add(out.Bytes(), uint8(3))
		}
	}
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(5, 6)))
	for _, dt := range arrowtest.Leaves() { // a small file of each type
		if holds(dt) && !losesValues(dt) {
			rec := g.Batch(arrow.NewSchema([]arrow.Field{{Name: "x", Type: dt, Nullable: true}}, nil), 9)
			f.Add(write(f, rec), uint8(2))
			rec.Release()
		}
	}
	pyarrow, err := os.ReadFile("testdata/pyarrow.parquet")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pyarrow, uint8(0))
	f.Fuzz(func(t *testing.T, in []byte, rows uint8) {
		err := readAll(t, in, parquet.ScanOptions{BatchRows: int(rows), MaxBytes: 32 << 20, Concurrency: 1})
		if err != nil && !acceptable(err) {
			t.Fatal(err)
		}
	})
}

func Example() {
	schema := arrow.NewSchema([]arrow.Field{{Name: "delay", Type: arrow.PrimitiveTypes.Int32, Nullable: true}}, nil)
	b := array.NewRecordBuilder(memory.NewGoAllocator(), schema)
	defer b.Release()
	b.Field(0).(*array.Int32Builder).AppendValues([]int32{5, -3}, nil)
	b.Field(0).AppendNull()
	batch := b.NewRecordBatch()
	defer batch.Release()

	var file bytes.Buffer
	if err := parquet.Write(&file, batch); err != nil {
		fmt.Println(err)
		return
	}
	f, err := parquet.Open(bytes.NewReader(file.Bytes()), int64(file.Len()))
	if err != nil {
		fmt.Println(err)
		return
	}
	for batch, err := range f.Batches() {
		fmt.Println(batch.Column(0), err)
	}
	// Output:
	// [5 -3 (null)] <nil>
}

func BenchmarkParquet(b *testing.B) {
	rec := batch(b, 50_000)
	body, _ := arrowio.BodyBytes(rec)
	file := write(b, rec)
	b.Run("write", func(b *testing.B) {
		b.SetBytes(body)
		b.ReportAllocs()
		for b.Loop() {
			var out bytes.Buffer
			if err := parquet.Write(&out, rec); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(body)
		b.ReportAllocs()
		for b.Loop() {
			recs, err := parquet.Read(bytes.NewReader(file), int64(len(file)))
			if err != nil {
				b.Fatal(err)
			}
			recs[0].Release()
		}
	})
}

// TestFileInMemory: it is read in place, to the same values, and stays as it was.
func TestFileInMemory(t *testing.T) {
	want := batch(t, 30_000)
	raw := write(t, want)
	before := bytes.Clone(raw)
	f, err := parquet.Open(parquet.Bytes(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for got, err := range f.Batches() {
		if err != nil {
			t.Fatal(err)
		}
		if !array.RecordEqual(want, got) {
			t.Error("differs")
		}
		n++
	}
	if n != 1 || !bytes.Equal(raw, before) {
		t.Errorf("%d batches, the file is unchanged: %v", n, bytes.Equal(raw, before))
	}
	for cut := range 40 { // and what it refers to beyond its end is damage, as ever
		short := raw[:len(raw)-1-cut*len(raw)/41]
		if _, err := parquet.Open(parquet.Bytes(short), int64(len(short))); !errors.Is(err, arrowio.ErrCorrupt) {
			t.Errorf("cut by %d: %v", cut, err)
		}
	}
}
