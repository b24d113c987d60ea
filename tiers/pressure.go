package tiers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/stokehold/stokehold/arrowio/shm"
)

// arenaUse says whether a batch is wanted in the arena.
type arenaUse int

const (
	anywhere arenaUse = iota
	ifRoom            // in the arena, unless that would have to be waited for
	inArena           // in the arena, however long that takes
)

func arena(wanted bool) arenaUse {
	if wanted {
		return inArena
	}
	return anywhere
}

// errNoRoom means that all of the arena is being read or written.
var errNoRoom = errors.New("no room in the arena")

// roomAgain is how long a reader waits for memory before it looks again whether
// there is something to push out: what others have given back meanwhile is kept as
// hot copies, which nobody else may be about to push out.
const roomAgain = 20 * time.Millisecond

// loanAs takes memory for a batch that is brought into the arena.
func (h *hot) loanAs(ctx context.Context, bytes int64, use arenaUse) (*shm.Loan, error) {
	if bytes > h.arena.Size() {
		return nil, fmt.Errorf("%d bytes into an arena of %d: %w", bytes, h.arena.Size(), shm.ErrTooLarge)
	}
	if use == ifRoom {
		if !h.makeRoom(bytes) {
			return nil, errNoRoom
		}
		within, cancel := context.WithTimeout(ctx, roomAgain) // others may be quicker
		defer cancel()
		return h.arena.Loan(within, bytes)
	}
	for {
		for !h.makeRoom(bytes) && h.relief.ask() {
		}
		within, cancel := context.WithTimeout(ctx, roomAgain)
		loan, err := h.arena.Loan(within, bytes)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return loan, err
		}
		if waits, ok := ctx.Value(waiterKey{}).(func(int64) error); ok {
			if err := waits(bytes); err != nil {
				return nil, err
			}
		}
	}
}

// waiterKey is the context's key of a func(need int64) error.
type waiterKey struct{}

// WithWaiter has waits asked again and again while a batch that is opened under the
// context waits for that many bytes of the arena: an error of it ends the waiting. For
// callers that know when the room can't come, since they hold it themselves.
func WithWaiter(ctx context.Context, waits func(need int64) error) context.Context {
	return context.WithValue(ctx, waiterKey{}, waits)
}

// relief is who can give back leases that they could do without.
type relief struct {
	mu   sync.Mutex
	next int
	from map[int]func() bool
}

// ask has them give back, and reports whether any did.
func (r *relief) ask() bool {
	r.mu.Lock()
	asked := make([]func() bool, 0, len(r.from))
	for _, f := range r.from {
		asked = append(asked, f)
	}
	r.mu.Unlock()
	gave := false
	for _, f := range asked {
		gave = f() || gave
	}
	return gave
}

// OnPressure has give called when a reader waits for room in the arena that is not
// to be had: it gives back batches that were opened before somebody wanted them, if
// there are any, and reports whether there were. So reading ahead can never keep
// away what is wanted now. It may be called by several goroutines at once, and must
// not open batches itself. stop ends it; it may still be called once meanwhile.
func (s *Store) OnPressure(give func() bool) (stop func()) {
	r := &s.hot.relief
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.from == nil {
		r.from = map[int]func() bool{}
	}
	id := r.next
	r.next++
	r.from[id] = give
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.from, id)
	}
}

// ArenaSize is the size of the arena; 0: there is none.
func (s *Store) ArenaSize() int64 {
	if s.hot.arena == nil {
		return 0
	}
	return s.hot.arena.Size()
}
