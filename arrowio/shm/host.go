package shm

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/stokehold/stokehold/arrowio"
)

// Host is the set of arenas that live in this process, by id: what a shm:// URI
// is resolved against. The zero value is an empty host without a limit. Safe for
// concurrent use.
type Host struct {
	// Limit is the most bytes that its arenas may have together, adopted ones
	// included; 0 means no limit. It is set before the host is used.
	Limit int64

	mu     sync.Mutex
	arenas map[string]*Arena
	closed bool
	bytes  int64 // of arenas, and of those being made
	past   Stats // totals of arenas that ended
}

// New makes an arena and makes it known, within Limit: of an arena that is
// refused for it (ErrQuota) no memory is taken. Other errors are those of the
// function New and of Add.
func (h *Host) New(cfg Config) (*Arena, error) {
	size := max(roundUp(cfg.Bytes, pageSize()), 0)
	h.mu.Lock()
	err := h.charge("arena", size) // two at once must not pass together
	h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	a, err := New(cfg)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bytes -= size
	if err != nil {
		return nil, err
	}
	if err := h.add(a); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// charge counts size bytes towards Limit. Callers hold mu.
func (h *Host) charge(what string, size int64) error {
	if h.Limit > 0 && size > h.Limit-h.bytes {
		return &LimitError{What: what, Asked: size, Used: h.bytes, Limit: h.Limit, Err: ErrQuota}
	}
	h.bytes += size
	return nil
}

// Add makes an arena known until it ends; Close closes it. The error wraps
// ErrClosed if the host, or the arena already, is closed, and ErrQuota if it would
// exceed Limit; the arena stays the caller's then.
func (h *Host) Add(a *Arena) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.add(a)
}

func (h *Host) add(a *Arena) error {
	if h.closed {
		return fmt.Errorf("shm: add arena %s: %w", a.id, ErrClosed)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return fmt.Errorf("shm: add arena %s: %w", a.id, ErrClosed)
	}
	if h.arenas == nil {
		h.arenas = map[string]*Arena{}
	}
	if h.arenas[a.id] == a {
		return nil
	}
	if err := h.charge("arena", a.size); err != nil {
		return err
	}
	h.arenas[a.id] = a
	a.onEnd = append(a.onEnd, func() { h.forget(a) })
	return nil
}

func (h *Host) forget(a *Arena) {
	s := a.Stats()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.arenas, a.id)
	h.bytes -= a.size
	s.HighWater, s.HugePages = 0, ""
	h.past.add(s)
}

// Arena returns the arena of that id.
func (h *Host) Arena(id string) (*Arena, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a, ok := h.arenas[id]
	return a, ok
}

// Open leases the slot that a shm:// URI names. The error wraps arrowio.ErrURI
// if it is not one, and arrowio.ErrGone if the slot is gone or its arena is not
// in this process (any more): another location of the batch may serve.
func (h *Host) Open(uri, owner string) (*Lease, error) {
	handle, err := arrowio.ParseSharedURI(uri)
	if err != nil {
		return nil, err
	}
	a, ok := h.Arena(handle.Arena)
	if !ok {
		return nil, fmt.Errorf("shm: open %s: %w: no such arena in this process", uri, arrowio.ErrGone)
	}
	return a.Lease(handle, owner)
}

// Drop gives up the publisher's hold on the slot that a shm:// URI names. The
// errors are those of Open.
func (h *Host) Drop(uri string) error {
	handle, err := arrowio.ParseSharedURI(uri)
	if err != nil {
		return err
	}
	a, ok := h.Arena(handle.Arena)
	if !ok {
		return fmt.Errorf("shm: drop %s: %w: no such arena in this process", uri, arrowio.ErrGone)
	}
	return a.Drop(handle)
}

// Locate leases the slot that p lies in, on behalf of owner; ok is false if it
// lies in no slot that can be leased. Together with arrowio.SameMemory and
// Arena.Keep it publishes again, without a copy, what was published before.
func (h *Host) Locate(p []byte, owner string) (lease Lease, ok bool) {
	for _, a := range h.all() {
		if lease, ok := a.locate(p, owner); ok {
			return lease, true
		}
	}
	return Lease{}, false
}

func (a *Arena) locate(p []byte, owner string) (Lease, bool) {
	a.mu.Lock()
	at := int64(-1)
	for _, m := range [][]byte{a.readable, a.writable} {
		if within(m, p) {
			at = int64(uintptr(unsafe.Pointer(unsafe.SliceData(p))) - uintptr(unsafe.Pointer(unsafe.SliceData(m))))
		}
	}
	var found Handle
	for _, s := range a.slots {
		if h := s.handle; at >= h.Offset && at < h.Offset+h.Length && !s.open {
			found = h
		}
	}
	a.mu.Unlock()
	if found.Length == 0 {
		return Lease{}, false
	}
	l, err := a.Hold(found, owner)
	return l, err == nil
}

// ReclaimOwner ends all leases of an owner in all arenas and returns their
// number. See Arena.ReclaimOwner.
func (h *Host) ReclaimOwner(owner string) int {
	n := 0
	for _, a := range h.all() {
		n += a.ReclaimOwner(owner)
	}
	return n
}

// Stats is the sum over the arenas; totals include arenas that have ended.
func (h *Host) Stats() Stats {
	all := h.all()
	h.mu.Lock()
	sum := h.past
	h.mu.Unlock()
	for _, a := range all {
		sum.add(a.Stats())
	}
	return sum
}

// Close closes all arenas. Repeatable.
func (h *Host) Close() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	for _, a := range h.all() {
		if err := a.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) all() []*Arena {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*Arena, 0, len(h.arenas))
	for _, a := range h.arenas {
		all = append(all, a)
	}
	return all
}

// Contains reports whether p lies in the arena's memory; for tests that prove
// that nothing was copied.
func (a *Arena) Contains(p []byte) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return within(a.readable, p) || within(a.writable, p)
}

func within(region, p []byte) bool {
	if len(region) == 0 || len(p) == 0 {
		return false
	}
	low, at := uintptr(unsafe.Pointer(unsafe.SliceData(region))), uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	return at >= low && at-low+uintptr(len(p)) <= uintptr(len(region))
}
