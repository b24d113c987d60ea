// Package drift finds out when a model no longer fits the world: detectors that
// are pure mathematics, with states that can be stored as JSON, and one thin
// stage, Monitor, that feeds them.
package drift

import "math"

// PageHinkley finds a rise of a stream's mean (Page, Continuous inspection
// schemes, Biometrika 41, 1954; Hinkley, Biometrika 58, 1971; in the form of
// Gama et al., A survey on concept drift adaptation, ACM Computing Surveys 46,
// 2014, section 3.2.1):
//
//	m_t = sum over i <= t of (x_i - mean_i - Delta)
//	alarm when m_t - min over i <= t of m_i > Lambda
//
// mean_i is the mean of x_1..x_i together with the reference that State was
// started with. The zero value of State has no reference.
type PageHinkley struct {
	Delta  float64 // rise that is tolerated, in the units of x
	Lambda float64 // accumulated rise that is an alarm
	Least  int64   // values before an alarm is possible, the reference's not counted
}

// PageHinkleyState is where a PageHinkley is in its stream.
type PageHinkleyState struct {
	N    int64   `json:"n"`    // values seen since the start
	Ref  float64 `json:"ref"`  // weight of the reference, in values
	Mean float64 `json:"mean"` // of reference and values
	Sum  float64 `json:"sum"`  // m_t
	Min  float64 `json:"min"`  // least m_i, m_0 = 0 included
	Peak float64 `json:"peak"` // greatest m_t - min so far
}

// StartAt returns a state whose mean begins at reference, which weighs as much
// as weight values: +Inf keeps the mean at the reference, which makes the
// detector a one-sided CUSUM against it. JSON has no infinity, so a weight is
// cut to the greatest finite float64, which acts the same.
func StartAt(reference, weight float64) PageHinkleyState {
	return PageHinkleyState{Ref: min(weight, math.MaxFloat64), Mean: reference}
}

// Next adds x and reports whether it raises the alarm. The caller starts afresh
// after one. A value that is not finite is an alarm: a loss that cannot be
// computed is no good news.
func (d PageHinkley) Next(s PageHinkleyState, x float64) (PageHinkleyState, bool) {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return s, true
	}
	s.N++
	s.Mean += (x - s.Mean) / (s.Ref + float64(s.N))
	s.Sum += x - s.Mean - d.Delta
	s.Min = min(s.Min, s.Sum)
	s.Peak = max(s.Peak, s.Statistic())
	return s, s.N >= d.Least && s.Statistic() > d.Lambda
}

// Statistic is m_t - min m_i.
func (s PageHinkleyState) Statistic() float64 { return s.Sum - s.Min }

// DDM finds a rise of an error rate (Gama, Medas, Castillo, Rodrigues, Learning
// with drift detection, SBIA 2004): with p the share of errors among n rows and
// s = sqrt(p (1-p) / n), it remembers the least p + s and says
//
//	warning when p + s >= p_min + Warn * s_min
//	drift   when p + s >= p_min + Drift * s_min
type DDM struct {
	Warn  float64 // default 2
	Drift float64 // default 3
	Least int64   // rows before anything is said; default 30
}

// DDMState is where a DDM is in its stream.
type DDMState struct {
	N    int64   `json:"n"`
	P    float64 `json:"p"`
	PMin float64 `json:"p_min"`
	SMin float64 `json:"s_min"`
	Set  bool    `json:"set"` // PMin and SMin hold something
}

// Level is what a detector says of the stream so far.
type Level int

// Levels, by rising concern.
const (
	Stable Level = iota
	Warning
	Drift
)

// Next adds a row: whether the prediction was wrong.
func (d DDM) Next(s DDMState, wrong bool) (DDMState, Level) {
	if d.Warn == 0 {
		d.Warn = 2
	}
	if d.Drift == 0 {
		d.Drift = 3
	}
	if d.Least == 0 {
		d.Least = 30
	}
	x := 0.0
	if wrong {
		x = 1
	}
	s.N++
	s.P += (x - s.P) / float64(s.N)
	sd := math.Sqrt(s.P * (1 - s.P) / float64(s.N))
	if s.N < d.Least {
		return s, Stable
	}
	if !s.Set || s.P+sd <= s.PMin+s.SMin {
		s.PMin, s.SMin, s.Set = s.P, sd, true
	}
	switch {
	case s.SMin > 0 && s.P+sd >= s.PMin+d.Drift*s.SMin:
		return s, Drift
	case s.SMin > 0 && s.P+sd >= s.PMin+d.Warn*s.SMin:
		return s, Warning
	}
	return s, Stable
}
