package shm

import (
	"errors"
	"fmt"
)

var (
	// ErrTooLarge means: more bytes than the arena has. Waiting cannot help.
	ErrTooLarge = errors.New("larger than the arena")
	// ErrNoMemory means: the machine does not have the memory to reserve.
	ErrNoMemory = errors.New("not enough shared memory")
	// ErrQuota means: the host's limit of bytes over all its arenas is reached.
	ErrQuota = errors.New("over the host's quota of shared memory")
	// ErrClosed means: the arena or host is closed.
	ErrClosed = errors.New("arena closed")
	// ErrReadOnly means: the arena was adopted; nothing can be loaned from it.
	ErrReadOnly = errors.New("arena is read-only")
	// ErrSeals means: a descriptor from elsewhere is not the sealed memfd that was asked
	// for. It was not mapped.
	ErrSeals = errors.New("not a sealed memfd of the stated size")
	// ErrEnded means: the build was published or cancelled before.
	ErrEnded = errors.New("build has ended")
)

// LimitError says which limit was reached, in bytes.
type LimitError struct {
	What  string // "loan", "arena", ...
	Asked int64
	Used  int64 // of Limit, at that moment
	Limit int64
	Err   error // wraps ErrTooLarge, ErrQuota or ErrNoMemory
}

func (e *LimitError) Error() string {
	s := fmt.Sprintf("shm: %s of %d bytes: %v", e.What, e.Asked, e.Err)
	if e.Limit > 0 {
		s += fmt.Sprintf(" (%d of %d bytes in use)", e.Used, e.Limit)
	}
	return s
}

func (e *LimitError) Unwrap() error { return e.Err }
