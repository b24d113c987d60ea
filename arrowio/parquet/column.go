package parquet

import (
	"errors"
	"fmt"
	"io"
	"math"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/apache/arrow-go/v18/arrow/memory"
	pq "github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/encoding"
)

// readColumn reads a column chunk as one array of the field's type. Memory grows
// with the pages that are really there, not with what the footer promises.
func readColumn(chunk pq.ColumnChunk, f arrow.Field, rows int64) (arrow.Array, error) {
	sink, err := sinkFor(f.Type)
	if err != nil {
		return nil, err
	}
	v := validity{}
	pages := chunk.Pages()
	defer func() { _ = pages.Close() }() // it only gives buffers back
	for {
		page, err := pages.ReadPage()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		err = readPage(page, sink, &v, rows)
		pq.Release(page)
		if err != nil {
			return nil, err
		}
	}
	if int64(v.rows) != rows {
		return nil, fmt.Errorf("%d values, the row group has %d rows", v.rows, rows)
	}
	if v.nulls > 0 && !f.Nullable {
		return nil, fmt.Errorf("%d nulls in a column that is not nullable", v.nulls)
	}
	return sink.array(f.Type, &v)
}

func readPage(page pq.Page, sink sink, v *validity, rows int64) error {
	levels, n := page.DefinitionLevels(), int(page.NumValues())
	if len(levels) != 0 && len(levels) != n {
		return fmt.Errorf("page of %d values has %d levels", n, len(levels))
	}
	if int64(v.rows)+int64(n) > rows {
		return fmt.Errorf("more values than the %d rows of the row group", rows)
	}
	present := n
	if len(levels) != 0 {
		present = v.levels(levels)
	} else {
		v.all(n)
	}
	data := page.Data()
	if dict := page.Dictionary(); dict != nil {
		index := data.Int32()
		if len(index) < present {
			return fmt.Errorf("page has %d values, %d are stated", len(index), present)
		}
		return sink.indexed(dict, index[:present], levels, n)
	}
	return sink.plain(data, present, levels, n)
}

// validity is the validity bitmap being built; it has no bits while there is no
// null.
type validity struct {
	rows, nulls int
	bits        []byte
}

func (v *validity) all(n int) {
	if v.bits != nil {
		v.grow(n)
		bitutil.SetBitsTo(v.bits, int64(v.rows), int64(n), true)
	}
	v.rows += n
}

func (v *validity) levels(levels []byte) (present int) {
	for _, l := range levels {
		present += int(l & 1)
	}
	if present == len(levels) {
		v.all(present)
		return present
	}
	if v.bits == nil {
		v.bits = make([]byte, bitutil.CeilByte(v.rows)/8)
		bitutil.SetBitsTo(v.bits, 0, int64(v.rows), true)
	}
	v.grow(len(levels))
	for i, l := range levels {
		bitutil.SetBitTo(v.bits, v.rows+i, l == 1)
	}
	v.rows += len(levels)
	v.nulls += len(levels) - present
	return present
}

func (v *validity) grow(n int) {
	if need := bitutil.CeilByte(v.rows+n) / 8; need > len(v.bits) {
		v.bits = append(v.bits, make([]byte, need-len(v.bits))...)
	}
}

func (v *validity) buffer() *memory.Buffer {
	if v.bits == nil {
		return nil
	}
	return memory.NewBufferBytes(v.bits)
}

// sink collects a column's values. levels is empty or has n entries, 1 where a
// value is present; index and data hold the present values only.
type sink interface {
	plain(data encoding.Values, present int, levels []byte, n int) error
	indexed(dict pq.Dictionary, index []int32, levels []byte, n int) error
	array(dt arrow.DataType, v *validity) (arrow.Array, error)
}

func sinkFor(dt arrow.DataType) (sink, error) {
	i32, i64 := (*encoding.Values).Int32, (*encoding.Values).Int64
	switch dt.ID() {
	case arrow.BOOL:
		return &bools{}, nil
	case arrow.INT8:
		return &fixed[int32]{of: i32, to: narrow[int32, int8]}, nil
	case arrow.INT16:
		return &fixed[int32]{of: i32, to: narrow[int32, int16]}, nil
	case arrow.UINT8:
		return &fixed[int32]{of: i32, to: narrow[int32, uint8]}, nil
	case arrow.UINT16:
		return &fixed[int32]{of: i32, to: narrow[int32, uint16]}, nil
	case arrow.INT32, arrow.UINT32, arrow.DATE32:
		return &fixed[int32]{of: i32, to: same[int32]}, nil
	case arrow.INT64, arrow.UINT64, arrow.TIMESTAMP:
		return &fixed[int64]{of: i64, to: same[int64]}, nil
	case arrow.FLOAT32:
		return &fixed[float32]{of: (*encoding.Values).Float, to: same[float32]}, nil
	case arrow.FLOAT64:
		return &fixed[float64]{of: (*encoding.Values).Double, to: same[float64]}, nil
	case arrow.STRING, arrow.LARGE_STRING, arrow.BINARY, arrow.LARGE_BINARY:
		return &text{}, nil
	case arrow.DICTIONARY:
		return newCodes(), nil
	default:
		return nil, fmt.Errorf("%w %s", ErrUnsupported, dt)
	}
}

