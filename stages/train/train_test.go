package train_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/models/safetensors"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/stagetest"
	"github.com/stokehold/stokehold/stages/train"
)

func examples() *train.Examples {
	e := &train.Examples{Names: []string{"a", "b", "c"}}
	for i := range 200 {
		e.X = append(e.X, float32(float64(i*7%13)/3), float32(float64(i*11%17)/5-1), float32(i*5%7))
		e.Y = append(e.Y, i*29%31+i*7%13*2 > 24)
	}
	return e
}

func TestLogisticAgreesWithReference(t *testing.T) {
	m, err := train.Logistic{L2: 0.01}.Fit(t.Context(), examples())
	if err != nil {
		t.Fatal(err)
	}
	// scikit-learn 1.9.1: LogisticRegression(C=1/(0.01*200), solver="newton-cholesky",
	// tol=1e-12) on the standardised columns.
	for i, want := range []float64{1.0646144314347648, 0.012855695807388993, -0.024474366422964022} {
		if math.Abs(m.Weights[i]-want) > 1e-5 {
			t.Errorf("weight %d = %v, want %v", i, m.Weights[i], want)
		}
	}
	if math.Abs(m.Intercept-0.435427865516232) > 1e-5 {
		t.Errorf("intercept %v", m.Intercept)
	}
}

func TestSameRowsGiveSameBytes(t *testing.T) {
	var first []byte
	for range 3 {
		m, err := train.Logistic{}.Fit(t.Context(), examples())
		if err != nil {
			t.Fatal(err)
		}
		b, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		}
		if !bytes.Equal(b, first) {
			t.Fatal("two fits of the same rows differ")
		}
	}
	p, err := train.Builtin().Load(train.LogisticKind, first)
	if err != nil {
		t.Fatal(err)
	}
	m, err := train.Logistic{}.Fit(t.Context(), examples())
	if err != nil {
		t.Fatal(err)
	}
	want, err := m.Predict(examples().X)
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Predict(examples().X)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("row %d: %v after loading, %v before", i, got[i], want[i])
		}
	}
}

