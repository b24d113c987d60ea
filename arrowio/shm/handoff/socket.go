package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errWoken means: nothing has come, but somebody wants the receiver to look up.
var errWoken = errors.New("handoff: woken")

// socket is a connected socket on which this process waits in the kernel, not in
// Go's poller. A message then wakes one thread, which goes on with it at once,
// instead of the poller's thread, which finds a goroutine, for which it finds a
// thread, often on another CPU: that is the better part of what a hand-over takes.
// (Nor may the poller know the socket: it is told of each message, whoever waits.)
// The price is a thread for as long as somebody waits.
//
// A process with a single processor (GOMAXPROCS=1) waits in Go's poller all the
// same. There a thread that waits in the kernel keeps everything else from running
// until the scheduler has noticed it, which takes more than 20 us each time, and
// the poller's thread is the one that goes on.
type socket struct {
	mu       sync.RWMutex // read-locked while the descriptors are used
	closing  atomic.Bool
	closed   bool
	fd, bell int // bell: an eventfd that wakes the receiver; -1 with a file

	// Of the receiver; here, so that waiting allocates nothing.
	fds   [2]unix.PollFd
	limit unix.Timespec

	// In Go's poller only. The file owns fd.
	file  *os.File
	raw   syscall.RawConn
	rung  atomic.Bool
	want  int16                 // what the receiver waits for
	ready func(fd uintptr) bool // whether it is there
}

// newSocket makes a socket of one that stays the caller's. poller: it is waited on
// in Go's poller.
func newSocket(from syscall.Conn, poller bool) (*socket, error) {
	raw, err := from.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("handoff: socket: %w", err)
	}
	s := &socket{fd: -1, bell: -1}
	var inner error
	err = raw.Control(func(old uintptr) {
		var domain int
		if domain, inner = unix.GetsockoptInt(int(old), unix.SOL_SOCKET, unix.SO_DOMAIN); inner == nil && domain != unix.AF_UNIX {
			inner = fmt.Errorf("descriptor %d is not a Unix socket", old)
		}
		if inner == nil {
			s.fd, inner = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
		}
	})
	switch err = errors.Join(err, inner); {
	case err != nil:
	case poller:
		err = s.enter()
	default:
		s.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("handoff: socket: %w", err)
	}
	return s, nil
}

// enter gives the descriptor to Go's poller.
func (s *socket) enter() (err error) {
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return err
	}
	s.file = os.NewFile(uintptr(s.fd), "handoff")
	s.ready = func(fd uintptr) bool { return polled(int(fd), s.want) != 0 }
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return err
	}
	return s.file.SetReadDeadline(time.Time{}) // an error if the poller does not take it
}

// use calls f with the descriptor, which stays open meanwhile.
func (s *socket) use(f func(fd int)) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return net.ErrClosed
	}
	f(s.fd)
	return nil
}

// wait waits until one of the events, or the end of the connection, for at most
// limit (0: for ever). One goroutine at a time. errWoken: ring was called, maybe
// before; os.ErrDeadlineExceeded: nothing came; net.ErrClosed.
func (s *socket) wait(events int16, limit time.Duration) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closing.Load() {
		return net.ErrClosed
	}
	if s.file != nil {
		return s.park(events, limit)
	}
	s.fds = [...]unix.PollFd{{Fd: int32(s.fd), Events: events}, {Fd: int32(s.bell), Events: unix.POLLIN}}
	var timeout *unix.Timespec
	if limit > 0 {
		s.limit = unix.NsecToTimespec(int64(limit))
		timeout = &s.limit
	}
	n, _, errno := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&s.fds[0])), uintptr(len(s.fds)), uintptr(unsafe.Pointer(timeout)), 0, 0, 0)
	switch {
	case s.closing.Load():
		return net.ErrClosed
	case errno == unix.EINTR:
		return errWoken // the caller begins anew
	case errno != 0:
		return fmt.Errorf("handoff: wait: %w", errno)
	case n == 0:
		return os.ErrDeadlineExceeded
	case s.fds[1].Revents != 0:
		var count [8]byte
		_, _ = unix.Read(s.bell, count[:]) // resets it
		return errWoken
	}
	return nil
}

// park is wait in Go's poller.
func (s *socket) park(events int16, limit time.Duration) error {
	var until time.Time
	if limit > 0 {
		until = time.Now().Add(limit)
	}
	err := s.file.SetReadDeadline(until)
	// Looked at after the deadline is set: a pull from now on cuts that short.
	if s.rung.Swap(false) {
		return errWoken
	}
	if err == nil {
		s.want = events
		err = s.raw.Read(s.ready)
	}
	switch {
	case s.closing.Load():
		return net.ErrClosed
	case s.rung.Swap(false):
		return errWoken
	case errors.Is(err, os.ErrDeadlineExceeded) && (limit <= 0 || time.Until(until) > 0):
		return errWoken // by a pull that an earlier wait has seen
	case errors.Is(err, os.ErrDeadlineExceeded):
		return os.ErrDeadlineExceeded
	case err != nil:
		return fmt.Errorf("handoff: wait: %w", err)
	}
	return nil
}

// ring makes wait return errWoken, now or as soon as it is called.
func (s *socket) ring() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.closed {
		s.pull()
	}
}

func (s *socket) pull() {
	if s.file != nil {
		s.rung.Store(true)
		_ = s.file.SetReadDeadline(time.Unix(1, 0)) // long over
		return
	}
	one := [8]byte{1}
	_, _ = unix.Write(s.bell, one[:]) // full after 2^64-2 pulls, and then it rings
}

// close ends the connection and every wait, and returns when nobody uses the
// descriptors any more. Repeatable.
func (s *socket) close() {
	if s.closing.Swap(true) {
		return
	}
	if s.bell >= 0 || s.file != nil {
		_ = unix.Shutdown(s.fd, unix.SHUT_RDWR) // wakes who waits to send; the peer may have gone
		s.pull()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.file != nil {
		_ = s.file.Close() // nothing to lose
		return
	}
	for _, fd := range []int{s.fd, s.bell} {
		if fd >= 0 {
			_ = unix.Close(fd) // nothing to lose
		}
	}
}

// polled returns the events that are there now; none of a closed socket.
func (s *socket) polled(want int16) (got int16) {
	_ = s.use(func(fd int) { got = polled(fd, want) })
	return got
}

// shutdownWrite says end of file to the peer while its own end of file can still
// be seen.
func (s *socket) shutdownWrite() {
	_ = s.use(func(fd int) { _ = unix.Shutdown(fd, unix.SHUT_WR) }) // gone: as well
}
