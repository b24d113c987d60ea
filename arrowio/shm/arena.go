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

var (
	// ErrTooLarge means: more bytes than the arena has. Waiting cannot help.
	ErrTooLarge = errors.New("larger than the arena")
	// ErrNoMemory means: the machine does not have the memory to reserve.
	ErrNoMemory = errors.New("not enough shared memory")
	// ErrClosed means: the arena or host is closed.
	ErrClosed = errors.New("arena closed")
	// ErrReadOnly means: the arena was adopted; nothing can be loaned from it.
	ErrReadOnly = errors.New("arena is read-only")
	// ErrSeals means: a descriptor from elsewhere is not the sealed memfd that was asked
	// for. It was not mapped.
	ErrSeals = errors.New("not a sealed memfd of the stated size")
)

// Handle names a published slot. Its URI form is Handle.String.
type Handle = arrowio.SharedURI

// Config configures an Arena.
type Config struct {
	Bytes int64  // capacity, rounded up to whole pages; required
	Name  string // shown in /proc/PID/maps; default "stokehold"
}

// Arena is a region of shared memory that slots are loaned from. Safe for
// concurrent use.
type Arena struct {
	id       string
	size     int64
	writable []byte // nil if adopted
	readable []byte

	mu      sync.Mutex
	fd      int
	users   int // of fd or the mappings, other than slots: WithFD calls
	closed  bool
	ended   bool // unmapped
	oneShot bool // ends with its only slot
	peer    *Peer
	free    extents
	waiters []*waiter
	slots   map[int64]*slot // by offset
	leases  map[string]map[*Lease]struct{}
	next    uint64 // generation
	stats   Stats
	onEnd   []func()
}

type slot struct {
	handle   Handle
	reserved int64
	held     bool // by the publisher, from Loan to Drop
	open     bool // loaned, not yet published
	leases   int
}

type waiter struct {
	bytes int64
	ready chan struct{}
	slot  *slot
	err   error
}

// Stats counts an arena's, or a host's arenas', use. Bytes are of slots as
// reserved (rounded up to Alignment).
type Stats struct {
	Arenas    int   `json:"arenas"`
	Capacity  int64 `json:"capacity"`   // bytes
	Used      int64 `json:"used"`       // bytes
	HighWater int64 `json:"high_water"` // most bytes used at once
	Slots     int   `json:"slots"`      // loaned or published
	Loans     int   `json:"loans"`      // of them loaned
	Leases    int   `json:"leases"`
	Waiting   int   `json:"waiting"` // loans that wait for memory
	// Totals since the arena was made.
	Published   uint64 `json:"published"`
	Leased      uint64 `json:"leased"`
	Released    uint64 `json:"released"`
	Reclaimed   uint64 `json:"reclaimed"`    // by ReclaimOwner
	LeasedBytes uint64 `json:"leased_bytes"` // frames, so bodies and metadata
}

func (s *Stats) add(o Stats) {
	s.Arenas += o.Arenas
	s.Capacity += o.Capacity
	s.Used += o.Used
	s.HighWater += o.HighWater
	s.Slots += o.Slots
	s.Loans += o.Loans
	s.Leases += o.Leases
	s.Waiting += o.Waiting
	s.Published += o.Published
	s.Leased += o.Leased
	s.Released += o.Released
	s.Reclaimed += o.Reclaimed
	s.LeasedBytes += o.LeasedBytes
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
	size := roundUp(cfg.Bytes, pageSize())
	if size <= 0 {
		return nil, fmt.Errorf("shm: arena of %d bytes: %w", cfg.Bytes, ErrNoMemory)
	}
	fd, writable, readable, err := reserve(name, size)
	if err != nil {
		return nil, fmt.Errorf("shm: reserve %d bytes: %w", size, err)
	}
	a := newArena(fd, size, readable)
	a.writable = writable
	a.free = extents{{0, size}}
	return a, nil
}

func newArena(fd int, size int64, readable []byte) *Arena {
	return &Arena{
		id: newID(), fd: fd, size: size, readable: readable,
		slots: map[int64]*slot{}, leases: map[string]map[*Lease]struct{}{},
		stats: Stats{Arenas: 1, Capacity: size},
	}
}

