package drift

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/evaluate"
	"github.com/stokehold/stokehold/stages/train"
)

// Columns of the predictions that a Monitor reads: float32 probabilities of the
// served model and of a fixed one to compare with, and their versions' ids.
const (
	ColumnServed        = "p"
	ColumnFrozen        = "p_frozen"
	ColumnVersion       = "version"
	ColumnFrozenVersion = "version_frozen"
)

// Config says what counts as drift. Zero values take the documented defaults.
type Config struct {
	// Loss watches the served model's log loss, each value the mean of Chunk rows,
	// against the loss on the version's holdout, which weighs RefWeight values.
	// Default: Delta 0.01, Lambda 1.
	Loss      PageHinkley
	Chunk     int     // default 500
	RefWeight float64 // default 46
	// LabelDistance and ScoreDistance are the Kolmogorov-Smirnov distances to the
	// holdout's labels and scores from which a batch has drifted, if also p <
	// Significance. With thousands of rows any real difference is significant, so
	// the distance is what decides. Defaults: 0.1, 0.15, 0.001.
	LabelDistance float64
	ScoreDistance float64
	Significance  float64
}

func (c Config) withDefaults() Config {
	if c.Loss == (PageHinkley{}) {
		c.Loss = PageHinkley{Delta: 0.01, Lambda: 1}
	}
	if c.Chunk == 0 {
		c.Chunk = 500
	}
	if c.RefWeight == 0 {
		c.RefWeight = 46
	}
	if c.LabelDistance == 0 {
		c.LabelDistance = 0.1
	}
	if c.ScoreDistance == 0 {
		c.ScoreDistance = 0.15
	}
	if c.Significance == 0 {
		c.Significance = 0.001
	}
	return c
}

// Report is what a Monitor found in one batch. It is the data of its report
// event and, as JSON, the row that it writes.
type Report struct {
	Key           uint64  `json:"key"` // of the batch: a week
	Rows          int64   `json:"rows"`
	PositiveRate  float64 `json:"positive_rate"`
	Version       string  `json:"version"` // served
	FrozenVersion string  `json:"frozen_version"`
	LogLoss       float64 `json:"logloss"` // of the served version
	AUC           float64 `json:"auc"`     // 0 when all labels are the same
	FrozenLogLoss float64 `json:"frozen_logloss"`
	FrozenAUC     float64 `json:"frozen_auc"`
	Reference     float64 `json:"reference_logloss"` // of the served version on its holdout
	PageHinkley   float64 `json:"page_hinkley"`      // greatest statistic in the batch
	LabelKS       float64 `json:"label_ks"`
	LabelKSP      float64 `json:"label_ks_p"`
	ScoreKS       float64 `json:"score_ks"`
	ScoreKSP      float64 `json:"score_ks_p"`
	ScorePSI      float64 `json:"score_psi"`
	Drift         bool    `json:"drift"`
	Detectors     string  `json:"detectors,omitempty"` // those that found it, comma-separated
	Denied        string  `json:"denied,omitempty"`    // reason why governance refused drift.detected
	Event         string  `json:"event,omitempty"`     // id of drift.detected
}

// state is carried from batch to batch.
type state struct {
	Version string           `json:"version"`
	Loss    PageHinkleyState `json:"loss"`
}

// Monitor joins a batch of predictions with its labels, measures the served and
// the frozen model, and publishes drift.detected when the served one has drifted
// from what it did on its holdout. Its output has one batch of one row for each
// batch of predictions: the report and the detectors' state, from which the next
// one continues. A version's first batch starts the detectors afresh, and so
// does an alarm.
type Monitor struct {
	Model       string
	Predictions string
	Features    string
	Labels      string
	History     string // the input that is also the output
	Target      train.Target
	Config      Config
	Key         func(*stages.Task) (uint64, error)    // of the batch: its sequence in Features and Labels
	Offset      uint64                                // sequence in Predictions and History = key - Offset
	At          func(*stages.Task) (time.Time, error) // event time; nil: now
	Params      func(Report) map[string]any           // for the run that drift.detected may start; nil: none
	ReportType  string                                // event type of the report; "": none is published
	Kinds       train.Kinds                           // nil: train.Builtin()
	Registry    train.Registry                        // nil: the task's
}

