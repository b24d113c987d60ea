package tiers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/stokehold/stokehold/governance/label"
)

// labelsFor is how long a process goes by labels that it has looked up along lineage.
// AddLabels waits as long, so that every process goes by what it has added once it
// returns.
const labelsFor = 500 * time.Millisecond

// maxKnownLabels bounds the datasets whose labels are remembered that long.
const maxKnownLabels = 1024

// madeRecord is what a dataset was made of, the oldest first.
type madeRecord struct {
	Sources []madeSource `json:"sources"`
}

// madeSource is one of them. Stops are what its newest writer takes off, and Others what
// all before it did; what was made with a label stays so, whatever a later run takes off.
type madeSource struct {
	label.Source
	By     string    `json:"by"`               // RUN/STAGE of the newest writer
	Others *[]string `json:"others,omitempty"` // nil: there were none
}

// stops are the labels that all of it was made without.
func (m madeSource) stops() []string {
	if m.Others == nil {
		return m.Stops
	}
	return label.BothStop(m.Stops, *m.Others)
}

func (m madeSource) source() label.Source {
	s := m.Source
	s.Stops = m.stops()
	return s
}

func sameSource(a, b label.Source) bool {
	return a.Dataset == b.Dataset && a.Model == b.Model && a.Version == b.Version
}

// add notes that by makes some of the dataset of src, and reports whether that is news.
func (r *madeRecord) add(by string, src label.Source) bool {
	i := slices.IndexFunc(r.Sources, func(m madeSource) bool { return sameSource(m.Source, src) })
	if i < 0 {
		r.Sources = append(r.Sources, madeSource{Source: src, By: by})
		return true
	}
	m := r.Sources[i]
	if m.By != by {
		m.Others, m.By = new(m.stops()), by
	}
	m.Stops = src.Stops
	if slices.Equal(m.stops(), r.Sources[i].stops()) {
		return false
	}
	r.Sources[i] = m
	return true
}

// stop takes labels off all that there is.
func (r *madeRecord) stop(names []string) {
	for i := range r.Sources {
		m := &r.Sources[i]
		m.Stops = label.EitherStops(m.Stops, names)
		if m.Others != nil {
			m.Others = new(label.EitherStops(*m.Others, names))
		}
	}
}

// MadeOf says what the writer's batches are made of, and what was taken off of it on the
// way. It is recorded before the next commit: labels that a source gets later bind the
// dataset too. Of a source that is named again the newest Stops count.
func (w *Writer) MadeOf(sources ...label.Source) {
	for _, src := range sources {
		if src.Dataset == w.dataset && src.Model == "" {
			continue
		}
		i := slices.IndexFunc(w.from, func(have label.Source) bool { return sameSource(have, src) })
		switch {
		case i < 0:
			w.from = append(w.from, src)
		case slices.Equal(w.from[i].Stops, src.Stops):
			continue
		default:
			w.from[i] = src
		}
		w.unrecorded = true
	}
}

// recordSources stores what MadeOf was told.
func (w *Writer) recordSources(ctx context.Context) error {
	if !w.unrecorded {
		return nil
	}
	if err := w.store.recordSources(ctx, w.dataset, w.fence.Run+"/"+w.fence.Stage, w.from); err != nil {
		return fmt.Errorf("record what it is made of: %w", err)
	}
	w.unrecorded = false
	return nil
}

func (s *Store) recordSources(ctx context.Context, dataset, by string, from []label.Source) error {
	name, err := token("dataset", dataset)
	if err != nil {
		return err
	}
	_, err = update(ctx, s.catalog, madeKey(name), func(r *madeRecord, _ bool) (bool, error) {
		changed := false
		for _, src := range from {
			changed = r.add(by, src) || changed
		}
		if len(r.Sources) > label.MaxSources {
			if err := s.fold(ctx, dataset, r); err != nil {
				return false, err
			}
		}
		return changed, nil
	})
	return err
}

// fold puts in place of the older half of what a dataset was made of what these were made
// of themselves, mostly the same few: a dataset that each run appends to from a dataset of
// its own would otherwise be made of ever more. Their own labels become the dataset's. A
// label that is put on one of those afterwards no longer reaches it.
func (s *Store) fold(ctx context.Context, dataset string, r *madeRecord) error {
	older, keep := r.Sources[:len(r.Sources)/2], r.Sources[len(r.Sources)/2:]
	some := make([]label.Source, len(older))
	for i, m := range older {
		some[i] = m.source()
	}
	labels, before, err := s.graph().Fold(ctx, label.Source{Dataset: dataset}, some)
	if err == nil && len(labels) > 0 {
		err = s.addLabels(ctx, dataset, labels)
	}
	if err != nil {
		return err
	}
	next := madeRecord{}
	for _, src := range before {
		next.add("", src)
	}
	for _, m := range keep {
		if i := slices.IndexFunc(next.Sources, func(have madeSource) bool { return sameSource(have.Source, m.Source) }); i >= 0 {
			others := label.BothStop(next.Sources[i].stops(), m.stops())
			m.Others = &others
			next.Sources[i] = m
			continue
		}
		next.Sources = append(next.Sources, m)
	}
	if len(next.Sources) > label.MaxSources {
		return fmt.Errorf("%w: %s would be made of %d things, at most %d", ErrTooLarge, dataset, len(next.Sources), label.MaxSources)
	}
	*r = next
	return nil
}

