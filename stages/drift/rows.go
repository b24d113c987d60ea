package drift

import (
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// raw is a numeric column as float64; nil where it has another type, which the
// target has refused before.
func raw(rec arrow.RecordBatch, column string) []float64 {
	at := rec.Schema().FieldIndices(column)
	if len(at) != 1 {
		return nil
	}
	out := make([]float64, 0, rec.NumRows())
	switch c := rec.Column(at[0]).(type) {
	case *array.Int64:
		for _, v := range c.Int64Values() {
			out = append(out, float64(v))
		}
	case *array.Int32:
		for _, v := range c.Int32Values() {
			out = append(out, float64(v))
		}
	case *array.Float64:
		out = append(out, c.Float64Values()...)
	case *array.Float32:
		for _, v := range c.Float32Values() {
			out = append(out, float64(v))
		}
	}
	return out
}

func encodeRow(schema *arrow.Schema, key uint64, report, state string) arrow.RecordBatch {
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	b.Field(0).(*array.Uint64Builder).Append(key)
	b.Field(1).(*array.StringBuilder).Append(report)
	b.Field(2).(*array.StringBuilder).Append(state)
	return b.NewRecordBatch()
}
