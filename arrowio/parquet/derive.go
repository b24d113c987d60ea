package parquet

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/format"

	"github.com/stokehold/stokehold/arrowio"
)

const (
	// schemaKey is where Arrow implementations store the schema in a file.
	schemaKey = "ARROW:schema"
	// fieldIDKey is the metadata of an Arrow field that has Parquet's field id.
	fieldIDKey = "PARQUET:field_id"

	convertedMap  = deprecated.Map
	convertedList = deprecated.List

	maxDepth = 64 // of nested groups, as arrowio has for nested fields
)

// group is a node of a file's schema with its children.
type group struct {
	element
	children []*group
}

// grow builds the tree that the list of elements describes.
func grow(list []element) (*group, error) {
	at := 0
	var take func(depth int) (*group, error)
	take = func(depth int) (*group, error) {
		if at == len(list) {
			return nil, errors.New("schema ends within a group")
		}
		if depth > 3*maxDepth {
			return nil, errors.New("schema is nested too deep")
		}
		g := &group{element: list[at]}
		at++
		count := int(g.element.children)
		if count < 0 || count > len(list)-at {
			return nil, fmt.Errorf("group %.80q of %d fields", g.name, count)
		}
		for range count {
			c, err := take(depth + 1)
			if err != nil {
				return nil, err
			}
			g.children = append(g.children, c)
		}
		return g, nil
	}
	root, err := take(0)
	if err != nil {
		return nil, err
	}
	if at != len(list) {
		return nil, fmt.Errorf("schema has %d elements, its groups %d", len(list), at)
	}
	return root, nil
}

