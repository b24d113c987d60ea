package prefetch

import (
	"maps"
	"slices"
	"sync"
)

// Budget bounds what several loops read ahead together, so that many stages at once
// take no more of the memory than one. Safe for concurrent use. A nil Budget has no
// bound.
type Budget struct {
	most int64

	mu    sync.Mutex
	used  int64
	next  int
	loops map[int]func() // wakes those that may wait for it
}

// NewBudget makes a budget of that many bytes of batch bodies. Each loop has one
// batch under way whatever is left of it.
func NewBudget(bytes int64) *Budget { return &Budget{most: max(bytes, 0), loops: map[int]func(){}} }

// Used is how many bytes are read ahead now.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

func (b *Budget) take(bytes int64) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+bytes > b.most {
		return false
	}
	b.used += bytes
	return true
}

// give returns bytes and wakes all loops.
func (b *Budget) give(bytes int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.used -= bytes
	wake := slices.Collect(maps.Values(b.loops))
	b.mu.Unlock()
	for _, w := range wake {
		w()
	}
}

func (b *Budget) join(wake func()) (leave func()) {
	if b == nil {
		return func() {}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	id := b.next
	b.next++
	b.loops[id] = wake
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.loops, id)
	}
}
