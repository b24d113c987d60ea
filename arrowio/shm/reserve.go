package shm

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// HugePages says which larger pages an arena should ask the machine for. They
// save address translation where batches are large; most machines give shared
// memory none unless their administrator turned them on.
type HugePages int

const (
	// NoHugePages takes pages of the usual size.
	NoHugePages HugePages = iota
	// AdviseHugePages takes transparent huge pages where
	// /sys/kernel/mm/transparent_hugepage/shmem_enabled is "advise", "within_size" or
	// "always".
	AdviseHugePages
	// ReservedHugePages takes pages that the administrator set aside
	// (/proc/sys/vm/nr_hugepages), and if there are not enough does as
	// AdviseHugePages.
	ReservedHugePages
)

const shmemHuge = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

// mapping is an arena's memory: the same pages mapped twice.
type mapping struct {
	fd                 int
	size               int64
	writable, readable []byte
	note               string // what became of the huge pages
}

// reserve makes a memfd as cfg says, maps it twice and seals it: against changes
// of size, and against writable maps other than the one made here.
func reserve(name string, cfg Config) (mapping, error) {
	note := ""
	if cfg.HugePages == ReservedHugePages {
		m, err := reserveHuge(name, cfg)
		if err == nil {
			return m, nil
		}
		note = fmt.Sprintf("none reserved (%v); ", err)
	}
	size := roundUp(cfg.Bytes, pageSize())
	if size <= 0 {
		return mapping{}, ErrNoMemory
	}
	fd, err := memfd(name, 0)
	if err != nil {
		return mapping{}, err
	}
	m := mapping{fd: fd, size: size}
	if cfg.HugePages == NoHugePages {
		return m.finish(cfg, allocate(fd, size))
	}
	// The pages are chosen when they are first taken, and the advice belongs to a
	// map: so map, advise and touch before fallocate finds them there.
	if err = enough(size); err == nil {
		if err = unix.Ftruncate(fd, size); err == nil {
			m.writable, err = mapShared(fd, size, unix.PROT_READ|unix.PROT_WRITE, 0)
		}
	}
	if err == nil {
		m.note = note + m.advise()
		// It fails where a first touch would be SIGBUS. Kernels before 5.14 do not know
		// it; there fallocate takes the pages, small ones.
		if err = unix.Madvise(m.writable, unix.MADV_POPULATE_WRITE); errors.Is(err, unix.EINVAL) {
			err = nil
		} else if err != nil {
			err = fmt.Errorf("%w: %w", ErrNoMemory, err)
		}
	}
	if err == nil {
		err = allocate(fd, size)
	}
	return m.finish(cfg, err)
}

func reserveHuge(name string, cfg Config) (mapping, error) {
	kib, ok := numberOf("/proc/meminfo", "Hugepagesize:")
	if !ok || kib <= 0 {
		return mapping{}, errors.New("the machine has no huge pages")
	}
	size := roundUp(cfg.Bytes, kib<<10)
	if size <= 0 {
		return mapping{}, ErrNoMemory
	}
	fd, err := memfd(name, unix.MFD_HUGETLB)
	if err != nil {
		return mapping{}, err
	}
	m := mapping{fd: fd, size: size, note: fmt.Sprintf("reserved pages of %d KiB", kib)}
	return m.finish(cfg, fallocate(fd, size))
}

// advise asks for huge pages and says what came of it.
func (m *mapping) advise() string {
	setting, err := os.ReadFile(shmemHuge)
	mode := "unknown"
	if _, rest, ok := strings.Cut(string(setting), "["); ok && err == nil {
		mode, _, _ = strings.Cut(rest, "]")
	}
	if err := unix.Madvise(m.writable, unix.MADV_HUGEPAGE); err != nil {
		return fmt.Sprintf("off: the kernel refuses (%v)", err)
	}
	switch mode {
	case "never", "deny", "unknown":
		return fmt.Sprintf("off: %s is %s", shmemHuge, mode)
	}
	return "advised"
}

// finish does what is left once the pages are there, or undoes everything.
func (m mapping) finish(cfg Config, err error) (mapping, error) {
	if err == nil && m.writable == nil {
		m.writable, err = mapShared(m.fd, m.size, unix.PROT_READ|unix.PROT_WRITE, 0)
	}
	if err == nil {
		err = addSeals(m.fd, sealedArena)
	}
	if err == nil {
		m.readable, err = mapShared(m.fd, m.size, unix.PROT_READ, 0)
	}
	if err != nil {
		unmap(m.writable)
		unmap(m.readable)
		closeFD(m.fd)
		return mapping{}, err
	}
	if m.note == "advised" {
		_ = unix.Madvise(m.readable, unix.MADV_HUGEPAGE) // advice: the pages are there either way
	}
	if cfg.Prefault {
		prefault(m.writable, unix.MADV_POPULATE_WRITE)
		prefault(m.readable, unix.MADV_POPULATE_READ)
	}
	return m, nil
}

// prefault enters all pages of a map into the page tables. They are allocated,
// so nothing can go wrong that a first touch would not do as well, later.
func prefault(b []byte, advice int) {
	if unix.Madvise(b, advice) == nil {
		return
	}
	sum := byte(0)
	for i := 0; i < len(b); i += os.Getpagesize() {
		sum |= b[i]
	}
	if len(b) > 0 && sum != 0 {
		return // the loop must not be optimised away; new memory is zero
	}
}

func mapShared(fd int, size int64, prot, flags int) ([]byte, error) {
	b, err := unix.Mmap(fd, 0, int(size), prot, unix.MAP_SHARED|flags)
	if errors.Is(err, unix.ENOMEM) {
		return nil, fmt.Errorf("%w: map: %w", ErrNoMemory, err)
	}
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	return b, nil
}

// enough refuses what is more than available: without that look, a control group
// at its limit would kill a process instead.
func enough(size int64) error {
	if avail, ok := granted.available(size); !ok {
		return fmt.Errorf("%w: %d bytes available; free memory or make the arena smaller", ErrNoMemory, avail)
	}
	return nil
}

// allocate reserves every page.
func allocate(fd int, size int64) error {
	if err := enough(size); err != nil {
		return err
	}
	return fallocate(fd, size)
}

func fallocate(fd int, size int64) error {
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
