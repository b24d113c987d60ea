package main

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// eventRows is a table as pipelines have them: keys and times that grow, measures with
// nulls, categories as text and as a dictionary, text that hardly repeats.
func eventRows(rows int) arrow.RecordBatch {
	opt := func(name string, dt arrow.DataType) arrow.Field {
		return arrow.Field{Name: name, Type: dt, Nullable: true}
	}
	f64 := arrow.PrimitiveTypes.Float64
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int64},
		{Name: "at", Type: arrow.FixedWidthTypes.Timestamp_us},
		opt("delay", arrow.PrimitiveTypes.Int32), opt("distance", arrow.PrimitiveTypes.Int16),
		{Name: "latitude", Type: f64}, opt("price", f64), {Name: "score", Type: arrow.PrimitiveTypes.Float32},
		opt("carrier", arrow.BinaryTypes.String), {Name: "origin", Type: &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int16, ValueType: arrow.BinaryTypes.String}},
		{Name: "message", Type: arrow.BinaryTypes.String}, opt("cancelled", arrow.FixedWidthTypes.Boolean),
	}, nil)
	r := rand.New(rand.NewPCG(1, 2))
	b := array.NewRecordBuilder(memory.NewGoAllocator(), schema)
	defer b.Release()
	at := int64(1_700_000_000_000_000)
	for i := range rows {
		at += r.Int64N(50_000)
		b.Field(0).(*array.Int64Builder).Append(int64(i))
		b.Field(1).(*array.TimestampBuilder).Append(arrow.Timestamp(at))
		b.Field(4).(*array.Float64Builder).Append(r.NormFloat64() * 40)
		b.Field(6).(*array.Float32Builder).Append(r.Float32())
		_ = b.Field(8).(*array.BinaryDictionaryBuilder).AppendString(fmt.Sprintf("AIR%d", r.IntN(300))) // 300 fit an int16
		b.Field(9).(*array.StringBuilder).Append(fmt.Sprintf("flight %d delayed by crew %x", r.IntN(100_000), r.Uint32()))
		if r.IntN(10) == 0 {
			for _, j := range []int{2, 3, 5, 7, 10} {
				b.Field(j).AppendNull()
			}
			continue
		}
		b.Field(2).(*array.Int32Builder).Append(int32(r.NormFloat64() * 30))
		b.Field(3).(*array.Int16Builder).Append(int16(r.IntN(3000)))
		b.Field(5).(*array.Float64Builder).Append(math.Round(r.ExpFloat64()*20_000) / 100)
		b.Field(7).(*array.StringBuilder).Append([]string{"DY", "SK", "LH", "AF", "KL", "BA", "UA", "AA"}[r.IntN(8)])
		b.Field(10).(*array.BooleanBuilder).Append(r.IntN(50) == 0)
	}
	return b.NewRecordBatch()
}

// embeddings is a batch of vectors with a label and a few tags each.
func embeddings(rows int) arrow.RecordBatch {
	const width = 128
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "vector", Type: arrow.FixedSizeListOfNonNullable(width, arrow.PrimitiveTypes.Float32)},
		{Name: "label", Type: arrow.PrimitiveTypes.Int32},
		{Name: "tags", Type: arrow.ListOf(arrow.BinaryTypes.String), Nullable: true},
	}, nil)
	r := rand.New(rand.NewPCG(3, 4))
	b := array.NewRecordBuilder(memory.NewGoAllocator(), schema)
	defer b.Release()
	vectors := b.Field(0).(*array.FixedSizeListBuilder)
	values := vectors.ValueBuilder().(*array.Float32Builder)
	tags := b.Field(2).(*array.ListBuilder)
	one := make([]float32, width)
	for range rows {
		for i := range one {
			one[i] = float32(r.NormFloat64())
		}
		vectors.Append(true)
		values.AppendValues(one, nil)
		b.Field(1).(*array.Int32Builder).Append(r.Int32N(1000))
		tags.Append(true)
		for range r.IntN(5) {
			tags.ValueBuilder().(*array.StringBuilder).Append(fmt.Sprintf("tag %d", r.IntN(50)))
		}
	}
	return b.NewRecordBatch()
}
