package handoff_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// rawServer accepts one connection by hand.
func rawServer(t *testing.T, serve func(r *raw) error) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "raw") // 0700, and short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path = filepath.Join(dir, "1-1.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		u, err := l.AcceptUnix()
		if err != nil {
			return
		}
		r, err := wrapRaw(u)
		if err == nil {
			defer r.close()
			err = serve(r)
		}
		if err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-served
	})
	return path
}

// drain reads until the client has gone.
func (r *raw) drain() error {
	r.SetReceiveDeadline(time.Now().Add(4 * patience))
	for {
		p, err := r.Receive()
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			}
			return nil
		}
		p.CloseFDs()
	}
}

func TestServerBreaksTheHandshake(t *testing.T) {
	for name, tc := range map[string]struct {
		answer []byte
		want   error
	}{
		"nothing":         {nil, arrowio.ErrGone},
		"another version": {func() []byte { b := handoff.WelcomePacket(8); b[handoff.HeaderBytes+4] = 9; return b }(), handoff.ErrVersion},
		"another magic":   {func() []byte { b := handoff.WelcomePacket(8); b[handoff.HeaderBytes] = 9; return b }(), handoff.ErrProtocol},
		"no leases":       {handoff.WelcomePacket(0), handoff.ErrProtocol},
		"endless leases":  {handoff.WelcomePacket(1 << 31), handoff.ErrProtocol},
		"garbage":         {[]byte("hello, this is ssh"), handoff.ErrProtocol},
		"a lease":         {handoff.LeasedPacket(1, 1), handoff.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			path := rawServer(t, func(r *raw) error {
				if tc.answer == nil {
					return nil
				}
				return errors.Join(r.write(tc.answer), r.drain())
			})
			if _, err := handoff.Dial(t.Context(), path, handoff.DialConfig{}); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		path := rawServer(t, (*raw).drain)
		if _, err := handoff.Dial(t.Context(), path, handoff.DialConfig{HandshakeTimeout: 20 * time.Millisecond}); !errors.Is(err, arrowio.ErrGone) {
			t.Error(err)
		}
	})
}

// grantOf answers the client's first lease with an arena of the descriptors given.
func grantOf(size int64, fds ...int) func(r *raw) error {
	return func(r *raw) error {
		if err := r.write(handoff.WelcomePacket(8)); err != nil {
			return err
		}
		if _, err := r.await(handoff.KindLease); err != nil {
			return err
		}
		_, _, err := r.u.WriteMsgUnix(handoff.ArenaPacket([16]byte{1}, size), unix.UnixRights(fds...), nil)
		_ = r.write(handoff.LeasedPacket(1, 77)) // the client may have gone
		return errors.Join(err, r.drain())
	}
}

