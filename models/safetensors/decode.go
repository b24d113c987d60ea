package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"unicode/utf8"
)

const (
	lengthBytes = 8
	metadataKey = "__metadata__"
)

// Decode reads a whole file. The tensors' Data alias b, which must stay
// unchanged while they are used. Every error is a *FormatError.
func Decode(b []byte) (*File, error) {
	if len(b) < lengthBytes {
		return nil, fail(ErrTruncated, "%d bytes, a file has at least %d", len(b), lengthBytes)
	}
	n := binary.LittleEndian.Uint64(b)
	rest := b[lengthBytes:]
	if n > MaxHeaderBytes {
		return nil, fail(ErrHeader, "length of %d bytes, at most %d", n, MaxHeaderBytes)
	}
	if n > uint64(len(rest)) {
		return nil, fail(ErrTruncated, "header of %d bytes, %d are left", n, len(rest))
	}
	head, data := rest[:n], rest[n:]
	if len(head) == 0 || head[0] != '{' {
		return nil, fail(ErrHeader, "does not begin with {")
	}
	if !utf8.Valid(head) {
		return nil, fail(ErrHeader, "not UTF-8")
	}
	p := &parser{dec: json.NewDecoder(bytes.NewReader(head))}
	p.dec.UseNumber()
	f, spans, err := p.file()
	if err != nil {
		var fe *FormatError
		if errors.As(err, &fe) {
			return nil, err
		}
		return nil, fail(ErrHeader, "%v", err)
	}
	return f, f.place(spans, data)
}

type span struct {
	begin, end int64
	tensor     int
}

// place cuts data into the tensors and proves that they tile it exactly.
func (f *File) place(spans []span, data []byte) error {
	slices.SortFunc(spans, func(a, b span) int {
		if a.begin != b.begin {
			return cmp64(a.begin, b.begin)
		}
		if a.end != b.end {
			return cmp64(a.end, b.end)
		}
		return a.tensor - b.tensor
	})
	at := int64(0)
	ordered := make([]Tensor, 0, len(spans))
	for _, s := range spans {
		t := f.Tensors[s.tensor]
		if s.end < s.begin {
			return t.fail(ErrOffsets, "ends at %d before it begins at %d", s.end, s.begin)
		}
		if s.begin < at {
			return t.fail(ErrOffsets, "begins at %d, inside the tensor that ends at %d", s.begin, at)
		}
		if s.begin > at {
			return t.fail(ErrOffsets, "begins at %d, leaving a gap from %d", s.begin, at)
		}
		if s.end > int64(len(data)) {
			return t.fail(ErrTruncated, "ends at %d, the file has %d bytes of tensors", s.end, len(data))
		}
		t.Data = data[s.begin:s.end:s.end]
		if err := t.check(s.end - s.begin); err != nil {
			return err
		}
		ordered = append(ordered, t)
		at = s.end
	}
	if at != int64(len(data)) {
		return fail(ErrTrailing, "%d", int64(len(data))-at)
	}
	f.Tensors = ordered
	return nil
}

func cmp64(a, b int64) int {
	if a < b {
		return -1
	}
	return 1
}

// parser walks the header token by token: decoding into a map would hide
// duplicate keys, which is how one file shows two readers two models.
type parser struct{ dec *json.Decoder }

