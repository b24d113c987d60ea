package arrowio_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/endian"
	"github.com/apache/arrow-go/v18/arrow/extensions"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
)

// hostile is a frame that must be refused.
type hostile struct {
	name  string
	frame []byte
	// pyarrow says what pyarrow's full validation makes of it, if not refuse it too.
	pyarrow string
	// unsupported: the error must wrap ErrUnsupported.
	unsupported bool
	// trusted frames are refused without the check of values, too.
	trusted bool
}

const (
	accepts = "accepts"  // what the format forbids, or leaves open
	crashes = "crashes"  // ends the process
	untold  = "not told" // cannot be put to it
)

// raw makes an array that builders would not.
func raw(dt arrow.DataType, n, nulls int, buffers []*memory.Buffer, children ...arrow.ArrayData) arrow.ArrayData {
	return array.NewData(dt, n, buffers, children, nulls, 0)
}

func frameOf(tb testing.TB, f arrow.Field, d arrow.ArrayData) []byte {
	tb.Helper()
	col := array.MakeFromData(d)
	defer col.Release()
	rec := array.NewRecordBatch(arrow.NewSchema([]arrow.Field{f}, nil), []arrow.Array{col}, int64(col.Len()))
	defer rec.Release()
	return encode(tb, rec)
}

// column is a frame of one column that may be null.
func column(tb testing.TB, d arrow.ArrayData) []byte {
	tb.Helper()
	return frameOf(tb, arrow.Field{Name: "x", Type: d.DataType(), Nullable: true}, d)
}

func text(s ...string) arrow.ArrayData {
	offsets, values := []int32{0}, []byte(nil)
	for _, v := range s {
		values = append(values, v...)
		offsets = append(offsets, int32(len(values)))
	}
	return raw(arrow.BinaryTypes.String, len(s), 0, []*memory.Buffer{nil, little(offsets...), memory.NewBufferBytes(values)})
}

func ints(v ...int64) arrow.ArrayData {
	return raw(arrow.PrimitiveTypes.Int64, len(v), 0, []*memory.Buffer{nil, little(v...)})
}

// last is the record batch message of a frame, first a dictionary if there is one.
func last(frame []byte) arrowio.RawMessage {
	m := arrowio.Messages(frame)
	return m[len(m)-1]
}

func dictionaryMessage(frame []byte) arrowio.RawMessage { return arrowio.Messages(frame)[1] }

func put[T any](b []byte, i int, v T) {
	size := binary.Size(v)
	if _, err := binary.Encode(b[i*size:], binary.LittleEndian, v); err != nil {
		panic(err)
	}
}

func setNode(m arrowio.RawMessage, i int, length, nulls int64) {
	put(m.Meta[m.NodesAt:], 2*i, length)
	put(m.Meta[m.NodesAt:], 2*i+1, nulls)
}

func setBuffer(m arrowio.RawMessage, i int, off, n int64) {
	put(m.Meta[m.BuffersAt:], 2*i, off)
	put(m.Meta[m.BuffersAt:], 2*i+1, n)
}

const (
	rowsAt    = 72 // of a record batch as this package lays it out
	versionAt = 44
)

