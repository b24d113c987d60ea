package safetensors_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/models/safetensors"
)

func file(header string, data ...byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), data...)
}

var malformed = []struct {
	name string
	in   []byte
	want error
}{
	{"empty", nil, safetensors.ErrTruncated},
	{"seven bytes", make([]byte, 7), safetensors.ErrTruncated},
	{"header of 2^64-1 bytes", binary.LittleEndian.AppendUint64(nil, math.MaxUint64), safetensors.ErrHeader},
	{"header over the limit", binary.LittleEndian.AppendUint64(nil, safetensors.MaxHeaderBytes+1), safetensors.ErrHeader},
	{"header longer than the file", binary.LittleEndian.AppendUint64(nil, 10), safetensors.ErrTruncated},
	{"empty header", file(""), safetensors.ErrHeader},
	{"header begins with a space", file(" {}"), safetensors.ErrHeader},
	{"not JSON", file("{x"), safetensors.ErrHeader},
	{"JSON cut short", file(`{"a":{"dtype":"F32"`), safetensors.ErrHeader},
	{"more than one object", file("{}{}"), safetensors.ErrHeader},
	{"garbage after the object", file("{} \x00"), safetensors.ErrHeader},
	{"not UTF-8", file("{\"\xff\":1}"), safetensors.ErrHeader},
	{"tensor is a number", file(`{"a":1}`), safetensors.ErrHeader},
	{"field missing", file(`{"a":{"dtype":"U8","shape":[]}}`), safetensors.ErrHeader},
	{"field unknown", file(`{"a":{"dtype":"U8","shape":[],"x":1}}`), safetensors.ErrHeader},
	{"metadata not a string", file(`{"__metadata__":{"a":1}}`), safetensors.ErrHeader},
	{"metadata twice", file(`{"__metadata__":{},"__metadata__":{}}`), safetensors.ErrDuplicate},
	{"metadata key twice", file(`{"__metadata__":{"a":"1","a":"2"}}`), safetensors.ErrDuplicate},
	{"tensor twice", file(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`), safetensors.ErrDuplicate},
	{"tensor twice, spelled otherwise", file(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`), safetensors.ErrDuplicate},
	{"field twice", file(`{"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}}`, 1), safetensors.ErrDuplicate},
	{"element type unknown", file(`{"a":{"dtype":"F31","shape":[],"data_offsets":[0,1]}}`, 1), safetensors.ErrDType},
	{"element type a number", file(`{"a":{"dtype":8,"shape":[],"data_offsets":[0,1]}}`, 1), safetensors.ErrHeader},
	{"negative dimension", file(`{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}`, 1), safetensors.ErrShape},
	{"fractional dimension", file(`{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}`, 1), safetensors.ErrShape},
	{"dimension as text", file(`{"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}}`, 1), safetensors.ErrShape},
	{"shape overflows", file(`{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,1]}}`, 1), safetensors.ErrShape},
	{"shape overflows to zero", file(`{"a":{"dtype":"F64","shape":[9007199254740992],"data_offsets":[0,0]}}`), safetensors.ErrShape},
	{"too many dimensions", file(`{"a":{"dtype":"U8","shape":[`+strings.Repeat("1,", 40)+`1],"data_offsets":[0,1]}}`, 1), safetensors.ErrShape},
	{"shape larger than the data", file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`, 1, 2, 3, 4), safetensors.ErrShape},
	{"one offset", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[1]}}`, 1), safetensors.ErrOffsets},
	{"three offsets", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}`, 1), safetensors.ErrOffsets},
	{"offsets reversed", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}`, 1), safetensors.ErrOffsets},
	{"offset of 2^63", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,9223372036854775808]}}`, 1), safetensors.ErrOffsets},
	{"overlap", file(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 1, 2, 3), safetensors.ErrOffsets},
	{"same bytes twice", file(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}`, 1, 2), safetensors.ErrOffsets},
	{"gap", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}`, 1, 2, 3), safetensors.ErrOffsets},
	{"gap at the start", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 1, 2), safetensors.ErrOffsets},
	{"data cut short", file(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}`, 1), safetensors.ErrTruncated},
	{"trailing byte", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1, 2), safetensors.ErrTrailing},
	{"data of no tensor", file(`{}`, 1), safetensors.ErrTrailing},
	{"pickle renamed", []byte("\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."), safetensors.ErrHeader},
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range malformed {
		t.Run(c.name, func(t *testing.T) {
			_, err := safetensors.Decode(c.in)
			var fe *safetensors.FormatError
			if !errors.Is(err, c.want) || !errors.Is(err, safetensors.ErrFormat) || !errors.As(err, &fe) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestDecodeTruncatedAtEveryByte(t *testing.T) {
	whole, err := safetensors.Encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if _, err := safetensors.Decode(whole[:n]); !errors.Is(err, safetensors.ErrFormat) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	one := safetensors.Float64s("a", []int64{1}, []float64{1})
	named := func(name string) safetensors.Tensor { u := one; u.Name = name; return u }
	for _, c := range []struct {
		name string
		in   safetensors.File
		want error
	}{
		{"name twice", safetensors.File{Tensors: []safetensors.Tensor{one, one}}, safetensors.ErrDuplicate},
		{"name reserved", safetensors.File{Tensors: []safetensors.Tensor{named("__metadata__")}}, safetensors.ErrHeader},
		{"name not UTF-8", safetensors.File{Tensors: []safetensors.Tensor{named("\xff")}}, safetensors.ErrHeader},
		{"metadata not UTF-8", safetensors.File{Metadata: map[string]string{"a": "\xff"}}, safetensors.ErrHeader},
		{"shape does not fit", safetensors.File{Tensors: []safetensors.Tensor{safetensors.Float64s("a", []int64{2}, []float64{1})}}, safetensors.ErrShape},
		{"type unknown", safetensors.File{Tensors: []safetensors.Tensor{{Name: "a", DType: "F4"}}}, safetensors.ErrDType},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := safetensors.Encode(c.in); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
}

func sample() safetensors.File {
	return safetensors.File{
		Metadata: map[string]string{"kind": "logistic/v1", "a\"b": "<ü>"},
		Tensors: []safetensors.Tensor{
			{Name: "f8", DType: safetensors.F8E4M3, Shape: []int64{3}, Data: []byte{1, 2, 3}},
			safetensors.Int64s("n", nil, []int64{-7}),
			{Name: "bf", DType: safetensors.BF16, Shape: []int64{2, 1}, Data: []byte{0x80, 0x3f, 0x00, 0xc0}},
			safetensors.Float32s("w32", []int64{2}, []float32{1.25, -3}),
			safetensors.Float64s("w", []int64{2, 2}, []float64{1, 2, 3, math.Inf(-1)}),
		},
	}
}

func TestEncodeIsDeterministicAndAligned(t *testing.T) {
	a, b := sample(), sample()
	slices.Reverse(b.Tensors)
	x, err := safetensors.Encode(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := safetensors.Encode(b)
	if err != nil || !bytes.Equal(x, y) {
		t.Fatalf("order of tensors changed the bytes (%v)", err)
	}
	f, err := safetensors.Decode(x)
	if err != nil {
		t.Fatal(err)
	}
	if (8+binary.LittleEndian.Uint64(x))%8 != 0 {
		t.Error("data is not aligned to 8 bytes")
	}
	bf, _ := f.Tensor("bf")
	if v, err := bf.Float64s(); err != nil || !slices.Equal(v, []float64{1, -2}) {
		t.Errorf("bfloat16 read as %v, %v", v, err)
	}
	n, _ := f.Tensor("n")
	if v, err := n.Int64s(); err != nil || !slices.Equal(v, []int64{-7}) {
		t.Errorf("int64 read as %v, %v", v, err)
	}
	if _, err := n.Float64s(); !errors.Is(err, safetensors.ErrDType) {
		t.Errorf("int64 as float: %v", err)
	}
	if _, ok := f.Tensor("absent"); ok {
		t.Error("found a tensor that is not there")
	}
}

func TestHalfPrecisionAgreesWithItsDefinition(t *testing.T) {
	for _, c := range []struct {
		bits uint16
		want float64
	}{
		{0x0000, 0}, {0x3c00, 1}, {0xc000, -2}, {0x7bff, 65504}, {0x0001, 0x1p-24}, {0x03ff, 0x1.ff8p-15},
		{0x0400, 0x1p-14}, {0x7c00, math.Inf(1)}, {0xfc00, math.Inf(-1)}, {0x3555, 0.333251953125},
	} {
		v, err := safetensors.Tensor{DType: safetensors.F16, Data: binary.LittleEndian.AppendUint16(nil, c.bits)}.Float64s()
		if err != nil || v[0] != c.want {
			t.Errorf("%04x: got %v, %v, want %v", c.bits, v, err, c.want)
		}
	}
	v, err := safetensors.Tensor{DType: safetensors.F16, Data: []byte{0x01, 0x7e}}.Float64s()
	if err != nil || !math.IsNaN(v[0]) {
		t.Errorf("NaN read as %v, %v", v, err)
	}
}

func TestRoundTrip(t *testing.T) {
	types := []safetensors.DType{"BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "I64", "U64", "F64"}
	rapid.Check(t, func(t *rapid.T) {
		in := safetensors.File{Metadata: rapid.MapOfN(rapid.String(), rapid.String(), 0, 4).Draw(t, "metadata")}
		names := rapid.SliceOfNDistinct(rapid.String(), 0, 6, rapid.ID[string]).Draw(t, "names")
		for _, name := range names {
			if name == "__metadata__" {
				continue
			}
			tensor := safetensors.Tensor{Name: name, DType: rapid.SampledFrom(types).Draw(t, "dtype"),
				Shape: rapid.SliceOfN(rapid.Int64Range(0, 3), 0, 4).Draw(t, "shape")}
			n, err := tensor.Elements()
			if err != nil {
				t.Fatal(err)
			}
			size := int(n * tensor.DType.Size())
			tensor.Data = rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "data")
			in.Tensors = append(in.Tensors, tensor)
		}
		raw, err := safetensors.Encode(in)
		if err != nil {
			t.Fatal(err)
		}
		out, err := safetensors.Decode(raw)
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Tensors) != len(in.Tensors) || len(out.Metadata) != len(in.Metadata) {
			t.Fatalf("got %d tensors and %d metadata, want %d and %d", len(out.Tensors), len(out.Metadata), len(in.Tensors), len(in.Metadata))
		}
		for k, v := range in.Metadata {
			if out.Metadata[k] != v {
				t.Fatalf("metadata %q is %q, want %q", k, out.Metadata[k], v)
			}
		}
		for _, want := range in.Tensors {
			got, ok := out.Tensor(want.Name)
			if !ok || got.DType != want.DType || !slices.Equal(got.Shape, want.Shape) || !bytes.Equal(got.Data, want.Data) {
				t.Fatalf("%q: got %+v, want %+v", want.Name, got, want)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, c := range malformed {
		f.Add(c.in)
	}
	whole, err := safetensors.Encode(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := safetensors.Decode(in)
		if err != nil {
			if !errors.Is(err, safetensors.ErrFormat) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		total := 0
		for _, tensor := range got.Tensors {
			total += len(tensor.Data)
		}
		if head := int(binary.LittleEndian.Uint64(in)); 8+head+total != len(in) {
			t.Fatalf("tensors own %d bytes of %d", total, len(in)-8-head)
		}
		again, err := safetensors.Encode(*got)
		if err != nil {
			t.Fatalf("cannot encode what was decoded: %v", err)
		}
		if _, err := safetensors.Decode(again); err != nil {
			t.Fatalf("cannot decode what was encoded: %v", err)
		}
	})
}

func Example() {
	raw, err := safetensors.Encode(safetensors.File{
		Metadata: map[string]string{"kind": "logistic/v1"},
		Tensors:  []safetensors.Tensor{safetensors.Float64s("coefficients", []int64{2}, []float64{0.5, -1.25})},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	f, err := safetensors.Decode(raw)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, t := range f.Tensors {
		v, err := t.Float64s()
		fmt.Println(f.Metadata["kind"], t.Name, t.Shape, v, err)
	}
	// Output: logistic/v1 coefficients [2] [0.5 -1.25] <nil>
}
