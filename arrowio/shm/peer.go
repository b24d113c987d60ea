package shm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrSlot means: another process named a slot of its arena that cannot be one.
var ErrSlot = errors.New("not a free slot of the arena")

// Peer is the giving side of an arena that another process loans from, and whose
// published slots are leased and dropped here like those of an arena of this
// process's own. Safe for concurrent use.
type Peer struct {
	arena   *Arena
	freed   func(token uint64)
	tokens  map[int64]uint64 // by offset; guarded by arena.mu
	retired bool
}

// AdoptArena maps an arena of another process read-only. It is verified before:
// a memfd of exactly size bytes (whole pages), all allocated, sealed against
// changes of size and against new writable maps. The other process keeps the
// writable map that it has: it can alter bytes after they were validated, so
// adopt arenas only of processes trusted as this one is.
//
// The arena gets an id of its own here: a peer cannot take the place of another
// arena. freed is told the token of each slot that nobody holds any more; it is
// called with the arena locked, so it must neither use the arena nor block. The
// arena ends (unmapped, closed, forgotten by its Host) after Retire, when the
// last slot is free; the other process's death changes nothing.
//
// fd passes to the arena on success and is the caller's still on error, which
// wraps ErrSeals unless it is this process that could not map it.
func AdoptArena(fd int, size int64, freed func(token uint64)) (*Peer, error) {
	if size%pageSize() != 0 {
		return nil, fmt.Errorf("shm: adopt arena: %w: %d bytes are not whole pages", ErrSeals, size)
	}
	if err := verify(fd, size, sealedSize|unix.F_SEAL_FUTURE_WRITE); err != nil {
		return nil, fmt.Errorf("shm: adopt arena: %w", err)
	}
	readable, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("shm: adopt arena: map %d bytes: %w", size, err)
	}
	unix.CloseOnExec(fd)
	a := newArena(fd, size, readable)
	a.peer = &Peer{arena: a, freed: freed, tokens: map[int64]uint64{}}
	return a.peer, nil
}

// Arena is the arena, whose slots come by Publish.
func (p *Peer) Arena() *Arena { return p.arena }

// Publish makes a slot that the other process filled known, held by the caller
// until Arena.Drop. What the bytes are is not checked: decode them without
// arrowio.Trusted. The error wraps ErrSlot if the slot does not lie in the arena
// or begins where one is that is not free, and ErrClosed after Retire.
func (p *Peer) Publish(token uint64, offset, length int64) (Handle, error) {
	a := p.arena
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || p.retired {
		return Handle{}, fmt.Errorf("shm: publish in arena %s: %w", a.id, ErrClosed)
	}
	if offset < 0 || length <= 0 || offset%Alignment != 0 || length > a.size || offset > a.size-length {
		return Handle{}, fmt.Errorf("shm: publish %d bytes at %d in arena %s of %d: %w", length, offset, a.id, a.size, ErrSlot)
	}
	if a.slots[offset] != nil {
		return Handle{}, fmt.Errorf("shm: publish %d bytes at %d in arena %s: %w: one begins there", length, offset, a.id, ErrSlot)
	}
	a.next++
	s := a.spareSlot()
	*s = slot{handle: Handle{Arena: a.id, Offset: offset, Length: length, Generation: a.next}, reserved: roundUp(length, Alignment), holds: 1}
	a.slots[offset] = s
	p.tokens[offset] = token
	a.stats.Slots++
	a.stats.Published++
	a.stats.Used += s.reserved
	a.stats.HighWater = max(a.stats.HighWater, a.stats.Used)
	return s.handle, nil
}

// Retire says that no more will be published: the other process is gone. The
// arena ends when its last slot is free. Repeatable.
func (p *Peer) Retire() {
	a := p.arena
	a.mu.Lock()
	p.retired = true
	p.end()
	end := a.settle()
	a.mu.Unlock()
	end()
}

// end closes a retired arena that has no slots. Callers hold arena.mu.
func (p *Peer) end() {
	if p.retired && len(p.arena.slots) == 0 {
		p.arena.closed = true
	}
}

// free gives a slot back that nobody holds. Callers hold arena.mu.
func (p *Peer) free(offset int64) {
	token := p.tokens[offset]
	delete(p.tokens, offset)
	p.end()
	p.freed(token)
}

// Shared reports whether the arena came from AdoptArena.
func (a *Arena) Shared() bool { return a.peer != nil }

// OnEnd has f called once, when the arena has ended and is unmapped; at once if
// it has already.
func (a *Arena) OnEnd(f func()) {
	a.mu.Lock()
	ended := a.ended
	if !ended {
		a.onEnd = append(a.onEnd, f)
	}
	a.mu.Unlock()
	if ended {
		f()
	}
}
