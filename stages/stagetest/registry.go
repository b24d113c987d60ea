package stagetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stokehold/stokehold/models"
)

// Registry is a model registry in memory, for tests of stages and servers: it
// keeps the promises of *models.Registry that they rely on. Safe for concurrent
// use.
type Registry struct {
	mu        sync.Mutex
	versions  []models.Version
	artifacts map[string][]byte // MODEL/ID
	aliases   map[string]string // MODEL/ALIAS -> id
	changed   chan struct{}
	clock     int64
}

// NewRegistry returns an empty registry. Its clock ticks a second with each version.
func NewRegistry() *Registry {
	return &Registry{artifacts: map[string][]byte{}, aliases: map[string]string{}, changed: make(chan struct{})}
}

// Register implements train.Registry.
func (r *Registry) Register(_ context.Context, draft models.Version, artifact []byte) (models.Version, error) {
	sum := sha256.Sum256(artifact)
	r.mu.Lock()
	defer r.mu.Unlock()
	id := hex.EncodeToString(sum[:])
	if i := r.find(draft.Model, id); i >= 0 {
		return r.versions[i], nil
	}
	r.clock++
	draft.ID, draft.Bytes, draft.Status, draft.Created = id, int64(len(artifact)), models.Registered, time.Unix(r.clock, 0).UTC()
	r.versions = append(r.versions, draft)
	r.artifacts[draft.Model+"/"+id] = slices.Clone(artifact)
	return draft, nil
}

// find returns the place of the version with that id or unique prefix, or -1.
func (r *Registry) find(model, id string) int {
	found := -1
	for i, v := range r.versions {
		if v.Model == model && len(id) >= 6 && strings.HasPrefix(v.ID, id) {
			if found >= 0 {
				return -1
			}
			found = i
		}
	}
	return found
}

// AddMetrics implements train.Registry.
func (r *Registry) AddMetrics(_ context.Context, model, id string, metrics map[string]float64) error {
	for name, v := range metrics {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("stagetest: %s is %v: %w", name, v, models.ErrMetrics)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.find(model, id)
	if i < 0 {
		return models.ErrNotFound
	}
	merged := maps.Clone(r.versions[i].Metrics)
	if merged == nil {
		merged = map[string]float64{}
	}
	maps.Copy(merged, metrics)
	r.versions[i].Metrics = merged
	return nil
}

// Get implements train.Registry.
func (r *Registry) Get(_ context.Context, model, id string) (models.Version, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.find(model, id); i >= 0 {
		return r.versions[i], nil
	}
	return models.Version{}, fmt.Errorf("stagetest: %s %s: %w", model, id, models.ErrNotFound)
}

// Artifact implements train.Registry.
func (r *Registry) Artifact(_ context.Context, v models.Version) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.artifacts[v.Model+"/"+v.ID]
	if !ok {
		return nil, models.ErrNotFound
	}
	return slices.Clone(b), nil
}

// Alias implements train.Registry.
func (r *Registry) Alias(_ context.Context, model, alias string) (models.Version, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.find(model, r.aliases[model+"/"+alias]); i >= 0 {
		return r.versions[i], nil
	}
	return models.Version{}, fmt.Errorf("stagetest: %s@%s: %w", model, alias, models.ErrNotFound)
}

// Promote implements train.Registry.
func (r *Registry) Promote(_ context.Context, p models.Promotion) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.find(p.Model, p.ID)
	key := p.Model + "/" + p.Alias
	switch {
	case i < 0:
		return models.ErrNotFound
	case r.aliases[key] == p.ID:
		return nil
	case r.aliases[key] != p.Previous:
		return models.ErrConflict
	}
	r.aliases[key] = p.ID
	if p.Alias == models.Champion {
		r.versions[i].Status, r.versions[i].Reason = models.Promoted, p.Reason
	}
	close(r.changed)
	r.changed = make(chan struct{})
	return nil
}

// Refuse implements train.Registry.
func (r *Registry) Refuse(_ context.Context, p models.Promotion, _ string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.find(p.Model, p.ID)
	if i < 0 {
		return models.ErrNotFound
	}
	r.versions[i].Status, r.versions[i].Reason = models.Refused, p.Reason
	return nil
}

// Versions yields the versions of model in the order they were made.
func (r *Registry) Versions(_ context.Context, model string) iter.Seq2[models.Version, error] {
	r.mu.Lock()
	all := slices.Clone(r.versions)
	r.mu.Unlock()
	return func(yield func(models.Version, error) bool) {
		for _, v := range all {
			if v.Model == model && !yield(v, nil) {
				return
			}
		}
	}
}

// WatchAlias implements deploy.Source.
func (r *Registry) WatchAlias(ctx context.Context, model, alias string, fn func(models.Version)) error {
	last := ""
	for {
		r.mu.Lock()
		id, changed := r.aliases[model+"/"+alias], r.changed
		i := r.find(model, id)
		var v models.Version
		if i >= 0 {
			v = r.versions[i]
		}
		r.mu.Unlock()
		if i >= 0 && id != last {
			last = id
			fn(v)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
