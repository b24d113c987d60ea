package arrowio

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// EncodeSchema returns the encapsulated IPC message of a schema.
func EncodeSchema(schema *arrow.Schema) []byte {
	p := ipc.GetSchemaPayload(schema, memory.NewGoAllocator())
	defer p.Release()
	meta := p.Meta()
	defer meta.Release()
	n := pad(prefixBytes+int64(meta.Len())) - prefixBytes
	out := make([]byte, prefixBytes+n)
	binary.LittleEndian.PutUint32(out, marker)
	binary.LittleEndian.PutUint32(out[4:], uint32(n))
	copy(out[prefixBytes:], meta.Bytes())
	return out
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
	err = checkMessage(k.meta, &k.header)
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
	k.schema = schema
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
