package celgo

import (
	"math"
	"time"
)

// equal is CEL's heterogeneous equality; known is false for values that only
// cel-go can compare.
func equal(a, b *Value) (eq, known bool) {
	if a.kind == b.kind {
		switch a.kind {
		case String:
			return a.str == b.str, true
		case Double:
			return a.double() == b.double(), true // false for NaN
		case Int, Uint, Bool, Duration:
			return a.num == b.num, true
		case Timestamp:
			return a.num == b.num && a.nsec == b.nsec, true
		case Null:
			return true, true
		default:
			return false, false
		}
	}
	if a.kind == Null || b.kind == Null {
		return false, a.kind != Absent && b.kind != Absent
	}
	if isNumber(a.kind) && isNumber(b.kind) {
		return compareNumbers(a, b) == 0, true
	}
	return false, plain(a) && plain(b)
}

// plain reports whether a value equals none of another kind, numbers apart.
func plain(v *Value) bool {
	switch v.kind {
	case Absent:
		return false
	case Other:
		switch v.ref.(type) {
		case map[string]any, []any:
			return true
		default:
			return false
		}
	default:
		return true
	}
}

func isNumber(k Kind) bool { return k == Int || k == Uint || k == Double }

// unordered is what compare gives beside NaN, which is in no order to any number.
const unordered = 2

// compare orders two values; ok is false where CEL has an error: kinds that do not
// compare.
func compare(a, b *Value) (c int, ok bool) {
	if a.kind != b.kind {
		if isNumber(a.kind) && isNumber(b.kind) {
			return compareNumbers(a, b), true
		}
		return 0, false
	}
	switch a.kind {
	case Double:
		return compareNumbers(a, b), true
	case Int, Duration:
		return order(a.int(), b.int()), true
	case Uint, Bool:
		return order(a.num, b.num), true
	case String:
		return order(a.str, b.str), true
	case Timestamp:
		if c := order(a.int(), b.int()); c != 0 {
			return c, true
		}
		return order(a.nsec, b.nsec), true
	default:
		return 0, false
	}
}

// order is cmp.Compare without its treatment of NaN, which it is never given.
func order[T int32 | int64 | uint64 | float64 | string](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	default:
		return 0
	}
}

// compareNumbers orders numbers of any two kinds as cel-go does: an integer
// beside a double becomes a double unless that is beyond all integers.
func compareNumbers(a, b *Value) int {
	switch {
	case a.kind == Double && b.kind == Double:
		x, y := a.double(), b.double()
		if x != x || y != y {
			return unordered
		}
		return order(x, y)
	case a.kind == Double:
		return compareDouble(a.double(), b)
	case b.kind == Double:
		if c := compareDouble(b.double(), a); c != unordered {
			return -c
		}
		return unordered
	case a.kind == Int && b.kind == Int:
		return order(a.int(), b.int())
	case a.kind == Int && a.int() < 0:
		return -1
	case b.kind == Int && b.int() < 0:
		return 1
	default:
		return order(a.num, b.num)
	}
}

func compareDouble(d float64, n *Value) int {
	switch {
	case math.IsNaN(d):
		return unordered
	case n.kind == Int && d < math.MinInt64, n.kind == Uint && d < 0:
		return -1
	case n.kind == Int && d > math.MaxInt64, n.kind == Uint && d > math.MaxUint64:
		return 1
	case n.kind == Int:
		return order(d, float64(n.int()))
	default:
		return order(d, float64(n.num))
	}
}

// arithmetic applies an operator; ok is false where CEL has an error (overflow,
// division by zero, kinds that do not go together) and for joins, which allocate
// and are left to cel-go.
func arithmetic(op byte, a, b *Value) (v Value, ok bool) {
	switch {
	case a.kind == Double && b.kind == Double:
		x, y := a.double(), b.double()
		switch op {
		case '+':
			return OfDouble(x + y), true
		case '-':
			return OfDouble(x - y), true
		case '*':
			return OfDouble(x * y), true
		case '/':
			return OfDouble(x / y), true
		}
	case a.kind == Int && b.kind == Int:
		n, ok := intArithmetic(op, a.int(), b.int())
		return OfInt(n), ok
	case a.kind == Uint && b.kind == Uint:
		n, ok := uintArithmetic(op, a.num, b.num)
		return OfUint(n), ok
	default:
		return timeArithmetic(op, a, b)
	}
	return Value{}, false
}

