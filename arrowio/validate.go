package arrowio

import (
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// validate checks every value of every column. The library (v18.8) reads null
// columns without the buffer slot that its own validation asks for, and empty
// dense unions with a nil buffer that its validation dereferences. Those are
// validated with what is missing put in; the batch itself is left as it is.
func validate(rec arrow.RecordBatch) error {
	for i, col := range rec.Columns() {
		if readsShort(col.DataType()) {
			data := withSlots(col.Data())
			col = array.MakeFromData(data)
			data.Release()
		} else {
			col.Retain()
		}
		err := array.ValidateFull(col)
		col.Release()
		if err != nil {
			return fmt.Errorf("column %d (%s): %w", i, clip(rec.ColumnName(i)), err)
		}
	}
	return nil
}

func readsShort(dt arrow.DataType) bool {
	switch t := dt.(type) {
	case *arrow.NullType, *arrow.DenseUnionType:
		return true
	case *arrow.DictionaryType:
		return readsShort(t.ValueType)
	case arrow.ExtensionType:
		return readsShort(t.StorageType())
	case arrow.NestedType:
		for _, f := range t.Fields() {
			if readsShort(f.Type) {
				return true
			}
		}
	}
	return false
}

func withSlots(d arrow.ArrayData) arrow.ArrayData {
	buffers := d.Buffers()
	if d.DataType().ID() == arrow.NULL && len(buffers) == 0 {
		buffers = []*memory.Buffer{nil}
	}
	if d.DataType().ID() == arrow.DENSE_UNION && d.Len() == 0 {
		none := memory.NewBufferBytes([]byte{})
		buffers = []*memory.Buffer{nil, none, none}
	}
	var children []arrow.ArrayData
	for _, c := range d.Children() {
		fixed := withSlots(c)
		defer fixed.Release()
		children = append(children, fixed)
	}
	if d.DataType().ID() != arrow.DICTIONARY {
		return array.NewData(d.DataType(), d.Len(), buffers, children, d.NullN(), d.Offset())
	}
	dict := withSlots(d.Dictionary())
	defer dict.Release()
	return array.NewDataWithDictionary(d.DataType(), d.Len(), buffers, d.NullN(), d.Offset(), dict.(*array.Data))
}
