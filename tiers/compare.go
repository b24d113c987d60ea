package tiers

import (
	"bytes"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/stokehold/stokehold/arrowio"
)

// sameRecord reports the first difference between two batches' values, bit for
// bit: a NaN equals itself only if its bits do, and -0 is not 0. What a value
// is not counts for nothing: bytes behind a null, padding, the order of a
// dictionary. The comparisons of the Arrow library are of numbers, where NaN
// differs from itself, or within a tolerance.
func sameRecord(a, b arrow.RecordBatch) error {
	if fa, fb := arrowio.Fingerprint(a.Schema()), arrowio.Fingerprint(b.Schema()); fa != fb {
		return fmt.Errorf("schema %s became %s", fa, fb)
	}
	if a.NumRows() != b.NumRows() {
		return fmt.Errorf("%d rows became %d", a.NumRows(), b.NumRows())
	}
	for i := range int(a.NumCols()) {
		if err := sameArray(a.Column(i), b.Column(i)); err != nil {
			return fmt.Errorf("column %s: %w", a.ColumnName(i), err)
		}
	}
	return nil
}

func sameArray(a, b arrow.Array) error {
	if a.Len() != b.Len() {
		return fmt.Errorf("%d values became %d", a.Len(), b.Len())
	}
	if !arrow.TypeEqual(a.DataType(), b.DataType()) {
		return fmt.Errorf("type %s became %s", a.DataType(), b.DataType())
	}
	if fa, wa, ok := fixed(a); ok && a.NullN() == 0 && b.NullN() == 0 {
		fb, _, _ := fixed(b)
		if bytes.Equal(fa, fb) {
			return nil
		}
		for i := range a.Len() {
			if !bytes.Equal(fa[i*wa:(i+1)*wa], fb[i*wa:(i+1)*wa]) {
				return fmt.Errorf("row %d differs", i)
			}
		}
	}
	for i := range a.Len() {
		if a.IsNull(i) != b.IsNull(i) {
			return fmt.Errorf("row %d differs in being null", i)
		}
		if a.IsNull(i) {
			continue
		}
		same, err := sameValue(a, i, b, i)
		if err != nil {
			return err
		}
		if !same {
			return fmt.Errorf("row %d differs", i)
		}
	}
	return nil
}

// fixed returns the values of a fixed-width array of whole bytes, and the width.
func fixed(a arrow.Array) ([]byte, int, bool) {
	t, ok := a.DataType().(arrow.FixedWidthDataType)
	if !ok || t.BitWidth() < 8 || t.BitWidth()%8 != 0 || a.DataType().ID() == arrow.DICTIONARY ||
		len(a.Data().Buffers()) != 2 || a.Data().Buffers()[1] == nil {
		return nil, 0, false
	}
	w := t.BitWidth() / 8
	from := a.Data().Offset() * w
	return a.Data().Buffers()[1].Bytes()[from : from+a.Len()*w], w, true
}

func sameValue(a arrow.Array, i int, b arrow.Array, j int) (bool, error) {
	if va, w, ok := fixed(a); ok {
		vb, _, _ := fixed(b)
		return bytes.Equal(va[i*w:(i+1)*w], vb[j*w:(j+1)*w]), nil
	}
	switch a := a.(type) {
	case *array.Boolean:
		return a.Value(i) == b.(*array.Boolean).Value(j), nil
	case *array.String:
		return a.Value(i) == b.(*array.String).Value(j), nil
	case *array.LargeString:
		return a.Value(i) == b.(*array.LargeString).Value(j), nil
	case *array.Binary:
		return bytes.Equal(a.Value(i), b.(*array.Binary).Value(j)), nil
	case *array.LargeBinary:
		return bytes.Equal(a.Value(i), b.(*array.LargeBinary).Value(j)), nil
	case *array.Dictionary:
		b := b.(*array.Dictionary)
		i, j = a.GetValueIndex(i), b.GetValueIndex(j)
		da, db := a.Dictionary(), b.Dictionary()
		if da.IsNull(i) || db.IsNull(j) {
			return da.IsNull(i) == db.IsNull(j), nil
		}
		return sameValue(da, i, db, j)
	case *array.Null:
		return true, nil
	}
	return false, fmt.Errorf("values of type %s cannot be compared", a.DataType())
}
