package events

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// shape is what the data of a type may look like, compiled once from its Go
// type. encoding/json cannot be asked for strictness: it takes keys in any case,
// the last of duplicate keys, and null for anything; what a policy saw and what
// a handler decodes could then differ.
type shape struct {
	kind   shapeKind
	bits   int               // of numbers
	null   bool              // null is a value of it
	fields map[string]*field // of structs, by exact name
	elem   *shape            // of arrays and maps
	typ    reflect.Type      // of kindCustom: decoded by encoding/json
}

type field struct {
	index int
	shape *shape
}

type shapeKind uint8

const (
	kindAny shapeKind = iota
	kindStruct
	kindMap
	kindArray
	kindString
	kindBool
	kindInt
	kindUint
	kindFloat
	kindCustom
)

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func shapeOf(v any) (*shape, error) {
	t := reflect.TypeOf(v)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	s, err := (&shaper{seen: make(map[reflect.Type]*shape)}).shape(t)
	if err != nil {
		return nil, err
	}
	if s.kind != kindStruct && s.kind != kindMap {
		return nil, fmt.Errorf("%s is not a JSON object: use a struct or a map", t)
	}
	return s, nil
}

type shaper struct{ seen map[reflect.Type]*shape }

func (c *shaper) shape(t reflect.Type) (*shape, error) {
	if s, ok := c.seen[t]; ok {
		return s, nil
	}
	s := &shape{}
	c.seen[t] = s
	if t == reflect.TypeFor[json.RawMessage]() {
		s.null = true
		return s, nil
	}
	if p := reflect.PointerTo(t); p.Implements(jsonUnmarshaler) || p.Implements(textUnmarshaler) {
		s.kind, s.typ = kindCustom, t
		return s, nil
	}
	var err error
	switch t.Kind() {
	case reflect.Pointer:
		elem, err := c.shape(t.Elem())
		if err != nil {
			return nil, err
		}
		*s = *elem
		s.null = true
		return s, nil
	case reflect.Struct:
		s.kind = kindStruct
		s.fields = make(map[string]*field)
		err = c.fields(s, t)
	case reflect.Map:
		s.kind, s.null = kindMap, true
		if t.Key().Kind() != reflect.String {
			s.kind, s.typ = kindCustom, t
			return s, nil
		}
		s.elem, err = c.shape(t.Elem())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			s.kind, s.typ, s.null = kindCustom, t, true
			return s, nil
		}
		s.kind, s.null = kindArray, true
		s.elem, err = c.shape(t.Elem())
	case reflect.Array:
		s.kind, s.typ = kindCustom, t
	case reflect.String:
		s.kind = kindString
	case reflect.Bool:
		s.kind = kindBool
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		s.kind, s.bits = kindInt, t.Bits()
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		s.kind, s.bits = kindUint, t.Bits()
	case reflect.Float32, reflect.Float64:
		s.kind, s.bits = kindFloat, t.Bits()
	case reflect.Interface:
		if t.NumMethod() > 0 {
			return nil, fmt.Errorf("%s cannot be decoded from JSON", t)
		}
		s.null = true
	default:
		return nil, fmt.Errorf("%s cannot be decoded from JSON", t)
	}
	return s, err
}

func (c *shaper) fields(s *shape, t reflect.Type) error {
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		if tag == "-" {
			continue
		}
		name, opts, _ := strings.Cut(tag, ",")
		if f.Anonymous && name == "" {
			et := f.Type
			if et.Kind() == reflect.Pointer {
				et = et.Elem()
			}
			if et.Kind() == reflect.Struct {
				if err := c.fields(s, et); err != nil {
					return err
				}
				continue
			}
		}
		if !f.IsExported() {
			continue
		}
		if name == "" {
			name = f.Name
		}
		if strings.Contains(opts, "string") {
			return fmt.Errorf("field %s.%s: the JSON option \"string\" is not supported", t, f.Name)
		}
		if _, ok := s.fields[name]; ok {
			return fmt.Errorf("field %s.%s: JSON name %q is used twice", t, f.Name, name)
		}
		fs, err := c.shape(f.Type)
		if err != nil {
			return fmt.Errorf("field %s.%s: %w", t, f.Name, err)
		}
		s.fields[name] = &field{index: len(s.fields), shape: fs}
	}
	return nil
}
