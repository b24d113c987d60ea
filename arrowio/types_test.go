package arrowio_test

import (
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
)

// TestEveryTypeRoundTrips holds what checks expect of each type's parts against
// what the library writes.
func TestEveryTypeRoundTrips(t *testing.T) {
	i32, str := arrow.PrimitiveTypes.Int32, arrow.BinaryTypes.String
	dict := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: str}
	pair := []arrow.Field{{Name: "a", Type: i32, Nullable: true}, {Name: "b", Type: str, Nullable: true}}
	codes := []arrow.UnionTypeCode{0, 1}
	types := []arrow.DataType{
		arrow.Null, arrow.FixedWidthTypes.Boolean, arrow.PrimitiveTypes.Uint64, arrow.FixedWidthTypes.Float16,
		arrow.BinaryTypes.Binary, arrow.BinaryTypes.LargeBinary, arrow.BinaryTypes.BinaryView, arrow.BinaryTypes.StringView, &arrow.FixedSizeBinaryType{ByteWidth: 5},
		&arrow.Decimal32Type{Precision: 5, Scale: 2}, &arrow.Decimal64Type{Precision: 12, Scale: 2}, &arrow.Decimal128Type{Precision: 30, Scale: 2}, &arrow.Decimal256Type{Precision: 60, Scale: 2},
		arrow.FixedWidthTypes.Date64, arrow.FixedWidthTypes.Time32ms, arrow.FixedWidthTypes.Time64ns, arrow.FixedWidthTypes.Duration_us,
		arrow.FixedWidthTypes.MonthInterval, arrow.FixedWidthTypes.DayTimeInterval, arrow.FixedWidthTypes.MonthDayNanoInterval,
		arrow.ListOf(dict), arrow.LargeListOf(str), arrow.ListViewOf(i32), arrow.LargeListViewOf(str), arrow.FixedSizeListOf(2, str),
		arrow.MapOf(str, i32), arrow.StructOf(append([]arrow.Field{{Name: "d", Type: dict, Nullable: true}, {Name: "v", Type: arrow.BinaryTypes.StringView, Nullable: true}}, pair...)...), arrow.StructOf(),
		arrow.SparseUnionOf(pair, codes), arrow.DenseUnionOf(pair, codes), arrow.RunEndEncodedOf(i32, str),
	}
	for _, dt := range types {
		t.Run(dt.String(), func(t *testing.T) {
			// A column on each side shows if the parts between are miscounted.
			schema := arrow.NewSchema([]arrow.Field{{Name: "before", Type: str}, {Name: "x", Type: dt, Nullable: true}, {Name: "after", Type: str}}, nil)
			for _, rows := range []int{0, 1, 70} {
				b := array.NewRecordBuilder(memory.NewGoAllocator(), schema)
				for i := range rows {
					b.Field(0).(*array.StringBuilder).Append("before")
					b.Field(2).(*array.StringBuilder).Append("after")
					if i%2 == 0 {
						b.Field(1).AppendEmptyValue()
					} else {
						b.Field(1).AppendNull()
					}
				}
				rec := b.NewRecordBatch()
				b.Release()
				frame := encode(t, rec)
				got, err := arrowio.Decode(frame, nil)
				if err != nil {
					t.Fatalf("%d rows: %v", rows, err)
				}
				if !array.RecordEqual(rec, got) || !got.Schema().Equal(schema) {
					t.Errorf("%d rows: got %v, want %v", rows, got, rec)
				}
				if n := arrowio.BytesOutside(got, frame); n != 0 {
					t.Errorf("%d rows: %d bytes were copied", rows, n)
				}
				got.Release()
				rec.Release()
			}
		})
	}
}
