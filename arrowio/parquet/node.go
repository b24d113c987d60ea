package parquet

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
)

// maxLevel is the deepest that fields nest: levels are bytes.
const maxLevel = 250

// node is a field in both its forms. Its slots are the places in its Arrow array:
// one for each row at the top, one for each element below a list.
//
// Levels are those of Parquet's record shredding (Melnik et al., Dremel, VLDB
// 2010): an entry of a column has a slot of the node if its definition level is at
// least slotDef, the slot holds something if it is at least def, and the entry
// begins that slot if its repetition level is at most slotRep.
type node struct {
	field arrow.Field
	// dt is the type that Parquet sees: the field's without extensions and run ends,
	// which are in wraps, outermost first. A dictionary stays one.
	dt    arrow.DataType
	wraps []arrow.DataType
	kind  kind

	optional             bool
	slotDef, slotRep     uint8
	def                  uint8
	children             []*node // of a list, one
	storage              storage // of a leaf
	firstLeaf, pastLeafs int     // columns at and below
	path                 []string
	// elemDef says for each list around the node, outermost first, at which level it
	// has an element.
	elemDef []byte
}

type kind uint8

const (
	leafKind kind = iota
	structKind
	listKind // of any layout; a map is a list of structs
)

// tree is a schema in both its forms.
type tree struct {
	schema *arrow.Schema
	roots  []*node
	leaves []*node
}

func (n *node) name() string { return strings.Join(n.path, ".") }

// maxRep is the greatest repetition level of a leaf, maxDef its def.
func (n *node) maxRep() uint8 { return n.slotRep }

// unwrap returns what an array of the type is made of underneath.
func unwrap(dt arrow.DataType) (core arrow.DataType, wraps []arrow.DataType) {
	for {
		switch t := dt.(type) {
		case arrow.ExtensionType:
			wraps, dt = append(wraps, dt), t.StorageType()
		case *arrow.RunEndEncodedType:
			wraps, dt = append(wraps, dt), t.Encoded()
		default:
			return dt, wraps
		}
	}
}

// canBeNull reports whether a field's array may hold nulls, which for run ends and
// the null type does not depend on the field.
func canBeNull(f arrow.Field, core arrow.DataType, wraps []arrow.DataType) bool {
	for _, w := range wraps {
		if w.ID() == arrow.RUN_END_ENCODED {
			return true
		}
	}
	return f.Nullable || valueType(core).ID() == arrow.NULL
}

// planWrite lays out the Parquet schema of an Arrow schema.
func planWrite(schema *arrow.Schema) (*tree, error) {
	t := &tree{schema: schema}
	for _, f := range schema.Fields() {
		n, err := t.plan(f, nil, &node{})
		if err != nil {
			return nil, err
		}
		t.roots = append(t.roots, n)
	}
	if len(t.roots) == 0 {
		return nil, &UnsupportedError{"", schema.String(), "a Parquet file has at least one column; add one"}
	}
	return t, nil
}

