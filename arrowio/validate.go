package arrowio

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
)

// validator checks the data of arrays that were loaded from a frame, so whose
// offset is 0. Without full it looks at lengths alone, in time independent of
// the rows; with it at every value.
//
// The library's ValidateFull (v18.8) was rejected: it panics on empty dense
// unions, refuses null columns as they are read, wants UTF-8 under nulls, and
// lets through what its arrays panic on later (offsets of empty arrays, list
// views of no values beyond the end) and what Arrow C++ refuses (nulls in map
// keys, decimals beyond their precision, times outside the day). What this
// accepts, Arrow C++ validates in full, too; a test holds that.
type validator struct {
	full bool
	// seen are dictionaries that have been checked: many fields can share one.
	seen map[arrow.ArrayData]bool
}

// maxOverlap bounds the work that a frame can ask for: nothing in it may refer to
// more bytes or values than this many times those that are there. Values may be
// shared, but a buffer of megabytes that each of a million views refers to would
// keep its reader busy for hours.
const maxOverlap = 64

// column checks the data of a field.
func (v *validator) column(f arrow.Field, d arrow.ArrayData) error {
	if err := v.array(d); err != nil {
		return err
	}
	if v.full && !f.Nullable && d.NullN() != 0 {
		return fmt.Errorf("%d nulls in a field that is not nullable", d.NullN())
	}
	return nil
}

func (v *validator) array(d arrow.ArrayData) error {
	if ext, ok := d.DataType().(arrow.ExtensionType); ok {
		storage := retyped{ArrayData: d, dt: ext.StorageType()}
		if err := v.array(storage); err != nil || !v.full || ext.ExtensionName() != "arrow.json" {
			return err
		}
		return validJSON(storage)
	}
	if err := v.validity(d); err != nil {
		return err
	}
	n := d.Len()
	switch t := d.DataType().(type) {
	case *arrow.NullType:
		return nil
	case *arrow.DictionaryType:
		return v.dictionary(t, d)
	case *arrow.BinaryType:
		return v.binary(d, 4, false)
	case *arrow.StringType:
		return v.binary(d, 4, true)
	case *arrow.LargeBinaryType:
		return v.binary(d, 8, false)
	case *arrow.LargeStringType:
		return v.binary(d, 8, true)
	case *arrow.BinaryViewType:
		return v.views(d, false)
	case *arrow.StringViewType:
		return v.views(d, true)
	case *arrow.ListType:
		return v.list(t.ElemField(), d, 4)
	case *arrow.LargeListType:
		return v.list(t.ElemField(), d, 8)
	case *arrow.ListViewType:
		return v.listView(t.ElemField(), d, 4)
	case *arrow.LargeListViewType:
		return v.listView(t.ElemField(), d, 8)
	case *arrow.MapType:
		return v.maps(t, d)
	case *arrow.FixedSizeListType:
		child := d.Children()[0]
		if n > child.Len()/int(t.Len()) {
			return fmt.Errorf("%d lists of %d over %d values", n, t.Len(), child.Len())
		}
		if err := v.child(t.ElemField(), child); err != nil {
			return err
		}
		return v.required(t.ElemField(), d, child, func(i int) (int, int) { return i * int(t.Len()), int(t.Len()) })
	case *arrow.StructType:
		for i, f := range t.Fields() {
			child := d.Children()[i]
			if child.Len() != n {
				return fmt.Errorf("field %s has %d values, its struct %d", clip(f.Name), child.Len(), n)
			}
			if err := v.child(f, child); err != nil {
				return err
			}
			if err := v.required(f, d, child, func(i int) (int, int) { return i, 1 }); err != nil {
				return err
			}
		}
		return nil
	case *arrow.RunEndEncodedType:
		return v.runs(t, d)
	case arrow.UnionType:
		return v.union(t, d)
	case *arrow.BooleanType:
		if bits := d.Buffers()[1].Len(); n > 8*bits {
			return fmt.Errorf("%d values in %d bytes of bits", n, bits)
		}
		return nil
	case arrow.FixedWidthDataType:
		if err := holds(d, 1, t.BitWidth()/8); err != nil || !v.full {
			return err
		}
		return fixedValues(d)
	}
	return fmt.Errorf("%w: type %s", ErrUnsupported, d.DataType())
}

