package policy_test

import (
	"context"
	"iter"
	"reflect"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/policy"
)

// catalog is a Catalog of values: planning reads nothing else.
type catalog struct {
	heads   []tiers.Head
	batches map[string][]tiers.BatchInfo
	pins    map[string][]tiers.Pin
}

func (c catalog) Datasets(context.Context) iter.Seq2[tiers.Head, error] {
	return func(yield func(tiers.Head, error) bool) {
		for _, h := range c.heads {
			if !yield(h, nil) {
				return
			}
		}
	}
}

func (c catalog) Entries(_ context.Context, dataset string, from, to uint64) iter.Seq2[tiers.BatchInfo, error] {
	return func(yield func(tiers.BatchInfo, error) bool) {
		for _, b := range c.batches[dataset] {
			if b.Ref.Sequence >= from && b.Ref.Sequence < to && !yield(b, nil) {
				return
			}
		}
	}
}

func (c catalog) Pins(_ context.Context, dataset string) ([]tiers.Pin, error) {
	return c.pins[dataset], nil
}

var now = time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)

// warmDays has ten warm batches of 100 bytes, the oldest ten days old.
func warmDays(dataset string) catalog {
	c := catalog{heads: []tiers.Head{{Dataset: dataset, Next: 10}}, batches: map[string][]tiers.BatchInfo{}, pins: map[string][]tiers.Pin{}}
	for seq := range uint64(10) {
		c.batches[dataset] = append(c.batches[dataset], tiers.BatchInfo{
			Ref: arrowio.Ref{Dataset: dataset, Sequence: seq, BodyBytes: 100, Locations: []arrowio.Location{{Tier: arrowio.Warm, Bytes: 100}}},
			// A minute past whole days: conditions compare whole seconds.
			Committed: now.Add(-time.Duration(10-seq)*day - time.Minute),
		})
	}
	return c
}

// However small the steps, the plan is the same.
func TestPlanInSteps(t *testing.T) {
	set := golden(t)
	c := warmDays("flights/labels")
	c.pins["flights/labels"] = []tiers.Pin{{From: 1, To: 2, Hold: true}}
	evict := policy.Decision{Action: policy.Evict, Policy: "flights", Rule: "old-goes-cold"}
	for _, step := range []int{1, 3, 100} {
		got := map[uint64]policy.Decision{}
		var at policy.Cursor
		for rounds, done := 0, false; !done; rounds++ {
			tasks, next, end, faults, err := set.Plan(t.Context(), c, at, step, policy.Conditions{Now: now})
			if err != nil || faults != nil || rounds > 20 {
				t.Fatalf("round %d: %v, %v", rounds, faults, err)
			}
			for _, task := range tasks {
				for seq := task.From; seq < task.To; seq++ {
					got[seq] = task.Decision
				}
			}
			at, done = next, end
		}
		want := map[uint64]policy.Decision{0: evict, 2: evict, 3: evict}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("in steps of %d: %v", step, got)
		}
	}
}

func TestDemoteTakesTheOldestFirst(t *testing.T) {
	set := golden(t)
	c := warmDays("weather")
	c.pins["weather"] = []tiers.Pin{{From: 0, To: 1}}
	for name, q := range map[string]struct {
		quota int64
		limit int
		want  []uint64
	}{
		"below the high watermark": {1200, 100, nil},
		"above":                    {1000, 100, []uint64{1, 2, 3}}, // 1000 bytes down to 700
		"bounded":                  {1000, 2, []uint64{1, 2}},
		"without a quota":          {0, 100, nil},
	} {
		tasks, ok, err := set.Demote(t.Context(), c, policy.Shortage{Quota: q.quota, Limit: q.limit, Conditions: policy.Conditions{Now: now}})
		if err != nil || ok != (len(q.want) > 0) {
			t.Errorf("%s: %t, %v", name, ok, err)
		}
		var got []uint64
		for _, task := range tasks {
			for seq := task.From; seq < task.To; seq++ {
				got = append(got, seq)
			}
		}
		if !reflect.DeepEqual(got, q.want) {
			t.Errorf("%s: %v, want %v", name, got, q.want)
		}
	}
}
