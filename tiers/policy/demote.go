package policy

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

// WatermarkRule is the rule that decisions by watermarks name.
const WatermarkRule = "watermarks"

// Shortage is what a host's warm directory lacks room for.
type Shortage struct {
	Quota int64 // bytes
	Limit int   // of the batches that are chosen
	// Here says of a warm copy whether it is in this host's directory; nil: all are.
	Here func(ref arrowio.Ref, l arrowio.Location) bool
	// Leaving says of a batch that it is on its way out: it counts as gone. nil: none is.
	Leaving func(dataset string, sequence uint64) bool
	// Stays says of a batch that it is not to be chosen; nil: of none.
	Stays func(dataset string, sequence uint64) bool
	Conditions
}

// Demote chooses what to evict so that the batches of this host's warm directory come
// down to the low watermark of the quota once they have more bytes than the high one,
// at most Limit of them: first those that no reader is known to come to, in the policy's
// order, then those that are needed last. Those that are pinned, by command or
// by a rule, stay. ok is false if there is
// nothing to do or no policy has watermarks. The whole catalog is read, in bounded
// memory.
func (s *Set) Demote(ctx context.Context, c Catalog, need Shortage) (tasks []Task, ok bool, err error) {
	marks, ok := s.Watermarks()
	if !ok || need.Quota <= 0 || need.Limit <= 0 {
		return nil, false, nil
	}
	var used int64
	first := make([]candidate, 0, need.Limit) // sorted: what leaves first
	for h, err := range c.Datasets(ctx) {
		if err != nil {
			return nil, false, err
		}
		pins, err := c.Pins(ctx, h.Dataset)
		if err != nil {
			return nil, false, err
		}
		for b, err := range c.Entries(ctx, h.Dataset, 0, tiers.End) {
			if err != nil {
				return nil, false, err
			}
			l, warm := b.Ref.In(arrowio.Warm)
			if !warm || need.Here != nil && !need.Here(b.Ref, l) || need.Leaving != nil && need.Leaving(h.Dataset, b.Ref.Sequence) {
				continue
			}
			used += l.Bytes
			if (need.Stays == nil || !need.Stays(h.Dataset, b.Ref.Sequence)) && s.mayLeave(ctx, h, b, pins, need.Conditions) {
				first = keepFirst(first, candidate{h.Dataset, b.Ref.Sequence, l.Bytes, need.next(h.Dataset, b.Ref.Sequence), marks.Order.rank(b, l.Bytes)}, need.Limit)
			}
		}
	}
	if float64(used) <= marks.High*float64(need.Quota) {
		return nil, false, nil
	}
	d := Decision{Evict, marks.Policy, WatermarkRule}
	for _, o := range first {
		if float64(used) <= marks.Low*float64(need.Quota) {
			break
		}
		used -= o.bytes
		tasks = append(tasks, Task{o.dataset, o.seq, o.seq + 1, d})
	}
	return neighbours(tasks), len(tasks) > 0, nil
}

func (s *Set) mayLeave(ctx context.Context, h tiers.Head, b tiers.BatchInfo, pins []tiers.Pin, cond Conditions) bool {
	if (Decision{Action: Evict}).Allowed(pins, b.Ref.Sequence).Action != Evict {
		return false
	}
	if !s.pinning(h.Dataset) {
		return true
	}
	// A condition that cannot be evaluated pins nothing; Plan reports it.
	d, _ := s.decide(ctx, h, b, cond)
	return d.Action != Pin
}

// pinning reports whether a rule may pin batches of the dataset.
func (s *Set) pinning(dataset string) bool {
	return slices.ContainsFunc(s.policies, func(p *policy) bool {
		return p.matches(dataset) && slices.ContainsFunc(p.rules, func(r rule) bool { return r.action == Pin })
	})
}

// neighbours puts tasks of the same dataset that follow one another together.
func neighbours(tasks []Task) []Task {
	slices.SortFunc(tasks, func(a, b Task) int {
		return cmp.Or(strings.Compare(a.Dataset, b.Dataset), cmp.Compare(a.From, b.From))
	})
	var out []Task
	for _, t := range tasks {
		if n := len(out); n > 0 && out[n-1].Dataset == t.Dataset && out[n-1].To == t.From {
			out[n-1].To = t.To
			continue
		}
		out = append(out, t)
	}
	return out
}

// next is Conditions.Next, and one value where no use is known.
func (c Conditions) next(dataset string, seq uint64) time.Duration {
	if c.Next == nil {
		return -1
	}
	return max(c.Next(dataset, seq), -1)
}

// candidate may leave.
type candidate struct {
	dataset string
	seq     uint64
	bytes   int64
	next    time.Duration // as in Facts
	rank    int64         // the lowest leaves first
}

// sooner is a negative number if c leaves before o.
func (c candidate) sooner(o candidate) int {
	if needed := c.next >= 0; needed != (o.next >= 0) {
		return map[bool]int{false: -1, true: 1}[needed]
	}
	return cmp.Or(cmp.Compare(o.next, c.next), cmp.Compare(c.rank, o.rank), strings.Compare(c.dataset, o.dataset), cmp.Compare(c.seq, o.seq))
}

func (o Order) rank(b tiers.BatchInfo, bytes int64) int64 {
	switch o {
	case Idle:
		return later(b.Committed, b.Read).Unix()
	case Largest:
		return -bytes
	case Oldest:
	}
	return b.Committed.UnixNano()
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func keepFirst(list []candidate, c candidate, limit int) []candidate {
	i, _ := slices.BinarySearchFunc(list, c, candidate.sooner)
	if i == limit {
		return list
	}
	if len(list) == limit {
		list = list[:limit-1]
	}
	return slices.Insert(list, i, c)
}
