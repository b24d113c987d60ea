package worker

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

// conn is one end of the socket. Sends may be concurrent; there is one receiver.
type conn struct {
	c       *net.UnixConn
	mu      sync.Mutex
	timeout time.Duration // of a send; 0: none
	buf     []byte
	oob     []byte
}

func newConn(f *os.File) (*conn, error) {
	c, err := net.FileConn(f) // has its own descriptor
	if err != nil {
		return nil, fmt.Errorf("worker: socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("worker: descriptor %d is not a Unix socket", f.Fd())
	}
	return &conn{c: u, buf: make([]byte, maxPacket+1), oob: make([]byte, unix.CmsgSpace(4*maxFDs))}, nil
}

// socketPair returns the host's end and the child's.
func socketPair() (host, child *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("worker: socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "worker-host"), os.NewFile(uintptr(fds[1]), "worker-child"), nil
}

func (c *conn) send(k kind, job uint32, payload []byte, fds ...int) error {
	b, err := encodePacket(k, job, payload)
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timeout > 0 {
		if err := c.c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
			return fmt.Errorf("worker: send: %w", err)
		}
	}
	if _, _, err := c.c.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("worker: send: %w", err)
	}
	return nil
}

// receive returns the next message; its payload is good until the next call.
// io.EOF: the peer is gone. Descriptors that came with a bad message are closed.
func (c *conn) receive() (packet, error) {
	n, oobn, flags, _, err := c.c.ReadMsgUnix(c.buf, c.oob)
	fds, fdErr := descriptors(c.oob[:max(oobn, 0)])
	fail := func(err error) (packet, error) {
		closeAll(fds)
		return packet{}, err
	}
	switch {
	case errors.Is(err, unix.ECONNRESET):
		return fail(io.EOF)
	case err != nil:
		return fail(err)
	case n == 0 && oobn == 0:
		return fail(io.EOF)
	case flags&unix.MSG_CTRUNC != 0:
		return fail(violation("descriptors were lost: too many in one message, or this process has no room for more (RLIMIT_NOFILE)"))
	case flags&unix.MSG_TRUNC != 0 || n > maxPacket:
		return fail(violation("message larger than %d bytes", maxPacket))
	case fdErr != nil:
		return fail(violation("control data: %v", fdErr))
	}
	p, err := decodePacket(c.buf[:n])
	if err != nil {
		return fail(err)
	}
	want := 0
	if p.kind == kindOutput || p.kind == kindArena {
		want = 1
	}
	if len(fds) != want {
		return fail(violation("message of kind %d with %d descriptors, want %d", p.kind, len(fds), want))
	}
	p.fds = fds
	return p, nil
}

// close ends the connection; what was not sent by then is of no use to anyone.
func (c *conn) close() { _ = c.c.Close() }

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
