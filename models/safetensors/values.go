package safetensors

import (
	"encoding/binary"
	"math"
)

// Float64s makes an F64 tensor of values; shape's product must be len(values).
func Float64s(name string, shape []int64, values []float64) Tensor {
	data := make([]byte, 0, 8*len(values))
	for _, v := range values {
		data = binary.LittleEndian.AppendUint64(data, math.Float64bits(v))
	}
	return Tensor{Name: name, DType: F64, Shape: shape, Data: data}
}

// Float32s makes an F32 tensor of values; shape's product must be len(values).
func Float32s(name string, shape []int64, values []float32) Tensor {
	data := make([]byte, 0, 4*len(values))
	for _, v := range values {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return Tensor{Name: name, DType: F32, Shape: shape, Data: data}
}

// Int64s makes an I64 tensor of values; shape's product must be len(values).
func Int64s(name string, shape []int64, values []int64) Tensor {
	data := make([]byte, 0, 8*len(values))
	for _, v := range values {
		data = binary.LittleEndian.AppendUint64(data, uint64(v))
	}
	return Tensor{Name: name, DType: I64, Shape: shape, Data: data}
}

// Float64s returns a copy of the elements of an F64, F32, F16 or BF16 tensor, in
// row-major order; each conversion is exact. The error wraps ErrDType or ErrShape.
func (t Tensor) Float64s() ([]float64, error) {
	if err := t.check(int64(len(t.Data))); err != nil {
		return nil, err
	}
	out := make([]float64, int64(len(t.Data))/t.DType.Size())
	switch t.DType {
	case F64:
		for i := range out {
			out[i] = math.Float64frombits(binary.LittleEndian.Uint64(t.Data[8*i:]))
		}
	case F32:
		for i := range out {
			out[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:])))
		}
	case BF16:
		for i := range out {
			out[i] = float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(t.Data[2*i:])) << 16))
		}
	case F16:
		for i := range out {
			out[i] = half(binary.LittleEndian.Uint16(t.Data[2*i:]))
		}
	default:
		return nil, t.fail(ErrDType, "%s where a float is wanted", t.DType)
	}
	return out, nil
}

// Int64s returns a copy of the elements of an I64, I32 or I8 tensor, in row-major
// order. The error wraps ErrDType or ErrShape.
func (t Tensor) Int64s() ([]int64, error) {
	if err := t.check(int64(len(t.Data))); err != nil {
		return nil, err
	}
	out := make([]int64, int64(len(t.Data))/t.DType.Size())
	switch t.DType {
	case I64:
		for i := range out {
			out[i] = int64(binary.LittleEndian.Uint64(t.Data[8*i:]))
		}
	case I32:
		for i := range out {
			out[i] = int64(int32(binary.LittleEndian.Uint32(t.Data[4*i:])))
		}
	case I8:
		for i := range out {
			out[i] = int64(int8(t.Data[i]))
		}
	default:
		return nil, t.fail(ErrDType, "%s where a signed integer is wanted", t.DType)
	}
	return out, nil
}

// half converts an IEEE 754 binary16.
func half(h uint16) float64 {
	sign, exp, frac := 1.0, int(h>>10)&0x1f, float64(h&0x3ff)
	if h>>15 != 0 {
		sign = -1
	}
	switch {
	case exp == 0x1f && frac != 0:
		return math.NaN()
	case exp == 0x1f:
		return math.Inf(int(sign))
	case exp == 0:
		return sign * math.Ldexp(frac, -24) // subnormal: frac * 2^-10 * 2^-14
	}
	return sign * math.Ldexp(1+frac/1024, exp-15)
}