// ID is the arena's id: 128 random bits in hexadecimal.
func (a *Arena) ID() string { return a.id }

// Size is the capacity in bytes.
func (a *Arena) Size() int64 { return a.size }

// Stats returns the current counts.
func (a *Arena) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.stats
	s.Waiting = len(a.waiters)
	return s
}

// Loan takes memory for the caller to write in. When the arena is full it waits,
// in order of arrival, until memory is released or ctx ends. It fails at once
// with ErrTooLarge if the arena could never hold bytes, and with ErrClosed.
func (a *Arena) Loan(ctx context.Context, bytes int64) (*Loan, error) {
	if bytes <= 0 {
		return nil, fmt.Errorf("shm: loan of %d bytes: want a size above 0", bytes)
	}
	if err := ctx.Err(); err != nil {
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
		a.mu.Unlock()
		return nil, fmt.Errorf("shm: loan of %d bytes from arena %s of %d: %w", bytes, a.id, a.size, ErrTooLarge)
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
	return loan.Publish(), nil
}

// Lease holds a published slot for reading on behalf of owner. The error wraps
// arrowio.ErrGone if the handle's slot never was published here, or has been
// dropped, or the arena is closed.
func (a *Arena) Lease(h Handle, owner string) (*Lease, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.find(h)
	if err != nil {
		return nil, err
	}
	if !s.held {
		return nil, fmt.Errorf("shm: lease %s: %w: dropped", h, arrowio.ErrGone)
	}
	l := &Lease{arena: a, slot: s, owner: owner}
	s.leases++
	if a.leases[owner] == nil {
		a.leases[owner] = map[*Lease]struct{}{}
	}
	a.leases[owner][l] = struct{}{}
	a.stats.Leases++
	a.stats.Leased++
	a.stats.LeasedBytes += uint64(h.Length)
	return l, nil
}

// Drop gives up the publisher's own hold on a slot; readers that have leased it
// keep it. Dropping twice is an arrowio.ErrGone.
func (a *Arena) Drop(h Handle) error {
	a.mu.Lock()
	s, err := a.find(h)
	if err == nil && !s.held {
		err = fmt.Errorf("shm: drop %s: %w: dropped before", h, arrowio.ErrGone)
	}
	if err != nil {
		a.mu.Unlock()
		return err
	}
	s.held = false
	a.reuse(s)
	end := a.settle()
	a.mu.Unlock()
	end()
	return nil
}

// ReclaimOwner ends all leases of an owner, which must no longer read through
// them (its process is gone), and returns how many there were.
func (a *Arena) ReclaimOwner(owner string) int {
	a.mu.Lock()
	n := 0
	for l := range a.leases[owner] {
		a.release(l)
		a.stats.Reclaimed++
		n++
	}
	end := a.settle()
	a.mu.Unlock()
	end()
	return n
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
			s.held = false
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
	offset, ok := a.free.take(reserved)
	if !ok {
		return nil
	}
	a.next++
	s := &slot{handle: Handle{Arena: a.id, Offset: offset, Length: bytes, Generation: a.next}, reserved: reserved, held: true, open: true}
	a.slots[offset] = s
	a.stats.Slots++
	a.stats.Loans++
	a.stats.Used += reserved
	a.stats.HighWater = max(a.stats.HighWater, a.stats.Used)
	return s
}

// discard undoes take.
func (a *Arena) discard(s *slot) {
	s.open, s.held = false, false
	a.stats.Loans--
	a.reuse(s)
}

// reuse frees the slot if nobody holds it. Callers hold mu.
func (a *Arena) reuse(s *slot) {
	if s.held || s.leases > 0 || a.slots[s.handle.Offset] != s {
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
		return
	}
	a.free.give(s.handle.Offset, s.reserved)
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

func (a *Arena) release(l *Lease) bool {
	if l.released {
		return false
	}
	l.released = true
	s := l.slot
	if delete(a.leases[l.owner], l); len(a.leases[l.owner]) == 0 {
		delete(a.leases, l.owner)
	}
	s.leases--
	a.stats.Leases--
	a.stats.Released++
	a.reuse(s)
	return true
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
