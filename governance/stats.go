package governance

import (
	"sync/atomic"

	"github.com/stokehold/stokehold/events"
)

// Stats counts the decisions of this process's engine. Permitted contains Warned;
// Denied contains what waits for approval.
type Stats struct {
	Judged, Permitted, Warned, Denied, Quarantined map[events.Point]uint64
	// Trusted are events that came to publish with a valid stamp of the current
	// policies and were not judged again.
	Trusted uint64
}

type engineStats struct {
	allowed, warned, denied, quarantined [points]atomic.Uint64
	trusted                              atomic.Uint64
}

// points is the number of points at which events are judged.
const points = 3

var allPoints = [points]events.Point{events.OnPublish, events.OnReceive, events.OnRelease} //nolint:gochecknoglobals // a constant table

// pointIndex is the place of a point in allPoints.
func pointIndex(at events.Point) int {
	switch at {
	case events.OnReceive:
		return 1
	case events.OnRelease:
		return 2
	default:
		return 0
	}
}

func (s *engineStats) count(at events.Point, a events.Action) {
	i := pointIndex(at)
	switch a {
	case events.Allow, events.Redact, events.Route:
		s.allowed[i].Add(1)
	case events.Warn:
		s.warned[i].Add(1)
	case events.Quarantine:
		s.quarantined[i].Add(1)
	default:
		s.denied[i].Add(1)
	}
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	out := Stats{
		Judged: map[events.Point]uint64{}, Permitted: map[events.Point]uint64{}, Warned: map[events.Point]uint64{},
		Denied: map[events.Point]uint64{}, Quarantined: map[events.Point]uint64{}, Trusted: e.stats.trusted.Load(),
	}
	for i, at := range allPoints {
		a, w, d, q := e.stats.allowed[i].Load(), e.stats.warned[i].Load(), e.stats.denied[i].Load(), e.stats.quarantined[i].Load()
		out.Judged[at], out.Permitted[at], out.Warned[at], out.Denied[at], out.Quarantined[at] = a+w+d+q, a+w, w, d, q
	}
	return out
}
