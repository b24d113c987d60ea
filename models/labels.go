package models

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
)

// metadataLabels is the key of Version.Metadata under which a stage, or a worker of
// another program, declares labels: joined by commas.
const metadataLabels = "labels"

// LabelSource says what data are. The error fails what is made of them: a version
// whose labels are not known is not stored.
type LabelSource interface {
	// DatasetLabels are a dataset's labels as they are now.
	DatasetLabels(ctx context.Context, dataset string) (label.Set, error)
}

// Observer is told what a holder of a Registry reads, and says what the holder's models
// are made of.
type Observer interface {
	// Used is called for each version that is read, before it is handed out.
	Used(v Version) error
	// MadeOf are the labels of a version of model that the holder makes of what it has
	// read and of what its lineage names, less what it may take off.
	MadeOf(ctx context.Context, model string, lineage label.Set) (label.Set, error)
}

// Observed is the registry for one holder: what is read through it o is told, and what
// is registered through it has o's labels.
func (r *Registry) Observed(o Observer) *Registry {
	view := *r
	view.observer = o
	return &view
}

// used tells the observer.
func (r *Registry) used(v Version, err error) (Version, error) {
	if err != nil || r.observer == nil {
		return v, err
	}
	if err := r.observer.Used(v); err != nil {
		return Version{}, err
	}
	return v, nil
}

// inherit is what the version's labels are: its parent's, its datasets', those of what
// its maker has read, less what the maker may take off, and those declared.
func (r *Registry) inherit(ctx context.Context, draft *Version) error {
	declared, err := label.ParseText(draft.Metadata[metadataLabels])
	if err != nil {
		return fmt.Errorf("%w: metadata %q: %w", ErrInvalid, metadataLabels, err)
	}
	given, err := label.Parse(draft.Labels)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	made, err := r.ancestors(ctx, draft)
	if err == nil && r.observer != nil {
		made, err = r.observer.MadeOf(ctx, draft.Model, made)
	}
	if err != nil {
		return err
	}
	if draft.Labels, err = label.Join(made, declared, given); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// ancestors are the labels of what a version's lineage names.
func (r *Registry) ancestors(ctx context.Context, draft *Version) (label.Set, error) {
	var sets []label.Set
	if parent := draft.Lineage.Parent; parent != "" {
		found, err := r.parents(ctx, parent)
		if err != nil {
			return nil, fmt.Errorf("labels of the parent %.12s: %w", parent, err)
		}
		sets = append(sets, found...)
	}
	for _, use := range draft.Lineage.Datasets {
		if r.labels == nil {
			break
		}
		set, err := r.labels.DatasetLabels(ctx, use.Dataset)
		if err != nil {
			return nil, fmt.Errorf("labels of dataset %s: %w", use.Dataset, err)
		}
		sets = append(sets, set)
	}
	joined, err := label.Join(sets...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return joined, nil
}

// parents are the labels of the versions that have the id, which may be of several models:
// one that is fine-tuned has another name than what it is made of.
func (r *Registry) parents(ctx context.Context, id string) ([]label.Set, error) {
	if len(id) != idDigits || strings.Trim(id, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%w: %.80q is not a version's id", ErrInvalid, id)
	}
	var sets []label.Set
	err := r.list(ctx, "version.*."+id, func(e jetstream.KeyValueEntry) error {
		var rec versionRecord
		if err := json.Unmarshal(e.Value(), &rec); err != nil {
			return fmt.Errorf("decode %s: %w", e.Key(), err)
		}
		sets = append(sets, rec.Labels)
		return nil
	})
	if err == nil && len(sets) == 0 {
		err = ErrNotFound
	}
	return sets, err
}

// setLabels says in an event what the model that it is about is made of.
func setLabels(ev *events.Event, labels label.Set) {
	if len(labels) > 0 {
		ev.SetExtension(events.ExtLabels, labels.String())
	}
}

// cold is where copies of artifacts go; nil: nowhere.
func (r *Registry) cold() *events.Place {
	if r.artifacts.cold == nil {
		return nil
	}
	return &r.coldPlace
}

// place is where champions serve; nil: not known.
func (r *Registry) place(alias string) *events.Place {
	if alias != Champion {
		return nil
	}
	return r.ServingPlace()
}

// ServingPlace is where champions serve, as governance is told; nil: not known.
func (r *Registry) ServingPlace() *events.Place {
	if r.serving.IsZero() {
		return nil
	}
	p := r.serving
	return &p
}
