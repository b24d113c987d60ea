package parquet

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/parquet-go/parquet-go/format"
)

// Predicate is a condition on a row: a Compare, And or Or.
//
// It is three-valued, as in SQL: what compares a null is not true. Floats compare
// as in IEEE 754, so that NaN is equal to nothing, and neither less nor greater.
type Predicate interface {
	// may reports whether some row of a row group can make it true.
	may(f *File, g *rowGroup) (bool, error)
}

// Op is how a Compare compares.
type Op uint8

// The comparisons. IsNull and NotNull have no value.
const (
	Equal Op = iota
	NotEqual
	Less
	LessOrEqual
	Greater
	GreaterOrEqual
	IsNull
	NotNull
)

// Compare is true of rows whose column compares so with a value.
type Compare struct {
	// Column is the name of a field without children, or a path of names joined by
	// dots through structs.
	Column string
	Op     Op
	// Value is of any integer type for integers, durations, times, dates in days and
	// timestamps in the column's unit; a time.Time for timestamps; float32 or float64
	// for floats; string or []byte for text and binary; bool for booleans.
	Value any
}

// And is true where all of its parts are; And{} of every row.
type And []Predicate

// Or is true where one of its parts is; Or{} of no row.
type Or []Predicate

func (a And) may(f *File, g *rowGroup) (bool, error) {
	all := true
	for _, p := range a { // to the end, for the faults
		ok, err := p.may(f, g)
		if err != nil {
			return false, err
		}
		all = all && ok
	}
	return all, nil
}

func (o Or) may(f *File, g *rowGroup) (bool, error) {
	one := false
	for _, p := range o {
		ok, err := p.may(f, g)
		if err != nil {
			return false, err
		}
		one = one || ok
	}
	return one, nil
}

// Matching lists the row groups that may have rows for which the predicate is
// true, as their statistics tell; all if it is nil. A row group without statistics,
// or with ones that make no sense, may always have some.
func (f *File) Matching(where Predicate) (groups []int, err error) {
	defer guard("statistics", &err)
	for i := range f.meta.groups {
		ok := true
		if where != nil {
			if ok, err = where.may(f, &f.meta.groups[i]); err != nil {
				return nil, err
			}
		}
		if ok {
			groups = append(groups, i)
		}
	}
	if len(f.meta.groups) == 0 && where != nil { // for the faults
		_, err = where.may(f, nil)
	}
	return groups, err
}

func (c Compare) may(f *File, g *rowGroup) (bool, error) {
	leaf, err := f.tree.find(c.Column)
	if err != nil {
		return false, err
	}
	if c.Op > NotNull {
		return false, fmt.Errorf("parquet: predicate on %q: unknown comparison %d", c.Column, c.Op)
	}
	if c.Op < IsNull {
		if err := checkValue(leaf, c.Value); err != nil {
			return false, fmt.Errorf("parquet: predicate: %w: %q is of type %s: %w", ErrColumn, c.Column, leaf.field.Type, err)
		}
	}
	if g == nil {
		return true, nil
	}
	k := &g.chunks[leaf.firstLeaf]
	s := &k.stats
	counted := s.nulls >= 0 && s.nulls <= k.values && k.values == g.rows
	switch {
	case c.Op == IsNull:
		return !counted || s.nulls > 0, nil
	case counted && s.nulls == k.values:
		return false, nil
	case c.Op == NotNull:
		return true, nil
	}
	lo, hi, exact, ok := f.bounds(leaf, k)
	if !ok {
		return true, nil
	}
	below, known := against(leaf, lo, c.Value) // lo compared with the value
	above, also := against(leaf, hi, c.Value)
	if !known || !also {
		return true, nil
	}
	switch c.Op {
	case Equal:
		return below <= 0 && above >= 0, nil
	case NotEqual:
		return !exact || below != 0 || above != 0, nil
	case Less:
		return below < 0, nil
	case LessOrEqual:
		return below <= 0, nil
	case Greater:
		return above > 0, nil
	default:
		return above >= 0, nil
	}
}

// bounds returns what the statistics say of a column, if that can be relied on.
// exact: if both are equal, no value differs from them.
func (f *File) bounds(leaf *node, k *chunk) (lo, hi []byte, exact, ok bool) {
	s, st := &k.stats, &leaf.storage
	width := st.width
	if st.order == orderBool {
		width = 1
	}
	switch {
	case s.min != nil && s.max != nil && f.meta.hasOrders && leaf.firstLeaf < len(f.meta.ordered) && f.meta.ordered[leaf.firstLeaf]:
		lo, hi = s.min, s.max
	case s.oldMin != nil && s.oldMax != nil && (st.order == orderInt32 || st.order == orderInt64):
		lo, hi = s.oldMin, s.oldMax // their order was right for signed integers alone
	default:
		return nil, nil, false, false
	}
	if st.order == orderNone || st.physical == format.Int96 || width > 0 && (len(lo) != width || len(hi) != width) {
		return nil, nil, false, false
	}
	if isNaN(st.order, lo) || isNaN(st.order, hi) || compare(st.order, lo, hi) > 0 {
		return nil, nil, false, false
	}
	switch st.order {
	case orderFloat16, orderFloat32, orderFloat64: // NaN is in no statistics
		exact = false
	case orderBytes: // may have been cut
		exact = s.exact
	default:
		exact = !s.inexactMin && !s.inexactMax
	}
	return lo, hi, exact, true
}

