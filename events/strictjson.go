package events

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"unicode/utf8"
)

// maxJSONDepth bounds how deep data may nest.
const maxJSONDepth = 32

// checkJSON reports whether data is one JSON object of shape s (nil: any object)
// in valid UTF-8, without unknown, duplicate or wrongly cased keys. It allocates
// nothing for data of the standard types that holds no maps.
func checkJSON(data []byte, s *shape) error {
	if !utf8.Valid(data) {
		return errors.New("not valid UTF-8")
	}
	sc := scanner{b: data}
	sc.space()
	if sc.peek() != '{' {
		return errors.New("not a JSON object")
	}
	if err := sc.value(s, 0); err != nil {
		return err
	}
	sc.space()
	if sc.i != len(sc.b) {
		return fmt.Errorf("something follows the object at byte %d", sc.i)
	}
	return nil
}

// scanner walks over JSON once. Its errors name the field from the inside out.
type scanner struct {
	b []byte
	i int
}

func (s *scanner) peek() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return
		}
	}
}

func (s *scanner) fault(what string) error {
	if s.i >= len(s.b) {
		return errors.New("JSON ends early")
	}
	return fmt.Errorf("%s at byte %d", what, s.i)
}

func (s *scanner) literal(l string) error {
	if len(s.b)-s.i < len(l) || string(s.b[s.i:s.i+len(l)]) != l {
		return s.fault("malformed JSON")
	}
	s.i += len(l)
	return nil
}

func mismatch(want string) error { return fmt.Errorf("must be %s", want) }

func (s *scanner) value(sh *shape, depth int) error {
	if depth > maxJSONDepth {
		return fmt.Errorf("nested deeper than %d", maxJSONDepth)
	}
	if sh != nil && sh.kind == kindCustom {
		return s.custom(sh, depth)
	}
	free := sh == nil || sh.kind == kindAny
	switch c := s.peek(); c {
	case '{':
		if free || sh.kind == kindMap || sh.kind == kindStruct {
			return s.object(sh, depth)
		}
		return mismatch(sh.want())
	case '[':
		if free || sh.kind == kindArray {
			var elem *shape
			if !free {
				elem = sh.elem
			}
			return s.array(elem, depth)
		}
		return mismatch(sh.want())
	case '"':
		if free || sh.kind == kindString {
			_, _, err := s.str()
			return err
		}
		return mismatch(sh.want())
	case 't', 'f':
		if !free && sh.kind != kindBool {
			return mismatch(sh.want())
		}
		if c == 't' {
			return s.literal("true")
		}
		return s.literal("false")
	case 'n':
		if sh != nil && !sh.null {
			return mismatch(sh.want() + ", not null")
		}
		return s.literal("null")
	default:
		return s.number(sh)
	}
}

func (sh *shape) want() string {
	switch sh.kind {
	case kindStruct, kindMap:
		return "an object"
	case kindArray:
		return "an array"
	case kindString:
		return "a string"
	case kindBool:
		return "true or false"
	case kindInt:
		return "an integer of " + strconv.Itoa(sh.bits) + " bits"
	case kindUint:
		return "an unsigned integer of " + strconv.Itoa(sh.bits) + " bits"
	case kindFloat:
		return "a number of " + strconv.Itoa(sh.bits) + " bits"
	default:
		return "valid"
	}
}

// custom skips one value and has encoding/json decode it.
func (s *scanner) custom(sh *shape, depth int) error {
	if s.peek() == 'n' && sh.null {
		return s.literal("null")
	}
	from := s.i
	if err := s.value(nil, depth); err != nil {
		return err
	}
	if err := json.Unmarshal(s.b[from:s.i], reflect.New(sh.typ).Interface()); err != nil {
		return err
	}
	return nil
}

func (s *scanner) object(sh *shape, depth int) error {
	var seen uint64
	var many map[string]struct{}
	var few [8][]byte
	n := 0
	s.i++
	s.space()
	if s.peek() == '}' {
		s.i++
		return nil
	}
	for {
		s.space()
		if s.peek() != '"' {
			return s.fault("malformed JSON")
		}
		key, escaped, err := s.str()
		if err != nil {
			return err
		}
		if escaped {
			var k string
			if err := json.Unmarshal(s.b[s.i-len(key)-2:s.i], &k); err != nil {
				return err
			}
			key = []byte(k)
		}
		var elem *shape
		struck := sh != nil && sh.kind == kindStruct
		if struck {
			f, ok := sh.fields[string(key)]
			if !ok {
				return fmt.Errorf("unknown field %q", key)
			}
			elem = f.shape
			// Structs of more fields than bits fall through to the keys.
			if f.index < 64 {
				if seen&(1<<f.index) != 0 {
					return fmt.Errorf("duplicate key %q", key)
				}
				seen |= 1 << f.index
			} else {
				struck = false
			}
		} else if sh != nil && sh.kind == kindMap {
			elem = sh.elem
		}
		if !struck {
			for _, k := range few[:min(n, len(few))] {
				if string(k) == string(key) {
					return fmt.Errorf("duplicate key %q", key)
				}
			}
			if n < len(few) {
				few[n] = key
			} else {
				if many == nil {
					many = make(map[string]struct{})
				}
				if _, ok := many[string(key)]; ok {
					return fmt.Errorf("duplicate key %q", key)
				}
				many[string(key)] = struct{}{}
			}
			n++
		}
		s.space()
		if s.peek() != ':' {
			return s.fault("malformed JSON")
		}
		s.i++
		s.space()
		if err := s.value(elem, depth+1); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		s.space()
		switch s.peek() {
		case ',':
			s.i++
		case '}':
			s.i++
			return nil
		default:
			return s.fault("malformed JSON")
		}
	}
}

