package handoff

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
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
// Messages without descriptors are sent and received without allocating.
type Conn struct {
	// SendTimeout bounds each Send; 0: it does not. Set before use.
	SendTimeout time.Duration

	c       *net.UnixConn
	raw     syscall.RawConn
	carries func(Kind) int

	// The system calls are made directly: net's own allocate an address for every
	// message. The functions are made once, since a closure per call would be on
	// the heap too.
	buf, oob []byte
	in       transfer
	recv     func(fd uintptr) bool

	mu   sync.Mutex
	out  []byte
	to   transfer
	send func(fd uintptr) bool
	try  func(fd uintptr)
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

// call reports false if the call would have to wait.
func (t *transfer) call(trap, fd, flags uintptr) bool {
	for {
		n, _, errno := unix.Syscall(trap, fd, uintptr(unsafe.Pointer(&t.msg)), flags|unix.MSG_DONTWAIT)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			t.err = errFull
			return false
		case 0:
			t.n, t.err = int(n), nil
		default:
			t.n, t.err = 0, errno
		}
		return true
	}
}

// NewConn makes a connection of a socket's file, which stays the caller's to
// close. carries says how many descriptors, at most 1, a message of a kind
// carries.
func NewConn(f *os.File, carries func(Kind) int) (*Conn, error) {
	c, err := net.FileConn(f) // has its own descriptor
	if err != nil {
		return nil, fmt.Errorf("handoff: socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("handoff: descriptor %d is not a Unix socket", f.Fd())
	}
	return newConn(u, carries)
}

// newConn takes over u, also on error.
func newConn(u *net.UnixConn, carries func(Kind) int) (*Conn, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		_ = u.Close()
		return nil, fmt.Errorf("handoff: socket: %w", err)
	}
	c := &Conn{c: u, raw: raw, carries: carries, buf: make([]byte, MaxPacket+1), oob: make([]byte, unix.CmsgSpace(4*maxFDs))}
	c.recv = func(fd uintptr) bool {
		c.in.set(c.buf, c.oob)
		return c.in.call(unix.SYS_RECVMSG, fd, unix.MSG_CMSG_CLOEXEC)
	}
	c.send = func(fd uintptr) bool { return c.to.call(unix.SYS_SENDMSG, fd, unix.MSG_NOSIGNAL) }
	c.try = func(fd uintptr) { c.send(fd) }
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
	if err := c.trySend(k, job, payload, fds); !errors.Is(err, errFull) {
		return err
	}
	if c.SendTimeout > 0 {
		if err := c.c.SetWriteDeadline(time.Now().Add(c.SendTimeout)); err != nil {
			return fmt.Errorf("handoff: send: %w", err)
		}
	}
	if err := c.raw.Write(c.send); err != nil {
		return fmt.Errorf("handoff: send: %w", err)
	}
	if c.to.err != nil {
		return fmt.Errorf("handoff: send: %w", c.to.err)
	}
	return nil
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
	if err := c.raw.Control(c.try); err != nil {
		return fmt.Errorf("handoff: send: %w", err)
	}
	if err := c.to.err; err != nil && !errors.Is(err, errFull) {
		return fmt.Errorf("handoff: send: %w", err)
	}
	return c.to.err
}

// SetReceiveDeadline ends Receive with os.ErrDeadlineExceeded at t.
func (c *Conn) SetReceiveDeadline(t time.Time) { _ = c.c.SetReadDeadline(t) }

// Receive returns the next message; its payload is good until the next call.
// io.EOF: the peer is gone. Descriptors that came with a bad message are closed.
func (c *Conn) Receive() (Packet, error) {
	if err := c.raw.Read(c.recv); err != nil {
		return Packet{}, err
	}
	if errors.Is(c.in.err, unix.ECONNRESET) {
		// The peer has closed without reading everything. That is said once, before
		// what it sent last, which may be why.
		if err := c.raw.Read(c.recv); err != nil {
			return Packet{}, err
		}
	}
	if errors.Is(c.in.err, unix.ECONNRESET) {
		return Packet{}, io.EOF
	}
	if c.in.err != nil {
		return Packet{}, fmt.Errorf("handoff: receive: %w", c.in.err)
	}
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
	_ = c.c.SetReadDeadline(time.Time{})
	_ = c.raw.Read(func(fd uintptr) bool { return hungUp(int(fd)) })
}

// unread reports whether something has come that was not received yet.
func (c *Conn) unread() bool { return c.events(unix.POLLIN)&unix.POLLIN != 0 }

func (c *Conn) events(want int16) (got int16) {
	_ = c.raw.Control(func(fd uintptr) { got = polled(int(fd), want) }) // closed: no events
	return got
}

// Close ends the connection; what was not sent by then is of no use to anyone.
func (c *Conn) Close() { _ = c.c.Close() }

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
