package prefetch

import (
	"sync"
	"time"
)

// Stats counts what prefetching achieved. Safe for concurrent use; one may serve
// several loops.
type Stats struct {
	of *Stats // counts the same; nil: nobody does
	mu sync.Mutex
	n  Counts
}

// Part returns Stats that count for themselves, and in s.
func (s *Stats) Part() *Stats { return &Stats{of: s} }

// Counts is a moment of Stats. Bytes are of batch bodies.
type Counts struct {
	Hits          uint64        `json:"hits"`        // batches that were there when asked for
	Misses        uint64        `json:"misses"`      // that were waited for
	Fresh         uint64        `json:"fresh"`       // that were made, or found in the catalog, while they were waited for
	BytesEarly    int64         `json:"bytes_early"` // of hits
	BytesLate     int64         `json:"bytes_late"`  // of misses
	Wasted        uint64        `json:"wasted"`      // batches that were opened and not asked for
	WastedBytes   int64         `json:"wasted_bytes"`
	Prepared      uint64        `json:"prepared"` // batches that were brought nearer for a reader that had not begun
	PreparedBytes int64         `json:"prepared_bytes"`
	Stall         time.Duration `json:"stall_ns"` // that consumers waited for batches that there were
	Idle          time.Duration `json:"idle_ns"`  // that they waited for a batch to be made, or found in the catalog
	LongestStall  time.Duration `json:"longest_stall_ns"`
	Window        int           `json:"window"` // batches read ahead, as of the last one
}

// HitRate is the share of batches that were there when asked for, of those that
// could have been; 0 before the first.
func (c Counts) HitRate() float64 {
	if n := c.Hits + c.Misses; n > 0 {
		return float64(c.Hits) / float64(n)
	}
	return 0
}

// Counts returns the counts as of now.
func (s *Stats) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// Add adds the counts of another.
func (c *Counts) Add(o Counts) {
	c.Hits += o.Hits
	c.Misses += o.Misses
	c.Fresh += o.Fresh
	c.BytesEarly += o.BytesEarly
	c.BytesLate += o.BytesLate
	c.Wasted += o.Wasted
	c.WastedBytes += o.WastedBytes
	c.Prepared += o.Prepared
	c.PreparedBytes += o.PreparedBytes
	c.Stall += o.Stall
	c.Idle += o.Idle
	c.LongestStall = max(c.LongestStall, o.LongestStall)
	c.Window = max(c.Window, o.Window)
}

// wait is how a batch came to be handed out.
type wait struct {
	waited, fresh bool
	stall, idle   time.Duration
}

func (s *Stats) add(bytes int64, w wait, window int) {
	if s.of != nil {
		s.of.add(bytes, w, window)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case w.fresh:
		s.n.Fresh++
	case w.waited:
		s.n.Misses++
		s.n.BytesLate += bytes
	default:
		s.n.Hits++
		s.n.BytesEarly += bytes
	}
	s.n.Stall += w.stall
	s.n.Idle += w.idle
	s.n.LongestStall = max(s.n.LongestStall, w.stall)
	s.n.Window = window
}

func (s *Stats) wasted(bytes int64) {
	if s.of != nil {
		s.of.wasted(bytes)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n.Wasted++
	s.n.WastedBytes += bytes
}

func (s *Stats) prepared(bytes int64) {
	if s.of != nil {
		s.of.prepared(bytes)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n.Prepared++
	s.n.PreparedBytes += bytes
}
