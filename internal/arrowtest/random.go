// Package arrowtest makes random Arrow data of every type, and compares it by what
// another language would see of it. It is for tests.
package arrowtest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/extensions"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// Leaves are the types without children, one of each kind and unit.
func Leaves() []arrow.DataType {
	return []arrow.DataType{
		arrow.Null, arrow.FixedWidthTypes.Boolean,
		arrow.PrimitiveTypes.Int8, arrow.PrimitiveTypes.Int16, arrow.PrimitiveTypes.Int32, arrow.PrimitiveTypes.Int64,
		arrow.PrimitiveTypes.Uint8, arrow.PrimitiveTypes.Uint16, arrow.PrimitiveTypes.Uint32, arrow.PrimitiveTypes.Uint64,
		arrow.FixedWidthTypes.Float16, arrow.PrimitiveTypes.Float32, arrow.PrimitiveTypes.Float64,
		&arrow.Decimal32Type{Precision: 7, Scale: 2}, &arrow.Decimal64Type{Precision: 18, Scale: -3}, &arrow.Decimal128Type{Precision: 38, Scale: 10}, &arrow.Decimal256Type{Precision: 50, Scale: 0},
		arrow.BinaryTypes.Binary, arrow.BinaryTypes.String, arrow.BinaryTypes.LargeBinary, arrow.BinaryTypes.LargeString,
		arrow.BinaryTypes.BinaryView, arrow.BinaryTypes.StringView, &arrow.FixedSizeBinaryType{ByteWidth: 5}, &arrow.FixedSizeBinaryType{ByteWidth: 0},
		arrow.FixedWidthTypes.Date32, arrow.FixedWidthTypes.Date64,
		arrow.FixedWidthTypes.Time32s, arrow.FixedWidthTypes.Time32ms, arrow.FixedWidthTypes.Time64us, arrow.FixedWidthTypes.Time64ns,
		&arrow.TimestampType{Unit: arrow.Second}, &arrow.TimestampType{Unit: arrow.Millisecond, TimeZone: "Europe/Paris"},
		&arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "+01:30"}, &arrow.TimestampType{Unit: arrow.Nanosecond, TimeZone: "UTC"},
		arrow.FixedWidthTypes.Duration_s, arrow.FixedWidthTypes.Duration_ms, arrow.FixedWidthTypes.Duration_us, arrow.FixedWidthTypes.Duration_ns,
		arrow.FixedWidthTypes.MonthInterval, arrow.FixedWidthTypes.DayTimeInterval, arrow.FixedWidthTypes.MonthDayNanoInterval,
	}
}

// Nests are the types with children, each over elem.
func Nests(elem arrow.DataType) []arrow.DataType {
	f := func(name string) arrow.Field { return arrow.Field{Name: name, Type: elem, Nullable: true} }
	str := arrow.BinaryTypes.String
	types := []arrow.DataType{
		arrow.ListOf(elem), arrow.LargeListOf(elem), arrow.ListViewOf(elem), arrow.LargeListViewOf(elem), arrow.FixedSizeListOf(3, elem),
		arrow.MapOfFields(arrow.Field{Type: str}, arrow.Field{Type: elem, Nullable: true}), arrow.StructOf(f("a"), arrow.Field{Name: "b", Type: str}, f("a")), arrow.StructOf(),
		arrow.SparseUnionOf([]arrow.Field{f("x"), {Name: "y", Type: str, Nullable: true}}, []arrow.UnionTypeCode{7, 3}),
		arrow.DenseUnionOf([]arrow.Field{f("x"), {Name: "y", Type: str, Nullable: true}}, []arrow.UnionTypeCode{0, 127}),
	}
	for _, ends := range []arrow.DataType{arrow.PrimitiveTypes.Int16, arrow.PrimitiveTypes.Int32, arrow.PrimitiveTypes.Int64} {
		types = append(types, arrow.RunEndEncodedOf(ends, elem))
	}
	if ext, ok := elem.(arrow.ExtensionType); ok && ext.StorageType().ID() == arrow.DICTIONARY {
		types = types[:len(types)-3] // see TestEncodeRefuses of arrowio
	}
	if elem.ID() != arrow.EXTENSION && elem.ID() != arrow.DICTIONARY { // not to be had in the format
		for i, idx := range []arrow.DataType{
			arrow.PrimitiveTypes.Int8, arrow.PrimitiveTypes.Int16, arrow.PrimitiveTypes.Int32, arrow.PrimitiveTypes.Int64,
			arrow.PrimitiveTypes.Uint8, arrow.PrimitiveTypes.Uint16, arrow.PrimitiveTypes.Uint32, arrow.PrimitiveTypes.Uint64,
		} {
			types = append(types, &arrow.DictionaryType{IndexType: idx, ValueType: elem, Ordered: i%2 == 1})
		}
	}
	return types
}

