package arrowio

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

const (
	// MaxRows is the most rows that a batch may say it has.
	MaxRows = 1<<31 - 1
	// MaxMetadataBytes is the most metadata that one message of a frame may have.
	MaxMetadataBytes = 16 << 20

	maxMessages = 1 << 12
)

// DecodeOption varies how a frame is decoded.
type DecodeOption func(*decodeConfig)

type decodeConfig struct{ trusted bool }

// Trusted skips the check of every value (offsets, UTF-8, null counts,
// dictionary indices), which reads the whole body. Use it for memory that this
// process wrote, or has checked before and that nobody can have changed since.
// The framing and all bounds are checked regardless.
func Trusted() DecodeOption { return func(c *decodeConfig) { c.trusted = true } }

// Decode returns the batch framed in buf without copying its body: the arrays'
// buffers alias buf, which must stay unchanged until release is called. Metadata
// is copied before it is looked at, so that a writer that still has access
// cannot change what was checked. release (which may be nil) is called exactly
// once: when the last reference to the batch and its buffers is released, or
// before Decode returns an error. buf must start on an 8-byte boundary.
//
// Unless Trusted is given, everything is validated, so that no value read from
// the batch can lie outside buf. An error wraps ErrCorrupt. Memory use beyond
// buf is bounded by a small multiple of the metadata's size.
func Decode(buf []byte, release func(), opts ...DecodeOption) (arrow.RecordBatch, error) {
	var cfg decodeConfig
	for _, o := range opts {
		o(&cfg)
	}
	hold := &holder{release: release}
	hold.n.Add(1)
	rec, err := decode(buf, hold, cfg)
	if err != nil {
		// Arrays half built when the library gave up may never be released.
		hold.once()
		return nil, fmt.Errorf("arrowio: decode %d bytes: %w: %w", len(buf), ErrCorrupt, err)
	}
	hold.done()
	return rec, nil
}

func decode(buf []byte, hold *holder, cfg decodeConfig) (rec arrow.RecordBatch, err error) {
	// The library turns its panics into errors while it reads; the checks of a
	// schema's types do not all.
	defer func() {
		if p := recover(); p != nil {
			rec, err = nil, fmt.Errorf("malformed: %v", p)
		}
	}()
	if len(buf) > 0 && uintptr(unsafe.Pointer(unsafe.SliceData(buf)))%8 != 0 {
		return nil, fmt.Errorf("not 8-byte aligned in memory")
	}
	msgs, rows, err := split(buf, hold)
	if err != nil {
		return nil, err
	}
	defer msgs.Release()
	r, err := ipc.NewReaderFromMessageReader(msgs)
	if err != nil {
		return nil, err
	}
	msgs.Retain()
	defer r.Release()
	if !r.Next() {
		if err = r.Err(); err == nil {
			err = fmt.Errorf("no record batch")
		}
		return nil, err
	}
	if len(msgs.left) != 0 {
		return nil, fmt.Errorf("%d messages are not used", len(msgs.left))
	}
	rec = r.RecordBatch()
	if rec.NumRows() != rows {
		return nil, fmt.Errorf("batch of %d rows where the message says %d", rec.NumRows(), rows)
	}
	for i, col := range rec.Columns() {
		if int64(col.Len()) != rows {
			return nil, fmt.Errorf("column %d (%s) has %d values, the batch %d rows", i, clip(rec.ColumnName(i)), col.Len(), rows)
		}
	}
	if !cfg.trusted {
		if err := validate(rec); err != nil {
			return nil, err
		}
	}
	rec.Retain()
	return rec, nil
}

