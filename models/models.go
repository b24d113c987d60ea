// Package models is the registry: content-addressed model versions with metrics
// and lineage, and the aliases (champion, challenger) that point to them.
package models

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
)

// Aliases that Stokehold itself sets.
const (
	Champion   = "champion"
	Challenger = "challenger"
)

var (
	ErrNotFound = errors.New("no such model version or alias")
	// ErrConflict: the alias moved since it was read.
	ErrConflict = errors.New("alias was moved by another")
	// ErrMetrics: a metric is NaN or infinite, or there is none where one is needed.
	ErrMetrics = errors.New("unusable metrics")
	// ErrArtifact: the bytes are not what their manifest says.
	ErrArtifact = errors.New("artifact does not match its version")
)

// Status of a version.
type Status string

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
}

// Short is the first 12 hex digits of the id, for people.
func (v Version) Short() string {
	if len(v.ID) < 12 {
		return v.ID
	}
	return v.ID[:12]
}

// Config configures a Registry.
type Config struct {
	Conn   *nats.Conn
	Bus    *events.Bus       // model.registered, model.promoted, model.refused
	Cold   tiers.ObjectStore // artifacts; nil: Dir alone
	Dir    string            // local copy of artifacts, fsynced: a store that does not sync is never the sole copy
	Prefix string            // KV bucket prefix; default "stokehold"
}

// Registry is safe for concurrent use.
type Registry struct{}

// Open creates the buckets and the directory.
func Open(ctx context.Context, cfg Config) (*Registry, error) { panic("contract") }

// Register stores artifact and its description. ID, Bytes, Created and Status
// are set here. Registering the same bytes again returns the stored version with
// metrics merged in; lineage stays the first one's.
func (r *Registry) Register(ctx context.Context, draft Version, artifact []byte) (Version, error) {
	panic("contract")
}

// AddMetrics merges metrics (all finite) into a version.
func (r *Registry) AddMetrics(ctx context.Context, model, id string, metrics map[string]float64) error {
	panic("contract")
}

// Get returns a version by full id or unique prefix of at least 6 digits.
func (r *Registry) Get(ctx context.Context, model, id string) (Version, error) { panic("contract") }

// Artifact returns the verified bytes.
func (r *Registry) Artifact(ctx context.Context, v Version) ([]byte, error) { panic("contract") }

// Alias resolves an alias.
func (r *Registry) Alias(ctx context.Context, model, alias string) (Version, error) {
	panic("contract")
}

// Promote points alias at version id if it still points at previous ("" when
// unset), marks the version promoted, and publishes model.promoted. Repeating a
// promotion that already holds is a success.
func (r *Registry) Promote(ctx context.Context, p Promotion) error { panic("contract") }

// Promotion is a request to move an alias.
type Promotion struct {
	Model, Alias, ID, Previous string
	Run, Cause, Reason         string
}

// Refuse marks a version as refused with its reason and publishes model.refused.
func (r *Registry) Refuse(ctx context.Context, p Promotion, policy string) error { panic("contract") }

// Versions lists a model's versions by creation time; Models lists model names.
func (r *Registry) Versions(ctx context.Context, model string) iter.Seq2[Version, error] {
	panic("contract")
}

// Models lists the models by name.
func (r *Registry) Models(ctx context.Context) iter.Seq2[string, error] { panic("contract") }

// WatchAlias calls fn with the version the alias points at, now and on every
// change, until ctx ends.
func (r *Registry) WatchAlias(ctx context.Context, model, alias string, fn func(Version)) error {
	panic("contract")
}
