package tiers

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Hedging follows J. Dean and L. A. Barroso, "The tail at scale", Communications of
// the ACM 56 (2), 2013: a second request is sent when the first has taken longer
// than most of its kind take, which cuts the tail for a few per cent more requests.
const (
	// defaultHedgeAfter is Config.HedgeAfter unless set.
	defaultHedgeAfter = 25 * time.Millisecond
	// hedgeShare bounds how many of the reads may be hedged, so that a source which is
	// slow for all does not get, or send elsewhere, twice the load.
	hedgeShare = 0.05
	// aheadPatience is how many times as long a read may take that nobody waits for. Those
	// who read ahead keep a link busy, where a second request for what is only queued takes
	// from the others.
	aheadPatience = 8
	// hedgeBurst is how many hedges may come one after another.
	hedgeBurst = 8
	// paceKept is how many reads of a kind a percentile is of, and paceLeast how many
	// it takes to have one.
	paceKept, paceLeast = 64, 16
	// sizeClasses: reads are compared with those of up to four times the size.
	sizeClasses = 20
)

// hedge decides when a read gets a second source. Safe for concurrent use.
type hedge struct {
	least time.Duration // no read is late before; negative: none ever is

	started, won atomic.Int64

	mu     sync.Mutex
	tokens float64
	paces  [sourceKinds][sizeClasses]pace
}

// pace is how long the newest reads of a kind took.
type pace struct {
	ring [paceKept]time.Duration
	n    int           // in all
	high time.Duration // their 95th percentile
}

func (h *hedge) open(least time.Duration) {
	if h.least = least; least == 0 {
		h.least = defaultHedgeAfter
	}
	h.tokens = hedgeBurst
}

func sizeClass(bytes int64) int {
	return min(bits.Len64(uint64(max(bytes, 0)))/2, sizeClasses-1) //nolint:gosec // not negative
}

// took notes a read that succeeded.
func (h *hedge) took(kind sourceKind, bytes int64, d time.Duration) {
	if h.least < 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &h.paces[kind][sizeClass(bytes)]
	p.ring[p.n%paceKept] = d
	p.n++
	if p.n >= paceLeast && p.n%4 == 0 {
		sorted := slices.Clone(p.ring[:min(p.n, paceKept)])
		slices.Sort(sorted)
		p.high = sorted[len(sorted)*95/100]
	}
}

// after is how long a read may take before it is late; ok is false where that is not
// known. It counts as a read for the share that may be hedged.
func (h *hedge) after(kind sourceKind, bytes int64) (d time.Duration, ok bool) {
	if h.least < 0 {
		return 0, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &h.paces[kind][sizeClass(bytes)]
	if p.n < paceLeast {
		return 0, false
	}
	h.tokens = min(h.tokens+hedgeShare, hedgeBurst)
	return max(p.high, h.least), true
}

// take allows one more hedge, or not.
func (h *hedge) take() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tokens < 1 {
		return false
	}
	h.tokens--
	h.started.Add(1)
	return true
}
