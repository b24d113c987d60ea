package safetensors

import (
	"errors"
	"fmt"
)

// Limits of what is read and written.
const (
	// MaxHeaderBytes is the longest header, as in the reference implementation.
	MaxHeaderBytes = 100_000_000
	// MaxTensors is the most tensors in one file.
	MaxTensors = 1 << 20
	// MaxDims is the most dimensions of one tensor.
	MaxDims = 32
)

// Sentinels say which rule was broken. All are wrapped in *FormatError, and
// errors.Is(err, ErrFormat) holds for each.
var (
	ErrFormat    = errors.New("malformed safetensors")
	ErrHeader    = errors.New("bad header")              // length, JSON or UTF-8
	ErrDuplicate = errors.New("duplicate key")           // a tensor, or a field, is there twice
	ErrDType     = errors.New("unknown element type")    //
	ErrShape     = errors.New("bad shape")               // negative, too many dimensions, overflow, or not what the data says
	ErrOffsets   = errors.New("bad tensor offsets")      // overlap, gap, outside the file
	ErrTrailing  = errors.New("bytes after the tensors") // that no tensor owns
	ErrTruncated = errors.New("truncated")               // fewer bytes than the header says
)

// FormatError says what is wrong with a file.
type FormatError struct {
	Tensor string // name, "" when the fault is not one tensor's
	Detail string
	Err    error // one of the sentinels
}

func (e *FormatError) Error() string {
	s := "safetensors: " + e.Err.Error()
	if e.Tensor != "" {
		s += fmt.Sprintf(": tensor %q", clip(e.Tensor))
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

func (e *FormatError) Unwrap() error { return e.Err }

// Is makes every FormatError an ErrFormat.
func (e *FormatError) Is(target error) bool { return target == ErrFormat }

// DType is an element type, named as in the format.
type DType string

// Element types. The two of eight-bit floats are stored as they are; this
// package does not compute with them.
const (
	Bool   DType = "BOOL"
	U8     DType = "U8"
	I8     DType = "I8"
	F8E5M2 DType = "F8_E5M2"
	F8E4M3 DType = "F8_E4M3"
	I16    DType = "I16"
	U16    DType = "U16"
	F16    DType = "F16"
	BF16   DType = "BF16"
	I32    DType = "I32"
	U32    DType = "U32"
	F32    DType = "F32"
	I64    DType = "I64"
	U64    DType = "U64"
	F64    DType = "F64"
)

// Size is the element's size in bytes, 0 for an unknown type.
func (d DType) Size() int64 {
	switch d {
	case Bool, U8, I8, F8E5M2, F8E4M3:
		return 1
	case I16, U16, F16, BF16:
		return 2
	case I32, U32, F32:
		return 4
	case I64, U64, F64:
		return 8
	}
	return 0
}

// Tensor is one named array.
type Tensor struct {
	Name  string
	DType DType
	Shape []int64 // row-major; empty: a scalar
	Data  []byte  // little-endian, len = product(Shape) * DType.Size()
}

// Elements is the product of the shape, or an error wrapping ErrShape.
func (t Tensor) Elements() (int64, error) {
	if len(t.Shape) > MaxDims {
		return 0, t.fail(ErrShape, "%d dimensions, at most %d", len(t.Shape), MaxDims)
	}
	n := int64(1)
	for _, d := range t.Shape {
		if d < 0 {
			return 0, t.fail(ErrShape, "dimension of %d", d)
		}
		// 2^53 is what a JSON number holds exactly, and more than memory has.
		if d > 0 && n > maxExact/d {
			return 0, t.fail(ErrShape, "more than 2^53 elements")
		}
		n *= d
	}
	return n, nil
}

func (t Tensor) fail(sentinel error, format string, args ...any) error {
	return &FormatError{Tensor: t.Name, Detail: fmt.Sprintf(format, args...), Err: sentinel}
}

// check reports whether type, shape and the number of bytes agree.
func (t Tensor) check(dataBytes int64) error {
	size := t.DType.Size()
	if size == 0 {
		return t.fail(ErrDType, "%q", clip(string(t.DType)))
	}
	n, err := t.Elements()
	if err != nil {
		return err
	}
	if n > maxExact/size || n*size != dataBytes {
		return t.fail(ErrShape, "%v of %s does not fill %d bytes", t.Shape, t.DType, dataBytes)
	}
	return nil
}

// File is a decoded file, or what to encode.
type File struct {
	Metadata map[string]string
	Tensors  []Tensor // Decode: in the order of their bytes; Encode: any order
}

// Tensor returns the tensor of that name.
func (f *File) Tensor(name string) (Tensor, bool) {
	for _, t := range f.Tensors {
		if t.Name == name {
			return t, true
		}
	}
	return Tensor{}, false
}

const maxExact = 1 << 53

func clip(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
