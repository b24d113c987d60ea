package arrowio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/apache/arrow-go/v18/arrow"
)

// The Arrow library reads message metadata through generated FlatBuffers code
// without a verifier: a forged vector length makes it allocate gigabytes, a
// forged offset (they wrap at 2^32 there) makes it recurse until the stack is
// gone, which no recover stops. So metadata from elsewhere passes checkMessage
// first. What is checked is what could cost memory or stack, and the few facts
// that this package relies on; reads out of bounds of scalars are left to Go.
// Numbers of the fields are those of Arrow's Message.fbs and Schema.fbs (format
// 1.5), layout is that of the FlatBuffers internals page.

const (
	maxDepth       = 64      // of nested fields, as in the Arrow library
	maxFields      = 1 << 16 // of a schema, children included
	flatBudget     = 1 << 20 // things visited in one message
	metadataV5     = 4
	headerSchema   = 1
	headerDict     = 2
	headerBatch    = 3
	typeTimestamp  = 10
	typeUnion      = 14
	typeView       = 23
	typeTextView   = 24
	structBytes    = 16 // FieldNode and Buffer
	lengthOfOffset = 4
)

var errFlat = errors.New("malformed metadata")

// flat is a FlatBuffer being read. It remembers the first fault; after one every
// read returns nothing.
type flat struct {
	b      []byte
	budget int64 // things that may still be visited; strings count their bytes
	fields int
	err    error
}

func (f *flat) fail(format string, args ...any) {
	if f.err == nil {
		f.err = fmt.Errorf("%w: %s", errFlat, fmt.Sprintf(format, args...))
	}
}

// refuse is fail for what is valid Arrow but of no use here.
func (f *flat) refuse(format string, args ...any) {
	if f.err == nil {
		f.err = fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
	}
}

func (f *flat) spend(n int64) bool {
	f.budget -= n
	if f.budget < 0 {
		f.fail("references itself too often")
	}
	return f.err == nil
}

func (f *flat) in(pos, n int64) bool {
	if pos < 0 || n < 0 || n > int64(len(f.b)) || pos > int64(len(f.b))-n {
		f.fail("reference outside the message")
	}
	return f.err == nil
}

func (f *flat) u16(pos int64) int64 {
	if !f.in(pos, 2) {
		return 0
	}
	return int64(binary.LittleEndian.Uint16(f.b[pos:]))
}

func (f *flat) u32(pos int64) int64 {
	if !f.in(pos, 4) {
		return 0
	}
	return int64(binary.LittleEndian.Uint32(f.b[pos:]))
}

func (f *flat) i64(pos int64) int64 {
	if !f.in(pos, 8) {
		return 0
	}
	return int64(binary.LittleEndian.Uint64(f.b[pos:]))
}

// follow returns where the offset stored at pos points. It is always ahead, so
// references cannot form a cycle.
func (f *flat) follow(pos int64) int64 {
	off := f.u32(pos)
	if f.err == nil && off < lengthOfOffset {
		f.fail("reference to itself")
	}
	return pos + off
}

// table is one FlatBuffers table; the zero table has no fields.
type table struct {
	f           *flat
	pos, vtable int64
	slots       int64
}

func (f *flat) table(pos int64) table {
	if !f.spend(1) || !f.in(pos, 4) {
		return table{f: f}
	}
	vtable := pos - int64(int32(f.u32(pos)))
	// The size of the table, after slots, says nothing: writers share a vtable
	// among tables that have the same fields in other widths.
	t := table{f: f, pos: pos, vtable: vtable, slots: f.u16(vtable)}
	if f.err != nil || t.slots < 4 || t.slots%2 != 0 || pos%4 != 0 || vtable%2 != 0 || !f.in(vtable, t.slots) {
		f.fail("bad table")
		return table{f: f}
	}
	return t
}

// at is the position of a field of the given width in bytes, 0 if it is absent.
func (t table) at(field, width int64) int64 {
	slot := 4 + 2*field
	if t.f.err != nil || slot+2 > t.slots {
		return 0
	}
	off := t.f.u16(t.vtable + slot)
	if off == 0 {
		return 0
	}
	if off < 4 || !t.f.in(t.pos+off, width) || (t.pos+off)%width != 0 {
		t.f.fail("field outside the message, or misaligned")
		return 0
	}
	return t.pos + off
}

func (t table) byte(field int64) int64 {
	if pos := t.at(field, 1); pos != 0 {
		return int64(t.f.b[pos])
	}
	return 0
}

func (t table) short(field int64) int64 {
	if pos := t.at(field, 2); pos != 0 {
		return t.f.u16(pos)
	}
	return 0
}

func (t table) long(field int64) int64 {
	if pos := t.at(field, 8); pos != 0 {
		return t.f.i64(pos)
	}
	return 0
}

