package celgo

import (
	"math"
	"time"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// Kind says what a Value holds.
type Kind uint8

// The kinds.
const (
	// Absent is no value: a field that is not set, or optional.none().
	Absent Kind = iota
	Null
	Bool
	Int
	Uint
	Double
	String
	Timestamp
	Duration
	// Other is whatever else CEL has: maps, lists, structs, bytes, types.
	Other
)

// Value is a CEL value that needs no allocation where CEL's own needs one for its
// interface. The zero Value is Absent. It is large: methods take it by its address.
type Value struct {
	kind Kind
	nsec int32  // of a timestamp
	num  uint64 // two's complement, IEEE 754 bits, 0 or 1, nanoseconds, seconds since 1970
	str  string
	ref  any // of Other: what cel-go would be given; of a timestamp: *time.Location, nil for UTC
}

// Kind returns what the value holds.
func (v *Value) Kind() Kind { return v.kind }

// Ref returns what OfOther was given; nil for other kinds.
func (v *Value) Ref() any {
	if v.kind != Other {
		return nil
	}
	return v.ref
}

// Text returns a string's bytes; "" for other kinds.
func (v *Value) Text() string { return v.str }

// OfNull returns null.
func OfNull() Value { return Value{kind: Null} }

// OfBool returns a bool.
func OfBool(b bool) Value {
	if b {
		return Value{kind: Bool, num: 1}
	}
	return Value{kind: Bool}
}

// OfInt returns an int.
func OfInt(n int64) Value { return Value{kind: Int, num: uint64(n)} }

// OfUint returns a uint.
func OfUint(n uint64) Value { return Value{kind: Uint, num: n} }

// OfDouble returns a double.
func OfDouble(f float64) Value { return Value{kind: Double, num: math.Float64bits(f)} }

// OfString returns a string.
func OfString(s string) Value { return Value{kind: String, str: s} }

// SetDouble makes an Absent value a double.
func (v *Value) SetDouble(f float64) { v.kind, v.num = Double, math.Float64bits(f) }

// SetInt makes an Absent value an int.
func (v *Value) SetInt(n int64) { v.kind, v.num = Int, uint64(n) }

// SetString makes an Absent value a string.
func (v *Value) SetString(s string) { v.kind, v.str = String, s }

// OfDuration returns a duration.
func OfDuration(d time.Duration) Value { return Value{kind: Duration, num: uint64(d)} }

// OfTimestamp returns a timestamp with its location, which CEL shows when it
// formats one.
func OfTimestamp(t time.Time) Value {
	v := Value{kind: Timestamp, num: uint64(t.Unix()), nsec: int32(t.Nanosecond())}
	if loc := t.Location(); loc != time.UTC {
		v.ref = loc
	}
	return v
}

// OfOther returns a value that the package passes through: a map[string]any or a
// []any of values that cel-go takes, a struct of the scope's, or any other
// ref.Val.
func OfOther(x any) Value { return Value{kind: Other, ref: x} }

func (v *Value) int() int64      { return int64(v.num) }
func (v *Value) double() float64 { return math.Float64frombits(v.num) }
func (v *Value) isTrue() bool    { return v.num != 0 }

func (v *Value) time() time.Time {
	t := time.Unix(int64(v.num), int64(v.nsec))
	if loc, ok := v.ref.(*time.Location); ok {
		return t.In(loc)
	}
	return t.UTC()
}

// Of converts a value that cel-go takes. It is false for errors, unknowns and
// optionals, which have no Value.
func Of(x any) (Value, bool) {
	switch x := x.(type) {
	case types.String:
		return OfString(string(x)), true
	case types.Double:
		return OfDouble(float64(x)), true
	case types.Int:
		return OfInt(int64(x)), true
	case types.Bool:
		return OfBool(bool(x)), true
	case types.Uint:
		return OfUint(uint64(x)), true
	case types.Null:
		return OfNull(), true
	case types.Timestamp:
		return OfTimestamp(x.Time), true
	case types.Duration:
		return OfDuration(x.Duration), true
	case map[string]any, []any:
		return OfOther(x), true
	case *types.Err, *types.Unknown, *types.Optional, error, nil:
		return Value{}, false
	case ref.Val:
		return OfOther(x), true
	case string:
		return OfString(x), true
	case float64:
		return OfDouble(x), true
	case int:
		return OfInt(int64(x)), true
	case int64:
		return OfInt(x), true
	case uint64:
		return OfUint(x), true
	case bool:
		return OfBool(x), true
	case time.Time:
		return OfTimestamp(x), true
	case time.Duration:
		return OfDuration(x), true
	default:
		return Value{}, false
	}
}

// Boxed returns the value as cel-go takes it: a ref.Val, or what OfOther was
// given; nil if it is absent. Most kinds allocate.
func (v *Value) Boxed() any {
	switch v.kind {
	case Absent:
		return nil
	case Null:
		return types.NullValue
	case Bool:
		return types.Bool(v.isTrue())
	case Int:
		return types.Int(v.int())
	case Uint:
		return types.Uint(v.num)
	case Double:
		return types.Double(v.double())
	case String:
		return types.String(v.str)
	case Timestamp:
		return types.Timestamp{Time: v.time()}
	case Duration:
		return types.Duration{Duration: time.Duration(v.num)}
	default:
		return v.ref
	}
}
