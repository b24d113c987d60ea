package train

import (
	"context"
	"errors"
	"fmt"
	"math"

	"gonum.org/v1/gonum/mat"
)

// Logistic fits a logistic regression with an L2 penalty by Newton's method
// (iteratively reweighted least squares: Hastie, Tibshirani, Friedman, The
// Elements of Statistical Learning, 2nd ed., section 4.4.1, with the penalty of
// section 4.4.4). Features are standardised first, so that the penalty means the
// same for all of them. The loss is convex: the result does not depend on a seed.
type Logistic struct {
	// L2 is the penalty's weight: the loss is the mean log loss plus
	// L2/2 * |weights|^2 over standardised features, the intercept left out.
	// Default 1e-3.
	L2 float64
	// MaxIterations bounds Newton steps; default 50.
	MaxIterations int
	// Tolerance ends the fit when no weight moves by more; default 1e-8.
	Tolerance float64
}

// ErrFit means: the data cannot be fitted.
var ErrFit = errors.New("cannot fit")

// Fit fits e. It fails with ErrFit when a value is not finite or when all labels
// are the same.
func (l Logistic) Fit(ctx context.Context, e *Examples) (*LogisticModel, error) {
	if l.L2 == 0 {
		l.L2 = 1e-3
	}
	if l.MaxIterations == 0 {
		l.MaxIterations = 50
	}
	if l.Tolerance == 0 {
		l.Tolerance = 1e-8
	}
	rows, width := e.Rows(), len(e.Names)
	if width == 0 || len(e.X) != rows*width {
		return nil, fmt.Errorf("%w: %d values for %d rows of %d features", ErrFit, len(e.X), rows, width)
	}
	positives := e.Positives()
	if positives == 0 || positives == rows {
		return nil, fmt.Errorf("%w: %d of %d labels are positive: both kinds are needed", ErrFit, positives, rows)
	}
	m := &LogisticModel{Names: e.Names, Weights: make([]float64, width)}
	if err := m.standardise(e); err != nil {
		return nil, err
	}
	z := make([]float64, rows*width)
	for r := range rows {
		for c := range width {
			z[r*width+c] = (float64(e.X[r*width+c]) - m.Mean[c]) / m.Scale[c]
		}
	}
	share := float64(positives) / float64(rows)
	w := make([]float64, width+1) // the intercept is last
	w[width] = math.Log(share / (1 - share))
	loss, err := l.newton(ctx, z, e.Y, w)
	if err != nil {
		return nil, err
	}
	copy(m.Weights, w[:width])
	m.Intercept, m.Loss = w[width], loss
	return m, nil
}

func (m *LogisticModel) standardise(e *Examples) error {
	width := len(e.Names)
	n := float64(e.Rows())
	m.Mean, m.Scale = make([]float64, width), make([]float64, width)
	for i, v := range e.X {
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("%w: row %d of feature %q is %v", ErrFit, i/width, e.Names[i%width], v)
		}
		m.Mean[i%width] += float64(v)
	}
	for c := range m.Mean {
		m.Mean[c] /= n
	}
	for i, v := range e.X {
		d := float64(v) - m.Mean[i%width]
		m.Scale[i%width] += d * d
	}
	for c := range m.Scale {
		m.Scale[c] = math.Sqrt(m.Scale[c] / n)
		if m.Scale[c] < 1e-9 {
			m.Scale[c] = 1 // constant: standardises to 0, so its weight stays 0
		}
	}
	return nil
}

// newton improves w in place until it stands still. The step is halved until the
// loss falls, which a full Newton step does not promise far from the optimum.
func (l Logistic) newton(ctx context.Context, z []float64, y []bool, w []float64) (float64, error) {
	p := len(w)
	at, next := newSlope(p), newSlope(p)
	loss := l.evaluate(z, y, w, at)
	trial := make([]float64, p)
	for range l.MaxIterations {
		var chol mat.Cholesky
		if !chol.Factorize(at.hessian) {
			return 0, fmt.Errorf("%w: features are linearly dependent: raise L2 (now %g)", ErrFit, l.L2)
		}
		var step mat.VecDense
		if err := chol.SolveVecTo(&step, mat.NewVecDense(p, at.gradient)); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrFit, err)
		}
		var moved float64
		for scale := 1.0; ; scale /= 2 {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			moved = 0
			for i := range w {
				d := scale * step.AtVec(i)
				trial[i] = w[i] - d
				moved = max(moved, math.Abs(d))
			}
			// A full step is nearly always right, so its slope is computed at once.
			if got := l.evaluate(z, y, trial, next); got <= loss || moved <= l.Tolerance {
				loss = got
				break
			}
		}
		copy(w, trial)
		at, next = next, at
		if moved <= l.Tolerance {
			return loss, nil
		}
	}
	return 0, fmt.Errorf("%w: no convergence within %d steps", ErrFit, l.MaxIterations)
}

// slope is the loss's gradient and Hessian.
type slope struct {
	gradient []float64
	hessian  *mat.SymDense
}

func newSlope(p int) *slope {
	return &slope{gradient: make([]float64, p), hessian: mat.NewSymDense(p, nil)}
}

// evaluate returns the penalised mean loss at w and sets its slope. Rows are
// summed in order, so the result is always the same.
func (l Logistic) evaluate(z []float64, y []bool, w []float64, s *slope) float64 {
	p := len(w)
	width := p - 1
	n := float64(len(y))
	loss := 0.0
	h := make([]float64, p*p)
	clear(s.gradient)
	row := make([]float64, p)
	row[width] = 1
	for r, positive := range y {
		copy(row, z[r*width:(r+1)*width])
		t := 0.0
		for c, v := range row {
			t += v * w[c]
		}
		// softplus and sigmoid of t share their exponential.
		e := math.Exp(-math.Abs(t))
		loss += max(t, 0) + math.Log1p(e)
		q := 1 / (1 + e)
		if t < 0 {
			q = e / (1 + e)
		}
		residual, weight := q, q*(1-q)
		if positive {
			loss -= t
			residual--
		}
		for i, v := range row {
			s.gradient[i] += residual * v
			wv := weight * v
			line := h[i*p : i*p+p]
			for j := i; j < p; j++ {
				line[j] += wv * row[j]
			}
		}
	}
	loss /= n
	for i := range p {
		s.gradient[i] /= n
		for j := i; j < p; j++ {
			s.hessian.SetSym(i, j, h[i*p+j]/n)
		}
		if i < width {
			loss += l.L2 / 2 * w[i] * w[i]
			s.gradient[i] += l.L2 * w[i]
			s.hessian.SetSym(i, i, s.hessian.At(i, i)+l.L2)
		}
	}
	return loss
}

func sigmoid(t float64) float64 {
	if t >= 0 {
		return 1 / (1 + math.Exp(-t))
	}
	e := math.Exp(t)
	return e / (1 + e)
}
