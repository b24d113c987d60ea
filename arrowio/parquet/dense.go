package parquet

import (
	"math"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
)

// dense are the values of a column without its nulls, as Parquet has them in PLAIN
// encoding, except that byte arrays lie end to end. What fits is the batch's own
// memory, not a copy.
type dense struct {
	n     int
	width int
	fixed []byte  // n values of width bytes
	bits  []byte  // n booleans
	ends  []int64 // n+1 offsets into data
	data  []byte

	// Scratch that is kept from one column to the next.
	ownFixed, ownBits, ownData []byte
	ownEnds                    []int64
}

// grown returns a slice of n elements, b's own where it is large enough. What is in
// it is anything.
func grown[T any](b []T, n int) []T {
	if cap(b) < n {
		return make([]T, n, n+n/4)
	}
	return b[:n]
}

// gather takes the values in the spans of a leaf array.
func (d *dense) gather(n *node, l *leafSlots, arr arrow.Array, spans []span) error {
	d.n, d.fixed, d.bits, d.ends, d.data, d.width = 0, nil, nil, nil, nil, 0
	if l.none {
		return nil
	}
	switch a := arr.(type) {
	case *array.Boolean:
		d.gatherBits(a, l, spans)
		return nil
	case *array.Binary:
		return d.gatherBytes(n, l, spans, a.ValueOffsets(), nil, a.Data().Buffers()[2], nil)
	case *array.String:
		return d.gatherBytes(n, l, spans, offsets32(a.Data()), nil, a.Data().Buffers()[2], nil)
	case *array.LargeBinary:
		return d.gatherBytes(n, l, spans, nil, a.ValueOffsets(), a.Data().Buffers()[2], nil)
	case *array.LargeString:
		return d.gatherBytes(n, l, spans, nil, offsets64(a.Data()), a.Data().Buffers()[2], nil)
	case *array.BinaryView:
		return d.gatherBytes(n, l, spans, nil, nil, nil, a.Value)
	case *array.StringView:
		return d.gatherBytes(n, l, spans, nil, nil, nil, func(i int) []byte { return bytesOf(a.Value(i)) })
	}
	return d.gatherFixed(n, l, arr, spans)
}

// present calls f with each range of slots within the spans that are not null.
func (l *leafSlots) present(spans []span, f func(from, to int)) {
	for _, s := range spans {
		if l.bits == nil {
			f(s.from, s.to)
			continue
		}
		for i := s.from; i < s.to; {
			if !bitutil.BitIsSet(l.bits, l.bitOff+i) {
				i++
				continue
			}
			end := i + 1
			for end < s.to && bitutil.BitIsSet(l.bits, l.bitOff+end) {
				end++
			}
			f(i, end)
			i = end
		}
	}
}

func (l *leafSlots) count(spans []span) int {
	n := 0
	for _, s := range spans {
		if l.bits == nil {
			n += s.to - s.from
		} else {
			n += bitutil.CountSetBits(l.bits, l.bitOff+s.from, s.to-s.from)
		}
	}
	return n
}

func (d *dense) gatherFixed(n *node, l *leafSlots, arr arrow.Array, spans []span) error {
	data, w := arr.Data(), arrowWidth(arr.DataType())
	var src []byte
	if b := data.Buffers()[1]; b != nil {
		src = b.Bytes()[min(w*data.Offset(), b.Len()):]
	}
	s := &n.storage
	d.n, d.width = l.count(spans), s.width
	if s.conv == convSame && (len(spans) == 1 && d.n == spans[0].to-spans[0].from || d.n == 0) {
		if d.n > 0 {
			d.fixed = src[w*spans[0].from : w*spans[0].to]
		}
		return nil
	}
	d.ownFixed = grown(d.ownFixed, d.n*s.width)
	d.fixed = d.ownFixed
	at, err := 0, error(nil)
	l.present(spans, func(from, to int) {
		if err != nil {
			return
		}
		end := at + to - from
		if bad, why := s.toParquet(d.fixed[at*s.width:end*s.width], src[w*from:w*to], w); bad >= 0 {
			err = &ValueError{Column: n.name(), Type: n.field.Type.String(), Index: int64(at + bad), Hint: why}
		}
		at = end
	})
	return err
}

func (d *dense) gatherBits(a *array.Boolean, l *leafSlots, spans []span) {
	d.n = l.count(spans)
	size := int(bitutil.BytesForBits(int64(d.n)))
	b := a.Data().Buffers()[1]
	if b == nil {
		d.bits = nil
		return
	}
	off := a.Data().Offset()
	d.ownBits = grown(d.ownBits, size)
	d.bits = d.ownBits
	clear(d.bits)
	at := 0
	l.present(spans, func(from, to int) {
		copyBits(d.bits, at, b.Bytes(), off+from, to-from)
		at += to - from
	})
}

