package parquet

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/format"
)

// storage is how Parquet holds the values of a leaf.
type storage struct {
	physical format.Type
	width    int // bytes of a value in PLAIN encoding; 0 for BOOLEAN and BYTE_ARRAY
	logical  logical
	interval bool // INTERVAL, which has no logical type
	order    order
	conv     conversion
}

// order is how statistics compare values.
type order uint8

const (
	orderNone order = iota
	orderBool
	orderInt32
	orderInt64
	orderUint32
	orderUint64
	orderFloat32
	orderFloat64
	orderFloat16
	orderBytes   // unsigned, lexicographic
	orderDecimal // big-endian two's complement
)

// conversion is between a value in Arrow's buffer and one in Parquet's PLAIN
// encoding.
type conversion uint8

const (
	convSame         conversion = iota
	convInt8                    // in an int32
	convInt16                   // in an int32
	convUint8                   // in an int32
	convUint16                  // in an int32
	convSeconds32               // seconds in int32, milliseconds in Parquet
	convSeconds64               // seconds in int64, milliseconds in Parquet
	convDays                    // milliseconds in int64, days in an int32
	convSigned                  // little-endian integers of different widths: decimals
	convBigEndian               // little-endian integers as big-endian ones of width bytes
	convMonths                  // months in an INTERVAL
	convDayTime                 // days and milliseconds in an INTERVAL
	convMonthDayNano            // months, days and nanoseconds in an INTERVAL
	convInt96                   // Julian day and nanoseconds of the day; read only
)

const (
	millisPerDay  = 24 * 60 * 60 * 1000
	nanosPerDay   = millisPerDay * 1_000_000
	julianOfEpoch = 2_440_588 // Julian day of 1970-01-01
)

// storageOf returns how values of a type without children are written. hint says
// what to do about a type that has no place in Parquet.
func storageOf(dt arrow.DataType) (s storage, hint string) {
	num := func(p format.Type, o order) storage { return storage{physical: p, width: widthOf(p), order: o} }
	integer := func(p format.Type, o order, bits int8, signed bool, c conversion) storage {
		return storage{physical: p, width: widthOf(p), order: o, conv: c, logical: logical{id: logicalInt, bits: bits, signed: signed}}
	}
	switch t := dt.(type) {
	case *arrow.NullType:
		return storage{physical: format.Int32, width: 4, logical: logical{id: logicalNull}}, ""
	case *arrow.BooleanType:
		return storage{physical: format.Boolean, order: orderBool}, ""
	case *arrow.Int8Type:
		return integer(format.Int32, orderInt32, 8, true, convInt8), ""
	case *arrow.Int16Type:
		return integer(format.Int32, orderInt32, 16, true, convInt16), ""
	case *arrow.Int32Type:
		return num(format.Int32, orderInt32), ""
	case *arrow.Int64Type:
		return num(format.Int64, orderInt64), ""
	case *arrow.Uint8Type:
		return integer(format.Int32, orderUint32, 8, false, convUint8), ""
	case *arrow.Uint16Type:
		return integer(format.Int32, orderUint32, 16, false, convUint16), ""
	case *arrow.Uint32Type:
		return integer(format.Int32, orderUint32, 32, false, convSame), ""
	case *arrow.Uint64Type:
		return integer(format.Int64, orderUint64, 64, false, convSame), ""
	case *arrow.Float16Type:
		return storage{physical: format.FixedLenByteArray, width: 2, order: orderFloat16, logical: logical{id: logicalFloat16}}, ""
	case *arrow.Float32Type:
		return num(format.Float, orderFloat32), ""
	case *arrow.Float64Type:
		return num(format.Double, orderFloat64), ""
	case arrow.DecimalType:
		return decimalStorage(t)
	case *arrow.Date32Type:
		return storage{physical: format.Int32, width: 4, order: orderInt32, logical: logical{id: logicalDate}}, ""
	case *arrow.Date64Type:
		return storage{physical: format.Int32, width: 4, order: orderInt32, logical: logical{id: logicalDate}, conv: convDays}, ""
	case *arrow.Time32Type:
		s := storage{physical: format.Int32, width: 4, order: orderInt32, logical: logical{id: logicalTime, unit: unitOf(t.Unit)}}
		if t.Unit == arrow.Second {
			s.conv = convSeconds32
		}
		return s, ""
	case *arrow.Time64Type:
		return storage{physical: format.Int64, width: 8, order: orderInt64, logical: logical{id: logicalTime, unit: unitOf(t.Unit)}}, ""
	case *arrow.TimestampType:
		s := storage{physical: format.Int64, width: 8, order: orderInt64, logical: logical{id: logicalTimestamp, unit: unitOf(t.Unit), utc: t.TimeZone != ""}}
		if t.Unit == arrow.Second {
			s.conv = convSeconds64
		}
		return s, ""
	case *arrow.DurationType:
		return num(format.Int64, orderInt64), ""
	case *arrow.MonthIntervalType:
		return intervalStorage(convMonths), ""
	case *arrow.DayTimeIntervalType:
		return intervalStorage(convDayTime), ""
	case *arrow.MonthDayNanoIntervalType:
		return intervalStorage(convMonthDayNano), ""
	case *arrow.StringType, *arrow.LargeStringType, *arrow.StringViewType:
		return storage{physical: format.ByteArray, order: orderBytes, logical: logical{id: logicalString}}, ""
	case *arrow.BinaryType, *arrow.LargeBinaryType, *arrow.BinaryViewType:
		return storage{physical: format.ByteArray, order: orderBytes}, ""
	case *arrow.FixedSizeBinaryType:
		if t.ByteWidth == 0 {
			return s, "Parquet has no values of 0 bytes; leave it out"
		}
		return storage{physical: format.FixedLenByteArray, width: t.ByteWidth, order: orderBytes}, ""
	}
	return s, "Parquet has no such type; cast it before writing, or leave it out"
}

