package handoff

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxFDs is how many descriptors fit in the space given for them. No message
// carries more than one; the rest of the space is there to tell too many from a
// full descriptor table.
const maxFDs = 4

// Conn is one end of the socket. Sends may be concurrent; there is one receiver.
type Conn struct {
	// SendTimeout bounds each Send; 0: it does not. Set before use.
	SendTimeout time.Duration

	c       *net.UnixConn
	carries func(Kind) int
	mu      sync.Mutex
	buf     []byte
	oob     []byte
	out     []byte
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
	return newConn(u, carries), nil
}

func newConn(u *net.UnixConn, carries func(Kind) int) *Conn {
	return &Conn{c: u, carries: carries, buf: make([]byte, MaxPacket+1), oob: make([]byte, unix.CmsgSpace(4*maxFDs))}
}

// Pair returns the two ends of a new connection, close-on-exec.
func Pair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("handoff: socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "handoff"), os.NewFile(uintptr(fds[1]), "handoff-peer"), nil
}

// Send sends one message, with duplicates of fds, which stay the caller's.
func (c *Conn) Send(k Kind, job uint32, payload []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.out, err = Append(c.out[:0], k, job, payload); err != nil {
		return err
	}
	if c.SendTimeout > 0 {
		if err := c.c.SetWriteDeadline(time.Now().Add(c.SendTimeout)); err != nil {
			return fmt.Errorf("handoff: send: %w", err)
		}
	}
	if _, _, err := c.c.WriteMsgUnix(c.out, oob, nil); err != nil {
		return fmt.Errorf("handoff: send: %w", err)
	}
	return nil
}

// SetReceiveDeadline ends Receive with os.ErrDeadlineExceeded at t.
func (c *Conn) SetReceiveDeadline(t time.Time) { _ = c.c.SetReadDeadline(t) }

// Receive returns the next message; its payload is good until the next call.
// io.EOF: the peer is gone. Descriptors that came with a bad message are closed.
func (c *Conn) Receive() (Packet, error) {
	n, oobn, flags, _, err := c.c.ReadMsgUnix(c.buf, c.oob)
	fds, fdErr := descriptors(c.oob[:max(oobn, 0)])
	fail := func(err error) (Packet, error) {
		closeAll(fds)
		return Packet{}, err
	}
	switch {
	case errors.Is(err, unix.ECONNRESET):
		return fail(io.EOF)
	case err != nil:
		return fail(err)
	case n == 0 && oobn == 0:
		return fail(io.EOF)
	case flags&unix.MSG_CTRUNC != 0:
		return fail(Violation("descriptors were lost: too many in one message, or this process has no room for more (RLIMIT_NOFILE)"))
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