func anArena(t *testing.T) int {
	t.Helper()
	a, err := shm.New(shm.Config{Bytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	fd := -1
	if err := a.WithFD(func(of int) (err error) { fd, err = unix.Dup(of); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func sealed(t *testing.T, seals int) int {
	t.Helper()
	fd, err := unix.MemfdCreate("stokehold-bad", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Fallocate(fd, 0, 0, 4096)
	}
	if err == nil && seals != 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// slotOf01 is a slot of the arena that grantOf grants.
var slotOf01 = shm.Handle{Arena: "01000000000000000000000000000000", Length: 64, Generation: 1}

// TestServerGrantsNonsense: nothing but a sealed memfd of the stated size is
// mapped.
func TestServerGrantsNonsense(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	open := func(path string) int {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	device, directory := open("/dev/zero"), open("/")
	defer func() {
		for _, fd := range []int{pipe[0], pipe[1], device, directory} {
			_ = unix.Close(fd)
		}
	}()
	good := anArena(t)
	const resize = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	for name, tc := range map[string]struct {
		size int64
		fds  []int
	}{
		"no descriptor":           {4096, nil},
		"two descriptors":         {4096, []int{good, good}},
		"too many descriptors":    {4096, []int{good, good, good, good, good, good, good, good}},
		"a pipe":                  {4096, []int{pipe[0]}},
		"a device":                {4096, []int{device}},
		"a directory":             {4096, []int{directory}},
		"an unsealed memfd":       {4096, []int{sealed(t, 0)}},
		"one that can be written": {4096, []int{sealed(t, resize)}},
		"one that can shrink":     {4096, []int{sealed(t, unix.F_SEAL_GROW|unix.F_SEAL_FUTURE_WRITE)}},
		"another size":            {8192, []int{good}},
		"a size of 0":             {0, []int{good}},
		"an endless size":         {1 << 62, []int{good}},
	} {
		t.Run(name, func(t *testing.T) {
			path := rawServer(t, grantOf(tc.size, tc.fds...))
			before := ownFootprint()
			c := dial(t, path, handoff.DialConfig{})
			_, err := c.Lease(t.Context(), slotOf01)
			if !errors.Is(err, handoff.ErrProtocol) || !errors.Is(err, arrowio.ErrGone) {
				t.Errorf("lease: %v", err)
			}
			<-c.Over()
			eventually(t, "nothing kept", func() bool { return ownFootprint().FDs <= before.FDs && ownFootprint().Maps == before.Maps })
		})
	}
}

// TestServerBreaksTheProtocol: whatever a server sends, the client fails with a
// typed error and what it holds stays good.
func TestServerBreaksTheProtocol(t *testing.T) {
	good := anArena(t)
	for name, bad := range map[string][]byte{
		"answer to nothing":  handoff.LeasedPacket(5, 1),
		"answer to number 0": handoff.LeasedPacket(0, 1),
		"answer far away":    handoff.LeasedPacket(1<<31, 1),
		"status unasked":     packet(t, handoff.KindStatus, 1<<32-1, []byte{0, 0, 0, 0, 1, 0, 0, 0, '{', '}'}),
		"unknown kind":       packet(t, 999, 0, nil),
		"a client's message": handoff.ReleasePacket(1),
		"ping of 3 bytes":    packet(t, handoff.KindPing, 0, []byte{1, 2, 3}),
		"forget of nothing":  packet(t, handoff.KindForget, 0, make([]byte, 16)),
		"text, not UTF-8":    packet(t, handoff.KindError, 0, []byte{16, 0, 0, 0, 0, 0, 0, 0, 0xff}),
		"half a header":      {1},
	} {
		t.Run(name, func(t *testing.T) {
			path := rawServer(t, func(r *raw) error {
				if err := r.write(handoff.WelcomePacket(8)); err != nil {
					return err
				}
				if _, err := r.await(handoff.KindLease); err != nil {
					return err
				}
				_, _, err := r.u.WriteMsgUnix(handoff.ArenaPacket([16]byte{1}, 4096), unix.UnixRights(good), nil)
				return errors.Join(err, r.write(handoff.LeasedPacket(1, 77)), r.write(bad), r.drain())
			})
			c := dial(t, path, handoff.DialConfig{})
			l, err := c.Lease(t.Context(), slotOf01)
			if err != nil {
				t.Fatal(err)
			}
			<-c.Lost()
			if err := c.Err(); !errors.Is(err, handoff.ErrProtocol) || !errors.Is(err, arrowio.ErrGone) {
				t.Errorf("lost: %v", err)
			}
			if len(l.Bytes()) != 64 {
				t.Error("the lease held is gone")
			}
			select {
			case <-c.Over():
				t.Error("the connection was closed while a lease is held")
			default:
			}
			if _, err := c.Lease(t.Context(), slotOf01); !errors.Is(err, arrowio.ErrGone) {
				t.Errorf("lease after the loss: %v", err)
			}
			l.Release()
			<-c.Over()
		})
	}
	t.Run("slot beyond its arena", func(t *testing.T) {
		path := rawServer(t, grantOf(4096, good))
		c := dial(t, path, handoff.DialConfig{})
		far := slotOf01
		far.Offset = 1<<62 - 1
		if _, err := c.Lease(t.Context(), far); !errors.Is(err, handoff.ErrProtocol) {
			t.Error(err)
		}
	})
	t.Run("a frame that is none", func(t *testing.T) {
		path := rawServer(t, grantOf(4096, good))
		c := dial(t, path, handoff.DialConfig{})
		l, err := c.Lease(t.Context(), slotOf01)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Batch(); !errors.Is(err, arrowio.ErrCorrupt) {
			t.Error(err)
		}
		if l.Bytes() != nil {
			t.Error("the lease was not released")
		}
	})
}

func TestDirectory(t *testing.T) {
	base := t.TempDir()
	host := &shm.Host{}
	open, link, file := filepath.Join(base, "open"), filepath.Join(base, "link"), filepath.Join(base, "file")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o750), os.Symlink(base, link), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	bad := map[string]string{"others may enter": open, "a link": link, "a file": file}
	if os.Geteuid() == 0 {
		other := filepath.Join(base, "other")
		if err := errors.Join(os.Mkdir(other, 0o700), os.Chown(other, 1, 1)); err != nil {
			t.Fatal(err)
		}
		bad["another user's"] = other
	}
	for name, dir := range bad {
		if s, err := handoff.Serve(handoff.ServerConfig{Host: host, Dir: dir}); !errors.Is(err, handoff.ErrDirectory) {
			t.Errorf("%s: served: %v %v", name, s, err)
		}
		if _, err := handoff.Dial(t.Context(), filepath.Join(dir, "1-1.sock"), handoff.DialConfig{}); !errors.Is(err, handoff.ErrDirectory) {
			t.Errorf("%s: dialled: %v", name, err)
		}
	}
}

// TestSocketsOfTheDead: a dead process's socket is removed by whoever comes upon
// it, and no other.
func TestSocketsOfTheDead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	dead := func(name string) string {
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = d.Close() }()
		through := filepath.Join("/proc/self/fd", strconv.Itoa(int(d.Fd())), name)
		l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: through, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		_ = l.Close()
		return filepath.Join(dir, name)
	}
	const noPID = "999999999-" // above the greatest number of a process
	swept := dead(noPID + "a.sock")
	half := dead(".new-" + noPID + "b.sock")
	fresh := dead(".new-" + noPID + "d.sock") // its process may be about to listen, and a clock was set forward by an hour
	for path, age := range map[string]time.Duration{half: 3 * time.Hour, fresh: time.Hour} {
		past := time.Now().Add(-age)
		if err := os.Chtimes(path, past, past); err != nil {
			t.Fatal(err)
		}
	}
	keep := filepath.Join(dir, noPID+"file.sock") // not a socket: not ours
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := handoff.Serve(handoff.ServerConfig{Host: &shm.Host{}, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	dialled := dead(noPID + "c.sock")
	if _, err := handoff.Dial(t.Context(), dialled, handoff.DialConfig{}); !errors.Is(err, arrowio.ErrGone) {
		t.Error(err)
	}
	asked := dead(noPID + "d.sock")
	sv, err := handoff.Look(t.Context(), dir, handoff.DialConfig{})
	if err != nil || len(sv.Processes) != 1 || len(sv.Silent) != 0 {
		t.Errorf("%+v, %v", sv, err)
	}
	for _, path := range []string{swept, half, dialled, asked} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there (%v)", filepath.Base(path), err)
		}
	}
	for _, path := range []string{keep, fresh, s.Path()} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(s.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket outlived its server")
	}
}

func TestRuntimeDir(t *testing.T) {
	own := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", own)
	if d := handoff.RuntimeDir(); d != filepath.Join(own, "stokehold") {
		t.Error(d)
	}
	for _, bad := range []string{"not/absolute", "/not/there"} {
		t.Setenv("XDG_RUNTIME_DIR", bad)
		if d := handoff.RuntimeDir(); !filepath.IsAbs(d) || !strings.Contains(d, "stokehold") || strings.HasPrefix(d, "/not") {
			t.Error(d)
		}
	}
}
