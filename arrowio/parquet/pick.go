package parquet

import (
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// part is a range of slots to take, or n empty ones that are null if from is
// negative.
type part struct{ from, n int }

func addPart(parts []part, p part) []part {
	if p.n == 0 {
		return parts
	}
	if k := len(parts) - 1; k >= 0 {
		last := &parts[k]
		if last.from < 0 && p.from < 0 || last.from >= 0 && p.from == last.from+last.n {
			last.n += p.n
			return parts
		}
	}
	return append(parts, p)
}

func scale(parts []part, by int) []part {
	out := make([]part, 0, len(parts))
	for _, p := range parts {
		if p.from >= 0 {
			p.from *= by
		}
		p.n *= by
		out = addPart(out, p)
	}
	return out
}

// pick returns data of the parts of d, whose offset is 0. The library's Concatenate
// does as much for slices, but takes arrays, not data, and no extension types.
func (a *assembler) pick(n *node, d arrow.ArrayData, parts []part) (arrow.ArrayData, error) {
	size := 0
	empties := false
	for _, p := range parts {
		size += p.n
		empties = empties || p.from < 0
	}
	if err := a.budget.take(n, int64(size)/8); err != nil {
		return nil, err
	}
	validity, nulls := pickValidity(d, parts, size, empties)
	core, _ := unwrap(d.DataType())
	with := func(buffers ...*memory.Buffer) (arrow.ArrayData, error) {
		return array.NewData(d.DataType(), size, append([]*memory.Buffer{validity}, buffers...), nil, nulls, 0), nil
	}
	switch t := core.(type) {
	case *arrow.NullType:
		return array.NewData(d.DataType(), size, []*memory.Buffer{nil}, nil, size, 0), nil
	case *arrow.BooleanType:
		return with(memory.NewBufferBytes(pickBits(d.Buffers()[1].Bytes(), parts, size, false)))
	case *arrow.StructType:
		children := make([]arrow.ArrayData, len(d.Children()))
		for i, c := range d.Children() {
			var err error
			if children[i], err = a.pick(n, c, parts); err != nil {
				return nil, err
			}
		}
		return array.NewData(d.DataType(), size, []*memory.Buffer{validity}, children, nulls, 0), nil
	case *arrow.FixedSizeListType:
		child, err := a.pick(n, d.Children()[0], scale(parts, int(t.Len())))
		if err != nil {
			return nil, err
		}
		return array.NewData(d.DataType(), size, []*memory.Buffer{validity}, []arrow.ArrayData{child}, nulls, 0), nil
	case *arrow.ListViewType, *arrow.LargeListViewType:
		w := 4
		if core.ID() == arrow.LARGE_LIST_VIEW {
			w = 8
		}
		if err := a.budget.take(n, 2*int64(w)*int64(size)); err != nil {
			return nil, err
		}
		return array.NewData(d.DataType(), size, []*memory.Buffer{validity, pickWidth(d.Buffers()[1], parts, size, w), pickWidth(d.Buffers()[2], parts, size, w)}, d.Children(), nulls, 0), nil
	case *arrow.ListType, *arrow.MapType, *arrow.LargeListType:
		offsets, inner := pickOffsets(d.Buffers()[1].Bytes(), parts, size, core.ID() == arrow.LARGE_LIST)
		child, err := a.pick(n, d.Children()[0], inner)
		if err != nil {
			return nil, err
		}
		return array.NewData(d.DataType(), size, []*memory.Buffer{validity, offsets}, []arrow.ArrayData{child}, nulls, 0), nil
	case *arrow.StringType, *arrow.BinaryType, *arrow.LargeStringType, *arrow.LargeBinaryType:
		offsets, inner := pickOffsets(d.Buffers()[1].Bytes(), parts, size, core.ID() == arrow.LARGE_STRING || core.ID() == arrow.LARGE_BINARY)
		total := 0
		for _, p := range inner {
			total += p.n
		}
		if err := a.budget.take(n, int64(total)+int64(offsets.Len())); err != nil {
			return nil, err
		}
		return with(offsets, pickWidth(d.Buffers()[2], inner, total, 1))
	case arrow.BinaryViewDataType:
		if err := a.budget.take(n, 16*int64(size)); err != nil {
			return nil, err
		}
		return with(append([]*memory.Buffer{pickWidth(d.Buffers()[1], parts, size, 16)}, d.Buffers()[2:]...)...)
	case *arrow.DictionaryType:
		w := arrowWidth(t.IndexType)
		if err := a.budget.take(n, int64(w)*int64(size)); err != nil {
			return nil, err
		}
		return array.NewDataWithDictionary(d.DataType(), size, []*memory.Buffer{validity, pickWidth(d.Buffers()[1], parts, size, w)}, nulls, 0, d.Dictionary().(*array.Data)), nil
	case arrow.FixedWidthDataType:
		w := t.BitWidth() / 8
		if err := a.budget.take(n, int64(w)*int64(size)); err != nil {
			return nil, err
		}
		return with(pickWidth(d.Buffers()[1], parts, size, w))
	default:
		return nil, fmt.Errorf("%w: %s", ErrUnsupported, core)
	}
}

func pickValidity(d arrow.ArrayData, parts []part, size int, empties bool) (*memory.Buffer, int) {
	var bits []byte
	if b := d.Buffers()[0]; b != nil && d.NullN() > 0 {
		bits = b.Bytes()
	}
	if bits == nil && !empties {
		return nil, 0
	}
	out := pickBits(bits, parts, size, bits == nil)
	return memory.NewBufferBytes(out), size - bitutil.CountSetBits(out, 0, size)
}

// pickBits takes bits; those of empty parts are 0. all stands for bits that are all
// set.
func pickBits(bits []byte, parts []part, size int, all bool) []byte {
	out := make([]byte, (size+7)/8)
	at := 0
	for _, p := range parts {
		switch {
		case p.from < 0:
		case all:
			bitutil.SetBitsTo(out, int64(at), int64(p.n), true)
		default:
			bitutil.CopyBitmap(bits, p.from, p.n, out, at)
		}
		at += p.n
	}
	return out
}

func pickWidth(b *memory.Buffer, parts []part, size, w int) *memory.Buffer {
	out := make([]byte, size*w)
	at := 0
	for _, p := range parts {
		if p.from >= 0 {
			copy(out[at:at+p.n*w], b.Bytes()[p.from*w:])
		}
		at += p.n * w
	}
	return memory.NewBufferBytes(out)
}

// pickOffsets returns the offsets of the parts, and the ranges of what they are
// offsets into.
func pickOffsets(raw []byte, parts []part, size int, long bool) (*memory.Buffer, []part) {
	var inner []part
	if long {
		out := make([]int64, 1, size+1)
		from := arrow.Int64Traits.CastFromBytes(raw)
		inner = offsetsOf(&out, from, parts)
		return memory.NewBufferBytes(arrow.Int64Traits.CastToBytes(out)), inner
	}
	out := make([]int32, 1, size+1)
	inner = offsetsOf(&out, arrow.Int32Traits.CastFromBytes(raw), parts)
	return memory.NewBufferBytes(arrow.Int32Traits.CastToBytes(out)), inner
}

func offsetsOf[T int32 | int64](out *[]T, from []T, parts []part) (inner []part) {
	end := T(0)
	for _, p := range parts {
		if p.from < 0 {
			for range p.n {
				*out = append(*out, end)
			}
			continue
		}
		base := end - from[p.from]
		for _, o := range from[p.from+1 : p.from+p.n+1] {
			*out = append(*out, base+o)
		}
		end = base + from[p.from+p.n]
		inner = addPart(inner, part{from: int(from[p.from]), n: int(from[p.from+p.n] - from[p.from])})
	}
	return inner
}
