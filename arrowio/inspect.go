package arrowio

import (
	"fmt"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
)

// FrameBodyBytes is the sum of the body lengths in bytes of a framed batch, from
// its message headers alone. The error wraps ErrCorrupt.
func FrameBodyBytes(frame []byte) (int64, error) {
	m, err := split(frame, nil)
	if err != nil {
		return 0, fmt.Errorf("arrowio: frame of %d bytes: %w: %w", len(frame), ErrCorrupt, err)
	}
	return m.body, nil
}

// BytesOutside is the number of bytes in the batch's buffers (dictionaries and
// children included) that do not lie in region: 0 proves that a batch decoded
// from region was not copied.
func BytesOutside(batch arrow.RecordBatch, region []byte) int64 {
	low := uintptr(unsafe.Pointer(unsafe.SliceData(region)))
	high := low + uintptr(len(region))
	n := int64(0)
	var walk func(arrow.ArrayData)
	walk = func(d arrow.ArrayData) {
		for _, b := range d.Buffers() {
			if b == nil || b.Len() == 0 {
				continue
			}
			at := uintptr(unsafe.Pointer(unsafe.SliceData(b.Bytes())))
			if at < low || at+uintptr(b.Len()) > high {
				n += int64(b.Len())
			}
		}
		for _, c := range d.Children() {
			walk(c)
		}
		if d.DataType().ID() == arrow.DICTIONARY {
			walk(d.Dictionary())
		}
	}
	for _, c := range batch.Columns() {
		walk(c.Data())
	}
	return n
}
