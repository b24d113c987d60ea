package parquet

import (
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"

	"github.com/apache/arrow-go/v18/arrow"
	pq "github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/stokehold/stokehold/arrowio"
)

// ErrUnsupported means: a column's type has no mapping here. Always within an
// *UnsupportedError.
var ErrUnsupported = errors.New("unsupported column type")

// UnsupportedError names the column that cannot be written or read.
type UnsupportedError struct {
	Column string
	Type   string // Arrow or Parquet type
	Hint   string // what to do
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("parquet: column %q: %v %s: %s", e.Column, ErrUnsupported, e.Type, e.Hint)
}

func (e *UnsupportedError) Unwrap() error { return ErrUnsupported }

const schemaKey = "ARROW:schema"

// toParquet returns the Parquet schema of an Arrow schema, columns in the same
// order.
func toParquet(schema *arrow.Schema) (*pq.Schema, error) {
	root := columns{Group: pq.Group{}}
	for _, f := range schema.Fields() {
		if _, ok := root.Group[f.Name]; ok || f.Name == "" {
			return nil, &UnsupportedError{f.Name, f.Type.String(), "column names must be unique and not empty; rename one"}
		}
		node, err := leaf(f)
		if err != nil {
			return nil, err
		}
		if f.Nullable {
			node = pq.Optional(node)
		}
		root.Group[f.Name] = node
	}
	// A Group sorts by name; put the columns in the schema's order.
	at := map[string]pq.Field{}
	for _, f := range root.Group.Fields() {
		at[f.Name()] = f
	}
	for _, f := range schema.Fields() {
		root.order = append(root.order, at[f.Name])
	}
	return pq.NewSchema("schema", root), nil
}

// columns is a group in the order of the Arrow schema.
type columns struct {
	pq.Group
	order []pq.Field
}

func (c columns) Fields() []pq.Field   { return c.order }
func (c columns) GoType() reflect.Type { return c.Group.GoType() }

func leaf(f arrow.Field) (pq.Node, error) {
	switch t := f.Type.(type) {
	case *arrow.BooleanType:
		return pq.Leaf(pq.BooleanType), nil
	case *arrow.Int8Type:
		return pq.Int(8), nil
	case *arrow.Int16Type:
		return pq.Int(16), nil
	case *arrow.Int32Type:
		return pq.Leaf(pq.Int32Type), nil
	case *arrow.Int64Type:
		return pq.Leaf(pq.Int64Type), nil
	case *arrow.Uint8Type:
		return pq.Uint(8), nil
	case *arrow.Uint16Type:
		return pq.Uint(16), nil
	case *arrow.Uint32Type:
		return pq.Uint(32), nil
	case *arrow.Uint64Type:
		return pq.Uint(64), nil
	case *arrow.Float32Type:
		return pq.Leaf(pq.FloatType), nil
	case *arrow.Float64Type:
		return pq.Leaf(pq.DoubleType), nil
	case *arrow.Date32Type:
		return pq.Date(), nil
	case *arrow.StringType, *arrow.LargeStringType:
		return pq.Encoded(pq.String(), &pq.RLEDictionary), nil
	case *arrow.BinaryType, *arrow.LargeBinaryType:
		return pq.Leaf(pq.ByteArrayType), nil
	case *arrow.DictionaryType:
		if id := t.ValueType.ID(); id == arrow.STRING || id == arrow.LARGE_STRING {
			return pq.Encoded(pq.String(), &pq.RLEDictionary), nil
		}
	case *arrow.TimestampType:
		utc := t.TimeZone != ""
		switch t.Unit {
		case arrow.Millisecond:
			return pq.TimestampAdjusted(pq.Millisecond, utc), nil
		case arrow.Microsecond:
			return pq.TimestampAdjusted(pq.Microsecond, utc), nil
		case arrow.Nanosecond:
			return pq.TimestampAdjusted(pq.Nanosecond, utc), nil
		default: // Parquet has no seconds
		}
	}
	return nil, &UnsupportedError{f.Name, f.Type.String(), "cast it before writing, or leave it out"}
}

// toArrow returns the Arrow schema of a file: the one stored in it where there
// is one, otherwise derived from the Parquet types.
func toArrow(f *pq.File) (*arrow.Schema, error) {
	cols := f.Root().Columns()
	derived := make([]arrow.Field, len(cols))
	for i, c := range cols {
		dt, err := derive(c)
		if err != nil {
			return nil, err
		}
		derived[i] = arrow.Field{Name: c.Name(), Type: dt, Nullable: c.Optional()}
	}
	text, ok := f.Lookup(schemaKey)
	if !ok {
		return arrow.NewSchema(derived, nil), nil
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("metadata %s: %w", schemaKey, err)
	}
	stored, err := arrowio.DecodeSchema(raw)
	if err != nil {
		return nil, fmt.Errorf("metadata %s: %w", schemaKey, err)
	}
	if stored.NumFields() != len(cols) {
		return nil, fmt.Errorf("metadata %s has %d fields, the file %d columns", schemaKey, stored.NumFields(), len(cols))
	}
	fields := stored.Fields()
	for i := range fields {
		if fields[i].Name != derived[i].Name {
			return nil, fmt.Errorf("metadata %s calls column %d %q, the file %q", schemaKey, i, fields[i].Name, derived[i].Name)
		}
		if fields[i].Type, err = reconcile(fields[i], derived[i].Type); err != nil {
			return nil, err
		}
		// The file decides whether there can be nulls.
		fields[i].Nullable = fields[i].Nullable || derived[i].Nullable
	}
	md := stored.Metadata()
	return arrow.NewSchema(fields, &md), nil
}

