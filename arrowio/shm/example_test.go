package shm_test

import (
	"context"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

// A batch is built in the arena and published without moving a byte of it.
func ExampleArena_Build() {
	a, err := shm.New(shm.Config{Bytes: 1 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer a.Close()
	schema := arrow.NewSchema([]arrow.Field{{Name: "kelvin", Type: arrow.PrimitiveTypes.Float64}}, nil)

	build, err := a.Build(context.Background(), schema, 64<<10)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer build.Cancel() // does nothing once published
	b := array.NewRecordBuilder(build.Allocator(), schema)
	defer b.Release()
	b.Field(0).(*array.Float64Builder).AppendValues([]float64{373.15, 451.3}, nil)
	batch := b.NewRecordBatch()
	var copies arrowio.Copies
	h, copied, err := build.Publish(context.Background(), batch, &copies)
	batch.Release()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("copied", copied, "bytes of", copies.Batches(), "batches")

	lease, err := a.Lease(h, "stoker")
	if err != nil {
		fmt.Println(err)
		return
	}
	read, err := lease.Batch()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(read.Column(0))
	read.Release() // and the lease with it
	// Output:
	// copied 0 bytes of 0 batches
	// [373.15 451.3]
}

// A limit on all arenas of a process is told apart from a machine that is full.
func ExampleHost_limit() {
	host := shm.Host{Limit: 1 << 20}
	defer host.Close()
	if _, err := host.New(shm.Config{Bytes: 768 << 10}); err != nil {
		fmt.Println(err)
	}
	_, err := host.New(shm.Config{Bytes: 512 << 10})
	fmt.Println(err)
	// Output:
	// shm: arena of 524288 bytes: over the host's quota of shared memory (786432 of 1048576 bytes in use)
}
