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

	"github.com/stokehold/stokehold/governance/celgo"
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
// The result is a ref.Val, a map[string]any or a []any, which cel-go takes as they
// are. It does not alias b.
func decodeData(b []byte, t *dataType) (any, error) {
	v, err := decodeValue(b, t, &slab{})
	if err != nil {
		return nil, err
	}
	return v.Boxed(), nil
}

// decodeValue is decodeData with objects that are valid until the slab's reset.
// All strings share one copy of b.
func decodeValue(b []byte, t *dataType, slab *slab) (celgo.Value, error) {
	d := jsonDecoder{b: string(b), slab: slab}
	d.space()
	var v celgo.Value
	if err := d.value(t, 0, &v); err != nil {
		return v, err
	}
	d.space()
	if d.i != len(d.b) {
		return v, d.errorf("unexpected bytes after the value")
	}
	if v.Kind() == celgo.Absent {
		return v, d.errorf("the data are null")
	}
	return v, nil
}

// slab is memory for decoded objects that is used again for the next event. The
// zero value is empty.
type slab struct {
	objects []object
	values  []celgo.Value
}

// Sizes of a slab that is kept; events with more objects or fields allocate them.
const (
	slabObjects = 32
	slabValues  = 256
)

// object returns an object without fields set.
func (s *slab) object(t *dataType) *object {
	n := len(t.fields)
	if len(s.objects) == cap(s.objects) {
		s.objects = make([]object, 0, min(max(1, 4*cap(s.objects)), slabObjects))
	}
	if len(s.values)+n > cap(s.values) {
		s.values = make([]celgo.Value, 0, max(n, min(4*cap(s.values), slabValues)))
	}
	at := len(s.values)
	s.values = s.values[:at+n]
	s.objects = append(s.objects, object{typ: t, vals: s.values[at : at+n : at+n]})
	return &s.objects[len(s.objects)-1]
}

// reset takes back all objects. None may be used any more.
func (s *slab) reset() {
	clear(s.objects)
	clear(s.values)
	s.objects, s.values = s.objects[:0], s.values[:0]
}

type jsonDecoder struct {
	b    string
	i    int
	slab *slab
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
	if len(d.b)-d.i < len(s) || d.b[d.i:d.i+len(s)] != s {
		return d.errorf("invalid JSON")
	}
	d.i += len(s)
	return nil
}

// value reads one value to out, in place, since a Value is large. JSON null gives
// Absent for a typed value and CEL null for a dyn one.
func (d *jsonDecoder) value(t *dataType, depth int, out *celgo.Value) error {
	if depth > maxDataDepth {
		return d.errorf("nested deeper than %d", maxDataDepth)
	}
	switch c := d.peek(); {
	case c == '"':
		s, err := d.string()
		if err != nil {
			return err
		}
		return d.convertString(s, t, out)
	case c == '-' || (c >= '0' && c <= '9'):
		return d.number(t, out)
	case c == '{':
		switch t.kind {
		case kindObject:
			return d.object(t, depth, out)
		case kindMap:
			return d.mapOf(t.elem, depth, out)
		case kindDyn:
			return d.mapOf(dynType, depth, out)
		default:
			return d.mismatch("an object", t)
		}
	case c == '[':
		switch t.kind {
		case kindList:
			return d.list(t.elem, depth, out)
		case kindDyn:
			return d.list(dynType, depth, out)
		default:
			return d.mismatch("an array", t)
		}
	case c == 'n':
		*out = celgo.Value{}
		if t.kind == kindDyn {
			*out = celgo.OfNull()
		}
		return d.literal("null")
	case c == 't', c == 'f':
		word := "true"
		if c == 'f' {
			word = "false"
		}
		if err := d.literal(word); err != nil {
			return err
		}
		if t.kind != kindBool && t.kind != kindDyn {
			return d.mismatch("a boolean", t)
		}
		*out = celgo.OfBool(c == 't')
		return nil
	default:
		return d.errorf("invalid JSON")
	}
}

func (d *jsonDecoder) mismatch(got string, t *dataType) error {
	return d.errorf("%s where %s belongs", got, t.cel)
}

func (d *jsonDecoder) convertString(s string, t *dataType, out *celgo.Value) error {
	switch t.kind {
	case kindString, kindDyn:
		out.SetString(s)
	case kindBytes:
		raw, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return d.errorf("not base64: %v", err)
		}
		*out = celgo.OfOther(types.Bytes(raw))
	case kindTimestamp:
		at, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return d.errorf("not an RFC 3339 time")
		}
		*out = celgo.OfTimestamp(at)
	default:
		return d.mismatch("a string", t)
	}
	return nil
}

