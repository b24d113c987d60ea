package arrowio

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// EncodeSchema returns the encapsulated IPC message of a schema. It panics if the
// format has no form for one of the types, which Prepare reports as an error.
func EncodeSchema(schema *arrow.Schema) []byte {
	m, err := schemaMessage(schema)
	if err != nil {
		panic(err)
	}
	n := m.metaLen()
	out := make([]byte, prefixBytes+n)
	binary.LittleEndian.PutUint32(out, marker)
	binary.LittleEndian.PutUint32(out[4:], uint32(n))
	copy(out[prefixBytes:], m.meta)
	return out
}

func schemaMessage(schema *arrow.Schema) (message, error) {
	fields, changed, err := writable(schema.Fields())
	if err != nil {
		return message{}, err
	}
	if changed {
		md := schema.Metadata()
		schema = arrow.NewSchema(fields, &md)
	}
	p := ipc.GetSchemaPayload(schema, memory.NewGoAllocator())
	defer p.Release()
	meta := p.Meta()
	defer meta.Release()
	m := message{meta: meta.Bytes()}
	err = m.check()
	return m, err
}

// writable returns fields as the library's writer of schemas can take them. It
// panics on an extension type over a dictionary, which is therefore written as
// what it is in the format: a field of the storage type, with metadata.
func writable(fields []arrow.Field) (out []arrow.Field, changed bool, err error) {
	out = slices.Clone(fields)
	for i, f := range fields {
		if ext, ok := f.Type.(arrow.ExtensionType); ok && ext.StorageType().ID() == arrow.DICTIONARY {
			out[i] = storageField(f, ext)
			f, changed = out[i], true
		}
		dt, err := writableType(f.Type)
		if err != nil {
			return nil, false, fmt.Errorf("field %s: %w", clip(f.Name), err)
		}
		if dt != f.Type {
			out[i].Type, changed = dt, true
		}
	}
	return out, changed, nil
}

// storageField is what a field of an extension type is in the format.
func storageField(f arrow.Field, ext arrow.ExtensionType) arrow.Field {
	f.Type = ext.StorageType()
	f.Metadata = arrow.NewMetadata(
		append(slices.Clone(f.Metadata.Keys()), ipc.ExtensionMetadataKeyName, ipc.ExtensionTypeKeyName),
		append(slices.Clone(f.Metadata.Values()), ext.Serialize(), ext.ExtensionName()))
	return f
}

func writableType(dt arrow.DataType) (arrow.DataType, error) {
	var inner []arrow.Field
	switch t := dt.(type) {
	case *arrow.DictionaryType:
		switch t.ValueType.(type) {
		case *arrow.DictionaryType, arrow.ExtensionType:
			return nil, fmt.Errorf("%w: the format has no %s", ErrUnsupported, dt)
		}
		values, err := writableType(t.ValueType)
		if err != nil || values == t.ValueType {
			return dt, err
		}
		return &arrow.DictionaryType{IndexType: t.IndexType, ValueType: values, Ordered: t.Ordered}, nil
	case arrow.ExtensionType:
		storage, err := writableType(t.StorageType())
		if err == nil && storage != t.StorageType() {
			err = fmt.Errorf("%w: %s over a type that holds extension types over dictionaries", ErrUnsupported, dt)
		}
		return dt, err
	case *arrow.MapType:
		inner = []arrow.Field{t.KeyField(), t.ItemField()}
	case arrow.NestedType:
		inner = t.Fields()
	default:
		return dt, nil
	}
	out, changed, err := writable(inner)
	if err != nil || !changed {
		return dt, err
	}
	switch t := dt.(type) {
	case *arrow.ListType:
		return arrow.ListOfField(out[0]), nil
	case *arrow.LargeListType:
		return arrow.LargeListOfField(out[0]), nil
	case *arrow.ListViewType:
		return arrow.ListViewOfField(out[0]), nil
	case *arrow.LargeListViewType:
		return arrow.LargeListViewOfField(out[0]), nil
	case *arrow.FixedSizeListType:
		return arrow.FixedSizeListOfField(t.Len(), out[0]), nil
	case *arrow.MapType:
		m := arrow.MapOfFields(out[0], out[1])
		m.KeysSorted = t.KeysSorted
		return m, nil
	case *arrow.StructType:
		return arrow.StructOf(out...), nil
	case arrow.UnionType:
		return arrow.UnionOf(t.Mode(), out, t.TypeCodes()), nil
	case *arrow.RunEndEncodedType:
		if out[1].Metadata.Len() == 0 {
			r := arrow.RunEndEncodedOf(out[0].Type, out[1].Type)
			r.ValueNullable = t.ValueNullable
			return r, nil
		}
	}
	return nil, fmt.Errorf("%w: %s, whose values have no metadata to name the extension type", ErrUnsupported, dt)
}