func (t table) child(field int64) (table, bool) {
	pos := t.at(field, 4)
	if pos == 0 {
		return table{f: t.f}, false
	}
	child := t.f.table(t.f.follow(pos))
	return child, t.f.err == nil
}

// vector returns where the elements of a vector begin and how many there are.
func (t table) vector(field, width int64) (start, n int64) {
	pos := t.at(field, 4)
	if pos == 0 {
		return 0, 0
	}
	start = t.f.follow(pos)
	n = t.f.u32(start)
	start += 4
	if start%4 != 0 || n > 0 && start%min(width, 8) != 0 {
		t.f.fail("misaligned vector")
	}
	if t.f.err != nil || !t.f.in(start, n*width) || !t.f.spend(n) {
		return 0, 0
	}
	return start, n
}

func (t table) tables(field int64, visit func(table)) {
	start, n := t.vector(field, 4)
	for i := range n {
		if t.f.err != nil {
			return
		}
		visit(t.f.table(t.f.follow(start + 4*i)))
	}
}

// metadata visits a vector of KeyValue.
func (t table) metadata(field int64) {
	t.tables(field, func(kv table) {
		kv.vector(0, 1)
		kv.vector(1, 1)
	})
}

// custom reads a vector of KeyValue.
func (t table) custom(field int64) arrow.Metadata {
	if t.at(field, 4) == 0 {
		return arrow.Metadata{}
	}
	var keys, values []string
	t.tables(field, func(kv table) {
		keys, values = append(keys, kv.text(0)), append(values, kv.text(1))
	})
	return arrow.NewMetadata(keys, values)
}

func (t table) text(field int64) string {
	start, n := t.vector(field, 1)
	return string(t.f.b[start : start+n])
}

// header is what a message says of itself.
type header struct {
	kind        int64
	bodyBytes   int64
	bodyPos     int64 // of the body length in the metadata, 0 if absent
	rows        int64
	buffers     int64 // position of the first {offset, length} pair
	bufferCount int64
	nodes       int64
	views       int64           // how many columns have a variadic buffer count
	variadic    int64           // sum of those counts
	nodesAt     int64           // position of the first {length, nulls} pair
	viewsAt     int64           // position of the first variadic count
	dict        int64           // id, of a dictionary message
	custom      arrow.Metadata  // of a batch message
	shape       shape           // of a schema message: what its batches consist of
	dicts       map[int64]shape // of a schema message: likewise its dictionaries, by id
	encodings   encoding        // of a schema message: its kids are the columns
}

// shape is how many nodes, buffers (without the variadic ones) and variadic
// counts a batch has. The generated code reads past the end of these vectors
// when there are too few, which is how a forged count of buffers gets in.
type shape struct{ nodes, buffers, views int64 }

func (s *shape) add(o shape) {
	s.nodes += o.nodes
	s.buffers += o.buffers
	s.views += o.views
}

// fits reports an error if a batch has less than its schema needs.
func (h *header) fits(s shape) error {
	if h.nodes < s.nodes || h.views < s.views || h.bufferCount < s.buffers+h.variadic {
		return fmt.Errorf("%w: %d nodes, %d buffers and %d variadic counts, the schema needs %d, %d and %d",
			errFlat, h.nodes, h.bufferCount, h.views, s.nodes, s.buffers+h.variadic, s.views)
	}
	return nil
}

// buffersOf is the number of buffers of an array of an Arrow type by its number
// in Schema.fbs, children and variadic buffers excepted.
func buffersOf(typ int64, dense bool) int64 {
	switch typ {
	case 1, 22: // Null, RunEndEncoded
		return 0
	case 13, 16: // Struct, FixedSizeList
		return 1
	case 4, 5, 19, 20, 25, 26: // Binary, Utf8, their large forms, ListView and its large form
		return 3
	case typeUnion:
		if dense {
			return 2
		}
		return 1
	}
	return 2
}

// checkMessage checks one message's metadata and returns what it holds.
func checkMessage(meta []byte) (h header, err error) {
	f := &flat{b: meta, budget: flatBudget + 2*int64(len(meta))}
	if int64(len(meta)) > math.MaxInt32 {
		f.fail("larger than 2 GiB")
	}
	msg := f.table(f.follow(0))
	if v := msg.short(0); f.err == nil && v != metadataV5 {
		f.refuse("metadata version %d, want V5", v+1)
	}
	h = header{kind: msg.byte(1), bodyBytes: msg.long(3), bodyPos: msg.at(3, 8)}
	if h.bodyBytes < 0 {
		f.fail("body of %d bytes", h.bodyBytes)
	}
	h.custom = msg.custom(4)
	body, ok := msg.child(2)
	if !ok {
		f.fail("no header")
	}
	switch h.kind {
	case headerSchema:
		f.schema(body, &h)
		if h.bodyBytes != 0 {
			f.fail("schema message with a body")
		}
	case headerDict:
		data, ok := body.child(1)
		if !ok {
			f.fail("dictionary without data")
		}
		if body.byte(2) != 0 {
			f.refuse("dictionary delta in a frame of one batch")
		}
		h.dict = body.long(0)
		f.batch(data, &h)
	case headerBatch:
		f.batch(body, &h)
	default:
		f.fail("message of kind %d", h.kind)
	}
	return h, f.err
}

