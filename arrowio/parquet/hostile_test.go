package parquet_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/parquet"
	"github.com/stokehold/stokehold/internal/arrowtest"
)

// nested is a batch of a few rows with lists, structs, maps and dictionaries.
func nested(tb testing.TB, rows int) arrow.RecordBatch {
	tb.Helper()
	str, i16 := arrow.BinaryTypes.String, arrow.PrimitiveTypes.Int16
	opt := func(name string, dt arrow.DataType) arrow.Field {
		return arrow.Field{Name: name, Type: dt, Nullable: true}
	}
	schema := arrow.NewSchema([]arrow.Field{
		opt("l", arrow.ListOf(arrow.ListOf(str))), opt("s", arrow.StructOf(opt("a", i16), opt("b", arrow.ListOf(arrow.StructOf(opt("c", str), opt("d", arrow.FixedWidthTypes.Boolean)))))),
		opt("m", arrow.MapOf(str, arrow.PrimitiveTypes.Float64)), opt("d", &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: str}),
		opt("f", arrow.FixedSizeListOf(2, arrow.PrimitiveTypes.Int64)), opt("r", arrow.RunEndEncodedOf(arrow.PrimitiveTypes.Int32, str)),
	}, nil)
	rec := arrowtest.NewFiller(rand.New(rand.NewPCG(7, 9))).Batch(schema, rows)
	tb.Cleanup(rec.Release)
	return rec
}

// acceptable reports whether an error is one that reading anything may give.
func acceptable(err error) bool {
	return errors.Is(err, arrowio.ErrCorrupt) || errors.Is(err, parquet.ErrUnsupported) || errors.Is(err, parquet.ErrLimit)
}

// readAll reads a file that may be anything, and holds what it gives valid.
func readAll(t fataler, in []byte, options parquet.ScanOptions) error {
	t.Helper()
	f, err := parquet.Open(bytes.NewReader(in), int64(len(in)))
	if err != nil {
		return err
	}
	batches := 0
	for rec, err := range f.Scan(context.Background(), options) {
		if err != nil {
			return err
		}
		frame, err := arrowio.Encode(rec, nil)
		if errors.Is(err, arrowio.ErrUnsupported) {
			return nil
		}
		if err != nil {
			t.Fatalf("%v", err)
		}
		got, err := arrowio.Decode(frame, nil)
		if err != nil {
			t.Fatalf("what was read is not valid: %v", err)
		}
		got.Release()
		if batches++; batches == 100 {
			break
		}
	}
	return nil
}

func TestTruncatedAtEveryByte(t *testing.T) {
	file := write(t, nested(t, 9))
	for n := range file {
		if err := readAll(t, file[:n], parquet.ScanOptions{}); !errors.Is(err, arrowio.ErrCorrupt) {
			t.Fatalf("%d of %d bytes: %v", n, len(file), err)
		}
	}
}

func TestEveryByteChanged(t *testing.T) {
	for name, rec := range map[string]arrow.RecordBatch{"flat": batch(t, 20), "nested": nested(t, 20)} {
		file := write(t, rec)
		masks := []byte{1, 0x80, 0xff}
		for at := range file {
			bad := bytes.Clone(file)
			for _, mask := range masks[at%3 : at%3+1] {
				bad[at] = file[at] ^ mask
				if err := readAll(t, bad, parquet.ScanOptions{BatchRows: 7, MaxBytes: 64 << 20, Concurrency: 1}); err != nil && !acceptable(err) {
					t.Fatalf("%s, byte %d: %v", name, at, err)
				}
			}
		}
	}
}

