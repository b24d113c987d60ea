package arrowio

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// The library's own reader of batches was rejected: it drops what validation
// needs to see (the buffers of empty arrays), misreads dictionaries whose values
// hold unions or run-ends (it takes them for the format before 1.0), merges
// deltas before anything is checked, and does its bookkeeping of dictionaries
// through some hundred allocations per batch. What it is good at, the schema, it
// still does.

// maxLength is the most values that one array of a batch may have. With it no
// product of a length and a width overflows.
const maxLength = 1 << 40

// encoding says which parts of a field are dictionary encoded. Its tree follows
// the field's; kids is nil where nothing below is encoded.
type encoding struct {
	encoded bool
	id      int64
	kids    []encoding
}

func (e encoding) kid(i int) encoding {
	if i < len(e.kids) {
		return e.kids[i]
	}
	return encoding{}
}

// known is a schema message that was checked.
type known struct {
	meta   []byte
	header header
	schema *arrow.Schema
	values map[int64]valueType // of each dictionary, by id
	none   *memory.Buffer      // of no bytes and nobody's; not nil, which has a meaning of its own

	named       sync.Once
	fingerprint string
}

type valueType struct {
	dt  arrow.DataType
	enc encoding
}

// loader makes arrays of the messages of one frame.
type loader struct {
	known  *known
	parts  map[int64]part // dictionary messages by id
	loaded map[int64]arrow.ArrayData
	hold   *holder
}

// source is the record batch header and body that arrays are made of, read
// front to back.
type source struct {
	*loader
	part
	body               *memory.Buffer
	node, buffer, view int64
}

func (l *loader) open(p part) *source {
	l.hold.n.Add(1)
	return &source{loader: l, part: p, body: memory.NewBufferWithAllocator(p.body, l.hold)}
}

// batch returns the data of each column.
func (l *loader) batch(p part) ([]arrow.ArrayData, error) {
	s := l.open(p)
	defer s.body.Release()
	cols := make([]arrow.ArrayData, l.known.schema.NumFields())
	for i := range cols {
		f := l.known.schema.Field(i)
		col, err := s.load(f.Type, l.known.header.encodings.kid(i))
		if err != nil {
			return nil, fmt.Errorf("column %d (%s): %w", i, clip(f.Name), err)
		}
		cols[i] = col
	}
	return cols, nil
}

// dictionary returns the values with an id; the loader holds on to them. Types
// are finite, so values cannot hold themselves.
func (l *loader) dictionary(id int64) (arrow.ArrayData, error) {
	if d, ok := l.loaded[id]; ok {
		return d, nil
	}
	p, ok := l.parts[id]
	if !ok {
		return nil, fmt.Errorf("dictionary %d is missing", id)
	}
	delete(l.parts, id)
	s := l.open(p)
	defer s.body.Release()
	want := l.known.values[id]
	d, err := s.load(want.dt, want.enc)
	if err != nil {
		return nil, fmt.Errorf("dictionary %d: %w", id, err)
	}
	if int64(d.Len()) != p.header.rows {
		return nil, fmt.Errorf("dictionary %d has %d values where its message says %d", id, d.Len(), p.header.rows)
	}
	l.loaded[id] = d
	return d, nil
}

// release lets go of the dictionaries; arrays made with them have their own hold.
func (l *loader) release() {
	for _, d := range l.loaded {
		d.Release()
	}
}

func (s *source) nextNode() (length, nulls int) {
	at := s.header.nodesAt + structBytes*s.node
	s.node++
	return int(binary.LittleEndian.Uint64(s.meta[at:])), int(binary.LittleEndian.Uint64(s.meta[at+8:]))
}

func (s *source) nextBuffer() *memory.Buffer {
	at := s.header.buffers + structBytes*s.buffer
	s.buffer++
	n := int(binary.LittleEndian.Uint64(s.meta[at+8:]))
	if n == 0 {
		return s.known.none
	}
	return memory.SliceBuffer(s.body, int(binary.LittleEndian.Uint64(s.meta[at:])), n)
}

