package arrowio

import (
	"encoding/binary"
	"fmt"
	"io"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
)

// Settled says how a frame was completed in place, in bytes.
type Settled struct {
	Length int64 // of the frame, which begins where its memory does
	Head   int64 // of what lies before the record batch's body
	Copied int64 // of bodies, padding included, that had to be copied
}

// Settle makes a frame of memory that holds buffers of the batch already: what
// lies in region[:free] on an Alignment boundary stays where it is, in any order
// and with gaps, which the format allows; the rest of the record batch's buffers
// is copied behind free, in order. The metadata and the dictionaries, which have
// bodies of their own that must come before, are written to the start of region:
// leave HeadBytes there.
//
// The body bytes that were copied are counted in copies and returned: 0 if all
// buffers were in place and there are no dictionaries. What else region[:free]
// holds behind the head is left alone, and lies in the frame as a gap.
//
// region starts on an Alignment boundary. The error wraps ErrSize if it is too
// short for what must be copied, or one of its buffers begins below what must be
// written to its start; region is then as it was.
func (f *Frame) Settle(region []byte, free int64, copies *Copies) (Settled, error) {
	base := uintptr(unsafe.Pointer(unsafe.SliceData(region)))
	if base%Alignment != 0 || free < 0 || free > int64(len(region)) {
		return Settled{}, fmt.Errorf("arrowio: settle %d of %d bytes at %#x: want memory on a %d-byte boundary", free, len(region), base, int64(Alignment))
	}
	// where is the offset of a part in region, -1 if it lies elsewhere.
	where := func(part []byte) int64 {
		at := uintptr(unsafe.Pointer(unsafe.SliceData(part)))
		if at < base || at-base+uintptr(len(part)) > uintptr(free) {
			return -1
		}
		return int64(at - base)
	}
	last := len(f.messages) - 1
	var s Settled
	lowest := int64(len(region)) // of dictionaries that are in region
	for i := range f.messages {
		s.Head += prefixBytes + f.messages[i].metaLen()
		if i == last {
			break
		}
		s.Head += f.messages[i].size
		s.Copied += f.messages[i].size
		for _, part := range f.messages[i].body {
			if low := where(part); low >= 0 {
				lowest = min(lowest, low)
			}
		}
	}
	if lowest < s.Head {
		return Settled{}, fmt.Errorf("arrowio: settle: %w: a dictionary begins at byte %d, what must come before has %d", ErrSize, lowest, s.Head)
	}
	m := &f.messages[last]
	at := make([]int64, len(m.body)) // of each part in region
	end := pad(max(free, s.Head))    // of what is copied behind
	for i, part := range m.body {
		at[i] = where(part)
		if at[i] >= 0 && at[i] < s.Head {
			return Settled{}, fmt.Errorf("arrowio: settle: %w: a buffer begins at byte %d, what must come before has %d", ErrSize, at[i], s.Head)
		}
		if at[i] < 0 || at[i]%Alignment != 0 {
			at[i] = end
			end += pad(int64(len(part)))
			s.Copied += pad(int64(len(part)))
		}
	}
	bodyEnd := end // beyond region[:free] even where its end is not the batch's
	s.Length = bodyEnd + prefixBytes
	if s.Length > int64(len(region)) {
		return Settled{}, fmt.Errorf("arrowio: settle: %w: %d bytes given, frame needs %d", ErrSize, len(region), s.Length)
	}
	for i, part := range m.body {
		if where(part) != at[i] {
			putPadded(region[at[i]:], part)
		}
	}
	pos := int64(0)
	for i := range last {
		pos += putMessage(region[pos:], &f.messages[i], f.messages[i].meta)
	}
	meta := append([]byte(nil), m.meta...) // the frame stays good for EncodeTo and WriteTo
	next := 0
	for i := range m.header.bufferCount {
		entry := meta[m.header.buffers+structBytes*i:]
		off := int64(0)
		if binary.LittleEndian.Uint64(entry[8:]) != 0 {
			off = at[next] - s.Head
			next++
		}
		binary.LittleEndian.PutUint64(entry, uint64(off))
	}
	if m.header.bodyPos != 0 {
		binary.LittleEndian.PutUint64(meta[m.header.bodyPos:], uint64(bodyEnd-s.Head))
	}
	putMeta(region[pos:], meta)
	binary.LittleEndian.PutUint32(region[bodyEnd:], marker)
	binary.LittleEndian.PutUint32(region[bodyEnd+4:], 0)
	if s.Copied > 0 {
		copies.Add(s.Copied)
	}
	return s, nil
}

