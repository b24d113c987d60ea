package governance

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"cel.dev/cel-go/common/types"

	"github.com/stokehold/stokehold/governance/celgo"
)

// kind is how a JSON value of a Go type becomes a CEL value.
type kind uint8

const (
	kindDyn kind = iota
	kindBool
	kindInt
	kindUint
	kindDouble
	kindString
	kindBytes
	kindTimestamp
	kindDuration // a JSON integer of nanoseconds, as encoding/json writes time.Duration
	kindList
	kindMap
	kindObject
)

// dataType is the type that event data decode into: the tree that the compiler
// checks field names against and that the decoder follows.
type dataType struct {
	kind   kind
	cel    *types.Type
	elem   *dataType // of kindList and kindMap
	name   string    // of kindObject: its CEL type name
	fields []field   // of kindObject
	params bool      // the parameters of a policy
}

type field struct {
	name   string
	quoted string // as a key, with its colon; "": it is not written as it is
	typ    *dataType
	cel    *types.FieldType
	get    celgo.FieldFunc // nil: by way of cel
}

// find returns the index of the field of that name, or -1. Event data have few
// fields, for which a scan beats a map.
func (t *dataType) find(name string) int {
	for i := range t.fields {
		if t.fields[i].name == name {
			return i
		}
	}
	return -1
}

// member returns the type of a field or of a map's values; nil if there is no
// such field. Of a nil type it is nil.
func (t *dataType) member(name string) *dataType {
	switch {
	case t == nil:
		return nil
	case t.kind == kindMap:
		return t.elem
	}
	if i := t.find(name); i >= 0 {
		return t.fields[i].typ
	}
	return nil
}

func (t *dataType) fieldNames() []string {
	names := make([]string, len(t.fields))
	for i := range t.fields {
		names[i] = t.fields[i].name
	}
	return names
}

var (
	dynType = &dataType{kind: kindDyn, cel: types.DynType} //nolint:gochecknoglobals // never changed, compared by address
	// untypedData is the type of data that no Go type describes.
	untypedData = &dataType{kind: kindMap, cel: types.NewMapType(types.StringType, types.DynType), elem: dynType} //nolint:gochecknoglobals // never changed, compared by address

	typeTime        = reflect.TypeFor[time.Time]()
	typeDuration    = reflect.TypeFor[time.Duration]()
	typeRawMessage  = reflect.TypeFor[json.RawMessage]()
	typeUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	typeText        = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// typeTable builds and names the data types of one policy set.
type typeTable struct {
	prefix string // of the types' names
	byGo   map[reflect.Type]*dataType
	byName map[string]*dataType
}

func newTypeTable() *typeTable {
	return &typeTable{prefix: "data.", byGo: map[reflect.Type]*dataType{}, byName: map[string]*dataType{}}
}

// of returns the data type of a Go type, following encoding/json's reading of
// struct tags. Types that encode themselves in a way reflection can't see are
// dyn.
func (tt *typeTable) of(t reflect.Type) *dataType {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case typeTime:
		return &dataType{kind: kindTimestamp, cel: types.TimestampType}
	case typeDuration:
		return &dataType{kind: kindDuration, cel: types.DurationType}
	case typeRawMessage:
		return dynType
	}
	if t.Implements(typeUnmarshaler) || reflect.PointerTo(t).Implements(typeUnmarshaler) {
		return dynType
	}
	if t.Implements(typeText) || reflect.PointerTo(t).Implements(typeText) {
		return &dataType{kind: kindString, cel: types.StringType}
	}
	switch t.Kind() {
	case reflect.Bool:
		return &dataType{kind: kindBool, cel: types.BoolType}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return &dataType{kind: kindInt, cel: types.IntType}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return &dataType{kind: kindUint, cel: types.UintType}
	case reflect.Float32, reflect.Float64:
		return &dataType{kind: kindDouble, cel: types.DoubleType}
	case reflect.String:
		return &dataType{kind: kindString, cel: types.StringType}
	case reflect.Slice, reflect.Array:
		if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
			return &dataType{kind: kindBytes, cel: types.BytesType}
		}
		elem := tt.of(t.Elem())
		return &dataType{kind: kindList, cel: types.NewListType(elem.cel), elem: elem}
	case reflect.Map:
		elem := tt.of(t.Elem())
		return &dataType{kind: kindMap, cel: types.NewMapType(types.StringType, elem.cel), elem: elem}
	case reflect.Struct:
		return tt.object(t)
	default:
		return dynType
	}
}

func (tt *typeTable) object(t reflect.Type) *dataType {
	if d, ok := tt.byGo[t]; ok {
		return d
	}
	base := "Object"
	if t.Name() != "" && !strings.ContainsAny(t.Name(), "[]") {
		base = t.Name()
	}
	d := tt.declare(base)
	tt.byGo[t] = d // before the fields: types may be recursive
	for _, f := range jsonFields(t) {
		ft := tt.of(f.typ)
		if f.asString {
			ft = dynType
		}
		d.add(f.name, ft)
	}
	return d
}

// declare makes an object type without fields, by a name that is free.
func (tt *typeTable) declare(base string) *dataType {
	base = tt.prefix + base
	name := base
	for i := 2; tt.byName[name] != nil; i++ {
		name = fmt.Sprintf("%s%d", base, i)
	}
	d := &dataType{kind: kindObject, cel: types.NewObjectType(name), name: name}
	tt.byName[name] = d
	return d
}

