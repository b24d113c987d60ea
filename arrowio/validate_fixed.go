package arrowio

import (
	"fmt"
	"math/bits"

	"github.com/apache/arrow-go/v18/arrow"
)

// fixedValues checks types whose values do not fill their width.
func fixedValues(d arrow.ArrayData) error {
	raw := d.Buffers()[1].Bytes()
	switch t := d.DataType().(type) {
	case *arrow.Time32Type:
		return inDay(arrow.GetData[int32](raw), d, t.Unit)
	case *arrow.Time64Type:
		return inDay(arrow.GetData[int64](raw), d, t.Unit)
	case *arrow.Date64Type:
		const day = 24 * 60 * 60 * 1000
		for i, ms := range arrow.GetData[int64](raw)[:d.Len()] {
			if ms%day != 0 && valid(d, i) {
				return fmt.Errorf("value %d is %d ms, not a whole day", i, ms)
			}
		}
	case arrow.DecimalType:
		words := t.BitWidth() / 32
		limit := power(int(t.GetPrecision()))
		for i := range d.Len() {
			if valid(d, i) && !below(raw[4*words*i:][:4*words], limit) {
				return fmt.Errorf("value %d has more digits than %s", i, t)
			}
		}
	}
	return nil
}

func inDay[T int32 | int64](times []T, d arrow.ArrayData, unit arrow.TimeUnit) error {
	day := 24 * 60 * 60 * 1e9 / int64(unit.Multiplier())
	for i, t := range times[:d.Len()] {
		if (t < 0 || int64(t) >= day) && valid(d, i) {
			return fmt.Errorf("value %d is %d %s, not within a day", i, t, unit)
		}
	}
	return nil
}

// power is 10^digits, little-endian; 76 digits fit.
func power(digits int) (p [4]uint64) {
	p[0] = 1
	for range digits {
		var carry uint64
		for i := range p {
			high, low := bits.Mul64(p[i], 10)
			var c uint64
			p[i], c = bits.Add64(low, carry, 0)
			carry = high + c
		}
	}
	return p
}

// below reports whether the absolute value of a little-endian two's complement
// number is less than limit.
func below(raw []byte, limit [4]uint64) bool {
	var n [4]uint64
	sign := uint64(0)
	if raw[len(raw)-1]&0x80 != 0 {
		sign = ^uint64(0)
	}
	for i := range n {
		n[i] = sign
	}
	for i, b := range raw {
		shift := 8 * (i % 8)
		n[i/8] = n[i/8]&^(0xff<<shift) | uint64(b)<<shift
	}
	carry := sign & 1
	for i := range n { // negate: invert, add one
		n[i], carry = bits.Add64(n[i]^sign, 0, carry)
	}
	for i := len(n) - 1; i >= 0; i-- {
		if n[i] != limit[i] {
			return n[i] < limit[i]
		}
	}
	return false
}
