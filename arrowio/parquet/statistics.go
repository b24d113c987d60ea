package parquet

import (
	"bytes"
	"encoding/binary"
	"math"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/apache/arrow-go/v18/arrow/float16"
)

// bounds are the least and greatest of some values, in PLAIN encoding; nil if there
// are none, or none that compare.
type bounds struct{ min, max []byte }

// boundsOf returns the bounds of values from from to to. Byte arrays and numbers of
// more than 8 bytes alias d.
func boundsOf(o order, d *dense, from, to int) bounds {
	if from == to {
		return bounds{}
	}
	switch o {
	case orderInt32:
		lo, hi := extremes(arrow.Int32Traits.CastFromBytes(d.fixed)[from:to])
		return fixedBounds(4, uint64(uint32(lo)), uint64(uint32(hi)))
	case orderUint32:
		lo, hi := extremes(arrow.Uint32Traits.CastFromBytes(d.fixed)[from:to])
		return fixedBounds(4, uint64(lo), uint64(hi))
	case orderInt64:
		lo, hi := extremes(arrow.Int64Traits.CastFromBytes(d.fixed)[from:to])
		return fixedBounds(8, uint64(lo), uint64(hi))
	case orderUint64:
		lo, hi := extremes(arrow.Uint64Traits.CastFromBytes(d.fixed)[from:to])
		return fixedBounds(8, lo, hi)
	case orderFloat32:
		lo, hi, ok := floatExtremes(arrow.Float32Traits.CastFromBytes(d.fixed)[from:to])
		if !ok {
			return bounds{}
		}
		return fixedBounds(4, uint64(math.Float32bits(lo)), uint64(math.Float32bits(hi)))
	case orderFloat64:
		lo, hi, ok := floatExtremes(arrow.Float64Traits.CastFromBytes(d.fixed)[from:to])
		if !ok {
			return bounds{}
		}
		return fixedBounds(8, math.Float64bits(lo), math.Float64bits(hi))
	case orderBool:
		set := bitutil.CountSetBits(d.bits, from, to-from)
		b := bounds{min: []byte{0}, max: []byte{0}}
		if set > 0 {
			b.max[0] = 1
		}
		if set == to-from {
			b.min[0] = 1
		}
		return b
	case orderBytes, orderDecimal, orderFloat16:
		return compared(o, d, from, to)
	default:
		return bounds{}
	}
}

func extremes[T int32 | uint32 | int64 | uint64](values []T) (lo, hi T) {
	lo, hi = values[0], values[0]
	for _, v := range values {
		lo, hi = min(lo, v), max(hi, v)
	}
	return lo, hi
}

// floatExtremes leaves NaN out, and widens a zero to both zeros, as the format's
// specification says.
func floatExtremes[T float32 | float64](values []T) (lo, hi T, ok bool) {
	lo, hi = T(math.Inf(1)), T(math.Inf(-1))
	for _, v := range values {
		if v < lo {
			lo = v
		}
		if v > hi {
			hi = v
		}
	}
	if lo > hi {
		return 0, 0, false
	}
	if lo == 0 {
		lo = T(math.Copysign(0, -1))
	}
	if hi == 0 {
		hi = 0
	}
	return lo, hi, true
}

func fixedBounds(width int, lo, hi uint64) bounds {
	b := make([]byte, 16)
	little.PutUint64(b, lo)
	little.PutUint64(b[8:], hi)
	return bounds{min: b[:width:width], max: b[8 : 8+width : 8+width]}
}

// plain is a value that is not a boolean, without a length.
func (d *dense) plain(i int) []byte {
	if d.ends != nil {
		return d.value(i)
	}
	return d.fixed[d.width*i : d.width*(i+1)]
}

// add widens b by a value in PLAIN encoding.
func (b *bounds) add(o order, v []byte) {
	if o == orderNone || isNaN(o, v) {
		return
	}
	if b.min == nil || compare(o, v, b.min) < 0 {
		b.min = v
	}
	if b.max == nil || compare(o, v, b.max) > 0 {
		b.max = v
	}
}

// bothZeros makes either zero stand for both.
func (b *bounds) bothZeros(o order) {
	if o != orderFloat16 && o != orderFloat32 && o != orderFloat64 || b.min == nil {
		return
	}
	zero := make([]byte, len(b.min))
	if compare(o, b.max, zero) == 0 {
		b.max = zero
	}
	if compare(o, b.min, zero) == 0 {
		b.min = bytes.Clone(zero)
		b.min[len(zero)-1] = 0x80
	}
}