// add declares one more field of an object type that is being made.
func (t *dataType) add(name string, ft *dataType) {
	i := len(t.fields)
	t.fields = append(t.fields, field{name: name, quoted: asKey(name), typ: ft, cel: &types.FieldType{
		Type:    ft.cel,
		IsSet:   func(target any) bool { o, ok := target.(*object); return ok && o.vals[i].Kind() != celgo.Absent },
		GetFrom: func(target any) (any, error) { return getField(target, i) },
	}, get: func(x any) (v celgo.Value, set, ok bool) {
		o, ok := x.(*object)
		if !ok || o.typ != t {
			return v, false, false
		}
		return o.vals[i], o.vals[i].Kind() != celgo.Absent, true
	}})
}

// asKey is a name as most writers of JSON write it as a key; "" if it needs escapes.
func asKey(name string) string {
	for i := range len(name) {
		if !plainInString[name[i]] {
			return ""
		}
	}
	return `"` + name + `":`
}

func getField(target any, i int) (any, error) {
	o, ok := target.(*object)
	if !ok {
		return nil, fmt.Errorf("%T is not event data", target)
	}
	if v := o.vals[i]; v.Kind() != celgo.Absent {
		return v.Boxed(), nil
	}
	return nil, &missingFieldError{owner: o.typ, name: o.typ.fields[i].name}
}

// missingFieldError is what a non-optional read of an absent field gives.
type missingFieldError struct {
	owner *dataType // nil: event data
	name  string
}

func (e *missingFieldError) Error() string {
	who := "the event"
	switch {
	case e.owner == nil:
	case e.owner.params:
		return fmt.Sprintf("the parameter %q has no value; give it a default, or a value in a %s document", e.name, KindBinding)
	case strings.HasPrefix(e.owner.name, factPrefix):
		who = "the fact " + strings.ToLower(strings.TrimPrefix(e.owner.name, factPrefix))
	}
	return fmt.Sprintf("%s has no field %q; where it may be absent write .?%s.orValue(...) or has()", who, e.name, e.name)
}

func (e *missingFieldError) Unwrap() error { return ErrMissingField }

type jsonField struct {
	name     string
	typ      reflect.Type
	tagged   bool
	asString bool
	depth    int
}

// jsonFields returns the fields that encoding/json would use: exported, embedded
// structs promoted, the shallowest (then the tagged) of a name winning and
// remaining conflicts dropped.
func jsonFields(t reflect.Type) []jsonField {
	var all []jsonField
	var walk func(t reflect.Type, depth int, seen map[reflect.Type]bool)
	walk = func(t reflect.Type, depth int, seen map[reflect.Type]bool) {
		if seen[t] {
			return
		}
		seen[t] = true
		defer delete(seen, t)
		for i := range t.NumField() {
			f := t.Field(i)
			tag := f.Tag.Get("json")
			if tag == "-" {
				continue
			}
			name, opts, _ := strings.Cut(tag, ",")
			ft := f.Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			if f.Anonymous && name == "" && ft.Kind() == reflect.Struct {
				walk(ft, depth+1, seen)
				continue
			}
			if !f.IsExported() {
				continue
			}
			tagged := name != ""
			if !tagged {
				name = f.Name
			}
			all = append(all, jsonField{name, f.Type, tagged, strings.Contains(","+opts+",", ",string,"), depth})
		}
	}
	walk(t, 0, map[reflect.Type]bool{})

	better := func(a, b jsonField) bool { // a hides b
		if a.depth != b.depth {
			return a.depth < b.depth
		}
		return a.tagged && !b.tagged
	}
	var out []jsonField
	for i, f := range all {
		wins := true
		for j, g := range all {
			if i != j && f.name == g.name && !better(f, g) {
				wins = false
				break
			}
		}
		if wins {
			out = append(out, f)
		}
	}
	return out
}

// provider adds the data and event types to cel-go's type provider.
type provider struct {
	types.Provider
	table *typeTable
}

func (p *provider) object(name string) (*dataType, bool) {
	if name == eventType.name {
		return eventType, true
	}
	if d, ok := factTable.byName[name]; ok {
		return d, true
	}
	d, ok := p.table.byName[name]
	return d, ok
}

// FindStructType implements types.Provider.
func (p *provider) FindStructType(name string) (*types.Type, bool) {
	if d, ok := p.object(name); ok {
		return types.NewTypeTypeWithParam(d.cel), true
	}
	return p.Provider.FindStructType(name)
}

// FindStructFieldNames implements types.Provider.
func (p *provider) FindStructFieldNames(name string) ([]string, bool) {
	if d, ok := p.object(name); ok {
		return d.fieldNames(), true
	}
	return p.Provider.FindStructFieldNames(name)
}

// FindStructFieldType implements types.Provider.
func (p *provider) FindStructFieldType(name, fieldName string) (*types.FieldType, bool) {
	if d, ok := p.object(name); ok {
		if i := d.find(fieldName); i >= 0 {
			return d.fields[i].cel, true
		}
		return nil, false
	}
	return p.Provider.FindStructFieldType(name, fieldName)
}
