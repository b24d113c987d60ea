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
	meta := append([]byte(nil), b[prefixBytes:prefixBytes+n]...)
	h, err := checkMessage(meta)
	if err == nil && h.kind != headerSchema {
		err = fmt.Errorf("message is not a schema")
	}
	if err != nil {
		return nil, fmt.Errorf("arrowio: schema message: %w: %w", ErrCorrupt, err)
	}
	own := append(append([]byte(nil), b[:prefixBytes]...), meta...)
	r, err := ipc.NewReader(bytes.NewReader(own))
	if err != nil {
		return nil, fmt.Errorf("arrowio: schema message: %w: %w", ErrCorrupt, err)
	}
	defer r.Release()
	return r.Schema(), nil
}
