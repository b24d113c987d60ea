package parquet

import (
	"sort"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
)

// shredder lays out one column of a batch: the levels of its entries, and which
// slots of the leaf array its values are in.
type shredder struct {
	steps []step
	leaf  leafSlots

	entries  int
	def, rep []byte // nil if all are the greatest, and if all are 0
	marks    []int  // scratch: where lists begin
	spans    []span // slots with an entry each, in order; those that are null have no value
	err      error
}

// span is a range of slots of an array.
type span struct{ from, to int }

// step is an array on the way from a column of the batch to one of its leaves.
type step struct {
	node *node // nil for run ends
	arr  arrow.Array
	runs []int64 // ends of runs, in slots of arr
}

// leafSlots is a leaf's array.
type leafSlots struct {
	arr    arrow.Array
	bits   []byte // validity, nil if nothing is null
	bitOff int
	none   bool // all is null
}

// open follows the path to a leaf.
func (s *shredder) open(root *node, col arrow.Array, leaf int) {
	s.steps, s.spans, s.def, s.rep = s.steps[:0], s.spans[:0], s.def[:0], s.rep[:0]
	s.entries, s.err = 0, nil
	n, arr := root, col
	for {
		switch a := arr.(type) {
		case array.ExtensionArray:
			arr = a.Storage()
			continue
		case *array.RunEndEncoded:
			s.steps = append(s.steps, step{arr: a, runs: runEnds(a)})
			arr = a.Values()
			continue
		}
		s.steps = append(s.steps, step{node: n, arr: arr})
		switch n.kind {
		case structKind:
			for i, c := range n.children {
				if leaf < c.pastLeafs {
					n, arr = c, arr.(*array.Struct).Field(i)
					break
				}
			}
		case listKind:
			n, arr = n.children[0], arr.(array.ListLike).ListValues()
		default:
			s.leaf = slotsOf(arr)
			return
		}
	}
}

// runEnds are the ends of an array's runs in its own slots.
func runEnds(a *array.RunEndEncoded) []int64 {
	ends := a.RunEndsArr()
	out := make([]int64, ends.Len())
	for i := range out {
		switch e := ends.(type) {
		case *array.Int16:
			out[i] = int64(e.Value(i))
		case *array.Int32:
			out[i] = int64(e.Value(i))
		case *array.Int64:
			out[i] = e.Value(i)
		}
		out[i] -= int64(a.Offset())
	}
	return out
}

func slotsOf(arr arrow.Array) leafSlots {
	l := leafSlots{arr: arr, none: valueType(arr.DataType()).ID() == arrow.NULL}
	if arr.NullN() > 0 {
		l.bits, l.bitOff = arr.NullBitmapBytes(), arr.Data().Offset()
	}
	// A dictionary may have null values.
	if d, ok := arr.(*array.Dictionary); ok && d.Dictionary().NullN() > 0 {
		bits := make([]byte, bitutil.CeilByte(d.Len())/8)
		for i := range d.Len() {
			bitutil.SetBitTo(bits, i, d.IsValid(i) && d.Dictionary().IsValid(d.GetValueIndex(i)))
		}
		l.bits, l.bitOff = bits, 0
	}
	return l
}

func (l *leafSlots) valid(i int) bool {
	return !l.none && (l.bits == nil || bitutil.BitIsSet(l.bits, l.bitOff+i))
}

// rows shreds all rows of the column.
func (s *shredder) rows(rows int) error {
	last := s.steps[len(s.steps)-1]
	if len(s.steps) == 1 && !s.leaf.none && s.leaf.bits == nil {
		s.entries, s.spans = rows, append(s.spans, span{0, rows})
		s.def, s.rep = nil, nil
		return nil
	}
	if rows > 0 {
		s.visit(0, 0, rows, 0)
	}
	s.entries = len(s.def)
	if last.node.maxRep() == 0 {
		s.rep = nil
	}
	if last.node.def == 0 {
		s.def = nil
	}
	return s.err
}