type number interface {
	~int8 | ~int16 | ~int32 | ~int64 | ~uint8 | ~uint16 | ~float32 | ~float64
}

// fixed collects values of a fixed width.
type fixed[T number] struct {
	values []T
	of     func(*encoding.Values) []T
	to     func([]T) ([]byte, error)
}

func (s *fixed[T]) plain(data encoding.Values, present int, levels []byte, n int) error {
	in := s.of(&data)
	if len(in) < present {
		return fmt.Errorf("page has %d values, %d are stated", len(in), present)
	}
	if len(levels) == 0 {
		s.values = append(s.values, in[:present]...)
		return nil
	}
	out := s.extend(n)
	next := 0
	for i, l := range levels {
		if l == 1 {
			out[i] = in[next]
			next++
		}
	}
	return nil
}

func (s *fixed[T]) indexed(dict pq.Dictionary, index []int32, levels []byte, n int) error {
	data := dict.Page().Data()
	values := s.of(&data)
	out := s.extend(n)
	return spread(index, levels, n, len(values), func(row int, i int32) { out[row] = values[i] })
}

func (s *fixed[T]) extend(n int) []T {
	at := len(s.values)
	s.values = append(s.values, make([]T, n)...)
	return s.values[at:]
}

func (s *fixed[T]) array(dt arrow.DataType, v *validity) (arrow.Array, error) {
	raw, err := s.to(s.values)
	if err != nil {
		return nil, err
	}
	return build(dt, v, memory.NewBufferBytes(raw)), nil
}

// spread calls put for each present value with its row and a checked index.
func spread(index []int32, levels []byte, n, size int, put func(row int, i int32)) error {
	next := 0
	for row := range n {
		if len(levels) != 0 && levels[row] != 1 {
			continue
		}
		i := index[next]
		next++
		if i < 0 || int(i) >= size {
			return fmt.Errorf("index %d in a dictionary of %d", i, size)
		}
		put(row, i)
	}
	return nil
}

func same[T number](in []T) ([]byte, error) { return raw(in), nil }

func narrow[F, T number](in []F) ([]byte, error) {
	out := make([]T, len(in))
	for i, x := range in {
		out[i] = T(x)
		if F(out[i]) != x {
			return nil, fmt.Errorf("value %v does not fit %T", x, out[i])
		}
	}
	return raw(out), nil
}

func raw[T number](in []T) []byte {
	var one T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(in))), len(in)*int(unsafe.Sizeof(one)))
}

func build(dt arrow.DataType, v *validity, buffers ...*memory.Buffer) arrow.Array {
	data := array.NewData(dt, v.rows, append([]*memory.Buffer{v.buffer()}, buffers...), nil, v.nulls, 0)
	defer data.Release()
	return array.MakeFromData(data)
}

type bools struct {
	bits []byte
	rows int
}

func (s *bools) plain(data encoding.Values, present int, levels []byte, n int) error {
	in := data.Boolean()
	if len(in)*8 < present {
		return fmt.Errorf("page has %d bits, %d are stated", len(in)*8, present)
	}
	if need := bitutil.CeilByte(s.rows+n) / 8; need > len(s.bits) {
		s.bits = append(s.bits, make([]byte, need-len(s.bits))...)
	}
	next := 0
	for row := range n {
		if len(levels) != 0 && levels[row] != 1 {
			continue
		}
		bitutil.SetBitTo(s.bits, s.rows+row, bitutil.BitIsSet(in, next))
		next++
	}
	s.rows += n
	return nil
}

func (s *bools) indexed(pq.Dictionary, []int32, []byte, int) error {
	return errors.New("dictionary of booleans")
}

func (s *bools) array(dt arrow.DataType, v *validity) (arrow.Array, error) {
	return build(dt, v, memory.NewBufferBytes(s.bits)), nil
}

// text collects strings and binary.
type text struct {
	data []byte
	ends []int64
}

func (s *text) plain(data encoding.Values, present int, levels []byte, n int) error {
	bytes, offsets := data.ByteArray()
	if len(offsets) < present+1 && present > 0 {
		return fmt.Errorf("page has %d values, %d are stated", len(offsets)-1, present)
	}
	next := 0
	for row := range n {
		if len(levels) == 0 || levels[row] == 1 {
			s.data = append(s.data, bytes[offsets[next]:offsets[next+1]]...)
			next++
		}
		s.ends = append(s.ends, int64(len(s.data)))
	}
	return nil
}