// Schema implements stages.Schemer.
func (*Monitor) Schema() *arrow.Schema {
	return arrow.NewSchema([]arrow.Field{
		{Name: "key", Type: arrow.PrimitiveTypes.Uint64},
		{Name: "report", Type: arrow.BinaryTypes.String}, // JSON of Report
		{Name: "state", Type: arrow.BinaryTypes.String},  // JSON
	}, nil)
}

// Run implements stages.Stage.
func (m *Monitor) Run(ctx context.Context, task *stages.Task) error {
	key, err := m.Key(task)
	if err != nil {
		return err
	}
	if key < m.Offset {
		return stages.Permanent(fmt.Errorf("drift: batch %d comes before the first watched one, %d", key, m.Offset))
	}
	var at time.Time
	if m.At != nil {
		if at, err = m.At(task); err != nil {
			return err
		}
	}
	w := watch{m: m, task: task, registry: m.Registry, kinds: m.Kinds, cfg: m.Config.withDefaults()}
	if w.registry == nil {
		w.registry = task.Models()
	}
	if w.kinds == nil {
		w.kinds = train.Builtin()
	}
	if err := w.read(ctx, key); err != nil {
		return err
	}
	w.judge()
	if err := w.announce(ctx, at); err != nil {
		return err
	}
	rec, err := w.row()
	if err != nil {
		return err
	}
	defer rec.Release()
	if _, err := task.WriteAt(ctx, key-m.Offset, rec); err != nil {
		return err
	}
	for name, v := range map[string]float64{
		"logloss": w.report.LogLoss, "auc": w.report.AUC, "frozen_logloss": w.report.FrozenLogLoss, "frozen_auc": w.report.FrozenAUC,
		"page_hinkley": w.report.PageHinkley, "label_ks": w.report.LabelKS, "score_ks": w.report.ScoreKS,
	} {
		task.Metric(name, v)
	}
	task.Progress(1, 1, fmt.Sprintf("log loss %.4f, drift %t", w.report.LogLoss, w.report.Drift))
	if m.ReportType == "" {
		return nil
	}
	return task.Publish(ctx, m.ReportType, m.Model, "report", at, w.report)
}

// watch is one run of a Monitor.
type watch struct {
	m        *Monitor
	task     *stages.Task
	registry train.Registry
	kinds    train.Kinds
	cfg      Config

	report            Report
	state             state
	served            []float32
	late              []bool
	labels, refLabels []float64 // raw, for the distribution
	scores, refScores []float64
}

func (w *watch) read(ctx context.Context, key uint64) error {
	m := w.m
	var frozen []float32
	for b, err := range w.task.Range(ctx, m.Predictions, key-m.Offset, key-m.Offset+1) {
		if err != nil {
			return err
		}
		if err := w.predictions(b.Record, &frozen); err != nil {
			return stages.Permanent(fmt.Errorf("%s: %w", b.Ref.ID(), err))
		}
	}
	for b, err := range w.task.Range(ctx, m.Labels, key, key+1) {
		if err != nil {
			return err
		}
		if w.late, err = m.Target.Labels(b.Record); err != nil {
			return stages.Permanent(err)
		}
		w.labels = raw(b.Record, m.Target.Column)
	}
	served, err := evaluate.Measure(w.served, w.late)
	if err != nil {
		return stages.Permanent(fmt.Errorf("drift: batch %d: %w", key, err))
	}
	other, err := evaluate.Measure(frozen, w.late)
	if err != nil {
		return stages.Permanent(fmt.Errorf("drift: batch %d: %w", key, err))
	}
	r := &w.report
	r.Key, r.Rows, r.PositiveRate = key, served.Rows, float64(served.Positives)/float64(served.Rows)
	r.LogLoss, r.AUC, r.FrozenLogLoss, r.FrozenAUC = served.LogLoss, finite(served.AUC), other.LogLoss, finite(other.AUC)
	if err := w.reference(ctx); err != nil {
		return err
	}
	return w.resume(ctx, key)
}

