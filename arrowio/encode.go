package arrowio

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
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
	meta []byte
	body [][]byte // buffers that are not empty, in order; padded when written
	size int64    // of the body, padding included
}

func (m *message) metaLen() int64 { return pad(prefixBytes+int64(len(m.meta))) - prefixBytes }

func pad(n int64) int64 { return (n + Alignment - 1) &^ (Alignment - 1) }

// Prepare lays a batch out. It copies no body bytes, except where a sliced
// array's validity bits or offsets must be moved to start at zero: Arrow's
// format has no offsets into them.
func Prepare(batch arrow.RecordBatch) (*Frame, error) {
	f := &Frame{}
	w := ipc.NewWriterWithPayloadWriter((*layout)(f), ipc.WithSchema(batch.Schema()))
	err := w.Write(batch)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("arrowio: lay out batch of schema %s: %w", Fingerprint(batch.Schema()), err)
	}
	f.size += prefixBytes // end of stream
	return f, nil
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

// layout is a Frame in its role as the IPC writer's sink: it takes the slices
// it is given instead of writing their bytes.
type layout Frame

func (l *layout) Start() error { return nil }
func (l *layout) Close() error { return nil }

func (l *layout) WritePayload(p ipc.Payload) error {
	meta := p.Meta()
	defer meta.Release()
	// The writer releases the payload's buffers when this returns. The slices stay
	// good: they are the batch's, or of the Go heap.
	m := message{meta: meta.Bytes()}
	var parts gather
	if err := p.SerializeBody(&parts); err != nil {
		return err
	}
	if err := m.place(parts); err != nil {
		return err
	}
	l.messages = append(l.messages, m)
	l.size += prefixBytes + m.metaLen() + m.size
	l.body += m.size
	return nil
}

// place assigns each buffer of the body a 64-byte aligned offset and writes the
// offsets into the metadata, which is ours. The library's writer aligns buffers
// to 8 bytes only, and its parts are the buffers that are not empty, each
// followed by its padding to 8 if that is not empty.
func (m *message) place(parts [][]byte) error {
	var h header
	if err := checkMessage(m.meta, &h); err != nil {
		return fmt.Errorf("own metadata: %w", err)
	}
	next := 0
	for i := range h.bufferCount {
		at := h.buffers + structBytes*i
		n := int64(binary.LittleEndian.Uint64(m.meta[at+8:]))
		binary.LittleEndian.PutUint64(m.meta[at:], uint64(m.size))
		if n == 0 {
			continue
		}
		if next >= len(parts) || int64(len(parts[next])) != n {
			return fmt.Errorf("body does not match its metadata at buffer %d", i)
		}
		m.body = append(m.body, parts[next])
		m.size += pad(n)
		if next++; n%8 != 0 {
			next++
		}
	}
	if next != len(parts) {
		return fmt.Errorf("body has %d parts, metadata %d", len(parts), next)
	}
	if m.size > 0 {
		if h.bodyPos == 0 {
			return fmt.Errorf("body of %d bytes, none in the metadata", m.size)
		}
		binary.LittleEndian.PutUint64(m.meta[h.bodyPos:], uint64(m.size))
	}
	return nil
}

// gather collects what is written to it, without copying.
type gather [][]byte

func (g *gather) Write(part []byte) (int, error) {
	*g = append(*g, part)
	return len(part), nil
}
