package handoff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrNotAllowed means: the process at the other end belongs to a user that is not
// on the list.
var ErrNotAllowed = errors.New("peer's user is not allowed")

// soPeerPIDFD is SO_PEERPIDFD (Linux 6.5).
const soPeerPIDFD = 77

// identity is what the kernel says of the process at the other end.
type identity struct {
	pid   int
	uid   uint32
	pidfd int // -1: not to be had; the process then is never killed
}

// identify asks the kernel who connected. The error is the descriptor table being
// full, or the like.
func identify(c *net.UnixConn, wantPIDFD bool) (id identity, err error) {
	id.pidfd = -1
	raw, err := c.SyscallConn()
	if err != nil {
		return id, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			inner = err
			return
		}
		id.pid, id.uid = int(cred.Pid), cred.Uid
		if !wantPIDFD || id.pid <= 0 {
			return
		}
		pidfd, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, soPeerPIDFD)
		if errors.Is(err, unix.ENOPROTOOPT) {
			// Before 6.5 the number could be another process's by now; if so, the other
			// end is most likely closed.
			pidfd, err = unix.PidfdOpen(id.pid, 0)
			if err == nil && hungUp(int(fd)) {
				closeAll([]int{pidfd})
				pidfd, err = -1, unix.ESRCH
			}
		}
		switch {
		case err == nil:
			id.pidfd = pidfd
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
			inner = err
		}
	})
	if err = errors.Join(err, inner); err != nil {
		return id, fmt.Errorf("handoff: who connected: %w", err)
	}
	return id, nil
}

func (id *identity) close() {
	if id.pidfd >= 0 {
		_ = unix.Close(id.pidfd) // nothing to lose
		id.pidfd = -1
	}
}

// dead reports whether the process has ended, as far as is known.
func (id *identity) dead() bool {
	return id.pidfd >= 0 && polled(id.pidfd, unix.POLLIN)&unix.POLLIN != 0
}

// stopped reports whether the process is stopped by a signal; not by a debugger.
func (id *identity) stopped() bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(id.pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, ok := bytes.Cut(b[max(0, bytes.LastIndexByte(b, ')')):], []byte(") ")) // the name may hold anything
	return ok && len(after) > 0 && after[0] == 'T'
}

// kill ends the process, and no other that got its number since.
func (id *identity) kill() error {
	return unix.PidfdSendSignal(id.pidfd, unix.SIGKILL, nil, 0)
}

func hungUp(fd int) bool { return polled(fd, unix.POLLRDHUP)&(unix.POLLHUP|unix.POLLRDHUP) != 0 }

func polled(fd int, events int16) int16 {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		if _, err := unix.Poll(fds, 0); !errors.Is(err, unix.EINTR) {
			return fds[0].Revents
		}
	}
}

// isAllowed looks a user up in a list; an empty one is this process's own.
func isAllowed(uid uint32, list []uint32) bool {
	if len(list) == 0 {
		return uid == uint32(os.Geteuid())
	}
	return slices.Contains(list, uid)
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }
