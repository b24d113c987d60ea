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
	// read and of what its lineage names, less what it may take off; what that is, and the
	// labels that it takes off, as a Declassification names them.
	MadeOf(ctx context.Context, model string, lineage label.Set) (labels label.Set, from []label.Source, stops []string, err error)
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
	made, from, err := r.ancestors(ctx, draft)
	var stops []string
	if err == nil && r.observer != nil {
		var read []label.Source
		made, read, stops, err = r.observer.MadeOf(ctx, draft.Model, made)
		from = append(from, read...)
	}
	if err != nil {
		return err
	}
	for i := range from {
		from[i].Stops = label.EitherStops(from[i].Stops, stops)
	}
	if draft.MadeOf, _ = label.AddSources(draft.MadeOf, from...); len(draft.MadeOf) > label.MaxSources {
		// A maker that looks through all versions there are is made of what these are.
		half := len(draft.MadeOf) / 2
		own, before, err := r.graph().Fold(ctx, label.Source{Model: draft.Model, Version: draft.ID}, draft.MadeOf[:half])
		if err == nil {
			made, err = label.Join(made, own)
		}
		if err != nil {
			return err
		}
		draft.MadeOf, _ = label.AddSources(before, draft.MadeOf[half:]...)
	}
	if len(draft.MadeOf) > label.MaxSources {
		return tooManySources(len(draft.MadeOf))
	}
	if draft.Labels, err = label.Join(made, declared, given); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

func tooManySources(n int) error {
	return fmt.Errorf("%w: it is made of %d things, at most %d", ErrInvalid, n, label.MaxSources)
}

// ancestors are the labels of what a version's lineage names, and what that is.
func (r *Registry) ancestors(ctx context.Context, draft *Version) (label.Set, []label.Source, error) {
	var sets []label.Set
	var from []label.Source
	if parent := draft.Lineage.Parent; parent != "" {
		found, err := r.parents(ctx, parent)
		if err != nil {
			return nil, nil, fmt.Errorf("labels of the parent %.12s: %w", parent, err)
		}
		for _, v := range found {
			set, err := r.EffectiveLabels(ctx, v)
			if err != nil {
				return nil, nil, err
			}
			sets, from = append(sets, set), append(from, label.Source{Model: v.Model, Version: v.ID})
		}
	}
	for _, use := range draft.Lineage.Datasets {
		from = append(from, label.Source{Dataset: use.Dataset})
		if r.labels == nil {
			continue
		}
		set, err := r.labels.DatasetLabels(ctx, use.Dataset)
		if err != nil {
			return nil, nil, fmt.Errorf("labels of dataset %s: %w", use.Dataset, err)
		}
		sets = append(sets, set)
	}
	joined, err := label.Join(sets...)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return joined, from, nil
}

// madeOf are a version's sources. Of one that was stored before they were recorded they
// are those of its lineage.
func (r *Registry) madeOf(v *Version) []label.Source {
	if len(v.MadeOf) > 0 {
		return v.MadeOf
	}
	var from []label.Source
	for _, use := range v.Lineage.Datasets {
		from, _ = label.AddSources(from, label.Source{Dataset: use.Dataset})
	}
	return from
}

// LabelNode implements label.Nodes for the versions of the registry.
func (r *Registry) LabelNode(ctx context.Context, of label.Source) (label.Node, error) {
	v, err := r.find(ctx, of.Model, of.Version)
	if err != nil {
		return label.Node{}, &Error{Op: "labels", Model: of.Model, What: of.Version, Err: err}
	}
	return r.node(ctx, &v)
}

func (r *Registry) node(ctx context.Context, v *Version) (label.Node, error) {
	n := label.Node{Labels: v.Labels, From: r.madeOf(v)}
	if parent := v.Lineage.Parent; parent != "" && len(v.MadeOf) == 0 {
		found, err := r.parents(ctx, parent)
		if err != nil {
			return n, fmt.Errorf("the parent %.12s: %w", parent, err)
		}
		for _, p := range found {
			n.From, _ = label.AddSources(n.From, label.Source{Model: p.Model, Version: p.ID})
		}
	}
	return n, nil
}

// EffectiveLabels are the labels that bind a version: its own, and those that what it was
// made of has now, less what was taken off in the making. v is asked for by its model and
// id. What cannot be told of an ancestor is an error: what is not known to be free is not
// put into service.
func (r *Registry) EffectiveLabels(ctx context.Context, v Version) (label.Set, error) {
	set, err := r.graph().Effective(ctx, label.Source{Model: v.Model, Version: v.ID})
	if err != nil {
		return nil, &Error{Op: "labels", Model: v.Model, What: v.Short(), Err: err}
	}
	return set, nil
}

func (r *Registry) graph() label.Graph { return label.Graph{Datasets: r.datasets, Versions: r} }

// parents are the versions that have the id, which may be of several models: one that is
// fine-tuned has another name than what it is made of.
func (r *Registry) parents(ctx context.Context, id string) ([]Version, error) {
	if len(id) != idDigits || strings.Trim(id, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%w: %.80q is not a version's id", ErrInvalid, id)
	}
	var found []Version
	err := r.list(ctx, "version.*."+id, func(e jetstream.KeyValueEntry) error {
		var rec versionRecord
		if err := json.Unmarshal(e.Value(), &rec); err != nil {
			return fmt.Errorf("decode %s: %w", e.Key(), err)
		}
		found = append(found, rec.Version)
		return nil
	})
	if err == nil && len(found) == 0 {
		err = ErrNotFound
	}
	return found, err
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
