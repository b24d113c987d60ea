package arrowio

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
)

// The library's writer of batches was rejected: it cannot write sliced unions and
// list views, a union that uses type code 127, or an extension type over a
// dictionary; of slices it writes bytes that are not theirs; and it copies each
// bitmap that is longer than need be.

// flattener takes a batch apart into what its messages consist of. Buffers are
// aliased; copied is only what the format cannot say otherwise: bits that do not
// start at a byte, and offsets and run ends that do not start at 0.
type flattener struct {
	dicts []dictionaryOf
	body  body
}

// body is the record batch of a message, in the order of its schema.
type body struct {
	nodes    []node
	buffers  [][]byte
	variadic []int64
}

type node struct{ length, nulls int64 }

type dictionaryOf struct {
	id   int64
	rows int64
	body body
}

func (f *flattener) batch(batch arrow.RecordBatch, enc encoding) error {
	for i, col := range batch.Columns() {
		if err := f.array(col.DataType(), col.Data(), col.Data().Offset(), col.Len(), enc.kid(i)); err != nil {
			return fmt.Errorf("column %d (%s): %w", i, clip(batch.ColumnName(i)), err)
		}
	}
	return nil
}

func (f *flattener) buffer(b []byte) { f.body.buffers = append(f.body.buffers, b) }

// buffer i of d, nil if there is none.
func bufferBytes(d arrow.ArrayData, i int) []byte {
	if b := d.Buffers(); i < len(b) && b[i] != nil {
		return b[i].Bytes()
	}
	return nil
}

// bitRange returns n bits from start on. What follows them in their last byte
// stays as it is where nothing must be copied.
func bitRange(b []byte, start, n int) []byte {
	if start%8 == 0 {
		return b[start/8 : (start+n+7)/8]
	}
	out := make([]byte, (n+7)/8)
	bitutil.CopyBitmap(b, start, n, out, 0)
	return out
}

// head adds the node and the bitmap of n values from start on.
func (f *flattener) head(d arrow.ArrayData, start, n int) {
	bitmap, nulls := bufferBytes(d, 0), 0
	if bitmap != nil && d.NullN() != 0 {
		nulls = n - bitutil.CountSetBits(bitmap, start, n)
	}
	f.body.nodes = append(f.body.nodes, node{int64(n), int64(nulls)})
	if nulls == 0 {
		f.buffer(nil)
		return
	}
	f.buffer(bitRange(bitmap, start, n))
}

