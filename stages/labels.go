package stages

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/tiers"
)

// lineage is what one attempt's output is made of, as labels. It holds those of all
// that is wired to the stage from its start, whether the stage reads it or not: what an
// earlier attempt read, and a checkpoint carried over, is among it. Batches and models
// that have more, since they came while the attempt ran, add theirs as they are read.
type lineage struct {
	store    *tiers.Store
	registry *models.Registry
	d        *runDriver

	mu    sync.Mutex
	read  label.Set
	from  []label.Source       // what all that is
	stops map[string][]string  // labels that governance let the pipeline take off, by what from
	weak  map[string]weakened  // datasets that were found to have lost labels
	taken map[string]label.Set // declassified, by what from: allowed already
}

func newLineage(d *runDriver) *lineage {
	return &lineage{store: d.rt.Store, registry: d.rt.Registry, d: d, weak: map[string]weakened{}, taken: map[string]label.Set{}, stops: map[string][]string{}}
}

// weakened says that batches before next, where they were committed with labels, are of
// a dataset that has fewer now.
type weakened struct {
	labels label.Set
	next   uint64
}

// wired takes in the labels of all inputs as they are now.
func (l *lineage) wired(ctx context.Context) error {
	for _, b := range l.d.a.Inputs {
		var set label.Set
		switch {
		case b.Dataset != "":
			var err error
			set, err = l.store.EffectiveLabels(ctx, b.Dataset)
			if err != nil && !errors.Is(err, tiers.ErrNotFound) { // not there yet: its batches bring their labels
				return fmt.Errorf("labels of input %s: %w", b.Name, err)
			}
			if err == nil {
				l.madeOf(label.Source{Dataset: b.Dataset})
			}
		case b.Model != "" && b.Version != "" && l.registry != nil:
			v, err := l.registry.Get(ctx, b.Model, b.Version)
			if err == nil {
				set, err = l.registry.EffectiveLabels(ctx, v)
			}
			if err != nil {
				return fmt.Errorf("labels of input %s: %w", b.Name, err)
			}
			l.madeOf(label.Source{Model: v.Model, Version: v.ID})
		}
		if err := l.add(set); err != nil {
			return fmt.Errorf("labels of input %s: %w", b.Name, err)
		}
	}
	return nil
}

// madeOf notes what the output is made of.
func (l *lineage) madeOf(src label.Source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from, _ = label.AddSources(l.from, src)
}

// sources are what an output is made of, and what was taken off on the way to it.
func (l *lineage) sources(subject string) []label.Source {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.from)
	for i := range out {
		out[i].Stops = l.stops[subject]
	}
	return out
}

func (l *lineage) add(set label.Set) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.read.Covers(set) {
		return nil
	}
	joined, err := label.Join(l.read, set)
	if err != nil {
		return Permanent(err)
	}
	l.read = joined
	return nil
}

// batch takes in the labels of a batch that the stage is about to get.
func (l *lineage) batch(ctx context.Context, b *tiers.Batch) error {
	l.mu.Lock()
	if !slices.ContainsFunc(l.from, func(s label.Source) bool { return s.Dataset == b.Ref.Dataset }) {
		l.from = append(l.from, label.Source{Dataset: b.Ref.Dataset})
	}
	known := l.read.Covers(b.Labels)
	if w, ok := l.weak[b.Ref.Dataset]; ok && !known {
		known = b.Ref.Sequence < w.next && slices.Equal(w.labels, b.Labels)
	}
	l.mu.Unlock()
	if known {
		return nil
	}
	// Either the dataset's labels have grown since the stage began, or they were taken
	// off after this batch was committed.
	head, err := l.store.LabelsAt(ctx, b.Ref.Dataset, b.Ref.Sequence)
	if err == nil {
		err = l.add(head.Labels)
	}
	if err != nil {
		return fmt.Errorf("labels of %s: %w", b.Ref.ID(), err)
	}
	l.mu.Lock()
	l.weak[b.Ref.Dataset] = weakened{b.Labels, head.Next}
	l.mu.Unlock()
	return nil
}

// Used implements models.Observer.
func (l *lineage) Used(v models.Version) error {
	if err := l.add(v.Labels); err != nil {
		return fmt.Errorf("labels of model %s version %s: %w", v.Model, v.Short(), err)
	}
	l.madeOf(label.Source{Model: v.Model, Version: v.ID})
	return nil
}

// MadeOf implements models.Observer.
func (l *lineage) MadeOf(ctx context.Context, model string, more label.Set) (made label.Set, from []label.Source, stops []string, err error) {
	if err := l.add(more); err != nil {
		return nil, nil, nil, err
	}
	if made, err = l.output(ctx, events.LabelDeclassified{Model: model}); err != nil {
		return nil, nil, nil, err
	}
	from = l.sources(model)
	l.mu.Lock()
	defer l.mu.Unlock()
	return made, from, l.stops[model], nil
}

