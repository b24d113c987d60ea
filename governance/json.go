package governance

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"cel.dev/cel-go/common/types"
)

// maxDataDepth bounds the nesting of event data.
const maxDataDepth = 64

// decodeData reads JSON into CEL values in one pass, guided by its type. It is
// stricter than encoding/json wherever a consumer could read the same bytes
// differently from the policy: duplicate keys, keys that differ from a field's
// name only in case (which encoding/json would take for the field) and invalid
// UTF-8 are errors. Unknown fields of a typed object are syntax-checked and
// ignored; the bus's registry refuses them.
//
// The result is a ref.Val, a map[string]any or a []any, which cel-go takes as
// they are. It does not alias b.
func decodeData(b []byte, t *dataType) (any, error) {
	d := jsonDecoder{b: b}
	d.space()
	v, err := d.value(t, 0)
	if err != nil {
		return nil, err
	}
	d.space()
	if d.i != len(d.b) {
		return nil, d.errorf("unexpected bytes after the value")
	}
	if v == nil {
		return nil, d.errorf("the data are null")
	}
	return v, nil
}

type jsonDecoder struct {
	b []byte
	i int
}

func (d *jsonDecoder) errorf(format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d: %s", ErrData, d.i, fmt.Sprintf(format, args...))
}

func (d *jsonDecoder) space() {
	for d.i < len(d.b) {
		switch d.b[d.i] {
		case ' ', '\t', '\n', '\r':
			d.i++
		default:
			return
		}
	}
}

func (d *jsonDecoder) peek() byte {
	if d.i < len(d.b) {
		return d.b[d.i]
	}
	return 0
}

func (d *jsonDecoder) literal(s string) error {
	if len(d.b)-d.i < len(s) || string(d.b[d.i:d.i+len(s)]) != s {
		return d.errorf("invalid JSON")
	}
	d.i += len(s)
	return nil
}

// value reads one value. JSON null gives nil for a typed value, which means
// absent, and CEL null for a dyn one.
func (d *jsonDecoder) value(t *dataType, depth int) (any, error) {
	if depth > maxDataDepth {
		return nil, d.errorf("nested deeper than %d", maxDataDepth)
	}
	switch c := d.peek(); {
	case c == 'n':
		if err := d.literal("null"); err != nil {
			return nil, err
		}
		if t.kind == kindDyn {
			return types.NullValue, nil
		}
		return nil, nil
	case c == '{':
		switch t.kind {
		case kindObject:
			return d.object(t, depth)
		case kindMap:
			return d.mapOf(t.elem, depth)
		case kindDyn:
			return d.mapOf(dynType, depth)
		default:
			return nil, d.mismatch("an object", t)
		}
	case c == '[':
		switch t.kind {
		case kindList:
			return d.list(t.elem, depth)
		case kindDyn:
			return d.list(dynType, depth)
		default:
			return nil, d.mismatch("an array", t)
		}
	case c == '"':
		s, err := d.string()
		if err != nil {
			return nil, err
		}
		return d.convertString(string(s), t)
	case c == 't', c == 'f':
		v := types.Bool(c == 't')
		var err error
		if c == 't' {
			err = d.literal("true")
		} else {
			err = d.literal("false")
		}
		if err != nil {
			return nil, err
		}
		if t.kind != kindBool && t.kind != kindDyn {
			return nil, d.mismatch("a boolean", t)
		}
		return v, nil
	case c == '-' || (c >= '0' && c <= '9'):
		return d.number(t)
	default:
		return nil, d.errorf("invalid JSON")
	}
}

func (d *jsonDecoder) mismatch(got string, t *dataType) error {
	return d.errorf("%s where %s belongs", got, t.cel)
}

func (d *jsonDecoder) convertString(s string, t *dataType) (any, error) {
	switch t.kind {
	case kindString, kindDyn:
		return types.String(s), nil
	case kindBytes:
		raw, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return nil, d.errorf("not base64: %v", err)
		}
		return types.Bytes(raw), nil
	case kindTimestamp:
		at, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return nil, d.errorf("not an RFC 3339 time")
		}
		return types.Timestamp{Time: at}, nil
	default:
		return nil, d.mismatch("a string", t)
	}
}