// LabelNode implements label.Nodes for the datasets of the catalog.
func (s *Store) LabelNode(ctx context.Context, of label.Source) (label.Node, error) {
	rec, _, err := s.head(ctx, of.Dataset)
	if err != nil {
		return label.Node{}, &Error{Op: "labels", Dataset: of.Dataset, Err: err}
	}
	made, _, err := s.made(ctx, of.Dataset)
	if err != nil {
		return label.Node{}, &Error{Op: "labels", Dataset: of.Dataset, Err: err}
	}
	n := label.Node{Labels: rec.Labels}
	for _, m := range made.Sources {
		n.From = append(n.From, m.source())
	}
	return n, nil
}

func (s *Store) made(ctx context.Context, dataset string) (r madeRecord, rev uint64, err error) {
	name, err := token("dataset", dataset)
	if err == nil {
		rev, err = s.catalog.get(ctx, madeKey(name), &r)
	}
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return r, rev, err
}

func (s *Store) graph() label.Graph { return label.Graph{Datasets: s, Versions: s.versions} }

// EffectiveLabels are the labels that bind a dataset: its own, and those that what it was
// made of has now, less what was taken off on the way. Its own are as they are stored, the
// others at most half a second old. ErrNotFound if there is no such dataset. What cannot be
// told of an ancestor is an error: what is not known to be free does not move.
func (s *Store) EffectiveLabels(ctx context.Context, dataset string) (label.Set, error) {
	h, err := s.LabelledHead(ctx, dataset)
	return h.Labels, err
}

// LabelledHead is Head with EffectiveLabels for the labels.
func (s *Store) LabelledHead(ctx context.Context, dataset string) (Head, error) {
	begun := time.Now()
	rec, _, err := s.head(ctx, dataset)
	if err != nil {
		return Head{}, &Error{Op: "labels", Dataset: dataset, Err: err}
	}
	if rec.Labels, err = s.binding(ctx, rec.Head, begun); err != nil {
		return Head{}, err
	}
	return rec.Head, nil
}

// binding are the labels that bind a dataset of which the head was read after begun.
// Labels that are remembered count while the dataset's own are those that they were looked
// up with: a commit that brings others, the first one above all, does not wait as AddLabels does.
func (s *Store) binding(ctx context.Context, h Head, begun time.Time) (label.Set, error) {
	if have, ok := s.known.get(h.Dataset); ok && slices.Equal(have.own, h.Labels) {
		return have.labels, nil
	}
	labels, err := s.effective(ctx, h.Dataset)
	if err != nil {
		return nil, err
	}
	s.known.put(h.Dataset, knownLabel{own: h.Labels, labels: labels, begun: begun})
	return labels, nil
}

func (s *Store) effective(ctx context.Context, dataset string) (label.Set, error) {
	labels, err := s.graph().Effective(ctx, label.Source{Dataset: dataset})
	if err != nil {
		return nil, err
	}
	return labels, nil
}

// knownLabels are labels that were looked up along lineage a moment ago.
type knownLabels struct {
	mu sync.Mutex
	of map[string]knownLabel
}

type knownLabel struct {
	own    label.Set // the dataset's
	labels label.Set
	begun  time.Time // before the first of them was read
}

// get returns what is young enough to go by.
func (k *knownLabels) get(dataset string) (knownLabel, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	have, ok := k.of[dataset]
	return have, ok && time.Since(have.begun) < labelsFor
}

func (k *knownLabels) put(dataset string, l knownLabel) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.of) >= maxKnownLabels || k.of == nil {
		k.of = map[string]knownLabel{}
	}
	k.of[dataset] = l
}

func (k *knownLabels) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.of = nil
}

// untilKnown returns when no process goes by labels from before any more.
func (k *knownLabels) untilKnown(ctx context.Context) error {
	k.forget()
	t := time.NewTimer(labelsFor)
	defer t.Stop()
	select {
	case <-t.C:
		k.forget()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the labels are stored, and other processes may go by those from before for up to %v: %w", labelsFor, ctx.Err())
	}
}
