package parquet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/arrowio/parquet"
)

func open(tb testing.TB, raw []byte) *parquet.File {
	tb.Helper()
	f, err := parquet.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func TestProjection(t *testing.T) {
	f := open(t, write(t, nested(t, 30)))
	for _, c := range []struct {
		columns []string
		want    string
	}{
		{[]string{"d"}, "d"},
		{[]string{"r", "l"}, "l r"}, // in the file's order
		{[]string{"s.a"}, "s"},
		{[]string{"s.b", "m"}, "s m"},
		{[]string{"s", "s.a"}, ""}, // the path within what is wanted already
		{[]string{"x"}, ""},
		{[]string{"s.x"}, ""},
		{[]string{"m.key"}, ""},
		{[]string{}, "-"},
	} {
		rows := int64(0)
		var err error
		for rec, e := range f.Scan(t.Context(), parquet.ScanOptions{Columns: c.columns, BatchRows: 8}) {
			if err = e; err != nil {
				break
			}
			rows += rec.NumRows()
			if have := strings.Join(names(rec.Schema()), " "); have != c.want && c.want != "-" {
				t.Errorf("%v: %s", c.columns, have)
			}
			if s := rec.Schema(); s.HasField("s") && c.columns[0] == "s.a" && s.Field(0).Type.(*arrow.StructType).NumFields() != 1 {
				t.Error(s)
			}
		}
		if (c.want == "") != errors.Is(err, parquet.ErrColumn) || err == nil && rows != 30 {
			t.Errorf("%v: %d rows, %v", c.columns, rows, err)
		}
	}
	// A field of a struct is the same alone as with its siblings.
	whole := read(t, write(t, nested(t, 30)))[0]
	for rec, err := range f.Scan(t.Context(), parquet.ScanOptions{Columns: []string{"s.b"}}) {
		if err != nil {
			t.Fatal(err)
		}
		a, b := rec.Column(0).(*array.Struct), whole.Column(1).(*array.Struct)
		if !array.Equal(a.Field(0), b.Field(1)) {
			t.Error("differs")
		}
	}
}

// groups is a file of row groups of 10 rows, in which x counts up, and other
// columns follow it.
func groups(tb testing.TB) *parquet.File {
	tb.Helper()
	opt := func(name string, dt arrow.DataType) arrow.Field {
		return arrow.Field{Name: name, Type: dt, Nullable: true}
	}
	schema := arrow.NewSchema([]arrow.Field{
		opt("x", arrow.PrimitiveTypes.Int64), opt("u", arrow.PrimitiveTypes.Uint64), opt("f", arrow.PrimitiveTypes.Float64), opt("s", arrow.BinaryTypes.String),
		opt("b", arrow.FixedWidthTypes.Boolean), opt("t", &arrow.TimestampType{Unit: arrow.Second, TimeZone: "UTC"}), opt("in", arrow.StructOf(opt("y", arrow.PrimitiveTypes.Int8))),
		opt("d", &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}), opt("l", arrow.ListOf(arrow.PrimitiveTypes.Int8)),
	}, nil)
	b := array.NewRecordBuilder(memory.NewGoAllocator(), schema)
	defer b.Release()
	for i := range 100 {
		g := i / 10
		b.Field(0).(*array.Int64Builder).Append(int64(i) - 50)
		b.Field(1).(*array.Uint64Builder).Append(math.MaxUint64 - 100 + uint64(i))
		f := float64(i)
		if i%3 == 0 {
			f = math.NaN()
		}
		if g == 9 { // a group of zeros of one sign
			f = 0
		}
		b.Field(2).(*array.Float64Builder).Append(f)
		b.Field(3).(*array.StringBuilder).Append(fmt.Sprintf("%d%s", g, strings.Repeat("z", 100*(i%2))))
		b.Field(4).(*array.BooleanBuilder).Append(g%2 == 0)
		b.Field(5).(*array.TimestampBuilder).Append(arrow.Timestamp(1000 + i))
		if s := b.Field(6).(*array.StructBuilder); g == 4 {
			s.AppendNull()
		} else {
			s.Append(true)
			s.FieldBuilder(0).(*array.Int8Builder).Append(int8(i))
		}
		if err := b.Field(7).(*array.BinaryDictionaryBuilder).AppendString(fmt.Sprint("d", g)); err != nil {
			tb.Fatal(err)
		}
		b.Field(8).AppendNull()
	}
	rec := b.NewRecordBatch()
	defer rec.Release()
	var out bytes.Buffer
	w, err := parquet.WriterConfig{RowGroupRows: 10}.NewWriter(&out, schema)
	if err == nil {
		err = w.Write(rec)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return open(tb, out.Bytes())
}

func is(column string, op parquet.Op, value any) parquet.Predicate {
	return parquet.Compare{Column: column, Op: op, Value: value}
}

func TestRowGroupsArePruned(t *testing.T) {
	f := groups(t)
	const all = "[0 1 2 3 4 5 6 7 8 9]"
	for _, c := range []struct {
		where parquet.Predicate
		want  string
	}{
		{nil, all},
		{is("x", parquet.Less, -35), "[0 1]"},
		{is("x", parquet.Less, -40), "[0]"},
		{is("x", parquet.LessOrEqual, -40), "[0 1]"},
		{is("x", parquet.Greater, int8(48)), "[9]"},
		{is("x", parquet.Greater, 49), "[]"},
		{is("x", parquet.GreaterOrEqual, uint64(49)), "[9]"},
		{is("x", parquet.Greater, uint64(math.MaxUint64)), "[]"},
		{is("x", parquet.Less, uint64(math.MaxUint64)), all},
		{is("x", parquet.Equal, 0), "[5]"},
		{is("x", parquet.NotEqual, 0), all},
		{is("u", parquet.Greater, uint64(math.MaxUint64-5)), "[9]"},
		{is("u", parquet.Less, -1), "[]"},
		{is("f", parquet.Greater, 79.5), "[8]"},
		{is("f", parquet.Equal, math.NaN()), all},
		{is("f", parquet.Less, math.NaN()), all},
		{is("f", parquet.NotEqual, 0.0), all}, // NaN may be in the last
		{is("f", parquet.Equal, math.Copysign(0, -1)), "[9]"},
		{is("s", parquet.Equal, "3"+strings.Repeat("z", 100)), "[3]"},
		{is("s", parquet.Greater, "9zz"), "[9]"},
		{is("s", parquet.Less, []byte("1")), "[0]"},
		{is("d", parquet.Equal, "d7"), "[7]"},
		{is("d", parquet.NotEqual, "d7"), all},
		{is("b", parquet.Equal, true), "[0 2 4 6 8]"},
		{is("b", parquet.NotEqual, true), "[1 3 5 7 9]"},
		{is("t", parquet.Less, time.Unix(1010, 1)), "[0 1]"},
		{is("t", parquet.Less, time.Unix(1010, 0)), "[0]"},
		{is("t", parquet.GreaterOrEqual, 1090), "[9]"},
		{is("in.y", parquet.Greater, 85), "[8 9]"},
		{is("in.y", parquet.IsNull, nil), "[4]"},
		{is("in.y", parquet.NotNull, nil), "[0 1 2 3 5 6 7 8 9]"},
		{parquet.And{is("x", parquet.Less, 0), is("b", parquet.Equal, false)}, "[1 3]"},
		{parquet.Or{is("x", parquet.Equal, 0), is("d", parquet.Equal, "d1")}, "[1 5]"},
		{parquet.And{}, all},
		{parquet.Or{}, "[]"},
	} {
		got, err := f.Matching(c.where)
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%+v: %v, %v, want %s", c.where, got, err, c.want)
		}
	}
	for _, bad := range []parquet.Predicate{
		is("y", parquet.Equal, 1), is("l", parquet.Equal, 1), is("in", parquet.IsNull, nil), is("x", parquet.Equal, "1"),
		is("s", parquet.Equal, 1), is("f", parquet.Equal, 1), is("b", parquet.Equal, nil),
		parquet.And{is("x", parquet.Less, -1000), is("y", parquet.Equal, 1)},
	} {
		if _, err := f.Matching(bad); !errors.Is(err, parquet.ErrColumn) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	rows := int64(0)
	for rec, err := range f.Scan(t.Context(), parquet.ScanOptions{Where: is("x", parquet.Less, -35), Columns: []string{"d"}}) {
		if err != nil {
			t.Fatal(err)
		}
		rows += rec.NumRows()
	}
	if rows != 20 {
		t.Error(rows)
	}
}

// TestPruningKeepsWhatMatches holds pruning against evaluating each row.
func TestPruningKeepsWhatMatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		floats := rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), math.Inf(-1), 0, math.Copysign(0, -1), 1, -1, 2.5})
		texts := rapid.SampledFrom([]string{"", "a", "b", strings.Repeat("a", 70), strings.Repeat("\xf4\x8f\xbf\xbf", 30), strings.Repeat("z", 5000)})
		schema := arrow.NewSchema([]arrow.Field{{Name: "f", Type: arrow.PrimitiveTypes.Float64, Nullable: true}, {Name: "s", Type: arrow.BinaryTypes.String, Nullable: true}}, nil)
		b := array.NewRecordBuilder(memory.NewGoAllocator(), schema)
		defer b.Release()
		n := rapid.IntRange(1, 12).Draw(t, "rows")
		for range n {
			if rapid.IntRange(0, 3).Draw(t, "null") == 0 {
				b.Field(0).AppendNull()
				b.Field(1).AppendNull()
				continue
			}
			b.Field(0).(*array.Float64Builder).Append(floats.Draw(t, "f"))
			b.Field(1).(*array.StringBuilder).Append(texts.Draw(t, "s"))
		}
		rec := b.NewRecordBatch()
		defer rec.Release()
		var out bytes.Buffer
		w, err := parquet.WriterConfig{RowGroupRows: 3, PageBytes: 1024}.NewWriter(&out, schema)
		if err == nil {
			err = w.Write(rec)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		f, err := parquet.Open(bytes.NewReader(out.Bytes()), int64(out.Len()))
		if err != nil {
			t.Fatal(err)
		}
		op := rapid.SampledFrom([]parquet.Op{parquet.Equal, parquet.NotEqual, parquet.Less, parquet.LessOrEqual, parquet.Greater, parquet.GreaterOrEqual, parquet.IsNull, parquet.NotNull}).Draw(t, "op")
		fv, sv := floats.Draw(t, "value"), texts.Draw(t, "text")
		onText := rapid.Bool().Draw(t, "on text")
		where := parquet.Compare{Column: "f", Op: op, Value: fv}
		if onText {
			where = parquet.Compare{Column: "s", Op: op, Value: sv}
		}
		kept, err := f.Matching(where)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			matches := false
			switch {
			case op == parquet.IsNull || rec.Column(0).IsNull(i):
				matches = op == parquet.IsNull && rec.Column(0).IsNull(i)
			case op == parquet.NotNull:
				matches = true
			case onText:
				matches = holdsFor(op, strings.Clone(rec.Column(1).(*array.String).Value(i)), sv)
			default:
				matches = holdsFor(op, rec.Column(0).(*array.Float64).Value(i), fv)
			}
			if matches && !slices.Contains(kept, i/3) {
				t.Fatalf("%+v: row %d matches, only %v are kept", where, i, kept)
			}
		}
	})
}

