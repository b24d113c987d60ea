package tiers

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

const (
	// defaultHotWait is Config.HotWait unless set: the warm copy serves readers almost
	// as well, so a slow reader must not hold up a writer for long.
	defaultHotWait = 20 * time.Millisecond
	// maxAdopted bounds the segments of other processes that are kept: each costs
	// a descriptor and memory that is not the arena's.
	maxAdopted = 256
	// adoptedBytes bounds their sum where there is no arena to compare with.
	adoptedBytes = 256 << 20
	// maxEvictions bounds how many slots one loan may push out.
	maxEvictions = 1024
)

// leaseOwner names the leases of batches read in this process.
const leaseOwner = "store"

// hot is the batches that this process keeps in shared memory, oldest first. It
// holds each slot as its publisher until it needs the room: then the oldest slot
// that nobody reads goes first.
type hot struct {
	host   *shm.Host
	arena  *shm.Arena // nil: nothing is written here, segments may still be adopted
	wait   time.Duration
	copies *arrowio.Copies
	passed arrowio.Decoder // of batches that are passed on as they were read

	mu      sync.Mutex
	slots   map[string]*list.Element // of *hotSlot, by batch id
	order   *list.List
	adopted int
	bytes   int64 // of adopted segments
	closed  bool
	fetch   keyed // one copy into the arena at a time, by batch id
	relief  relief
}

type hotSlot struct {
	id     string
	arena  *shm.Arena
	handle shm.Handle
	digest string // SHA-256 of the slot's bytes, if they are those of the warm file
}

// bytes is what the slot keeps from being used otherwise: all of a segment, which
// ends with its slot.
func (s *hotSlot) bytes() int64 {
	if s.arena.Adopted() {
		return s.arena.Size()
	}
	return s.handle.Length
}

func openHot(cfg Config, copies *arrowio.Copies) (*hot, error) {
	h := &hot{
		host: cfg.Host, arena: cfg.Arena, wait: cfg.HotWait, copies: copies,
		slots: map[string]*list.Element{}, order: list.New(),
	}
	if h.wait == 0 {
		h.wait = defaultHotWait
	}
	if h.arena != nil {
		if err := h.host.Add(h.arena); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// loan takes memory of the arena, pushing out old slots for it. Without room in
// time it returns shm's error; nil and no error when there is no arena.
func (h *hot) loan(ctx context.Context, bytes int64, wait time.Duration) (*shm.Loan, error) {
	if h.arena == nil {
		return nil, nil
	}
	ctx, cancel, err := h.room(ctx, bytes, wait)
	if err != nil {
		return nil, err
	}
	defer cancel()
	return h.arena.Loan(ctx, bytes)
}

// room pushes out old slots until bytes fit, as far as that is possible, and
// returns the context under which to take them: it ends after wait (0: with ctx).
func (h *hot) room(ctx context.Context, bytes int64, wait time.Duration) (context.Context, context.CancelFunc, error) {
	if bytes > h.arena.Size() {
		return nil, nil, shm.ErrTooLarge // before pushing out anything in vain
	}
	h.makeRoom(bytes)
	if wait > 0 {
		ctx, cancel := context.WithTimeout(ctx, wait)
		return ctx, cancel, nil
	}
	return ctx, func() {}, nil
}

// makeRoom pushes out old slots until bytes fit, and reports whether they do.
func (h *hot) makeRoom(bytes int64) bool {
	for range maxEvictions {
		if st := h.arena.Stats(); st.Waiting == 0 && bytes+shm.Alignment <= st.LargestFree {
			return true
		}
		if !h.evict() {
			break
		}
	}
	return false
}

// evict drops the oldest slot of the arena that nobody reads, and reports whether
// there was one. Slots being read stay: to drop them would free nothing now.
func (h *hot) evict() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for e := h.order.Front(); e != nil; e = e.Next() {
		if s := e.Value.(*hotSlot); s.arena == h.arena && !s.arena.Leased(s.handle) {
			h.drop(e)
			return true
		}
	}
	return false
}

// add keeps a published slot as the hot copy of a batch, and returns where that is. If
// there is one already the new slot is dropped.
func (h *hot) add(id string, arena *shm.Arena, handle shm.Handle, digest string) shm.Handle {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e, ok := h.slots[id]; ok {
		_ = arena.Drop(handle) // gone already: as wanted
		return e.Value.(*hotSlot).handle
	}
	if h.closed {
		_ = arena.Drop(handle) // as above
		return handle
	}
	slot := &hotSlot{id: id, arena: arena, handle: handle, digest: digest}
	h.slots[id] = h.order.PushBack(slot)
	if arena == h.arena {
		return handle
	}
	h.adopted++
	h.bytes += slot.bytes()
	// Another process's arena is given room again while it still has some: then the
	// memory that it writes next is warm.
	crowded := arena.Shared() && arena.Stats().Used > arena.Size()*3/4
	most := int64(adoptedBytes)
	if h.arena != nil {
		most = max(most, h.arena.Size())
	}
	for e := h.order.Front(); e != nil && (h.adopted > maxAdopted || h.bytes > most || crowded); {
		next := e.Next()
		over := h.adopted > maxAdopted || h.bytes > most
		if s := e.Value.(*hotSlot); s.arena != h.arena && s.id != id && (over || s.arena == arena) {
			h.drop(e)
			crowded = crowded && arena.Stats().Used > arena.Size()*3/4
		}
		e = next
	}
	return handle
}

// drop gives up the publisher's hold. Callers hold mu.
func (h *hot) drop(e *list.Element) {
	s := h.order.Remove(e).(*hotSlot)
	delete(h.slots, s.id)
	if s.arena != h.arena {
		h.adopted--
		h.bytes -= s.bytes()
	}
	_ = s.arena.Drop(s.handle) // gone with its arena: as wanted
}

// remove drops the hot copy of a batch, if there is one.
func (h *hot) remove(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e, ok := h.slots[id]; ok {
		h.drop(e)
	}
}

// lease holds the hot copy of a batch for a reader in this process; nil if there
// is none.
func (h *hot) lease(id string) *shm.Lease {
	l, _ := h.leaseDigest(id)
	return l
}

// leaseDigest is lease, with the SHA-256 of the bytes, "" if they are not those
// of the warm file.
func (h *hot) leaseDigest(id string) (*shm.Lease, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e, ok := h.slots[id]
	if !ok {
		return nil, ""
	}
	s := e.Value.(*hotSlot)
	l, err := s.arena.Lease(s.handle, leaseOwner)
	if err != nil { // the arena was closed under us
		h.drop(e)
		return nil, ""
	}
	return l, s.digest
}

func (h *hot) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for e := h.order.Front(); e != nil; e = h.order.Front() {
		h.drop(e)
	}
}
