package parquet_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/parquet"
	"github.com/stokehold/stokehold/internal/arrowtest"
	"github.com/stokehold/stokehold/internal/arrowtest/drawn"
)

// holds reports whether Parquet can hold a type, as docs/PARQUET.md says.
func holds(dt arrow.DataType) bool {
	switch t := dt.(type) {
	case arrow.UnionType:
		return false
	case *arrow.FixedSizeBinaryType:
		return t.ByteWidth > 0
	case arrow.DecimalType:
		return t.GetScale() >= 0 && t.GetScale() <= t.GetPrecision()
	case *arrow.DictionaryType:
		switch t.ValueType.(type) {
		case arrow.NestedType, arrow.ExtensionType, *arrow.DictionaryType:
			return false
		}
		return holds(t.ValueType)
	case arrow.ExtensionType:
		return holds(t.StorageType())
	case *arrow.RunEndEncodedType:
		return holds(t.Encoded())
	case *arrow.StructType:
		if t.NumFields() == 0 {
			return false
		}
	}
	if t, ok := dt.(arrow.NestedType); ok {
		for _, f := range t.Fields() {
			if !holds(f.Type) {
				return false
			}
		}
	}
	return true
}

// losesValues reports whether Parquet holds the type but not all of its values.
func losesValues(dt arrow.DataType) bool {
	switch t := dt.(type) {
	case *arrow.TimestampType:
		return t.Unit == arrow.Second
	case *arrow.MonthIntervalType, *arrow.DayTimeIntervalType, *arrow.MonthDayNanoIntervalType:
		return true
	case *arrow.DictionaryType:
		return losesValues(t.ValueType)
	case arrow.ExtensionType:
		return losesValues(t.StorageType())
	case *arrow.RunEndEncodedType:
		return losesValues(t.Encoded())
	case arrow.NestedType:
		for _, f := range t.Fields() {
			if nullsIn(f) || losesValues(f.Type) {
				return true
			}
		}
	}
	return false
}

