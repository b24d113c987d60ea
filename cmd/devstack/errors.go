package devstack

import (
	"errors"
	"fmt"
)

// Sentinels for errors.Is. The typed errors below carry the details.
var (
	// ErrPortInUse: another program listens on a port that the stack was to use.
	ErrPortInUse = errors.New("devstack: port in use")
	// ErrLocked: another live process uses the state directory.
	ErrLocked = errors.New("devstack: state directory is in use")
	// ErrState: the state directory can't be created, read or written.
	ErrState = errors.New("devstack: state directory unusable")
	// ErrS3Running: a stack of this process already runs an S3 gateway, and there can be only one in a process.
	ErrS3Running = errors.New("devstack: an S3 gateway already runs in this process: close the other stack first or set WithoutS3")
	// ErrNotRunning: no live stack has the state directory open.
	ErrNotRunning = errors.New("devstack: no stack runs on the state directory")
	// ErrClosed: the stack was closed.
	ErrClosed = errors.New("devstack: closed")
)

// PortError names the port that could not be bound. It is an ErrPortInUse.
type PortError struct {
	Service string // "NATS", "Temporal", "Temporal UI" or "S3"
	Port    int
	Err     error
}

func (e *PortError) Error() string {
	return fmt.Sprintf("port %d (%s) on 127.0.0.1 is in use: stop the program that listens there or choose another port",
		e.Port, e.Service)
}

// Unwrap gives ErrPortInUse and the operating system's error.
func (e *PortError) Unwrap() []error { return []error{ErrPortInUse, e.Err} }

// LockedError names the process that holds the state directory. It is an ErrLocked.
type LockedError struct {
	Dir string
	PID int // 0 where it is unknown
}

func (e *LockedError) Error() string {
	holder := "another process"
	if e.PID > 0 {
		holder = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("state directory %s is in use by %s: stop it or choose another directory", e.Dir, holder)
}

// Unwrap gives ErrLocked.
func (e *LockedError) Unwrap() error { return ErrLocked }

// StateError names what could not be done in the state directory. It is an ErrState.
type StateError struct {
	Op   string // "create", "write", "read"
	Path string
	Err  error
}

func (e *StateError) Error() string {
	return fmt.Sprintf("cannot %s %s: %v: choose a state directory that you may write to", e.Op, e.Path, reason(e.Err))
}

// Unwrap gives ErrState and the operating system's error.
func (e *StateError) Unwrap() []error { return []error{ErrState, e.Err} }

// reason drops the operation and path that package os repeats.
func reason(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
