package governance

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cloudevents/sdk-go/v2/event"
	"pgregory.net/rapid"
)

// The index finds the policies that a walk over all finds, in the same order.
func TestIndexFindsWhatAWalkFinds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		patterns := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "a*", "*", "?"}), 0, 3)
		var all []*policy
		for i := range rapid.IntRange(0, 40).Draw(t, "policies") {
			all = append(all, &policy{name: fmt.Sprintf("p%02d", i), publish: true, spec: policySpec{Match: matchSpec{
				Types: patterns.Draw(t, "types"), Subjects: patterns.Draw(t, "subjects"), Pipelines: patterns.Draw(t, "pipelines"), Stages: patterns.Draw(t, "stages"),
			}}})
		}
		word := rapid.SampledFrom([]string{"a", "b", "c", "ab", ""})
		typ, subject := word.Draw(t, "type"), word.Draw(t, "subject")
		ev := &eventVal{ctx: &event.EventContextV1{Subject: &subject}, ext: attributes{pipeline: word.Draw(t, "pipeline"), stage: word.Draw(t, "stage")}}

		var want []*policy
		for _, p := range all {
			if matchAny(p.spec.Match.Types, typ) && p.matches(ev) {
				want = append(want, p)
			}
		}
		x := newTypeIndex(all)
		var ofType, got []*policy
		x.of(all, typ, func(p *policy) { ofType = append(ofType, p) })
		index := newPolicyIndex(ofType)
		for c := index.candidates(ev); ; {
			p := c.take()
			if p == nil {
				break
			}
			if p.matches(ev) {
				got = append(got, p)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("found %d of %d policies, or others", len(got), len(want))
		}
	})
}

// The places for the event's attributes are as many as it has.
func TestEveryAttributeHasAPlace(t *testing.T) {
	if n := len(eventType.fields); n != maxAttributes {
		t.Errorf("%d fields, room for %d", n, maxAttributes)
	}
}