func nullsIn(f arrow.Field) bool {
	dt := f.Type
	if ext, ok := dt.(arrow.ExtensionType); ok {
		dt = ext.StorageType()
	}
	return !f.Nullable && dt.ID() == arrow.DICTIONARY
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func plainJSON(t fataler, rec arrow.RecordBatch) []byte {
	t.Helper()
	b, err := json.Marshal(arrowtest.PlainBatch(rec))
	if err != nil {
		t.Fatalf("%v", err)
	}
	return b
}

// roundTrip writes a batch and holds what is read back against it.
func roundTrip(t fataler, rec arrow.RecordBatch, config parquet.WriterConfig, options parquet.ScanOptions) (file []byte) {
	t.Helper()
	var out bytes.Buffer
	w, err := config.NewWriter(&out, rec.Schema())
	if err == nil {
		err = w.Write(rec)
	}
	if err == nil {
		err = w.Close()
	}
	var u *parquet.UnsupportedError
	var v *parquet.ValueError
	for _, f := range rec.Schema().Fields() {
		switch {
		case !holds(f.Type):
			if !errors.As(err, &u) || u.Hint == "" {
				t.Fatalf("%s: %v, want an UnsupportedError", f, err)
			}
			return nil
		case (nullsIn(f) || losesValues(f.Type)) && errors.As(err, &v) && strings.HasPrefix(v.Column, f.Name):
			return nil
		}
	}
	if rec.NumCols() == 0 && errors.As(err, &u) {
		return nil
	}
	if err != nil {
		t.Fatalf("%s: %v", rec.Schema(), err)
	}
	f, err := parquet.Open(bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		t.Fatalf("%s: %v", rec.Schema(), err)
	}
	if got := f.Schema(); !got.Equal(rec.Schema()) || !got.Metadata().Equal(rec.Schema().Metadata()) || arrowio.Fingerprint(got) != arrowio.Fingerprint(rec.Schema()) {
		t.Fatalf("schema %s\nwas %s", got, rec.Schema())
	}
	at := int64(0)
	for got, err := range f.Scan(context.Background(), options) {
		if err != nil {
			t.Fatalf("%s: %v", rec.Schema(), err)
		}
		want := rec.NewSlice(at, at+got.NumRows())
		if have, want := plainJSON(t, got), plainJSON(t, want); !bytes.Equal(have, want) {
			t.Fatalf("%s\nhave %s\nwant %s", rec.Schema(), have, want)
		}
		// What other processes would be given must be valid to the last bit.
		frame, err := arrowio.Encode(got, nil)
		if err != nil {
			t.Fatalf("frame %s: %v", rec.Schema(), err)
		}
		again, err := arrowio.Decode(frame, nil)
		if err != nil {
			t.Fatalf("%s: not valid: %v", rec.Schema(), err)
		}
		again.Release()
		want.Release()
		at += got.NumRows()
	}
	if at != rec.NumRows() {
		t.Fatalf("%d rows of %d", at, rec.NumRows())
	}
	return out.Bytes()
}

// everyType is a schema for each type, nests over a few elements included.
func everyType() (fields []arrow.Field) {
	add := func(types ...arrow.DataType) {
		for _, dt := range types {
			fields = append(fields, arrow.Field{Name: dt.String(), Type: dt, Nullable: true})
		}
	}
	add(arrowtest.Leaves()...)
	add(arrowtest.Canonical()...)
	for _, elem := range append(arrowtest.Leaves(), arrowtest.Canonical()...) {
		add(arrowtest.Nests(elem)...)
	}
	for _, outer := range arrowtest.Nests(arrow.PrimitiveTypes.Int16) {
		add(arrowtest.Nests(outer)...)
	}
	return append(fields, arrowtest.Unknown()...)
}

func TestEveryTypeRoundTrips(t *testing.T) {
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(1, 2)))
	stored := 0
	for _, f := range everyType() {
		for _, rows := range []int{0, 1, 70} {
			rec := g.Batch(arrow.NewSchema([]arrow.Field{f}, nil), rows)
			if roundTrip(t, rec, parquet.WriterConfig{}, parquet.ScanOptions{}) != nil {
				stored++
			}
			if rows > 3 {
				cut := rec.NewSlice(3, int64(rows)-2)
				roundTrip(t, cut, parquet.WriterConfig{}, parquet.ScanOptions{BatchRows: 7})
				cut.Release()
			}
			roundTrip(t, rec, parquet.WriterConfig{}, parquet.ScanOptions{Allocate: dirty})
			rec.Release()
		}
	}
	if stored < 1000 {
		t.Errorf("only %d batches were stored", stored)
	}
}

// dirty is memory that others have used.
func dirty(bytes int) []byte {
	b := memory.DefaultAllocator.Allocate(bytes)
	for i := range b {
		b[i] = 0xee
	}
	return b
}

// TestBatchesAreNotPartOfTheFile: its memory may be used for the next one.
func TestBatchesAreNotPartOfTheFile(t *testing.T) {
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(5, 6)))
	for _, f := range everyType() {
		if !holds(f.Type) || losesValues(f.Type) {
			continue
		}
		for _, compression := range []parquet.Compression{parquet.Zstd, parquet.Uncompressed} {
			meta := arrow.MetadataFrom(map[string]string{"of": "the schema"})
			rec := g.Batch(arrow.NewSchema([]arrow.Field{f}, &meta), 40)
			raw := roundTrip(t, rec, parquet.WriterConfig{Compression: compression}, parquet.ScanOptions{})
			rec.Release()
			got, err := parquet.Read(parquet.Bytes(raw), int64(len(raw)))
			if err != nil {
				t.Fatal(err)
			}
			before, schema := plainJSON(t, got[0]), got[0].Schema().String()
			for i := range raw {
				raw[i] = 0xee
			}
			if after := plainJSON(t, got[0]); !bytes.Equal(before, after) || got[0].Schema().String() != schema {
				t.Errorf("%s, compression %d: changed with the file's memory", f, compression)
			}
			got[0].Release()
		}
	}
}