// DecodeSchema reads an encapsulated IPC message of a schema, checked as Decode
// checks one. The error wraps ErrCorrupt.
func DecodeSchema(b []byte) (schema *arrow.Schema, err error) {
	defer func() {
		if p := recover(); p != nil {
			schema, err = nil, fmt.Errorf("arrowio: schema message of %d bytes: %w: %v", len(b), ErrCorrupt, p)
		}
	}()
	if len(b) < prefixBytes || binary.LittleEndian.Uint32(b) != marker {
		return nil, fmt.Errorf("arrowio: schema message of %d bytes: %w: no message", len(b), ErrCorrupt)
	}
	n := int64(binary.LittleEndian.Uint32(b[4:]))
	if n > MaxMetadataBytes || n > int64(len(b)-prefixBytes) {
		return nil, fmt.Errorf("arrowio: schema message of %d bytes: %w: metadata of %d bytes", len(b), ErrCorrupt, n)
	}
	k := &known{meta: append([]byte(nil), b[prefixBytes:prefixBytes+n]...)}
	k.header, err = checkMessage(k.meta)
	if err == nil && k.header.kind != headerSchema {
		err = fmt.Errorf("message is not a schema")
	}
	if err == nil {
		err = k.resolve()
	}
	if err != nil {
		return nil, fmt.Errorf("arrowio: schema message: %w: %w", ErrCorrupt, err)
	}
	return k.schema, nil
}

// resolve makes the schema of its checked message, and lists the dictionaries.
func (k *known) resolve() error {
	own := make([]byte, 0, prefixBytes+len(k.meta))
	own = binary.LittleEndian.AppendUint32(own, marker)
	own = binary.LittleEndian.AppendUint32(own, uint32(len(k.meta)))
	r, err := ipc.NewReader(bytes.NewReader(append(own, k.meta...)))
	if err != nil {
		return err
	}
	defer r.Release()
	schema := r.Schema()
	k.values = make(map[int64]valueType, len(k.header.dicts))
	for i, f := range schema.Fields() {
		if err := k.check(f.Type, k.header.encodings.kid(i)); err != nil {
			return fmt.Errorf("field %d (%s): %w", i, clip(f.Name), err)
		}
	}
	k.schema, k.none = schema, memory.NewBufferBytes([]byte{})
	return nil
}

// check refuses parameters that the library takes but cannot work with, and
// notes the types of dictionaries.
func (k *known) check(dt arrow.DataType, enc encoding) error {
	switch t := dt.(type) {
	case arrow.ExtensionType:
		return k.check(t.StorageType(), enc)
	case *arrow.DictionaryType:
		if had, ok := k.values[enc.id]; ok && !arrow.TypeEqual(had.dt, t.ValueType) {
			return fmt.Errorf("dictionary %d has values of type %s and %s", enc.id, had.dt, t.ValueType)
		}
		inner := encoding{kids: enc.kids}
		k.values[enc.id] = valueType{dt: t.ValueType, enc: inner}
		return k.check(t.ValueType, inner)
	case arrow.DecimalType:
		digits := int32(maxDigits(t))
		if t.GetPrecision() < 1 || t.GetPrecision() > digits || t.GetScale() < -digits || t.GetScale() > digits {
			return fmt.Errorf("%w: %s: want a precision of 1 to %d and a scale of at most that", ErrUnsupported, t, digits)
		}
	case *arrow.FixedSizeBinaryType:
		if t.ByteWidth < 0 {
			return fmt.Errorf("%s: negative width", t)
		}
	case arrow.NestedType:
		for i, f := range t.Fields() {
			if err := k.check(f.Type, enc.kid(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxDigits is how many decimal digits always fit.
func maxDigits(t arrow.DecimalType) int {
	switch t.BitWidth() {
	case 32:
		return 9
	case 64:
		return 18
	case 128:
		return 38
	}
	return 76
}
