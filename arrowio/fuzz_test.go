package arrowio_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/internal/arrowtest"
)

// perValue is how many values one value of an array may stand for at most: views
// and lists of nulls make much of few bytes.
func perValue(d arrow.ArrayData) float64 {
	n := 1.0
	for _, c := range d.Children() {
		each := perValue(c)
		switch d.DataType().(type) {
		case arrow.ListLikeType:
			each *= float64(c.Len())
		}
		n += each
	}
	if dict, ok := d.Dictionary().(*array.Data); ok && dict != nil {
		n += perValue(dict)
	}
	return n
}

func walkable(rec arrow.RecordBatch) bool {
	n := float64(rec.NumRows())
	for _, c := range rec.Columns() {
		n = max(n, perValue(c.Data())*float64(c.Len()))
	}
	return n <= 1e4
}

// FuzzDecode holds that nothing read of a batch that passed validation panics,
// and that framing it again gives a frame that stays as it is.
func FuzzDecode(f *testing.F) {
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(9, 10)))
	fields := append([]arrow.Field{}, unknown()...)
	for _, types := range [][]arrow.DataType{leaves(), canonical(), nests(arrow.PrimitiveTypes.Int16), nests(arrow.BinaryTypes.String)} {
		for _, dt := range types {
			fields = append(fields, arrow.Field{Name: "x", Type: dt, Nullable: true})
		}
	}
	for _, field := range fields {
		for _, rows := range []int{0, 5} {
			rec := g.Batch(arrow.NewSchema([]arrow.Field{field}, nil), rows)
			f.Add(encode(f, rec))
			rec.Release()
		}
	}
	for _, h := range hostiles(f) {
		f.Add(h.frame)
	}
	f.Add(encode(f, wide(f, 4)))
	f.Fuzz(func(t *testing.T, in []byte) {
		buf := onItsOwn(in)
		released := 0
		rec, err := arrowio.Decode(buf, func() { released++ })
		if err != nil {
			if !errors.Is(err, arrowio.ErrCorrupt) || released != 1 {
				t.Fatalf("released %d times, %v", released, err)
			}
			return
		}
		if walkable(rec) {
			walk(t, rec)
		}
		frame, err := arrowio.Encode(rec, nil)
		if err != nil {
			t.Fatalf("cannot be framed again: %v", err)
		}
		again, err := arrowio.Decode(frame, nil)
		if err != nil {
			t.Fatalf("cannot be read again: %v", err)
		}
		if other := encode(t, again); !bytes.Equal(frame, other) {
			t.Fatalf("frame of %d bytes becomes another of %d", len(frame), len(other))
		}
		if a, b := arrowio.Fingerprint(rec.Schema()), arrowio.Fingerprint(again.Schema()); a != b {
			t.Fatalf("fingerprint %s becomes %s", a, b)
		}
		again.Release()
		rec.Release()
		if released != 1 {
			t.Fatalf("released %d times", released)
		}
		// Trusted takes whatever passes without trust.
		rec, err = arrowio.Decode(buf, nil, arrowio.Trusted())
		if err != nil {
			t.Fatalf("refused when trusted: %v", err)
		}
		rec.Release()
	})
}

// walk reads every value in every way that the library has.
func walk(t *testing.T, rec arrow.RecordBatch) {
	for _, c := range rec.Columns() {
		_ = c.String()
		text := c
		if ext, ok := c.(array.ExtensionArray); ok {
			text = ext.Storage() // not every extension type of the library has ValueStr
		}
		for i := range c.Len() {
			_ = text.ValueStr(i)
			_ = c.GetOneForMarshal(i)
		}
	}
	if _, err := rec.MarshalJSON(); err != nil {
		t.Logf("as JSON: %v", err)
	}
	plainBatch(rec)
}

func FuzzDecodeSchema(f *testing.F) {
	for _, field := range everyType()[:120] {
		f.Add(arrowio.EncodeSchema(arrow.NewSchema([]arrow.Field{field}, nil)))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		schema, err := arrowio.DecodeSchema(in)
		if err != nil {
			if !errors.Is(err, arrowio.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := arrowio.DecodeSchema(arrowio.EncodeSchema(schema))
		if err != nil {
			t.Fatalf("cannot be read again: %v", err)
		}
		if a, b := arrowio.Fingerprint(schema), arrowio.Fingerprint(again); a != b {
			t.Fatalf("fingerprint %s of %s becomes %s of %s", a, schema, b, again)
		}
	})
}
