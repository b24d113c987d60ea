package tiers_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/internal/arrowtest"
	"github.com/stokehold/stokehold/tiers"
)

// TestSameRecordOfEveryType holds the comparison against the values as text: of a
// batch with its copy, and of each of its rows with each other.
func TestSameRecordOfEveryType(t *testing.T) {
	types := append(arrowtest.Leaves(), arrowtest.Canonical()...)
	for _, dt := range types {
		types = append(types, arrowtest.Nests(dt)...)
	}
	for _, dt := range arrowtest.Nests(arrow.PrimitiveTypes.Int16) {
		types = append(types, arrowtest.Nests(dt)...)
	}
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(7, 8))) //nolint:gosec // not a secret
	equal, unequal := 0, 0
	for _, dt := range types {
		const rows = 12
		rec := g.Batch(arrow.NewSchema([]arrow.Field{{Name: "v", Type: dt, Nullable: true}}, nil), rows)
		frame, err := arrowio.Encode(rec, nil)
		if err != nil {
			t.Fatalf("%s: %v", dt, err)
		}
		back, err := arrowio.Decode(frame, nil)
		if err != nil {
			t.Fatalf("%s: %v", dt, err)
		}
		if err := tiers.SameRecord(rec, back); err != nil {
			t.Errorf("%s and its copy: %v", dt, err)
		}
		text := make([][]byte, rows)
		for i := range text {
			one := rec.NewSlice(int64(i), int64(i+1))
			if text[i], err = json.Marshal(arrowtest.PlainBatch(one)); err != nil {
				t.Fatal(err)
			}
			one.Release()
		}
		for i := range text {
			for j := range text {
				a, b := rec.NewSlice(int64(i), int64(i+1)), back.NewSlice(int64(j), int64(j+1))
				want := bytes.Equal(text[i], text[j])
				if got := tiers.SameRecord(a, b); (got == nil) != want {
					t.Errorf("%s: %s and %s: %v", dt, text[i], text[j], got)
				}
				if want {
					equal++
				} else {
					unequal++
				}
				a.Release()
				b.Release()
			}
		}
		back.Release()
		rec.Release()
	}
	if equal < 1000 || unequal < 1000 {
		t.Errorf("%d equal pairs and %d others prove little", equal, unequal)
	}
}
