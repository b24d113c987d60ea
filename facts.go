package stokehold

import (
	"context"
	"errors"
	"math"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/tiers"
)

// Metadata of a model version that policies see, beside what its lineage says.
const metadataPrecision = "precision" // fp32, fp8, int4, ...

// facts are what policies see beside an event, from the registry of models, the
// catalog of batches and the ledger of budgets, which are there once an App is connected.
func (a *App) facts() governance.Facts {
	return governance.Facts{
		Batch: a.batchFacts, Dataset: a.datasetFacts, Model: a.modelFacts, Champion: a.championFacts, Actor: a.actorFacts,
		Worker: a.workerFacts, Budget: a.budgetFacts,
	}
}

func (a *App) actorFacts(ctx context.Context, ev *events.Event, known *governance.Actor) error {
	if a.Approvals == nil {
		return nil
	}
	return a.Approvals.Directory().Facts(ctx, ev, known)
}

func (a *App) modelFacts(ctx context.Context, _ *events.Event, m *governance.Model) error {
	if a.Models == nil || m.Name == "" || m.Version == "" {
		return nil
	}
	v, err := a.Models.Get(ctx, m.Name, m.Version)
	if errors.Is(err, models.ErrNotFound) {
		return nil // about to be registered: only what the event says is known
	}
	if err != nil {
		return err
	}
	return a.describeModel(ctx, m, &v)
}

func (a *App) championFacts(ctx context.Context, ev *events.Event, m *governance.Model) error {
	if m.Version != "" {
		return a.modelFacts(ctx, ev, m)
	}
	if a.Models == nil || m.Name == "" {
		return nil
	}
	v, err := a.Models.Alias(ctx, m.Name, models.Champion)
	if errors.Is(err, models.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	m.Version = v.ID
	m.Aliases = append(m.Aliases, models.Champion)
	return a.describeModel(ctx, m, &v)
}

// describeModel fills in what the event does not say. What it says of metrics
// stays: they may be newer, and of other data.
func (a *App) describeModel(ctx context.Context, m *governance.Model, v *models.Version) error {
	m.Format, m.Kind, m.Precision = v.Format, v.Kind, v.Metadata[metadataPrecision]
	m.Bytes, m.Created = &v.Bytes, &v.Created
	if m.Run == "" {
		m.Run = v.Lineage.Run
	}
	if m.Metrics == nil {
		m.Metrics = v.Metrics
	}
	m.Datasets = []string{}
	for _, use := range v.Lineage.Datasets {
		m.Datasets = append(m.Datasets, use.Dataset)
	}
	m.Parents = []string{}
	if v.Lineage.Parent != "" {
		m.Parents = append(m.Parents, v.Lineage.Parent)
	}
	labels, err := a.Models.EffectiveLabels(ctx, *v)
	if err == nil && labels != nil {
		m.Labels = labels // as they are stored, whatever the event says
	}
	return err
}

func (a *App) datasetFacts(ctx context.Context, _ *events.Event, d *governance.Dataset) error {
	if a.Store == nil || d.Name == "" {
		return nil
	}
	head := a.Store.LabelledHead
	if d.Labels != nil { // the event says them
		head = a.Store.Head
	}
	h, err := head(ctx, d.Name)
	if errors.Is(err, tiers.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if d.Batches == nil {
		d.Batches = new(int64(h.Next))
	}
	if d.Rows == nil {
		d.Rows = &h.Rows
	}
	if d.Sealed == nil {
		d.Sealed = &h.Sealed
	}
	if d.Fingerprint == "" {
		d.Fingerprint = h.Fingerprint
	}
	if d.Labels == nil && h.Labels != nil {
		d.Labels = h.Labels
	}
	return nil
}

// batchFacts reads the columns of a batch. One that cannot be opened, such as one
// that is not committed and not in shared memory, has none that are known.
func (a *App) batchFacts(ctx context.Context, _ *events.Event, b *governance.Batch) error {
	if a.Store == nil || b.Dataset == "" || b.Sequence == nil || *b.Sequence < 0 {
		return nil
	}
	ref := arrowio.Ref{Dataset: b.Dataset, Sequence: uint64(*b.Sequence), Fingerprint: b.Fingerprint}
	if b.Rows != nil {
		ref.Rows = *b.Rows
	} else {
		ref.Fingerprint = ""
	}
	if b.Tier == string(arrowio.Hot) {
		ref.Locations = []arrowio.Location{{Tier: arrowio.Hot, URI: b.URI}}
	}
	opened, err := a.Store.OpenBatch(ctx, ref, false)
	if err != nil {
		return ctx.Err()
	}
	defer opened.Release()
	rec := opened.Record
	b.Columns = make(map[string]governance.Column, rec.NumCols())
	for i, f := range rec.Schema().Fields() {
		if err := ctx.Err(); err != nil {
			return err
		}
		b.Columns[f.Name] = describeColumn(f, rec.Column(i))
	}
	return nil
}

func describeColumn(f arrow.Field, col arrow.Array) governance.Column {
	out := governance.Column{Type: f.Type.String(), Nullable: f.Nullable, Nulls: new(int64(col.NullN()))}
	switch col := col.(type) {
	case *array.Float64:
		summarize(&out, col, col.Float64Values())
	case *array.Float32:
		summarize(&out, col, col.Float32Values())
	case *array.Int64:
		summarize(&out, col, col.Int64Values())
	case *array.Int32:
		summarize(&out, col, col.Int32Values())
	case *array.Int16:
		summarize(&out, col, col.Int16Values())
	case *array.Int8:
		summarize(&out, col, col.Int8Values())
	case *array.Uint64:
		summarize(&out, col, col.Uint64Values())
	case *array.Uint32:
		summarize(&out, col, col.Uint32Values())
	}
	return out
}

// summarize gives the statistics of the values that are there, by Welford's method
// (Technometrics 4, 1962). With a NaN or an infinity among them there are none.
func summarize[T int8 | int16 | int32 | int64 | uint32 | uint64 | float32 | float64](out *governance.Column, col arrow.Array, values []T) {
	n, mean, sum := 0, 0.0, 0.0
	lo, hi := math.Inf(1), math.Inf(-1)
	for i, v := range values {
		if col.IsNull(i) {
			continue
		}
		x := float64(v)
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return
		}
		n++
		d := x - mean
		mean += d / float64(n)
		sum += d * (x - mean)
		lo, hi = min(lo, x), max(hi, x)
	}
	if n == 0 || math.IsInf(sum, 0) || math.IsNaN(sum) {
		return
	}
	out.Min, out.Max, out.Mean, out.StdDev = &lo, &hi, &mean, new(0.0)
	if n > 1 {
		*out.StdDev = math.Sqrt(sum / float64(n-1))
	}
}