// plan lays out a field below a parent, whose def says at which level it exists.
func (t *tree) plan(f arrow.Field, path []string, parent *node) (*node, error) {
	n := &node{field: f, path: append(path[:len(path):len(path)], f.Name), slotDef: parent.slotDef, slotRep: parent.slotRep, def: parent.def, elemDef: parent.elemDef, firstLeaf: len(t.leaves)}
	unsupported := func(hint string) (*node, error) {
		return nil, &UnsupportedError{n.name(), f.Type.String(), hint}
	}
	if !utf8.ValidString(f.Name) {
		return unsupported("a Parquet column has a name in UTF-8; rename it")
	}
	n.dt, n.wraps = unwrap(f.Type)
	if n.optional = canBeNull(f, n.dt, n.wraps); n.optional {
		n.def++
	}
	if n.def > maxLevel {
		return unsupported("it is nested too deep")
	}
	var err error
	switch dt := n.dt.(type) {
	case arrow.UnionType:
		return unsupported("Parquet has no unions; make it a struct with a nullable field for each case")
	case *arrow.StructType:
		n.kind = structKind
		if dt.NumFields() == 0 {
			return unsupported("Parquet has no groups without fields; add a field, or leave it out")
		}
		for _, c := range dt.Fields() {
			child, err := t.plan(c, n.path, n)
			if err != nil {
				return nil, err
			}
			n.children = append(n.children, child)
		}
	case arrow.ListLikeType:
		n.kind = listKind
		repeated := &node{slotDef: n.def + 1, slotRep: n.slotRep + 1, def: n.def + 1}
		var child *node
		if m, ok := dt.(*arrow.MapType); ok {
			// The repeated group itself is the struct of key and value.
			child = &node{field: m.ElemField(), dt: m.Elem(), kind: structKind, slotDef: repeated.slotDef, slotRep: repeated.slotRep, def: repeated.def,
				firstLeaf: n.firstLeaf, path: append(n.path[:len(n.path):len(n.path)], "key_value")}
			key, item := m.KeyField(), m.ItemField()
			key.Name, item.Name = "key", "value"
			for i, f := range []arrow.Field{key, item} {
				c, err := t.plan(f, child.path, child)
				if err != nil {
					return nil, err
				}
				if i == 0 && c.optional {
					return unsupported("a Parquet map has no null keys; use another type for the keys")
				}
				child.children = append(child.children, c)
			}
			child.pastLeafs = len(t.leaves)
		} else {
			elem := dt.ElemField()
			elem.Name = "element"
			if child, err = t.plan(elem, append(n.path[:len(n.path):len(n.path)], "list"), repeated); err != nil {
				return nil, err
			}
		}
		n.children = []*node{child}
	case *arrow.DictionaryType:
		if _, wraps := unwrap(dt.ValueType); len(wraps) > 0 {
			return unsupported("a Parquet dictionary holds plain values; decode it")
		}
		if err := n.setStorage(dt.ValueType); err != nil {
			return unsupported("a Parquet dictionary holds values without children; decode it")
		}
		t.leaves = append(t.leaves, n)
	default:
		if err := n.setStorage(n.dt); err != nil {
			return nil, err
		}
		t.leaves = append(t.leaves, n)
	}
	n.pastLeafs = len(t.leaves)
	return n, nil
}

func (n *node) setStorage(values arrow.DataType) error {
	s, hint := storageOf(values)
	if hint != "" {
		return &UnsupportedError{n.name(), n.field.Type.String(), hint}
	}
	for _, w := range n.wraps {
		ext, ok := w.(arrow.ExtensionType)
		switch {
		case !ok:
		case ext.ExtensionName() == "arrow.uuid" && s.width == 16:
			s.logical.id = logicalUUID
		case ext.ExtensionName() == "arrow.json" && s.physical == format.ByteArray:
			s.logical.id = logicalJSON
		}
	}
	n.storage = s
	return nil
}

// elements lists the Parquet schema, parents before children.
func (t *tree) elements() []format.SchemaElement {
	out := []format.SchemaElement{{Name: "schema", NumChildren: thrift.New(int32(len(t.roots)))}}
	for _, n := range t.roots {
		out = n.elements(out, n.field.Name, nil)
	}
	return out
}

func (n *node) elements(out []format.SchemaElement, name string, repetition *format.FieldRepetitionType) []format.SchemaElement {
	e := format.SchemaElement{Name: name, RepetitionType: thrift.New(format.Required)}
	if n.optional {
		e.RepetitionType = thrift.New(format.Optional)
	}
	if repetition != nil {
		e.RepetitionType = thrift.New(*repetition)
	}
	if i := n.field.Metadata.FindKey(fieldIDKey); i >= 0 {
		if id, err := strconv.ParseInt(n.field.Metadata.Values()[i], 10, 32); err == nil && id > 0 {
			e.FieldID = int32(id)
		}
	}
	repeated := format.Repeated
	switch n.kind {
	case leafKind:
		n.storage.element(&e)
		return append(out, e)
	case structKind:
		e.NumChildren = thrift.New(int32(len(n.children)))
		out = append(out, e)
		for _, c := range n.children {
			out = c.elements(out, c.path[len(c.path)-1], nil)
		}
		return out
	default:
		e.NumChildren = thrift.New(int32(1))
		child := n.children[0]
		if n.dt.ID() == arrow.MAP {
			e.LogicalType, e.ConvertedType = format.LogicalType{Value: new(format.MapType)}, thrift.New(convertedMap)
			return child.elements(append(out, e), "key_value", &repeated)
		}
		e.LogicalType, e.ConvertedType = format.LogicalType{Value: new(format.ListType)}, thrift.New(convertedList)
		group := format.SchemaElement{Name: "list", RepetitionType: thrift.New(format.Repeated), NumChildren: thrift.New(int32(1))}
		return child.elements(append(out, e, group), "element", nil)
	}
}