func intervalStorage(c conversion) storage {
	return storage{physical: format.FixedLenByteArray, width: 12, interval: true, conv: c}
}

func decimalStorage(t arrow.DecimalType) (s storage, hint string) {
	p, scale := t.GetPrecision(), t.GetScale()
	if p < 1 || scale < 0 || scale > p {
		return s, "a Parquet decimal has a scale of 0 to its precision; rescale it"
	}
	s.logical = logical{id: logicalDecimal, precision: p, scale: scale}
	switch {
	case p <= 9:
		s.physical, s.width, s.order, s.conv = format.Int32, 4, orderInt32, convSigned
	case p <= 18:
		s.physical, s.width, s.order, s.conv = format.Int64, 8, orderInt64, convSigned
	default:
		s.physical, s.width, s.order, s.conv = format.FixedLenByteArray, decimalBytes(p), orderDecimal, convBigEndian
	}
	return s, ""
}

// decimalBytes is how many bytes hold a signed number of that many digits.
func decimalBytes(digits int32) int {
	return int(math.Ceil((float64(digits)*math.Log2(10) + 1) / 8))
}

// unitOf is the case of the union TimeUnit; Parquet has no seconds.
func unitOf(u arrow.TimeUnit) int16 {
	switch u {
	case arrow.Microsecond:
		return 2
	case arrow.Nanosecond:
		return 3
	default:
		return 1
	}
}

func widthOf(p format.Type) int {
	switch p {
	case format.Int32, format.Float:
		return 4
	case format.Int64, format.Double:
		return 8
	case format.Int96:
		return 12
	default:
		return 0
	}
}

// sameColumn reports whether two leaves are the same column of Parquet, whatever
// Arrow calls it.
func (s storage) sameColumn(o storage) bool {
	a, b := s.logical, o.logical
	if a.id == logicalTime {
		a.utc, b.utc = false, false // Arrow has no such flag
	}
	return s.physical == o.physical && s.width == o.width && s.interval == o.interval && a == b
}

