package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Encode writes f. Tensors are laid out by falling element size, then by name,
// and the header is padded to 8 bytes, so that each tensor is aligned to its
// element size; metadata is sorted. Every error is a *FormatError.
func Encode(f File) ([]byte, error) {
	tensors := slices.Clone(f.Tensors)
	slices.SortFunc(tensors, func(a, b Tensor) int {
		if d := b.DType.Size() - a.DType.Size(); d != 0 {
			return int(d)
		}
		return strings.Compare(a.Name, b.Name)
	})
	if len(tensors) > MaxTensors {
		return nil, fail(ErrHeader, "%d tensors, at most %d", len(tensors), MaxTensors)
	}
	names := make(map[string]bool, len(tensors))
	total := int64(0)
	for _, t := range tensors {
		switch {
		case !utf8.ValidString(t.Name):
			return nil, fail(ErrHeader, "tensor name %q is not UTF-8", clip(t.Name))
		case t.Name == metadataKey:
			return nil, t.fail(ErrHeader, "the name is reserved")
		case names[t.Name]:
			return nil, t.fail(ErrDuplicate, "")
		}
		names[t.Name] = true
		if err := t.check(int64(len(t.Data))); err != nil {
			return nil, err
		}
		total += int64(len(t.Data))
	}
	head, err := header(f.Metadata, tensors)
	if err != nil {
		return nil, err
	}
	if len(head) > MaxHeaderBytes {
		return nil, fail(ErrHeader, "%d bytes, at most %d", len(head), MaxHeaderBytes)
	}
	out := make([]byte, lengthBytes, lengthBytes+int64(len(head))+total)
	binary.LittleEndian.PutUint64(out, uint64(len(head)))
	out = append(out, head...)
	for _, t := range tensors {
		out = append(out, t.Data...)
	}
	return out, nil
}

func header(metadata map[string]string, tensors []Tensor) ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	if len(metadata) > 0 {
		quote(&b, metadataKey)
		b.WriteString(":{")
		for i, k := range slices.Sorted(maps.Keys(metadata)) {
			v := metadata[k]
			if !utf8.ValidString(k) || !utf8.ValidString(v) {
				return nil, fail(ErrHeader, "metadata %q is not UTF-8", clip(k))
			}
			if i > 0 {
				b.WriteByte(',')
			}
			quote(&b, k)
			b.WriteByte(':')
			quote(&b, v)
		}
		b.WriteByte('}')
	}
	at := int64(0)
	for i, t := range tensors {
		if i > 0 || len(metadata) > 0 {
			b.WriteByte(',')
		}
		quote(&b, t.Name)
		b.WriteString(`:{"dtype":`)
		quote(&b, string(t.DType))
		b.WriteString(`,"shape":[`)
		for j, d := range t.Shape {
			if j > 0 {
				b.WriteByte(',')
			}
			b.WriteString(strconv.FormatInt(d, 10))
		}
		b.WriteString(`],"data_offsets":[`)
		b.WriteString(strconv.FormatInt(at, 10))
		at += int64(len(t.Data))
		b.WriteByte(',')
		b.WriteString(strconv.FormatInt(at, 10))
		b.WriteString(`]}`)
	}
	b.WriteByte('}')
	for b.Len()%8 != 0 {
		b.WriteByte(' ')
	}
	return b.Bytes(), nil
}

// quote writes s, which is valid UTF-8, as a JSON string.
func quote(b *bytes.Buffer, s string) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic("safetensors: encode a string: " + err.Error()) // cannot: strings always encode
	}
	b.Truncate(b.Len() - 1) // the encoder's newline
}