func (d *jsonDecoder) object(t *dataType, depth int, out *celgo.Value) error {
	o := d.slab.object(t)
	*out = celgo.OfOther(o)
	var seenBits uint64
	var seenMore map[int]bool
	next := 0 // the field that is to be expected: most writers keep to one order
	for more, err := d.open('}'); ; more, err = d.more('}') {
		if !more {
			return err
		}
		i := next
		if i < len(t.fields) && t.fields[i].quoted != "" && strings.HasPrefix(d.b[d.i:], t.fields[i].quoted) {
			d.i += len(t.fields[i].quoted)
			d.space()
		} else {
			key, err := d.key()
			if err != nil {
				return err
			}
			if i = t.find(key); i < 0 {
				if err := d.ignored(t, key, depth); err != nil {
					return err
				}
				continue
			}
		}
		next = i + 1
		if i < 64 {
			if seenBits&(1<<i) != 0 {
				return d.errorf("duplicate key %q", t.fields[i].name)
			}
			seenBits |= 1 << i
		} else {
			if seenMore[i] {
				return d.errorf("duplicate key %q", t.fields[i].name)
			}
			if seenMore == nil {
				seenMore = map[int]bool{}
			}
			seenMore[i] = true
		}
		v := &o.vals[i]
		if err := d.value(t.fields[i].typ, depth+1, v); err != nil {
			return err
		}
		if v.Kind() == celgo.Null {
			*v = celgo.Value{}
		}
	}
}

// ignored reads the value of a key that the type does not have.
func (d *jsonDecoder) ignored(t *dataType, key string, depth int) error {
	for j := range t.fields {
		if strings.EqualFold(t.fields[j].name, key) {
			return d.errorf("key %q differs from field %q only in case", key, t.fields[j].name)
		}
	}
	return d.skip(depth + 1)
}

// skip reads a value of any type.
func (d *jsonDecoder) skip(depth int) error {
	var v celgo.Value
	return d.value(dynType, depth, &v)
}

func (d *jsonDecoder) mapOf(elem *dataType, depth int, out *celgo.Value) error {
	m := map[string]any{}
	*out = celgo.OfOther(m)
	for more, err := d.open('}'); ; more, err = d.more('}') {
		if !more {
			return err
		}
		key, err := d.key()
		if err != nil {
			return err
		}
		if _, dup := m[key]; dup {
			return d.errorf("duplicate key %q", key)
		}
		var v celgo.Value
		if err := d.value(elem, depth+1, &v); err != nil {
			return err
		}
		m[key] = boxed(v)
	}
}

func (d *jsonDecoder) list(elem *dataType, depth int, out *celgo.Value) error {
	l := []any{}
	for more, err := d.open(']'); ; more, err = d.more(']') {
		if !more {
			*out = celgo.OfOther(l)
			return err
		}
		var v celgo.Value
		if err := d.value(elem, depth+1, &v); err != nil {
			return err
		}
		l = append(l, boxed(v))
	}
}

// boxed returns what a map or list holds for a value: null for one that is absent.
func boxed(v celgo.Value) any {
	if v.Kind() == celgo.Absent {
		return types.NullValue
	}
	return v.Boxed()
}

// open goes past the bracket that begins an object or array. It is false for one
// that is empty, whose end it goes past too.
func (d *jsonDecoder) open(end byte) (more bool, err error) {
	d.i++
	d.space()
	if d.peek() == end {
		d.i++
		return false, nil
	}
	return true, nil
}

// more goes past what follows a member or element: a comma, or the end, at which
// it is false.
func (d *jsonDecoder) more(end byte) (more bool, err error) {
	d.space()
	switch d.peek() {
	case ',':
		d.i++
		d.space()
		return true, nil
	case end:
		d.i++
		return false, nil
	}
	if end == ']' {
		return false, d.errorf("invalid JSON: array not closed")
	}
	return false, d.errorf("invalid JSON: object not closed")
}

// key reads a member's key and goes to its value.
func (d *jsonDecoder) key() (string, error) {
	if d.peek() != '"' {
		return "", d.errorf("invalid JSON: a key must be a string")
	}
	key, err := d.string()
	if err != nil {
		return "", err
	}
	d.space()
	if d.peek() != ':' {
		return "", d.errorf("invalid JSON: no colon after a key")
	}
	d.i++
	d.space()
	return key, nil
}

