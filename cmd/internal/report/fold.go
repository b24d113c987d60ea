package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/stages/drift"
)

// Fold is the sum of a history so far. A value: Add leaves its receiver as it was.
type Fold struct {
	Events  int64
	Weeks   []Week // by week, ascending
	Batches Batches
	Tiers   Tiers

	moved    map[[2]string]Move // by tier and reason
	closed   []drift.Report     // by week
	from     []string           // the first day of each of closed
	episodes []episode
}

// episode is what one drift.detected came to.
type episode struct {
	event      string // its id
	run        string // that it led to
	suppressed string // why it led to none
	asked      string // the challenger's numbers against the champion's
	challenger string // version
	promoted   bool
	ended      bool
	reason     string // why refused or failed
}

// Add counts one event. Data that does not decode is counted and otherwise left
// alone: the bus has checked it, and a report must not fail for a display.
func (f Fold) Add(d events.Delivery) Fold {
	f.Events++
	switch d.Type() {
	case events.TypeBatchPublished:
		if b, ok := decode[events.BatchPublished](d); ok {
			f.Batches.Published++
			f.Tiers = f.Tiers.plus(arrowio.Tier(b.Tier))
			// The event has a checksum because the batch was written through to disk.
			if b.SHA256 != "" && b.Tier != string(arrowio.Warm) {
				f.Tiers.Warm++
			}
		}
	case events.TypeTierMoved:
		if m, ok := decode[events.TierMoved](d); ok {
			f.Tiers.Moved++
			f.Tiers = f.Tiers.plus(arrowio.Tier(m.To))
			f = f.move(Move{m.To, m.Reason, 1, m.Bytes})
		}
	case events.TypeBatchExpired:
		if x, ok := decode[events.BatchExpired](d); ok {
			f = f.move(Move{"expired", x.Reason, max(x.To-x.From, 0), 0})
		}
	case events.TypeStageCompleted:
		if c, ok := decode[events.StageCompleted](d); ok {
			f.Batches.Leased += c.Leased
			f.Batches.BodyBytes += c.BodyBytes
			f.Batches.CopiedBytes += c.CopiedBytes
			f.Tiers.Ahead = sum(f.Tiers.Ahead, c.Ahead)
		}
	case flights.TypeWeekClosed:
		if r, ok := decode[drift.Report](d); ok {
			from := ""
			if !d.Time().IsZero() { // a week's events carry the moment it ended
				from = d.Time().UTC().Add(-flights.Week).Format("2006-01-02")
			}
			f = f.close(r, from)
		}
	case events.TypeDriftDetected:
		f.episodes = append(slices.Clone(f.episodes), episode{event: d.ID()})
	default:
		f = f.learn(d)
	}
	return f
}

func sum(a, b events.ReadAhead) events.ReadAhead {
	a.Hits, a.Misses, a.Fresh = a.Hits+b.Hits, a.Misses+b.Misses, a.Fresh+b.Fresh
	a.BytesEarly, a.BytesLate = a.BytesEarly+b.BytesEarly, a.BytesLate+b.BytesLate
	a.StallSeconds += b.StallSeconds
	return a
}

// maxMoves bounds the reasons that are told apart; the others count as those without one.
const maxMoves = 64

func (f Fold) move(m Move) Fold {
	key := [2]string{m.To, m.Reason}
	if _, ok := f.moved[key]; !ok && len(f.moved) >= maxMoves {
		m.Reason, key[1] = "", ""
	}
	f.moved = maps.Clone(f.moved)
	if f.moved == nil {
		f.moved = map[[2]string]Move{}
	}
	was := f.moved[key]
	f.moved[key] = Move{m.To, m.Reason, was.Count + m.Count, was.Bytes + m.Bytes}
	return f
}

func (f Fold) moves() []Move {
	out := make([]Move, 0, len(f.moved))
	for _, m := range f.moved {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Move) int { return cmp.Or(cmp.Compare(a.To, b.To), cmp.Compare(a.Reason, b.Reason)) })
	return out
}

