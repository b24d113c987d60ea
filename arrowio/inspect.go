package arrowio

import (
	"fmt"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
)

// FrameBodyBytes is the sum of the body lengths in bytes of a framed batch, from
// its message headers alone. The error wraps ErrCorrupt.
func FrameBodyBytes(frame []byte) (int64, error) {
	var m messages
	if err := m.split(frame, nil); err != nil {
		return 0, fmt.Errorf("arrowio: frame of %d bytes: %w: %w", len(frame), ErrCorrupt, err)
	}
	return m.body, nil
}

// Message is one encapsulated message of a frame, without the 8 bytes that come
// before it.
type Message struct {
	Meta []byte // the FlatBuffer as framed, its padding included; a copy
	Body []byte // as framed, its padding included; lies in the frame
}

// Layout is what a frame consists of.
type Layout struct {
	// Messages are the schema, the dictionaries, if there are any, and last the
	// record batch.
	Messages  []Message
	Rows      int64
	BodyBytes int64 // sum of the bodies' lengths
}

// Inspect cuts a frame into its messages, and checks the framing and all bounds
// as Decode does, but no values. It copies no body bytes. The error wraps
// ErrCorrupt.
func Inspect(frame []byte) (Layout, error) {
	var m messages
	if err := m.split(frame, nil); err != nil {
		return Layout{}, fmt.Errorf("arrowio: frame of %d bytes: %w: %w", len(frame), ErrCorrupt, err)
	}
	l := Layout{Rows: m.batch.header.rows, BodyBytes: m.body, Messages: make([]Message, 0, 2+len(m.dicts))}
	l.Messages = append(l.Messages, Message{Meta: m.known.meta}) // a schema has no body
	for _, p := range append(m.dicts, m.batch) {
		l.Messages = append(l.Messages, Message{Meta: p.meta, Body: p.body})
	}
	return l, nil
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