// Canonical are extension types that the library knows once its package
// extensions is linked, as it is into this test.
func Canonical() []arrow.DataType {
	json, err := extensions.NewJSONType(arrow.BinaryTypes.String)
	if err != nil {
		panic(err)
	}
	return []arrow.DataType{
		extensions.NewUUIDType(), extensions.NewBool8Type(), json,
		extensions.NewOpaqueType(arrow.ListOf(arrow.PrimitiveTypes.Int16), "geometry", "somebody"),
		extensions.NewOpaqueType(&arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}, "enum", "somebody"),
	}
}

// Unknown are extension types that nobody registers with the library: fields of
// their storage whose metadata names them. A reader that knows one writes its
// metadata after that of the field.
func Unknown() []arrow.Field {
	field := func(dt arrow.DataType, name, params string) arrow.Field {
		return arrow.Field{Name: name, Type: dt, Nullable: true, Metadata: arrow.NewMetadata(
			[]string{"note", "ARROW:extension:metadata", "ARROW:extension:name"}, []string{"x", params, name})}
	}
	f32 := arrow.PrimitiveTypes.Float32
	return []arrow.Field{
		field(arrow.FixedSizeListOf(6, f32), "arrow.fixed_shape_tensor", `{"shape":[2,3]}`),
		field(arrow.StructOf(arrow.Field{Name: "data", Type: arrow.ListOf(f32), Nullable: true}, arrow.Field{Name: "shape", Type: arrow.FixedSizeListOf(2, arrow.PrimitiveTypes.Int32), Nullable: true}),
			"arrow.variable_shape_tensor", `{"dim_names":["H","W"]}`),
		field(arrow.BinaryTypes.Binary, "example.com/nobody-knows", "\x00\xff not text"),
		field(&arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}, "example.com/dict", ""),
	}
}

// Filler makes arrays of random values with what builders never make: anything
// under a null, offsets that do not start at 0, values that nothing refers to,
// list views out of order.
type Filler struct{ r *rand.Rand }

// NewFiller returns a filler that draws from r.
func NewFiller(r *rand.Rand) *Filler { return &Filler{r: r} }

// Batch fills a schema with rows. The caller releases it.
func (g *Filler) Batch(schema *arrow.Schema, rows int) arrow.RecordBatch {
	cols := make([]arrow.Array, schema.NumFields())
	for i, f := range schema.Fields() {
		cols[i] = g.array(f.Type, rows, f.Nullable)
		defer cols[i].Release()
	}
	return array.NewRecordBatch(schema, cols, int64(rows))
}

func (g *Filler) array(dt arrow.DataType, n int, nullable bool) arrow.Array {
	d := g.data(dt, n, nullable)
	defer d.Release()
	return array.MakeFromData(d)
}

func (g *Filler) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.r.Uint32())
	}
	return b
}

// validity is a bitmap, or none, and the number of nulls. What is after the last
// bit is anything.
func (g *Filler) validity(n int, nullable bool) (*memory.Buffer, int) {
	if !nullable || n == 0 || g.r.IntN(3) == 0 {
		return nil, 0
	}
	bits := g.bytes((n + 7) / 8)
	switch g.r.IntN(6) {
	case 0:
		clear(bits)
	case 1:
		for i := range bits {
			bits[i] = 0xff
		}
	}
	nulls := 0
	for i := range n {
		if bits[i/8]>>(i%8)&1 == 0 {
			nulls++
		}
	}
	return memory.NewBufferBytes(bits), nulls
}

func (g *Filler) text() string {
	return strings.Repeat("a", g.r.IntN(3)) + []string{"", "é", "長い文字列と長い文字列", "😀", "0123456789abcdef"}[g.r.IntN(5)]
}

// Little is a buffer of little-endian values.
func Little[T any](values ...T) *memory.Buffer {
	b, err := binary.Append(nil, binary.LittleEndian, values)
	if err != nil {
		panic(err)
	}
	return memory.NewBufferBytes(b)
}

// offsets are of n parts over limit values.
func (g *Filler) offsets(n, limit, width int) *memory.Buffer {
	at := make([]int64, n+1)
	for i := range at {
		at[i] = int64(g.r.IntN(limit + 1))
	}
	slices.Sort(at)
	return Integers(at, width)
}

// Integers is a buffer of little-endian integers of width bytes.
func Integers(values []int64, width int) *memory.Buffer {
	b := make([]byte, 0, width*len(values))
	for _, v := range values {
		b = append(b, binary.LittleEndian.AppendUint64(nil, uint64(v))[:width]...)
	}
	return memory.NewBufferBytes(b)
}

// Width is the bytes of a value of a type of fixed width.
func Width(dt arrow.DataType) int { return dt.(arrow.FixedWidthDataType).BitWidth() / 8 }