// string reads a string; the result is a part of the input unless that has escapes.
func (d *jsonDecoder) string() (string, error) {
	start := d.i + 1
	escaped, ascii := false, true
	for i := start; i < len(d.b); i++ {
		if plainInString[d.b[i]] {
			continue
		}
		switch c := d.b[i]; {
		case c == '"':
			raw := d.b[start:i]
			d.i = i + 1
			if !ascii && !utf8.ValidString(raw) {
				return "", d.errorf("a string is not UTF-8")
			}
			if !escaped {
				return raw, nil
			}
			var s string
			if err := json.Unmarshal([]byte(d.b[start-1:i+1]), &s); err != nil {
				return "", d.errorf("invalid string: %v", err)
			}
			return s, nil
		case c == '\\':
			escaped = true
			i++
		case c < 0x20:
			d.i = i
			return "", d.errorf("control character in a string")
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return "", d.errorf("string not closed")
}

// plainInString has the bytes that mean themselves in a string: ASCII without controls, the quote and
// the backslash.
var plainInString = func() (plain [256]bool) { //nolint:gochecknoglobals // a constant table
	for c := byte(' '); c < utf8.RuneSelf; c++ {
		plain[c] = c != '"' && c != '\\'
	}
	return plain
}()

// shortNumber reads a number of at most 15 digits without an exponent, which is exact
// in each type, in one go; false, and nothing read, for any other.
func (d *jsonDecoder) shortNumber(t *dataType, out *celgo.Value) bool {
	b, i := d.b, d.i
	if i == len(b) {
		return false
	}
	neg := b[i] == '-'
	if neg {
		i++
	}
	n, digits, fraction := uint64(0), 0, 0
	for ; i < len(b) && b[i]-'0' <= 9; i++ {
		n = n*10 + uint64(b[i]-'0')
		digits++
	}
	if digits == 0 || digits > 15 || digits > 1 && b[i-digits] == '0' {
		return false
	}
	if i < len(b) && b[i] == '.' {
		for i++; i < len(b) && b[i]-'0' <= 9; i++ {
			n = n*10 + uint64(b[i]-'0')
			fraction++
		}
		if fraction == 0 || digits+fraction > 15 {
			return false
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		return false
	}
	switch {
	case t.kind == kindDouble || t.kind == kindDyn:
		f := float64(n) / powersOf10[fraction] // exact doubles, so that one division rounds once
		if neg {
			f = -f
		}
		out.SetDouble(f)
	case t.kind == kindInt && fraction == 0:
		v := int64(n)
		if neg {
			v = -v
		}
		out.SetInt(v)
	default:
		return false
	}
	d.i = i
	return true
}

func (d *jsonDecoder) number(t *dataType, out *celgo.Value) error {
	if d.shortNumber(t, out) {
		return nil
	}
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
		return d.errorf("invalid number")
	}
	if d.peek() == '.' {
		integer = false
		d.i++
		if !d.digits() {
			return d.errorf("invalid number")
		}
	}
	if c := d.peek(); c == 'e' || c == 'E' {
		integer = false
		d.i++
		if c := d.peek(); c == '+' || c == '-' {
			d.i++
		}
		if !d.digits() {
			return d.errorf("invalid number")
		}
	}
	raw := d.b[start:d.i]
	switch t.kind {
	case kindInt, kindDuration:
		if !integer {
			return d.errorf("a number that is not an integer")
		}
		n, err := strconv.ParseInt(raw, 10, 64)
		if err != nil {
			return d.errorf("a number that does not fit 64 bits")
		}
		if t.kind == kindDuration {
			*out = celgo.OfDuration(time.Duration(n))
			return nil
		}
		*out = celgo.OfInt(n)
	case kindUint:
		n, err := strconv.ParseUint(raw, 10, 64)
		if !integer || err != nil {
			return d.errorf("a number that is not an unsigned 64-bit integer")
		}
		*out = celgo.OfUint(n)
	case kindDouble, kindDyn:
		f, err := strconv.ParseFloat(raw, 64)
		if err != nil || math.IsInf(f, 0) {
			return d.errorf("a number that does not fit a double")
		}
		*out = celgo.OfDouble(f)
	default:
		return d.mismatch("a number", t)
	}
	return nil
}

// powersOf10 are those that are exact doubles, as far as shortNumber divides by them
// (W. D. Clinger, How to Read Floating Point Numbers Accurately, 1990).
var powersOf10 = [...]float64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15} //nolint:gochecknoglobals // a constant table

func (d *jsonDecoder) digits() bool {
	start := d.i
	for d.i < len(d.b) && d.b[d.i] >= '0' && d.b[d.i] <= '9' {
		d.i++
	}
	return d.i > start
}
