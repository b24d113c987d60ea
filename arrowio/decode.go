package arrowio

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
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

type decodeConfig struct {
	trusted bool
	body    *int64
}

// Trusted skips the check of every value (offsets, UTF-8, null counts,
// dictionary indices), which reads the whole body. Use it for memory that this
// process wrote, or has checked before and that nobody can have changed since.
// The framing and all bounds are checked regardless.
func Trusted() DecodeOption { return func(c *decodeConfig) { c.trusted = true } }

// CountBody sets n to the sum of the lengths of the frame's bodies in bytes, as
// FrameBodyBytes returns it, if the frame is decoded.
func CountBody(n *int64) DecodeOption { return func(c *decodeConfig) { c.body = n } }

// Decode returns the batch framed in buf without copying its body: the arrays'
// buffers alias buf, which must stay unchanged until release is called. Metadata
// is copied before it is looked at, so that a writer that still has access
// cannot change what was checked. release (which may be nil) is called exactly
// once: when the last reference to the batch and its buffers is released, or
// before Decode returns an error. buf must start on an 8-byte boundary.
//
// Unless Trusted is given, everything is validated, so that no value read from
// the batch can lie outside buf. An error wraps ErrCorrupt, and ErrUnsupported
// where it says so. Memory use beyond buf is bounded by a small multiple of the
// metadata's size.
//
// An extension type that is not registered with the Arrow library is decoded as
// its storage type, with the name and parameters in the field's metadata; framing
// the batch again gives the same bytes.
func Decode(buf []byte, release func(), opts ...DecodeOption) (arrow.RecordBatch, error) {
	return new(Decoder).Decode(buf, release, opts...)
}

// Decoder decodes frames as the function Decode does, and remembers the schema of
// the last one: batches of one schema then share it, and its message is compared
// instead of read, which is most of the work that does not depend on the size.
// The zero value is ready. Safe for concurrent use.
type Decoder struct{ last atomic.Pointer[known] }

// Decode is as the function Decode.
func (d *Decoder) Decode(buf []byte, release func(), opts ...DecodeOption) (arrow.RecordBatch, error) {
	hold := &holder{release: release}
	for _, o := range opts {
		o(&hold.cfg)
	}
	hold.n.Add(1)
	rec, err := d.decode(buf, hold)
	if err != nil {
		// Arrays half built when the library gave up may never be released.
		hold.once()
		return nil, fmt.Errorf("arrowio: decode %d bytes: %w: %w", len(buf), ErrCorrupt, err)
	}
	hold.done()
	return rec, nil
}

func (d *Decoder) decode(buf []byte, hold *holder) (rec arrow.RecordBatch, err error) {
	// The library panics where it cannot make a type or an array of what it is
	// given, which checks should have seen before.
	defer func() {
		if p := recover(); p != nil {
			rec, err = nil, fmt.Errorf("malformed: %v", p)
		}
	}()
	if len(buf) > 0 && uintptr(unsafe.Pointer(unsafe.SliceData(buf)))%8 != 0 {
		return nil, fmt.Errorf("not 8-byte aligned in memory")
	}
	var m messages
	if err := m.split(buf, d.last.Load()); err != nil {
		return nil, err
	}
	if m.known.schema == nil {
		if err := m.known.resolve(); err != nil {
			return nil, err
		}
		d.last.Store(m.known)
	}
	l := loader{known: m.known, hold: hold}
	if len(m.dicts) > 0 {
		l.loaded = make(map[int64]arrow.ArrayData, len(m.dicts))
		l.parts = make(map[int64]part, len(m.dicts))
		for _, p := range m.dicts {
			if _, dup := l.parts[p.header.dict]; dup {
				return nil, fmt.Errorf("%w: dictionary %d is replaced", ErrUnsupported, p.header.dict)
			}
			l.parts[p.header.dict] = p
		}
	}
	data, err := l.batch(m.batch)
	defer l.release()
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, c := range data {
			c.Release()
		}
	}()
	rows := m.batch.header.rows
	v := validator{full: !hold.cfg.trusted}
	for i, col := range data {
		f := m.known.schema.Field(i)
		if int64(col.Len()) != rows {
			return nil, fmt.Errorf("column %d (%s) has %d values, the batch %d rows", i, clip(f.Name), col.Len(), rows)
		}
		if err := v.column(f, col); err != nil {
			return nil, fmt.Errorf("column %d (%s): %w", i, clip(f.Name), err)
		}
	}
	cols := make([]arrow.Array, len(data))
	for i, col := range data {
		cols[i] = array.MakeFromData(col)
		defer cols[i].Release()
	}
	if hold.cfg.body != nil {
		*hold.cfg.body = m.body
	}
	return array.NewRecordBatchWithMetadata(m.known.schema, cols, rows, m.batch.header.custom), nil
}