func (s *scanner) array(elem *shape, depth int) error {
	s.i++
	s.space()
	if s.peek() == ']' {
		s.i++
		return nil
	}
	for {
		s.space()
		if err := s.value(elem, depth+1); err != nil {
			return err
		}
		s.space()
		switch s.peek() {
		case ',':
			s.i++
		case ']':
			s.i++
			return nil
		default:
			return s.fault("malformed JSON")
		}
	}
}

// str reads a string and returns what stands between the quotes.
func (s *scanner) str() (raw []byte, escaped bool, err error) {
	s.i++
	from := s.i
	for s.i < len(s.b) {
		s.plain()
		if s.i == len(s.b) {
			break
		}
		switch c := s.b[s.i]; {
		case c == '"':
			raw = s.b[from:s.i]
			s.i++
			return raw, escaped, nil
		case c < 0x20:
			return nil, false, s.fault("control character in a string")
		case c == '\\':
			escaped = true
			if err := s.escape(); err != nil {
				return nil, false, err
			}
		default:
			s.i++
		}
	}
	return nil, false, s.fault("")
}

// plain skips characters of a string that stand for themselves, eight bytes at a
// time; it may leave some for the caller.
func (s *scanner) plain() {
	const each, high = 0x0101010101010101, 0x8080808080808080
	for ; s.i+8 <= len(s.b); s.i += 8 {
		w := binary.LittleEndian.Uint64(s.b[s.i:])
		quote, escape := w^('"'*each), w^('\\'*each)
		// A byte is 0, or less than 0x20, if taking 1, or 0x20, away borrows and its
		// high bit was not set. A borrow from a lower byte only stops too early.
		if ((w-0x20*each)&^w|(quote-each)&^quote|(escape-each)&^escape)&high != 0 {
			return
		}
	}
}

func (s *scanner) escape() error {
	s.i++
	switch s.peek() {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i++
		return nil
	case 'u':
		r, err := s.hex4()
		if err != nil {
			return err
		}
		switch {
		case r >= 0xDC00 && r < 0xE000:
			return s.fault("half of a surrogate pair")
		case r >= 0xD800 && r < 0xDC00:
			if s.peek() != '\\' {
				return s.fault("half of a surrogate pair")
			}
			s.i++
			if s.peek() != 'u' {
				return s.fault("half of a surrogate pair")
			}
			lo, err := s.hex4()
			if err != nil {
				return err
			}
			if lo < 0xDC00 || lo >= 0xE000 {
				return s.fault("half of a surrogate pair")
			}
		}
		return nil
	default:
		return s.fault("malformed escape")
	}
}

// hex4 reads the u and four hexadecimal digits of an escape.
func (s *scanner) hex4() (rune, error) {
	s.i++
	if len(s.b)-s.i < 4 {
		s.i = len(s.b)
		return 0, s.fault("")
	}
	var r rune
	for range 4 {
		c := s.b[s.i]
		d, ok := unhex(c)
		if !ok {
			return 0, s.fault("malformed escape")
		}
		r = r<<4 | rune(d)
		s.i++
	}
	return r, nil
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

func (s *scanner) digits() bool {
	from := s.i
	for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > from
}

func (s *scanner) number(sh *shape) error {
	from := s.i
	integer := true
	if s.peek() == '-' {
		s.i++
	}
	if s.peek() == '0' {
		s.i++
	} else if !s.digits() {
		return s.fault("malformed JSON")
	}
	if s.peek() == '.' {
		integer = false
		s.i++
		if !s.digits() {
			return s.fault("malformed number")
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		integer = false
		s.i++
		if c := s.peek(); c == '+' || c == '-' {
			s.i++
		}
		if !s.digits() {
			return s.fault("malformed number")
		}
	}
	text := s.b[from:s.i]
	if sh == nil || sh.kind == kindAny {
		// A receiver may decode it into a float64.
		if integer && len(text) < 300 {
			return nil
		}
		if _, err := strconv.ParseFloat(string(text), 64); err != nil {
			return mismatch("a number of 64 bits")
		}
		return nil
	}
	var err error
	switch sh.kind {
	case kindInt:
		_, err = strconv.ParseInt(string(text), 10, sh.bits)
	case kindUint:
		_, err = strconv.ParseUint(string(text), 10, sh.bits)
	case kindFloat:
		var f float64
		if f, err = strconv.ParseFloat(string(text), sh.bits); err == nil && math.IsInf(f, 0) {
			err = strconv.ErrRange
		}
	default:
		err = strconv.ErrSyntax
	}
	if err != nil {
		return mismatch(sh.want())
	}
	return nil
}
