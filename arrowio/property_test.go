package arrowio_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/extensions"
	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/internal/arrowtest"
)

// fataler is what *testing.T and *rapid.T share.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func values(t fataler, rec arrow.RecordBatch) []byte {
	t.Helper()
	b, err := json.Marshal(plainBatch(rec))
	if err != nil {
		t.Fatalf("%v", err)
	}
	return b
}

// roundTrip frames rec, decodes it and frames it again, and returns the frame.
func roundTrip(t fataler, rec arrow.RecordBatch) []byte {
	t.Helper()
	frame, err := arrowio.Encode(rec, nil)
	if err != nil {
		t.Fatalf("encode %s: %v", rec.Schema(), err)
	}
	released := 0
	got, err := arrowio.Decode(frame, func() { released++ })
	if err != nil {
		t.Fatalf("decode %s: %v", rec.Schema(), err)
	}
	if !got.Schema().Equal(rec.Schema()) || !got.Schema().Metadata().Equal(rec.Schema().Metadata()) {
		t.Fatalf("schema %s\nwas %s", got.Schema(), rec.Schema())
	}
	if a, b := arrowio.Fingerprint(rec.Schema()), arrowio.Fingerprint(got.Schema()); a != b {
		t.Fatalf("fingerprint %s of %s was %s of %s", b, got.Schema(), a, rec.Schema())
	}
	if got.NumRows() != rec.NumRows() {
		t.Fatalf("%d rows of %d", got.NumRows(), rec.NumRows())
	}
	if have, want := values(t, got), values(t, rec); !bytes.Equal(have, want) {
		t.Fatalf("%s\nhave %s\nwant %s", rec.Schema(), have, want)
	}
	if n := arrowio.BytesOutside(got, frame); n != 0 {
		t.Fatalf("%s: %d bytes copied", rec.Schema(), n)
	}
	again, err := arrowio.Encode(got, nil)
	if err != nil {
		t.Fatalf("encode %s again: %v", rec.Schema(), err)
	}
	if !bytes.Equal(frame, again) {
		t.Fatalf("%s of %d rows: framing the decoded batch gives other bytes: %d, not %d", rec.Schema(), rec.NumRows(), len(again), len(frame))
	}
	if err := array.ValidateRecord(got); err != nil && !librarySlips(got.Schema()) {
		t.Fatalf("%s: %v", rec.Schema(), err)
	}
	got.Release()
	if released != 1 {
		t.Fatalf("%s: released %d times", rec.Schema(), released)
	}
	return frame
}

// librarySlips reports whether the library's own validation is known to be wrong
// about a type in the schema.
func librarySlips(s *arrow.Schema) bool {
	var in func(dt arrow.DataType) bool
	in = func(dt arrow.DataType) bool {
		switch t := dt.(type) {
		case arrow.ExtensionType:
			return t.StorageType().ID() == arrow.DICTIONARY || in(t.StorageType())
		case *arrow.DictionaryType:
			return in(t.ValueType)
		case *arrow.FixedSizeBinaryType:
			return t.ByteWidth == 0
		case arrow.NestedType:
			for _, f := range t.Fields() {
				if in(f.Type) {
					return true
				}
			}
		}
		return false
	}
	for _, f := range s.Fields() {
		if in(f.Type) {
			return true
		}
	}
	return false
}

// everyType is a schema with one column for each type, each nest over a few
// elements included.
func everyType() []arrow.Field {
	var fields []arrow.Field
	add := func(types ...arrow.DataType) {
		for _, dt := range types {
			fields = append(fields, arrow.Field{Name: dt.String(), Type: dt, Nullable: true})
		}
	}
	add(leaves()...)
	add(canonical()...)
	for _, elem := range append(leaves(), canonical()...) {
		add(nests(elem)...)
	}
	// Nests of nests, those of dictionaries among them.
	for _, outer := range nests(arrow.PrimitiveTypes.Int16) {
		add(nests(outer)...)
	}
	return append(fields, unknown()...)
}

// TestEveryTypeStaysAsItIs frames each type by itself, whole and sliced, with few
// rows and none.
func TestEveryTypeStaysAsItIs(t *testing.T) {
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(1, 2)))
	for i, f := range everyType() {
		t.Run(fmt.Sprint(i, " ", f.Name), func(t *testing.T) {
			for _, rows := range []int{0, 1, 40} {
				rec := g.Batch(arrow.NewSchema([]arrow.Field{{Name: "before", Type: arrow.BinaryTypes.String}, f, {Name: "after", Type: arrow.PrimitiveTypes.Int8}}, nil), rows)
				roundTrip(t, rec)
				cut := rec.NewSlice(int64(rows/3), int64(rows-rows/4))
				roundTrip(t, cut)
				cut.Release()
				rec.Release()
			}
		})
	}
}

func TestAnyBatchStaysAsItIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rec := drawBatch(t)
		defer rec.Release()
		roundTrip(t, rec)
	})
}

// TestEncodeRefuses are types that the library has and the format does not, or
// not in a way that would come back.
func TestEncodeRefuses(t *testing.T) {
	dict := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}
	enum := extensions.NewOpaqueType(dict, "enum", "somebody")
	deep := arrow.PrimitiveTypes.Int8
	for range 64 {
		deep = arrow.StructOf(arrow.Field{Name: "d", Type: deep})
	}
	for name, dt := range map[string]arrow.DataType{
		"dictionary of an extension type":            &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: extensions.NewUUIDType()},
		"dictionary of a dictionary":                 &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: dict},
		"runs of an extension type over dictionary":  arrow.RunEndEncodedOf(arrow.PrimitiveTypes.Int16, enum),
		"extension type over a list of one of those": extensions.NewOpaqueType(arrow.ListOf(enum), "enums", "somebody"),
	} {
		t.Run(name, func(t *testing.T) {
			schema := arrow.NewSchema([]arrow.Field{{Name: "x", Type: dt, Nullable: true}}, nil)
			rec := arrowtest.NewFiller(rand.New(rand.NewPCG(7, 8))).Batch(schema, 3)
			defer rec.Release()
			if _, err := arrowio.Encode(rec, nil); !errors.Is(err, arrowio.ErrUnsupported) {
				t.Error(err)
			}
		})
	}
	t.Run("65 deep", func(t *testing.T) {
		rec := arrowtest.NewFiller(rand.New(rand.NewPCG(7, 8))).Batch(arrow.NewSchema([]arrow.Field{{Name: "x", Type: deep}}, nil), 3)
		defer rec.Release()
		if _, err := arrowio.Encode(rec, nil); err == nil || !strings.Contains(err.Error(), "deep") {
			t.Error(err)
		}
	})
}
