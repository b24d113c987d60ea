package shm

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
)

// Alignment is the boundary in bytes that slots start on.
const Alignment = arrowio.Alignment

// Handle names a published slot. Its URI form is Handle.String.
type Handle = arrowio.SharedURI

// Config configures an Arena.
type Config struct {
	Bytes int64  // capacity, rounded up to whole pages; required
	Name  string // shown in /proc/PID/maps; default "stokehold"
	// Prefault touches every page when the arena is made, so that no first write to
	// one waits for the kernel. It takes about a second per GiB.
	Prefault bool
	// HugePages asks for larger pages. What the machine does not give is done without;
	// Stats.HugePages says so.
	HugePages HugePages
}

// Arena is a region of shared memory that slots are loaned from. Safe for
// concurrent use.
type Arena struct {
	id       string
	size     int64
	decoder  arrowio.Decoder
	writable []byte // nil if adopted
	readable []byte

	mu      sync.Mutex
	fd      int
	users   int // of fd or the mappings, other than slots: WithFD calls
	closed  bool
	ended   bool // unmapped
	oneShot bool // ends with its only slot
	peer    *Peer
	space   space
	waiters []*waiter
	slots   map[int64]*slot // by offset
	owners  map[string]*leaser
	next    uint64 // generation
	stats   Stats
	onEnd   []func()

	// Book-keeping to be used again: a lease costs no allocation.
	spareSlots  *slot
	spareHolds  *hold
	spareOwners *leaser
	spareSpaces []*space // of builds
}

type slot struct {
	handle   Handle
	part     int32 // of the arena's space
	reserved int64
	holds    int  // of publishers: one from Loan to Drop, and one for each Keep
	open     bool // loaned, not yet published
	pinned   bool // builders, or what they built, hold memory in it
	leases   int
	next     *slot // spare
}

type waiter struct {
	bytes int64
	ready chan struct{}
	slot  *slot
	err   error
}

// New makes an arena and reserves its memory. The error wraps ErrNoMemory if the
// machine (or this process's control group) does not have it.
func New(cfg Config) (*Arena, error) {
	if cfg.Bytes <= 0 {
		return nil, fmt.Errorf("shm: arena of %d bytes: want a size above 0", cfg.Bytes)
	}
	name := cfg.Name
	if name == "" {
		name = "stokehold"
	}
	m, err := reserve(name, cfg)
	if err != nil {
		return nil, fmt.Errorf("shm: reserve %d bytes: %w", cfg.Bytes, err)
	}
	a := newArena(m.fd, m.size, m.readable)
	a.writable, a.stats.HugePages = m.writable, m.note
	a.space.reset(m.size)
	return a, nil
}

func newArena(fd int, size int64, readable []byte) *Arena {
	return &Arena{
		id: newID(), fd: fd, size: size, readable: readable,
		slots: map[int64]*slot{}, owners: map[string]*leaser{},
		stats: Stats{Arenas: 1, Capacity: size},
	}
}

// ID is the arena's id: 128 random bits in hexadecimal.
func (a *Arena) ID() string { return a.id }

// Size is the capacity in bytes.
func (a *Arena) Size() int64 { return a.size }