func (f *flat) schema(t table, h *header) {
	if t.short(0) != 0 {
		f.refuse("big-endian data")
	}
	h.dicts = map[int64]shape{}
	t.tables(1, func(field table) {
		s, enc := f.field(field, 0, h.dicts)
		h.shape.add(s)
		h.encodings.kids = append(h.encodings.kids, enc)
	})
	t.metadata(2)
	t.vector(3, 8)
}

// field checks a field and returns what its array consists of, and which parts
// are dictionary encoded. What a dictionary-encoded field's values consist of
// goes to dicts.
func (f *flat) field(t table, depth int, dicts map[int64]shape) (shape, encoding) {
	if f.fields++; f.fields > maxFields {
		f.fail("more than %d fields", maxFields)
	}
	if depth >= maxDepth {
		f.fail("nested more than %d deep", maxDepth)
	}
	if f.err != nil {
		return shape{}, encoding{}
	}
	t.vector(0, 1)
	number := t.byte(2)
	typ, ok := t.child(3)
	if !ok {
		f.fail("field without a type")
	}
	switch number {
	case typeUnion:
		typ.vector(1, 4)
	case typeTimestamp:
		typ.vector(1, 1)
	}
	s := shape{nodes: 1, buffers: buffersOf(number, number == typeUnion && typ.short(0) == 1)}
	if number == typeView || number == typeTextView {
		s.views = 1
	}
	var enc encoding
	var kids int
	t.tables(5, func(child table) {
		below, e := f.field(child, depth+1, dicts)
		s.add(below)
		if e.encoded || e.kids != nil {
			enc.kids = append(enc.kids, make([]encoding, kids+1-len(enc.kids))...)
			enc.kids[kids] = e
		}
		kids++
	})
	t.metadata(6)
	if dict, ok := t.child(4); ok {
		dict.child(1)
		enc.encoded, enc.id = true, dict.long(0)
		if had, dup := dicts[enc.id]; dup && had != s {
			f.fail("dictionary %d has two types", enc.id)
		}
		dicts[enc.id] = s
		s = shape{nodes: 1, buffers: 2} // the indices
	}
	return s, enc
}

// batch checks a RecordBatch header. Buffers must lie in the body and start on
// 8-byte boundaries, as the format demands.
func (f *flat) batch(t table, h *header) {
	h.rows = t.long(0)
	if h.rows < 0 || h.rows > MaxRows {
		f.fail("%d rows; a batch has 0 to %d", h.rows, int64(MaxRows))
	}
	nodes, n := t.vector(1, structBytes)
	h.nodesAt, h.nodes = nodes, n
	for i := range n {
		length, nulls := f.i64(nodes+structBytes*i), f.i64(nodes+structBytes*i+8)
		if length < 0 || nulls < 0 || nulls > length {
			f.fail("node %d has length %d and %d nulls", i, length, nulls)
		}
	}
	h.buffers, h.bufferCount = t.vector(2, structBytes)
	total := int64(0)
	for i := range h.bufferCount {
		off, n := f.i64(h.buffers+structBytes*i), f.i64(h.buffers+structBytes*i+8)
		switch {
		case off < 0 || n < 0 || n > h.bodyBytes || off > h.bodyBytes-n:
			f.fail("buffer %d at %d+%d is outside the body of %d bytes", i, off, n, h.bodyBytes)
		case n > 0 && off%8 != 0:
			f.fail("buffer %d at %d is not 8-byte aligned", i, off)
		}
		if total += n; total > maxOverlap*h.bodyBytes || f.err != nil {
			f.refuse("buffers overlap more than %d times", maxOverlap)
			return
		}
	}
	if t.at(3, 4) != 0 {
		f.refuse("compressed body cannot be used in place")
	}
	views, n := t.vector(4, 8)
	h.viewsAt, h.views = views, n
	for i := range n {
		if v := f.i64(views + 8*i); v < 0 || v > h.bufferCount {
			f.fail("%d variadic buffers of %d", v, h.bufferCount)
			return
		}
		h.variadic += f.i64(views + 8*i)
	}
}