func (g *Filler) data(dt arrow.DataType, n int, nullable bool) arrow.ArrayData {
	switch t := dt.(type) {
	case *arrow.NullType:
		return array.NewData(dt, n, []*memory.Buffer{nil}, nil, n, 0)
	case arrow.ExtensionType:
		d := g.data(t.StorageType(), n, nullable)
		dict, _ := d.Dictionary().(*array.Data)
		if t.ExtensionName() == "arrow.json" {
			d = g.strings(n, 4, func() string { return fmt.Sprintf(`{"k": [%d, "é"]}`, g.r.IntN(100)) })
		}
		out := array.NewData(dt, n, d.Buffers(), d.Children(), d.NullN(), 0)
		out.SetDictionary(dict)
		return out
	case *arrow.RunEndEncodedType:
		var ends []int64
		for at := int64(0); at < int64(n); {
			at += 1 + g.r.Int64N(5)
			ends = append(ends, at)
		}
		e := array.NewData(t.RunEnds(), len(ends), []*memory.Buffer{nil, Integers(ends, Width(t.RunEnds()))}, nil, 0, 0)
		return array.NewData(dt, n, []*memory.Buffer{nil}, []arrow.ArrayData{e, g.data(t.Encoded(), len(ends), t.ValueNullable)}, 0, 0)
	case arrow.UnionType:
		return g.union(t, n)
	}
	bitmap, nulls := g.validity(n, nullable)
	spare := g.r.IntN(3)
	switch t := dt.(type) {
	case *arrow.DictionaryType:
		size := 1 + g.r.IntN(9)
		dict := g.data(t.ValueType, size, true)
		idx := make([]int64, n)
		for i := range idx {
			idx[i] = g.r.Int64N(int64(size))
			if nulls > 0 && bitmap.Bytes()[i/8]>>(i%8)&1 == 0 {
				idx[i] = g.r.Int64()
			}
		}
		return array.NewDataWithDictionary(dt, n, []*memory.Buffer{bitmap, Integers(idx, Width(t.IndexType))}, nulls, 0, dict.(*array.Data))
	case *arrow.BinaryType, *arrow.LargeBinaryType:
		w := t.(arrow.OffsetsDataType).OffsetTypeTraits().BytesRequired(1)
		values := g.bytes(g.r.IntN(5 * (n + 1)))
		return array.NewData(dt, n, []*memory.Buffer{bitmap, g.offsets(n, len(values), w), memory.NewBufferBytes(values)}, nil, nulls, 0)
	case *arrow.StringType, *arrow.LargeStringType:
		d := g.strings(n, t.(arrow.OffsetsDataType).OffsetTypeTraits().BytesRequired(1), g.text)
		return array.NewData(dt, n, []*memory.Buffer{bitmap, d.Buffers()[1], d.Buffers()[2]}, nil, nulls, 0)
	case arrow.BinaryViewDataType:
		return g.views(t, n, bitmap, nulls)
	case *arrow.MapType:
		size := g.r.IntN(2*n + 1)
		entries := array.NewData(t.Elem(), size, []*memory.Buffer{nil}, []arrow.ArrayData{g.data(t.KeyType(), size, false), g.data(t.ItemType(), size, t.ItemField().Nullable)}, 0, 0)
		return array.NewData(dt, n, []*memory.Buffer{bitmap, g.offsets(n, size, 4)}, []arrow.ArrayData{entries}, nulls, 0)
	case *arrow.FixedSizeListType:
		child := g.data(t.Elem(), n*int(t.Len())+spare, t.ElemField().Nullable)
		return array.NewData(dt, n, []*memory.Buffer{bitmap}, []arrow.ArrayData{child}, nulls, 0)
	case *arrow.ListViewType, *arrow.LargeListViewType:
		return g.listView(t.(arrow.ListLikeType), n, bitmap, nulls)
	case arrow.ListLikeType:
		size := g.r.IntN(2*n + 1)
		w := dt.(arrow.OffsetsDataType).OffsetTypeTraits().BytesRequired(1)
		return array.NewData(dt, n, []*memory.Buffer{bitmap, g.offsets(n, size, w)}, []arrow.ArrayData{g.data(t.Elem(), size, t.ElemField().Nullable)}, nulls, 0)
	case *arrow.StructType:
		children := make([]arrow.ArrayData, t.NumFields())
		for i, f := range t.Fields() {
			children[i] = g.data(f.Type, n, f.Nullable)
		}
		return array.NewData(dt, n, []*memory.Buffer{bitmap}, children, nulls, 0)
	case *arrow.BooleanType:
		return array.NewData(dt, n, []*memory.Buffer{bitmap, memory.NewBufferBytes(g.bytes((n+7)/8 + spare))}, nil, nulls, 0)
	}
	return array.NewData(dt, n, []*memory.Buffer{bitmap, g.fixed(dt, n+spare)}, nil, nulls, 0)
}