// Loan takes memory for the caller to write in. When the arena is full it waits,
// in order of arrival, until memory is released or ctx ends; a deadline that has passed
// matters only where it would have to wait. It fails at once
// with ErrTooLarge if the arena could never hold bytes, and with ErrClosed.
func (a *Arena) Loan(ctx context.Context, bytes int64) (*Loan, error) {
	if bytes <= 0 {
		return nil, fmt.Errorf("shm: loan of %d bytes: want a size above 0", bytes)
	}
	// A deadline is for the waiting: what need not be waited for is not late.
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return nil, err
	}
	a.mu.Lock()
	switch {
	case a.closed:
		a.mu.Unlock()
		return nil, fmt.Errorf("shm: loan from arena %s: %w", a.id, ErrClosed)
	case a.writable == nil:
		a.mu.Unlock()
		return nil, fmt.Errorf("shm: loan from arena %s: %w", a.id, ErrReadOnly)
	case bytes > a.size:
		used := a.stats.Used
		a.mu.Unlock()
		return nil, &LimitError{What: "loan", Asked: bytes, Used: used, Limit: a.size, Err: ErrTooLarge}
	}
	if len(a.waiters) == 0 {
		if s := a.take(bytes); s != nil {
			a.mu.Unlock()
			return &Loan{arena: a, slot: s}, nil
		}
	}
	w := &waiter{bytes: bytes, ready: make(chan struct{})}
	a.waiters = append(a.waiters, w)
	a.mu.Unlock()
	select {
	case <-w.ready:
	case <-ctx.Done():
		a.mu.Lock()
		select {
		case <-w.ready: // served at the same moment
			if w.slot != nil {
				a.discard(w.slot)
			}
		default:
			for i, other := range a.waiters {
				if other == w {
					a.waiters = append(a.waiters[:i], a.waiters[i+1:]...)
					break
				}
			}
			a.serve() // those behind may be smaller
		}
		used := a.stats.Used
		end := a.settle()
		a.mu.Unlock()
		end()
		return nil, fmt.Errorf("shm: loan of %d bytes, arena %s has %d of %d in use: %w", bytes, a.id, used, a.size, ctx.Err())
	}
	if w.err != nil {
		return nil, fmt.Errorf("shm: loan from arena %s: %w", a.id, w.err)
	}
	return &Loan{arena: a, slot: w.slot}, nil
}

// Put frames a batch that lies elsewhere (on the Go heap, say) into a new slot
// and publishes it: one copy of its body, counted in copies. Waits as Loan does.
func (a *Arena) Put(ctx context.Context, batch arrow.RecordBatch, copies *arrowio.Copies) (Handle, error) {
	frame, err := arrowio.Prepare(batch)
	if err != nil {
		return Handle{}, err
	}
	return a.PutFrame(ctx, frame, copies)
}

// PutFrame is Put for a batch already laid out.
func (a *Arena) PutFrame(ctx context.Context, frame *arrowio.Frame, copies *arrowio.Copies) (Handle, error) {
	loan, err := a.Loan(ctx, frame.Size())
	if err != nil {
		return Handle{}, err
	}
	if _, err := frame.EncodeTo(loan.Bytes(), copies); err != nil {
		loan.Cancel()
		return Handle{}, err
	}
	a.copied(frame.BodyBytes())
	return loan.Publish(), nil
}

// Keep adds another publisher's hold to a published slot, so that a batch can be
// published once more under another name, where it lies: each Keep, like each
// publication, ends with a Drop of its own. The error wraps arrowio.ErrGone if the
// slot is gone: hold a lease on it meanwhile.
func (a *Arena) Keep(h Handle) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.find(h)
	if err == nil && (s.holds == 0 && s.leases == 0 || a.closed) {
		err = fmt.Errorf("shm: keep %s: %w: dropped", h, arrowio.ErrGone)
	}
	if err != nil {
		return err
	}
	s.holds++
	return nil
}

// Drop gives up the publisher's own hold on a slot; readers that have leased it
// keep it. Dropping twice is an arrowio.ErrGone.
func (a *Arena) Drop(h Handle) error {
	a.mu.Lock()
	s, err := a.find(h)
	if err == nil && s.holds == 0 {
		err = fmt.Errorf("shm: drop %s: %w: dropped before", h, arrowio.ErrGone)
	}
	if err != nil {
		a.mu.Unlock()
		return err
	}
	s.holds--
	a.reuse(s)
	end := a.settle()
	a.mu.Unlock()
	end()
	return nil
}

// WithFD calls f with the arena's descriptor, which stays open until f returns.
// f may send it to another process; it must not close it.
func (a *Arena) WithFD(f func(fd int) error) error {
	a.mu.Lock()
	if a.ended || a.closed {
		a.mu.Unlock()
		return fmt.Errorf("shm: arena %s: %w", a.id, ErrClosed)
	}
	a.users++
	fd := a.fd
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.users--
		end := a.settle()
		a.mu.Unlock()
		end()
	}()
	return f(fd)
}

// Close refuses further loans and leases and fails those that wait. Published
// slots are gone. The memory is unmapped at once, or when the last open loan and
// lease end: their bytes stay valid until then. Repeatable.
func (a *Arena) Close() error {
	a.mu.Lock()
	a.closed = true
	for _, w := range a.waiters {
		w.err = ErrClosed
		close(w.ready)
	}
	a.waiters = nil
	for _, s := range a.slots {
		if !s.open {
			s.holds = 0
			a.reuse(s)
		}
	}
	end := a.settle()
	a.mu.Unlock()
	end()
	return nil
}

