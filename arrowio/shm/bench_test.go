package shm_test

import (
	"fmt"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

// numbers builds eight columns of eight-byte values, bytes in all. If sized
// the builders know how many beforehand.
func numbers(mem memory.Allocator, schema *arrow.Schema, bytes int, sized bool) arrow.RecordBatch {
	b := array.NewRecordBuilder(mem, schema)
	defer b.Release()
	rows := bytes / 8 / schema.NumFields()
	for c := range b.Fields() {
		f := b.Field(c).(*array.Float64Builder)
		if sized {
			f.Resize(rows)
			for i := range rows {
				f.UnsafeAppend(float64(i))
			}
			continue
		}
		for i := range rows {
			f.Append(float64(i))
		}
	}
	return b.NewRecordBatch()
}

func numbersSchema() *arrow.Schema {
	var fields []arrow.Field
	for i := range 8 {
		fields = append(fields, arrow.Field{Name: fmt.Sprint("x", i), Type: arrow.PrimitiveTypes.Float64})
	}
	return arrow.NewSchema(fields, nil)
}

// BenchmarkBuild makes a batch and publishes it: in place, and on the Go heap
// with the copy that Put makes. "heap" is the building alone, which the first is
// held against.
func BenchmarkBuild(b *testing.B) {
	schema := numbersSchema()
	for _, size := range []int{1 << 20, 16 << 20} {
		for name, sized := range map[string]bool{"sized": true, "growing": false} {
			label := fmt.Sprintf("%dMiB-%s", size>>20, name)
			b.Run("heap/"+label, func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					numbers(memory.NewGoAllocator(), schema, size, sized).Release()
				}
			})
			b.Run("InPlace/"+label, func(b *testing.B) {
				a, err := shm.New(shm.Config{Bytes: 128 << 20, Prefault: true})
				if err != nil {
					b.Fatal(err)
				}
				defer a.Close()
				room := int64(size + size/32)
				if !sized {
					room = 3 * int64(size)
				}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					in, err := a.Build(b.Context(), schema, room)
					if err != nil {
						b.Fatal(err)
					}
					rec := numbers(in.Allocator(), schema, size, sized)
					h, copied, err := in.Publish(b.Context(), rec, nil)
					if err != nil || copied != 0 {
						b.Fatal(copied, err)
					}
					rec.Release()
					if err := a.Drop(h); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("heapAndPut/"+label, func(b *testing.B) {
				a, err := shm.New(shm.Config{Bytes: 128 << 20, Prefault: true})
				if err != nil {
					b.Fatal(err)
				}
				defer a.Close()
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					rec := numbers(memory.NewGoAllocator(), schema, size, sized)
					h, err := a.Put(b.Context(), rec, nil)
					if err != nil {
						b.Fatal(err)
					}
					rec.Release()
					if err := a.Drop(h); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkPut frames a batch that exists into the arena: one copy.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{1 << 20, 16 << 20} {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			a, err := shm.New(shm.Config{Bytes: 128 << 20, Prefault: true})
			if err != nil {
				b.Fatal(err)
			}
			defer a.Close()
			rec := numbers(memory.NewGoAllocator(), numbersSchema(), size, true)
			defer rec.Release()
			var copies arrowio.Copies
			b.SetBytes(int64(size))
			b.ReportAllocs()
			n := int64(0)
			for b.Loop() {
				n++
				h, err := a.Put(b.Context(), rec, &copies)
				if err != nil {
					b.Fatal(err)
				}
				if err := a.Drop(h); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(copies.Bytes())/float64(n*int64(size)), "copies/op")
		})
	}
}
