package models

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/stokehold/stokehold/governance/label"
)

// Aliases that Stokehold itself sets.
const (
	Champion   = "champion"
	Challenger = "challenger"
)

// Sentinels for the decisions a caller makes.
var (
	ErrNotFound = errors.New("no such model version or alias")
	// ErrConflict means the alias moved since it was read.
	ErrConflict = errors.New("alias was moved by another")
	// ErrMetrics means a metric is NaN or infinite, or there is none where one is needed.
	ErrMetrics = errors.New("unusable metrics")
	// ErrArtifact means the bytes are not what their manifest says.
	ErrArtifact = errors.New("artifact does not match its version")
	// ErrInvalid means a name, format or field that cannot be stored.
	ErrInvalid = errors.New("invalid model")
	// ErrAmbiguous means an id prefix that several versions share, or that is too short.
	ErrAmbiguous = errors.New("ambiguous version id")
	// ErrTooLarge means an artifact over MaxArtifactBytes.
	ErrTooLarge = errors.New("artifact too large")
)

// MaxArtifactBytes is the largest artifact.
const MaxArtifactBytes = 1 << 30

// Formats of artifacts. One in Safetensors is parsed before it is accepted.
const (
	Safetensors = "safetensors"
	ONNX        = "onnx"
	Opaque      = "opaque"
)

// Error says which operation on what failed. Err wraps a sentinel of this
// package or of events where a caller has a decision to make.
type Error struct {
	Op    string // "register", "promote", ...
	Model string
	What  string // version id or alias, "" when the whole model is meant
	Hint  string // what to do
	Err   error
}

func (e *Error) Error() string {
	s := "models: " + e.Op + " " + e.Model
	if e.What != "" {
		s += " " + e.What
	}
	s += ": " + e.Err.Error()
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Status of a version.
type Status string

// The statuses of a version.
const (
	Registered Status = "registered"
	Promoted   Status = "promoted" // is or was champion
	Refused    Status = "refused"  // a challenger that lost, kept with the reason
)

// DatasetUse is one input of a model, pinned by content.
type DatasetUse struct {
	Dataset string   `json:"dataset"`
	From    uint64   `json:"from"`
	To      uint64   `json:"to"`     // exclusive
	SHA256  []string `json:"sha256"` // of each batch, in sequence
}

// Lineage says what a version was made of.
type Lineage struct {
	Pipeline string       `json:"pipeline"`
	Run      string       `json:"run"`
	Stage    string       `json:"stage"`
	Code     string       `json:"code"` // VCS revision or module version of the binary
	Parent   string       `json:"parent,omitempty"`
	Cause    string       `json:"cause,omitempty"` // event that led to it
	Seed     uint64       `json:"seed"`
	Datasets []DatasetUse `json:"datasets"`
}

// Version is one immutable model. ID is the lower-case hex SHA-256 of the
// artifact: the same bytes are the same version.
type Version struct {
	Model    string             `json:"model"`
	ID       string             `json:"id"`
	Format   string             `json:"format"` // "safetensors", "onnx", "opaque"
	Kind     string             `json:"kind"`   // which predictor can serve it, e.g. "logistic/v1"
	Bytes    int64              `json:"bytes"`
	Metrics  map[string]float64 `json:"metrics,omitempty"`
	Lineage  Lineage            `json:"lineage"`
	Created  time.Time          `json:"created"`
	Status   Status             `json:"status"`
	Reason   string             `json:"reason,omitempty"` // of the status, for a person
	Metadata map[string]string  `json:"metadata,omitempty"`
	// Labels are the join of those of all that the version is made of and of what was
	// declared, in a draft's Labels or in its metadata "labels", joined by commas.
	Labels label.Set `json:"labels,omitempty"`
	// MadeOf is what the version was made of: what its lineage names, and what its maker was
	// wired to and has read. Labels that those get later bind the version too, less what was
	// taken off in the making (Registry.EffectiveLabels).
	MadeOf []label.Source `json:"made_of,omitempty"`
}

// Short is the first 12 hex digits of the id, for people.
func (v Version) Short() string {
	if len(v.ID) < 12 {
		return v.ID
	}
	return v.ID[:12]
}

// Metric returns a metric; the error wraps ErrMetrics if there is none of that
// name.
func (v Version) Metric(name string) (float64, error) {
	m, ok := v.Metrics[name]
	if !ok {
		return 0, &Error{Op: "metric", Model: v.Model, What: v.Short(), Err: fmt.Errorf("%w: no %q", ErrMetrics, name)}
	}
	return m, nil
}

// checkMetrics refuses what would make every comparison false or true.
func checkMetrics(metrics map[string]float64) error {
	if len(metrics) > maxMetrics {
		return fmt.Errorf("%w: %d of them, at most %d", ErrMetrics, len(metrics), maxMetrics)
	}
	for name, m := range metrics {
		if name == "" || len(name) > maxNameBytes {
			return fmt.Errorf("%w: name %.40q", ErrMetrics, name)
		}
		if math.IsNaN(m) || math.IsInf(m, 0) {
			return fmt.Errorf("%w: %s is %v", ErrMetrics, name, m)
		}
	}
	return nil
}

const (
	maxMetrics   = 256
	maxNameBytes = 128
)
