package parquet

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/parquet-go/bitpack"
)

// deltas decodes DELTA_BINARY_PACKED, a miniblock at a time.
//
// https://github.com/apache/parquet-format/blob/master/Encodings.md#DELTAENC
type deltas struct {
	b         []byte
	left      int // values not yet returned
	value     int64
	first     bool // value is the first, and was not returned
	minis     int
	miniSize  int
	minDelta  int64
	widths    []byte // of the miniblocks left in this block
	buf       []int64
	at        int // in buf
	truncated bool
}

const maxMiniblock = 1 << 12 // values; writers have 32

// reset reads the header of b, which must announce at most so many values.
func (d *deltas) reset(b []byte, most int) error {
	buf := d.buf
	*d = deltas{b: b, buf: buf[:0]}
	block, total := d.uvarint(), uint64(0)
	minis := d.uvarint()
	total = d.uvarint()
	u, n := binary.Uvarint(d.b)
	if n <= 0 || d.truncated {
		return errors.New("header of deltas ends early")
	}
	d.b = d.b[n:]
	d.value = int64(u>>1) ^ -int64(u&1)
	if block == 0 || minis == 0 || minis > 1<<10 || block%minis != 0 || block/minis > maxMiniblock || block/minis%32 != 0 {
		return fmt.Errorf("deltas in blocks of %d values, %d to a block", block, minis)
	}
	if total > uint64(most) {
		return fmt.Errorf("%d deltas for %d values", total, most)
	}
	d.left, d.minis, d.miniSize, d.first = int(total), int(minis), int(block/minis), total > 0
	return nil
}

func (d *deltas) uvarint() uint64 {
	u, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.truncated = true
		return 0
	}
	d.b = d.b[n:]
	return u
}

// block reads the header of the next block.
func (d *deltas) block() error {
	u := d.uvarint()
	if d.truncated || d.minis > len(d.b) {
		return errors.New("deltas end early")
	}
	d.minDelta = int64(u>>1) ^ -int64(u&1)
	d.widths, d.b = d.b[:d.minis], d.b[d.minis:]
	return nil
}

// mini takes the bytes of the next miniblock.
func (d *deltas) mini() (packed []byte, width uint, err error) {
	if len(d.widths) == 0 {
		if err := d.block(); err != nil {
			return nil, 0, err
		}
	}
	width = uint(d.widths[0])
	d.widths = d.widths[1:]
	size := d.miniSize / 8 * int(width)
	if width > 64 || size > len(d.b) {
		return nil, 0, errors.New("deltas end early")
	}
	packed, d.b = d.b[:size], d.b[size:]
	return packed, width, nil
}

// next fills dst with as many values.
func (d *deltas) next(dst []int64) error {
	if len(dst) > d.left {
		return errors.New("fewer deltas than values")
	}
	d.left -= len(dst)
	if len(dst) > 0 && d.first {
		dst[0], d.first = d.value, false
		dst = dst[1:]
	}
	for len(dst) > 0 {
		if d.at == len(d.buf) {
			packed, width, err := d.mini()
			if err != nil {
				return err
			}
			d.buf, d.at = grown(d.buf, d.miniSize), 0
			unpack64(d.buf, packed, width)
		}
		n := min(len(dst), len(d.buf)-d.at)
		v := d.value
		for i, x := range d.buf[d.at : d.at+n] {
			v += x + d.minDelta
			dst[i] = v
		}
		d.value, d.at, dst = v, d.at+n, dst[n:]
	}
	return nil
}

func unpack64(dst []int64, packed []byte, width uint) {
	switch {
	case width == 0:
		clear(dst)
	case cap(packed)-len(packed) >= bitpack.PaddingInt64:
		bitpack.Unpack(dst, packed[:len(packed)+bitpack.PaddingInt64], width)
	default:
		padded := make([]byte, len(packed)+bitpack.PaddingInt64)
		copy(padded, packed)
		bitpack.Unpack(dst, padded, width)
	}
}

// rest passes over what is left and returns the bytes after it, without changing d.
func (d *deltas) rest() ([]byte, error) {
	c := *d
	for n := c.left - boolInt(c.first) - (len(c.buf) - c.at); n > 0; n -= c.miniSize {
		if _, _, err := c.mini(); err != nil {
			return nil, err
		}
	}
	return c.b, nil
}