func (s *text) indexed(dict pq.Dictionary, index []int32, levels []byte, n int) error {
	data := dict.Page().Data()
	bytes, offsets := data.ByteArray()
	size := max(len(offsets)-1, 0)
	next := 0
	for row := range n {
		if len(levels) == 0 || levels[row] == 1 {
			i := index[next]
			next++
			if i < 0 || int(i) >= size {
				return fmt.Errorf("index %d in a dictionary of %d", i, size)
			}
			s.data = append(s.data, bytes[offsets[i]:offsets[i+1]]...)
		}
		s.ends = append(s.ends, int64(len(s.data)))
	}
	return nil
}

func (s *text) array(dt arrow.DataType, v *validity) (arrow.Array, error) {
	var offsets []byte
	if id := dt.ID(); id == arrow.LARGE_STRING || id == arrow.LARGE_BINARY {
		offsets = raw(append(make([]int64, 1, len(s.ends)+1), s.ends...))
	} else {
		if len(s.data) > math.MaxInt32 {
			return nil, fmt.Errorf("%d bytes of %s in one row group: the type holds 2 GiB; write smaller row groups", len(s.data), dt)
		}
		short := make([]int32, len(s.ends)+1)
		for i, e := range s.ends {
			short[i+1] = int32(e)
		}
		offsets = raw(short)
	}
	a := build(dt, v, memory.NewBufferBytes(offsets), memory.NewBufferBytes(s.data))
	if err := array.ValidateFull(a); err != nil { // UTF-8
		a.Release()
		return nil, err
	}
	return a, nil
}

// codes collects a dictionary-encoded string column: each distinct string once,
// in order of appearance.
type codes struct {
	index  []int32
	values text
	known  map[string]int32
	pages  pq.Dictionary
	mapped []int32 // code of each entry of pages, -1 if not seen yet
}

func newCodes() *codes { return &codes{known: map[string]int32{}} }

func (s *codes) code(v []byte) int32 {
	if c, ok := s.known[string(v)]; ok {
		return c
	}
	c := int32(len(s.values.ends))
	s.known[string(v)] = c
	s.values.data = append(s.values.data, v...)
	s.values.ends = append(s.values.ends, int64(len(s.values.data)))
	return c
}

func (s *codes) plain(data encoding.Values, present int, levels []byte, n int) error {
	bytes, offsets := data.ByteArray()
	if len(offsets) < present+1 && present > 0 {
		return fmt.Errorf("page has %d values, %d are stated", len(offsets)-1, present)
	}
	next := 0
	for row := range n {
		c := int32(0)
		if len(levels) == 0 || levels[row] == 1 {
			c = s.code(bytes[offsets[next]:offsets[next+1]])
			next++
		}
		s.index = append(s.index, c)
	}
	return nil
}

func (s *codes) indexed(dict pq.Dictionary, index []int32, levels []byte, n int) error {
	data := dict.Page().Data()
	bytes, offsets := data.ByteArray()
	if s.pages != dict {
		s.pages, s.mapped = dict, make([]int32, max(len(offsets)-1, 0))
		for i := range s.mapped {
			s.mapped[i] = -1
		}
	}
	at := len(s.index)
	s.index = append(s.index, make([]int32, n)...)
	out := s.index[at:]
	return spread(index, levels, n, len(s.mapped), func(row int, i int32) {
		if s.mapped[i] < 0 {
			s.mapped[i] = s.code(bytes[offsets[i]:offsets[i+1]])
		}
		out[row] = s.mapped[i]
	})
}

func (s *codes) array(dt arrow.DataType, v *validity) (arrow.Array, error) {
	t := dt.(*arrow.DictionaryType)
	values, err := s.values.array(t.ValueType, &validity{rows: len(s.values.ends)})
	if err != nil {
		return nil, err
	}
	defer values.Release()
	var index []byte
	switch t.IndexType.ID() {
	case arrow.INT8:
		index, err = narrow[int32, int8](s.index)
	case arrow.INT16:
		index, err = narrow[int32, int16](s.index)
	case arrow.INT32, arrow.UINT32:
		index, err = same(s.index)
	case arrow.UINT8:
		index, err = narrow[int32, uint8](s.index)
	case arrow.UINT16:
		index, err = narrow[int32, uint16](s.index)
	case arrow.INT64, arrow.UINT64:
		index, err = narrow[int32, int64](s.index)
	default:
		err = fmt.Errorf("%w: index %s", ErrUnsupported, t.IndexType)
	}
	if err != nil {
		return nil, err
	}
	data := array.NewDataWithDictionary(dt, v.rows, []*memory.Buffer{v.buffer(), memory.NewBufferBytes(index)}, v.nulls, 0, values.Data().(*array.Data))
	defer data.Release()
	return array.MakeFromData(data), nil
}
