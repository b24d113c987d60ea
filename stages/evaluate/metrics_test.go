package evaluate_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/stages/evaluate"
)

// The reference values are scikit-learn 1.9.1's log_loss, roc_auc_score and
// brier_score_loss of these rows.
var (
	probabilities = []float32{.1, .4, .35, .8, .4, .65, .9, .2, .4, .55}
	labels        = []bool{false, false, true, true, true, false, true, false, false, true}
)

func TestMeasureAgreesWithReference(t *testing.T) {
	s, err := evaluate.Measure(probabilities, labels)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]float64{
		"log loss": {s.LogLoss, 0.5292431363103185}, "AUC": {s.AUC, 0.76}, "Brier": {s.Brier, 0.18275},
	} {
		if math.Abs(c[0]-c[1]) > 1e-7 { // float32 probabilities
			t.Errorf("%s = %v, want %v", name, c[0], c[1])
		}
	}
	if s.Rows != 10 || s.Positives != 5 {
		t.Errorf("rows %d, positives %d", s.Rows, s.Positives)
	}
}

func TestMeasureIsSafeAtTheEdges(t *testing.T) {
	s, err := evaluate.Measure([]float32{0, 1}, []bool{true, false})
	if err != nil || math.IsInf(s.LogLoss, 0) || s.LogLoss < 30 {
		t.Errorf("certain and wrong: log loss %v, %v", s.LogLoss, err)
	}
	s, err = evaluate.Measure([]float32{0.2, 0.3}, []bool{false, false})
	if err != nil || !math.IsNaN(s.AUC) {
		t.Errorf("one class: AUC %v, %v; want NaN", s.AUC, err)
	}
	if _, ok := s.Map()["auc"]; ok {
		t.Error("a NaN is among the metrics")
	}
	nan := float32(math.NaN())
	for name, c := range map[string]struct {
		p []float32
		y []bool
	}{
		"no rows": {nil, nil}, "lengths": {[]float32{.5}, nil}, "NaN": {[]float32{nan}, []bool{true}},
		"negative": {[]float32{-.1}, []bool{true}}, "above one": {[]float32{1.1}, []bool{true}},
	} {
		if _, err := evaluate.Measure(c.p, c.y); !errors.Is(err, evaluate.ErrScores) {
			t.Errorf("%s: %v, want ErrScores", name, err)
		}
	}
}

func TestAUCIsTheShareOfPairsInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 40).Draw(t, "n")
		p, y := make([]float32, n), make([]bool, n)
		for i := range n {
			p[i] = float32(rapid.IntRange(0, 8).Draw(t, "p")) / 8 // many ties
			y[i] = rapid.Bool().Draw(t, "y")
		}
		var pairs, won float64
		for i := range n {
			for j := range n {
				if !y[i] || y[j] {
					continue
				}
				pairs++
				switch {
				case p[i] > p[j]:
					won++
				case p[i] == p[j]:
					won += .5
				}
			}
		}
		got := evaluate.AUC(p, y)
		if pairs == 0 {
			if !math.IsNaN(got) {
				t.Fatalf("AUC without pairs is %v", got)
			}
			return
		}
		if math.Abs(got-won/pairs) > 1e-12 {
			t.Fatalf("AUC %v, by pairs %v", got, won/pairs)
		}
	})
}

func ExampleMeasure() {
	s, err := evaluate.Measure([]float32{0.9, 0.2, 0.6, 0.4}, []bool{true, false, true, false})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("log loss %.3f, AUC %.2f, Brier %.4f\n", s.LogLoss, s.AUC, s.Brier)
	// Output: log loss 0.338, AUC 1.00, Brier 0.0925
}