// convertedType is the annotation that older readers know.
func (s storage) convertedType() (deprecated.ConvertedType, bool) {
	l := s.logical
	switch l.id {
	case logicalString:
		return deprecated.UTF8, true
	case logicalDecimal:
		return deprecated.Decimal, true
	case logicalDate:
		return deprecated.Date, true
	case logicalJSON:
		return deprecated.Json, true
	case logicalInt:
		types := map[int8][2]deprecated.ConvertedType{8: {deprecated.Uint8, deprecated.Int8}, 16: {deprecated.Uint16, deprecated.Int16},
			32: {deprecated.Uint32, deprecated.Int32}, 64: {deprecated.Uint64, deprecated.Int64}}
		if l.signed {
			return types[l.bits][1], true
		}
		return types[l.bits][0], true
	case logicalTimestamp: // the old annotations mean instants
		if l.utc && l.unit < 3 {
			return deprecated.TimestampMillis + deprecated.ConvertedType(l.unit-1), true
		}
	}
	return deprecated.Interval, s.interval
}

// arrowWidth is the bytes of a value in Arrow's buffer.
func arrowWidth(dt arrow.DataType) int {
	if f, ok := dt.(arrow.FixedWidthDataType); ok {
		return f.BitWidth() / 8
	}
	return 0
}

var little = binary.LittleEndian

// toParquet converts as many values as dst holds. It returns the index of the
// first that Parquet cannot hold, and why, or -1.
func (s *storage) toParquet(dst, src []byte, from int) (bad int, why string) {
	switch s.conv {
	case convSame:
		copy(dst, src)
	case convInt8:
		for i := range len(dst) / 4 {
			little.PutUint32(dst[4*i:], uint32(int32(int8(src[i]))))
		}
	case convUint8:
		for i := range len(dst) / 4 {
			little.PutUint32(dst[4*i:], uint32(src[i]))
		}
	case convInt16:
		for i := range len(dst) / 4 {
			little.PutUint32(dst[4*i:], uint32(int32(int16(little.Uint16(src[2*i:])))))
		}
	case convUint16:
		for i := range len(dst) / 4 {
			little.PutUint32(dst[4*i:], uint32(little.Uint16(src[2*i:])))
		}
	case convSeconds32:
		for i := range len(dst) / 4 {
			v := int64(int32(little.Uint32(src[4*i:]))) * 1000
			if int64(int32(v)) != v {
				return i, "Parquet has no seconds, and as milliseconds it has more than 32 bits; it is outside the day"
			}
			little.PutUint32(dst[4*i:], uint32(v))
		}
	case convSeconds64:
		for i := range len(dst) / 8 {
			v := int64(little.Uint64(src[8*i:]))
			if v > math.MaxInt64/1000 || v < math.MinInt64/1000 {
				return i, "Parquet has no seconds, and as milliseconds it has more than 64 bits; store the seconds as int64"
			}
			little.PutUint64(dst[8*i:], uint64(v*1000))
		}
	case convDays:
		for i := range len(dst) / 4 {
			v := int64(little.Uint64(src[8*i:]))
			if v%millisPerDay != 0 || int64(int32(v/millisPerDay)) != v/millisPerDay {
				return i, "a date is a whole number of days, in 32 bits; cast it to a timestamp"
			}
			little.PutUint32(dst[4*i:], uint32(v/millisPerDay))
		}
	case convSigned:
		return resize(dst, src, s.width, from), "it has more digits than the decimal's precision"
	case convBigEndian:
		n := len(dst) / s.width
		if bad := resize(dst, src, s.width, from); bad >= 0 {
			return bad, "it has more digits than the decimal's precision"
		}
		for i := range n {
			slices.Reverse(dst[s.width*i : s.width*(i+1)])
		}
	case convMonths:
		for i := range len(dst) / 12 {
			clear(dst[12*i : 12*i+12])
			if m := int32(little.Uint32(src[4*i:])); m < 0 {
				return i, "a Parquet interval is not negative; store the months as int32"
			}
			copy(dst[12*i:], src[4*i:4*i+4])
		}
	case convDayTime:
		for i := range len(dst) / 12 {
			clear(dst[12*i : 12*i+12])
			if int32(little.Uint32(src[8*i:])) < 0 || int32(little.Uint32(src[8*i+4:])) < 0 {
				return i, "a Parquet interval is not negative; store days and milliseconds as integers"
			}
			copy(dst[12*i+4:], src[8*i:8*i+8])
		}
	case convMonthDayNano:
		for i := range len(dst) / 12 {
			nanos := int64(little.Uint64(src[16*i+8:]))
			if int32(little.Uint32(src[16*i:])) < 0 || int32(little.Uint32(src[16*i+4:])) < 0 || nanos < 0 || nanos%1_000_000 != 0 || nanos/1_000_000 > math.MaxUint32 {
				return i, "a Parquet interval is not negative and has milliseconds, of 32 bits; store its parts as integers"
			}
			copy(dst[12*i:], src[16*i:16*i+8])
			little.PutUint32(dst[12*i+8:], uint32(nanos/1_000_000))
		}
	}
	return -1, ""
}

