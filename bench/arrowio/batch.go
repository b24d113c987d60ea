package main

import (
	"fmt"
	"os"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// columns of float64 make a batch. Its body has exactly the size that was asked
// for: no nulls, no padding.
const columns = 4

var schema = arrow.NewSchema([]arrow.Field{
	{Name: "x0", Type: arrow.PrimitiveTypes.Float64}, {Name: "x1", Type: arrow.PrimitiveTypes.Float64},
	{Name: "x2", Type: arrow.PrimitiveTypes.Float64}, {Name: "x3", Type: arrow.PrimitiveTypes.Float64},
}, nil)

// values are the columns of a batch of size bytes, as a producer has them before
// there is a batch.
func values(size int64) [][]float64 {
	rows := size / (8 * columns)
	vs := make([][]float64, columns)
	for c := range vs {
		vs[c] = make([]float64, rows)
		for i := range vs[c] {
			vs[c][i] = float64(i + c)
		}
	}
	return vs
}

// build makes a batch of values in the allocator's memory.
func build(mem memory.Allocator, vs [][]float64) arrow.RecordBatch {
	b := array.NewRecordBuilder(mem, schema)
	defer b.Release()
	b.Reserve(len(vs[0]))
	for c, v := range vs {
		b.Field(c).(*array.Float64Builder).AppendValues(v, nil)
	}
	return b.NewRecordBatch()
}

// touch reads one byte of every page of the batch's values. The sum proves it.
func touch(batch arrow.RecordBatch) uint64 {
	var sum uint64
	page := os.Getpagesize()
	for _, c := range batch.Columns() {
		p := c.Data().Buffers()[1].Bytes()
		for i := 0; i < len(p); i += page {
			sum += uint64(p[i])
		}
	}
	return sum
}

func checkSum(got, want uint64) error {
	if got != want {
		return fmt.Errorf("the consumer read %d, the producer wrote %d", got, want)
	}
	return nil
}