// TestAllocate: values of fixed width and offsets lie in the memory that is given,
// and a scan does with less than it asked for.
func TestAllocate(t *testing.T) {
	rec := batch(t, 5000)
	raw := write(t, rec)
	for _, give := range []func(n, asked int) []byte{
		func(_, asked int) []byte { return dirty(asked) },
		func(int, int) []byte { return nil },
		func(n, asked int) []byte {
			if n%2 == 0 {
				return nil
			}
			return dirty(asked)
		},
	} {
		var mu sync.Mutex
		var given [][]byte
		n := 0
		f, err := parquet.Open(parquet.Bytes(raw), int64(len(raw)))
		if err != nil {
			t.Fatal(err)
		}
		for got, err := range f.Scan(context.Background(), parquet.ScanOptions{Allocate: func(bytes int) []byte {
			mu.Lock()
			defer mu.Unlock()
			n++
			b := give(n, bytes)
			if b != nil {
				given = append(given, b)
			}
			return b
		}}) {
			if err != nil || !array.RecordEqual(rec, got) {
				t.Fatalf("differs, or %v", err)
			}
			lies := 0
			for _, col := range got.Columns() {
				for _, b := range col.Data().Buffers() {
					if b != nil && b.Len() > 0 && slices.ContainsFunc(given, func(g []byte) bool { return &g[0] == &b.Bytes()[0] }) {
						lies++
					}
				}
			}
			if lies != len(given) || n == 0 {
				t.Errorf("asked %d times and given memory %d times, %d buffers lie there", n, len(given), lies)
			}
		}
	}
}

// Whatever is in the slots under a null parent, which nobody sees, must be valid.
func TestValuesUnderNullParentsAreValid(t *testing.T) {
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(3, 4)))
	for _, dt := range append(arrowtest.Leaves(), arrowtest.Canonical()...) {
		for _, dt := range append([]arrow.DataType{dt}, arrowtest.Nests(dt)...) {
			parent := arrow.StructOf(arrow.Field{Name: "required", Type: dt})
			if !holds(parent) {
				continue
			}
			child := g.Batch(arrow.NewSchema(parent.Fields(), nil), 3)
			data := array.NewData(parent, 3, []*memory.Buffer{memory.NewBufferBytes([]byte{0})}, []arrow.ArrayData{child.Column(0).Data()}, 3, 0)
			nulls := array.MakeFromData(data)
			schema := arrow.NewSchema([]arrow.Field{{Name: "parent", Type: parent, Nullable: true}}, nil)
			rec := array.NewRecordBatch(schema, []arrow.Array{nulls}, 3)
			roundTrip(t, rec, parquet.WriterConfig{}, parquet.ScanOptions{})
			data.Release()
			child.Release()
			rec.Release()
			nulls.Release()
		}
	}
}

func TestRandomBatchesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fields := make([]arrow.Field, rapid.IntRange(1, 4).Draw(t, "columns"))
		for i := range fields {
			fields[i] = drawn.Field(t, 3)
			if !holds(fields[i].Type) && rapid.IntRange(0, 9).Draw(t, "keep") > 0 {
				fields[i].Type = arrow.ListOf(arrow.PrimitiveTypes.Int8)
			}
		}
		rec := drawn.Rows(t, fields)
		defer rec.Release()
		config := parquet.WriterConfig{
			Compression:  rapid.SampledFrom([]parquet.Compression{parquet.Zstd, parquet.Snappy, parquet.Uncompressed}).Draw(t, "compression"),
			PageBytes:    rapid.SampledFrom([]int{0, 1024}).Draw(t, "page"),
			RowGroupRows: rapid.Int64Range(0, 20).Draw(t, "group"),
			Concurrency:  rapid.IntRange(0, 3).Draw(t, "columns at once"),
		}
		file := roundTrip(t, rec, config, parquet.ScanOptions{BatchRows: rapid.IntRange(0, 20).Draw(t, "batch"), Concurrency: rapid.IntRange(0, 2).Draw(t, "decoded at once")})
		if again := roundTrip(t, rec, config, parquet.ScanOptions{}); !bytes.Equal(file, again) {
			t.Fatalf("%s: the same batch gives another file", rec.Schema())
		}
	})
}