func holdsFor[T float64 | string](op parquet.Op, a, b T) bool {
	switch op {
	case parquet.Equal:
		return a == b
	case parquet.NotEqual:
		return a != b
	case parquet.Less:
		return a < b
	case parquet.LessOrEqual:
		return a <= b
	case parquet.Greater:
		return a > b
	default:
		return a >= b
	}
}

func TestStatisticsThatMakeNoSenseAreNotUsed(t *testing.T) {
	value := []byte{5, 0, 0, 0}
	for name, edit := range map[string]func(*format.FileMetaData, *format.Statistics){
		"min over max": func(_ *format.FileMetaData, s *format.Statistics) {
			s.MinValue, s.MaxValue = []byte{9, 0, 0, 0}, []byte{1, 0, 0, 0}
		},
		"of other length": func(_ *format.FileMetaData, s *format.Statistics) {
			s.MinValue, s.MaxValue = []byte{1}, []byte{1, 2, 3, 4, 5}
		},
		"without order":   func(m *format.FileMetaData, s *format.Statistics) { m.ColumnOrders = nil },
		"nulls over rows": func(_ *format.FileMetaData, s *format.Statistics) { s.NullCount, s.MinValue, s.MaxValue = 7, nil, nil },
		"negative nulls":  func(_ *format.FileMetaData, s *format.Statistics) { s.NullCount, s.MinValue, s.MaxValue = -7, nil, nil },
	} {
		f := forged{schema: []format.SchemaElement{leafOf("x", format.Int32, format.Required)}, rows: 1, chunks: []forgedChunk{column(format.Int32, 1, v2(1, format.Plain, nil, nil, value))}}
		f.edit = func(m *format.FileMetaData) {
			m.ColumnOrders = []format.ColumnOrder{{Value: new(format.TypeDefinedOrder)}}
			s := &m.RowGroups[0].Columns[0].MetaData.Statistics
			s.MinValue, s.MaxValue = []byte{50, 0, 0, 0}, []byte{60, 0, 0, 0}
			edit(m, s)
		}
		if got, err := open(t, f.bytes(t)).Matching(parquet.Compare{Column: "x", Op: parquet.Equal, Value: 5}); err != nil || len(got) != 1 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestScanIsCancelled(t *testing.T) {
	f := groups(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range f.Scan(ctx, parquet.ScanOptions{}) {
		if n++; n == 3 && !errors.Is(err, context.Canceled) || n > 3 {
			t.Fatal(n, err)
		}
		if n == 2 {
			cancel()
		}
	}
	if n != 3 {
		t.Error(n)
	}
	w, err := parquet.NewWriter(&bytes.Buffer{}, batch(t, 0).Schema())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteContext(ctx, batch(t, 10)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := w.Close(); !errors.Is(err, context.Canceled) { // no footer: nobody takes it for a file
		t.Error(err)
	}
}

// TestPageIndex holds the index that is written against the pages.
func TestPageIndex(t *testing.T) {
	var out bytes.Buffer
	rec := batch(t, 2000)
	w, err := parquet.WriterConfig{PageBytes: 1024}.NewWriter(&out, rec.Schema())
	if err == nil {
		err = w.Write(rec)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	raw := out.Bytes()
	var protocol thrift.CompactProtocol
	var meta format.FileMetaData
	n := len(raw) - 8
	size := int(raw[n]) | int(raw[n+1])<<8 | int(raw[n+2])<<16
	if err := thrift.Unmarshal(&protocol, raw[n-size:n], &meta); err != nil {
		t.Fatal(err)
	}
	pages := 0
	for _, c := range meta.RowGroups[0].Columns {
		var offsets format.OffsetIndex
		var index format.ColumnIndex
		if err := thrift.Unmarshal(&protocol, raw[c.OffsetIndexOffset:c.OffsetIndexOffset+int64(c.OffsetIndexLength)], &offsets); err != nil {
			t.Fatal(err)
		}
		if err := thrift.Unmarshal(&protocol, raw[c.ColumnIndexOffset:c.ColumnIndexOffset+int64(c.ColumnIndexLength)], &index); err != nil {
			t.Fatal(err)
		}
		if len(index.NullPages) != len(offsets.PageLocations) || len(index.MinValues) != len(index.MaxValues) {
			t.Fatal(c.MetaData.PathInSchema, len(index.NullPages), len(offsets.PageLocations))
		}
		row, nulls := int64(0), int64(0)
		for i, p := range offsets.PageLocations {
			var h format.PageHeader
			if err := thrift.NewDecoder(protocol.NewReader(bytes.NewReader(raw[p.Offset:]))).Decode(&h); err != nil {
				t.Fatal(err)
			}
			v := h.DataPageHeaderV2.V
			if h.Type != format.DataPageV2 || p.FirstRowIndex != row || int64(v.NumNulls) != index.NullCounts[i] {
				t.Fatalf("%v, page %d: %+v, %+v", c.MetaData.PathInSchema, i, p, h)
			}
			row, nulls = row+int64(v.NumRows), nulls+int64(v.NumNulls)
			pages++
		}
		if row != 2000 || nulls != c.MetaData.Statistics.NullCount {
			t.Errorf("%v: %d rows, %d nulls", c.MetaData.PathInSchema, row, nulls)
		}
	}
	if pages < 60 {
		t.Error(pages, "pages")
	}
}

func TestAllocationsOfARowGroup(t *testing.T) {
	rec := batch(t, 200_000)
	var out bytes.Buffer
	out.Grow(64 << 20)
	if n := testing.AllocsPerRun(3, func() {
		out.Reset()
		if err := parquet.Write(&out, rec); err != nil {
			t.Fatal(err)
		}
	}); n > 2000 { // a writer of 21 columns, a row group and a footer
		t.Errorf("%.0f allocations", n)
	}
}