func TestLies(t *testing.T) {
	i32 := []format.SchemaElement{leafOf("x", format.Int32, format.Optional)}
	required := []format.SchemaElement{leafOf("x", format.Int32, format.Required)}
	text := []format.SchemaElement{leafOf("x", format.ByteArray, format.Required)}
	text[0].LogicalType = format.LogicalType{Value: new(format.StringType)}
	list := []format.SchemaElement{groupOf("x", format.Optional, 1), groupOf("list", format.Repeated, 1), leafOf("element", format.Int32, format.Optional)}
	list[0].LogicalType = format.LogicalType{Value: new(format.ListType)}
	pairs := []format.SchemaElement{groupOf("x", format.Required, 1), groupOf("list", format.Repeated, 1), groupOf("element", format.Required, 2), leafOf("a", format.Int32, format.Required), leafOf("b", format.Int32, format.Required)}
	pairs[0].LogicalType = format.LogicalType{Value: new(format.ListType)}
	four := make([]byte, 16)
	flat := func(pages ...forgedPage) forged {
		return forged{schema: i32, rows: 4, chunks: []forgedChunk{column(format.Int32, 4, pages...)}}
	}
	nestedFile := func(values int64, pages ...forgedPage) forged {
		return forged{schema: list, rows: 4, chunks: []forgedChunk{column(format.Int32, values, pages...)}}
	}
	edited := func(f forged, edit func(*format.FileMetaData)) forged {
		f.edit = edit
		return f
	}
	good := flat(v2(4, format.Plain, nil, run(4, 1), four))
	if err := readAll(t, good.bytes(t), parquet.ScanOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := readAll(t, nestedFile(4, v2(4, format.Plain, run(4, 0), run(4, 3), four)).bytes(t), parquet.ScanOptions{}); err != nil {
		t.Fatal(err)
	}
	first := func(m *format.FileMetaData) *format.ColumnMetaData { return &m.RowGroups[0].Columns[0].MetaData }
	sized := func(page forgedPage, compressed, uncompressed int32) forgedPage {
		page.header.CompressedPageSize, page.header.UncompressedPageSize = compressed, uncompressed
		return page
	}
	crc := v2(4, format.Plain, nil, run(4, 1), four)
	crc.header.CRC = 12345
	for name, f := range map[string]forged{
		"fewer values than levels":               flat(v2(4, format.Plain, nil, run(4, 1), four[:12])),
		"fewer levels than values":               flat(v2(4, format.Plain, nil, run(3, 1), four)),
		"a level over the greatest":              flat(v2(4, format.Plain, nil, run(4, 2), four)),
		"levels of no bytes":                     flat(v2(4, format.Plain, nil, nil, four)),
		"packed levels cut off":                  flat(v2(4, format.Plain, nil, []byte{3}, four)),
		"more values than the chunk":             flat(v2(5, format.Plain, nil, run(5, 1), append(four, 1, 2, 3, 4))),
		"fewer values than the chunk":            flat(v2(3, format.Plain, nil, run(3, 1), four)),
		"checksum":                               flat(crc),
		"page longer than the file":              flat(sized(v2(4, format.Plain, nil, run(4, 1), four), math.MaxInt32, 20)),
		"page of negative size":                  flat(sized(v2(4, format.Plain, nil, run(4, 1), four), -5, 20)),
		"size when decompressed":                 flat(sized(v2(4, format.Plain, nil, run(4, 1), four), 18, 1<<30)),
		"index without dictionary":               flat(v2(4, format.RLEDictionary, nil, run(4, 1), append([]byte{1}, run(4, 0)...))),
		"index out of the dictionary":            flat(dictPage(1, four[:4]), v2(4, format.RLEDictionary, nil, run(4, 1), append([]byte{1}, run(4, 1)...))),
		"packed index out of the dictionary":     flat(dictPage(1, four[:4]), v2(4, format.RLEDictionary, nil, run(4, 1), []byte{1, 3, 0xff})),
		"indices of 33 bits":                     flat(dictPage(1, four[:4]), v2(4, format.RLEDictionary, nil, run(4, 1), append([]byte{33}, run(4, 0)...))),
		"dictionary of more than its bytes":      flat(dictPage(1<<30, four), v2(4, format.RLEDictionary, nil, run(4, 1), append([]byte{1}, run(4, 0)...))),
		"two dictionaries":                       flat(dictPage(1, four[:4]), dictPage(1, four[:4]), v2(4, format.RLEDictionary, nil, run(4, 1), append([]byte{1}, run(4, 0)...))),
		"deltas in blocks of nothing":            flat(v2(4, format.DeltaBinaryPacked, nil, run(4, 1), []byte{0, 0, 4, 0})),
		"deltas in huge blocks":                  flat(v2(4, format.DeltaBinaryPacked, nil, run(4, 1), []byte{0x80, 0x80, 0x80, 0x80, 0x08, 1, 4, 0, 0, 1})),
		"deltas of 65 bits":                      flat(v2(4, format.DeltaBinaryPacked, nil, run(4, 1), []byte{0x80, 1, 4, 4, 0, 0, 65, 65, 65, 65})),
		"fewer deltas":                           flat(v2(4, format.DeltaBinaryPacked, nil, run(4, 1), []byte{0x80, 1, 4, 2, 0, 0, 0, 0, 0, 0})),
		"encoding of another type":               flat(v2(4, format.DeltaByteArray, nil, run(4, 1), four)),
		"row begins within a list":               nestedFile(4, v2(4, format.Plain, run(4, 1), run(4, 3), four)),
		"list goes on that is null":              nestedFile(5, v2(5, format.Plain, append(run(4, 0), run(1, 1)...), append(run(4, 0), run(1, 3)...), four)),
		"list goes on without an element":        nestedFile(5, v2(5, format.Plain, append(run(4, 0), run(1, 1)...), append(run(4, 3), run(1, 1)...), four)),
		"fewer rows than the group":              nestedFile(4, v2(4, format.Plain, append(run(1, 0), run(3, 1)...), run(4, 3), four)),
		"more rows than the group":               nestedFile(8, v2(8, format.Plain, run(8, 0), run(8, 3), append(four, four...))),
		"lists of different lengths in siblings": {schema: pairs, rows: 2, chunks: []forgedChunk{column(format.Int32, 4, v2(4, format.Plain, []byte{3, 0b1010}, run(4, 1), four)), column(format.Int32, 4, v2(4, format.Plain, []byte{3, 0b1100}, run(4, 1), four))}},
		"text that is not UTF-8":                 {schema: text, rows: 1, chunks: []forgedChunk{column(format.ByteArray, 1, v2(1, format.Plain, nil, nil, []byte{1, 0, 0, 0, 0xff}))}},
		"text cut within a character":            {schema: text, rows: 2, chunks: []forgedChunk{column(format.ByteArray, 2, v2(2, format.Plain, nil, nil, []byte{1, 0, 0, 0, 0xc3, 1, 0, 0, 0, 0xa9}))}},
		"byte array longer than its page":        {schema: text, rows: 1, chunks: []forgedChunk{column(format.ByteArray, 1, v2(1, format.Plain, nil, nil, []byte{0xff, 0xff, 0xff, 0x7f, 'x'}))}},
		"nulls where there are none":             {schema: required, rows: 4, chunks: []forgedChunk{column(format.Int32, 4, v2(4, format.Plain, nil, nil, nil))}},
		"chunk of another type":                  edited(good, func(m *format.FileMetaData) { first(m).Type = format.Int64 }),
		"chunk before the file":                  edited(good, func(m *format.FileMetaData) { first(m).DataPageOffset = -1 }),
		"chunk after the file":                   edited(good, func(m *format.FileMetaData) { first(m).DataPageOffset = math.MaxInt64 - 5 }),
		"chunk longer than the file":             edited(good, func(m *format.FileMetaData) { first(m).TotalCompressedSize = math.MaxInt64 - 5 }),
		"chunk of negative length":               edited(good, func(m *format.FileMetaData) { first(m).TotalCompressedSize = -1 }),
		"chunk of no values":                     edited(good, func(m *format.FileMetaData) { first(m).NumValues = 0 }),
		"rows in the file":                       edited(good, func(m *format.FileMetaData) { m.NumRows = 5 }),
		"rows in the group":                      edited(good, func(m *format.FileMetaData) { m.NumRows, m.RowGroups[0].NumRows = 1<<40, 1<<40 }),
		"negative rows":                          edited(good, func(m *format.FileMetaData) { m.NumRows, m.RowGroups[0].NumRows = -1, -1 }),
		"no columns in the group":                edited(good, func(m *format.FileMetaData) { m.RowGroups[0].Columns = nil }),
		"schema that goes on":                    edited(good, func(m *format.FileMetaData) { m.Schema[0].NumChildren = thrift.New(int32(2)) }),
		"schema of negative size":                edited(good, func(m *format.FileMetaData) { m.Schema[0].NumChildren = thrift.New(int32(-2)) }),
		"unknown repetition":                     edited(good, func(m *format.FileMetaData) { m.Schema[1].RepetitionType = thrift.New(format.FieldRepetitionType(9)) }),
		"not an Arrow schema": edited(good, func(m *format.FileMetaData) {
			m.KeyValueMetadata = []format.KeyValue{{Key: "ARROW:schema", Value: "AAAA"}}
		}),
	} {
		t.Run(name, func(t *testing.T) {
			for _, options := range []parquet.ScanOptions{{MaxBytes: 64 << 20}, {BatchRows: 1}} {
				if err := readAll(t, f.bytes(t), options); !errors.Is(err, arrowio.ErrCorrupt) && !errors.Is(err, parquet.ErrUnsupported) {
					t.Error(err)
				}
			}
		})
	}
}

// allocated is what a function allocates, in bytes.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestBombs(t *testing.T) {
	huge := uint64(math.MaxInt32)
	nulls := forged{schema: []format.SchemaElement{leafOf("x", format.Int64, format.Optional)}, rows: int64(huge),
		chunks: []forgedChunk{column(format.Int64, int64(huge), v2(math.MaxInt32, format.Plain, nil, run(huge, 0), nil))}}.bytes(t)
	same := forged{schema: []format.SchemaElement{leafOf("x", format.ByteArray, format.Required)}, rows: int64(huge),
		chunks: []forgedChunk{column(format.ByteArray, int64(huge), dictPage(1, append([]byte{100, 0, 0, 0}, make([]byte, 100)...)),
			v2(math.MaxInt32, format.RLEDictionary, nil, nil, append([]byte{1}, run(huge, 0)...)))}}.bytes(t)
	value := strings.Repeat("x", 100<<20)
	b := array.NewStringBuilder(memory.NewGoAllocator())
	defer b.Release()
	b.Append(value)
	col := b.NewArray()
	defer col.Release()
	long := array.NewRecordBatch(arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.BinaryTypes.String}}, nil), []arrow.Array{col}, 1)
	defer long.Release()
	zstd := write(t, long)
	for name, file := range map[string][]byte{"2^31 nulls": nulls, "2^31 texts of a dictionary": same, "zstd": zstd} {
		t.Run(name, func(t *testing.T) {
			if len(file) > 1<<20 {
				t.Fatalf("a bomb of %d bytes", len(file))
			}
			var err error
			n := allocated(func() { err = readAll(t, file, parquet.ScanOptions{MaxBytes: 8 << 20}) })
			var limit *parquet.LimitError
			if !errors.As(err, &limit) || limit.Column != "x" || limit.Limit != 8<<20 {
				t.Fatal(err)
			}
			if n > 64<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
	t.Run("some rows of it", func(t *testing.T) {
		if err := readAll(t, nulls, parquet.ScanOptions{BatchRows: 1000, MaxBytes: 8 << 20}); err != nil {
			t.Error(err)
		}
	})
	t.Run("a footer that asks for terabytes", func(t *testing.T) {
		// A list of 2^31 row groups, in a few bytes.
		footer := []byte{0x15, 4, 0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0x00}
		file := append(append([]byte("PAR1"), footer...), byte(len(footer)), 0, 0, 0)
		file = append(file, "PAR1"...)
		var err error
		n := allocated(func() { _, err = parquet.Open(bytes.NewReader(file), int64(len(file))) })
		if !errors.Is(err, arrowio.ErrCorrupt) || n > 1<<20 {
			t.Error(err, n)
		}
	})
}

// TestMemoryOfALargeFile reads a file that decodes to many times the memory that
// the reader may use, in a single row group.
func TestMemoryOfALargeFile(t *testing.T) {
	const rows, columns, limit = 8 << 20, 8, 16 << 20
	fields := make([]arrow.Field, columns)
	for i := range fields {
		fields[i] = arrow.Field{Name: string(rune('a' + i)), Type: arrow.PrimitiveTypes.Int64}
	}
	values := make([]int64, rows)
	for i := range values {
		values[i] = int64(i) * 3
	}
	col := array.NewData(fields[0].Type, rows, []*memory.Buffer{nil, memory.NewBufferBytes(arrow.Int64Traits.CastToBytes(values))}, nil, 0, 0)
	cols := make([]arrow.Array, columns)
	for i := range cols {
		cols[i] = array.MakeFromData(col)
	}
	path := filepath.Join(t.TempDir(), "large.parquet")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := parquet.Write(out, array.NewRecordBatch(arrow.NewSchema(fields, nil), cols, rows)); err != nil {
		t.Fatal(err)
	}
	values, col, cols = nil, nil, nil
	info, err := out.Stat()
	if err != nil {
		t.Fatal(err)
	}
	debug.FreeOSMemory()
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	f, err := parquet.Open(out, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	if f.RowGroups() != 1 {
		t.Fatal(f.RowGroups())
	}
	var peak uint64
	seen, next := int64(0), int64(0)
	for rec, err := range f.Scan(t.Context(), parquet.ScanOptions{BatchRows: 32 << 10, MaxBytes: limit}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range rec.Column(columns - 1).(*array.Int64).Int64Values() {
			if v != next {
				t.Fatalf("%d, want %d", v, next)
			}
			next += 3
		}
		if seen += rec.NumRows(); seen%(1<<20) == 0 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse)
		}
	}
	if decoded := uint64(rows * columns * 8); seen != rows || peak > 4*limit || decoded < 8*peak {
		t.Errorf("%d rows; %d MiB in use for %d MiB decoded", seen, peak>>20, decoded>>20)
	}
	t.Logf("%d MiB decoded of a file of %d MiB with %d MiB in use", rows*columns*8>>20, info.Size()>>20, peak>>20)
}
