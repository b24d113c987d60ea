package drift

import (
	"math"
	"slices"
)

// KS is the two-sample Kolmogorov-Smirnov test: d is the greatest distance
// between the samples' distribution functions, ties handled, and p the
// probability of a distance at least as great if both come from one
// distribution. p is asymptotic, with Stephens' correction for finite samples
// (M. A. Stephens, J. Royal Statistical Society B 32, 1970; Press et al.,
// Numerical Recipes, 3rd ed., section 14.3.3); with ties it is conservative. An
// empty sample, or one with a NaN, gives NaN. The samples are not changed.
func KS(a, b []float64) (d, p float64) {
	if len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, math.IsNaN) || slices.ContainsFunc(b, math.IsNaN) {
		return math.NaN(), math.NaN()
	}
	x, y := slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	n, m := float64(len(x)), float64(len(y))
	for i, j := 0, 0; i < len(x) && j < len(y); {
		v := min(x[i], y[j])
		for i < len(x) && x[i] == v {
			i++
		}
		for j < len(y) && y[j] == v {
			j++
		}
		d = max(d, math.Abs(float64(i)/n-float64(j)/m))
	}
	root := math.Sqrt(n * m / (n + m))
	return d, Kolmogorov((root + 0.12 + 0.11/root) * d)
}

// Kolmogorov is the probability that Kolmogorov's statistic exceeds x (A.
// Kolmogorov, Giornale dell'Istituto Italiano degli Attuari 4, 1933). Of its two
// series, which are equal by Jacobi's theta identity, each is used where it
// converges within a few terms.
func Kolmogorov(x float64) float64 {
	switch {
	case math.IsNaN(x):
		return x
	case x <= 0.04: // 1 to within float64
		return 1
	case x < 1.18:
		// 1 - sqrt(2 pi)/x * sum over odd k of exp(-k^2 pi^2 / (8 x^2))
		y := math.Exp(-math.Pi * math.Pi / (8 * x * x))
		return 1 - math.Sqrt(2*math.Pi)/x*(y+math.Pow(y, 9)+math.Pow(y, 25)+math.Pow(y, 49))
	}
	// 2 * sum over k >= 1 of (-1)^(k-1) exp(-2 k^2 x^2)
	y := math.Exp(-2 * x * x)
	return min(1, max(0, 2*(y-math.Pow(y, 4)+math.Pow(y, 9)-math.Pow(y, 16))))
}

// PSI is the population stability index between the shares of two samples in
// bins, as credit scoring uses it (it is Jeffreys' divergence of the binned
// distributions, Kullback and Leibler, Annals of Mathematical Statistics 22,
// 1951): sum of (a_i - b_i) ln(a_i / b_i). The edges are the reference's
// quantiles; empty bins count as half a row. Below 0.1 is usually called stable,
// above 0.25 changed. NaN when a sample is empty or bins < 2.
func PSI(reference, sample []float64, bins int) float64 {
	if len(reference) == 0 || len(sample) == 0 || bins < 2 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(reference))
	var edges []float64
	for k := 1; k < bins; k++ {
		e := sorted[k*len(sorted)/bins]
		if len(edges) == 0 || e > edges[len(edges)-1] {
			edges = append(edges, e)
		}
	}
	a, b := shares(reference, edges), shares(sample, edges)
	psi := 0.0
	for i := range a {
		psi += (a[i] - b[i]) * math.Log(a[i]/b[i])
	}
	return psi
}

// shares counts values below each edge and above the last, as shares.
func shares(values, edges []float64) []float64 {
	out := make([]float64, len(edges)+1)
	for _, v := range values {
		i, _ := slices.BinarySearch(edges, v)
		if i < len(edges) && edges[i] == v {
			i++ // an edge belongs to the bin above it
		}
		out[i]++
	}
	n := float64(len(values))
	for i := range out {
		out[i] = max(out[i], 0.5) / n
	}
	return out
}