// putMeta writes the prefix and the metadata of a message.
func putMeta(dst, meta []byte) int64 {
	metaLen := pad(prefixBytes+int64(len(meta))) - prefixBytes
	binary.LittleEndian.PutUint32(dst, marker)
	binary.LittleEndian.PutUint32(dst[4:], uint32(metaLen))
	n := prefixBytes + int64(copy(dst[prefixBytes:], meta))
	clear(dst[n : prefixBytes+metaLen])
	return prefixBytes + metaLen
}

func putMessage(dst []byte, m *message, meta []byte) int64 {
	n := putMeta(dst, meta)
	for _, part := range m.body {
		n += putPadded(dst[n:], part)
	}
	return n
}

func putPadded(dst, part []byte) int64 {
	n := int64(copy(dst, part))
	clear(dst[n:pad(n)])
	return pad(n)
}

// WriteTo writes the frame to w, as EncodeTo lays it out, from where the batch's
// buffers lie: for a destination that is not memory. It implements io.WriterTo.
func (f *Frame) WriteTo(w io.Writer) (n int64, err error) {
	var zeros [Alignment]byte
	write := func(b []byte, to int64) {
		if err != nil {
			return
		}
		for _, p := range [][]byte{b, zeros[:to-int64(len(b))]} {
			if err == nil && len(p) > 0 {
				var k int
				k, err = w.Write(p)
				n += int64(k)
			}
		}
	}
	for i := range f.messages {
		m := &f.messages[i]
		head := make([]byte, prefixBytes+m.metaLen())
		putMeta(head, m.meta)
		write(head, int64(len(head)))
		for _, part := range m.body {
			write(part, pad(int64(len(part))))
		}
	}
	var eos [prefixBytes]byte
	binary.LittleEndian.PutUint32(eos[:], marker)
	write(eos[:], prefixBytes)
	return n, err
}

// HeadBytes is how many bytes to leave free before the buffers of a batch of that
// schema, of about bodyBytes in all, so that Settle need not move any: the
// metadata's size, and an eighth of bodyBytes if there are dictionaries. It is a
// multiple of Alignment. A batch with metadata of its own may need more. The error
// wraps ErrUnsupported as that of Prepare does.
func HeadBytes(schema *arrow.Schema, bodyBytes int64) (int64, error) {
	m, err := schemaMessage(schema)
	if err != nil {
		return 0, fmt.Errorf("arrowio: lay out schema %s: %w", Fingerprint(schema), err)
	}
	h := m.header
	n := prefixBytes + m.metaLen() + metaBytes(h.shape, bodyBytes)
	for _, d := range h.dicts {
		n += metaBytes(d, 0)
	}
	if len(h.dicts) > 0 {
		n += pad(bodyBytes / 8)
	}
	return n, nil
}

// metaBytes is at least what the metadata of a batch of that shape takes. The
// library's builders put the text of view columns into buffers of 32 KiB.
func metaBytes(s shape, bodyBytes int64) int64 {
	const fixed, viewBuffer = 256, 32 << 10
	if s.views > 0 {
		s.buffers += 4*s.views + bodyBytes/viewBuffer
	}
	return pad(fixed + structBytes*(s.nodes+s.buffers) + 8*s.views)
}

// SameMemory reports whether two batches are one: of equal schemas, and made of
// the same buffers at the same addresses.
func SameMemory(a, b arrow.RecordBatch) bool {
	if a.NumRows() != b.NumRows() || a.NumCols() != b.NumCols() || !a.Schema().Equal(b.Schema()) {
		return false
	}
	for i, col := range a.Columns() {
		if !sameData(col.Data(), b.Column(i).Data()) {
			return false
		}
	}
	return true
}

func sameData(a, b arrow.ArrayData) bool {
	if a.Len() != b.Len() || a.Offset() != b.Offset() || a.NullN() != b.NullN() ||
		len(a.Children()) != len(b.Children()) || len(a.Buffers()) != len(b.Buffers()) {
		return false
	}
	for i := range a.Buffers() {
		x, y := bufferBytes(a, i), bufferBytes(b, i)
		if len(x) != len(y) || len(x) > 0 && &x[0] != &y[0] {
			return false
		}
	}
	for i, c := range a.Children() {
		if !sameData(c, b.Children()[i]) {
			return false
		}
	}
	return a.DataType().ID() != arrow.DICTIONARY || sameData(a.Dictionary(), b.Dictionary())
}