// child is array with the field's name in the error.
func (v *validator) child(f arrow.Field, d arrow.ArrayData) error {
	if err := v.array(d); err != nil {
		return fmt.Errorf("%s: %w", clip(f.Name), err)
	}
	return nil
}

// validJSON checks text of the extension type arrow.json, whose array in the
// library panics when it is printed otherwise. Storage of other extension types
// is checked as what it is.
func validJSON(d arrow.ArrayData) error {
	data := array.NewData(d.DataType(), d.Len(), d.Buffers(), nil, d.NullN(), 0)
	defer data.Release()
	text := array.MakeFromData(data)
	defer text.Release()
	values, ok := text.(arrow.TypedArray[string])
	for i := range d.Len() {
		if ok && text.IsValid(i) && !json.Valid([]byte(values.Value(i))) {
			return fmt.Errorf("value %d is not JSON", i)
		}
	}
	return nil
}

var errOverlap = fmt.Errorf("%w: values overlap more than %d times", ErrUnsupported, maxOverlap)

// retyped is data seen as of another type with the same layout.
type retyped struct {
	arrow.ArrayData
	dt arrow.DataType
}

func (r retyped) DataType() arrow.DataType { return r.dt }

// validity checks the bitmap and the count of nulls. Types without a bitmap have
// been looked at when they were loaded.
func (v *validator) validity(d arrow.ArrayData) error {
	if d.DataType().ID() == arrow.NULL || d.NullN() == 0 {
		return nil
	}
	bitmap := d.Buffers()[0]
	if bitmap == nil || int64(bitmap.Len()) < bitutil.BytesForBits(int64(d.Len())) {
		return fmt.Errorf("%d nulls among %d values, and no or too short a bitmap", d.NullN(), d.Len())
	}
	if !v.full {
		return nil
	}
	if nulls := d.Len() - bitutil.CountSetBits(bitmap.Bytes(), 0, d.Len()); nulls != d.NullN() {
		return fmt.Errorf("%d nulls among %d values, %d according to the bitmap", d.NullN(), d.Len(), nulls)
	}
	return nil
}

// valid reports whether value i is not null.
func valid(d arrow.ArrayData, i int) bool {
	if d.NullN() == 0 {
		return true
	}
	bitmap := d.Buffers()[0] // none if the type is null
	return bitmap != nil && bitutil.BitIsSet(bitmap.Bytes(), i)
}

// required reports nulls among the values of a field that is not nullable, where
// span says which of them belong to parent's value i. Values of a null parent and
// values that belong to none may be null.
func (v *validator) required(f arrow.Field, parent, child arrow.ArrayData, span func(i int) (start, n int)) error {
	if !v.full || f.Nullable || child.NullN() == 0 {
		return nil
	}
	budget := maxOverlap * (child.Len() + parent.Len())
	for i := range parent.Len() {
		if !valid(parent, i) {
			continue
		}
		start, n := span(i)
		if budget -= n; budget < 0 {
			return errOverlap
		}
		nulls := n
		if bitmap := child.Buffers()[0]; bitmap != nil {
			nulls -= bitutil.CountSetBits(bitmap.Bytes(), start, n)
		}
		if nulls != 0 {
			return fmt.Errorf("%s: null in a field that is not nullable, at value %d", clip(f.Name), i)
		}
	}
	return nil
}

// holds reports an error if a buffer is shorter than the values of d.
func holds(d arrow.ArrayData, buffer, width int) error {
	if have := d.Buffers()[buffer].Len(); width > 0 && d.Len() > have/width {
		return fmt.Errorf("%d values of %d bytes in a buffer of %d", d.Len(), width, have)
	}
	return nil
}