// array adds n values of d, the first of which is at start in its buffers: d's
// own offset is part of start.
func (f *flattener) array(dt arrow.DataType, d arrow.ArrayData, start, n int, enc encoding) error {
	child := func(i int, t arrow.DataType, start, n int) error {
		c := d.Children()[i]
		return f.array(t, c, c.Offset()+start, n, enc.kid(i))
	}
	switch t := dt.(type) {
	case arrow.ExtensionType:
		return f.array(t.StorageType(), d, start, n, enc)
	case *arrow.NullType:
		f.body.nodes = append(f.body.nodes, node{int64(n), int64(n)})
		return nil
	case *arrow.RunEndEncodedType:
		f.body.nodes = append(f.body.nodes, node{int64(n), 0})
		return f.runs(t, d, start, n, enc)
	case arrow.UnionType:
		f.body.nodes = append(f.body.nodes, node{int64(n), 0})
		f.buffer(bufferBytes(d, 1)[start : start+n])
		if t.Mode() == arrow.DenseMode {
			return f.dense(t, d, start, n, enc)
		}
		for i, field := range t.Fields() {
			if err := child(i, field.Type, start, n); err != nil {
				return err
			}
		}
		return nil
	}
	f.head(d, start, n)
	switch t := dt.(type) {
	case *arrow.DictionaryType:
		if err := f.dictionary(t, d, enc); err != nil {
			return err
		}
		f.fixed(d, 1, start, n, t.IndexType.(arrow.FixedWidthDataType).BitWidth()/8)
	case *arrow.BinaryType, *arrow.StringType:
		first, last := offsetRange[int32](f, d, start, n)
		f.buffer(bufferBytes(d, 2)[first:last])
	case *arrow.LargeBinaryType, *arrow.LargeStringType:
		first, last := offsetRange[int64](f, d, start, n)
		f.buffer(bufferBytes(d, 2)[first:last])
	case arrow.BinaryViewDataType:
		f.fixed(d, 1, start, n, arrow.ViewHeaderSizeBytes)
		f.body.variadic = append(f.body.variadic, int64(len(d.Buffers())-2))
		for i := range d.Buffers()[2:] {
			f.buffer(bufferBytes(d, 2+i))
		}
	case *arrow.ListType, *arrow.MapType:
		first, last := offsetRange[int32](f, d, start, n)
		return child(0, t.(arrow.ListLikeType).Elem(), first, last-first)
	case *arrow.LargeListType:
		first, last := offsetRange[int64](f, d, start, n)
		return child(0, t.Elem(), first, last-first)
	case *arrow.ListViewType:
		first, last := spanRange[int32](f, d, start, n)
		return child(0, t.Elem(), first, last-first)
	case *arrow.LargeListViewType:
		first, last := spanRange[int64](f, d, start, n)
		return child(0, t.Elem(), first, last-first)
	case *arrow.FixedSizeListType:
		return child(0, t.Elem(), start*int(t.Len()), n*int(t.Len()))
	case *arrow.StructType:
		for i, field := range t.Fields() {
			if err := child(i, field.Type, start, n); err != nil {
				return err
			}
		}
	case *arrow.BooleanType:
		f.buffer(bitRange(bufferBytes(d, 1), start, n))
	case arrow.FixedWidthDataType:
		f.fixed(d, 1, start, n, t.BitWidth()/8)
	default:
		return fmt.Errorf("%w: type %s", ErrUnsupported, dt)
	}
	return nil
}

func (f *flattener) fixed(d arrow.ArrayData, i, start, n, width int) {
	f.buffer(bufferBytes(d, i)[start*width : (start+n)*width])
}

// offsetRange adds the offsets of n lists or strings, and returns what of their
// values they use.
func offsetRange[T int32 | int64](f *flattener, d arrow.ArrayData, start, n int) (first, last int) {
	if n == 0 {
		f.buffer(nil)
		return 0, 0
	}
	offsets := arrow.GetData[T](bufferBytes(d, 1))[start : start+n+1]
	from, to := offsets[0], offsets[n]
	f.buffer(shifted(offsets, from))
	return int(from), int(to)
}

// shifted returns the bytes of values less by.
func shifted[T int16 | int32 | int64](values []T, by T) []byte {
	if by != 0 {
		values = slices.Clone(values)
		for i := range values {
			values[i] -= by
		}
	}
	return arrow.GetBytes(values)
}

// spanRange is offsetRange for list views. Unless they are sliced, all their
// values are taken, in use or not.
func spanRange[T int32 | int64](f *flattener, d arrow.ArrayData, start, n int) (first, last int) {
	if n == 0 {
		f.buffer(nil)
		f.buffer(nil)
		return 0, 0
	}
	offsets := arrow.GetData[T](bufferBytes(d, 1))[start : start+n]
	sizes := arrow.GetData[T](bufferBytes(d, 2))[start : start+n]
	if start == 0 {
		f.buffer(arrow.GetBytes(offsets))
		f.buffer(arrow.GetBytes(sizes))
		return 0, d.Children()[0].Len()
	}
	from, to := offsets[0], offsets[0]
	for i, o := range offsets {
		from, to = min(from, o), max(to, o+sizes[i])
	}
	f.buffer(shifted(offsets, from))
	f.buffer(arrow.GetBytes(sizes))
	return int(from), int(to)
}