// hostiles are all conditions of values and metadata, one frame each.
func hostiles(tb testing.TB) []hostile {
	tb.Helper()
	var all []hostile
	// forge copies a frame, lets edit change it, and adds it.
	forge := func(name string, frame []byte, edit func(m arrowio.RawMessage)) *hostile {
		frame = slices.Clone(frame)
		edit(last(frame))
		all = append(all, hostile{name: name, frame: frame})
		return &all[len(all)-1]
	}
	whole := func(name string, frame []byte) *hostile {
		all = append(all, hostile{name: name, frame: frame})
		return &all[len(all)-1]
	}
	bits := func(b ...byte) *memory.Buffer { return memory.NewBufferBytes(b) }
	str, i32, i64 := arrow.BinaryTypes.String, arrow.PrimitiveTypes.Int32, arrow.PrimitiveTypes.Int64
	nullable := func(name string, dt arrow.DataType) arrow.Field {
		return arrow.Field{Name: name, Type: dt, Nullable: true}
	}

	numbers := column(tb, ints(1, 2, 3, 4, 5, 6, 7, 8, 9))
	forge("negative row count", numbers, func(m arrowio.RawMessage) { put(m.Meta[rowsAt:], 0, int64(-1)) }).trusted = true
	forge("2^31 rows", numbers, func(m arrowio.RawMessage) { put(m.Meta[rowsAt:], 0, int64(1<<31)) }).trusted = true
	forge("2^62 rows", numbers, func(m arrowio.RawMessage) {
		put(m.Meta[rowsAt:], 0, int64(1<<62))
		setNode(m, 0, 1<<62, 0)
	}).trusted = true
	forge("row count is not the column's", numbers, func(m arrowio.RawMessage) { put(m.Meta[rowsAt:], 0, int64(8)) }).trusted = true
	forge("more values than the buffer has", numbers, func(m arrowio.RawMessage) {
		put(m.Meta[rowsAt:], 0, int64(10))
		setNode(m, 0, 10, 0)
	}).trusted = true
	forge("2^61 values, whose bytes are 0 modulo 2^64", numbers, func(m arrowio.RawMessage) { setNode(m, 0, 1<<61, 0) }).trusted = true
	forge("negative length of an array", numbers, func(m arrowio.RawMessage) { setNode(m, 0, -1, 0) }).trusted = true
	forge("negative null count", numbers, func(m arrowio.RawMessage) { setNode(m, 0, 9, -1) }).trusted = true
	forge("more nulls than values", numbers, func(m arrowio.RawMessage) { setNode(m, 0, 9, 10) }).trusted = true
	forge("nulls without a bitmap", numbers, func(m arrowio.RawMessage) { setNode(m, 0, 9, 1) }).trusted = true
	forge("negative buffer length", numbers, func(m arrowio.RawMessage) { setBuffer(m, 1, 0, -8) }).trusted = true
	forge("negative buffer offset", numbers, func(m arrowio.RawMessage) { setBuffer(m, 1, -64, 72) }).trusted = true
	forge("buffer beyond the body", numbers, func(m arrowio.RawMessage) { setBuffer(m, 1, 128, 72) }).trusted = true
	forge("buffer whose end overflows", numbers, func(m arrowio.RawMessage) { setBuffer(m, 1, math.MaxInt64-7, 72) }).trusted = true
	forge("buffer that starts at byte 1", numbers, func(m arrowio.RawMessage) { setBuffer(m, 1, 1, 72) }).trusted = true
	forge("body beyond the frame", numbers, func(m arrowio.RawMessage) { put(m.Meta[m.BodyLengthAt:], 0, int64(1<<40)) }).trusted = true
	forge("negative body length", numbers, func(m arrowio.RawMessage) { put(m.Meta[m.BodyLengthAt:], 0, int64(-64)) }).trusted = true
	forge("body length not a multiple of 8", numbers, func(m arrowio.RawMessage) { put(m.Meta[m.BodyLengthAt:], 0, int64(127)) }).trusted = true
	forge("too few nodes", numbers, func(m arrowio.RawMessage) { put(m.Meta[m.NodesAt-4:], 0, uint32(0)) }).trusted = true
	forge("too few buffers", numbers, func(m arrowio.RawMessage) { put(m.Meta[m.BuffersAt-4:], 0, uint32(1)) }).trusted = true
	forge("2^32-1 buffers", numbers, func(m arrowio.RawMessage) { put(m.Meta[m.BuffersAt-4:], 0, uint32(math.MaxUint32)) }).trusted = true
	for _, v := range []struct {
		name    string
		version uint16
	}{{"metadata V1", 0}, {"metadata V4", 3}, {"metadata V9", 8}} {
		h := forge(v.name, numbers, func(m arrowio.RawMessage) { put(m.Meta[versionAt:], 0, v.version) })
		h.trusted, h.unsupported = true, true
	}
	prefix := func(name string, n uint32) {
		b := slices.Clone(numbers)
		binary.LittleEndian.PutUint32(b[4:], n)
		whole(name, b).trusted = true
	}
	prefix("metadata length 2^31", 1<<31)
	prefix("metadata length 2^32-8", math.MaxUint32-7)
	prefix("negative metadata length", math.MaxUint32)
	prefix("metadata length 8", 8)
	whole("nothing", nil).trusted = true
	whole("no message", bytes.Repeat([]byte{7}, 64)).trusted = true
	all[len(all)-1].pyarrow = untold
	messages := arrowio.Messages(numbers)
	eos := numbers[len(numbers)-8:]
	join := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	whole("end of the stream and no more", eos).trusted = true
	whole("schema alone", join(messages[0].Raw, eos)).trusted = true
	whole("batch without a schema", join(messages[1].Raw, eos)).trusted = true
	whole("schema twice", join(messages[0].Raw, messages[0].Raw, messages[1].Raw, eos)).trusted = true
	whole("two batches", join(messages[0].Raw, messages[1].Raw, messages[1].Raw, eos)).trusted = true
	whole("two frames", join(numbers, numbers)).trusted = true
	all[len(all)-1].pyarrow = accepts // reads the first
	whole("bytes after the end", join(numbers, make([]byte, 8))).trusted = true
	all[len(all)-1].pyarrow = accepts

	nulls := column(tb, raw(i64, 9, 2, []*memory.Buffer{bits(0b11101110, 1), little[int64](1, 2, 3, 4, 5, 6, 7, 8, 9)}))
	forge("false null count, too high", nulls, func(m arrowio.RawMessage) { setNode(m, 0, 9, 3) })
	forge("false null count, too low", nulls, func(m arrowio.RawMessage) { setNode(m, 0, 9, 1) })
	forge("bitmap too short", nulls, func(m arrowio.RawMessage) { setBuffer(m, 0, 0, 1) }).trusted = true
	forge("bitmap empty", nulls, func(m arrowio.RawMessage) { setBuffer(m, 0, 0, 0) }).trusted = true
	whole("nulls in a field that is not nullable", frameOf(tb, arrow.Field{Name: "x", Type: i64},
		raw(i64, 9, 2, []*memory.Buffer{bits(0b11101110, 1), little[int64](1, 2, 3, 4, 5, 6, 7, 8, 9)}))).pyarrow = accepts
	noNone := column(tb, raw(arrow.Null, 5, 5, []*memory.Buffer{nil}))
	forge("values of type null that are not null", noNone, func(m arrowio.RawMessage) { setNode(m, 0, 5, 3) }).trusted = true

	words := column(tb, text("alpha", "béta", "gamma"))
	forge("offsets not monotonic", words, func(m arrowio.RawMessage) { put(m.Buffer(1), 1, int32(11)) })
	forge("offset past the buffer", words, func(m arrowio.RawMessage) { put(m.Buffer(1), 3, int32(1<<30)) }).trusted = true
	forge("inner offset past the buffer", words, func(m arrowio.RawMessage) { put(m.Buffer(1), 2, int32(1<<30)) })
	forge("negative first offset", words, func(m arrowio.RawMessage) { put(m.Buffer(1), 0, int32(-4)) }).trusted = true
	forge("negative inner offset", words, func(m arrowio.RawMessage) { put(m.Buffer(1), 1, int32(math.MinInt32)) })
	forge("too few offsets", words, func(m arrowio.RawMessage) { setBuffer(m, 1, 0, 12) }).trusted = true
	forge("no offsets", words, func(m arrowio.RawMessage) { setBuffer(m, 1, 0, 0) }).trusted = true
	forge("invalid UTF-8", words, func(m arrowio.RawMessage) { m.Buffer(2)[2] = 0xff })
	forge("character cut in two", words, func(m arrowio.RawMessage) { put(m.Buffer(1), 1, int32(7)) })
	forge("no values but an offset beyond them", words, func(m arrowio.RawMessage) {
		put(m.Meta[rowsAt:], 0, int64(0))
		setNode(m, 0, 0, 0)
		put(m.Buffer(1), 0, int32(1<<30))
	}).trusted = true
	all[len(all)-1].pyarrow = accepts
	longWords := func(dt arrow.DataType) []byte {
		return column(tb, raw(dt, 2, 0, []*memory.Buffer{nil, little[int64](0, 2, 4), bits('a', 'b', 0xc3, 0xa9)}))
	}
	large := longWords(arrow.BinaryTypes.LargeString)
	forge("large: offsets not monotonic", large, func(m arrowio.RawMessage) { put(m.Buffer(1), 1, int64(5)) })
	forge("large: offset past the buffer", large, func(m arrowio.RawMessage) { put(m.Buffer(1), 2, int64(1<<40)) }).trusted = true
	forge("large: negative offset", large, func(m arrowio.RawMessage) { put(m.Buffer(1), 0, int64(-1)) }).trusted = true
	forge("large: invalid UTF-8", large, func(m arrowio.RawMessage) { m.Buffer(2)[3] = 'x' })
	forge("binary: offsets not monotonic", longWords(arrow.BinaryTypes.LargeBinary), func(m arrowio.RawMessage) { put(m.Buffer(1), 1, int64(5)) })

	var header [32]byte
	put(header[:], 0, uint32(2))
	copy(header[4:], "ab")
	put(header[16:], 0, uint32(14))
	copy(header[20:], "long")
	views := column(tb, raw(arrow.BinaryTypes.StringView, 2, 0, []*memory.Buffer{nil, bits(header[:]...), bits([]byte("long beyond 12")...)}))
	word := func(i int, v int32) func(arrowio.RawMessage) {
		return func(m arrowio.RawMessage) { put(m.Buffer(1)[16:], i, v) }
	}
	forge("view of a buffer that is not there", views, word(2, 1))
	forge("view of buffer -1", views, word(2, -1))
	forge("view beyond its buffer", views, word(3, 1))
	forge("view from -1 on", views, word(3, -1))
	forge("view from 2^31-1 on", views, word(3, math.MaxInt32))
	forge("view of -1 bytes", views, word(0, -1))
	forge("view of 2^31-1 bytes", views, word(0, math.MaxInt32))
	forge("view with another prefix", views, word(1, 0x41414141))
	forge("view padded with other than zero", views, func(m arrowio.RawMessage) { m.Buffer(1)[9] = 'x' })
	forge("view of invalid UTF-8", views, func(m arrowio.RawMessage) { m.Buffer(2)[9] = 0xff })
	forge("short view of invalid UTF-8", views, func(m arrowio.RawMessage) { m.Buffer(1)[5] = 0xff })
	forge("too few views", views, func(m arrowio.RawMessage) { setBuffer(m, 1, 0, 16) }).trusted = true
	forge("negative count of view buffers", views, func(m arrowio.RawMessage) { put(m.Meta[m.VariadicAt:], 0, int64(-1)) }).trusted = true
	forge("2^40 view buffers", views, func(m arrowio.RawMessage) { put(m.Meta[m.VariadicAt:], 0, int64(1<<40)) }).trusted = true
	forge("no counts of view buffers", views, func(m arrowio.RawMessage) { put(m.Meta[m.VariadicAt-4:], 0, uint32(0)) }).trusted = true

	dict := func(dt arrow.DataType, idx *memory.Buffer, values arrow.ArrayData) arrow.ArrayData {
		t := &arrow.DictionaryType{IndexType: dt, ValueType: values.DataType()}
		return array.NewDataWithDictionary(t, 3, []*memory.Buffer{nil, idx}, 0, 0, values.(*array.Data))
	}
	small := column(tb, dict(arrow.PrimitiveTypes.Int8, bits(0, 1, 0), text("one", "two")))
	forge("dictionary index out of range", small, func(m arrowio.RawMessage) { m.Buffer(1)[1] = 2 })
	forge("dictionary index negative", small, func(m arrowio.RawMessage) { m.Buffer(1)[1] = 0xff })
	wide := column(tb, dict(arrow.PrimitiveTypes.Uint64, little[uint64](0, 1, 0), text("one", "two")))
	forge("dictionary index 2^63", wide, func(m arrowio.RawMessage) { put(m.Buffer(1), 1, uint64(1<<63)) })
	forge("dictionary index 2^64-1", wide, func(m arrowio.RawMessage) { put(m.Buffer(1), 1, uint64(math.MaxUint64)) })
	forge("too few dictionary indices", wide, func(m arrowio.RawMessage) { setBuffer(m, 1, 0, 16) }).trusted = true
	parts := arrowio.Messages(small)
	inDict := func(name string, edit func(m arrowio.RawMessage)) *hostile {
		b := slices.Clone(small)
		edit(dictionaryMessage(b))
		return whole(name, b)
	}
	inDict("invalid UTF-8 in a dictionary", func(m arrowio.RawMessage) { m.Buffer(2)[0] = 0xff })
	inDict("offsets not monotonic in a dictionary", func(m arrowio.RawMessage) { put(m.Buffer(1), 1, int32(7)) })
	inDict("dictionary of another id", func(m arrowio.RawMessage) { put(m.Meta[64:], 0, int64(77)) }).trusted = true
	inDict("dictionary of fewer values than it says", func(m arrowio.RawMessage) { put(m.Meta[96:], 0, int64(3)) }).trusted = true
	all[len(all)-1].pyarrow = accepts
	whole("dictionary is missing", join(parts[0].Raw, parts[2].Raw, eos)).trusted = true
	whole("dictionary after the batch", join(parts[0].Raw, parts[2].Raw, parts[1].Raw, eos)).trusted = true
	h := whole("dictionary replaced", join(parts[0].Raw, parts[1].Raw, parts[1].Raw, parts[2].Raw, eos))
	h.trusted, h.unsupported, h.pyarrow = true, true, accepts
	h = whole("dictionary delta", deltaStream(tb))
	h.trusted, h.unsupported, h.pyarrow = true, true, accepts

	lists := column(tb, raw(arrow.ListOf(i64), 2, 0, []*memory.Buffer{nil, little[int32](0, 1, 3)}, ints(7, 8, 9)))
	forge("list: offsets not monotonic", lists, func(m arrowio.RawMessage) { put(m.Buffer(1), 1, int32(4)) })
	forge("list: offset past the values", lists, func(m arrowio.RawMessage) { put(m.Buffer(1), 2, int32(4)) }).trusted = true
	forge("list: negative offset", lists, func(m arrowio.RawMessage) { put(m.Buffer(1), 0, int32(-1)) }).trusted = true
	forge("list: fewer values than used", lists, func(m arrowio.RawMessage) { setNode(m, 1, 2, 0) }).trusted = true
	largeLists := column(tb, raw(arrow.LargeListOf(i64), 2, 0, []*memory.Buffer{nil, little[int64](0, 1, 3)}, ints(7, 8, 9)))
	forge("large list: offset past the values", largeLists, func(m arrowio.RawMessage) { put(m.Buffer(1), 2, int64(4)) }).trusted = true
	forge("large list: offsets not monotonic", largeLists, func(m arrowio.RawMessage) { put(m.Buffer(1), 1, int64(4)) })
	spans := column(tb, raw(arrow.ListViewOf(i64), 2, 0, []*memory.Buffer{nil, little[int32](2, 0), little[int32](1, 2)}, ints(7, 8, 9)))
	forge("list view: offset past the values", spans, func(m arrowio.RawMessage) { put(m.Buffer(1), 1, int32(4)) })
	forge("list view: negative offset", spans, func(m arrowio.RawMessage) { put(m.Buffer(1), 1, int32(-1)) })
	forge("list view: size past the values", spans, func(m arrowio.RawMessage) { put(m.Buffer(2), 0, int32(2)) })
	forge("list view: negative size", spans, func(m arrowio.RawMessage) { put(m.Buffer(2), 0, int32(-1)) })
	forge("list view: nothing, from past the values on", spans, func(m arrowio.RawMessage) {
		put(m.Buffer(1), 1, int32(4))
		put(m.Buffer(2), 1, int32(0))
	})
	forge("list view: too few sizes", spans, func(m arrowio.RawMessage) { setBuffer(m, 2, 64, 4) }).trusted = true
	largeSpans := column(tb, raw(arrow.LargeListViewOf(i64), 2, 0, []*memory.Buffer{nil, little[int64](2, 0), little[int64](1, 2)}, ints(7, 8, 9)))
	forge("large list view: offset and size overflow", largeSpans, func(m arrowio.RawMessage) {
		put(m.Buffer(1), 0, int64(math.MaxInt64))
		put(m.Buffer(2), 0, int64(math.MaxInt64))
	})
	pairs := column(tb, raw(arrow.FixedSizeListOf(2, i64), 2, 0, []*memory.Buffer{nil}, ints(1, 2, 3, 4)))
	forge("fixed-size list: fewer values than used", pairs, func(m arrowio.RawMessage) { setNode(m, 1, 3, 0) }).trusted = true

	entries := arrow.MapOfFields(arrow.Field{Type: i64}, nullable("", str))
	maps := column(tb, raw(entries, 2, 0, []*memory.Buffer{nil, little[int32](0, 1, 3)}, raw(entries.Elem(), 3, 0, []*memory.Buffer{nil}, ints(1, 2, 3), text("a", "b", "c"))))
	borrow := func(node, buffer int) func(m arrowio.RawMessage) {
		return func(m arrowio.RawMessage) { // a bitmap of which one bit is not set
			setNode(m, node, 3, 1)
			at := int64(bytes.Index(m.Body, []byte("abc")))
			m.Body[at] = 0b101
			setBuffer(m, buffer, at, 1)
		}
	}
	forge("map: null key", maps, borrow(2, 3)).trusted = true
	forge("map: null entry", maps, borrow(1, 2)).trusted = true
	pair := arrow.StructOf(nullable("a", i64), nullable("b", i64))
	structs := column(tb, raw(pair, 3, 0, []*memory.Buffer{nil}, ints(1, 2, 3), ints(4, 5, 6)))
	forge("struct: a field shorter than the others", structs, func(m arrowio.RawMessage) { setNode(m, 2, 2, 0) }).trusted = true
	forge("struct: a field longer than the others", structs, func(m arrowio.RawMessage) { setNode(m, 0, 2, 0); put(m.Meta[rowsAt:], 0, int64(2)) }).trusted = true
	all[len(all)-1].pyarrow = accepts
	strict := arrow.StructOf(arrow.Field{Name: "a", Type: i64})
	bad := raw(i64, 2, 1, []*memory.Buffer{bits(0b01), little[int64](1, 2)})
	whole("struct: null in a field that is not nullable", column(tb, raw(strict, 2, 0, []*memory.Buffer{nil}, bad))).pyarrow = accepts
	whole("list: null in values that are not nullable", column(tb, raw(arrow.ListOfNonNullable(i64), 1, 0, []*memory.Buffer{nil, little[int32](0, 2)}, bad))).pyarrow = accepts
	whole("list view: null in values that are not nullable", column(tb, raw(arrow.ListViewOfNonNullable(i64), 1, 0, []*memory.Buffer{nil, little[int32](0), little[int32](2)}, bad))).pyarrow = accepts
	whole("fixed-size list: null in values that are not nullable", column(tb, raw(arrow.FixedSizeListOfNonNullable(2, i64), 1, 0, []*memory.Buffer{nil}, bad))).pyarrow = accepts

	fields := []arrow.Field{nullable("x", i64), nullable("y", i64)}
	codes := []arrow.UnionTypeCode{7, 3}
	sparse := column(tb, raw(arrow.SparseUnionOf(fields, codes), 2, 0, []*memory.Buffer{nil, bits(7, 3)}, ints(1, 2), ints(3, 4)))
	forge("sparse union: type code out of range", sparse, func(m arrowio.RawMessage) { m.Buffer(0)[1] = 4 })
	forge("sparse union: negative type code", sparse, func(m arrowio.RawMessage) { m.Buffer(0)[1] = 0xff })
	forge("sparse union: a field shorter than the others", sparse, func(m arrowio.RawMessage) { setNode(m, 2, 1, 0) }).trusted = true
	forge("sparse union: nulls of its own", sparse, func(m arrowio.RawMessage) { setNode(m, 0, 2, 1) }).trusted = true
	all[len(all)-1].pyarrow = accepts
	dense := column(tb, raw(arrow.DenseUnionOf(fields, codes), 3, 0, []*memory.Buffer{nil, bits(7, 3, 7), little[int32](0, 0, 1)}, ints(1, 2), ints(3)))
	forge("dense union: type code out of range", dense, func(m arrowio.RawMessage) { m.Buffer(0)[1] = 4 })
	forge("dense union: offset out of range", dense, func(m arrowio.RawMessage) { put(m.Buffer(1), 2, int32(2)) })
	forge("dense union: negative offset", dense, func(m arrowio.RawMessage) { put(m.Buffer(1), 2, int32(-1)) })
	forge("dense union: offsets that go back", dense, func(m arrowio.RawMessage) {
		put(m.Buffer(1), 0, int32(1))
		put(m.Buffer(1), 2, int32(0))
	})
	forge("dense union: too few offsets", dense, func(m arrowio.RawMessage) { setBuffer(m, 1, 64, 8) }).trusted = true
	whole("dense union: null in a field that is not nullable", column(tb, raw(arrow.DenseUnionOf([]arrow.Field{{Name: "x", Type: i64}}, []arrow.UnionTypeCode{0}), 2, 0,
		[]*memory.Buffer{nil, bits(0, 0), little[int32](0, 1)}, bad))).pyarrow = accepts
	inSchema := func(name string, frame []byte, old, with []byte) *hostile {
		b := slices.Clone(frame)
		meta := arrowio.Messages(b)[0].Meta
		at := bytes.Index(meta, old)
		if at < 0 {
			tb.Fatalf("%s: %x is not in the schema", name, old)
		}
		copy(meta[at:], with)
		h := whole(name, b)
		h.trusted = true
		return h
	}
	inSchema("union: type codes twice", sparse, little[int32](7, 3).Bytes(), little[int32](7, 7).Bytes())
	inSchema("union: type code -1", sparse, little[int32](7, 3).Bytes(), little[int32](7, -1).Bytes())
	inSchema("union: type code 128", sparse, little[int32](7, 3).Bytes(), little[int32](7, 128).Bytes())

	for _, ends := range []arrow.DataType{arrow.PrimitiveTypes.Int16, i32, i64} {
		w := width(ends)
		run := column(tb, raw(arrow.RunEndEncodedOf(ends, i64), 7, 0, []*memory.Buffer{nil}, raw(ends, 3, 0, []*memory.Buffer{nil, integers([]int64{2, 5, 7}, w)}), ints(1, 2, 3)))
		end := func(name string, v ...int64) *hostile {
			h := forge(ends.String()+" run ends: "+name, run, func(m arrowio.RawMessage) { copy(m.Buffer(1), integers(v, w).Bytes()) })
			h.trusted = true
			return h
		}
		end("not increasing", 2, 2, 7)
		end("decreasing", 5, 2, 7)
		end("from 0 on", 0, 5, 7)
		end("negative", -5, 5, 7)
		end("not covering the length", 2, 5, 6)
		forge(ends.String()+" run ends: more than values", run, func(m arrowio.RawMessage) { setNode(m, 2, 2, 0) }).trusted = true
		forge(ends.String()+" run ends: none", run, func(m arrowio.RawMessage) { setNode(m, 1, 0, 0) }).trusted = true
		forge(ends.String()+" run ends: null", run, func(m arrowio.RawMessage) {
			setNode(m, 1, 3, 1)
			setBuffer(m, 0, 0, 8)
		}).trusted = true
		forge(ends.String()+" run ends: nulls of the array's own", run, func(m arrowio.RawMessage) { setNode(m, 0, 7, 1) }).trusted = true
	}

	for _, dt := range []arrow.DecimalType{&arrow.Decimal32Type{Precision: 3}, &arrow.Decimal64Type{Precision: 3}, &arrow.Decimal128Type{Precision: 3}, &arrow.Decimal256Type{Precision: 3}} {
		w := width(dt)
		number := func(v int64) *memory.Buffer {
			b := integers([]int64{v}, min(w, 8)).Bytes()
			for len(b) < w {
				b = append(b, byte(v>>63))
			}
			return memory.NewBufferBytes(b)
		}
		whole(dt.String()+" of 4 digits", column(tb, raw(dt, 1, 0, []*memory.Buffer{nil, number(1000)})))
		whole(dt.String()+" of 4 digits, negative", column(tb, raw(dt, 1, 0, []*memory.Buffer{nil, number(-1000)})))
	}
	h = whole("decimal type of 39 digits", column(tb, raw(&arrow.Decimal128Type{Precision: 39}, 1, 0, []*memory.Buffer{nil, bits(make([]byte, 16)...)})))
	h.trusted, h.unsupported = true, true
	h = whole("decimal type of 0 digits", column(tb, raw(&arrow.Decimal128Type{Precision: 0}, 1, 0, []*memory.Buffer{nil, bits(make([]byte, 16)...)})))
	h.trusted, h.unsupported = true, true
	h = whole("decimal scale 2^31-1", column(tb, raw(&arrow.Decimal128Type{Precision: 5, Scale: math.MaxInt32}, 1, 0, []*memory.Buffer{nil, bits(make([]byte, 16)...)})))
	h.trusted, h.unsupported, h.pyarrow = true, true, accepts
	whole("time of 24 h", column(tb, raw(arrow.FixedWidthTypes.Time32s, 1, 0, []*memory.Buffer{nil, little[int32](86400)})))
	whole("time of -1 ns", column(tb, raw(arrow.FixedWidthTypes.Time64ns, 1, 0, []*memory.Buffer{nil, little[int64](-1)})))
	whole("date of half a day", column(tb, raw(arrow.FixedWidthTypes.Date64, 1, 0, []*memory.Buffer{nil, little[int64](12 * 60 * 60 * 1000)})))
	h = whole("type of fixed size -1", stream(tb, arrow.NewSchema([]arrow.Field{{Name: "x", Type: &arrow.FixedSizeBinaryType{ByteWidth: -1}}}, nil)))
	h.trusted = true

	var fan bytes.Buffer // views that all show the whole of a buffer that is text but for its last byte
	for range 1000 {
		fan.Write(integers([]int64{1 << 20}, 4).Bytes())
		fan.WriteString("xxxx\x00\x00\x00\x00\x00\x00\x00\x00")
	}
	h = whole("1,000 views of one megabyte", column(tb, raw(arrow.BinaryTypes.StringView, 1000, 0, []*memory.Buffer{nil, bits(fan.Bytes()...), bits(append(bytes.Repeat([]byte("x"), 1<<20), 0xff)...)})))
	h.unsupported, h.pyarrow = true, accepts
	full := make([]int32, 10_000)
	for i := range full {
		full[i] = 10_000
	}
	h = whole("10,000 list views of 10,000 values that must not be null", column(tb, raw(arrow.ListViewOfNonNullable(i64), 10_000, 0,
		[]*memory.Buffer{nil, little(make([]int32, 10_000)...), little(full...)}, raw(i64, 10_001, 1, []*memory.Buffer{bits(append(bytes.Repeat([]byte{0xff}, 1250), 0)...), little(make([]int64, 10_001)...)}))))
	h.unsupported, h.pyarrow = true, accepts
	many := make([]arrow.Field, 70)
	children := make([]arrow.ArrayData, len(many))
	for i := range many {
		many[i], children[i] = nullable("x", i64), ints(1, 2, 3, 4, 5, 6, 7, 8)
	}
	h = forge("70 columns in one buffer", column(tb, raw(arrow.StructOf(many...), 8, 0, []*memory.Buffer{nil}, children...)), func(m arrowio.RawMessage) {
		for i := range many {
			setBuffer(m, 1+2*i, 0, 0)
			setBuffer(m, 2+2*i, 0, 64)
		}
		put(m.Meta[m.BodyLengthAt:], 0, int64(64))
	})
	h.frame = append(h.frame[:len(h.frame)-8-69*64], eos...)
	h.trusted, h.unsupported, h.pyarrow = true, true, accepts
	for _, dt := range []arrow.DataType{str, arrow.BinaryTypes.LargeString, arrow.BinaryTypes.StringView} {
		t, err := extensions.NewJSONType(dt)
		if err != nil {
			tb.Fatal(err)
		}
		b := array.NewBuilder(memory.DefaultAllocator, dt)
		if err := b.AppendValueFromString("{]"); err != nil {
			tb.Fatal(err)
		}
		storage := b.NewArray()
		whole(dt.String()+" that is not JSON", column(tb, array.NewExtensionArrayWithStorage(t, storage).Data())).pyarrow = accepts
	}
	typ := arrow.PrimitiveTypes.Int8
	for range 1000 {
		typ = arrow.StructOf(arrow.Field{Name: "d", Type: typ})
	}
	whole("1,000-deep nesting", stream(tb, arrow.NewSchema([]arrow.Field{{Name: "deep", Type: typ}}, nil))).trusted = true
	h = whole("big-endian", stream(tb, arrow.NewSchemaWithEndian([]arrow.Field{{Name: "x", Type: i64}}, nil, endian.BigEndian), ints(1, 2)))
	h.trusted, h.unsupported, h.pyarrow = true, true, accepts // swaps it
	h = whole("compressed", stream(tb, nil))
	h.trusted, h.unsupported, h.pyarrow = true, true, accepts
	return all
}