// learn takes in what became of a drift.
func (f Fold) learn(d events.Delivery) Fold {
	switch d.Type() {
	case events.TypeTriggerFired:
		if e, ok := decode[events.TriggerFired](d); ok {
			for _, id := range e.Events {
				f = f.episode(byEvent(id), func(x *episode) { x.run = e.Run })
			}
		}
	case events.TypeTriggerSuppressed:
		if e, ok := decode[events.TriggerSuppressed](d); ok {
			for _, id := range e.Events {
				f = f.episode(byEvent(id), func(x *episode) { x.suppressed = e.Reason })
			}
		}
	case events.TypeRunStarted:
		if e, ok := decode[events.RunStarted](d); ok && e.Cause != "" {
			f = f.episode(byEvent(e.Cause), func(x *episode) { x.run = e.Run })
		}
	case events.TypePromotionRequested:
		if e, ok := decode[events.PromotionRequested](d); ok {
			f = f.episode(byRun(e.Run), func(x *episode) { x.challenger, x.asked = e.Challenger, versus(e.Metrics) })
		}
	case events.TypeModelPromoted:
		if e, ok := decode[events.ModelPromoted](d); ok {
			f = f.episode(byRun(e.Run), func(x *episode) { x.promoted, x.challenger = true, e.Version })
		}
	case events.TypeModelRefused:
		if e, ok := decode[events.ModelRefused](d); ok {
			f = f.episode(byRun(e.Run), func(x *episode) { x.challenger, x.reason = e.Version, e.Reason })
		}
	case events.TypeRunCompleted:
		if e, ok := decode[events.RunCompleted](d); ok {
			f = f.episode(byRun(e.Run), func(x *episode) { x.ended = true })
		}
	case events.TypeRunFailed:
		if e, ok := decode[events.RunFailed](d); ok {
			f = f.episode(byRun(e.Run), func(x *episode) { x.ended, x.reason = true, "the retraining failed: "+e.Reason })
		}
	}
	return f
}

func byEvent(id string) func(episode) bool { return func(x episode) bool { return x.event == id } }
func byRun(run string) func(episode) bool {
	return func(x episode) bool { return run != "" && x.run == run }
}

// versus says what the gate saw, e.g. "log loss 0.4312 against 0.4419".
func versus(m events.PromotionMetrics) string {
	x, ok := m.Challenger["logloss"]
	y, also := m.Champion["logloss"]
	if !ok || !also {
		return ""
	}
	return fmt.Sprintf("log loss %.4f against the champion's %.4f", x, y)
}

// episode changes copies of those that match, and with them the weeks.
func (f Fold) episode(match func(episode) bool, change func(*episode)) Fold {
	found := false
	for i, x := range f.episodes {
		if match(x) {
			if !found {
				f.episodes, found = slices.Clone(f.episodes), true
			}
			change(&f.episodes[i])
		}
	}
	if found {
		f.Weeks = f.weeks()
	}
	return f
}

func (f Fold) close(r drift.Report, from string) Fold {
	i, found := slices.BinarySearchFunc(f.closed, r.Key, func(x drift.Report, key uint64) int {
		switch {
		case x.Key < key:
			return -1
		case x.Key > key:
			return 1
		}
		return 0
	})
	f.closed, f.from = slices.Clone(f.closed), slices.Clone(f.from)
	if found {
		f.closed[i], f.from[i] = r, from
	} else {
		f.closed, f.from = slices.Insert(f.closed, i, r), slices.Insert(f.from, i, from)
	}
	f.Weeks = f.weeks()
	return f
}

// weeks joins what the monitor found with what came of it.
func (f Fold) weeks() []Week {
	out := make([]Week, 0, len(f.closed))
	for i, r := range f.closed {
		w := Week{
			Week: int(min(r.Key, math.MaxInt32)), From: f.from[i], Rows: r.Rows, Drift: r.Drift, Model: r.Version,
			Frozen: Score{Float(r.FrozenLogLoss), auc(r.FrozenAUC)}, Loop: Score{Float(r.LogLoss), auc(r.AUC)},
		}
		if r.Denied != "" {
			w.Reason = "drift was not acted upon: " + r.Denied
		}
		for _, x := range f.episodes {
			if r.Event != "" && x.event == r.Event {
				x.tell(&w)
			}
		}
		out = append(out, w)
	}
	return out
}

func (x episode) tell(w *Week) {
	w.NextModel = x.challenger
	switch {
	case x.promoted:
		w.Retrained, w.Promoted, w.Reason = true, true, x.asked
	case x.challenger != "" && x.reason != "":
		w.Retrained, w.Reason = true, x.reason
	case x.reason != "":
		w.Reason = x.reason
	case x.suppressed != "":
		w.Reason = "not retrained: " + x.suppressed
	case x.ended:
		w.Retrained, w.Reason = true, "the retrained model is the champion already"
	}
}

// auc is not defined where all labels are the same; the monitor then says 0.
func auc(x float64) Float {
	if x == 0 {
		return Float(math.NaN())
	}
	return Float(x)
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

func decode[T any](d events.Delivery) (T, bool) {
	var v T
	return v, json.Unmarshal(d.Data(), &v) == nil
}
