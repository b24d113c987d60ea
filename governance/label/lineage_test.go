package label_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/governance/label"
)

var errGone = errors.New("no such thing")

// things are nodes by name.
type things map[string]label.Node

func (t things) LabelNode(_ context.Context, of label.Source) (label.Node, error) {
	n, ok := t[of.Dataset+of.Model]
	if !ok {
		return n, errGone
	}
	return n, nil
}

func (t things) effective(name string) (label.Set, error) {
	return label.Graph{Datasets: t, Versions: t}.Effective(context.Background(), label.Source{Dataset: name})
}

func from(names ...string) (out []label.Source) {
	for _, n := range names {
		out = append(out, label.Source{Dataset: n})
	}
	return out
}

func TestEffectiveLabels(t *testing.T) {
	all := things{
		"raw":    {Labels: label.Set{"pii:health", "residency:eu", "residency:us"}},
		"other":  {Labels: label.Set{"residency:us"}},
		"clean":  {From: []label.Source{{Dataset: "raw", Stops: []string{"pii"}}}},
		"model":  {Labels: label.Set{"own"}, From: from("clean", "other")},
		"scores": {From: []label.Source{{Model: "model", Version: "1"}}},
		"loop":   {From: from("back", "clean")},
		"back":   {Labels: label.Set{"embargo"}, From: from("loop")},
		"orphan": {From: from("clean", "gone")},
		"free":   {},
	}
	for name, want := range map[string]label.Set{
		"raw": {"pii:health", "residency:eu", "residency:us"}, "clean": {"residency:eu", "residency:us"}, "model": {"own", "residency:us"},
		"scores": {"own", "residency:us"}, "loop": {"embargo", "residency:eu", "residency:us"}, "back": {"embargo", "residency:eu", "residency:us"}, "free": nil,
	} {
		if got, err := all.effective(name); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, want)
		}
	}
	if _, err := all.effective("gone"); !errors.Is(err, errGone) {
		t.Errorf("of what is not there: %v", err)
	}
	// A missing ancestor is not the same as nothing there: it would look free.
	if _, err := all.effective("orphan"); !errors.Is(err, label.ErrUnknown) || errors.Is(err, errGone) {
		t.Errorf("of what was made of something that is not there: %v", err)
	}
	if got, err := (label.Graph{Datasets: all}).Effective(context.Background(), label.Source{Dataset: "scores"}); err != nil || got != nil {
		t.Errorf("without anybody to ask about models: %v, %v", got, err)
	}
}

func TestTooManyAncestorsAndLabels(t *testing.T) {
	long := things{}
	for i := range 5000 {
		long[strconv.Itoa(i)] = label.Node{From: from(strconv.Itoa(i + 1))}
	}
	long["5000"] = label.Node{}
	if _, err := long.effective("0"); !errors.Is(err, label.ErrTooMany) {
		t.Errorf("%v", err)
	}
	if _, err := long.effective("4000"); err != nil {
		t.Errorf("%v", err)
	}
	wide := things{"sum": {From: from("0", "1")}}
	for i := range 2 {
		n := label.Node{}
		for j := range 40 {
			n.Labels = append(n.Labels, fmt.Sprintf("l%d-%02d", i, j))
		}
		wide[strconv.Itoa(i)] = n
	}
	if _, err := wide.effective("sum"); !errors.Is(err, label.ErrTooMany) {
		t.Errorf("%v", err)
	}
}

// Over random graphs, cycles included: nothing is less restricted than any of what it was
// made of, unless something on each way took the label off; and nothing comes from nowhere.
func TestLabelsReachWhatWasMade(t *testing.T) {
	names := []string{"pii:a", "pii:b", "x", "y"}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "n")
		all := things{}
		for i := range n {
			node := label.Node{}
			for _, l := range names {
				if rapid.IntRange(0, 5).Draw(t, "has") == 0 {
					node.Labels = append(node.Labels, l)
				}
			}
			for j := range n {
				if rapid.IntRange(0, 3).Draw(t, "edge") == 0 {
					src := label.Source{Dataset: strconv.Itoa(j)}
					if rapid.Bool().Draw(t, "stops") {
						src.Stops = []string{rapid.SampledFrom([]string{"pii", "pii:a", "x"}).Draw(t, "stop")}
					}
					node.From = append(node.From, src)
				}
			}
			all[strconv.Itoa(i)] = node
		}
		for i := range n {
			got, err := all.effective(strconv.Itoa(i))
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range names {
				if want := all.reaches(l, strconv.Itoa(i), map[string]bool{}); slices.Contains(got, l) != want {
					t.Fatalf("%s of %d: has it %t, want %t: %v", l, i, !want, want, all)
				}
			}
		}
	})
}

// reaches looks for a way on which nothing stops l, by depth first.
func (t things) reaches(l, name string, seen map[string]bool) bool {
	if seen[name] {
		return false
	}
	seen[name] = true
	if slices.Contains(t[name].Labels, l) {
		return true
	}
	for _, src := range t[name].From {
		if _, removed := (label.Declassification{Labels: src.Stops}).Of(label.Set{l}); len(removed) == 0 && t.reaches(l, src.Dataset, seen) {
			return true
		}
	}
	return false
}

func TestSourcesAreJoinedConservatively(t *testing.T) {
	have, _ := label.AddSources(nil, label.Source{Dataset: "a", Stops: []string{"pii"}}, label.Source{Dataset: "b"})
	if _, changed := label.AddSources(have, label.Source{Dataset: "a", Stops: []string{"pii"}}, label.Source{Dataset: "b", Stops: []string{"pii"}}); changed {
		t.Error("what was made with a label is made without it")
	}
	got, changed := label.AddSources(have, label.Source{Dataset: "a", Stops: []string{"pii:a", "x"}})
	if want := []string{"pii:a"}; !changed || !slices.Equal(got[0].Stops, want) || !slices.Equal(have[0].Stops, []string{"pii"}) {
		t.Errorf("stops %v, want %v; before %v", got[0].Stops, want, have[0].Stops)
	}
	if got := label.EitherStops([]string{"x", "pii"}, []string{"pii"}); !slices.Equal(got, []string{"pii", "x"}) {
		t.Errorf("%v", got)
	}
}

// What many were made of stands in for them, less what was taken off on either way.
func TestFold(t *testing.T) {
	all := things{
		"raw": {Labels: label.Set{"pii:a", "x"}}, "r1": {Labels: label.Set{"own"}, From: []label.Source{{Dataset: "raw", Stops: []string{"x"}}}},
		"r2": {From: from("raw", "sum")}, "sum": {},
	}
	own, before, err := label.Graph{Datasets: all}.Fold(t.Context(), label.Source{Dataset: "sum"},
		[]label.Source{{Dataset: "r1", Stops: []string{"pii"}}, {Dataset: "r2", Stops: []string{"pii"}}})
	if err != nil || !slices.Equal(own, label.Set{"own"}) || len(before) != 1 || before[0].Dataset != "raw" || !slices.Equal(before[0].Stops, []string{"pii"}) {
		t.Errorf("%v, %+v, %v", own, before, err)
	}
}