func (d *jsonDecoder) object(t *dataType, depth int) (any, error) {
	o := &object{typ: t, vals: make([]any, len(t.fields))}
	var seenBits uint64
	var seenMore map[int]bool
	err := d.members(func(key []byte) error {
		i := t.find(key)
		if i < 0 {
			for j := range t.fields {
				if strings.EqualFold(t.fields[j].name, string(key)) {
					return d.errorf("key %q differs from field %q only in case", key, t.fields[j].name)
				}
			}
			_, err := d.value(dynType, depth+1)
			return err
		}
		if i < 64 {
			if seenBits&(1<<i) != 0 {
				return d.errorf("duplicate key %q", key)
			}
			seenBits |= 1 << i
		} else {
			if seenMore[i] {
				return d.errorf("duplicate key %q", key)
			}
			if seenMore == nil {
				seenMore = map[int]bool{}
			}
			seenMore[i] = true
		}
		v, err := d.value(t.fields[i].typ, depth+1)
		if v == types.NullValue {
			v = nil
		}
		o.vals[i] = v
		return err
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

func (d *jsonDecoder) mapOf(elem *dataType, depth int) (any, error) {
	m := map[string]any{}
	err := d.members(func(key []byte) error {
		k := string(key)
		if _, dup := m[k]; dup {
			return d.errorf("duplicate key %q", key)
		}
		v, err := d.value(elem, depth+1)
		if v == nil {
			v = types.NullValue
		}
		m[k] = v
		return err
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// members reads an object's members, handing each key (valid until f reads on)
// to f with the decoder at its value.
func (d *jsonDecoder) members(f func(key []byte) error) error {
	d.i++ // '{'
	d.space()
	if d.peek() == '}' {
		d.i++
		return nil
	}
	for {
		if d.peek() != '"' {
			return d.errorf("invalid JSON: a key must be a string")
		}
		key, err := d.string()
		if err != nil {
			return err
		}
		d.space()
		if d.peek() != ':' {
			return d.errorf("invalid JSON: no colon after a key")
		}
		d.i++
		d.space()
		if err := f(key); err != nil {
			return err
		}
		d.space()
		switch d.peek() {
		case ',':
			d.i++
			d.space()
		case '}':
			d.i++
			return nil
		default:
			return d.errorf("invalid JSON: object not closed")
		}
	}
}

func (d *jsonDecoder) list(elem *dataType, depth int) (any, error) {
	d.i++ // '['
	d.space()
	out := []any{}
	if d.peek() == ']' {
		d.i++
		return out, nil
	}
	for {
		v, err := d.value(elem, depth+1)
		if err != nil {
			return nil, err
		}
		if v == nil {
			v = types.NullValue
		}
		out = append(out, v)
		d.space()
		switch d.peek() {
		case ',':
			d.i++
			d.space()
		case ']':
			d.i++
			return out, nil
		default:
			return nil, d.errorf("invalid JSON: array not closed")
		}
	}
}

// string reads a string; the result may alias the input.
func (d *jsonDecoder) string() ([]byte, error) {
	start := d.i + 1
	escaped := false
	for i := start; i < len(d.b); i++ {
		switch c := d.b[i]; {
		case c == '"':
			raw := d.b[start:i]
			d.i = i + 1
			if !utf8.Valid(raw) {
				return nil, d.errorf("a string is not UTF-8")
			}
			if !escaped {
				return raw, nil
			}
			var s string
			if err := json.Unmarshal(d.b[start-1:i+1], &s); err != nil {
				return nil, d.errorf("invalid string: %v", err)
			}
			return []byte(s), nil
		case c == '\\':
			escaped = true
			i++
		case c < 0x20:
			d.i = i
			return nil, d.errorf("control character in a string")
		}
	}
	return nil, d.errorf("string not closed")
}

func (d *jsonDecoder) number(t *dataType) (any, error) {
	start := d.i
	integer := true
	if d.peek() == '-' {
		d.i++
	}
	switch {
	case d.peek() == '0':
		d.i++
	case d.digits():
	default:
		return nil, d.errorf("invalid number")
	}
	if d.peek() == '.' {
		integer = false
		d.i++
		if !d.digits() {
			return nil, d.errorf("invalid number")
		}
	}
	if c := d.peek(); c == 'e' || c == 'E' {
		integer = false
		d.i++
		if c := d.peek(); c == '+' || c == '-' {
			d.i++
		}
		if !d.digits() {
			return nil, d.errorf("invalid number")
		}
	}
	raw := d.b[start:d.i]
	switch t.kind {
	case kindInt, kindDuration:
		if !integer {
			return nil, d.errorf("a number that is not an integer")
		}
		n, ok := smallInt(raw)
		if !ok {
			var err error
			if n, err = strconv.ParseInt(string(raw), 10, 64); err != nil {
				return nil, d.errorf("a number that does not fit 64 bits")
			}
		}
		if t.kind == kindDuration {
			return types.Duration{Duration: time.Duration(n)}, nil
		}
		return types.Int(n), nil
	case kindUint:
		n, err := strconv.ParseUint(string(raw), 10, 64)
		if !integer || err != nil {
			return nil, d.errorf("a number that is not an unsigned 64-bit integer")
		}
		return types.Uint(n), nil
	case kindDouble, kindDyn:
		f, ok := smallFloat(raw)
		if !ok {
			var err error
			if f, err = strconv.ParseFloat(string(raw), 64); err != nil || math.IsInf(f, 0) {
				return nil, d.errorf("a number that does not fit a double")
			}
		}
		return types.Double(f), nil
	default:
		return nil, d.mismatch("a number", t)
	}
}

// smallInt parses an integer of up to 18 digits, which can't overflow, without
// the string that strconv wants.
func smallInt(b []byte) (int64, bool) {
	neg := b[0] == '-'
	if neg {
		b = b[1:]
	}
	if len(b) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		n = n*10 + int64(c-'0')
	}
	if neg {
		n = -n
	}
	return n, true
}

var powersOf10 = [...]float64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22} //nolint:gochecknoglobals // a constant table

// smallFloat parses a decimal whose digits and power of ten are exact doubles
// (below 2^53, up to 10^22), so that one division rounds once and correctly
// (W. D. Clinger, How to Read Floating Point Numbers Accurately, 1990).
func smallFloat(b []byte) (float64, bool) {
	neg := b[0] == '-'
	if neg {
		b = b[1:]
	}
	var n uint64
	digits, fraction, seenDot := 0, 0, false
	for _, c := range b {
		switch {
		case c == '.':
			seenDot = true
		case c >= '0' && c <= '9':
			n = n*10 + uint64(c-'0')
			if n > 0 {
				digits++
			}
			if seenDot {
				fraction++
			}
		default:
			return 0, false
		}
		if digits > 15 || fraction > 22 {
			return 0, false
		}
	}
	f := float64(n) / powersOf10[fraction]
	if neg {
		f = -f
	}
	return f, true
}

func (d *jsonDecoder) digits() bool {
	start := d.i
	for d.i < len(d.b) && d.b[d.i] >= '0' && d.b[d.i] <= '9' {
		d.i++
	}
	return d.i > start
}
