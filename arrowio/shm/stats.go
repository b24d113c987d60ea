package shm

import (
	"slices"
	"strings"
)

// Stats counts an arena's, or a host's arenas', use. Bytes are of slots as
// reserved (rounded up to Alignment).
type Stats struct {
	Arenas    int   `json:"arenas"`
	Capacity  int64 `json:"capacity"`   // bytes
	Used      int64 `json:"used"`       // bytes
	HighWater int64 `json:"high_water"` // most bytes used at once
	Slots     int   `json:"slots"`      // loaned or published
	Loans     int   `json:"loans"`      // of them loaned
	Builds    int   `json:"builds"`     // of them with memory that builders, or what they built, still hold
	Leases    int   `json:"leases"`
	Waiting   int   `json:"waiting"` // loans that wait for memory
	// What a loan can get. Adopted arenas have no free memory.
	Free        int64 `json:"free"`         // bytes
	FreePieces  int   `json:"free_pieces"`  // that do not touch
	LargestFree int64 `json:"largest_free"` // bytes: the largest loan that need not wait
	// Totals since the arena was made.
	Published   uint64 `json:"published"`
	Leased      uint64 `json:"leased"`
	Released    uint64 `json:"released"`
	Reclaimed   uint64 `json:"reclaimed"`    // by ReclaimOwner
	LeasedBytes uint64 `json:"leased_bytes"` // frames, so bodies and metadata
	Built       uint64 `json:"built"`        // batches published by Build
	CopiedBytes uint64 `json:"copied_bytes"` // body bytes that Build and Put copied
	// HugePages says what became of Config.HugePages; "" if none were asked for.
	HugePages string `json:"huge_pages,omitempty"`
}

// Fragmentation is how much of the free memory is not in the largest piece:
// from 0, all in one piece, towards 1.
func (s Stats) Fragmentation() float64 {
	if s.Free == 0 {
		return 0
	}
	return 1 - float64(s.LargestFree)/float64(s.Free)
}

func (s *Stats) add(o Stats) {
	s.Arenas += o.Arenas
	s.Capacity += o.Capacity
	s.Used += o.Used
	s.HighWater += o.HighWater
	s.Slots += o.Slots
	s.Loans += o.Loans
	s.Builds += o.Builds
	s.Leases += o.Leases
	s.Waiting += o.Waiting
	s.Free += o.Free
	s.FreePieces += o.FreePieces
	s.LargestFree = max(s.LargestFree, o.LargestFree)
	s.Published += o.Published
	s.Leased += o.Leased
	s.Released += o.Released
	s.Reclaimed += o.Reclaimed
	s.LeasedBytes += o.LeasedBytes
	s.Built += o.Built
	s.CopiedBytes += o.CopiedBytes
	if s.HugePages == "" {
		s.HugePages = o.HugePages
	}
}

// Stats returns the current counts.
func (a *Arena) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.stats
	s.Waiting = len(a.waiters)
	if !a.ended {
		s.Free, s.FreePieces, s.LargestFree = a.space.free, a.space.count, a.space.largest()
	}
	return s
}

// Classes counts the arena's slots and free pieces by size, smallest first.
// Adopted arenas have none.
func (a *Arena) Classes() []Class {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended || a.oneShot {
		return nil
	}
	return a.space.byPower()
}

// Holder says what one owner has leased.
type Holder struct {
	Owner  string `json:"owner"`
	Leases int    `json:"leases"`
	Bytes  int64  `json:"bytes"` // of frames, one that is leased twice counted twice
}

// Holders lists who holds leases, by name: what keeps a full arena full.
func (a *Arena) Holders() []Holder {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]Holder, 0, len(a.owners))
	for name, o := range a.owners {
		h := Holder{Owner: name}
		for x := o.first; x != nil; x = x.next {
			h.Leases++
			h.Bytes += x.slot.handle.Length
		}
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b Holder) int { return strings.Compare(a.Owner, b.Owner) })
	return all
}
