package deploy

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
)

// The messages of the Open Inference Protocol, version 2, over HTTP with JSON
// (https://github.com/kserve/open-inference-protocol).

// Tensor names and types that the server takes and gives.
const (
	InputName  = "features"    // FP32 of shape (rows, features)
	OutputName = "probability" // FP32 of shape (rows)
	FP32       = "FP32"
)

type serverMetadata struct {
	Name       string   `json:"name"`
	Version    string   `json:"version"`
	Extensions []string `json:"extensions"`
}

type modelMetadata struct {
	Name     string           `json:"name"`
	Versions []string         `json:"versions,omitempty"`
	Platform string           `json:"platform"`
	Inputs   []tensorMetadata `json:"inputs"`
	Outputs  []tensorMetadata `json:"outputs"`
}

type tensorMetadata struct {
	Name       string            `json:"name"`
	Datatype   string            `json:"datatype"`
	Shape      []int64           `json:"shape"` // -1: any
	Parameters map[string]string `json:"parameters,omitempty"`
}

type inferRequest struct {
	ID      string        `json:"id,omitempty"`
	Inputs  []inferTensor `json:"inputs"`
	Outputs []struct {
		Name string `json:"name"`
	} `json:"outputs,omitempty"`
}

type inferResponse struct {
	ModelName    string        `json:"model_name"`
	ModelVersion string        `json:"model_version"`
	ID           string        `json:"id,omitempty"`
	Outputs      []inferTensor `json:"outputs"`
}

type inferTensor struct {
	Name     string  `json:"name"`
	Shape    []int64 `json:"shape"`
	Datatype string  `json:"datatype"`
	Data     floats  `json:"data"`
}

type errorResponse struct {
	Error string `json:"error"`
}

// floats is tensor data: a flat array, or nested ones in row-major order, which
// the protocol allows as well. Values are written with the fewest digits that
// read back as the same float32.
type floats []float32

// MarshalJSON implements json.Marshaler.
func (f floats) MarshalJSON() ([]byte, error) {
	out := make([]byte, 1, 12*len(f)+2)
	out[0] = '['
	for i, v := range f {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, fmt.Errorf("value %d is %v, which JSON cannot carry", i, v)
		}
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendFloat(out, float64(v), 'g', -1, 32)
	}
	return append(out, ']'), nil
}

// UnmarshalJSON implements json.Unmarshaler. b is valid JSON, as the package
// json promises, so nothing but brackets, commas, space and scalars needs care.
func (f *floats) UnmarshalJSON(b []byte) error {
	const deepest = 8
	out := make(floats, 0, len(b)/8+1)
	depth := 0
	for i := 0; i < len(b); {
		switch c := b[i]; {
		case c == '[':
			if depth++; depth > deepest {
				return fmt.Errorf("tensor data nested more than %d deep", deepest)
			}
			i++
		case c == ']':
			depth--
			i++
		case c == ',' || c == ' ' || c == '\n' || c == '\t' || c == '\r':
			i++
		case depth > 0 && (c == '-' || c >= '0' && c <= '9'):
			j := i + 1
			for j < len(b) && b[j] != ',' && b[j] != ']' && b[j] > ' ' {
				j++
			}
			v, err := strconv.ParseFloat(string(b[i:j]), 32)
			if err != nil {
				return fmt.Errorf("tensor value %d: %.30q is out of float32's range", len(out), b[i:j])
			}
			out = append(out, float32(v))
			i = j
		default:
			return fmt.Errorf("tensor data must be an array of numbers, value %d begins with %q", len(out), c)
		}
	}
	*f = out
	return nil
}

// rows checks the tensor against the model's width and the limit.
func (t *inferTensor) rows(width, most int) (int, error) {
	if t.Datatype != FP32 {
		return 0, fmt.Errorf("input %q has datatype %q, want %s", t.Name, t.Datatype, FP32)
	}
	if len(t.Shape) != 2 || t.Shape[1] != int64(width) || t.Shape[0] < 1 {
		return 0, fmt.Errorf("input %q has shape %v, want [rows, %d] with at least one row", t.Name, t.Shape, width)
	}
	if t.Shape[0] > int64(most) {
		return 0, fmt.Errorf("%w: %d rows, at most %d in one request", errTooMany, t.Shape[0], most)
	}
	if int64(len(t.Data)) != t.Shape[0]*int64(width) {
		return 0, fmt.Errorf("input %q has %d values for shape %v", t.Name, len(t.Data), t.Shape)
	}
	return int(t.Shape[0]), nil
}

var _ json.Unmarshaler = (*floats)(nil)
