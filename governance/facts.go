package governance

import (
	"context"
	"time"

	"github.com/stokehold/stokehold/events"
)

// Facts are the sources of what expressions see beside the event. Each field
// completes one variable: it gets the event, which it must not change, and what
// the event itself says, and fills in the rest. nil: only what the event says is
// known, and an expression that reads a field which is not there fails.
//
// A source is called when an expression first reads its variable, at most once an
// event and point. An error makes the expression fail, with the name of the
// variable in the message. All sources of an event share Config.FactsTimeout. They
// are called by several goroutines at once.
//
// A nil pointer, list or map and an empty text stand for what is not known: such
// fields are missing to an expression. A list that is empty and not nil says that
// there are none.
type Facts struct {
	Batch    func(ctx context.Context, ev *events.Event, known *Batch) error
	Dataset  func(ctx context.Context, ev *events.Event, known *Dataset) error
	Model    func(ctx context.Context, ev *events.Event, known *Model) error // the model or version that the event is about; a challenger
	Champion func(ctx context.Context, ev *events.Event, known *Model) error // the version in service; of an event that has none it stays without a version
	Run      func(ctx context.Context, ev *events.Event, known *Run) error
	Actor    func(ctx context.Context, ev *events.Event, known *Actor) error
	Worker   func(ctx context.Context, ev *events.Event, known *Worker) error
	Budget   func(ctx context.Context, ev *events.Event, known *Budget) error
}

// Batch is the variable batch: the batch that an event tells of.
type Batch struct {
	Dataset     string            `json:"dataset,omitempty"`
	Sequence    *int64            `json:"sequence,omitempty"`
	Rows        *int64            `json:"rows,omitempty"`
	Bytes       *int64            `json:"bytes,omitempty"` // of the body
	Fingerprint string            `json:"fingerprint,omitempty"`
	Tier        string            `json:"tier,omitempty"` // hot, warm or cold
	URI         string            `json:"uri,omitempty"`
	Labels      []string          `json:"labels,omitzero"`   // pii, residency:eu, ...
	Columns     map[string]Column `json:"columns,omitempty"` // by name
}

// Column is one column of a batch.
type Column struct {
	Type     string    `json:"type,omitempty"` // of Arrow, e.g. int64, utf8, timestamp[us, tz=UTC]
	Nullable bool      `json:"nullable"`
	Nulls    *int64    `json:"nulls,omitempty"`
	Distinct *int64    `json:"distinct,omitempty"`
	Min      *float64  `json:"min,omitempty"` // of numbers
	Max      *float64  `json:"max,omitempty"`
	Mean     *float64  `json:"mean,omitempty"`
	StdDev   *float64  `json:"stddev,omitempty"`
	Bins     []float64 `json:"bins,omitempty"` // shares of a histogram, for psi()
	Labels   []string  `json:"labels,omitzero"`
}

// Dataset is the variable dataset: the dataset of the batch, or that the event's
// subject names.
type Dataset struct {
	Name        string   `json:"name,omitempty"`
	Batches     *int64   `json:"batches,omitempty"`
	Rows        *int64   `json:"rows,omitempty"`
	Bytes       *int64   `json:"bytes,omitempty"`
	Sealed      *bool    `json:"sealed,omitempty"`
	Fingerprint string   `json:"fingerprint,omitempty"`
	Labels      []string `json:"labels,omitzero"`
}

// Model is the variables model and champion: one version of a model.
type Model struct {
	Name      string             `json:"name,omitempty"`
	Version   string             `json:"version,omitempty"`
	Format    string             `json:"format,omitempty"`    // safetensors, onnx, opaque
	Kind      string             `json:"kind,omitempty"`      // which predictor can serve it, e.g. logistic/v1
	Precision string             `json:"precision,omitempty"` // fp32, fp16, bf16, fp8, int8, int4
	Bytes     *int64             `json:"bytes,omitempty"`
	Metrics   map[string]float64 `json:"metrics,omitempty"`
	Rows      *int64             `json:"rows,omitempty"`    // that the metrics were measured on
	Datasets  []string           `json:"datasets,omitzero"` // lineage: what it was trained on
	Parents   []string           `json:"parents,omitzero"`  // lineage: versions it was made from
	Run       string             `json:"run,omitempty"`
	Created   *time.Time         `json:"created,omitempty"`
	Aliases   []string           `json:"aliases,omitzero"`
	Signed    *bool              `json:"signed,omitempty"`
	Labels    []string           `json:"labels,omitzero"`
}

// Run is the variable run: the run that caused the event, or that it is about.
type Run struct {
	ID       string     `json:"id,omitempty"`
	Pipeline string     `json:"pipeline,omitempty"`
	Stage    string     `json:"stage,omitempty"`
	Trigger  string     `json:"trigger,omitempty"`
	Cause    string     `json:"cause,omitempty"`
	Attempt  *int64     `json:"attempt,omitempty"`
	Started  *time.Time `json:"started,omitempty"`
}

// Actor is the variable actor: on whose behalf the event was published.
type Actor struct {
	Name  string   `json:"name,omitempty"`
	Roles []string `json:"roles,omitzero"`
	Team  string   `json:"team,omitempty"`
}

// Worker is the variable worker: where the event was published, or on receive
// where it is to be handled.
type Worker struct {
	Name        string   `json:"name,omitempty"`
	Class       string   `json:"class,omitempty"`
	Accelerator string   `json:"accelerator,omitempty"` // e.g. nvidia-h100, none
	Precisions  []string `json:"precisions,omitzero"`   // that it computes in
	Region      string   `json:"region,omitempty"`
	Address     string   `json:"address,omitempty"` // IP, for cidr()
}

// Budget is the variable budget.
type Budget struct {
	Team     *Spending `json:"team,omitempty"`
	Pipeline *Spending `json:"pipeline,omitempty"`
	Run      *Spending `json:"run,omitempty"`
}

// Spending is what one budget has of each kind.
type Spending struct {
	Name               string  `json:"name,omitempty"`
	Money              *Amount `json:"money,omitempty"`               // in the deployment's currency
	AcceleratorSeconds *Amount `json:"accelerator_seconds,omitempty"` // device time
}

// Amount is spent and allowed in the current window.
type Amount struct {
	Spent float64  `json:"spent"`
	Limit *float64 `json:"limit,omitempty"` // nil: none is set
}