// copyBits is bitutil.CopyBitmap without what that allocates, which shows where
// nulls cut the values into short ranges. dst is clear where it writes.
func copyBits(dst []byte, at int, src []byte, from, n int) {
	if n >= 512 {
		bitutil.CopyBitmap(src, from, n, dst, at)
		return
	}
	for i := range n {
		dst[(at+i)/8] |= src[(from+i)/8] >> ((from + i) % 8) & 1 << ((at + i) % 8)
	}
}

func offsets32(d arrow.ArrayData) []int32 {
	b := d.Buffers()[1]
	if b == nil || b.Len() == 0 {
		return nil
	}
	return arrow.Int32Traits.CastFromBytes(b.Bytes())[d.Offset() : d.Offset()+d.Len()+1]
}

func offsets64(d arrow.ArrayData) []int64 {
	b := d.Buffers()[1]
	if b == nil || b.Len() == 0 {
		return nil
	}
	return arrow.Int64Traits.CastFromBytes(b.Bytes())[d.Offset() : d.Offset()+d.Len()+1]
}

// gatherBytes takes values by their offsets, of 4 or 8 bytes, or one by one.
func (d *dense) gatherBytes(n *node, l *leafSlots, spans []span, short []int32, long []int64, values bufferLike, value func(int) []byte) error {
	d.n = l.count(spans)
	d.ownEnds = grown(d.ownEnds, d.n+1)
	d.ends = d.ownEnds
	d.ends[0] = 0
	if d.n == 0 {
		d.data = nil
		return nil
	}
	offset := func(i int) int64 {
		if short != nil {
			return int64(short[i])
		}
		return long[i]
	}
	at, end := 0, int64(0)
	if value == nil {
		first, last := spans[0].from, spans[len(spans)-1].to
		l.present(spans, func(from, to int) {
			if short != nil {
				base := end - int64(short[from])
				for _, o := range short[from+1 : to+1] {
					at++
					d.ends[at] = base + int64(o)
				}
			} else {
				base := end - long[from]
				for _, o := range long[from+1 : to+1] {
					at++
					d.ends[at] = base + o
				}
			}
			end = d.ends[at]
		})
		raw := bytesIn(values)
		// Nothing lies between the values where nulls are empty.
		if len(spans) == 1 && offset(last)-offset(first) == end {
			d.data = raw[offset(first):offset(last)]
			return d.checkLengths(n)
		}
		d.ownData = slices.Grow(d.ownData[:0], int(end))
		l.present(spans, func(from, to int) { d.ownData = append(d.ownData, raw[offset(from):offset(to)]...) })
	} else {
		d.ownData = d.ownData[:0]
		l.present(spans, func(from, to int) {
			for i := from; i < to; i++ {
				d.ownData = append(d.ownData, value(i)...)
				at++
				d.ends[at] = int64(len(d.ownData))
			}
		})
	}
	d.data = d.ownData
	return d.checkLengths(n)
}

type bufferLike interface{ Bytes() []byte }

func bytesIn(b bufferLike) []byte {
	if b == nil {
		return nil
	}
	return b.Bytes()
}

// checkLengths refuses a value whose length Parquet cannot say.
func (d *dense) checkLengths(n *node) error {
	if len(d.data) <= math.MaxInt32 {
		return nil
	}
	for i := range d.n {
		if d.ends[i+1]-d.ends[i] > math.MaxInt32 {
			return &ValueError{Column: n.name(), Type: n.field.Type.String(), Index: int64(i), Hint: "a Parquet value has at most 2 GiB; split it"}
		}
	}
	return nil
}

// value is a value of a byte array column.
func (d *dense) value(i int) []byte { return d.data[d.ends[i]:d.ends[i+1]] }

// plainBytes is the size of the values from from to to in PLAIN encoding.
func (d *dense) plainBytes(from, to int) int64 {
	switch {
	case d.ends != nil:
		return d.ends[to] - d.ends[from] + 4*int64(to-from)
	case d.bits != nil:
		return int64(to-from+7) / 8
	default:
		return int64(d.width) * int64(to-from)
	}
}

// indices takes the values of a dictionary's index as int32, in the order of the
// spans. remap, if not nil, gives the new index for an old one.
func indices(out []int32, a *array.Dictionary, l *leafSlots, spans []span, remap []int32) []int32 {
	out = slices.Grow(out[:0], l.count(spans))
	data := a.Indices().Data()
	b := data.Buffers()[1]
	if b == nil {
		return out
	}
	raw, off := b.Bytes(), data.Offset()
	width := arrowWidth(a.Indices().DataType())
	l.present(spans, func(from, to int) {
		switch width {
		case 1:
			for _, v := range raw[off+from : off+to] {
				out = append(out, int32(v))
			}
		case 2:
			for _, v := range arrow.Uint16Traits.CastFromBytes(raw)[off+from : off+to] {
				out = append(out, int32(v))
			}
		case 4:
			out = append(out, arrow.Int32Traits.CastFromBytes(raw)[off+from:off+to]...)
		default:
			for _, v := range arrow.Int64Traits.CastFromBytes(raw)[off+from : off+to] {
				out = append(out, int32(v))
			}
		}
	})
	if remap != nil {
		for i, v := range out {
			out[i] = remap[v]
		}
	}
	return out
}
