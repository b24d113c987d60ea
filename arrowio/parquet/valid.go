package parquet

import (
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/decimal256"
)

const (
	notWithinADay = "a time of day is at least 0 and less than a day"
	tooManyDigits = "it has more digits than the decimal's precision"
)

// invalid returns the index of the first value, in Arrow's form, that its type does
// not allow though its bytes could say it, and why; or -1. Such values are refused
// both ways, so that what is written can be read.
func invalid(dt arrow.DataType, values []byte) (bad int, why string) {
	switch t := dt.(type) {
	case *arrow.Time32Type:
		limit := uint32(nanosPerDay / int64(t.Unit.Multiplier()))
		for i, v := range arrow.Uint32Traits.CastFromBytes(values) {
			if v >= limit {
				return i, notWithinADay
			}
		}
	case *arrow.Time64Type:
		limit := uint64(nanosPerDay / int64(t.Unit.Multiplier()))
		for i, v := range arrow.Uint64Traits.CastFromBytes(values) {
			if v >= limit {
				return i, notWithinADay
			}
		}
	case *arrow.Decimal32Type:
		limit := power(t.Precision)
		for i, v := range arrow.Int32Traits.CastFromBytes(values) {
			if int64(v) >= limit || int64(v) <= -limit {
				return i, tooManyDigits
			}
		}
	case *arrow.Decimal64Type:
		limit := power(t.Precision)
		for i, v := range arrow.Int64Traits.CastFromBytes(values) {
			if v >= limit || v <= -limit {
				return i, tooManyDigits
			}
		}
	case *arrow.Decimal128Type:
		for i := range len(values) / 16 {
			b := values[16*i:]
			if !decimal128.New(int64(little.Uint64(b[8:])), little.Uint64(b)).FitsInPrecision(t.Precision) {
				return i, tooManyDigits
			}
		}
	case *arrow.Decimal256Type:
		for i := range len(values) / 32 {
			b := values[32*i:]
			if !decimal256.New(little.Uint64(b[24:]), little.Uint64(b[16:]), little.Uint64(b[8:]), little.Uint64(b)).FitsInPrecision(t.Precision) {
				return i, tooManyDigits
			}
		}
	}
	return -1, ""
}

// power is 10 to the power of a precision of at most 18.
func power(digits int32) int64 {
	p := int64(1)
	for range digits {
		p *= 10
	}
	return p
}
