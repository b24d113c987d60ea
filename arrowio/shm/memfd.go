package shm

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	tmpfsMagic  = unix.TMPFS_MAGIC
	hugeMagic   = unix.HUGETLBFS_MAGIC
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

func memfd(name string, more int) (int, error) {
	// Asking for a file that cannot be executed also stops a warning in the kernel
	// log; kernels before 6.3 do not know the flag.
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING | more
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return -1, fmt.Errorf("create memfd: %w", err)
	}
	return fd, nil
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
	case st.Mode&unix.S_IFMT != unix.S_IFREG || fs.Type != tmpfsMagic && fs.Type != hugeMagic:
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