// stream is what the library writes of a batch of one column, or of none; with no
// schema a compressed one.
func stream(tb testing.TB, s *arrow.Schema, cols ...arrow.ArrayData) []byte {
	tb.Helper()
	opts := []ipc.Option{}
	if s == nil {
		s = arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int64}}, nil)
		cols = []arrow.ArrayData{ints(make([]int64, 1000)...)}
		opts = append(opts, ipc.WithZstd())
	}
	var out bytes.Buffer
	w := ipc.NewWriter(&out, append(opts, ipc.WithSchema(s))...)
	for _, c := range cols {
		rec := array.NewRecordBatch(s, []arrow.Array{array.MakeFromData(c)}, int64(c.Len()))
		if err := w.Write(rec); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// deltaStream is a batch whose dictionary comes in two parts.
func deltaStream(tb testing.TB) []byte {
	tb.Helper()
	dt := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}
	s := arrow.NewSchema([]arrow.Field{{Name: "x", Type: dt}}, nil)
	var out bytes.Buffer
	w := ipc.NewWriter(&out, ipc.WithSchema(s), ipc.WithDictionaryDeltas(true))
	for _, values := range [][]string{{"one", "two"}, {"one", "two", "three"}} {
		d := array.NewDataWithDictionary(dt, 1, []*memory.Buffer{nil, memory.NewBufferBytes([]byte{1})}, 0, 0, text(values...).(*array.Data))
		if err := w.Write(array.NewRecordBatch(s, []arrow.Array{array.MakeFromData(d)}, 1)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	m := arrowio.Messages(out.Bytes()) // schema, dictionary, batch, delta, batch
	return slices.Concat(m[0].Raw, m[1].Raw, m[3].Raw, m[4].Raw)
}

func onItsOwn(frame []byte) []byte {
	b := make([]uint64, (len(frame)+7)/8+1)
	raw, err := binary.Append(make([]byte, 0, 8*len(b)), binary.LittleEndian, b)
	if err != nil {
		panic(err)
	}
	copy(raw, frame)
	return raw[:len(frame):len(frame)]
}

func TestDecodeRefuses(t *testing.T) {
	for _, h := range hostiles(t) {
		t.Run(h.name, func(t *testing.T) {
			frame := onItsOwn(h.frame)
			released := 0
			got, err := arrowio.Decode(frame, func() { released++ })
			if !errors.Is(err, arrowio.ErrCorrupt) {
				t.Fatalf("got %v, error %v", got, err)
			}
			if released != 1 {
				t.Errorf("released %d times", released)
			}
			if errors.Is(err, arrowio.ErrUnsupported) != h.unsupported {
				t.Errorf("unsupported should be %v: %v", h.unsupported, err)
			}
			if strings.Contains(err.Error(), "malformed:") || strings.Contains(err.Error(), "runtime error") {
				t.Errorf("found by a panic: %v", err)
			}
			got, err = arrowio.Decode(frame, nil, arrowio.Trusted())
			if (err != nil) != h.trusted {
				t.Errorf("trusted: %v", err)
			}
			if err == nil {
				got.Release()
			}
		})
	}
}

// TestDecodeTruncatedAtEveryByte holds that no prefix of a frame is taken for
// one, but for that without the end-of-stream marker, which may be left out.
func TestDecodeTruncatedAtEveryByte(t *testing.T) {
	frames := map[string][]byte{
		"a bit of all": encode(t, wide(t, 5)),
		"no rows":      encode(t, wide(t, 0)),
		"dictionaries": column(t, array.NewDataWithDictionary(&arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}, 1, []*memory.Buffer{nil, little[int8](1)}, 0, 0, text("a", "b").(*array.Data))),
		"unions":       column(t, raw(arrow.DenseUnionOf([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int64}}, []arrow.UnionTypeCode{0}), 1, 0, []*memory.Buffer{nil, little[int8](0), little[int32](0)}, ints(1))),
		"no columns":   encode(t, array.NewRecordBatch(arrow.NewSchema(nil, nil), nil, 7)),
		"another's":    stream(t, arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int64}}, nil), ints(1, 2, 3)),
	}
	for name, frame := range frames {
		t.Run(name, func(t *testing.T) {
			frame := onItsOwn(frame)
			for n := range frame {
				released := 0
				rec, err := arrowio.Decode(frame[:n:n], func() { released++ })
				if n == len(frame)-8 {
					if err != nil {
						t.Fatalf("without the end of the stream: %v", err)
					}
					rec.Release()
					continue
				}
				if !errors.Is(err, arrowio.ErrCorrupt) || released != 1 {
					t.Fatalf("%d of %d bytes: released %d times, %v", n, len(frame), released, err)
				}
			}
		})
	}
}

