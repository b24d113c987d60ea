package report

import (
	"encoding/json"
	"slices"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
)

// Fold is the sum of a history so far. A value: Add leaves its receiver as it was.
type Fold struct {
	Events  int64
	Weeks   []Week // by week, ascending
	Batches Batches
	Tiers   Tiers
}

// TypeWeekSettled is the flights example's event that sums up one week; its data
// is a Week.
const TypeWeekSettled = "week.settled"

// Add counts one event. Data that does not decode is counted and otherwise left
// alone: the bus has checked it, and a report must not fail for a display.
func (f Fold) Add(d events.Delivery) Fold {
	f.Events++
	switch d.Type() {
	case TypeWeekSettled:
		var w Week
		if json.Unmarshal(d.Data(), &w) == nil {
			if w.From == "" && !d.Time().IsZero() {
				w.From = d.Time().UTC().Format("2006-01-02")
			}
			f.Weeks = put(f.Weeks, w)
		}
	case events.TypeBatchPublished:
		var b events.BatchPublished
		if json.Unmarshal(d.Data(), &b) == nil {
			f.Batches.Published++
			f.Tiers = f.Tiers.plus(arrowio.Tier(b.Tier))
		}
	case events.TypeTierMoved:
		var m events.TierMoved
		if json.Unmarshal(d.Data(), &m) == nil {
			f.Tiers.Moved++
			f.Tiers = f.Tiers.plus(arrowio.Tier(m.To))
		}
	case events.TypeStageCompleted:
		var c events.StageCompleted
		if json.Unmarshal(d.Data(), &c) == nil {
			f.Batches.Leased += c.Leased
			f.Batches.BodyBytes += c.BodyBytes
			f.Batches.CopiedBytes += c.CopiedBytes
		}
	}
	return f
}

func (t Tiers) plus(tier arrowio.Tier) Tiers {
	switch tier {
	case arrowio.Hot:
		t.Hot++
	case arrowio.Warm:
		t.Warm++
	case arrowio.Cold:
		t.Cold++
	}
	return t
}

// put replaces or inserts w in a copy of weeks.
func put(weeks []Week, w Week) []Week {
	i, found := slices.BinarySearchFunc(weeks, w.Week, func(x Week, n int) int { return x.Week - n })
	weeks = slices.Clone(weeks)
	if found {
		weeks[i] = w
		return weeks
	}
	return slices.Insert(weeks, i, w)
}