func (w *watch) predictions(rec arrow.RecordBatch, frozen *[]float32) error {
	for _, c := range []struct {
		name string
		into *[]float32
	}{{ColumnServed, &w.served}, {ColumnFrozen, frozen}} {
		at := rec.Schema().FieldIndices(c.name)
		if len(at) != 1 {
			return fmt.Errorf("drift: no column %q, have %s", c.name, rec.Schema())
		}
		col, ok := rec.Column(at[0]).(*array.Float32)
		if !ok {
			return fmt.Errorf("drift: column %q is %s, want float32", c.name, rec.Column(at[0]).DataType())
		}
		*c.into = append([]float32(nil), col.Float32Values()...)
	}
	for _, c := range []struct {
		name string
		into *string
	}{{ColumnVersion, &w.report.Version}, {ColumnFrozenVersion, &w.report.FrozenVersion}} {
		at := rec.Schema().FieldIndices(c.name)
		if len(at) != 1 || rec.NumRows() == 0 {
			return fmt.Errorf("drift: no column %q, or no rows", c.name)
		}
		col, ok := rec.Column(at[0]).(*array.String)
		if !ok {
			return fmt.Errorf("drift: column %q is %s, want utf8", c.name, rec.Column(at[0]).DataType())
		}
		*c.into = strings.Clone(col.Value(0))
	}
	for _, p := range w.served {
		w.scores = append(w.scores, float64(p))
	}
	return nil
}

// reference is what the served version did on its holdout.
func (w *watch) reference(ctx context.Context) error {
	v, p, err := train.Open(ctx, w.registry, w.kinds, w.m.Model, w.report.Version)
	if err != nil {
		return err
	}
	w.report.Version = v.ID
	from, to, err := train.HoldoutOf(v)
	if err != nil {
		return stages.Permanent(err)
	}
	examples, err := train.ReadExamples(ctx, w.task, w.m.Features, w.m.Labels, from, to, w.m.Target)
	if err != nil {
		return err
	}
	q, err := p.Predict(examples.X)
	if err != nil {
		return stages.Permanent(err)
	}
	s, err := evaluate.Measure(q, examples.Y)
	if err != nil {
		return stages.Permanent(err)
	}
	w.report.Reference = s.LogLoss
	for _, x := range q {
		w.refScores = append(w.refScores, float64(x))
	}
	for b, err := range w.task.Range(ctx, w.m.Labels, from, to) {
		if err != nil {
			return err
		}
		w.refLabels = append(w.refLabels, raw(b.Record, w.m.Target.Column)...)
	}
	return nil
}

// resume takes the state that the batch before left, if it was of the same version.
func (w *watch) resume(ctx context.Context, key uint64) error {
	w.state = state{Version: w.report.Version, Loss: StartAt(w.report.Reference, w.cfg.RefWeight)}
	if key == w.m.Offset {
		return nil
	}
	seq := key - w.m.Offset - 1
	for b, err := range w.task.Range(ctx, w.m.History, seq, seq+1) {
		if err != nil {
			return err
		}
		at := b.Record.Schema().FieldIndices("state")
		if len(at) != 1 || b.Record.NumRows() != 1 {
			return stages.Permanent(fmt.Errorf("drift: %s is not a monitor's row", b.Ref.ID()))
		}
		col, ok := b.Record.Column(at[0]).(*array.String)
		if !ok {
			return stages.Permanent(fmt.Errorf("drift: %s is not a monitor's row", b.Ref.ID()))
		}
		var before state
		if err := json.Unmarshal([]byte(col.Value(0)), &before); err != nil {
			return stages.Permanent(fmt.Errorf("drift: state of %s: %w", b.Ref.ID(), err))
		}
		if before.Version == w.state.Version {
			w.state = before
		}
	}
	return nil
}

