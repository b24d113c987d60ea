package handoff

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxFDs is how many descriptors fit in the space given for them. No message
// carries more than one; the rest of the space is there to tell too many from a
// full descriptor table.
const maxFDs = 4

// ErrDescriptors means: a descriptor that came with a message was lost, because
// there were too many or this process may not open another (RLIMIT_NOFILE). It
// comes with ErrProtocol: the connection is over.
var ErrDescriptors = errors.New("descriptors were lost")

// errFull means: the peer has not read what was sent before.
var errFull = errors.New("handoff: the peer does not read")

// Conn is one end of the socket. Sends may be concurrent; there is one receiver.
// Messages without descriptors are sent and received without allocating. A
// connection takes two descriptors and, while it is received from, a thread; one
// descriptor and no thread if it is made while GOMAXPROCS is 1.
type Conn struct {
	// SendTimeout bounds each Send; 0: it does not. Set before use.
	SendTimeout time.Duration

	sock    *socket
	carries func(Kind) int

	// The system calls are made directly: net's own allocate an address for every
	// message. The functions are made once, since a closure per call would be on
	// the heap too.
	deadline atomic.Pointer[time.Time] // of Receive; nil: none
	buf, oob []byte
	in       transfer
	recv     func(fd int)

	mu   sync.Mutex
	out  []byte
	to   transfer
	send func(fd int)
}

// transfer is the arguments and result of sendmsg or recvmsg.
type transfer struct {
	msg unix.Msghdr
	iov unix.Iovec
	n   int
	err error
}

func (t *transfer) set(b, oob []byte) {
	t.msg = unix.Msghdr{Iov: &t.iov}
	t.msg.SetIovlen(1)
	t.iov.Base = unsafe.SliceData(b)
	t.iov.SetLen(len(b))
	if len(oob) > 0 {
		t.msg.Control = unsafe.SliceData(oob)
		t.msg.SetControllen(len(oob))
	}
}

// call makes the system call; errFull: it would have to wait.
func (t *transfer) call(trap uintptr, fd int, flags uintptr) {
	for {
		n, _, errno := unix.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&t.msg)), flags|unix.MSG_DONTWAIT)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			t.err = errFull
		case 0:
			t.n, t.err = int(n), nil
		default:
			t.n, t.err = 0, errno
		}
		return
	}
}

// NewConn makes a connection of a socket's file, which stays the caller's to
// close. carries says how many descriptors, at most 1, a message of a kind
// carries.
func NewConn(f *os.File, carries func(Kind) int) (*Conn, error) { return newConn(f, carries) }

func newConn(from syscall.Conn, carries func(Kind) int) (*Conn, error) {
	return makeConn(from, carries, runtime.GOMAXPROCS(0) == 1)
}

func makeConn(from syscall.Conn, carries func(Kind) int, poller bool) (*Conn, error) {
	sock, err := newSocket(from, poller)
	if err != nil {
		return nil, err
	}
	c := &Conn{sock: sock, carries: carries, buf: make([]byte, MaxPacket+1), oob: make([]byte, unix.CmsgSpace(4*maxFDs))}
	c.recv = func(fd int) {
		c.in.set(c.buf, c.oob)
		c.in.call(unix.SYS_RECVMSG, fd, unix.MSG_CMSG_CLOEXEC)
	}
	c.send = func(fd int) { c.to.call(unix.SYS_SENDMSG, fd, unix.MSG_NOSIGNAL) }
	return c, nil
}

// Pair returns the two ends of a new connection, close-on-exec.
func Pair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("handoff: socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "handoff"), os.NewFile(uintptr(fds[1]), "handoff-peer"), nil
}

// Send sends one message, with duplicates of fds, which stay the caller's. It
// waits while the peer does not read, at most for SendTimeout.
func (c *Conn) Send(k Kind, job uint32, payload []byte, fds ...int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sendWithin(c.SendTimeout, k, job, payload, fds)
}

// sendWithin sends, waiting for at most limit (0: for ever). Callers hold mu.
func (c *Conn) sendWithin(limit time.Duration, k Kind, job uint32, payload []byte, fds []int) error {
	err := c.trySend(k, job, payload, fds)
	if !errors.Is(err, errFull) {
		return err
	}
	begun := time.Now()
	for errors.Is(err, errFull) {
		left := -1
		if limit > 0 {
			left = int(max(limit-time.Since(begun), 0).Milliseconds()) + 1
			if time.Since(begun) >= limit {
				return fmt.Errorf("handoff: send: %w", os.ErrDeadlineExceeded)
			}
		}
		// The end of the connection ends the wait.
		_ = c.sock.use(func(fd int) {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, left)
		})
		err = c.try()
	}
	return err
}

// TrySend is Send without waiting: it reports false, and sends nothing, if the
// peer has not read what was sent before.
func (c *Conn) TrySend(k Kind, job uint32, payload []byte) (bool, error) {
	if !c.mu.TryLock() {
		return false, nil // somebody waits in Send
	}
	defer c.mu.Unlock()
	err := c.trySend(k, job, payload, nil)
	if errors.Is(err, errFull) {
		return false, nil
	}
	return err == nil, err
}