// toArrow converts as many values as src holds of s.width bytes. It returns the
// index of the first that Arrow's type cannot hold, or -1. width is that of the
// Arrow type.
func (s *storage) toArrow(dst, src []byte, width int) (bad int) {
	n := len(src) / s.width
	switch s.conv {
	case convSame:
		copy(dst, src)
	case convInt8, convUint8:
		signed := s.conv == convInt8
		for i := range n {
			v := little.Uint32(src[4*i:])
			if signed && int32(int8(v)) != int32(v) || !signed && v > math.MaxUint8 {
				return i
			}
			dst[i] = byte(v)
		}
	case convInt16, convUint16:
		signed := s.conv == convInt16
		for i := range n {
			v := little.Uint32(src[4*i:])
			if signed && int32(int16(v)) != int32(v) || !signed && v > math.MaxUint16 {
				return i
			}
			little.PutUint16(dst[2*i:], uint16(v))
		}
	case convSeconds32:
		for i := range n {
			v := int32(little.Uint32(src[4*i:]))
			if v%1000 != 0 {
				return i
			}
			little.PutUint32(dst[4*i:], uint32(v/1000))
		}
	case convSeconds64:
		for i := range n {
			v := int64(little.Uint64(src[8*i:]))
			if v%1000 != 0 {
				return i
			}
			little.PutUint64(dst[8*i:], uint64(v/1000))
		}
	case convDays:
		for i := range n {
			little.PutUint64(dst[8*i:], uint64(int64(int32(little.Uint32(src[4*i:])))*millisPerDay))
		}
	case convSigned:
		return resize(dst[:n*width], src, width, s.width)
	case convBigEndian:
		var v [64]byte
		for i := range n {
			one := v[:s.width]
			copy(one, src[s.width*i:])
			slices.Reverse(one)
			if resize(dst[width*i:width*(i+1)], one, width, s.width) >= 0 {
				return i
			}
		}
	case convMonths:
		for i := range n {
			if little.Uint64(src[12*i+4:]) != 0 {
				return i
			}
			copy(dst[4*i:4*i+4], src[12*i:])
		}
	case convDayTime:
		for i := range n {
			if little.Uint32(src[12*i:]) != 0 {
				return i
			}
			copy(dst[8*i:8*i+8], src[12*i+4:])
		}
	case convMonthDayNano:
		for i := range n {
			copy(dst[16*i:16*i+8], src[12*i:])
			little.PutUint64(dst[16*i+8:], uint64(little.Uint32(src[12*i+8:]))*1_000_000)
		}
	case convInt96:
		for i := range n {
			nanos, day := int64(little.Uint64(src[12*i:])), int64(little.Uint32(src[12*i+8:]))-julianOfEpoch
			if nanos < 0 || nanos >= nanosPerDay || day < math.MinInt64/nanosPerDay+1 || day > math.MaxInt64/nanosPerDay-1 {
				return i
			}
			little.PutUint64(dst[8*i:], uint64(day*nanosPerDay+nanos))
		}
	}
	return -1
}

// resize copies little-endian two's complement numbers of from bytes to ones of to
// bytes. It returns the index of the first that does not fit, or -1.
func resize(dst, src []byte, to, from int) int {
	for i := range len(dst) / to {
		in, out := src[from*i:from*(i+1)], dst[to*i:to*(i+1)]
		sign := byte(int8(in[from-1]) >> 7)
		k := copy(out, in)
		for j := k; j < to; j++ {
			out[j] = sign
		}
		if to < from {
			if byte(int8(out[to-1])>>7) != sign {
				return i
			}
			for _, b := range in[to:] {
				if b != sign {
					return i
				}
			}
		}
	}
	return -1
}