func (v *validator) dictionary(t *arrow.DictionaryType, d arrow.ArrayData) error {
	dict := d.Dictionary()
	if !v.seen[dict] {
		if err := v.array(dict); err != nil {
			return fmt.Errorf("dictionary: %w", err)
		}
		if v.seen == nil {
			v.seen = map[arrow.ArrayData]bool{}
		}
		v.seen[dict] = true
	}
	if err := holds(d, 1, t.IndexType.(arrow.FixedWidthDataType).BitWidth()/8); err != nil || !v.full {
		return err
	}
	return indices(t.IndexType.ID(), d, dict.Len())
}

func (v *validator) binary(d arrow.ArrayData, width int, text bool) error {
	values := d.Buffers()[2].Bytes()
	if width == 4 {
		return binaryOffsets(v, arrow.GetData[int32](d.Buffers()[1].Bytes()), d, values, text)
	}
	return binaryOffsets(v, arrow.GetData[int64](d.Buffers()[1].Bytes()), d, values, text)
}

func binaryOffsets[T int32 | int64](v *validator, offsets []T, d arrow.ArrayData, values []byte, text bool) error {
	if err := monotonic(v, offsets, d.Len(), len(values)); err != nil || !v.full || !text || d.Len() == 0 {
		return err
	}
	offsets = offsets[:d.Len()+1]
	// All at once is many times faster than each for itself. Values are valid if
	// all together are and none begins within a character.
	if whole := values[:offsets[d.Len()]]; utf8.Valid(whole[offsets[0]:]) {
		within := false
		for _, o := range offsets {
			within = within || int(o) < len(whole) && !utf8.RuneStart(whole[o])
		}
		if !within {
			return nil
		}
	}
	for i := range d.Len() {
		if s := values[offsets[i]:offsets[i+1]]; !utf8.Valid(s) && valid(d, i) {
			return fmt.Errorf("value %d is not UTF-8", i)
		}
	}
	return nil
}

// monotonic checks the n+1 offsets of n lists or strings over limit values. No
// offsets at all are allowed if n is 0.
func monotonic[T int32 | int64](v *validator, offsets []T, n, limit int) error {
	if n == 0 && len(offsets) == 0 {
		return nil
	}
	if n >= len(offsets) {
		return fmt.Errorf("%d offsets for %d values", len(offsets), n)
	}
	// The library's arrays look at the first and the last without more ado.
	if first, last := offsets[0], offsets[n]; first < 0 || last < first || int64(last) > int64(limit) {
		return fmt.Errorf("offsets from %d to %d over %d", first, last, limit)
	}
	if !v.full {
		return nil
	}
	previous := offsets[0]
	for i, o := range offsets[1 : n+1] {
		if o < previous {
			return fmt.Errorf("offset %d is %d, after %d", i+1, o, previous)
		}
		previous = o
	}
	return nil
}

func (v *validator) views(d arrow.ArrayData, text bool) error {
	if err := holds(d, 1, arrow.ViewHeaderSizeBytes); err != nil || !v.full {
		return err
	}
	headers := arrow.GetData[arrow.ViewHeader](d.Buffers()[1].Bytes())
	raw := d.Buffers()[1].Bytes()
	data := d.Buffers()[2:]
	budget := len(raw)
	allText := make([]bool, len(data)) // buffers that are UTF-8 from end to end
	for i, b := range data {
		allText[i] = text && utf8.Valid(b.Bytes())
		budget += b.Len()
	}
	budget *= maxOverlap
	for i := range d.Len() {
		if !valid(d, i) {
			continue
		}
		h := &headers[i]
		n := h.Len()
		var value []byte
		switch {
		case n < 0:
			return fmt.Errorf("view %d has %d bytes", i, n)
		case h.IsInline():
			value = raw[i*arrow.ViewHeaderSizeBytes+4:][:12]
			for _, b := range value[n:] {
				if b != 0 {
					return fmt.Errorf("view %d is padded with other than zero", i)
				}
			}
			value = value[:n]
		default:
			at, from := int(h.BufferIndex()), int(h.BufferOffset())
			if at < 0 || at >= len(data) || from < 0 || from > data[at].Len()-n {
				return fmt.Errorf("view %d refers to %d+%d in buffer %d of %d", i, from, n, at, len(data))
			}
			whole := data[at].Bytes()
			value = whole[from : from+n]
			if prefix := h.Prefix(); !bytes.Equal(value[:len(prefix)], prefix[:]) {
				return fmt.Errorf("view %d has another prefix than its value", i)
			}
			if budget -= n; text && budget < 0 {
				return errOverlap
			}
			if allText[at] && utf8.RuneStart(value[0]) && (from+n == len(whole) || utf8.RuneStart(whole[from+n])) {
				continue
			}
		}
		if text && !utf8.Valid(value) {
			return fmt.Errorf("view %d is not UTF-8", i)
		}
	}
	return nil
}

