package safetensors_test

import (
	"os"
	"slices"
	"testing"

	"github.com/stokehold/stokehold/models/safetensors"
)

// The fixture was written by the reference implementation, see testdata/make.py.
func TestReadsWhatTheReferenceImplementationWrote(t *testing.T) {
	raw, err := os.ReadFile("testdata/interop.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	if f.Metadata["format"] != "np" || f.Metadata["note"] != "café <&>" || len(f.Tensors) != 8 {
		t.Fatalf("metadata %q, %d tensors", f.Metadata, len(f.Tensors))
	}
	floats := map[string][]float64{
		"weights": {1.5, -2.25, 0, 3, 1e-30, 0},
		"bias":    {0.5, -7},
		"scale":   {1, -0.5, 65504, 5.960464477539063e-08},
		"empty":   {},
	}
	for name, want := range floats {
		tensor, ok := f.Tensor(name)
		got, err := tensor.Float64s()
		if !ok || err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, want)
		}
	}
	ints := map[string][]int64{"steps": {-42}, "classes": {-1, 2, 2147483647}, "codes": {-128, 127}}
	for name, want := range ints {
		tensor, ok := f.Tensor(name)
		got, err := tensor.Int64s()
		if !ok || err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, want)
		}
	}
	if w, _ := f.Tensor("weights"); !slices.Equal(w.Shape, []int64{2, 3}) {
		t.Errorf("weights of shape %v", w.Shape)
	}
	if mask, _ := f.Tensor("mask"); mask.DType != safetensors.U8 || mask.Data[1] != 255 {
		t.Errorf("mask is %s %v", mask.DType, mask.Data)
	}
	// Our own encoding of it decodes to the same, and is stable.
	again, err := safetensors.Encode(*f)
	if err != nil {
		t.Fatal(err)
	}
	g, err := safetensors.Decode(again)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range f.Tensors {
		got, ok := g.Tensor(want.Name)
		if !ok || !slices.Equal(got.Data, want.Data) || !slices.Equal(got.Shape, want.Shape) {
			t.Errorf("%s changed: %v", want.Name, got)
		}
	}
}