func derive(c *pq.Column) (arrow.DataType, error) {
	unsupported := func(what, hint string) (arrow.DataType, error) {
		return nil, &UnsupportedError{c.Name(), what, hint}
	}
	if !c.Leaf() || c.Repeated() {
		return unsupported("nested", "flatten it before writing the file")
	}
	logical := format.LogicalTypeValue(nil)
	if l := c.Type().LogicalType(); l != nil {
		logical = l.Value
	}
	kind := c.Type().Kind()
	switch l := logical.(type) {
	case nil:
		switch kind {
		case pq.Boolean:
			return arrow.FixedWidthTypes.Boolean, nil
		case pq.Int32:
			return arrow.PrimitiveTypes.Int32, nil
		case pq.Int64:
			return arrow.PrimitiveTypes.Int64, nil
		case pq.Float:
			return arrow.PrimitiveTypes.Float32, nil
		case pq.Double:
			return arrow.PrimitiveTypes.Float64, nil
		case pq.ByteArray:
			return arrow.BinaryTypes.Binary, nil
		default: // refused below
		}
	case *format.StringType:
		if kind == pq.ByteArray {
			return arrow.BinaryTypes.String, nil
		}
	case *format.DateType:
		if kind == pq.Int32 {
			return arrow.FixedWidthTypes.Date32, nil
		}
	case *format.IntType:
		return deriveInt(c, kind, l)
	case *format.TimestampType:
		t := &arrow.TimestampType{}
		if l.IsAdjustedToUTC {
			t.TimeZone = "UTC"
		}
		switch l.Unit.Value.(type) {
		case *format.MilliSeconds:
			t.Unit = arrow.Millisecond
		case *format.MicroSeconds:
			t.Unit = arrow.Microsecond
		case *format.NanoSeconds:
			t.Unit = arrow.Nanosecond
		default:
			return unsupported(c.Type().String(), "write timestamps in ms, us or ns")
		}
		if kind == pq.Int64 {
			return t, nil
		}
	}
	return unsupported(c.Type().String(), "cast it before writing the file, or leave it out")
}

func deriveInt(c *pq.Column, kind pq.Kind, l *format.IntType) (arrow.DataType, error) {
	signed := map[int8]arrow.DataType{8: arrow.PrimitiveTypes.Int8, 16: arrow.PrimitiveTypes.Int16, 32: arrow.PrimitiveTypes.Int32, 64: arrow.PrimitiveTypes.Int64}
	unsigned := map[int8]arrow.DataType{8: arrow.PrimitiveTypes.Uint8, 16: arrow.PrimitiveTypes.Uint16, 32: arrow.PrimitiveTypes.Uint32, 64: arrow.PrimitiveTypes.Uint64}
	dt := unsigned[l.BitWidth]
	if l.IsSigned {
		dt = signed[l.BitWidth]
	}
	if dt == nil || kind != pq.Int32 && kind != pq.Int64 || (l.BitWidth == 64) != (kind == pq.Int64) {
		return nil, &UnsupportedError{c.Name(), c.Type().String(), "integers are of 8, 16, 32 or 64 bits"}
	}
	return dt, nil
}

// reconcile returns the type to read a column as: the stored one where it is a
// reading of the Parquet type.
func reconcile(stored arrow.Field, derived arrow.DataType) (arrow.DataType, error) {
	if arrow.TypeEqual(stored.Type, derived) {
		return stored.Type, nil
	}
	text := derived.ID() == arrow.STRING
	switch t := stored.Type.(type) {
	case *arrow.StringType, *arrow.LargeStringType:
		if text {
			return t, nil
		}
	case *arrow.BinaryType, *arrow.LargeBinaryType:
		if derived.ID() == arrow.BINARY {
			return t, nil
		}
	case *arrow.DictionaryType:
		if id := t.ValueType.ID(); text && (id == arrow.STRING || id == arrow.LARGE_STRING) {
			return t, nil
		}
	case *arrow.TimestampType:
		if d, ok := derived.(*arrow.TimestampType); ok {
			// The unit is the file's: writers may have been told to coerce it.
			return &arrow.TimestampType{Unit: d.Unit, TimeZone: t.TimeZone}, nil
		}
	}
	return nil, &UnsupportedError{stored.Name, stored.Type.String(), fmt.Sprintf("the file stores it as %s; cast it before writing the file", derived)}
}
