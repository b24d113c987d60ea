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
	row, err := differs(a, 0, b, 0, a.Len())
	switch {
	case err != nil:
		return err
	case row < 0:
		return nil
	case isNull(a, row) != isNull(b, row):
		return fmt.Errorf("row %d differs in being null", row)
	}
	return fmt.Errorf("row %d differs", row)
}

// differs returns the first of n values from i on in a, and from j on in b, that is
// not the same; -1 if all are. Both are of one type.
func differs(a arrow.Array, i int, b arrow.Array, j, n int) (int, error) {
	a, b = stored(a), stored(b)
	if fa, w, ok := fixed(a); ok && a.NullN() == 0 && b.NullN() == 0 {
		fb, _, _ := fixed(b)
		if bytes.Equal(fa[i*w:(i+n)*w], fb[j*w:(j+n)*w]) {
			return -1, nil
		}
	}
	for k := range n {
		same, err := sameSlot(a, i+k, b, j+k)
		if err != nil || !same {
			return k, err
		}
	}
	return -1, nil
}

// stored is the array that an extension's values are stored as.
func stored(a arrow.Array) arrow.Array {
	for {
		e, ok := a.(array.ExtensionArray)
		if !ok {
			return a
		}
		a = e.Storage()
	}
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

// isNull reports whether a slot holds nothing: by itself, or because what it refers to
// does.
func isNull(a arrow.Array, i int) bool {
	if a.IsNull(i) {
		return true
	}
	switch a := stored(a).(type) {
	case *array.Null:
		return true
	case *array.Dictionary:
		return isNull(a.Dictionary(), a.GetValueIndex(i))
	case *array.RunEndEncoded:
		return isNull(a.Values(), a.GetPhysicalIndex(i))
	}
	return false
}

func sameSlot(a arrow.Array, i int, b arrow.Array, j int) (bool, error) {
	if null := isNull(a, i); null || isNull(b, j) {
		return null == isNull(b, j), nil
	}
	a, b = stored(a), stored(b)
	if va, w, ok := fixed(a); ok {
		vb, _, _ := fixed(b)
		return bytes.Equal(va[i*w:(i+1)*w], vb[j*w:(j+1)*w]), nil
	}
	switch a := a.(type) {
	case *array.FixedSizeBinary:
		return true, nil // of width 0, or it had been compared
	case *array.Boolean:
		return a.Value(i) == b.(*array.Boolean).Value(j), nil
	case *array.String:
		return a.Value(i) == b.(*array.String).Value(j), nil
	case *array.LargeString:
		return a.Value(i) == b.(*array.LargeString).Value(j), nil
	case *array.StringView:
		return a.Value(i) == b.(*array.StringView).Value(j), nil
	case *array.Binary:
		return bytes.Equal(a.Value(i), b.(*array.Binary).Value(j)), nil
	case *array.LargeBinary:
		return bytes.Equal(a.Value(i), b.(*array.LargeBinary).Value(j)), nil
	case *array.BinaryView:
		return bytes.Equal(a.Value(i), b.(*array.BinaryView).Value(j)), nil
	case *array.Dictionary:
		b := b.(*array.Dictionary)
		return sameSlot(a.Dictionary(), a.GetValueIndex(i), b.Dictionary(), b.GetValueIndex(j))
	case *array.RunEndEncoded:
		b := b.(*array.RunEndEncoded)
		return sameSlot(a.Values(), a.GetPhysicalIndex(i), b.Values(), b.GetPhysicalIndex(j))
	case *array.Struct:
		b := b.(*array.Struct)
		for k := range a.NumField() {
			if same, err := sameSlot(a.Field(k), i, b.Field(k), j); err != nil || !same {
				return false, err
			}
		}
		return true, nil
	case array.Union:
		b := b.(array.Union)
		if a.TypeCode(i) != b.TypeCode(j) {
			return false, nil
		}
		return sameSlot(a.Field(a.ChildID(i)), childSlot(a, i), b.Field(b.ChildID(j)), childSlot(b, j))
	case array.ListLike:
		b := b.(array.ListLike)
		from, to := a.ValueOffsets(i)
		start, end := b.ValueOffsets(j)
		if to-from != end-start {
			return false, nil
		}
		at, err := differs(a.ListValues(), int(from), b.ListValues(), int(start), int(to-from))
		return at < 0 && err == nil, err
	}
	return false, fmt.Errorf("values of type %s cannot be compared", a.DataType())
}

// childSlot is where in its child the value of a union's slot is.
func childSlot(u array.Union, i int) int {
	if dense, ok := u.(*array.DenseUnion); ok {
		return int(dense.ValueOffset(i))
	}
	return i
}