// dense adds the offsets and the children of a dense union. Unless it is sliced,
// the children are taken whole.
func (f *flattener) dense(t arrow.UnionType, d arrow.ArrayData, start, n int, enc encoding) error {
	codes := arrow.GetData[int8](bufferBytes(d, 1))[start : start+n]
	offsets := arrow.GetData[int32](bufferBytes(d, 2))[start : start+n]
	ids, fields := t.ChildIDs(), t.Fields()
	from, to := make([]int32, len(fields)), make([]int32, len(fields))
	if start == 0 && n > 0 {
		for i, c := range d.Children() {
			to[i] = int32(c.Len())
		}
	} else {
		for i := range from {
			from[i] = -1
		}
		for i, o := range offsets {
			which := ids[codes[i]]
			if from[which] < 0 || o < from[which] {
				from[which] = o
			}
			to[which] = max(to[which], o+1)
		}
		offsets = slices.Clone(offsets)
		for i, code := range codes {
			offsets[i] -= from[ids[code]]
		}
	}
	f.buffer(arrow.GetBytes(offsets))
	for i, field := range fields {
		first := max(from[i], 0)
		c := d.Children()[i]
		if err := f.array(field.Type, c, c.Offset()+int(first), int(to[i]-first), enc.kid(i)); err != nil {
			return err
		}
	}
	return nil
}

func (f *flattener) runs(t *arrow.RunEndEncodedType, d arrow.ArrayData, start, n int, enc encoding) error {
	ends, values := d.Children()[0], d.Children()[1]
	var first, runs int
	switch t.RunEnds().ID() {
	case arrow.INT16:
		first, runs = runRange[int16](f, ends, start, n)
	case arrow.INT32:
		first, runs = runRange[int32](f, ends, start, n)
	default:
		first, runs = runRange[int64](f, ends, start, n)
	}
	return f.array(t.Encoded(), values, values.Offset()+first, runs, enc.kid(1))
}

// runRange adds the ends of the runs that hold n values from start on, the last
// one cut, and returns which they are.
func runRange[T int16 | int32 | int64](f *flattener, d arrow.ArrayData, start, n int) (first, runs int) {
	ends := arrow.GetData[T](bufferBytes(d, 1))[d.Offset():][:d.Len()]
	at := func(i int) int { // the run of value i
		run, _ := slices.BinarySearchFunc(ends, i, func(end T, i int) int {
			if int(end) <= i {
				return -1
			}
			return 1
		})
		return run
	}
	if n == 0 {
		ends = nil
	} else {
		first = at(start)
		ends = ends[first : at(start+n-1)+1]
	}
	f.body.nodes = append(f.body.nodes, node{int64(len(ends)), 0})
	f.buffer(nil)
	if len(ends) > 0 && (start != 0 || int(ends[len(ends)-1]) != n) {
		ends = slices.Clone(ends)
		for i := range ends {
			ends[i] -= T(start)
		}
		ends[len(ends)-1] = T(n)
	}
	f.buffer(arrow.GetBytes(ends))
	return first, len(ends)
}

// dictionary adds the message of a dictionary behind those of dictionaries that
// its values hold.
func (f *flattener) dictionary(t *arrow.DictionaryType, d arrow.ArrayData, enc encoding) error {
	dict, _ := d.Dictionary().(*array.Data)
	if dict == nil {
		if d.Len() > 0 {
			return fmt.Errorf("array of type %s without its dictionary", t)
		}
		empty := array.MakeArrayOfNull(nil, t.ValueType, 0)
		defer empty.Release()
		dict = empty.Data().(*array.Data)
	}
	outer := f.body
	f.body = body{}
	err := f.array(t.ValueType, dict, dict.Offset(), dict.Len(), encoding{kids: enc.kids})
	f.dicts = append(f.dicts, dictionaryOf{id: enc.id, rows: int64(dict.Len()), body: f.body})
	f.body = outer
	return err
}

