package shm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
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
		b.Field(11).AppendNull()
		if i%2 == 0 {
			b.Field(11).(*array.Decimal128Builder).UnsafeAppendBoolToBitmap(true)
		}
		b.Field(12).AppendNull()
	}
}

func init2(b *array.RecordBuilder, rows int) arrow.RecordBatch {
	defer b.Release()
	fill(b, rows)
	return b.NewRecordBatch()
}

// plain is the same batch on the Go heap.
func plain(tb testing.TB, rows int) arrow.RecordBatch {
	tb.Helper()
	rec := init2(array.NewRecordBuilder(memory.NewGoAllocator(), manySchema()), rows)
	tb.Cleanup(rec.Release)
	return rec
}
