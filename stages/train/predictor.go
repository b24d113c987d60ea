package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/stokehold/stokehold/models/safetensors"
)

// Predictor turns features into probabilities. Safe for concurrent use.
type Predictor interface {
	// Features are the names of the columns that Predict wants, in order.
	Features() []string
	// Predict returns the probability of the positive class for each row of x, of
	// shape (rows, features), row-major. The error wraps ErrShape or ErrInput.
	Predict(x []float32) ([]float32, error)
}

var (
	// ErrShape means: not a whole number of rows of the model's features.
	ErrShape = errors.New("wrong shape")
	// ErrInput means: a value is NaN or infinite.
	ErrInput = errors.New("value is not finite")
	// ErrKind means: no loader for a model of this kind.
	ErrKind = errors.New("unknown kind of model")
	// ErrArtifact means: the bytes are not a model of their kind.
	ErrArtifact = errors.New("not a model of this kind")
)

// Loader makes a predictor of an artifact.
type Loader func(artifact []byte) (Predictor, error)

// Kinds says how to load each kind of model. A value: a program that serves its
// own kinds adds them to what Builtin returns.
type Kinds map[string]Loader

// Builtin returns the kinds that this package makes.
func Builtin() Kinds {
	return Kinds{LogisticKind: func(b []byte) (Predictor, error) { return DecodeLogistic(b) }}
}

// Load loads an artifact of that kind, or fails with ErrKind or ErrArtifact.
func (k Kinds) Load(kind string, artifact []byte) (Predictor, error) {
	load, ok := k[kind]
	if !ok {
		return nil, fmt.Errorf("train: %w: %q, have %q", ErrKind, kind, slices.Sorted(maps.Keys(k)))
	}
	return load(artifact)
}

// LogisticKind is the kind of LogisticModel.
const LogisticKind = "logistic/v1"

// LogisticModel is a fitted logistic regression. Read-only once made.
type LogisticModel struct {
	Names       []string
	Mean, Scale []float64 // of each feature in the training rows
	Weights     []float64 // on standardised features
	Intercept   float64
	Target      string  // what is predicted, e.g. "delay > 15"
	Threshold   float64 // probability from which a row counts as positive; 0: 0.5
	Loss        float64 // penalised mean log loss on the training rows; not stored
}

// Features implements Predictor.
func (m *LogisticModel) Features() []string { return slices.Clone(m.Names) }

// Predict implements Predictor.
func (m *LogisticModel) Predict(x []float32) ([]float32, error) {
	width := len(m.Names)
	if len(x)%width != 0 {
		return nil, fmt.Errorf("train: %w: %d values are no whole number of rows of %d features", ErrShape, len(x), width)
	}
	out := make([]float32, len(x)/width)
	for r := range out {
		t := m.Intercept
		for c, v := range x[r*width : (r+1)*width] {
			t += (float64(v) - m.Mean[c]) / m.Scale[c] * m.Weights[c]
		}
		if math.IsNaN(t) || math.IsInf(t, 0) {
			return nil, fmt.Errorf("train: %w: in row %d", ErrInput, r)
		}
		out[r] = float32(sigmoid(t))
	}
	return out, nil
}

// Encode writes the model as safetensors; the same model gives the same bytes.
func (m *LogisticModel) Encode() ([]byte, error) {
	names, err := json.Marshal(m.Names)
	if err != nil {
		return nil, err
	}
	threshold := m.Threshold
	if threshold == 0 {
		threshold = 0.5
	}
	width := []int64{int64(len(m.Names))}
	return safetensors.Encode(safetensors.File{
		Metadata: map[string]string{
			"format": LogisticKind, "features": string(names), "target": m.Target,
			"threshold": strconv.FormatFloat(threshold, 'g', -1, 64),
		},
		Tensors: []safetensors.Tensor{
			safetensors.Float64s("intercept", []int64{1}, []float64{m.Intercept}),
			safetensors.Float64s("mean", width, m.Mean),
			safetensors.Float64s("scale", width, m.Scale),
			safetensors.Float64s("weights", width, m.Weights),
		},
	})
}

// DecodeLogistic reads what Encode wrote and checks every value. The error wraps
// ErrArtifact.
func DecodeLogistic(artifact []byte) (*LogisticModel, error) {
	f, err := safetensors.Decode(artifact)
	if err != nil {
		return nil, fmt.Errorf("train: %w %s: %w", ErrArtifact, LogisticKind, err)
	}
	bad := func(format string, args ...any) (*LogisticModel, error) {
		return nil, fmt.Errorf("train: %w %s: %s", ErrArtifact, LogisticKind, fmt.Sprintf(format, args...))
	}
	if f.Metadata["format"] != LogisticKind {
		return bad("format is %q", f.Metadata["format"])
	}
	m := &LogisticModel{Target: f.Metadata["target"]}
	if err := json.Unmarshal([]byte(f.Metadata["features"]), &m.Names); err != nil {
		return bad("features: %v", err)
	}
	if m.Threshold, err = strconv.ParseFloat(f.Metadata["threshold"], 64); err != nil || !(m.Threshold > 0 && m.Threshold < 1) {
		return bad("threshold %q", f.Metadata["threshold"])
	}
	if len(m.Names) == 0 {
		return bad("no features")
	}
	var intercept []float64
	for _, t := range []struct {
		name string
		n    int
		into *[]float64
	}{{"intercept", 1, &intercept}, {"mean", len(m.Names), &m.Mean}, {"scale", len(m.Names), &m.Scale}, {"weights", len(m.Names), &m.Weights}} {
		tensor, ok := f.Tensor(t.name)
		if !ok {
			return bad("no tensor %q", t.name)
		}
		values, err := tensor.Float64s()
		if err != nil {
			return bad("%v", err)
		}
		if len(values) != t.n {
			return bad("tensor %q has %d values for %d features", t.name, len(values), len(m.Names))
		}
		for _, v := range values {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return bad("tensor %q has a value that is not finite", t.name)
			}
		}
		*t.into = values
	}
	for i, s := range m.Scale {
		if s <= 0 {
			return bad("scale of %q is %v", m.Names[i], s)
		}
	}
	m.Intercept = intercept[0]
	return m, nil
}

// joined is for messages.
func joined(names []string) string { return strings.Join(names, ", ") }
