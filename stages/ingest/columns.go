package ingest

import (
	"fmt"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

type kind int

const (
	kindNone kind = iota
	kindTime
	kindInt
	kindFloat
	kindString
)

func kindOf(t arrow.DataType) kind {
	switch t := t.(type) {
	case *arrow.TimestampType:
		if t.Unit == arrow.Microsecond && t.TimeZone == "" {
			return kindTime
		}
	case *arrow.Int64Type:
		return kindInt
	case *arrow.Float64Type:
		return kindFloat
	case *arrow.StringType:
		return kindString
	}
	return kindNone
}

// Columns are the wanted columns of a file, whole, in memory.
type Columns struct {
	file   string
	schema *arrow.Schema
	cols   []column
	rows   int64
	max    int64
	intern map[string]string // one copy of each distinct string
}

// column holds its values in the slice of its kind.
type column struct {
	name    string
	kind    kind
	ints    []int64 // microseconds since 1970 for times
	floats  []float64
	strings []string
}

func newColumns(file string, schema *arrow.Schema, maxRows int64) *Columns {
	t := &Columns{file: file, schema: schema, max: maxRows, intern: map[string]string{}}
	for _, f := range schema.Fields() {
		t.cols = append(t.cols, column{name: f.Name, kind: kindOf(f.Type)})
	}
	return t
}

func (t *Columns) times(name string) ([]int64, error) {
	for i := range t.cols {
		if t.cols[i].name == name && t.cols[i].kind == kindTime {
			return t.cols[i].ints, nil
		}
	}
	return nil, &Error{File: t.file, Column: name, Err: ErrSchema, Detail: "no such timestamp column"}
}

func (t *Columns) room(more int64) error {
	if t.rows+more > t.max {
		return &Error{File: t.file, Err: ErrLimit, Detail: fmt.Sprintf("more than %d rows", t.max)}
	}
	return nil
}

// text returns the one kept copy of s; s itself may lie in a file's mapping.
func (t *Columns) text(s string) string {
	if have, ok := t.intern[s]; ok {
		return have
	}
	s = strings.Clone(s)
	t.intern[s] = s
	return s
}

// wrongType says what a column is and should be.
func (t *Columns) wrongType(f arrow.Field, have string) error {
	return &Error{File: t.file, Column: f.Name, Err: ErrSchema, Detail: fmt.Sprintf("have %s, want %s", have, f.Type)}
}

// checkNames reports the wanted columns that are not among names, as one error.
func (t *Columns) checkNames(names []string) error {
	have := map[string]bool{}
	for _, n := range names {
		have[n] = true
	}
	var missing []string
	for _, f := range t.schema.Fields() {
		if !have[f.Name] {
			missing = append(missing, f.Name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	detail := "missing"
	if others := missing[1:]; len(others) > 0 {
		detail = "missing, and so are " + quoted(others)
	}
	return &Error{File: t.file, Column: missing[0], Err: ErrSchema, Detail: detail + "; the file has " + quoted(names)}
}

// append adds the rows of rec, whose columns are found by name.
func (t *Columns) append(rec arrow.RecordBatch) error {
	if err := t.room(rec.NumRows()); err != nil {
		return err
	}
	for i := range t.cols {
		c := &t.cols[i]
		f := t.schema.Field(i)
		at := rec.Schema().FieldIndices(f.Name)
		if len(at) == 0 {
			return t.wrongType(f, "nothing")
		}
		arr := rec.Column(at[0])
		if arr.NullN() > 0 {
			for r := range arr.Len() {
				if arr.IsNull(r) {
					return &Error{File: t.file, Column: f.Name, Row: t.rows + int64(r) + 1, Err: ErrValue, Detail: "null"}
				}
			}
		}
		if err := t.appendArray(c, f, arr); err != nil {
			return err
		}
	}
	t.rows += rec.NumRows()
	return nil
}

func (t *Columns) appendArray(c *column, f arrow.Field, arr arrow.Array) error {
	switch c.kind {
	case kindTime:
		ts, ok := arr.(*array.Timestamp)
		if !ok {
			return t.wrongType(f, arr.DataType().String())
		}
		unit := ts.DataType().(*arrow.TimestampType).Unit
		for _, v := range ts.TimestampValues() {
			c.ints = append(c.ints, micros(int64(v), unit))
		}
	case kindInt:
		var ok bool
		if c.ints, ok = appendInts(c.ints, arr); !ok {
			return t.wrongType(f, arr.DataType().String())
		}
	case kindFloat:
		switch a := arr.(type) {
		case *array.Float64:
			c.floats = append(c.floats, a.Float64Values()...)
		case *array.Float32:
			c.floats = appendWidened(c.floats, a.Float32Values())
		default:
			return t.wrongType(f, arr.DataType().String())
		}
	case kindNone: // NewSource has refused it
	case kindString:
		value, ok := stringValue(arr)
		if !ok {
			return t.wrongType(f, arr.DataType().String())
		}
		for r := range arr.Len() {
			c.strings = append(c.strings, t.text(value(r)))
		}
	}
	return nil
}

func micros(v int64, u arrow.TimeUnit) int64 {
	switch u {
	case arrow.Second:
		return v * 1_000_000
	case arrow.Millisecond:
		return v * 1_000
	case arrow.Nanosecond:
		return v / 1_000
	case arrow.Microsecond:
	}
	return v
}

func appendInts(dst []int64, arr arrow.Array) ([]int64, bool) {
	switch a := arr.(type) {
	case *array.Int64:
		return append(dst, a.Int64Values()...), true
	case *array.Int32:
		return appendWidened(dst, a.Int32Values()), true
	case *array.Int16:
		return appendWidened(dst, a.Int16Values()), true
	case *array.Int8:
		return appendWidened(dst, a.Int8Values()), true
	case *array.Uint32:
		return appendWidened(dst, a.Uint32Values()), true
	case *array.Uint16:
		return appendWidened(dst, a.Uint16Values()), true
	case *array.Uint8:
		return appendWidened(dst, a.Uint8Values()), true
	}
	return dst, false
}

func appendWidened[W int64 | float64, N int32 | int16 | int8 | uint32 | uint16 | uint8 | float32](dst []W, src []N) []W {
	for _, v := range src {
		dst = append(dst, W(v))
	}
	return dst
}

func stringValue(arr arrow.Array) (func(int) string, bool) {
	switch a := arr.(type) {
	case *array.String:
		return a.Value, true
	case *array.LargeString:
		return a.Value, true
	case *array.StringView:
		return a.Value, true
	case *array.Dictionary:
		value, ok := stringValue(a.Dictionary())
		if !ok {
			return nil, false
		}
		return func(i int) string { return value(a.GetValueIndex(i)) }, true
	}
	return nil, false
}

// split orders the rows by key.
func (t *Columns) split(keys []uint64, n uint64) (*split, error) {
	start := make([]int, n+1)
	for _, k := range keys {
		start[k+1]++
	}
	for k := range n {
		if start[k+1] == 0 {
			return nil, &Error{File: t.file, Err: ErrValue, Detail: fmt.Sprintf("no rows for batch %d of %d: the file has a gap", k, n)}
		}
		start[k+1] += start[k]
	}
	sp := &split{table: t, order: make([]int, len(keys)), start: start}
	next := append([]int(nil), start...)
	for row, k := range keys {
		sp.order[next[k]] = row
		next[k]++
	}
	for i := range t.cols {
		if t.cols[i].kind != kindTime {
			continue
		}
		for k := range n {
			rows := sp.rowsOf(k)
			least := t.cols[i].ints[rows[0]]
			for _, r := range rows {
				least = min(least, t.cols[i].ints[r])
			}
			sp.first = append(sp.first, time.UnixMicro(least).UTC())
		}
		break
	}
	return sp, nil
}

// column returns the one of that name, which schema has been checked to have.
func (t *Columns) column(name string) *column {
	for i := range t.cols {
		if t.cols[i].name == name {
			return &t.cols[i]
		}
	}
	return nil
}

// build makes a batch of rows. schema is of some of the columns, by name.
func (t *Columns) build(mem memory.Allocator, schema *arrow.Schema, rows []int) arrow.RecordBatch {
	b := array.NewRecordBuilder(mem, schema)
	defer b.Release()
	for i, field := range schema.Fields() {
		c := t.column(field.Name)
		b.Field(i).Resize(len(rows)) // Reserve would take up to twice as much
		switch f := b.Field(i).(type) {
		case *array.TimestampBuilder:
			for _, r := range rows {
				f.UnsafeAppend(arrow.Timestamp(c.ints[r]))
			}
		case *array.Int64Builder:
			for _, r := range rows {
				f.UnsafeAppend(c.ints[r])
			}
		case *array.Float64Builder:
			for _, r := range rows {
				f.UnsafeAppend(c.floats[r])
			}
		case *array.StringBuilder:
			f.ReserveData(c.text(rows))
			for _, r := range rows {
				f.Append(c.strings[r])
			}
		}
	}
	return b.NewRecordBatch()
}

// text is the length in bytes of the strings of rows.
func (c *column) text(rows []int) (bytes int) {
	for _, r := range rows {
		bytes += len(c.strings[r])
	}
	return bytes
}

// bytes is what build takes of its allocator, at most.
func (t *Columns) bytes(schema *arrow.Schema, rows []int) (n int64) {
	const least, buffer = 32, 64 // of a builder's rows, and what buffers are rounded up to
	for _, field := range schema.Fields() {
		values := int64(max(len(rows), least))
		n += values/8 + buffer // which are not null
		if c := t.column(field.Name); c.kind == kindString {
			n += 4*(values+1) + int64(c.text(rows)) + 2*buffer
		} else {
			n += 8*values + buffer
		}
	}
	return n
}

func quoted(names []string) string {
	const most = 20 // a wrong file may have thousands of columns
	if len(names) > most {
		return fmt.Sprintf("%q and %d more", names[:most], len(names)-most)
	}
	return fmt.Sprintf("%q", names)
}
