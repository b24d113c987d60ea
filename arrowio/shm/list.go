package shm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Arenas returns the arenas that live now, in no certain order.
func (h *Host) Arenas() []*Arena { return h.all() }

// Inode is the number of the arena's memfd, by which the descriptors and mappings
// that processes have of it are recognised. The error wraps ErrClosed.
func (a *Arena) Inode() (uint64, error) {
	var st unix.Stat_t
	err := a.WithFD(func(fd int) error { return unix.Fstat(fd, &st) })
	if err != nil {
		return 0, fmt.Errorf("shm: inode of arena %s: %w", a.id, err)
	}
	return st.Ino, nil
}