// judge runs the detectors over the batch.
func (w *watch) judge() {
	r, c := &w.report, w.cfg
	var found []string
	alarm := false
	for from := 0; from < len(w.served); {
		to := min(from+c.Chunk, len(w.served))
		if len(w.served)-to < c.Chunk/2 {
			to = len(w.served) // a short rest would be noise: it joins the last chunk
		}
		loss := 0.0
		for i := from; i < to; i++ {
			loss += evaluate.LogLoss(float64(w.served[i]), w.late[i])
		}
		var hit bool
		w.state.Loss, hit = c.Loss.Next(w.state.Loss, loss/float64(to-from))
		alarm = alarm || hit
		r.PageHinkley = max(r.PageHinkley, finite(w.state.Loss.Statistic()))
		from = to
	}
	if alarm {
		found = append(found, "page-hinkley")
	}
	d, p := KS(w.refLabels, w.labels)
	r.LabelKS, r.LabelKSP = finite(d), finite(p)
	if d >= c.LabelDistance && p < c.Significance {
		found = append(found, "ks-labels")
	}
	d, p = KS(w.refScores, w.scores)
	r.ScoreKS, r.ScoreKSP = finite(d), finite(p)
	if d >= c.ScoreDistance && p < c.Significance {
		found = append(found, "ks-scores")
	}
	const bins = 10
	r.ScorePSI = finite(PSI(w.refScores, w.scores, bins))
	if len(found) > 0 {
		r.Drift, r.Detectors = true, strings.Join(found, ",")
		w.state.Loss = StartAt(r.Reference, c.RefWeight)
	}
}

// announce publishes drift.detected. That governance refuses it is a finding,
// not a failure.
func (w *watch) announce(ctx context.Context, at time.Time) error {
	if !w.report.Drift {
		return nil
	}
	r := &w.report
	first, _, _ := strings.Cut(r.Detectors, ",")
	statistic, threshold := r.PageHinkley, w.cfg.Loss.Lambda
	switch first {
	case "ks-labels":
		statistic, threshold = r.LabelKS, w.cfg.LabelDistance
	case "ks-scores":
		statistic, threshold = r.ScoreKS, w.cfg.ScoreDistance
	}
	var params map[string]any
	if w.m.Params != nil {
		params = w.m.Params(*r)
	}
	const key = "drift"
	r.Event = w.task.Run + "/" + w.task.Stage + "/" + key // as Task.Publish makes it
	err := w.task.Publish(ctx, events.TypeDriftDetected, w.m.Model, key, at, events.DriftDetected{
		Pipeline: w.task.Pipeline, Model: w.m.Model, Version: r.Version, Detector: r.Detectors,
		Statistic: statistic, Threshold: threshold, Window: fmt.Sprintf("batch %d", r.Key), Rows: r.Rows,
		Metrics: map[string]float64{
			"logloss": r.LogLoss, "auc": r.AUC, "reference_logloss": r.Reference,
			"page_hinkley": r.PageHinkley, "label_ks": r.LabelKS, "score_ks": r.ScoreKS, "positive_rate": r.PositiveRate,
		},
		Params: params,
	})
	var denied *events.DeniedError
	if errors.As(err, &denied) {
		r.Denied = denied.Verdict.Reason
		if r.Denied == "" {
			r.Denied = denied.Error()
		}
		return nil
	}
	return err
}

func (w *watch) row() (arrow.RecordBatch, error) {
	report, err := json.Marshal(w.report)
	if err != nil {
		return nil, stages.Permanent(fmt.Errorf("drift: encode report: %w", err))
	}
	st, err := json.Marshal(w.state)
	if err != nil {
		return nil, stages.Permanent(fmt.Errorf("drift: encode state: %w", err))
	}
	return encodeRow(w.m.Schema(), w.report.Key, string(report), string(st)), nil
}

// DecodeReport reads the report of a row that a Monitor wrote.
func DecodeReport(rec arrow.RecordBatch) (Report, error) {
	var r Report
	at := rec.Schema().FieldIndices("report")
	if len(at) != 1 || rec.NumRows() != 1 {
		return r, errors.New("drift: not a monitor's row")
	}
	col, ok := rec.Column(at[0]).(*array.String)
	if !ok {
		return r, errors.New("drift: not a monitor's row")
	}
	if err := json.Unmarshal([]byte(col.Value(0)), &r); err != nil {
		return r, fmt.Errorf("drift: report: %w", err)
	}
	return r, nil
}

func finite(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}

var _ stages.Schemer = (*Monitor)(nil)
