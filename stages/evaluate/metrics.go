// Package evaluate measures how well probabilities fit what happened.
package evaluate

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// ErrScores means: probabilities and labels that cannot be measured.
var ErrScores = errors.New("cannot measure")

// Scores are the measures of one set of predictions.
type Scores struct {
	Rows        int64
	Positives   int64
	LogLoss     float64 // mean, in nats
	AUC         float64 // area under the ROC curve; NaN when all labels are the same
	Brier       float64 // mean squared error of the probability
	Calibration float64 // expected calibration error over ten bins of equal width
	Mean        float64 // mean probability
}

// Map is the scores by name, as registries and events carry them; what is not
// finite is left out.
func (s Scores) Map() map[string]float64 {
	out := map[string]float64{}
	for name, v := range map[string]float64{
		"rows": float64(s.Rows), "positive_rate": float64(s.Positives) / float64(s.Rows),
		"logloss": s.LogLoss, "auc": s.AUC, "brier": s.Brier, "calibration": s.Calibration, "mean": s.Mean,
	} {
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			out[name] = v
		}
	}
	return out
}

// leastProbability bounds the loss of one row: a model that is certain and wrong
// loses 34.5 nats rather than infinity. float32 probabilities are exact 0 or 1
// when rounded, so the bound is needed.
const leastProbability = 1e-15

// LogLoss is the loss in nats of predicting p for a row whose label is y.
func LogLoss(p float64, y bool) float64 {
	if !y {
		p = 1 - p
	}
	return -math.Log(max(p, leastProbability))
}

// Measure compares probabilities, each in [0, 1], with labels. It fails with
// ErrScores when there are no rows, the lengths differ or a probability is not one.
func Measure(p []float32, y []bool) (Scores, error) {
	if len(p) != len(y) || len(p) == 0 {
		return Scores{}, fmt.Errorf("evaluate: %w: %d probabilities for %d labels", ErrScores, len(p), len(y))
	}
	const bins = 10
	var sum, hit, count [bins]float64
	s := Scores{Rows: int64(len(p))}
	for i, v := range p {
		q := float64(v)
		if !(q >= 0 && q <= 1) {
			return Scores{}, fmt.Errorf("evaluate: %w: probability %v in row %d", ErrScores, v, i)
		}
		t := 0.0
		if y[i] {
			t = 1
			s.Positives++
		}
		s.LogLoss += LogLoss(q, y[i])
		s.Brier += (q - t) * (q - t)
		s.Mean += q
		b := min(int(q*bins), bins-1)
		sum[b] += q
		hit[b] += t
		count[b]++
	}
	n := float64(len(p))
	s.LogLoss /= n
	s.Brier /= n
	s.Mean /= n
	for b := range bins {
		s.Calibration += math.Abs(sum[b]-hit[b]) / n
	}
	s.AUC = AUC(p, y)
	return s, nil
}

// AUC is the probability that a positive row's score is above a negative one's,
// ties counting half: the Mann-Whitney U statistic over the number of pairs
// (Hanley and McNeil, Radiology 143, 1982), from mid-ranks, so it is exact. NaN
// when all labels are the same.
func AUC(p []float32, y []bool) float64 {
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		switch {
		case p[a] < p[b]:
			return -1
		case p[a] > p[b]:
			return 1
		}
		return a - b
	})
	var rankSum, positives float64
	for i := 0; i < len(order); {
		j := i
		for j < len(order) && p[order[j]] == p[order[i]] {
			j++
		}
		mid := float64(i+j+1) / 2 // mean of the 1-based ranks i+1..j
		for ; i < j; i++ {
			if y[order[i]] {
				rankSum += mid
				positives++
			}
		}
	}
	negatives := float64(len(p)) - positives
	if positives == 0 || negatives == 0 {
		return math.NaN()
	}
	return (rankSum - positives*(positives+1)/2) / (positives * negatives)
}