// message lays out the header of a record batch, or of a dictionary, as a
// FlatBuffer: front to back, with the tables at fixed places, 8-byte aligned.
func (b *body) message(rows int64, dict *int64, custom arrow.Metadata) (message, error) {
	var m message
	size := int64(0)
	for _, part := range b.buffers {
		size += pad(int64(len(part)))
	}
	w := flatWriter{b: make([]byte, 0, 256+structBytes*(len(b.nodes)+len(b.buffers))+8*len(b.variadic))}
	w.u32(24) // the message's table
	w.u32(0)
	w.u16(14, 24, 20, 22, 4, 8, 16) // its vtable: version, kind, header, body length, custom metadata
	w.align(8)
	w.u32(16)
	header := w.hole()
	w.i64(size)
	customAt := w.hole()
	kind := uint16(headerBatch)
	if dict != nil {
		kind = headerDict
	}
	w.u16(metadataV5, kind)
	if dict != nil {
		w.u16(8, 16, 8, 4) // vtable: id, data
		w.fill(header)
		w.u32(8)
		header = w.hole()
		w.i64(*dict)
	}
	w.u16(14, 24, 8, 4, 16, 0, 20) // vtable: length, nodes, buffers, compression, variadic counts
	w.align(8)
	w.fill(header)
	w.u32(16)
	nodes := w.hole()
	w.i64(rows)
	buffers, variadic := w.hole(), w.hole()
	w.vector(nodes, len(b.nodes))
	for _, n := range b.nodes {
		w.i64(n.length, n.nulls)
	}
	w.vector(buffers, len(b.buffers))
	for _, part := range b.buffers {
		w.i64(m.size, int64(len(part)))
		if len(part) > 0 {
			m.body = append(m.body, part)
			m.size += pad(int64(len(part)))
		}
	}
	w.vector(variadic, len(b.variadic))
	w.i64(b.variadic...)
	w.metadata(customAt, custom)
	w.align(8)
	m.meta = w.b
	// What could be wrong here is a count or length beyond what a frame may have.
	if err := m.check(); err != nil {
		return message{}, err
	}
	return m, nil
}

// flatWriter appends to a FlatBuffer.
type flatWriter struct{ b []byte }

func (w *flatWriter) u16(values ...uint16) {
	for _, v := range values {
		w.b = binary.LittleEndian.AppendUint16(w.b, v)
	}
}

func (w *flatWriter) u32(v int) { w.b = binary.LittleEndian.AppendUint32(w.b, uint32(v)) }

func (w *flatWriter) i64(values ...int64) {
	for _, v := range values {
		w.b = binary.LittleEndian.AppendUint64(w.b, uint64(v))
	}
}

func (w *flatWriter) align(n int) {
	for len(w.b)%n != 0 {
		w.b = append(w.b, 0)
	}
}

// hole leaves room for an offset that fill sets to what comes next.
func (w *flatWriter) hole() int {
	w.u32(0)
	return len(w.b) - 4
}

func (w *flatWriter) fill(at int) {
	binary.LittleEndian.PutUint32(w.b[at:], uint32(len(w.b)-at))
}

// vector begins a vector of n things that start on an 8-byte boundary.
func (w *flatWriter) vector(at, n int) {
	w.align(8)
	w.u32(0)
	w.fill(at)
	w.u32(n)
}

// metadata writes a vector of KeyValue. The place at is in a table whose vtable
// has it: an empty vector stands for none.
func (w *flatWriter) metadata(at int, md arrow.Metadata) {
	w.vector(at, md.Len())
	holes := make([]int, md.Len())
	for i := range holes {
		holes[i] = w.hole()
	}
	for i, hole := range holes {
		w.align(8)
		w.u16(8, 12, 4, 8) // vtable: key, value
		w.fill(hole)
		w.u32(8)
		key, value := w.hole(), w.hole()
		w.text(key, md.Keys()[i])
		w.text(value, md.Values()[i])
	}
}

func (w *flatWriter) text(at int, s string) {
	w.align(4)
	w.fill(at)
	w.u32(len(s))
	w.b = append(w.b, s...)
	w.b = append(w.b, 0)
}
