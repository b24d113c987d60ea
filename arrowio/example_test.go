package arrowio_test

import (
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
)

func ExampleDecode() {
	schema := arrow.NewSchema([]arrow.Field{{Name: "delay", Type: arrow.PrimitiveTypes.Int32}}, nil)
	b := array.NewRecordBuilder(memory.NewGoAllocator(), schema)
	defer b.Release()
	b.Field(0).(*array.Int32Builder).AppendValues([]int32{5, -3, 20}, nil)
	batch := b.NewRecordBatch()
	defer batch.Release()

	var copies arrowio.Copies
	frame, err := arrowio.Encode(batch, &copies)
	if err != nil {
		fmt.Println(err)
		return
	}
	same, err := arrowio.Decode(frame, func() { fmt.Println("frame may be reused") })
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(same.Column(0), arrowio.BytesOutside(same, frame), "bytes copied to read,", copies.Bytes(), "to write")
	same.Release()
	// Output:
	// [5 -3 20] 0 bytes copied to read, 64 to write
	// frame may be reused
}

func ExampleDecoder() {
	schema := arrow.NewSchema([]arrow.Field{{Name: "delay", Type: arrow.PrimitiveTypes.Int32}}, nil)
	b := array.NewRecordBuilder(memory.NewGoAllocator(), schema)
	defer b.Release()

	var decoder arrowio.Decoder
	var first *arrow.Schema
	for i := range 3 {
		b.Field(0).(*array.Int32Builder).Append(int32(i))
		batch := b.NewRecordBatch()
		frame, err := arrowio.Encode(batch, nil)
		batch.Release()
		if err != nil {
			fmt.Println(err)
			return
		}
		same, err := decoder.Decode(frame, nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		if first == nil {
			first = same.Schema()
		}
		fmt.Println(same.Column(0), "schema read once:", same.Schema() == first)
		same.Release()
	}
	// Output:
	// [0] schema read once: true
	// [1] schema read once: true
	// [2] schema read once: true
}