// load makes the data of one array. How many nodes, buffers and variadic counts
// there are has been checked against the schema. After an error some data is
// never released, which the holder makes up for.
func (s *source) load(dt arrow.DataType, enc encoding) (arrow.ArrayData, error) {
	if ext, ok := dt.(arrow.ExtensionType); ok {
		storage, err := s.load(ext.StorageType(), enc)
		if err != nil {
			return nil, err
		}
		defer storage.Release()
		dict, _ := storage.Dictionary().(*array.Data)
		d := array.NewData(dt, storage.Len(), storage.Buffers(), storage.Children(), storage.NullN(), 0)
		d.SetDictionary(dict)
		return d, nil
	}
	var (
		length, nulls = s.nextNode()
		buffers       []*memory.Buffer
		children      []arrow.ArrayData
		values        *array.Data
		err           error
	)
	if length > maxLength {
		return nil, fmt.Errorf("%d values: want at most %d", length, maxLength)
	}
	defer func() {
		for _, b := range buffers {
			if b != nil {
				b.Release()
			}
		}
		for _, c := range children {
			if c != nil {
				c.Release()
			}
		}
	}()
	take := func(n int) {
		// With no nulls the bitmap need not be there, nor right if it is.
		buffers = make([]*memory.Buffer, 1, n)
		if first := s.nextBuffer(); nulls != 0 {
			buffers[0] = first
		} else {
			first.Release()
		}
		for range n - 1 {
			buffers = append(buffers, s.nextBuffer())
		}
	}
	nest := func(fields ...arrow.DataType) {
		children = make([]arrow.ArrayData, len(fields))
		for i, f := range fields {
			if err == nil {
				children[i], err = s.load(f, enc.kid(i))
			}
		}
	}
	switch t := dt.(type) {
	case *arrow.NullType:
		if nulls != length {
			return nil, fmt.Errorf("%d values of type null, %d of them null", length, nulls)
		}
		buffers = make([]*memory.Buffer, 1)
	case *arrow.DictionaryType:
		take(2)
		var dict arrow.ArrayData
		if dict, err = s.dictionary(enc.id); err == nil {
			values = dict.(*array.Data)
		}
	case *arrow.BinaryType, *arrow.StringType, *arrow.LargeBinaryType, *arrow.LargeStringType:
		take(3)
	case arrow.BinaryViewDataType:
		at := s.header.viewsAt + 8*s.view
		s.view++
		take(2 + int(binary.LittleEndian.Uint64(s.meta[at:])))
	case *arrow.ListViewType, *arrow.LargeListViewType:
		take(3)
		nest(t.(arrow.ListLikeType).Elem())
	case *arrow.ListType, *arrow.LargeListType, *arrow.MapType:
		take(2)
		nest(t.(arrow.ListLikeType).Elem())
	case *arrow.FixedSizeListType:
		take(1)
		nest(t.Elem())
	case *arrow.StructType:
		take(1)
		nest(fieldTypes(t.Fields())...)
	case *arrow.RunEndEncodedType:
		if nulls != 0 {
			return nil, fmt.Errorf("run-end encoded array with %d nulls of its own", nulls)
		}
		buffers = make([]*memory.Buffer, 1)
		nest(t.RunEnds(), t.Encoded())
	case arrow.UnionType:
		if nulls != 0 {
			return nil, fmt.Errorf("union with %d nulls of its own", nulls)
		}
		codes := s.nextBuffer()
		buffers = []*memory.Buffer{nil, codes}
		if t.Mode() == arrow.DenseMode {
			buffers = []*memory.Buffer{nil, codes, s.nextBuffer()}
		}
		nest(fieldTypes(t.Fields())...)
	case arrow.FixedWidthDataType:
		take(2)
	default:
		return nil, fmt.Errorf("%w: type %s", ErrUnsupported, t)
	}
	if err != nil {
		return nil, err
	}
	if values != nil {
		return array.NewDataWithDictionary(dt, length, buffers, nulls, 0, values), nil
	}
	return array.NewData(dt, length, buffers, children, nulls, 0), nil
}

func fieldTypes(fields []arrow.Field) []arrow.DataType {
	types := make([]arrow.DataType, len(fields))
	for i, f := range fields {
		types[i] = f.Type
	}
	return types
}
