package shm

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
)

// Adopt takes over a memfd that another process filled and sealed, as an arena
// with one published slot of its first length bytes, without a copy. It is
// verified before it is mapped: a memfd of exactly size bytes, all allocated,
// under F_SEAL_WRITE, F_SEAL_SHRINK and F_SEAL_GROW, so that nobody can change
// or truncate it any more. The arena ends (unmapped, closed, forgotten by its
// Host) when the slot is dropped and the last lease released.
//
// fd passes to the arena on success and is the caller's still on error. The
// error wraps ErrSeals. What the bytes are is not checked: decode them without
// arrowio.Trusted.
func Adopt(fd int, size, length int64) (*Arena, Handle, error) {
	if length <= 0 || length > size {
		return nil, Handle{}, fmt.Errorf("shm: adopt: %w: slot of %d bytes in %d", ErrSeals, length, size)
	}
	if err := verify(fd, size, sealedBatch); err != nil {
		return nil, Handle{}, fmt.Errorf("shm: adopt: %w", err)
	}
	readable, err := mapShared(fd, size, unix.PROT_READ, 0)
	if err != nil {
		return nil, Handle{}, fmt.Errorf("shm: adopt %d bytes: %w", size, err)
	}
	unix.CloseOnExec(fd)
	a := newArena(fd, size, readable)
	a.oneShot = true
	a.next = 1
	h := Handle{Arena: a.id, Length: length, Generation: 1}
	a.slots[0] = &slot{handle: h, reserved: size, holds: 1}
	a.stats.Slots, a.stats.Published, a.stats.Used, a.stats.HighWater = 1, 1, size, size
	return a, h, nil
}

// Adopted reports whether the arena came from Adopt.
func (a *Arena) Adopted() bool { return a.oneShot }

// Segment is a memfd being filled by this process for another to Adopt. Not safe
// for concurrent use.
type Segment struct {
	fd   int
	size int64
	data []byte
}

// NewSegment reserves a segment for length bytes. The error wraps ErrNoMemory.
func NewSegment(length int64) (*Segment, error) {
	if length <= 0 {
		return nil, fmt.Errorf("shm: segment of %d bytes: want a size above 0", length)
	}
	size := roundUp(length, pageSize())
	fd, err := memfd("stokehold-batch", 0)
	if err != nil {
		return nil, fmt.Errorf("shm: segment: %w", err)
	}
	if err := allocate(fd, size); err != nil {
		closeFD(fd)
		return nil, fmt.Errorf("shm: segment of %d bytes: %w", size, err)
	}
	// fallocate rounds up to pages but sets the length given, which is whole pages.
	data, err := mapShared(fd, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_POPULATE)
	if err != nil {
		closeFD(fd)
		return nil, fmt.Errorf("shm: segment of %d bytes: %w", size, err)
	}
	return &Segment{fd: fd, size: size, data: data}, nil
}

// Bytes is the memory to fill, page aligned; nil once sealed or closed.
func (s *Segment) Bytes() []byte { return s.data }

// Size is the memfd's size in bytes, a whole number of pages.
func (s *Segment) Size() int64 { return s.size }

// Seal makes the contents immutable for everyone, this process included, and
// returns the descriptor, which stays the segment's.
func (s *Segment) Seal() (fd int, err error) {
	unmap(s.data) // the seal is refused while a writable map exists
	s.data = nil
	if err := addSeals(s.fd, sealedOwn); err != nil {
		return -1, fmt.Errorf("shm: segment: %w", err)
	}
	return s.fd, nil
}

// Close unmaps the segment and closes its descriptor. Who was sent the
// descriptor keeps the memory. Repeatable.
func (s *Segment) Close() {
	unmap(s.data)
	closeFD(s.fd)
	s.data, s.fd = nil, -1
}

// View is another process's arena, mapped here read-only. Leases are the
// owner's business: bytes may be read only while the owner keeps the slot for
// this process. Safe for concurrent use, except Close.
type View struct {
	id   string
	data []byte
}

// OpenView verifies and maps an arena received from its owner; id is what the
// owner calls it. fd may be closed afterwards. The error wraps ErrSeals unless
// the arena is sealed against changes of size and against writable maps.
func OpenView(fd int, id string, size int64) (*View, error) {
	if err := verify(fd, size, sealedSize|unix.F_SEAL_FUTURE_WRITE, sealedBatch); err != nil {
		return nil, fmt.Errorf("shm: view arena %s: %w", id, err)
	}
	data, err := mapShared(fd, size, unix.PROT_READ, 0)
	if err != nil {
		return nil, fmt.Errorf("shm: view arena %s of %d bytes: %w", id, size, err)
	}
	return &View{id: id, data: data}, nil
}

// Bytes is the slot that h names. The error wraps arrowio.ErrGone if it is not
// within this arena.
func (v *View) Bytes(h Handle) ([]byte, error) {
	if h.Arena != v.id || h.Offset < 0 || h.Length <= 0 || h.Offset > int64(len(v.data))-h.Length {
		return nil, fmt.Errorf("shm: %s in arena %s of %d bytes: %w", h, v.id, len(v.data), arrowio.ErrGone)
	}
	return v.data[h.Offset : h.Offset+h.Length : h.Offset+h.Length], nil
}

// Contains reports whether p lies in the mapping; for tests that prove that
// nothing was copied.
func (v *View) Contains(p []byte) bool { return within(v.data, p) }

// Close unmaps the view. Repeatable.
func (v *View) Close() {
	unmap(v.data)
	v.data = nil
}
