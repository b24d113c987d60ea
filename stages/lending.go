package stages

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"
)

// stuckAfter is how long a child may hold batches of some inputs and give none back,
// while it has none of another for which there is no room, before it is taken to wait
// for that one for ever.
const stuckAfter = 30 * time.Second

// lending is what one attempt has of its inputs in the arena for its child. An input of
// which the child has something gets more only while there is room for the others:
// a child that reads two in step would else hold the one and wait for the other for
// ever. Safe for concurrent use.
type lending struct {
	size  int64 // of the arena
	stuck time.Duration

	mu    sync.Mutex
	bytes int64         // brought for the child and not back
	moved time.Time     // when that last changed
	gave  chan struct{} // closed when some come back
}

func newLending(arena int64, stuck time.Duration) *lending {
	return &lending{size: arena, stuck: cmp.Or(stuck, stuckAfter), moved: time.Now(), gave: make(chan struct{})}
}

// lent is the part of one input.
type lent struct {
	of *lending

	// Of mu of lending.
	out   int   // batches that the child has
	next  int64 // bytes that are set aside for the one after
	empty time.Time
}

func (l *lending) input() *lent { return &lent{of: l, empty: time.Now()} }

// took notes a batch of that many bytes that is for the child.
func (l *lent) took(bytes int64) {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.of.bytes += bytes - l.next
	l.next = 0
	l.out++
	l.of.moved = time.Now()
}

// back notes that the child has given one back.
func (l *lent) back(bytes int64) {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.out--
	l.of.bytes -= bytes
	l.of.moved = time.Now()
	l.empty = l.of.moved
	close(l.of.gave)
	l.of.gave = make(chan struct{})
}

// room waits until the input may have another batch of about that many bytes brought
// into the arena: it has none out, or half of the arena is left to the others.
func (l *lent) room(ctx context.Context, bytes int64) {
	for {
		l.of.mu.Lock()
		if l.out == 0 || l.of.bytes+bytes <= l.of.size/2 {
			l.next = bytes
			l.of.bytes += bytes
			l.of.mu.Unlock()
			return
		}
		gave := l.of.gave
		l.of.mu.Unlock()
		select {
		case <-gave:
		case <-ctx.Done():
			return
		}
	}
}

// end gives back what was set aside.
func (l *lent) end() {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.of.bytes -= l.next
	l.next = 0
}

// starved implements prefetch.Config.Starved.
func (l *lent) starved() (since time.Time, ok bool) {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	return l.empty, l.out == 0
}

// waits is asked while the input waits for need bytes of the arena. It is an error if
// they cannot come: the child has nothing of this input, what it holds of the others
// leaves too little, and it gives nothing back.
func (l *lent) waits(need int64) error {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	held := l.of.bytes - l.next
	if l.out > 0 || held == 0 || held+need <= l.of.size || time.Since(l.of.moved) < l.of.stuck {
		return nil
	}
	return Permanent(fmt.Errorf("its inputs take %d bytes of shared memory at once, and the hot tier has %d: give it more (HotBytes, --hot), or make their batches smaller", held+need, l.of.size))
}