func (p *parser) file() (*File, []span, error) {
	f := &File{}
	var spans []span
	seen := map[string]bool{}
	err := p.object(func(key string) error {
		if seen[key] {
			return &FormatError{Tensor: key, Err: ErrDuplicate}
		}
		seen[key] = true
		if key == metadataKey {
			return p.metadata(f)
		}
		if len(f.Tensors) == MaxTensors {
			return fail(ErrHeader, "more than %d tensors", MaxTensors)
		}
		t, s, err := p.tensor(key)
		if err != nil {
			return err
		}
		s.tensor = len(f.Tensors)
		f.Tensors, spans = append(f.Tensors, t), append(spans, s)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	// The header may be padded with spaces, nothing else.
	if tok, err := p.dec.Token(); err != io.EOF {
		return nil, nil, fail(ErrHeader, "more after the JSON object: %v %v", tok, err)
	}
	return f, spans, nil
}

func (p *parser) metadata(f *File) error {
	f.Metadata = map[string]string{}
	return p.object(func(key string) error {
		if _, dup := f.Metadata[key]; dup {
			return fail(ErrDuplicate, "metadata %q", clip(key))
		}
		tok, err := p.dec.Token()
		if err != nil {
			return err
		}
		v, ok := tok.(string)
		if !ok {
			return fail(ErrHeader, "metadata %q is not a string", clip(key))
		}
		f.Metadata[key] = v
		return nil
	})
}

func (p *parser) tensor(name string) (Tensor, span, error) {
	t := Tensor{Name: name}
	var s span
	const dtype, shape, offsets = 1, 2, 4
	have := 0
	err := p.object(func(key string) error {
		bit := map[string]int{"dtype": dtype, "shape": shape, "data_offsets": offsets}[key]
		if bit == 0 {
			return t.fail(ErrHeader, "unknown field %q", clip(key))
		}
		if have&bit != 0 {
			return t.fail(ErrDuplicate, "field %q", key)
		}
		have |= bit
		switch bit {
		case dtype:
			tok, err := p.dec.Token()
			if err != nil {
				return err
			}
			v, ok := tok.(string)
			if !ok {
				return t.fail(ErrHeader, "dtype is not a string")
			}
			t.DType = DType(v)
			if t.DType.Size() == 0 {
				return t.fail(ErrDType, "%q", clip(v))
			}
		case shape:
			v, err := p.ints(t, MaxDims, ErrShape)
			if err != nil {
				return err
			}
			t.Shape = v
		case offsets:
			v, err := p.ints(t, 2, ErrOffsets)
			if err != nil {
				return err
			}
			if len(v) != 2 {
				return t.fail(ErrOffsets, "%d numbers, want 2", len(v))
			}
			s.begin, s.end = v[0], v[1]
		}
		return nil
	})
	if err == nil && have != dtype|shape|offsets {
		err = t.fail(ErrHeader, "dtype, shape and data_offsets must all be there")
	}
	return t, s, err
}

// ints reads an array of at most most non-negative integers.
func (p *parser) ints(t Tensor, most int, sentinel error) ([]int64, error) {
	if err := p.delim('['); err != nil {
		return nil, err
	}
	out := []int64{}
	for p.dec.More() {
		tok, err := p.dec.Token()
		if err != nil {
			return nil, err
		}
		num, ok := tok.(json.Number)
		if !ok {
			return nil, t.fail(sentinel, "not a number")
		}
		v, err := strconv.ParseInt(num.String(), 10, 64)
		if err != nil || v < 0 || v > maxExact {
			return nil, t.fail(sentinel, "%s is not an integer from 0 to 2^53", clip(num.String()))
		}
		if len(out) == most {
			return nil, t.fail(sentinel, "more than %d numbers", most)
		}
		out = append(out, v)
	}
	return out, p.delim(']')
}

func (p *parser) object(visit func(key string) error) error {
	if err := p.delim('{'); err != nil {
		return err
	}
	for p.dec.More() {
		tok, err := p.dec.Token()
		if err != nil {
			return err
		}
		key, ok := tok.(string)
		if !ok {
			return fmt.Errorf("key is not a string")
		}
		if err := visit(key); err != nil {
			return err
		}
	}
	return p.delim('}')
}

func (p *parser) delim(want json.Delim) error {
	tok, err := p.dec.Token()
	if err != nil {
		return err
	}
	if got, ok := tok.(json.Delim); !ok || got != want {
		return fmt.Errorf("found %v where %v belongs", tok, want)
	}
	return nil
}

func fail(sentinel error, format string, args ...any) error {
	return &FormatError{Detail: fmt.Sprintf(format, args...), Err: sentinel}
}