func (v *validator) list(elem arrow.Field, d arrow.ArrayData, width int) error {
	child := d.Children()[0]
	if err := v.child(elem, child); err != nil {
		return err
	}
	if width == 4 {
		return listOffsets(v, elem, arrow.GetData[int32](d.Buffers()[1].Bytes()), d, child)
	}
	return listOffsets(v, elem, arrow.GetData[int64](d.Buffers()[1].Bytes()), d, child)
}

func listOffsets[T int32 | int64](v *validator, elem arrow.Field, offsets []T, d, child arrow.ArrayData) error {
	if err := monotonic(v, offsets, d.Len(), child.Len()); err != nil {
		return err
	}
	return v.required(elem, d, child, func(i int) (int, int) { return int(offsets[i]), int(offsets[i+1] - offsets[i]) })
}

// maps checks a map; the library's arrays panic on null entries and keys.
func (v *validator) maps(t *arrow.MapType, d arrow.ArrayData) error {
	entries := d.Children()[0]
	if entries.NullN() != 0 || entries.Children()[0].NullN() != 0 {
		return fmt.Errorf("map with %d null entries and %d null keys", entries.NullN(), entries.Children()[0].NullN())
	}
	return v.list(t.ElemField(), d, 4)
}

func (v *validator) listView(elem arrow.Field, d arrow.ArrayData, width int) error {
	child := d.Children()[0]
	if err := v.child(elem, child); err != nil {
		return err
	}
	if err := holds(d, 1, width); err != nil {
		return fmt.Errorf("offsets: %w", err)
	}
	if err := holds(d, 2, width); err != nil {
		return fmt.Errorf("sizes: %w", err)
	}
	if width == 4 {
		return listSpans[int32](v, elem, d, child)
	}
	return listSpans[int64](v, elem, d, child)
}

func listSpans[T int32 | int64](v *validator, elem arrow.Field, d, child arrow.ArrayData) error {
	if !v.full {
		return nil
	}
	offsets, sizes := arrow.GetData[T](d.Buffers()[1].Bytes()), arrow.GetData[T](d.Buffers()[2].Bytes())
	limit := int64(child.Len())
	for i := range d.Len() { // those of nulls, too: they are cut out like others
		off, n := int64(offsets[i]), int64(sizes[i])
		if off < 0 || n < 0 || n > limit || off > limit-n {
			return fmt.Errorf("list %d refers to %d+%d of %d values", i, off, n, limit)
		}
	}
	return v.required(elem, d, child, func(i int) (int, int) { return int(offsets[i]), int(sizes[i]) })
}

func (v *validator) runs(t *arrow.RunEndEncodedType, d arrow.ArrayData) error {
	ends, values := d.Children()[0], d.Children()[1]
	for i, f := range t.Fields() {
		if err := v.child(f, d.Children()[i]); err != nil {
			return err
		}
	}
	if ends.NullN() != 0 {
		return fmt.Errorf("%d null run ends", ends.NullN())
	}
	if ends.Len() > values.Len() {
		return fmt.Errorf("%d run ends for %d values", ends.Len(), values.Len())
	}
	if v.full && !t.ValueNullable && values.NullN() != 0 {
		return fmt.Errorf("%d null runs in a field that is not nullable", values.NullN())
	}
	raw := ends.Buffers()[1].Bytes()
	switch t.RunEnds().ID() {
	case arrow.INT16:
		return runEnds(arrow.GetData[int16](raw)[:ends.Len()], d.Len())
	case arrow.INT32:
		return runEnds(arrow.GetData[int32](raw)[:ends.Len()], d.Len())
	default: // the third that the format allows, as the library has checked
		return runEnds(arrow.GetData[int64](raw)[:ends.Len()], d.Len())
	}
}