func (g *Filler) strings(n, width int, text func() string) arrow.ArrayData {
	at, values := make([]int64, 1, n+1), []byte(nil)
	if n > 0 && g.r.IntN(2) == 0 {
		values = append(values, "nobody reads this"...)
		at[0] = int64(len(values))
	}
	for range n {
		values = append(values, text()...)
		at = append(at, int64(len(values)))
	}
	return array.NewData(arrow.BinaryTypes.String, n, []*memory.Buffer{nil, Integers(at, width), memory.NewBufferBytes(values)}, nil, 0, 0)
}

func (g *Filler) views(dt arrow.DataType, n int, bitmap *memory.Buffer, nulls int) arrow.ArrayData {
	buffers := []*memory.Buffer{bitmap, nil}
	data := make([][]byte, g.r.IntN(3))
	var headers []byte
	for range n {
		s := g.text()
		var h [16]byte
		binary.LittleEndian.PutUint32(h[:], uint32(len(s)))
		switch {
		case len(s) <= 12:
			copy(h[4:], s)
		case len(data) == 0:
			h = [16]byte{}
		default:
			which := g.r.IntN(len(data))
			copy(h[4:8], s)
			binary.LittleEndian.PutUint32(h[8:], uint32(which))
			binary.LittleEndian.PutUint32(h[12:], uint32(len(data[which])))
			data[which] = append(data[which], s...)
		}
		headers = append(headers, h[:]...)
	}
	buffers[1] = memory.NewBufferBytes(headers)
	for _, d := range data {
		buffers = append(buffers, memory.NewBufferBytes(d))
	}
	return array.NewData(dt, n, buffers, nil, nulls, 0)
}

func (g *Filler) listView(t arrow.ListLikeType, n int, bitmap *memory.Buffer, nulls int) arrow.ArrayData {
	w := 4
	if t.ID() == arrow.LARGE_LIST_VIEW {
		w = 8
	}
	size := g.r.IntN(2*n + 1)
	offsets, sizes := make([]int64, n), make([]int64, n)
	for i := range n {
		offsets[i] = g.r.Int64N(int64(size) + 1)
		sizes[i] = g.r.Int64N(min(4, int64(size)-offsets[i]) + 1)
	}
	return array.NewData(t, n, []*memory.Buffer{bitmap, Integers(offsets, w), Integers(sizes, w)}, []arrow.ArrayData{g.data(t.Elem(), size, t.ElemField().Nullable)}, nulls, 0)
}

func (g *Filler) union(t arrow.UnionType, n int) arrow.ArrayData {
	fields, types := t.Fields(), t.TypeCodes()
	codes, offsets, next := make([]int8, n), make([]int32, n), make([]int32, len(fields))
	for i := range n {
		which := g.r.IntN(len(fields))
		codes[i], offsets[i] = types[which], next[which]
		next[which] += int32(g.r.IntN(3)) // a value twice, or skipped
	}
	buffers := []*memory.Buffer{nil, Little(codes...)}
	children := make([]arrow.ArrayData, len(fields))
	for i, f := range fields {
		size := n
		if t.Mode() == arrow.DenseMode {
			size = int(next[i]) + 1
		}
		children[i] = g.data(f.Type, size, f.Nullable)
	}
	if t.Mode() == arrow.DenseMode {
		buffers = append(buffers, Little(offsets...))
	}
	return array.NewData(t, n, buffers, children, 0, 0)
}

// fixed are n values of a type of fixed width that it allows.
func (g *Filler) fixed(dt arrow.DataType, n int) *memory.Buffer {
	below := func(limit int64) *memory.Buffer {
		values := make([]int64, n)
		for i := range values {
			values[i] = g.r.Int64N(limit)
		}
		return Integers(values, Width(dt))
	}
	switch t := dt.(type) {
	case *arrow.Time32Type:
		return below(24 * 60 * 60 * 1e9 / int64(t.Unit.Multiplier()))
	case *arrow.Time64Type:
		return below(24 * 60 * 60 * 1e9 / int64(t.Unit.Multiplier()))
	case *arrow.Date64Type:
		values := make([]int64, n)
		for i := range values {
			values[i] = (g.r.Int64N(1e6) - 5e5) * 24 * 60 * 60 * 1000
		}
		return Integers(values, 8)
	case arrow.DecimalType:
		var b []byte
		for range n {
			// As many bytes as fit the digits, sign extended.
			v := g.bytes(int(float64(t.GetPrecision()) * 0.415))
			fill := byte(int8(v[len(v)-1]) >> 7)
			for len(v) < Width(dt) {
				v = append(v, fill)
			}
			b = append(b, v...)
		}
		return memory.NewBufferBytes(b)
	}
	return memory.NewBufferBytes(g.bytes(n * Width(dt)))
}
