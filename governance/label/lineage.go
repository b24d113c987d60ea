package label

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Source is what something was made of: a dataset, or a version of a model.
type Source struct {
	Dataset string `json:"dataset,omitempty"`
	Model   string `json:"model,omitempty"`
	Version string `json:"version,omitempty"`
	// Stops are labels that were taken off in the making, as a Declassification names
	// them. None of that name comes from this source, whether it had it then or gets it later.
	Stops []string `json:"stops,omitempty"`
}

func (s Source) same(o Source) bool {
	return s.Dataset == o.Dataset && s.Model == o.Model && s.Version == o.Version
}

// String names the source for people.
func (s Source) String() string {
	if s.Model != "" {
		return fmt.Sprintf("model %s version %.12s", s.Model, s.Version)
	}
	return "dataset " + s.Dataset
}

// Bounds of lineage.
const (
	// MaxSources bounds what one thing is made of.
	MaxSources = 256
	// maxAncestors bounds how many things together one is made of. What has more is not
	// told anything of, and so does not move.
	maxAncestors = 4096
	// walkWidth is how many are asked for at once.
	walkWidth = 8
)

// AddSources joins sources with those that there are. One that is there already stops
// what both of it stop: what was made without a label now may have been made with it
// before. It reports whether anything changed.
func AddSources(have []Source, more ...Source) (out []Source, changed bool) {
	out = slices.Clone(have)
	for _, m := range more {
		i := slices.IndexFunc(out, m.same)
		if i < 0 {
			m.Stops = slices.Clone(m.Stops)
			out, changed = append(out, m), true
			continue
		}
		if both := BothStop(out[i].Stops, m.Stops); !slices.Equal(both, out[i].Stops) {
			out[i].Stops, changed = both, true
		}
	}
	return out, changed
}

// BothStop are the names that stop only what a and b both stop.
func BothStop(a, b []string) []string {
	var out []string
	for _, pair := range [][2][]string{{a, b}, {b, a}} {
		for _, l := range pair[0] {
			if (slices.Contains(pair[1], l) || slices.Contains(pair[1], nameOf(l))) && !slices.Contains(out, l) {
				out = append(out, l)
			}
		}
	}
	slices.Sort(out)
	return out
}

// EitherStops are the names that stop what a or b stops.
func EitherStops(a, b []string) []string {
	out := append(slices.Clone(a), b...)
	slices.Sort(out)
	return slices.Compact(out)
}

// Node is one thing with labels.
type Node struct {
	Labels Set // its own: what it was made with, and what was added to it
	From   []Source
}

// Nodes tells of things of one kind. What cannot be told is an error, whatever the
// reason: nothing moves of which it is not known what it is.
type Nodes interface {
	LabelNode(ctx context.Context, of Source) (Node, error)
}

// Graph is what there is. Sources of a kind without Nodes are not followed: what
// they had when something was made of them is among its own labels.
type Graph struct{ Datasets, Versions Nodes }

func (g Graph) nodes(of Source) Nodes {
	if of.Model != "" {
		return g.Versions
	}
	return g.Datasets
}

// Node is one thing of the graph.
func (g Graph) Node(ctx context.Context, of Source) (Node, error) {
	n := g.nodes(of)
	if n == nil {
		return Node{}, nil
	}
	node, err := n.LabelNode(ctx, of)
	if err != nil {
		return Node{}, fmt.Errorf("labels of %s: %w", of, err)
	}
	return node, nil
}

// Fold returns what some sources of a thing were made of themselves, mostly the same few,
// for use in their place, and their own labels, which the thing needs then. What is put
// on one of them afterwards no longer reaches it.
func (g Graph) Fold(ctx context.Context, of Source, some []Source) (own Set, from []Source, err error) {
	for _, src := range some {
		n, err := g.Node(ctx, src)
		if err != nil {
			return nil, nil, err
		}
		left, _ := Declassification{Labels: src.Stops}.Of(n.Labels)
		if own, err = Join(own, left); err != nil {
			return nil, nil, err
		}
		for _, before := range n.From {
			if !before.same(of) {
				before.Stops = EitherStops(before.Stops, src.Stops)
				from, _ = AddSources(from, before)
			}
		}
	}
	return own, from, nil
}

// Effective are the labels that bind a thing now: its own, and those of all that it
// was made of as they are now, less what was taken off on the way. Cycles are allowed:
// datasets outlive the runs that append to them.
func (g Graph) Effective(ctx context.Context, of Source) (Set, error) {
	of.Stops = nil
	root, err := g.Node(ctx, of)
	if err != nil {
		return nil, err
	}
	all := []walked{{of: of, node: root}}
	index := map[sourceKey]int{of.key(): 0}
	for from := 0; from < len(all); {
		to := len(all)
		if err := g.read(ctx, all[max(from, 1):to]); err != nil {
			// Not wrapped: that an ancestor is not there must not look as if of were not.
			return nil, fmt.Errorf("%w: %s was made of it: %s", ErrUnknown, of, err.Error())
		}
		for _, w := range all[from:to] {
			for _, src := range w.node.From {
				if _, ok := index[src.key()]; ok || g.nodes(src) == nil {
					continue
				}
				if len(all) == maxAncestors {
					return nil, &Error{Why: fmt.Sprintf("%s is made of more than %d things", of, maxAncestors), Hint: "make it anew of fewer", Err: ErrTooMany}
				}
				index[src.key()] = len(all)
				all = append(all, walked{of: src})
			}
		}
		from = to
	}
	for i := range all {
		all[i].labels = all[i].node.Labels
	}
	// Each round brings labels at least one step further along every path, the most
	// distant first. Labels only grow, so it ends.
	for range len(all) + 1 {
		changed := false
		for i := len(all) - 1; i >= 0; i-- {
			w := &all[i]
			labels := w.labels
			for _, src := range w.node.From {
				at, ok := index[src.key()]
				if !ok {
					continue
				}
				left, _ := Declassification{Labels: src.Stops}.Of(all[at].labels)
				if labels, err = Join(labels, left); err != nil {
					return nil, fmt.Errorf("labels of %s: %w", w.of, err)
				}
			}
			changed = changed || !slices.Equal(labels, w.labels)
			w.labels = labels
		}
		if !changed {
			break
		}
	}
	return all[0].labels, nil
}

// ErrUnknown means that what something was made of is not known, and so not what binds it.
var ErrUnknown = errors.New("the labels of an ancestor are not known")

// walked is a thing that was come to.
type walked struct {
	of     Source
	node   Node
	labels Set
}

// sourceKey identifies a source, whatever it stops.
type sourceKey struct{ dataset, model, version string }

func (s Source) key() sourceKey { return sourceKey{s.Dataset, s.Model, s.Version} }

// read asks for some, a few at a time, and returns the first error of them.
func (g Graph) read(ctx context.Context, some []walked) error {
	errs := make([]error, len(some))
	slots := make(chan struct{}, walkWidth)
	var wg sync.WaitGroup
	for i := range some {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			some[i].node, errs[i] = g.Node(ctx, some[i].of)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
