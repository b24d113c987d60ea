package parquet

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/apache/arrow-go/v18/arrow/extensions"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/parquet-go/parquet-go/format"
)

// array returns the values as an Arrow array's data. Its validity is the column's
// own; whether a slot is null because of a parent is told by the levels.
func (c *columnReader) array() (arrow.ArrayData, error) {
	n := c.node
	bits, nulls := c.bits, c.nulls
	if !n.optional {
		bits, nulls = nil, 0
	}
	validity := bufferOf(bits)
	switch layoutOf(n) {
	case layoutNull:
		return array.NewData(n.dt, c.slots, []*memory.Buffer{nil}, nil, c.slots, 0), nil
	case layoutBytes:
		data, ends := c.data, c.ends
		if !n.optional && c.nulls > 0 && n.isJSON() {
			if err := c.take(int64(c.nulls * len(jsonNull))); err != nil {
				return nil, err
			}
			data, ends = fillMasked(data, ends, c.bits, jsonNull)
		}
		buffers, err := byteBuffers(n, n.dt, data, ends, c.options)
		if err != nil {
			return nil, err
		}
		return array.NewData(n.dt, c.slots, append([]*memory.Buffer{validity}, buffers...), nil, nulls, 0), nil
	case layoutDictionary:
		return c.dictionaryArray(validity, nulls)
	default:
		return array.NewData(n.dt, c.slots, []*memory.Buffer{validity, memory.NewBufferBytes(present(c.fixed))}, nil, nulls, 0), nil
	}
}

const jsonNull = "null"

// isJSON reports whether the values must be JSON, which no bytes at all are not.
func (n *node) isJSON() bool {
	return slices.ContainsFunc(n.wraps, func(dt arrow.DataType) bool {
		_, ok := dt.(*extensions.JSONType)
		return ok
	})
}

// fillMasked puts filler where valid has no bit: under a
// null parent.
func fillMasked(data []byte, ends []int64, valid []byte, filler string) ([]byte, []int64) {
	filled := make([]byte, 0, len(data)+len(filler))
	at := make([]int64, 1, len(ends))
	for i := range len(ends) - 1 {
		if bitutil.BitIsSet(valid, i) {
			filled = append(filled, data[ends[i]:ends[i+1]]...)
		} else {
			filled = append(filled, filler...)
		}
		at = append(at, int64(len(filled)))
	}
	return filled, at
}

func bufferOf(bits []byte) *memory.Buffer {
	if bits == nil {
		return nil
	}
	return memory.NewBufferBytes(bits)
}

func (c *columnReader) dictionaryArray(validity *memory.Buffer, nulls int) (arrow.ArrayData, error) {
	n := c.node
	t := n.dt.(*arrow.DictionaryType)
	limit := map[arrow.Type]int64{arrow.INT8: math.MaxInt8, arrow.UINT8: math.MaxUint8, arrow.INT16: math.MaxInt16, arrow.UINT16: math.MaxUint16}[t.IndexType.ID()]
	width := arrowWidth(t.IndexType)
	index := arrow.Int32Traits.CastToBytes(c.index)
	if width != 4 {
		index = make([]byte, width*len(c.index))
		greatest := int32(0)
		for i, v := range c.index {
			greatest = max(greatest, v)
			switch width {
			case 1:
				index[i] = byte(v)
			case 2:
				little.PutUint16(index[2*i:], uint16(v))
			default:
				little.PutUint64(index[8*i:], uint64(v))
			}
		}
		if limit > 0 && int64(greatest) > limit {
			return nil, fmt.Errorf("index %d in a dictionary with indices of type %s", greatest, t.IndexType)
		}
	}
	values, size := c.dict, c.dictLen
	if size == 0 && !n.optional && c.nulls > 0 {
		// Slots under a null parent have index 0, which must be somebody's.
		values, size = entries{ends: []int64{0, 0}, fixed: make([]byte, max(1, arrowWidth(t.ValueType)))}, 1
	}
	var dict *array.Data
	switch {
	case t.ValueType.ID() == arrow.NULL:
		dict = array.NewData(t.ValueType, 0, []*memory.Buffer{nil}, nil, 0, 0)
	case n.storage.physical == format.ByteArray:
		ends := values.ends
		if ends == nil {
			ends = []int64{0}
		}
		buffers, err := byteBuffers(n, t.ValueType, values.data, ends, &ScanOptions{})
		if err != nil {
			return nil, fmt.Errorf("dictionary: %w", err)
		}
		dict = array.NewData(t.ValueType, size, append([]*memory.Buffer{nil}, buffers...), nil, 0, 0)
	case n.storage.physical == format.Boolean:
		packed := make([]byte, (size+7)/8)
		for i, v := range values.fixed {
			packed[i/8] |= v << (i % 8)
		}
		dict = array.NewData(t.ValueType, size, []*memory.Buffer{nil, memory.NewBufferBytes(packed)}, nil, 0, 0)
	default:
		dict = array.NewData(t.ValueType, size, []*memory.Buffer{nil, memory.NewBufferBytes(present(values.fixed))}, nil, 0, 0)
	}
	return array.NewDataWithDictionary(n.dt, c.slots, []*memory.Buffer{validity, memory.NewBufferBytes(index)}, nulls, 0, dict), nil
}