// part is one message of a frame: a checked copy of its metadata, and its body.
type part struct {
	meta, body []byte
	header     header
}

type messages struct {
	known *known
	dicts []part
	batch part
	body  int64 // sum of the bodies' lengths
}

// split cuts a frame into its messages and checks each one's metadata. A schema
// message that equals last (which may be nil) is taken for it.
func (m *messages) split(buf []byte, last *known) error {
	rest, at, n := buf, int64(0), 0
	for ; len(rest) > 0; n++ { // the end-of-stream marker may be left out
		if len(rest) < prefixBytes {
			return fmt.Errorf("truncated at byte %d: %d bytes where a message begins", at, len(rest))
		}
		if binary.LittleEndian.Uint32(rest) != marker {
			return fmt.Errorf("no message at byte %d", at)
		}
		metaLen := int64(binary.LittleEndian.Uint32(rest[4:]))
		if metaLen == 0 {
			if len(rest) != prefixBytes {
				return fmt.Errorf("%d bytes after the end of the stream", len(rest)-prefixBytes)
			}
			break
		}
		if n == maxMessages {
			return fmt.Errorf("more than %d messages", maxMessages)
		}
		if metaLen > MaxMetadataBytes || metaLen%8 != 0 {
			return fmt.Errorf("metadata of %d bytes at byte %d: want a multiple of 8, at most %d", metaLen, at, MaxMetadataBytes)
		}
		rest, at = rest[prefixBytes:], at+prefixBytes
		if metaLen > int64(len(rest)) {
			return fmt.Errorf("truncated: metadata of %d bytes at byte %d, %d left", metaLen, at, len(rest))
		}
		raw := rest[:metaLen]
		rest, at = rest[metaLen:], at+metaLen
		if n == 0 && last != nil && bytes.Equal(raw, last.meta) {
			m.known = last
			continue
		}
		p := part{meta: append([]byte(nil), raw...)}
		var err error
		if p.header, err = checkMessage(p.meta); err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
		h := &p.header
		if h.bodyBytes > int64(len(rest)) {
			return fmt.Errorf("truncated: body of %d bytes at byte %d, %d left", h.bodyBytes, at, len(rest))
		}
		if h.bodyBytes%8 != 0 {
			return fmt.Errorf("body of %d bytes: want a multiple of 8", h.bodyBytes)
		}
		if (h.kind == headerSchema) != (n == 0) {
			return fmt.Errorf("message %d: the schema must be first and only there", n)
		}
		p.body = rest[:h.bodyBytes:h.bodyBytes]
		rest, at = rest[h.bodyBytes:], at+h.bodyBytes
		m.body += h.bodyBytes
		if m.batch.meta != nil {
			return fmt.Errorf("message %d: the record batch must be last, and one", n)
		}
		if err := m.add(p); err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
	}
	if m.batch.meta == nil {
		return fmt.Errorf("no record batch")
	}
	return nil
}

func (m *messages) add(p part) error {
	switch p.header.kind {
	case headerSchema:
		if len(p.body) != 0 {
			return fmt.Errorf("a schema with a body of %d bytes", len(p.body))
		}
		m.known = &known{meta: p.meta, header: p.header}
		return nil
	case headerDict:
		want, ok := m.known.header.dicts[p.header.dict]
		if !ok {
			return fmt.Errorf("dictionary %d is not in the schema", p.header.dict)
		}
		m.dicts = append(m.dicts, p)
		return p.header.fits(want)
	}
	m.batch = p
	return p.header.fits(m.known.header.shape)
}

// holder calls release when the last buffer over the frame is freed. It is the
// allocator of those buffers, whose only used method is Free.
type holder struct {
	n       atomic.Int64
	called  atomic.Bool
	release func()
	cfg     decodeConfig
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
