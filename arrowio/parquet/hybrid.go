package parquet

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/parquet-go/bitpack"
)

// hybrid decodes runs of repeated and bit-packed values, as many at a time as are
// asked for: a run of 2^31 values takes 6 bytes of a file, and must not take more
// memory before somebody wants them.
//
// https://github.com/apache/parquet-format/blob/master/Encodings.md#RLE
type hybrid struct {
	b     []byte
	width int // bits of a value
	left  int // values left of the run

	repeated bool
	value    uint32 // of a repeated run
	packed   []byte // of a packed run, and how many of its values are read
	read     int
}

// reset starts on b, whose capacity has bitpack.PaddingInt32 bytes more.
func (h *hybrid) reset(b []byte, width int) { *h = hybrid{b: b, width: width} }

// more makes sure that the run has values left.
func (h *hybrid) more() error {
	for h.left == 0 {
		head, n := binary.Uvarint(h.b)
		if n <= 0 {
			return errors.New("levels or indices end early")
		}
		h.b = h.b[n:]
		if head>>1 > 1<<31 {
			return fmt.Errorf("run of %d values", head>>1)
		}
		count := int(head >> 1)
		if h.repeated = head&1 == 0; h.repeated {
			size := (h.width + 7) / 8
			if size > len(h.b) {
				return errors.New("run without a value")
			}
			h.value = 0
			for i, c := range h.b[:size] {
				h.value |= uint32(c) << (8 * i)
			}
			h.b, h.left = h.b[size:], count
			continue
		}
		// The last run may be cut at the last value that it needs.
		size := min(count*h.width, len(h.b))
		h.packed, h.b, h.read, h.left = h.b[:size], h.b[size:], 0, 8*count
		if h.width > 0 {
			h.left = min(h.left, 8*size/h.width)
		}
		if count > 0 && h.left == 0 {
			return errors.New("packed run without values")
		}
	}
	return nil
}

// same returns how many of the next n values are value for certain, at no cost per
// value, and passes over them.
func (h *hybrid) same(value byte, n int) (int, error) {
	if err := h.more(); err != nil {
		return 0, err
	}
	if !h.repeated || h.value != uint32(value) {
		return 0, nil
	}
	n = min(n, h.left)
	h.left -= n
	return n, nil
}

// levels fills dst with values of at most 8 bits, none over the greatest.
func (h *hybrid) levels(dst []byte, greatest byte) error {
	for len(dst) > 0 {
		if err := h.more(); err != nil {
			return err
		}
		n := min(len(dst), h.left)
		if h.repeated {
			if h.value > uint32(greatest) {
				return fmt.Errorf("level %d of at most %d", h.value, greatest)
			}
			for i := range dst[:n] {
				dst[i] = byte(h.value)
			}
		} else {
			h.unpackLevels(dst[:n])
			if greatest != 1<<h.width-1 {
				for _, l := range dst[:n] {
					if l > greatest {
						return fmt.Errorf("level %d of at most %d", l, greatest)
					}
				}
			}
		}
		h.left -= n
		dst = dst[n:]
	}
	return nil
}

func (h *hybrid) unpackLevels(dst []byte) {
	for len(dst) > 0 && h.read%8 != 0 {
		dst[0] = byte(h.one())
		dst = dst[1:]
	}
	for len(dst) >= 8 {
		at := h.read / 8 * h.width
		if h.width == 1 {
			// Each bit into a byte of its own.
			x := uint64(h.packed[at]) * 0x0101010101010101 & 0x8040201008040201
			binary.LittleEndian.PutUint64(dst, (x+0x7f7f7f7f7f7f7f7f)>>7&0x0101010101010101)
		} else {
			var word [8]byte
			copy(word[:], h.packed[at:at+h.width])
			x := binary.LittleEndian.Uint64(word[:])
			mask := uint64(1)<<h.width - 1
			for i := range 8 {
				dst[i] = byte(x & mask)
				x >>= h.width
			}
		}
		h.read += 8
		dst = dst[8:]
	}
	for i := range dst {
		dst[i] = byte(h.one())
	}
}

// one reads a packed value by itself.
func (h *hybrid) one() uint32 {
	bit := h.read * h.width
	h.read++
	v := uint64(0)
	for i, c := range h.packed[bit/8 : (bit+h.width+7)/8] {
		v |= uint64(c) << (8 * i)
	}
	return uint32(v >> (bit % 8) & (1<<h.width - 1))
}

// indices fills dst with values below size.
func (h *hybrid) indices(dst []int32, size int) error {
	for len(dst) > 0 {
		if err := h.more(); err != nil {
			return err
		}
		n := min(len(dst), h.left)
		if h.repeated {
			if int64(h.value) >= int64(size) {
				return fmt.Errorf("index %d in a dictionary of %d", h.value, size)
			}
			for i := range dst[:n] {
				dst[i] = int32(h.value)
			}
		} else {
			h.unpack(dst[:n])
			greatest := uint32(0)
			for _, i := range dst[:n] {
				greatest = max(greatest, uint32(i))
			}
			if int64(greatest) >= int64(size) {
				return fmt.Errorf("index %d in a dictionary of %d", greatest, size)
			}
		}
		h.left -= n
		dst = dst[n:]
	}
	return nil
}

func (h *hybrid) unpack(dst []int32) {
	if h.width == 0 {
		clear(dst)
		h.read += len(dst)
		return
	}
	for len(dst) > 0 && h.read%8 != 0 {
		dst[0] = int32(h.one())
		dst = dst[1:]
	}
	if n := len(dst) / 8 * 8; n > 0 {
		at := h.read / 8 * h.width
		in := h.packed[at : at+n/8*h.width]
		if cap(in)-len(in) >= bitpack.PaddingInt32 {
			bitpack.Unpack(dst[:n], in[:len(in)+bitpack.PaddingInt32], uint(h.width))
			h.read += n
			dst = dst[n:]
		}
	}
	for i := range dst {
		dst[i] = int32(h.one())
	}
}
