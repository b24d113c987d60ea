package arrowio

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
)

const (
	// Alignment is the boundary in bytes that every message and every buffer of
	// a frame starts on, relative to the frame's start.
	Alignment = 64

	prefixBytes = 8 // continuation marker and metadata length before each message
	marker      = 0xFFFFFFFF
)

// ErrSize means: the destination is not as large as the frame.
var ErrSize = errors.New("wrong frame size")

// Frame is a batch laid out for writing but not yet copied anywhere: it refers
// to the batch's own buffers. Use it where the size must be known before the
// memory is taken; EncodeTo then does not lay out twice. Valid while the batch
// is. Not safe for concurrent use.
type Frame struct {
	messages []message
	size     int64
	body     int64
}

// message is the parts of one encapsulated message; the parts of the body are
// buffers of the batch and shared padding, already in order.
type message struct {
	meta   []byte
	header header   // of meta
	body   [][]byte // buffers that are not empty, in order; padded when written
	size   int64    // of the body, padding included
}

// check fills in the header.
func (m *message) check() (err error) {
	if m.header, err = checkMessage(m.meta); err != nil {
		err = fmt.Errorf("own metadata: %w", err)
	}
	return err
}

func (m *message) metaLen() int64 { return pad(prefixBytes+int64(len(m.meta))) - prefixBytes }

func pad(n int64) int64 { return (n + Alignment - 1) &^ (Alignment - 1) }

// Prepare lays a batch out. It copies no body bytes, except where a sliced
// array's bits, offsets or run ends must be moved to start at zero: Arrow's
// format has no offsets into them. The error wraps ErrUnsupported if the format
// has no form for one of the types.
func Prepare(batch arrow.RecordBatch) (*Frame, error) {
	f, err := prepare(batch)
	if err != nil {
		return nil, fmt.Errorf("arrowio: lay out batch of schema %s: %w", Fingerprint(batch.Schema()), err)
	}
	return f, nil
}

func prepare(batch arrow.RecordBatch) (f *Frame, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed array: %v", p) // lengths that its buffers do not have
		}
	}()
	schema, err := schemaMessage(batch.Schema())
	if err != nil {
		return nil, err
	}
	var parts flattener
	if err := parts.batch(batch, schema.header.encodings); err != nil {
		return nil, err
	}
	f = &Frame{messages: make([]message, 0, len(parts.dicts)+2), size: prefixBytes} // of the end of stream
	f.add(schema)
	for _, d := range parts.dicts {
		m, err := d.body.message(d.rows, &d.id, arrow.Metadata{})
		if err != nil {
			return nil, err
		}
		f.add(m)
	}
	var custom arrow.Metadata
	if m, ok := batch.(arrow.RecordBatchWithMetadata); ok {
		custom = m.Metadata()
	}
	m, err := parts.body.message(batch.NumRows(), nil, custom)
	if err != nil {
		return nil, err
	}
	f.add(m)
	return f, nil
}

func (f *Frame) add(m message) {
	f.messages = append(f.messages, m)
	f.size += prefixBytes + m.metaLen() + m.size
	f.body += m.size
}

// Size is the frame's length in bytes.
func (f *Frame) Size() int64 { return f.size }

// BodyBytes is the sum of the bodies' lengths in bytes, padding included.
func (f *Frame) BodyBytes() int64 { return f.body }

// EncodeTo writes the frame to the start of dst and returns Size. It copies each
// body byte once and counts that in copies (which may be nil). The error wraps
// ErrSize if dst is too short; dst is then untouched. Bytes of dst after the
// frame are left alone. dst should be 64-byte aligned memory if it is to be
// read in place.
func (f *Frame) EncodeTo(dst []byte, copies *Copies) (int, error) {
	if int64(len(dst)) < f.size {
		return 0, fmt.Errorf("arrowio: encode: %w: %d bytes given, frame has %d", ErrSize, len(dst), f.size)
	}
	at := int64(0)
	for i := range f.messages {
		m := &f.messages[i]
		metaLen := m.metaLen()
		binary.LittleEndian.PutUint32(dst[at:], marker)
		binary.LittleEndian.PutUint32(dst[at+4:], uint32(metaLen))
		at += prefixBytes
		n := copy(dst[at:], m.meta)
		clear(dst[at+int64(n) : at+metaLen])
		at += metaLen
		for _, part := range m.body {
			n := int64(copy(dst[at:], part))
			clear(dst[at+n : at+pad(n)])
			at += pad(n)
		}
	}
	binary.LittleEndian.PutUint32(dst[at:], marker)
	binary.LittleEndian.PutUint32(dst[at+4:], 0)
	copies.Add(f.body)
	return int(f.size), nil
}

// EncodedSize is the length in bytes of the frame that EncodeTo writes.
func EncodedSize(batch arrow.RecordBatch) (int64, error) {
	f, err := Prepare(batch)
	if err != nil {
		return 0, err
	}
	return f.Size(), nil
}

// EncodeTo frames batch into dst, as Frame.EncodeTo.
func EncodeTo(dst []byte, batch arrow.RecordBatch, copies *Copies) (int, error) {
	f, err := Prepare(batch)
	if err != nil {
		return 0, err
	}
	return f.EncodeTo(dst, copies)
}

// Encode frames batch into a new slice on the Go heap, 64-byte aligned.
func Encode(batch arrow.RecordBatch, copies *Copies) ([]byte, error) {
	f, err := Prepare(batch)
	if err != nil {
		return nil, err
	}
	dst := aligned(int(f.Size()))
	_, err = f.EncodeTo(dst, copies)
	return dst, err
}

// BodyBytes is the length in bytes of batch's Arrow bodies (dictionaries
// included) as framed: uncompressed, each buffer padded to 64 bytes. This is
// Ref.BodyBytes.
func BodyBytes(batch arrow.RecordBatch) (int64, error) {
	f, err := Prepare(batch)
	if err != nil {
		return 0, err
	}
	return f.BodyBytes(), nil
}
