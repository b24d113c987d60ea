// Package train fits models on features and labels, and predicts with what it
// fitted. Training is deterministic: the same rows, options and seed give the
// same bytes, and so the same model version.
package train

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/tiers"
)

// Target makes a label of a column: positive where the value is greater than Above.
type Target struct {
	Column string  `json:"column"`
	Above  float64 `json:"above"`
}

// String is the definition for people and for a model's metadata.
func (t Target) String() string {
	return t.Column + " > " + strconv.FormatFloat(t.Above, 'g', -1, 64)
}

// Labels returns the labels of rec's rows. The error says what the column is.
func (t Target) Labels(rec arrow.RecordBatch) ([]bool, error) {
	at := rec.Schema().FieldIndices(t.Column)
	if len(at) != 1 {
		return nil, fmt.Errorf("train: no column %q for the target, have %s", t.Column, rec.Schema())
	}
	col := rec.Column(at[0])
	if col.NullN() > 0 {
		return nil, fmt.Errorf("train: target column %q has %d nulls", t.Column, col.NullN())
	}
	out := make([]bool, col.Len())
	switch c := col.(type) {
	case *array.Int64:
		for i, v := range c.Int64Values() {
			out[i] = float64(v) > t.Above
		}
	case *array.Int32:
		for i, v := range c.Int32Values() {
			out[i] = float64(v) > t.Above
		}
	case *array.Float64:
		for i, v := range c.Float64Values() {
			out[i] = v > t.Above
		}
	case *array.Float32:
		for i, v := range c.Float32Values() {
			out[i] = float64(v) > t.Above
		}
	default:
		return nil, fmt.Errorf("train: target column %q is %s, want int32, int64, float32 or float64", t.Column, col.DataType())
	}
	return out, nil
}

// Examples are rows with their labels, in memory.
type Examples struct {
	Names []string            // of the features
	X     []float32           // of shape (rows, features), row-major
	Y     []bool              // label of each row
	Use   []models.DatasetUse // what was read, pinned by content where a checksum is known
}

// Rows is the number of rows.
func (e *Examples) Rows() int { return len(e.Y) }

// Positives is the number of rows whose label is true.
func (e *Examples) Positives() int {
	n := 0
	for _, y := range e.Y {
		if y {
			n++
		}
	}
	return n
}

// DefaultMaxRows bounds the rows that ReadExamples takes into memory.
const DefaultMaxRows = 20_000_000

// ErrMismatch means: features and labels do not fit together.
var ErrMismatch = errors.New("features and labels do not fit together")

// ReadExamples reads batches from..to-1 of the inputs features (float32 columns)
// and labels, which have the same rows in the same order. It waits for batches
// not yet there.
func ReadExamples(ctx context.Context, task *stages.Task, features, labels string, from, to uint64, target Target) (*Examples, error) {
	if from >= to {
		return nil, stages.Permanent(fmt.Errorf("train: batches %d to %d of %s: nothing to read", from, to, features))
	}
	out := &Examples{Use: []models.DatasetUse{{Dataset: features, From: from, To: to}, {Dataset: labels, From: from, To: to}}}
	nextX, stopX := iter.Pull2(task.Range(ctx, features, from, to))
	defer stopX()
	nextY, stopY := iter.Pull2(task.Range(ctx, labels, from, to))
	defer stopY()
	for seq := from; seq < to; seq++ {
		x, err := need(nextX, features, seq)
		if err != nil {
			return nil, err
		}
		y, err := need(nextY, labels, seq)
		if err != nil {
			return nil, err
		}
		if err := out.add(x, y, target); err != nil {
			return nil, stages.Permanent(err)
		}
	}
	return out, nil
}

func need(next func() (*tiers.Batch, error, bool), dataset string, seq uint64) (*tiers.Batch, error) {
	b, err, ok := next()
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, stages.Permanent(fmt.Errorf("train: %s was sealed before batch %d", dataset, seq))
	}
	return b, nil
}

func (e *Examples) add(x, y *tiers.Batch, target Target) error {
	names, values, err := Matrix(x.Record)
	if err != nil {
		return fmt.Errorf("%s: %w", x.Ref.ID(), err)
	}
	if e.Names == nil {
		e.Names = names
	}
	if len(names) != len(e.Names) {
		return fmt.Errorf("%s: %w: %d features, %d in the batch before", x.Ref.ID(), ErrMismatch, len(names), len(e.Names))
	}
	for i := range names {
		if names[i] != e.Names[i] {
			return fmt.Errorf("%s: %w: feature %d is %q, %q in the batch before", x.Ref.ID(), ErrMismatch, i, names[i], e.Names[i])
		}
	}
	labels, err := target.Labels(y.Record)
	if err != nil {
		return fmt.Errorf("%s: %w", y.Ref.ID(), err)
	}
	if x.Record.NumRows() != y.Record.NumRows() {
		return fmt.Errorf("%w: %s has %d rows, %s has %d", ErrMismatch, x.Ref.ID(), x.Record.NumRows(), y.Ref.ID(), y.Record.NumRows())
	}
	if len(e.Y)+len(labels) > DefaultMaxRows {
		return fmt.Errorf("train: more than %d rows: read fewer batches", DefaultMaxRows)
	}
	e.X, e.Y = append(e.X, values...), append(e.Y, labels...)
	for i, ref := range []arrowio.Ref{x.Ref, y.Ref} {
		sum := ""
		for _, l := range ref.Locations {
			if l.SHA256 != "" && l.Codec == "arrow-ipc" {
				sum = l.SHA256
			}
		}
		e.Use[i].SHA256 = append(e.Use[i].SHA256, sum)
	}
	return nil
}

// Matrix copies a batch of float32 columns into a matrix of shape (rows,
// features), row-major, with the columns' names.
func Matrix(rec arrow.RecordBatch) ([]string, []float32, error) {
	rows, width := int(rec.NumRows()), int(rec.NumCols())
	names := make([]string, width)
	out := make([]float32, rows*width)
	for c := range width {
		names[c] = rec.ColumnName(c)
		col, ok := rec.Column(c).(*array.Float32)
		if !ok || col.NullN() > 0 {
			return nil, nil, fmt.Errorf("train: feature %q is %s with %d nulls, want float32 without nulls", names[c], rec.Column(c).DataType(), rec.Column(c).NullN())
		}
		for r, v := range col.Float32Values() {
			out[r*width+c] = v
		}
	}
	return names, out, nil
}
