package drift_test

import (
	"encoding/json"
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/stages/drift"
)

func TestKolmogorovAgreesWithReference(t *testing.T) {
	// scipy 1.x special.kolmogorov
	for x, want := range map[float64]float64{
		0.3: 0.9999906941986655, 0.5: 0.9639452436648751, 0.8: 0.5441424115741981, 1: 0.26999967167735456,
		1.18: 0.1234538094297657, 1.36: 0.049485876755377876, 1.63: 0.009846364888486529, 2: 0.0006709252557796953, 3: 3.045995948942526e-08,
	} {
		if got := drift.Kolmogorov(x); math.Abs(got-want) > 1e-12 {
			t.Errorf("Kolmogorov(%v) = %v, want %v", x, got, want)
		}
	}
	if drift.Kolmogorov(0) != 1 || drift.Kolmogorov(100) != 0 || !math.IsNaN(drift.Kolmogorov(math.NaN())) {
		t.Error("edges")
	}
}

func TestKSAgreesWithReference(t *testing.T) {
	var a, b []float64
	for i := range 60 {
		a = append(a, float64(i*37%101)/10)
	}
	for i := range 80 {
		b = append(b, float64(i*53%97)/9+0.7)
	}
	d, p := drift.KS(a, b)
	// scipy.stats.ks_2samp: the distance, and the exact p, which the asymptotic one
	// approaches.
	if math.Abs(d-0.13333333333333333) > 1e-12 || math.Abs(p-0.5382283206658472) > 0.01 {
		t.Errorf("KS = %v, %v", d, p)
	}
	for name, s := range map[string][2][]float64{"empty": {nil, a}, "NaN": {{math.NaN()}, a}} {
		if d, p := drift.KS(s[0], s[1]); !math.IsNaN(d) || !math.IsNaN(p) {
			t.Errorf("%s: %v, %v, want NaN", name, d, p)
		}
	}
}

func TestKSProperties(t *testing.T) {
	sample := rapid.SliceOfN(rapid.Map(rapid.IntRange(-20, 20), func(i int) float64 { return float64(i) / 4 }), 1, 50)
	rapid.Check(t, func(t *rapid.T) {
		a, b := sample.Draw(t, "a"), sample.Draw(t, "b")
		d, p := drift.KS(a, b)
		if d < 0 || d > 1 || p < 0 || p > 1 {
			t.Fatalf("KS = %v, %v", d, p)
		}
		if d2, p2 := drift.KS(b, a); d2 != d || p2 != p {
			t.Fatalf("not symmetric: %v, %v and %v, %v", d, p, d2, p2)
		}
		if d, _ := drift.KS(a, a); d != 0 {
			t.Fatalf("distance to itself %v", d)
		}
		// The definition: the greatest distance at any point.
		want := 0.0
		for _, v := range append(append([]float64(nil), a...), b...) {
			want = max(want, math.Abs(below(a, v)-below(b, v)))
		}
		if math.Abs(d-want) > 1e-12 {
			t.Fatalf("d = %v, want %v", d, want)
		}
	})
}

func below(s []float64, v float64) float64 {
	n := 0
	for _, x := range s {
		if x <= v {
			n++
		}
	}
	return float64(n) / float64(len(s))
}

func TestPageHinkley(t *testing.T) {
	d := drift.PageHinkley{Delta: 0.1, Lambda: 2}
	// Against a fixed reference of 1, values of 1.5 gain 0.4 each: 6 exceed 2.
	s, at := drift.StartAt(1, math.Inf(1)), 0
	for i := 1; at == 0 && i < 100; i++ {
		var hit bool
		if s, hit = d.Next(s, 1.5); hit {
			at = i
		}
	}
	if at != 6 {
		t.Errorf("alarm at value %d, want 6", at)
	}
	s = drift.StartAt(1, 10)
	for i := range 1000 {
		var hit bool
		if s, hit = d.Next(s, 1+0.05*math.Sin(float64(i))); hit {
			t.Fatalf("alarm at value %d of a steady stream", i)
		}
	}
	if _, hit := d.Next(s, math.NaN()); !hit {
		t.Error("no alarm at NaN")
	}
}

func TestPageHinkleyStateSurvivesJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(0, 2), 1, 60).Draw(t, "values")
		cut := rapid.IntRange(0, len(values)).Draw(t, "cut")
		d := drift.PageHinkley{Delta: 0.01, Lambda: 1}
		whole, parts := drift.StartAt(0.5, math.Inf(1)), drift.StartAt(0.5, math.Inf(1))
		for i, v := range values {
			if i == cut {
				raw, err := json.Marshal(parts)
				if err != nil {
					t.Fatal(err)
				}
				parts = drift.PageHinkleyState{}
				if err := json.Unmarshal(raw, &parts); err != nil {
					t.Fatal(err)
				}
			}
			var a, b bool
			whole, a = d.Next(whole, v)
			parts, b = d.Next(parts, v)
			if a != b || whole != parts {
				t.Fatalf("value %d: %+v %t, resumed %+v %t", i, whole, a, parts, b)
			}
		}
		if whole.Statistic() < 0 || whole.Peak < whole.Statistic() {
			t.Fatalf("%+v", whole)
		}
	})
}

func TestDDM(t *testing.T) {
	d, s := drift.DDM{}, drift.DDMState{}
	var level drift.Level
	for i := range 1000 { // one error in ten
		if s, level = d.Next(s, i%10 == 0); level == drift.Drift {
			t.Fatalf("drift at row %d of a steady stream", i)
		}
	}
	warned, found := 0, 0
	for i := 1; found == 0 && i < 1000; i++ { // then one in two
		switch s, level = d.Next(s, i%2 == 0); {
		case level == drift.Drift:
			found = i
		case level == drift.Warning && warned == 0:
			warned = i
		}
	}
	if warned == 0 || found == 0 || warned > found || found > 300 {
		t.Errorf("warning after %d rows, drift after %d", warned, found)
	}
	// p + s against p_min + 3 s_min, by hand at the row of the alarm.
	sd := math.Sqrt(s.P * (1 - s.P) / float64(s.N))
	if s.P+sd < s.PMin+3*s.SMin {
		t.Errorf("alarm although %v < %v", s.P+sd, s.PMin+3*s.SMin)
	}
}

func TestPSI(t *testing.T) {
	var a, b []float64
	for i := range 1000 {
		a = append(a, float64(i))
		b = append(b, float64(i)+500)
	}
	if got := drift.PSI(a, a, 10); math.Abs(got) > 1e-12 {
		t.Errorf("PSI of a sample with itself is %v", got)
	}
	// Two bins of halves against 0.0005 and 1: (0.5-0.0005) ln(0.5/0.0005) + (0.5-1) ln(0.5/1).
	want := (0.5-0.0005)*math.Log(0.5/0.0005) + (0.5-1)*math.Log(0.5)
	if got := drift.PSI(a, b, 2); math.Abs(got-want) > 1e-12 {
		t.Errorf("PSI = %v, want %v", got, want)
	}
	if !math.IsNaN(drift.PSI(nil, a, 10)) || !math.IsNaN(drift.PSI(a, a, 1)) {
		t.Error("edges")
	}
}

func ExamplePageHinkley() {
	d := drift.PageHinkley{Delta: 0.01, Lambda: 0.5}
	s := drift.StartAt(0.45, 20) // the loss on the holdout
	for i, loss := range []float64{0.44, 0.47, 0.45, 0.72, 0.71, 0.75, 0.70} {
		var alarm bool
		if s, alarm = d.Next(s, loss); alarm {
			fmt.Printf("value %d: statistic %.2f\n", i, s.Statistic())
			break
		}
	}
	// Output: value 5: statistic 0.73
}
