package shm

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	tmpfsMagic  = 0x01021994
	sealedSize  = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	sealedArena = sealedSize | unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_SEAL
	sealedBatch = sealedSize | unix.F_SEAL_WRITE
	sealedOwn   = sealedBatch | unix.F_SEAL_SEAL
)

// pageSize is what memfds are sized in: the size of the machine's pages.
func pageSize() int64 { return int64(os.Getpagesize()) }

func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

func memfd(name string) (int, error) {
	// Asking for a file that cannot be executed also stops a warning in the kernel
	// log; kernels before 6.3 do not know the flag.
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return -1, fmt.Errorf("create memfd: %w", err)
	}
	return fd, nil
}

// allocate reserves every page. Without the look at what is available first, a
// control group at its limit would kill a process instead.
func allocate(fd int, size int64) error {
	if avail, ok := available(); ok && size > avail {
		return fmt.Errorf("%w: %d bytes available; free memory or make the arena smaller", ErrNoMemory, avail)
	}
	for {
		err := unix.Fallocate(fd, 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EFBIG):
			return fmt.Errorf("%w: %w", ErrNoMemory, err)
		case err != nil:
			return fmt.Errorf("fallocate: %w", err)
		}
		return nil
	}
}

// available is the memory in bytes that could be reserved now: the machine's,
// or the control group's if that is less.
func available() (int64, bool) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	defer func() { _ = f.Close() }() // only read
	avail, ok := int64(0), false
	for s := bufio.NewScanner(io.LimitReader(f, 1<<16)); s.Scan(); {
		if rest, found := strings.CutPrefix(s.Text(), "MemAvailable:"); found {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0, false
			}
			avail, ok = kib<<10, true
			break
		}
	}
	limit, okLimit := groupNumber("memory.max")
	used, okUsed := groupNumber("memory.current")
	if okLimit && okUsed && (!ok || limit-used < avail) {
		// Page cache of the group counts as used but can be dropped; that errs
		// towards refusing, by at most what is cached.
		cached := groupStat("file")
		avail, ok = min(max(limit-used+cached, 0), maxInt(avail, ok)), true
	}
	return avail, ok
}

func maxInt(n int64, known bool) int64 {
	if known {
		return n
	}
	return 1<<63 - 1
}

func groupNumber(name string) (int64, bool) {
	b, err := os.ReadFile("/sys/fs/cgroup/" + name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil
}

func groupStat(key string) int64 {
	b, err := os.ReadFile("/sys/fs/cgroup/memory.stat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key+" "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return n
		}
	}
	return 0
}

// reserve makes a memfd of the given size, maps it twice and seals it: against
// changes of size, and against writable maps other than the one made here.
func reserve(name string, size int64) (fd int, writable, readable []byte, err error) {
	if fd, err = memfd(name); err != nil {
		return -1, nil, nil, err
	}
	defer func() {
		if err != nil {
			unmap(writable)
			unmap(readable)
			closeFD(fd)
		}
	}()
	if err = allocate(fd, size); err != nil {
		return
	}
	if writable, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fd, nil, nil, fmt.Errorf("map: %w", err)
	}
	if err = addSeals(fd, sealedArena); err != nil {
		return
	}
	if readable, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return fd, writable, nil, fmt.Errorf("map: %w", err)
	}
	return fd, writable, readable, nil
}

func addSeals(fd, seals int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	return nil
}

// verify checks that fd is a memfd with at least the given seals, exactly size
// bytes long, with every page allocated: touching a hole could need memory that
// is not there, which is SIGBUS.
func verify(fd int, size int64, seals ...int) error {
	if size <= 0 || size > 1<<46 {
		return fmt.Errorf("%w: stated size %d", ErrSeals, size)
	}
	got, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("%w: it has no seals (%w)", ErrSeals, err)
	}
	enough := false
	for _, want := range seals {
		enough = enough || got&want == want
	}
	if !enough {
		return fmt.Errorf("%w: seals %#x, want %#x", ErrSeals, got, seals)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%w: %w", ErrSeals, err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("%w: %w", ErrSeals, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG || fs.Type != tmpfsMagic:
		return fmt.Errorf("%w: not a memfd", ErrSeals)
	case st.Size != size:
		return fmt.Errorf("%w: %d bytes, stated %d", ErrSeals, st.Size, size)
	case st.Blocks*512 < size:
		return fmt.Errorf("%w: %d of %d bytes are allocated", ErrSeals, st.Blocks*512, size)
	}
	return nil
}

func unmap(b []byte) {
	if b != nil {
		// The only failure is a range that is not mapped, which cannot be: b comes
		// from Mmap and is unmapped once.
		_ = unix.Munmap(b)
	}
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd) // nothing was written that could fail to be
	}
}