// planRead lays out the Arrow schema of a file: the one stored in it where that is
// a reading of the Parquet types, otherwise what these imply.
func planRead(m *metadata) (*tree, error) {
	root, err := grow(m.schema)
	if err != nil {
		return nil, err
	}
	var stored []arrow.Field
	md := arrow.Metadata{}
	var keys, values []string
	for _, kv := range m.keyValues {
		if kv[0] != schemaKey {
			keys, values = append(keys, kv[0]), append(values, kv[1])
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(kv[1])
		if err != nil {
			return nil, fmt.Errorf("metadata %s: %w", schemaKey, err)
		}
		s, err := arrowio.DecodeSchema(raw)
		if err != nil {
			return nil, fmt.Errorf("metadata %s: %w", schemaKey, err)
		}
		stored, md = s.Fields(), s.Metadata()
	}
	if stored == nil {
		md = arrow.NewMetadata(keys, values)
	} else if len(stored) != len(root.children) {
		return nil, fmt.Errorf("metadata %s has %d fields, the file %d columns", schemaKey, len(stored), len(root.children))
	}
	t := &tree{}
	fields := make([]arrow.Field, len(root.children))
	for i, g := range root.children {
		var like *arrow.Field
		if stored != nil {
			if like = &stored[i]; like.Name != g.name {
				return nil, fmt.Errorf("metadata %s calls column %d %.80q, the file %.80q", schemaKey, i, like.Name, g.name)
			}
		}
		n, err := t.derive(g, like, nil, &node{})
		if err != nil {
			return nil, err
		}
		t.roots = append(t.roots, n)
		fields[i] = n.field
	}
	t.schema = arrow.NewSchema(fields, &md)
	return t, nil
}

// derive lays out a group or column below a parent. like is the field as the
// stored schema has it, or nil.
func (t *tree) derive(g *group, like *arrow.Field, path []string, parent *node) (*node, error) {
	n := &node{path: append(path[:len(path):len(path)], g.name), slotDef: parent.slotDef, slotRep: parent.slotRep, def: parent.def, elemDef: parent.elemDef, firstLeaf: len(t.leaves)}
	if len(n.path) > 3*maxDepth || n.def > maxLevel || n.slotRep > maxLevel {
		return nil, errors.New("schema is nested too deep")
	}
	n.field = arrow.Field{Name: g.name}
	if g.hasFieldID {
		n.field.Metadata = arrow.NewMetadata([]string{fieldIDKey}, []string{strconv.Itoa(int(g.fieldID))})
	}
	var core arrow.DataType
	if like != nil {
		core, n.wraps = unwrap(like.Type)
		n.field.Name, n.field.Metadata = like.Name, like.Metadata
	}
	if g.repetition == format.Repeated {
		return t.deriveBareList(g, n, core)
	}
	switch g.repetition {
	case format.Optional:
		n.optional = true
		n.def++
	case format.Required:
	default:
		return nil, fmt.Errorf("column %.80q of repetition %d", n.name(), g.repetition)
	}
	err := t.deriveValue(g, n, core)
	if err != nil {
		return nil, err
	}
	// The file decides whether there can be nulls; the stored schema may allow more.
	n.field.Nullable = n.optional
	if like != nil {
		n.field.Nullable = like.Nullable || n.optional && !canBeNull(*like, n.dt, n.wraps)
	}
	return n, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// deriveValue fills in what the node holds where it is not null.
func (t *tree) deriveValue(g *group, n *node, core arrow.DataType) error {
	switch {
	case g.leaf:
		return t.deriveLeaf(g, n, core)
	case len(g.children) == 0:
		return &UnsupportedError{n.name(), "group without fields", "leave it out"}
	case g.isMap():
		return t.deriveMap(g, n, core)
	case g.isList():
		return t.deriveList(g, n, core)
	default:
		return t.deriveStruct(g, n, core)
	}
}

func (g *group) isList() bool {
	return (g.logical.id == logicalList || g.hasConv && g.converted == convertedList) && len(g.children) == 1 && g.children[0].repetition == format.Repeated
}

func (g *group) isMap() bool {
	if g.logical.id != logicalMap && (!g.hasConv || g.converted != convertedMap && g.converted != deprecated.MapKeyValue) || len(g.children) != 1 {
		return false
	}
	pair := g.children[0]
	return pair.repetition == format.Repeated && len(pair.children) == 2 && pair.children[0].repetition == format.Required &&
		pair.children[1].repetition != format.Repeated
}

func (t *tree) deriveStruct(g *group, n *node, core arrow.DataType) error {
	n.kind = structKind
	like, ok := core.(*arrow.StructType)
	if ok && like.NumFields() != len(g.children) {
		ok = false
	}
	for i, c := range g.children {
		var f *arrow.Field
		if ok {
			field := like.Field(i)
			f = &field
		}
		child, err := t.derive(c, f, n.path, n)
		if err != nil {
			return err
		}
		n.children = append(n.children, child)
	}
	n.pastLeafs = len(t.leaves)
	if !ok {
		n.wraps = nil
	}
	n.retype(nil)
	return nil
}

// element is what the elements of a list have as their parent.
func (n *node) element() *node {
	return &node{slotDef: n.def + 1, slotRep: n.slotRep + 1, def: n.def + 1, elemDef: append(n.elemDef[:len(n.elemDef):len(n.elemDef)], n.def+1)}
}

func (t *tree) deriveList(g *group, n *node, core arrow.DataType) error {
	n.kind = listKind
	like, ok := core.(arrow.ListLikeType)
	if ok && like.ID() == arrow.MAP {
		ok = false
	}
	var f *arrow.Field
	if ok {
		field := like.ElemField()
		f = &field
	} else {
		n.wraps, core = nil, nil
	}
	repeated := g.children[0]
	at := n.element()
	path := append(n.path[:len(n.path):len(n.path)], repeated.name)
	var child *node
	var err error
	if repeated.leaf || len(repeated.children) != 1 || repeated.name == "array" || repeated.name == g.name+"_tuple" || repeated.children[0].repetition == format.Repeated {
		// Two levels, as older writers have it: what is repeated is the element.
		element := *repeated
		element.repetition = format.Required
		child, err = t.derive(&element, f, n.path, at)
	} else {
		child, err = t.derive(repeated.children[0], f, path, at)
	}
	if err != nil {
		return err
	}
	n.children, n.pastLeafs = []*node{child}, len(t.leaves)
	n.retype(core)
	return nil
}

// deriveBareList is a repeated field without a list around it: a list that is
// never null, of elements that are never null.
func (t *tree) deriveBareList(g *group, n *node, core arrow.DataType) (*node, error) {
	n.kind = listKind
	like, ok := core.(arrow.ListLikeType)
	var f *arrow.Field
	if ok && like.ID() != arrow.MAP {
		field := like.ElemField()
		f = &field
	} else {
		n.wraps, core = nil, nil
	}
	element := *g
	element.repetition, element.hasFieldID = format.Required, false
	child, err := t.derive(&element, f, n.path[:len(n.path)-1], n.element())
	if err != nil {
		return nil, err
	}
	n.children, n.pastLeafs = []*node{child}, len(t.leaves)
	n.retype(core)
	return n, nil
}

func (t *tree) deriveMap(g *group, n *node, core arrow.DataType) error {
	n.kind = listKind
	like, ok := core.(*arrow.MapType)
	if !ok {
		n.wraps, like = nil, arrow.MapOf(arrow.Null, arrow.Null)
	}
	pair := g.children[0]
	entries := n.element()
	entries.kind, entries.firstLeaf, entries.path = structKind, n.firstLeaf, append(n.path[:len(n.path):len(n.path)], pair.name)
	for i, c := range pair.children {
		var f *arrow.Field
		if ok {
			field := like.KeyField()
			if i == 1 {
				field = like.ItemField()
			}
			f = &field
		}
		child, err := t.derive(c, f, entries.path, entries)
		if err != nil {
			return err
		}
		if i == 0 && child.field.Nullable {
			return fmt.Errorf("map %.80q with keys that may be null", n.name())
		}
		entries.children = append(entries.children, child)
	}
	n.pastLeafs, entries.pastLeafs = len(t.leaves), len(t.leaves)
	n.children = []*node{entries}
	n.retype(like)
	return nil
}

func (t *tree) deriveLeaf(g *group, n *node, core arrow.DataType) error {
	s, implied, err := g.storage(n.name())
	if err != nil {
		return err
	}
	n.storage, n.dt = s, implied
	if core != nil && !n.reconcile(core) {
		n.wraps = nil
	}
	n.field.Type, n.wraps = rewrap(n.wraps, n.dt)
	t.leaves = append(t.leaves, n)
	n.pastLeafs = len(t.leaves)
	return nil
}

// reconcile takes the stored type where it is a reading of the column.
func (n *node) reconcile(core arrow.DataType) bool {
	values, dict := core, false
	if d, ok := core.(*arrow.DictionaryType); ok {
		values, dict = d.ValueType, true
	}
	file := n.storage
	if file.logical.id == logicalUUID || file.logical.id == logicalJSON {
		file.logical = logical{}
		if file.physical == format.ByteArray {
			file.logical.id = logicalString
		}
	}
	switch own, hint := storageOf(values); {
	case hint == "" && own.sameColumn(file):
		n.storage.conv, n.storage.order = own.conv, own.order
	case arrow.TypeEqual(values, n.dt):
	default:
		implied, ok := n.dt.(arrow.DecimalType)
		stored, also := values.(arrow.DecimalType)
		if ok && also && implied.GetPrecision() == stored.GetPrecision() && implied.GetScale() == stored.GetScale() {
			break // of another width
		}
		has, ok := n.dt.(*arrow.TimestampType)
		want, also := values.(*arrow.TimestampType)
		if !ok || !also {
			return false
		}
		// The unit is the file's: writers may have been told to coerce it.
		n.dt = &arrow.TimestampType{Unit: has.Unit, TimeZone: want.TimeZone}
		return true
	}
	n.dt = values
	if dict {
		n.dt = core
	}
	return true
}

// annotation is the logical type, told from the older annotation where there is
// no newer one.
func (g *group) annotation() logical {
	l := g.logical
	if l.id == 0 && g.hasConv {
		switch c := g.converted; c {
		case deprecated.UTF8:
			l.id = logicalString
		case deprecated.Enum:
			l.id = logicalEnum
		case deprecated.Decimal:
			l = logical{id: logicalDecimal, scale: g.scale, precision: g.precision}
		case deprecated.Date:
			l.id = logicalDate
		case deprecated.TimeMillis, deprecated.TimeMicros:
			l = logical{id: logicalTime, utc: true, unit: int16(c-deprecated.TimeMillis) + 1}
		case deprecated.TimestampMillis, deprecated.TimestampMicros:
			l = logical{id: logicalTimestamp, utc: true, unit: int16(c-deprecated.TimestampMillis) + 1}
		case deprecated.Uint8, deprecated.Uint16, deprecated.Uint32, deprecated.Uint64:
			l = logical{id: logicalInt, bits: 8 << (c - deprecated.Uint8)}
		case deprecated.Int8, deprecated.Int16, deprecated.Int32, deprecated.Int64:
			l = logical{id: logicalInt, bits: 8 << (c - deprecated.Int8), signed: true}
		case deprecated.Json:
			l.id = logicalJSON
		case deprecated.Bson:
			l.id = logicalBSON
		default: // the others are of groups
		}
	}
	if l.id == logicalInt && l.signed && (l.bits == 32 && g.physical == format.Int32 || l.bits == 64 && g.physical == format.Int64) {
		l = logical{} // what the physical type says
	}
	return l
}

// storage returns how the file holds a column, and the Arrow type that implies.
func (g *group) storage(name string) (s storage, dt arrow.DataType, err error) {
	l := g.annotation()
	s = storage{physical: g.physical, width: widthOf(g.physical), logical: l}
	unsupported := func() (storage, arrow.DataType, error) {
		return s, nil, &UnsupportedError{name, fmt.Sprintf("%v of annotation %d", g.physical, l.id), "cast it before writing the file, or leave it out"}
	}
	as := func(t arrow.DataType) (storage, arrow.DataType, error) {
		own, _ := storageOf(t)
		s.conv, s.order = own.conv, own.order
		return s, t, nil
	}
	switch g.physical {
	case format.Boolean:
		return as(arrow.FixedWidthTypes.Boolean)
	case format.Int32, format.Int64:
		return g.integer(s, as, unsupported)
	case format.Int96:
		s.conv = convInt96
		return s, &arrow.TimestampType{Unit: arrow.Nanosecond}, nil
	case format.Float:
		return as(arrow.PrimitiveTypes.Float32)
	case format.Double:
		return as(arrow.PrimitiveTypes.Float64)
	case format.ByteArray:
		switch l.id {
		case logicalString, logicalJSON:
			return as(arrow.BinaryTypes.String)
		case logicalDecimal:
			return unsupported()
		}
		return as(arrow.BinaryTypes.Binary)
	case format.FixedLenByteArray:
		s.width = int(g.length)
		switch {
		case g.length < 1 || g.length > maxFixedBytes:
			return s, nil, fmt.Errorf("column %.80q of values of %d bytes", name, g.length)
		case l.id == logicalDecimal:
			d, ok := decimalOf(l)
			if !ok || s.width > 64 {
				return unsupported()
			}
			s.conv, s.order = convBigEndian, orderDecimal
			return s, d, nil
		case l.id == logicalFloat16 && g.length == 2:
			return as(arrow.FixedWidthTypes.Float16)
		case g.hasConv && g.converted == deprecated.Interval && g.length == 12:
			s.interval = true
			return as(arrow.FixedWidthTypes.MonthDayNanoInterval)
		}
		return as(&arrow.FixedSizeBinaryType{ByteWidth: int(g.length)})
	default:
		return s, nil, fmt.Errorf("column %.80q of physical type %d", name, g.physical)
	}
}

// maxFixedBytes bounds the width of values, so that products with it stay sane.
const maxFixedBytes = 1 << 24

func decimalOf(l logical) (arrow.DataType, bool) {
	if l.precision < 1 || l.precision > 76 || l.scale < 0 || l.scale > l.precision {
		return nil, false
	}
	if l.precision > 38 {
		return &arrow.Decimal256Type{Precision: l.precision, Scale: l.scale}, true
	}
	return &arrow.Decimal128Type{Precision: l.precision, Scale: l.scale}, true
}

func (g *group) integer(s storage, as func(arrow.DataType) (storage, arrow.DataType, error), unsupported func() (storage, arrow.DataType, error)) (storage, arrow.DataType, error) {
	wide := g.physical == format.Int64
	l := s.logical
	units := map[int16]arrow.TimeUnit{1: arrow.Millisecond, 2: arrow.Microsecond, 3: arrow.Nanosecond}
	unit, known := units[l.unit]
	switch l.id {
	case 0:
		if wide {
			return as(arrow.PrimitiveTypes.Int64)
		}
		return as(arrow.PrimitiveTypes.Int32)
	case logicalInt:
		types := map[int8][2]arrow.DataType{8: {arrow.PrimitiveTypes.Uint8, arrow.PrimitiveTypes.Int8}, 16: {arrow.PrimitiveTypes.Uint16, arrow.PrimitiveTypes.Int16},
			32: {arrow.PrimitiveTypes.Uint32, arrow.PrimitiveTypes.Int32}, 64: {arrow.PrimitiveTypes.Uint64, arrow.PrimitiveTypes.Int64}}
		dt := types[l.bits][boolInt(l.signed)]
		if dt == nil || (l.bits == 64) != wide {
			return unsupported()
		}
		return as(dt)
	case logicalDecimal:
		d, ok := decimalOf(l)
		if !ok || l.precision > 18 || l.precision > 9 && !wide {
			return unsupported()
		}
		s.conv, s.order = convSigned, orderInt32
		if wide {
			s.order = orderInt64
		}
		return s, d, nil
	case logicalDate:
		if !wide {
			return as(arrow.FixedWidthTypes.Date32)
		}
	case logicalTime:
		if known && wide && l.unit > 1 {
			return as(&arrow.Time64Type{Unit: unit})
		}
		if known && !wide && l.unit == 1 {
			return as(&arrow.Time32Type{Unit: unit})
		}
	case logicalTimestamp:
		if known && wide {
			t := &arrow.TimestampType{Unit: unit}
			if l.utc {
				t.TimeZone = "UTC"
			}
			return as(t)
		}
	case logicalNull:
		if !wide {
			return as(arrow.Null)
		}
	}
	return unsupported()
}
