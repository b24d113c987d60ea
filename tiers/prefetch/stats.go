package prefetch

import (
	"sync"
	"time"
)

// Stats counts what prefetching achieved. Safe for concurrent use; one may serve
// several loops.
type Stats struct {
	mu sync.Mutex
	n  Counts
}

// Counts is a moment of Stats. Bytes are of batch bodies.
type Counts struct {
	Hits         uint64        `json:"hits"`        // batches that were there when asked for
	Misses       uint64        `json:"misses"`      // that were waited for
	BytesEarly   int64         `json:"bytes_early"` // of hits
	BytesLate    int64         `json:"bytes_late"`  // of misses
	Wasted       uint64        `json:"wasted"`      // batches that were opened and not asked for
	WastedBytes  int64         `json:"wasted_bytes"`
	Stall        time.Duration `json:"stall_ns"` // that consumers waited
	LongestStall time.Duration `json:"longest_stall_ns"`
	Window       int           `json:"window"` // batches read ahead, as of the last one
}

// HitRate is the share of batches that were there when asked for; 0 before the
// first.
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

func (s *Stats) add(bytes int64, waited bool, stall time.Duration, window int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if waited {
		s.n.Misses++
		s.n.BytesLate += bytes
	} else {
		s.n.Hits++
		s.n.BytesEarly += bytes
	}
	s.n.Stall += stall
	s.n.LongestStall = max(s.n.LongestStall, stall)
	s.n.Window = window
}

func (s *Stats) wasted(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n.Wasted++
	s.n.WastedBytes += bytes
}