var errWrongType = errors.New("it cannot be compared with a value of this type")

// checkValue reports whether a column can be compared with a value.
func checkValue(leaf *node, v any) error {
	ok := false
	switch t := valueType(leaf.dt).(type) {
	case *arrow.BooleanType:
		_, ok = v.(bool)
	case *arrow.StringType, *arrow.LargeStringType, *arrow.StringViewType, *arrow.BinaryType, *arrow.LargeBinaryType, *arrow.BinaryViewType, *arrow.FixedSizeBinaryType:
		_, ok = bytesValue(v)
	case *arrow.Float32Type, *arrow.Float64Type:
		_, ok = floatValue(v)
	case *arrow.TimestampType:
		if _, isTime := v.(time.Time); isTime {
			return nil
		}
		_, _, ok = intValue(v)
	case *arrow.Int8Type, *arrow.Int16Type, *arrow.Int32Type, *arrow.Int64Type, *arrow.Uint8Type, *arrow.Uint16Type, *arrow.Uint32Type, *arrow.Uint64Type,
		*arrow.Date32Type, *arrow.Time32Type, *arrow.Time64Type, *arrow.DurationType:
		_, _, ok = intValue(v)
	default:
		return fmt.Errorf("statistics of %s are not compared", t)
	}
	if !ok {
		return fmt.Errorf("%w: %T", errWrongType, v)
	}
	return nil
}

func bytesValue(v any) ([]byte, bool) {
	switch v := v.(type) {
	case string:
		return []byte(v), true
	case []byte:
		return v, true
	}
	return nil, false
}

func floatValue(v any) (float64, bool) {
	switch v := v.(type) {
	case float32:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

// intValue is an integer as int64, or as uint64 if it is over the greatest int64.
func intValue(v any) (signed int64, unsigned uint64, ok bool) {
	switch v := v.(type) {
	case int:
		return int64(v), 0, true
	case int8:
		return int64(v), 0, true
	case int16:
		return int64(v), 0, true
	case int32:
		return int64(v), 0, true
	case int64:
		return v, 0, true
	case uint8:
		return int64(v), 0, true
	case uint16:
		return int64(v), 0, true
	case uint32:
		return int64(v), 0, true
	case uint:
		return split(uint64(v))
	case uint64:
		return split(v)
	case arrow.Date32:
		return int64(v), 0, true
	case arrow.Timestamp:
		return int64(v), 0, true
	case arrow.Duration:
		return int64(v), 0, true
	}
	return 0, 0, false
}

func split(v uint64) (signed int64, unsigned uint64, ok bool) {
	if v > math.MaxInt64 {
		return 0, v, true
	}
	return int64(v), 0, true
}

// against compares a bound with a value that is comparable. known is false where
// they do not compare, as with NaN.
func against(leaf *node, bound []byte, v any) (result int, known bool) {
	switch leaf.storage.order {
	case orderBool:
		return int(bound[0]) - boolInt(v.(bool)), true
	case orderBytes:
		b, _ := bytesValue(v)
		return bytes.Compare(bound, b), true
	case orderFloat32:
		f, _ := floatValue(v)
		return compareFloats(float64(math.Float32frombits(little.Uint32(bound))), f)
	case orderFloat64:
		f, _ := floatValue(v)
		return compareFloats(math.Float64frombits(little.Uint64(bound)), f)
	case orderInt32:
		return againstInt(leaf, int64(int32(little.Uint32(bound))), 0, v)
	case orderUint32:
		return againstInt(leaf, int64(little.Uint32(bound)), 0, v)
	case orderInt64:
		return againstInt(leaf, int64(little.Uint64(bound)), 0, v)
	case orderUint64:
		s, u, _ := split(little.Uint64(bound))
		return againstInt(leaf, s, u, v)
	default:
		return 0, false
	}
}

func compareFloats(a, b float64) (int, bool) {
	if math.IsNaN(b) {
		return 0, false
	}
	return threeWay(a, b), true
}

func againstInt(leaf *node, bound int64, over uint64, v any) (int, bool) {
	if c := leaf.storage.conv; c == convSeconds32 || c == convSeconds64 {
		if bound%1000 != 0 {
			return 0, false
		}
		bound /= 1000
	}
	if t, ok := v.(time.Time); ok {
		unit := int64(valueType(leaf.dt).(*arrow.TimestampType).Unit.Multiplier())
		perSecond := int64(time.Second) / unit
		sec, rest := bound/perSecond, bound%perSecond
		return time.Unix(sec, rest*unit).Compare(t), true
	}
	signed, unsigned, _ := intValue(v)
	if over != 0 || unsigned != 0 {
		return cmp.Compare(max(over, uint64(max(bound, 0))), max(unsigned, uint64(max(signed, 0)))), true
	}
	return cmp.Compare(bound, signed), true
}