// runEnds checks what the library's arrays search without looking, so always.
func runEnds[T int16 | int32 | int64](ends []T, n int) error {
	previous := T(0)
	for i, end := range ends {
		if end <= previous {
			return fmt.Errorf("run %d ends at %d, after %d", i, end, previous)
		}
		previous = end
	}
	if int64(previous) < int64(n) {
		return fmt.Errorf("runs end at %d of %d", previous, n)
	}
	return nil
}

func (v *validator) union(t arrow.UnionType, d arrow.ArrayData) error {
	dense := t.Mode() == arrow.DenseMode
	for i, f := range t.Fields() {
		child := d.Children()[i]
		if !dense && child.Len() != d.Len() {
			return fmt.Errorf("field %s has %d values, its sparse union %d", clip(f.Name), child.Len(), d.Len())
		}
		if err := v.child(f, child); err != nil {
			return err
		}
	}
	if err := holds(d, 1, 1); err != nil {
		return fmt.Errorf("type codes: %w", err)
	}
	var offsets []int32
	if dense {
		if err := holds(d, 2, 4); err != nil {
			return fmt.Errorf("offsets: %w", err)
		}
		offsets = arrow.GetData[int32](d.Buffers()[2].Bytes())
	}
	if !v.full {
		return nil
	}
	ids, fields := t.ChildIDs(), t.Fields()
	last := make([]int32, len(fields))
	for i, code := range arrow.GetData[int8](d.Buffers()[1].Bytes())[:d.Len()] {
		if code < 0 || ids[code] == arrow.InvalidUnionChildID {
			return fmt.Errorf("value %d has type code %d", i, code)
		}
		which, at := ids[code], i
		child := d.Children()[which]
		if dense {
			off := offsets[i]
			if off < last[which] || int64(off) >= int64(child.Len()) {
				return fmt.Errorf("value %d is %d of %d in field %s, after %d", i, off, child.Len(), clip(fields[which].Name), last[which])
			}
			last[which], at = off, int(off)
		}
		if !fields[which].Nullable && child.NullN() != 0 && !valid(child, at) {
			return fmt.Errorf("%s: null in a field that is not nullable, at value %d", clip(fields[which].Name), i)
		}
	}
	return nil
}

// indices checks that the indices that are not null lie in a dictionary of n
// values.
func indices(id arrow.Type, d arrow.ArrayData, n int) error {
	raw := d.Buffers()[1].Bytes()
	switch id {
	case arrow.INT8:
		return indexRange(arrow.GetData[int8](raw), d, n)
	case arrow.UINT8:
		return indexRange(arrow.GetData[uint8](raw), d, n)
	case arrow.INT16:
		return indexRange(arrow.GetData[int16](raw), d, n)
	case arrow.UINT16:
		return indexRange(arrow.GetData[uint16](raw), d, n)
	case arrow.INT32:
		return indexRange(arrow.GetData[int32](raw), d, n)
	case arrow.UINT32:
		return indexRange(arrow.GetData[uint32](raw), d, n)
	case arrow.INT64:
		return indexRange(arrow.GetData[int64](raw), d, n)
	default: // uint64, the last that there is
		return indexRange(arrow.GetData[uint64](raw), d, n)
	}
}

func indexRange[T int8 | uint8 | int16 | uint16 | int32 | uint32 | int64 | uint64](idx []T, d arrow.ArrayData, n int) error {
	for i, x := range idx[:d.Len()] {
		// A negative index is a huge one as unsigned.
		if uint64(int64(x)) >= uint64(n) && valid(d, i) {
			return fmt.Errorf("index %d is %d, in a dictionary of %d", i, x, n)
		}
	}
	return nil
}