func TestFitRefuses(t *testing.T) {
	nan, one := examples(), examples()
	nan.X[5] = float32(math.NaN())
	clear(one.Y)
	for name, e := range map[string]*train.Examples{"NaN": nan, "one class": one, "no rows": {Names: []string{"a"}}} {
		if _, err := (train.Logistic{}).Fit(t.Context(), e); !errors.Is(err, train.ErrFit) {
			t.Errorf("%s: %v, want ErrFit", name, err)
		}
	}
	constant := examples()
	for i := range constant.Y {
		constant.X[3*i] = 4
	}
	m, err := train.Logistic{}.Fit(t.Context(), constant)
	if err != nil || math.Abs(m.Weights[0]) > 1e-9 {
		t.Errorf("a constant feature: weight %v, %v", m.Weights[0], err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (train.Logistic{}).Fit(ctx, examples()); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of ctx: %v", err)
	}
}

func TestSeparableRowsConverge(t *testing.T) {
	e := &train.Examples{Names: []string{"x"}}
	for i := range 50 {
		e.X, e.Y = append(e.X, float32(i)), append(e.Y, i >= 25)
	}
	m, err := train.Logistic{}.Fit(t.Context(), e)
	if err != nil || math.IsInf(m.Weights[0], 0) || m.Weights[0] <= 0 {
		t.Fatalf("%+v, %v", m, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	m, err := train.Logistic{}.Fit(t.Context(), examples())
	if err != nil {
		t.Fatal(err)
	}
	good, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := train.DecodeLogistic(good[:n]); !errors.Is(err, train.ErrArtifact) {
			t.Fatalf("cut at byte %d: %v", n, err)
		}
	}
	broken := *m
	broken.Weights = []float64{1, math.NaN(), 2}
	if b, err := broken.Encode(); err == nil {
		if _, err := train.DecodeLogistic(b); !errors.Is(err, train.ErrArtifact) {
			t.Errorf("NaN weight: %v", err)
		}
	}
	other, err := safetensors.Encode(safetensors.File{Metadata: map[string]string{"format": "tree/v1"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := train.DecodeLogistic(other); !errors.Is(err, train.ErrArtifact) {
		t.Errorf("another kind: %v", err)
	}
	if _, err := train.Builtin().Load("tree/v1", good); !errors.Is(err, train.ErrKind) {
		t.Errorf("unknown kind: %v", err)
	}
	if _, err := m.Predict(make([]float32, 4)); !errors.Is(err, train.ErrShape) {
		t.Errorf("wrong width: %v", err)
	}
	if _, err := m.Predict([]float32{1, float32(math.Inf(1)), 2}); !errors.Is(err, train.ErrInput) {
		t.Errorf("infinite input: %v", err)
	}
}

func FuzzDecodeLogistic(f *testing.F) {
	m, err := train.Logistic{}.Fit(f.Context(), examples())
	if err != nil {
		f.Fatal(err)
	}
	good, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := train.DecodeLogistic(b)
		if err != nil {
			return
		}
		if _, err := m.Predict(make([]float32, len(m.Features()))); err != nil && !errors.Is(err, train.ErrInput) {
			t.Fatal(err)
		}
	})
}

func TestReadExamplesJoinsByRow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lake := stagetest.NewLake()
		var want []bool
		n := rapid.IntRange(1, 4).Draw(t, "batches")
		for seq := range n {
			rows := rapid.IntRange(1, 20).Draw(t, "rows")
			x, y := make([]float32, rows), make([]int64, rows)
			for i := range rows {
				y[i] = rapid.Int64Range(-5, 40).Draw(t, "delay")
				x[i] = float32(y[i]) * 2 // so that a row out of place shows
				want = append(want, y[i] > 15)
			}
			if err := errors.Join(lake.Put("x", uint64(seq), floats("x", x)), lake.Put("y", uint64(seq), ints("delay", y))); err != nil {
				t.Fatal(err)
			}
		}
		stage := stages.Func(func(ctx context.Context, task *stages.Task) error {
			e, err := train.ReadExamples(ctx, task, "x", "y", 0, uint64(n), train.Target{Column: "delay", Above: 15})
			if err != nil {
				return err
			}
			for i, y := range e.Y {
				if y != want[i] || y != (e.X[i] > 30) {
					t.Fatalf("row %d: x %v, late %t", i, e.X[i], y)
				}
			}
			return nil
		})
		_, err := lake.Execute(context.Background(), stage, stages.Assignment{Inputs: []stages.Binding{{Dataset: "x"}, {Dataset: "y"}}})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestReadExamplesRefusesUnequalRows(t *testing.T) {
	lake := stagetest.NewLake()
	if err := errors.Join(lake.Put("x", 0, floats("x", []float32{1, 2})), lake.Put("y", 0, ints("delay", []int64{1}))); err != nil {
		t.Fatal(err)
	}
	s := &train.Stage{Model: "m", Features: "x", Labels: "y", Target: train.Target{Column: "delay"}, Registry: stagetest.NewRegistry()}
	_, err := lake.Execute(t.Context(), s, stages.Assignment{Params: []byte(`{"from":0,"to":1}`), Inputs: []stages.Binding{{Dataset: "x"}, {Dataset: "y"}}})
	if !errors.Is(err, train.ErrMismatch) || !stages.IsPermanent(err) {
		t.Errorf("%v, want a permanent ErrMismatch", err)
	}
}

func floats(name string, v []float32) arrow.RecordBatch {
	b := array.NewFloat32Builder(memory.DefaultAllocator)
	b.AppendValues(v, nil)
	return stagetest.Records(arrow.NewSchema([]arrow.Field{{Name: name, Type: arrow.PrimitiveTypes.Float32}}, nil), b.NewArray())
}

func ints(name string, v []int64) arrow.RecordBatch {
	b := array.NewInt64Builder(memory.DefaultAllocator)
	b.AppendValues(v, nil)
	return stagetest.Records(arrow.NewSchema([]arrow.Field{{Name: name, Type: arrow.PrimitiveTypes.Int64}}, nil), b.NewArray())
}