// find returns the published slot of a handle. Callers hold mu.
func (a *Arena) find(h Handle) (*slot, error) {
	s := a.slots[h.Offset]
	if h.Arena != a.id || s == nil || s.open || s.handle != h {
		return nil, fmt.Errorf("shm: %s in arena %s: %w", h, a.id, arrowio.ErrGone)
	}
	return s, nil
}

// take reserves a slot, or returns nil if none fits now. Callers hold mu.
func (a *Arena) take(bytes int64) *slot {
	reserved := roundUp(bytes, Alignment)
	part := a.space.take(reserved)
	if part == 0 {
		return nil
	}
	s := a.spareSlot()
	a.next++
	offset := a.space.parts[part].offset
	*s = slot{
		handle: Handle{Arena: a.id, Offset: offset, Length: bytes, Generation: a.next},
		part:   part, reserved: reserved, holds: 1, open: true,
	}
	a.slots[offset] = s
	a.stats.Slots++
	a.stats.Loans++
	a.stats.Used += reserved
	a.stats.HighWater = max(a.stats.HighWater, a.stats.Used)
	return s
}

// spareSlot is one to be filled. Callers hold mu.
func (a *Arena) spareSlot() *slot {
	s := a.spareSlots
	if s == nil {
		return &slot{}
	}
	a.spareSlots = s.next
	return s
}

// publish ends the writing of a slot. Callers hold mu.
func (a *Arena) publish(s *slot) Handle {
	h := s.handle
	s.open = false
	a.stats.Loans--
	a.stats.Published++
	if a.closed { // while it was being written: nobody can lease it any more
		s.holds = 0
		a.reuse(s)
	}
	return h
}

// trim gives back what a slot has beyond bytes. Callers hold mu.
func (a *Arena) trim(s *slot, bytes int64) {
	if n := roundUp(bytes, Alignment); n < s.reserved && a.space.resize(s.part, n) {
		a.stats.Used -= s.reserved - n
		s.reserved = n
		a.serve()
	}
}

// discard undoes take. Callers hold mu.
func (a *Arena) discard(s *slot) {
	s.open, s.holds = false, 0
	a.stats.Loans--
	a.reuse(s)
}

// reuse frees the slot if nobody holds it. Callers hold mu and do not use the
// slot after it.
func (a *Arena) reuse(s *slot) {
	if s.open || s.holds > 0 || s.leases > 0 || s.pinned {
		return
	}
	delete(a.slots, s.handle.Offset)
	a.stats.Slots--
	a.stats.Used -= s.reserved
	if a.oneShot {
		a.closed = true
		return
	}
	if a.peer != nil {
		a.peer.free(s.handle.Offset)
	} else {
		a.space.give(s.part)
	}
	s.next = a.spareSlots
	a.spareSlots = s
	a.serve()
}

// serve gives memory to those who wait, strictly in order: a large loan would
// never come about if smaller ones overtook it. Callers hold mu.
func (a *Arena) serve() {
	for len(a.waiters) > 0 && !a.closed {
		w := a.waiters[0]
		if w.slot = a.take(w.bytes); w.slot == nil {
			return
		}
		a.waiters = a.waiters[1:]
		close(w.ready)
	}
}

// copied counts body bytes that were copied into the arena.
func (a *Arena) copied(bytes int64) {
	a.mu.Lock()
	a.stats.CopiedBytes += uint64(bytes)
	a.mu.Unlock()
}

// settle unmaps a closed arena that nothing holds any more. It returns what is
// to be done after mu is unlocked. Callers hold mu.
func (a *Arena) settle() func() {
	if !a.closed || a.ended || len(a.slots) > 0 || a.users > 0 {
		return func() {}
	}
	a.ended = true
	unmap(a.writable)
	unmap(a.readable)
	closeFD(a.fd)
	a.writable, a.readable, a.fd = nil, nil, -1
	a.stats.Arenas, a.stats.Capacity = 0, 0
	after := a.onEnd
	a.onEnd = nil
	return func() {
		for _, f := range after {
			f()
		}
	}
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