// trySend encodes the message and makes one attempt. Callers hold mu.
func (c *Conn) trySend(k Kind, job uint32, payload []byte, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	var err error
	if c.out, err = Append(c.out[:0], k, job, payload); err != nil {
		return err
	}
	c.to.set(c.out, oob)
	return c.try()
}

// try sends what the transfer has. Callers hold mu.
func (c *Conn) try() error {
	if err := c.sock.use(c.send); err != nil {
		return fmt.Errorf("handoff: send: %w", err)
	}
	if err := c.to.err; err != nil && !errors.Is(err, errFull) {
		return fmt.Errorf("handoff: send: %w", err)
	}
	return c.to.err
}

// SetReceiveDeadline ends Receive with os.ErrDeadlineExceeded at t, also one that
// waits already; the zero time: never.
func (c *Conn) SetReceiveDeadline(t time.Time) {
	if t.IsZero() {
		c.deadline.Store(nil)
	} else {
		c.deadline.Store(&t)
	}
	c.sock.ring()
}

// Receive returns the next message; its payload is good until the next call.
// io.EOF: the peer is gone; net.ErrClosed: this end is closed. Descriptors that
// came with a bad message are closed.
func (c *Conn) Receive() (Packet, error) {
	for {
		limit := time.Duration(0)
		if at := c.deadline.Load(); at != nil {
			if limit = time.Until(*at); limit <= 0 {
				return Packet{}, fmt.Errorf("handoff: receive: %w", os.ErrDeadlineExceeded)
			}
		}
		// At the end of the wait the deadline is looked at again.
		pkt, err := c.receive(limit)
		if !errors.Is(err, errWoken) && !errors.Is(err, os.ErrDeadlineExceeded) {
			return pkt, err
		}
	}
}

// receive waits for at most limit (0: for ever) for the next message. errWoken:
// it was to look up; os.ErrDeadlineExceeded: nothing came.
func (c *Conn) receive(limit time.Duration) (Packet, error) {
	if err := c.sock.wait(unix.POLLIN, limit); err != nil {
		return Packet{}, err
	}
	if err := c.sock.use(c.recv); err != nil {
		return Packet{}, err
	}
	if errors.Is(c.in.err, unix.ECONNRESET) {
		// The peer has closed without reading everything. That is said once, before
		// what it sent last, which may be why.
		if err := c.sock.use(c.recv); err != nil {
			return Packet{}, err
		}
	}
	switch {
	case errors.Is(c.in.err, errFull):
		return Packet{}, errWoken
	case errors.Is(c.in.err, unix.ECONNRESET):
		return Packet{}, io.EOF
	case c.in.err != nil:
		return Packet{}, fmt.Errorf("handoff: receive: %w", c.in.err)
	}
	return c.received()
}

// received makes a message of what recvmsg gave.
func (c *Conn) received() (Packet, error) {
	n, flags := c.in.n, int(c.in.msg.Flags)
	oobn := int(c.in.msg.Controllen)
	if n == 0 && oobn == 0 {
		return Packet{}, io.EOF
	}
	fds, fdErr := descriptors(c.oob[:min(max(oobn, 0), len(c.oob))])
	fail := func(err error) (Packet, error) {
		closeAll(fds)
		return Packet{}, err
	}
	switch {
	case flags&unix.MSG_CTRUNC != 0:
		return fail(Violation("%w: too many in one message, or this process has no room for more (RLIMIT_NOFILE)", ErrDescriptors))
	case flags&unix.MSG_TRUNC != 0 || n > MaxPacket:
		return fail(Violation("message larger than %d bytes", MaxPacket))
	case fdErr != nil:
		return fail(Violation("control data: %v", fdErr))
	}
	p, err := Decode(c.buf[:n])
	if err != nil {
		return fail(err)
	}
	if want := c.carries(p.Kind); len(fds) != want {
		return fail(Violation("message of kind %d with %d descriptors, want %d", p.Kind, len(fds), want))
	}
	p.FDs = fds
	return p, nil
}

// awaitHangUp waits until the peer has closed its end, or this end is closed. What
// comes meanwhile is left unread.
func (c *Conn) awaitHangUp() {
	for {
		switch err := c.sock.wait(unix.POLLRDHUP, 0); {
		case errors.Is(err, errWoken):
		case err != nil, c.sock.polled(unix.POLLRDHUP)&(unix.POLLHUP|unix.POLLRDHUP) != 0:
			return
		}
	}
}

// unread reports whether something has come that was not received yet.
func (c *Conn) unread() bool { return c.sock.polled(unix.POLLIN)&unix.POLLIN != 0 }

// Close ends the connection; what was not sent by then is of no use to anyone.
// Repeatable.
func (c *Conn) Close() { c.sock.close() }

func descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var all []int
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return all, err
		}
		all = append(all, fds...)
	}
	return all, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // received, never written to
	}
}
