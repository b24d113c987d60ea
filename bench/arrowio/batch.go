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

func newSchema() *arrow.Schema {
	fields := make([]arrow.Field, columns)
	for i := range fields {
		fields[i] = arrow.Field{Name: fmt.Sprintf("x%d", i), Type: arrow.PrimitiveTypes.Float64}
	}
	return arrow.NewSchema(fields, nil)
}

// table is what a producer has before there is a batch.
type table struct {
	schema *arrow.Schema
	values [][]float64 // by column
}

// newTable has the values of a batch of size bytes.
func newTable(size int64) table {
	t := table{newSchema(), make([][]float64, columns)}
	for c := range t.values {
		t.values[c] = make([]float64, size/(8*columns))
		for i := range t.values[c] {
			t.values[c][i] = float64(i + c)
		}
	}
	return t
}

// build makes a batch in the allocator's memory.
func (t table) build(mem memory.Allocator) arrow.RecordBatch {
	b := array.NewRecordBuilder(mem, t.schema)
	defer b.Release()
	b.Reserve(len(t.values[0]))
	for c, v := range t.values {
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