// visit adds the entries of slots of the array at a step; first is the repetition
// level of the first of them.
func (s *shredder) visit(at, from, to int, first byte) {
	st := &s.steps[at]
	if st.node == nil {
		s.visitRuns(at, from, to, first)
		return
	}
	if st.node.kind == leafKind {
		s.visitLeaf(st.node, from, to, first)
		return
	}
	for i := from; i < to; {
		null := st.arr.IsNull(i)
		end := i + 1
		for ; end < to && st.arr.NullN() > 0 && st.arr.IsNull(end) == null; end++ {
		}
		if st.arr.NullN() == 0 {
			end = to
		}
		switch {
		case null && !st.node.optional:
			s.fail(st.node)
			return
		case null:
			s.absent(st.node, st.node.def-1, end-i, first)
		case st.node.kind == structKind:
			s.visit(at+1, i, end, first)
		default:
			s.visitLists(at, i, end, first)
		}
		first, i = st.node.slotRep, end
	}
}

func (s *shredder) fail(n *node) {
	if s.err == nil {
		s.err = &ValueError{Column: n.name(), Type: n.field.Type.String(), Index: int64(len(s.def)), Hint: "it is null in a field that is not nullable; make the field nullable"}
	}
}

// absent adds n entries that end above the leaf.
func (s *shredder) absent(n *node, def byte, count int, first byte) {
	s.def = appendRepeated(s.def, def, count)
	s.repeated(n.slotRep, count, first)
}

func (s *shredder) repeated(rep byte, count int, first byte) {
	s.rep = appendRepeated(s.rep, rep, count)
	s.rep[len(s.rep)-count] = first
}

func appendRepeated(b []byte, v byte, count int) []byte {
	at := len(b)
	b = append(b, make([]byte, count)...)
	if v != 0 {
		for i := at; i < len(b); i++ {
			b[i] = v
		}
	}
	return b
}

// visitLists adds lists that are not null.
func (s *shredder) visitLists(at, from, to int, first byte) {
	n, lists := s.steps[at].node, s.steps[at].arr.(array.ListLike)
	next := &s.steps[at+1]
	simple := next.node != nil && next.node.kind == leafKind // an entry for each slot
	for i := from; i < to; i++ {
		start, end := lists.ValueOffsets(i)
		if start == end {
			s.absent(n, n.def, 1, first)
			first = n.slotRep
			continue
		}
		if !simple {
			s.visit(at+1, int(start), int(end), first)
			first = n.slotRep
			continue
		}
		// Lists that follow each other in the values are one range of the leaf, in
		// which the first value of each list has the list's own repetition level.
		base, begin := len(s.rep), start
		s.marks = append(s.marks[:0], 0)
		for i+1 < to {
			a, b := lists.ValueOffsets(i + 1)
			if a != end || a == b {
				break
			}
			s.marks = append(s.marks, int(a-begin))
			end = b
			i++
		}
		s.visitLeaf(next.node, int(begin), int(end), first)
		if s.err != nil {
			return
		}
		for _, m := range s.marks[1:] {
			s.rep[base+m] = n.slotRep
		}
		first = n.slotRep
	}
}

func (s *shredder) visitRuns(at, from, to int, first byte) {
	runs, inner := s.steps[at].runs, s.innermost(at)
	run := sort.Search(len(runs), func(k int) bool { return runs[k] > int64(from) })
	for i := from; i < to; i++ {
		for runs[run] <= int64(i) {
			run++
		}
		s.visit(at+1, run, run+1, first)
		first = inner
	}
}

// innermost is the repetition level of slots at a step of run ends.
func (s *shredder) innermost(at int) byte {
	for _, st := range s.steps[at:] {
		if st.node != nil {
			return st.node.slotRep
		}
	}
	return 0
}

func (s *shredder) visitLeaf(n *node, from, to int, first byte) {
	count := to - from
	s.repeated(n.slotRep, count, first)
	switch {
	case s.leaf.none:
		s.def = appendRepeated(s.def, n.def-1, count)
		return
	case s.leaf.bits == nil:
		s.def = appendRepeated(s.def, n.def, count)
	default:
		at := len(s.def)
		s.def = appendRepeated(s.def, n.def, count)
		nulls := 0
		for i, d := range s.def[at:] {
			if !bitutil.BitIsSet(s.leaf.bits, s.leaf.bitOff+from+i) {
				s.def[at+i] = d - 1
				nulls++
			}
		}
		if nulls > 0 && !n.optional {
			s.fail(n)
			return
		}
	}
	if k := len(s.spans); k > 0 && s.spans[k-1].to == from {
		s.spans[k-1].to = to
		return
	}
	s.spans = append(s.spans, span{from, to})
}