func (b bounds) clone() bounds { return bounds{min: bytes.Clone(b.min), max: bytes.Clone(b.max)} }

func isNaN(o order, v []byte) bool {
	switch o {
	case orderFloat16:
		return little.Uint16(v)&0x7fff > 0x7c00
	case orderFloat32:
		return little.Uint32(v)&0x7fffffff > 0x7f800000
	case orderFloat64:
		return little.Uint64(v)&math.MaxInt64 > 0x7ff0000000000000
	default:
		return false
	}
}

func compared(o order, d *dense, from, to int) bounds {
	var b bounds
	if o != orderBytes {
		for i := from; i < to; i++ {
			b.add(o, d.plain(i))
		}
		b.bothZeros(o)
		return b
	}
	at := d.plain
	// Most values differ from both bounds within 8 bytes.
	b.min, b.max = at(from), at(from)
	lo, hi := prefix(b.min), prefix(b.max)
	for i := from + 1; i < to; i++ {
		v := at(i)
		p := prefix(v)
		if p <= lo && (p < lo || bytes.Compare(v, b.min) < 0) {
			b.min, lo = v, p
		} else if p >= hi && (p > hi || bytes.Compare(v, b.max) > 0) {
			b.max, hi = v, p
		}
	}
	return b
}

// prefix is the first 8 bytes as a number that compares as they do.
func prefix(v []byte) uint64 {
	if len(v) >= 8 {
		return binary.BigEndian.Uint64(v)
	}
	p := uint64(0)
	for i, c := range v {
		p |= uint64(c) << (56 - 8*i)
	}
	return p
}

// compare orders two values of a column in PLAIN encoding, of the order's width.
func compare(o order, a, b []byte) int {
	switch o {
	case orderBytes, orderBool:
		return bytes.Compare(a, b)
	case orderInt32:
		return threeWay(int32(little.Uint32(a)), int32(little.Uint32(b)))
	case orderUint32:
		return threeWay(little.Uint32(a), little.Uint32(b))
	case orderInt64:
		return threeWay(int64(little.Uint64(a)), int64(little.Uint64(b)))
	case orderUint64:
		return threeWay(little.Uint64(a), little.Uint64(b))
	case orderFloat32:
		return threeWay(math.Float32frombits(little.Uint32(a)), math.Float32frombits(little.Uint32(b)))
	case orderFloat64:
		return threeWay(math.Float64frombits(little.Uint64(a)), math.Float64frombits(little.Uint64(b)))
	case orderFloat16:
		return threeWay(float16.FromBits(little.Uint16(a)).Float32(), float16.FromBits(little.Uint16(b)).Float32())
	case orderDecimal:
		if a[0]>>7 != b[0]>>7 { // the one with the sign is less
			return int(b[0]>>7) - int(a[0]>>7)
		}
		return bytes.Compare(a, b)
	default:
		return 0
	}
}

// threeWay differs from cmp.Compare in that nothing compares with NaN: it is 0.
func threeWay[T int32 | uint32 | int64 | uint64 | float32 | float64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	default:
		return 0
	}
}

// widen makes b hold o, too.
func (b *bounds) widen(ord order, o bounds) {
	if o.min == nil {
		return
	}
	if b.min == nil || compare(ord, o.min, b.min) < 0 {
		b.min = o.min
	}
	if b.max == nil || compare(ord, o.max, b.max) > 0 {
		b.max = o.max
	}
}

const (
	// maxIndexBytes bounds a value in the page index, which may be cut.
	maxIndexBytes = 64
	// maxStatisticBytes bounds one of a column chunk, which is left out if longer:
	// not all readers know that statistics can be cut.
	maxStatisticBytes = 4096
)

// truncate shortens bounds of byte arrays for the page index. ok is false where no
// shorter upper bound exists.
func (b bounds) truncate() (out bounds, ok bool) {
	out = b
	if len(out.min) > maxIndexBytes {
		out.min = out.min[:maxIndexBytes]
	}
	if len(out.max) > maxIndexBytes {
		cut := bytes.Clone(out.max[:maxIndexBytes])
		for i := len(cut) - 1; ; i-- {
			if i < 0 {
				return b, false
			}
			if cut[i]++; cut[i] != 0 {
				cut = cut[:i+1]
				break
			}
		}
		out.max = cut
	}
	return out, true
}