func (s storage) element(e *format.SchemaElement) {
	e.Type = thrift.New(s.physical)
	if s.physical == format.FixedLenByteArray {
		e.TypeLength = thrift.New(int32(s.width))
	}
	if c, ok := s.convertedType(); ok {
		e.ConvertedType = thrift.New(c)
	}
	l := s.logical
	unit := format.TimeUnit{}
	switch l.unit {
	case 1:
		unit.Value = new(format.MilliSeconds)
	case 2:
		unit.Value = new(format.MicroSeconds)
	case 3:
		unit.Value = new(format.NanoSeconds)
	}
	switch l.id {
	case logicalString:
		e.LogicalType.Value = new(format.StringType)
	case logicalDecimal:
		e.Scale, e.Precision = thrift.New(l.scale), thrift.New(l.precision)
		e.LogicalType.Value = &format.DecimalType{Scale: l.scale, Precision: l.precision}
	case logicalDate:
		e.LogicalType.Value = new(format.DateType)
	case logicalTime:
		e.LogicalType.Value = &format.TimeType{IsAdjustedToUTC: l.utc, Unit: unit}
	case logicalTimestamp:
		e.LogicalType.Value = &format.TimestampType{IsAdjustedToUTC: l.utc, Unit: unit}
	case logicalInt:
		e.LogicalType.Value = &format.IntType{BitWidth: l.bits, IsSigned: l.signed}
	case logicalNull:
		e.LogicalType.Value = new(format.NullType)
	case logicalJSON:
		e.LogicalType.Value = new(format.JsonType)
	case logicalUUID:
		e.LogicalType.Value = new(format.UUIDType)
	case logicalFloat16:
		e.LogicalType.Value = new(format.Float16Type)
	}
}

// rewrap returns the field's type around core, which may have lost children to a
// projection. Extensions stay only where their storage is still theirs.
func rewrap(wraps []arrow.DataType, core arrow.DataType) (arrow.DataType, []arrow.DataType) {
	dt := core
	out := make([]arrow.DataType, len(wraps))
	for i := len(wraps) - 1; i >= 0; i-- {
		switch t := wraps[i].(type) {
		case arrow.ExtensionType:
			if !arrow.TypeEqual(t.StorageType(), dt) {
				return core, nil
			}
			dt = t
		case *arrow.RunEndEncodedType:
			r := arrow.RunEndEncodedOf(t.RunEnds(), dt)
			r.ValueNullable = t.ValueNullable
			dt = r
		}
		out[i] = dt
	}
	return dt, out
}

// retype sets the node's types from its children's fields.
func (n *node) retype(like arrow.DataType) {
	switch n.kind {
	case structKind:
		fields := make([]arrow.Field, len(n.children))
		for i, c := range n.children {
			fields[i] = c.field
		}
		n.dt = arrow.StructOf(fields...)
	case listKind:
		elem := n.children[0].field
		switch t := like.(type) {
		case *arrow.LargeListType:
			n.dt = arrow.LargeListOfField(elem)
		case *arrow.ListViewType:
			n.dt = arrow.ListViewOfField(elem)
		case *arrow.LargeListViewType:
			n.dt = arrow.LargeListViewOfField(elem)
		case *arrow.FixedSizeListType:
			n.dt = arrow.FixedSizeListOfField(t.Len(), elem)
		case *arrow.MapType:
			pair := n.children[0].children
			m := arrow.MapOfFields(pair[0].field, pair[1].field)
			m.KeysSorted = t.KeysSorted
			n.dt, n.children[0].dt, n.children[0].field = m, m.Elem(), m.ElemField()
		default:
			n.dt = arrow.ListOfField(elem)
		}
	}
	n.field.Type, n.wraps = rewrap(n.wraps, n.dt)
}

// overflow is the error of a row group whose array does not fit its type.
func overflow(n *node, what string, limit int64) error {
	return fmt.Errorf("%d %s or more in one batch: %s holds no more; read fewer rows at once", min(limit, math.MaxInt32), what, n.dt)
}
