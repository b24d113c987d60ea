package handoff

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrDirectory means: the runtime directory is not this user's alone. Nothing was
// served or connected to.
var ErrDirectory = errors.New("unsafe runtime directory")

const (
	socketSuffix = ".sock"
	newPrefix    = ".new-" // bound, not listening yet
	// newGrace is far longer than a socket has its first name, and than a clock that is set
	// forward by two hours makes it look.
	newGrace     = 2*time.Hour + time.Minute
	maxSockets   = 1024 // looked at in one directory
	openAttempts = 10
)

// RuntimeDir is where the processes of this user find one another on this host:
// $XDG_RUNTIME_DIR/stokehold, else /run/user/UID/stokehold, whichever may be
// written to, else stokehold-UID in the directory for temporary files.
func RuntimeDir() string {
	if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) && unix.Access(d, unix.W_OK) == nil {
		return filepath.Join(d, "stokehold")
	}
	uid := strconv.Itoa(os.Geteuid())
	if d := filepath.Join("/run/user", uid); unix.Access(d, unix.W_OK) == nil {
		return filepath.Join(d, "stokehold")
	}
	return filepath.Join(os.TempDir(), "stokehold-"+uid)
}

// directory is an open runtime directory. Sockets are named through its
// descriptor: what was verified is what is used, even if the path is replaced
// meanwhile, and the length of the path does not matter (a socket's address holds
// 107 bytes).
type directory struct {
	path string
	f    *os.File
}

// openDirectory verifies that path is a directory, not a link to one, of this user
// and nobody else's to enter. create makes it.
func openDirectory(path string, create bool) (*directory, error) {
	if create {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("handoff: runtime directory: %w", err)
		}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("handoff: %w: %s is not a directory, or a link to one", ErrDirectory, path)
	}
	if err != nil {
		return nil, fmt.Errorf("handoff: runtime directory %s: %w", path, err)
	}
	d := &directory{path: path, f: os.NewFile(uintptr(fd), path)}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		d.close()
		return nil, fmt.Errorf("handoff: runtime directory %s: %w", path, err)
	}
	if uid := uint32(os.Geteuid()); st.Uid != uid || st.Mode&0o077 != 0 {
		d.close()
		return nil, fmt.Errorf("handoff: %w: %s belongs to user %d with mode %#o: want user %d and mode 0700", ErrDirectory, path, st.Uid, st.Mode&0o777, uid)
	}
	return d, nil
}

func (d *directory) close() { _ = d.f.Close() } // only read

// through is a name in the directory, by way of its descriptor.
func (d *directory) through(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.f.Fd(), name)
}

// listen makes a socket named "PID-RANDOM.sock". It gets its name once it
// listens: a socket that refuses connections is a dead process's for certain. No
// name is used twice, so that removing a dead one can hit nobody else's.
func (d *directory) listen() (l *net.UnixListener, name string, err error) {
	var r [8]byte
	rand.Read(r[:]) // never fails since Go 1.24
	name = fmt.Sprintf("%d-%s%s", os.Getpid(), hex.EncodeToString(r[:]), socketSuffix)
	hidden := newPrefix + name
	l, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: d.through(hidden), Net: "unixpacket"})
	if err != nil {
		return nil, "", fmt.Errorf("handoff: listen in %s: %w", d.path, err)
	}
	l.SetUnlinkOnClose(false) // its name is about to change
	fd := int(d.f.Fd())
	err = unix.Fchmodat(fd, hidden, 0o600, 0)
	if err == nil {
		err = unix.Renameat(fd, hidden, fd, name)
	}
	if err != nil {
		_ = unix.Unlinkat(fd, hidden, 0)
		return nil, "", fmt.Errorf("handoff: listen in %s: %w", d.path, errors.Join(err, l.Close()))
	}
	return l, name, nil
}

func (d *directory) remove(name string) { _ = unix.Unlinkat(int(d.f.Fd()), name, 0) }

// removeEmpty takes the directory away with its last socket, so that nothing is
// left behind. Its parent keeps it if it may not be changed.
func (d *directory) removeEmpty() {
	var own, there unix.Stat_t
	if unix.Fstat(int(d.f.Fd()), &own) == nil && unix.Lstat(d.path, &there) == nil && own.Ino == there.Ino && own.Dev == there.Dev {
		_ = unix.Rmdir(d.path)
	}
}

// sockets returns the names of the sockets in the directory. Those of dead
// processes are still among them: connecting tells.
func (d *directory) sockets() ([]string, error) {
	// A descriptor of its own, since reading moves on.
	f, err := os.Open(d.through("."))
	if err != nil {
		return nil, fmt.Errorf("handoff: read %s: %w", d.path, err)
	}
	defer func() { _ = f.Close() }() // only read
	entries, err := f.ReadDir(maxSockets)
	if len(entries) == 0 && err != nil && !isEOF(err) {
		return nil, fmt.Errorf("handoff: read %s: %w", d.path, err)
	}
	var names []string
	for _, e := range entries {
		switch name := e.Name(); {
		case e.Type() != fs.ModeSocket:
		case strings.HasPrefix(name, newPrefix):
			// Its process died between two system calls.
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > newGrace {
				d.remove(name)
			}
		case strings.HasSuffix(name, socketSuffix):
			names = append(names, name)
		}
	}
	return names, nil
}

// connect connects to a socket of the directory. A dead process's socket is
// removed; the error is then unix.ECONNREFUSED.
func (d *directory) connect(name string) (*net.UnixConn, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: d.through(name), Net: "unixpacket"})
	if err == nil {
		return c, nil
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		d.remove(name)
	}
	return nil, err
}

// sweep removes the sockets of dead processes.
func (d *directory) sweep() {
	names, err := d.sockets()
	if err != nil {
		return // found again, and reported, by whoever needs the directory
	}
	for _, name := range names {
		if pid, ok := socketPID(name); ok && unix.Kill(pid, 0) == nil {
			continue // alive, or its number is; connecting would trouble it for nothing
		}
		if c, err := d.connect(name); err == nil {
			_ = c.Close() // another namespace's process
		}
	}
}

// socketPID is the process that a socket's name names.
func socketPID(name string) (int, bool) {
	head, _, ok := strings.Cut(name, "-")
	pid, err := strconv.Atoi(head)
	return pid, ok && err == nil && pid > 0
}