// TestDecodeRefusesMisalignedMemory: numbers are read where they lie.
func TestDecodeRefusesMisalignedMemory(t *testing.T) {
	frame := column(t, ints(1, 2, 3))
	for _, shift := range []int{0, 1, 4, 8, 24, 63} {
		memory := onItsOwn(make([]byte, len(frame)+128))
		memory = memory[-int(address(memory))&63+shift:]
		copy(memory, frame)
		rec, err := arrowio.Decode(memory[:len(frame)], nil)
		if shift%8 != 0 {
			if !errors.Is(err, arrowio.ErrCorrupt) {
				t.Errorf("at %d modulo 64: %v", shift, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("at %d modulo 64: %v", shift, err)
		}
		rec.Release()
	}
}

// TestDecodeAccepts are forms that look odd and are allowed.
func TestDecodeAccepts(t *testing.T) {
	decode := func(frame []byte) arrow.RecordBatch {
		t.Helper()
		rec, err := arrowio.Decode(onItsOwn(frame), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(rec.Release)
		return rec
	}
	i64 := arrow.PrimitiveTypes.Int64
	two := raw(arrow.StructOf(arrow.Field{Name: "a", Type: i64}, arrow.Field{Name: "b", Type: i64}), 3, 0, []*memory.Buffer{nil}, ints(1, 2, 3), ints(4, 5, 6))
	t.Run("overlapping buffers", func(t *testing.T) {
		frame := column(t, two)
		setBuffer(last(frame), 4, 0, 24)
		if got := decode(frame).Column(0).String(); got != "{[1 2 3] [1 2 3]}" {
			t.Error(got)
		}
	})
	t.Run("buffers on 8-byte boundaries", func(t *testing.T) {
		frame := column(t, two)
		m := last(frame)
		copy(m.Body[24:], m.Body[64:64+24])
		setBuffer(m, 4, 24, 24)
		if got := decode(frame).Column(0).String(); got != "{[1 2 3] [4 5 6]}" {
			t.Error(got)
		}
	})
	t.Run("2^31-1 rows of nothing", func(t *testing.T) {
		for _, rec := range []arrow.RecordBatch{
			array.NewRecordBatch(arrow.NewSchema(nil, nil), nil, arrowio.MaxRows),
			array.NewRecordBatch(arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.Null, Nullable: true}}, nil), []arrow.Array{array.NewNull(arrowio.MaxRows)}, arrowio.MaxRows),
		} {
			if got := decode(encode(t, rec)); got.NumRows() != arrowio.MaxRows {
				t.Error(got.NumRows())
			}
		}
	})
	t.Run("anything under a null", func(t *testing.T) {
		dict := array.NewDataWithDictionary(&arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}, 2,
			[]*memory.Buffer{little[uint8](0b10), little[int8](-7, 0)}, 1, 0, text("a").(*array.Data))
		str := raw(arrow.BinaryTypes.String, 2, 1, []*memory.Buffer{little[uint8](0b10), little[int32](0, 2, 3), memory.NewBufferBytes([]byte{0xff, 0xfe, 'a'})})
		for _, d := range []arrow.ArrayData{dict, str} {
			if rec := decode(column(t, d)); rec.Column(0).ValueStr(1) != "a" {
				t.Error(rec)
			}
		}
	})
	t.Run("bitmap where nothing is null", func(t *testing.T) {
		frame := column(t, ints(1, 2, 3))
		setBuffer(last(frame), 0, 0, 8) // whatever it says
		if got := decode(frame).Column(0); got.NullN() != 0 || got.IsNull(0) {
			t.Error(got)
		}
	})
}

// TestDecodeRefusesInLittleMemory holds what a hostile frame can cost.
func TestDecodeRefusesInLittleMemory(t *testing.T) {
	for _, h := range hostiles(t) {
		t.Run(h.name, func(t *testing.T) {
			frame := onItsOwn(h.frame)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, err := arrowio.Decode(frame, nil); err == nil {
				t.Fatal("accepted")
			}
			runtime.ReadMemStats(&after)
			if n, limit := after.TotalAlloc-before.TotalAlloc, uint64(64<<10+8*len(frame)); n > limit {
				t.Errorf("%d bytes allocated for a frame of %d, limit %d", n, len(frame), limit)
			}
		})
	}
}