// output is what the stage's output is to be labelled with: what was read, less what the
// pipeline takes off and governance allows it to, and what the pipeline declares.
func (l *lineage) output(ctx context.Context, of events.LabelDeclassified) (label.Set, error) {
	l.mu.Lock()
	read := l.read
	l.mu.Unlock()
	left := read
	if d := l.d.a.Declassify; d != nil {
		var removed label.Set
		if left, removed = d.Of(read); len(removed) > 0 {
			of.Removed, of.Labels, of.Reason = removed, left, d.Reason
			if err := l.declassify(ctx, read, of); err != nil {
				return nil, err
			}
			l.mu.Lock()
			l.stops[of.Dataset+of.Model] = d.Labels
			l.mu.Unlock()
		}
	}
	declared, err := label.Parse(l.d.a.Labels)
	if err == nil {
		left, err = label.Join(left, declared)
	}
	if err != nil {
		return nil, Permanent(err)
	}
	return left, nil
}

// declassify has governance judge that labels are taken off, before anything is written
// without them. The event's id names what is taken off what: an attempt that repeats it
// publishes nothing twice, and one with more to take off asks again.
func (l *lineage) declassify(ctx context.Context, from label.Set, of events.LabelDeclassified) error {
	subject := of.Dataset + of.Model
	key := subject + " " + from.String()
	l.mu.Lock()
	done, asked := l.taken[key]
	l.mu.Unlock()
	if asked && slices.Equal(done, of.Removed) {
		return nil
	}
	a := &l.d.a
	sum := sha256.Sum256([]byte(key + " " + label.Set(of.Removed).String()))
	id := a.Run + "/" + a.Stage + "/declassified-" + hex.EncodeToString(sum[:8])
	ev, err := events.New(events.TypeLabelDeclassified, "/stokehold/"+a.Pipeline+"/"+a.Stage, subject, id, time.Now(), of)
	if err != nil {
		return err
	}
	a.extend(&ev)
	ev.SetExtension(events.ExtLabels, from.String())
	if err := l.d.rt.Bus.Publish(ctx, ev); err != nil {
		return fmt.Errorf("declassify %s of %s: %w", strings.Join(of.Removed, ", "), subject, err)
	}
	l.mu.Lock()
	l.taken[key] = of.Removed
	l.mu.Unlock()
	return nil
}

// label gives an event of the stage the labels of what it may tell of. A request for
// promotion is about a version and has that version's.
func (l *lineage) label(ctx context.Context, ev *events.Event) error {
	given, err := events.LabelsOf(ev)
	if err != nil {
		return err
	}
	set, err := label.Parse(given)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", events.ErrInvalid, events.ExtLabels, err)
	}
	if ev.Type() == events.TypePromotionRequested {
		return l.request(ctx, ev, set)
	}
	l.mu.Lock()
	read := l.read
	l.mu.Unlock()
	return setLabels(ev, set, read)
}

// request completes a request for promotion by what the registry has: the stage's code
// says neither what the version is made of nor where it is to serve.
func (l *lineage) request(ctx context.Context, ev *events.Event, given label.Set) error {
	var r events.PromotionRequested
	if err := ev.DataAs(&r); err != nil {
		return fmt.Errorf("%w: data of %s: %w", events.ErrInvalid, ev.Type(), err)
	}
	if l.registry == nil {
		return nil
	}
	v, err := l.registry.Get(ctx, r.Model, r.Challenger)
	if errors.Is(err, models.ErrNotFound) {
		return Permanent(err)
	}
	if err != nil {
		return err
	}
	r.Place = l.registry.ServingPlace()
	if err := ev.SetData(ev.DataContentType(), r); err != nil {
		return fmt.Errorf("%w: data of %s: %w", events.ErrInvalid, ev.Type(), err)
	}
	bound, err := l.registry.EffectiveLabels(ctx, v)
	if err != nil {
		return err
	}
	return setLabels(ev, given, bound)
}

func setLabels(ev *events.Event, sets ...label.Set) error {
	joined, err := label.Join(sets...)
	if err != nil {
		return Permanent(err)
	}
	if len(joined) > 0 {
		ev.SetExtension(events.ExtLabels, joined.String())
	}
	return nil
}

// extend says in an event where it comes from.
func (a *Assignment) extend(ev *events.Event) {
	for k, v := range map[string]string{
		events.ExtRun: a.Run, events.ExtPipeline: a.Pipeline, events.ExtStage: a.Stage, events.ExtCause: a.Cause, events.ExtActor: a.Actor,
	} {
		if v != "" {
			ev.SetExtension(k, v)
		}
	}
}