// split cuts a frame into its messages and checks each one's metadata.
func split(buf []byte, hold *holder) (*messages, int64, error) {
	m := &messages{}
	m.refs.Store(1)
	rest, at := buf, int64(0)
	var schema header
	for len(rest) > 0 { // the end-of-stream marker may be left out
		if len(rest) < prefixBytes {
			return nil, 0, fmt.Errorf("truncated at byte %d: %d bytes where a message begins", at, len(rest))
		}
		if binary.LittleEndian.Uint32(rest) != marker {
			return nil, 0, fmt.Errorf("no message at byte %d", at)
		}
		metaLen := int64(binary.LittleEndian.Uint32(rest[4:]))
		if metaLen == 0 {
			if len(rest) != prefixBytes {
				return nil, 0, fmt.Errorf("%d bytes after the end of the stream", len(rest)-prefixBytes)
			}
			break
		}
		if len(m.left) == maxMessages {
			return nil, 0, fmt.Errorf("more than %d messages", maxMessages)
		}
		if metaLen > MaxMetadataBytes || metaLen%8 != 0 {
			return nil, 0, fmt.Errorf("metadata of %d bytes at byte %d: want a multiple of 8, at most %d", metaLen, at, MaxMetadataBytes)
		}
		rest, at = rest[prefixBytes:], at+prefixBytes
		if metaLen > int64(len(rest)) {
			return nil, 0, fmt.Errorf("truncated: metadata of %d bytes at byte %d, %d left", metaLen, at, len(rest))
		}
		meta := append([]byte(nil), rest[:metaLen]...)
		rest, at = rest[metaLen:], at+metaLen
		h, err := checkMessage(meta)
		if err != nil {
			return nil, 0, fmt.Errorf("message %d: %w", len(m.left), err)
		}
		if h.bodyBytes > int64(len(rest)) {
			return nil, 0, fmt.Errorf("truncated: body of %d bytes at byte %d, %d left", h.bodyBytes, at, len(rest))
		}
		if h.bodyBytes%8 != 0 {
			return nil, 0, fmt.Errorf("body of %d bytes: want a multiple of 8", h.bodyBytes)
		}
		if (h.kind == headerSchema) != (len(m.left) == 0) {
			return nil, 0, fmt.Errorf("message %d: the schema must be first and only there", len(m.left))
		}
		switch h.kind {
		case headerSchema:
			schema = h
		case headerBatch:
			err = h.fits(schema.shape)
		case headerDict:
			want, known := schema.dicts[h.dict]
			if !known {
				return nil, 0, fmt.Errorf("message %d: dictionary %d is not in the schema", len(m.left), h.dict)
			}
			err = h.fits(want)
		}
		if err != nil {
			return nil, 0, fmt.Errorf("message %d: %w", len(m.left), err)
		}
		m.left = append(m.left, part{meta: meta, body: rest[:h.bodyBytes:h.bodyBytes]})
		rest, at = rest[h.bodyBytes:], at+h.bodyBytes
		if h.kind == headerBatch {
			if m.whole {
				return nil, 0, fmt.Errorf("more than one record batch")
			}
			m.rows, m.whole = h.rows, true
		} else if m.whole {
			return nil, 0, fmt.Errorf("message after the record batch")
		}
	}
	if !m.whole {
		return nil, 0, fmt.Errorf("no record batch")
	}
	m.hold = hold
	return m, m.rows, nil
}

type part struct{ meta, body []byte }

// messages hands the parts of a frame to the IPC reader.
type messages struct {
	left  []part
	hold  *holder
	refs  atomic.Int64
	last  *ipc.Message
	rows  int64
	whole bool
}

func (m *messages) Message() (*ipc.Message, error) {
	if len(m.left) == 0 {
		return nil, io.EOF
	}
	p := m.left[0]
	m.left = m.left[1:]
	m.hold.n.Add(1)
	meta, body := memory.NewBufferBytes(p.meta), memory.NewBufferWithAllocator(p.body, m.hold)
	msg := ipc.NewMessage(meta, body)
	body.Release() // the message has its own hold
	m.drop()
	m.last = msg
	return msg, nil
}

func (m *messages) drop() {
	if m.last != nil {
		m.last.Release()
		m.last = nil
	}
}

func (m *messages) Retain() { m.refs.Add(1) }

func (m *messages) Release() {
	if m.refs.Add(-1) == 0 {
		m.drop()
	}
}

// holder calls release when the last buffer over the frame is freed. It is the
// allocator of those buffers, whose only used method is Free.
type holder struct {
	n       atomic.Int64
	called  atomic.Bool
	release func()
}

func (h *holder) once() {
	if h.called.CompareAndSwap(false, true) && h.release != nil {
		h.release()
	}
}

func (h *holder) done() {
	if h.n.Add(-1) == 0 {
		h.once()
	}
}

func (h *holder) Allocate(size int) []byte { return make([]byte, size) }

func (h *holder) Reallocate(size int, b []byte) []byte {
	grown := make([]byte, size)
	copy(grown, b)
	return grown
}

func (h *holder) Free([]byte) { h.done() }

// aligned returns n bytes of the Go heap starting on an Alignment boundary.
func aligned(n int) []byte {
	b := make([]byte, n+Alignment)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (Alignment - 1)
	return b[skip : skip+n : skip+n]
}
