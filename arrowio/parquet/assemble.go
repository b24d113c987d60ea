package parquet

import (
	"bytes"
	"fmt"
	"math"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// assembler builds the arrays of a batch from its columns.
type assembler struct {
	columns []*columnReader // by leaf, nil where not read
	budget  *budget
}

// frame is what levels say of a node: which slots hold something, and, for a list,
// where its elements begin.
type frame struct {
	slots, nulls int
	bits         []byte
	offsets      []int64 // slots+1, of a list
}

// core returns the data of a node without extensions and run ends.
func (a *assembler) core(n *node) (arrow.ArrayData, error) {
	if n.kind == leafKind {
		return a.columns[n.firstLeaf].array()
	}
	f, err := a.frame(n)
	if err != nil {
		return nil, err
	}
	validity := bufferOf(f.bits)
	if n.kind == structKind {
		children := make([]arrow.ArrayData, len(n.children))
		for i, c := range n.children {
			if children[i], err = a.core(c); err != nil {
				return nil, err
			}
			if children[i].Len() != f.slots {
				return nil, fmt.Errorf("field %q has %d values, its parent %d", c.name(), children[i].Len(), f.slots)
			}
		}
		return array.NewData(n.dt, f.slots, []*memory.Buffer{validity}, children, f.nulls, 0), nil
	}
	child, err := a.core(n.children[0])
	if err != nil {
		return nil, err
	}
	if int64(child.Len()) != f.offsets[f.slots] {
		return nil, fmt.Errorf("%q has %d elements, its lists %d", n.name(), child.Len(), f.offsets[f.slots])
	}
	return a.list(n, f, validity, child)
}

func (a *assembler) list(n *node, f *frame, validity *memory.Buffer, child arrow.ArrayData) (arrow.ArrayData, error) {
	kids := []arrow.ArrayData{child}
	short := func(offsets []int64) *memory.Buffer {
		out := make([]int32, len(offsets))
		for i, o := range offsets {
			out[i] = int32(o)
		}
		return memory.NewBufferBytes(arrow.Int32Traits.CastToBytes(out))
	}
	long := func(offsets []int64) *memory.Buffer {
		return memory.NewBufferBytes(arrow.Int64Traits.CastToBytes(offsets))
	}
	put := short
	switch n.dt.ID() {
	case arrow.LARGE_LIST, arrow.LARGE_LIST_VIEW:
		put = long
	case arrow.FIXED_SIZE_LIST:
		return a.fixedList(n, f, validity, child)
	}
	if f.offsets[f.slots] > math.MaxInt32 && n.dt.ID() != arrow.LARGE_LIST && n.dt.ID() != arrow.LARGE_LIST_VIEW {
		return nil, overflow(n, "elements", f.offsets[f.slots])
	}
	switch n.dt.ID() {
	case arrow.LIST_VIEW, arrow.LARGE_LIST_VIEW:
		sizes := make([]int64, f.slots)
		for i := range sizes {
			sizes[i] = f.offsets[i+1] - f.offsets[i]
		}
		return array.NewData(n.dt, f.slots, []*memory.Buffer{validity, put(f.offsets[:f.slots]), put(sizes)}, kids, f.nulls, 0), nil
	default:
		return array.NewData(n.dt, f.slots, []*memory.Buffer{validity, put(f.offsets)}, kids, f.nulls, 0), nil
	}
}

// fixedList gives each null list the elements that Arrow wants under it.
func (a *assembler) fixedList(n *node, f *frame, validity *memory.Buffer, child arrow.ArrayData) (arrow.ArrayData, error) {
	size := int64(n.dt.(*arrow.FixedSizeListType).Len())
	var parts []part
	for i := range f.slots {
		have := f.offsets[i+1] - f.offsets[i]
		null := f.bits != nil && !bitutil.BitIsSet(f.bits, i)
		switch {
		case null || have == 0 && a.underNull(n):
			if have != 0 {
				return nil, fmt.Errorf("%q: a null list of %d elements", n.name(), have)
			}
			parts = addPart(parts, part{from: -1, n: int(size)})
		case have != size:
			return nil, fmt.Errorf("%q: a list of %d elements, its type has %d", n.name(), have, size)
		default:
			parts = addPart(parts, part{from: int(f.offsets[i]), n: int(size)})
		}
	}
	if len(parts) > 1 || len(parts) == 1 && parts[0].from != 0 {
		if total := int64(f.slots) * size; total > math.MaxInt32 {
			return nil, overflow(n, "elements", total)
		}
		var err error
		if child, err = a.pick(n, child, parts); err != nil {
			return nil, err
		}
	}
	return array.NewData(n.dt, f.slots, []*memory.Buffer{validity}, []arrow.ArrayData{child}, f.nulls, 0), nil
}

// underNull reports whether a slot of the node may be empty because a parent is
// null.
func (a *assembler) underNull(n *node) bool {
	least := n.def
	if n.optional {
		least--
	}
	return least > n.slotDef
}

// frame reads the levels of all columns below a node, which must agree.
func (a *assembler) frame(n *node) (*frame, error) {
	var out *frame
	for leaf := n.firstLeaf; leaf < n.pastLeafs; leaf++ {
		c := a.columns[leaf]
		if c == nil {
			continue
		}
		f, err := a.frameOf(n, c)
		if err != nil {
			return nil, err
		}
		if out == nil {
			out = f
			continue
		}
		same := f.slots == out.slots && bytes.Equal(f.bits, out.bits) && len(f.offsets) == len(out.offsets)
		for i := 0; same && i < len(f.offsets); i++ {
			same = f.offsets[i] == out.offsets[i]
		}
		if !same {
			return nil, fmt.Errorf("the columns of %q do not agree on what is null, or on the lengths of lists", n.name())
		}
	}
	return out, nil
}

func (a *assembler) frameOf(n *node, c *columnReader) (*frame, error) {
	f := &frame{}
	if n.kind == structKind && !n.optional && n.slotRep == 0 && c.node.slotRep == 0 {
		f.slots = c.slots
		return f, nil
	}
	// Slots are counted first, so that memory is taken once.
	isList := n.kind == listKind
	elemDef, elemRep := n.def+1, n.slotRep+1
	flat := len(c.rep) == 0
	if n.slotRep == 0 { // a row each
		f.slots = c.rows
	} else {
		for i, d := range c.def {
			if d >= n.slotDef && (flat || c.rep[i] <= n.slotRep) {
				f.slots++
			}
		}
	}
	if err := a.budget.take(n, int64(f.slots)/8+8*int64(f.slots)*int64(boolInt(isList))); err != nil {
		return nil, err
	}
	if n.optional {
		f.bits = make([]byte, (f.slots+7)/8)
	}
	if isList {
		f.offsets = make([]int64, 1, f.slots+1)
	}
	slot, elements := 0, int64(0)
	last := n.slotRep == 0 && c.node.maxRep() == 1 // no other lists around or below
	for i := 0; i < len(c.def); i++ {
		d := c.def[i]
		rep := byte(0)
		if !flat {
			rep = c.rep[i]
		}
		if rep <= n.slotRep {
			if d < n.slotDef {
				continue
			}
			if isList && slot > 0 {
				f.offsets = append(f.offsets, elements)
			}
			if n.optional {
				if d >= n.def {
					f.bits[slot/8] |= 1 << (slot % 8)
				} else {
					f.nulls++
				}
			}
			slot++
			if isList && d >= elemDef {
				elements++
			}
		} else if isList && rep == elemRep {
			elements++
			if last { // to where the next list begins
				more := bytes.IndexByte(c.rep[i+1:], 0)
				if more < 0 {
					more = len(c.rep) - i - 1
				}
				elements += int64(more)
				i += more
			}
		}
	}
	if isList && slot > 0 {
		f.offsets = append(f.offsets, elements)
	}
	if f.nulls == 0 {
		f.bits = nil
	}
	return f, nil
}

// wrap turns the data of a node into that of its field: children first, then run
// ends and extensions around it.
func (a *assembler) wrap(n *node, d arrow.ArrayData) (arrow.ArrayData, error) {
	if n.kind != leafKind {
		children := make([]arrow.ArrayData, len(n.children))
		for i, c := range n.children {
			var err error
			if children[i], err = a.wrap(c, d.Children()[i]); err != nil {
				return nil, err
			}
		}
		d = array.NewData(n.dt, d.Len(), d.Buffers(), children, d.NullN(), 0)
	}
	for i := len(n.wraps) - 1; i >= 0; i-- {
		switch t := n.wraps[i].(type) {
		case *arrow.RunEndEncodedType:
			var err error
			if d, err = a.runs(n, t, d); err != nil {
				return nil, err
			}
		default:
			dict, _ := d.Dictionary().(*array.Data)
			out := array.NewData(t, d.Len(), d.Buffers(), d.Children(), d.NullN(), 0)
			if dict != nil {
				out = array.NewDataWithDictionary(t, d.Len(), d.Buffers(), d.NullN(), 0, dict)
			}
			d = out
		}
	}
	return d, nil
}

// runs encodes data by runs of equal neighbours. Nested values are not compared:
// each is a run.
func (a *assembler) runs(n *node, t *arrow.RunEndEncodedType, d arrow.ArrayData) (arrow.ArrayData, error) {
	width := arrowWidth(t.RunEnds())
	if limit := int64(1)<<(8*width-1) - 1; int64(d.Len()) > limit {
		return nil, overflow(n, "values", limit)
	}
	if err := a.budget.take(n, int64(d.Len())*int64(width)); err != nil {
		return nil, err
	}
	var ends []byte
	var parts []part
	runs := 0
	same := sameNeighbours(d)
	for i := range d.Len() {
		if i+1 < d.Len() && same(i) {
			continue
		}
		var b [8]byte
		little.PutUint64(b[:], uint64(i+1))
		ends = append(ends, b[:width]...)
		parts = addPart(parts, part{from: i, n: 1})
		runs++
	}
	values := d
	if runs < d.Len() {
		var err error
		if values, err = a.pick(n, d, parts); err != nil {
			return nil, err
		}
	}
	e := array.NewData(t.RunEnds(), runs, []*memory.Buffer{nil, memory.NewBufferBytes(present(ends))}, nil, 0, 0)
	return array.NewData(t, d.Len(), []*memory.Buffer{nil}, []arrow.ArrayData{e, values}, 0, 0), nil
}

// sameNeighbours returns a function that tells whether slots i and i+1 are equal
// bit for bit; false where it does not know.
func sameNeighbours(d arrow.ArrayData) func(i int) bool {
	bothNull := func(i int) (same, known bool) {
		if d.NullN() == 0 || d.Buffers()[0] == nil {
			return false, false
		}
		bits := d.Buffers()[0].Bytes()
		x, y := bitutil.BitIsSet(bits, i), bitutil.BitIsSet(bits, i+1)
		return !x && !y, !x || !y
	}
	core, wraps := unwrap(d.DataType())
	for _, w := range wraps {
		if w.ID() == arrow.RUN_END_ENCODED {
			return func(int) bool { return false }
		}
	}
	var equal func(i int) bool
	switch t := core.(type) {
	case *arrow.NullType:
		return func(int) bool { return true }
	case *arrow.BooleanType:
		bits := d.Buffers()[1].Bytes()
		equal = func(i int) bool { return bitutil.BitIsSet(bits, i) == bitutil.BitIsSet(bits, i+1) }
	case *arrow.StringType, *arrow.BinaryType:
		offsets, data := arrow.Int32Traits.CastFromBytes(d.Buffers()[1].Bytes()), d.Buffers()[2].Bytes()
		equal = func(i int) bool {
			return bytes.Equal(data[offsets[i]:offsets[i+1]], data[offsets[i+1]:offsets[i+2]])
		}
	case *arrow.LargeStringType, *arrow.LargeBinaryType:
		offsets, data := arrow.Int64Traits.CastFromBytes(d.Buffers()[1].Bytes()), d.Buffers()[2].Bytes()
		equal = func(i int) bool {
			return bytes.Equal(data[offsets[i]:offsets[i+1]], data[offsets[i+1]:offsets[i+2]])
		}
	case *arrow.FixedSizeListType:
		return func(int) bool { return false }
	case arrow.FixedWidthDataType:
		w, raw := t.BitWidth()/8, d.Buffers()[1].Bytes()
		equal = func(i int) bool { return bytes.Equal(raw[w*i:w*(i+1)], raw[w*(i+1):w*(i+2)]) }
	default:
		return func(int) bool { return false }
	}
	return func(i int) bool {
		if same, known := bothNull(i); known {
			return same
		}
		return equal(i)
	}
}