// byteBuffers are the buffers, without validity, of byte arrays of a type.
func byteBuffers(n *node, dt arrow.DataType, data []byte, ends []int64, o *ScanOptions) ([]*memory.Buffer, error) {
	switch dt.ID() {
	case arrow.STRING, arrow.LARGE_STRING, arrow.STRING_VIEW:
		if err := checkText(data, ends); err != nil {
			return nil, err
		}
	default:
	}
	switch dt.ID() {
	case arrow.LARGE_STRING, arrow.LARGE_BINARY:
		return []*memory.Buffer{memory.NewBufferBytes(arrow.Int64Traits.CastToBytes(ends)), memory.NewBufferBytes(present(data))}, nil
	case arrow.STRING_VIEW, arrow.BINARY_VIEW:
		return viewBuffers(data, ends), nil
	default:
		if len(data) > math.MaxInt32 {
			return nil, overflow(n, "bytes", int64(len(data)))
		}
		offsets := o.bytes(4 * int64(len(ends)))[:4*len(ends)]
		short := arrow.Int32Traits.CastFromBytes(offsets)
		for i, e := range ends {
			short[i] = int32(e)
		}
		return []*memory.Buffer{memory.NewBufferBytes(offsets), memory.NewBufferBytes(present(data))}, nil
	}
}

func checkText(data []byte, ends []int64) error {
	if !utf8.Valid(data) {
		return errors.New("text that is not UTF-8")
	}
	for _, e := range ends {
		if e < int64(len(data)) && !utf8.RuneStart(data[e]) {
			return errors.New("text that ends within a character")
		}
	}
	return nil
}

// viewBuffers are the headers of views, and data in parts that an int32 can point
// into.
func viewBuffers(data []byte, ends []int64) []*memory.Buffer {
	headers := make([]byte, 16*(len(ends)-1))
	var parts []*memory.Buffer
	begin := int64(0)
	for i := range len(ends) - 1 {
		v := data[ends[i]:ends[i+1]]
		h := headers[16*i:]
		little.PutUint32(h, uint32(len(v)))
		if len(v) <= 12 {
			copy(h[4:16], v)
			continue
		}
		if ends[i+1]-begin > math.MaxInt32 {
			parts = append(parts, memory.NewBufferBytes(data[begin:ends[i]]))
			begin = ends[i]
		}
		copy(h[4:8], v)
		little.PutUint32(h[8:], uint32(len(parts)))
		little.PutUint32(h[12:], uint32(ends[i]-begin))
	}
	if begin < int64(len(data)) {
		parts = append(parts, memory.NewBufferBytes(data[begin:]))
	}
	return append([]*memory.Buffer{memory.NewBufferBytes(headers)}, parts...)
}