func intArithmetic(op byte, x, y int64) (n int64, ok bool) {
	switch op {
	case '+':
		n = x + y
		return n, (n > x) == (y > 0)
	case '-':
		n = x - y
		return n, (n < x) == (y > 0)
	case '*':
		if x == 0 || y == 0 {
			return 0, true
		}
		if x == -1 && y == math.MinInt64 || y == -1 && x == math.MinInt64 {
			return 0, false // where the quotient below overflows too
		}
		n = x * y
		return n, n/y == x
	case '/':
		if y == 0 || x == math.MinInt64 && y == -1 {
			return 0, false
		}
		return x / y, true
	case '%':
		if y == 0 || x == math.MinInt64 && y == -1 {
			return 0, false
		}
		return x % y, true
	default:
		return 0, false
	}
}

func uintArithmetic(op byte, x, y uint64) (n uint64, ok bool) {
	switch op {
	case '+':
		n = x + y
		return n, n >= x
	case '-':
		return x - y, x >= y
	case '*':
		return x * y, y == 0 || x <= math.MaxUint64/y
	case '/':
		if y == 0 {
			return 0, false
		}
		return x / y, true
	case '%':
		if y == 0 {
			return 0, false
		}
		return x % y, true
	default:
		return 0, false
	}
}

// The years 1 to 9999, which CEL's timestamps are held to by arithmetic.
const (
	minUnixTime = -62135596800
	maxUnixTime = 253402300799
)

func timeArithmetic(op byte, a, b *Value) (v Value, ok bool) {
	switch {
	case a.kind == Duration && b.kind == Duration && (op == '+' || op == '-'):
		n, ok := intArithmetic(op, a.int(), b.int())
		return OfDuration(time.Duration(n)), ok
	case a.kind == Timestamp && b.kind == Timestamp && op == '-':
		sec, ok1 := intArithmetic('-', a.int(), b.int())
		nsec, ok2 := intArithmetic('*', sec, int64(time.Second))
		nsec, ok3 := intArithmetic('+', nsec, int64(a.nsec)-int64(b.nsec))
		return OfDuration(time.Duration(nsec)), ok1 && ok2 && ok3
	case a.kind == Timestamp && b.kind == Duration && op == '+':
		return shift(*a, b.int())
	case a.kind == Duration && b.kind == Timestamp && op == '+':
		return shift(*b, a.int())
	case a.kind == Timestamp && b.kind == Duration && op == '-':
		if b.int() == math.MinInt64 {
			return Value{}, false
		}
		return shift(*a, -b.int())
	default:
		return Value{}, false
	}
}

// shift adds nanoseconds to a timestamp.
func shift(t Value, by int64) (Value, bool) {
	sec, ok := intArithmetic('+', t.int(), by/int64(time.Second))
	nsec := int64(t.nsec) + by%int64(time.Second)
	switch {
	case nsec < 0:
		sec, nsec = sec-1, nsec+int64(time.Second)
	case nsec >= int64(time.Second):
		sec, nsec = sec+1, nsec-int64(time.Second)
	}
	if !ok || sec < minUnixTime || sec > maxUnixTime {
		return Value{}, false
	}
	t.num, t.nsec = uint64(sec), int32(nsec)
	return t, true
}

func negate(v Value) (Value, bool) {
	switch v.kind {
	case Double:
		return OfDouble(-v.double()), true
	case Int, Duration:
		if v.int() == math.MinInt64 {
			return Value{}, false
		}
		v.num = uint64(-v.int())
		return v, true
	default:
		return Value{}, false
	}
}

// toInt, toUint and toDouble are the conversions among numbers.
func toInt(v Value) (Value, bool) {
	switch v.kind {
	case Int:
		return v, true
	case Uint:
		return OfInt(int64(v.num)), v.num <= math.MaxInt64
	case Double:
		d := v.double()
		if !(d > math.MinInt64 && d < math.MaxInt64) {
			return Value{}, false
		}
		return OfInt(int64(d)), true
	default:
		return Value{}, false
	}
}

func toUint(v Value) (Value, bool) {
	switch v.kind {
	case Uint:
		return v, true
	case Int:
		return OfUint(v.num), v.int() >= 0
	case Double:
		d := v.double()
		if !(d >= 0 && d < 1<<64) {
			return Value{}, false
		}
		return OfUint(uint64(d)), true
	default:
		return Value{}, false
	}
}

func toDouble(v Value) (Value, bool) {
	switch v.kind {
	case Double:
		return v, true
	case Int:
		return OfDouble(float64(v.int())), true
	case Uint:
		return OfDouble(float64(v.num)), true
	default:
		return Value{}, false
	}
}
