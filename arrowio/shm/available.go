package shm

import (
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// credit is memory that was found to be available a moment ago: a process that
// makes many small segments looks once for all of them. Looking takes longer than
// the rest of making one.
type credit struct {
	mu    sync.Mutex
	bytes int64
	until time.Time
}

const (
	creditBytes = 16 << 20
	creditTime  = 50 * time.Millisecond
)

// granted is of the whole machine, and so of the process.
//
//nolint:gochecknoglobals // what it is about is there once, too
var granted credit

// available is the function of that name, asked of the credit first.
func (c *credit) available(size int64) (bytes int64, enough bool) {
	if size > creditBytes/4 {
		return available(size)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.bytes >= size && now.Before(c.until) {
		c.bytes -= size
		return size, true
	}
	if _, enough := available(size + creditBytes); enough {
		c.bytes, c.until = creditBytes, now.Add(creditTime)
		return size, true
	}
	return available(size)
}

// available reports whether size bytes could be reserved now, and if not how many
// could: of the machine's, or of a control group's that this process is in. What
// cannot be found out is taken to be enough.
func available(size int64) (bytes int64, enough bool) {
	if !free(size) { // what is free is far quicker to learn than what can be made so
		if kib, ok := numberOf("/proc/meminfo", "MemAvailable:"); ok && kib<<10 < size {
			return kib << 10, false
		}
	}
	for _, g := range memoryGroups() {
		if left, ok := g.left(size); ok && left < size {
			return left, false
		}
	}
	return size, true
}

// free reports whether the machine has size bytes free, and enough beside that the
// kernel's own reserve does not matter.
func free(size int64) bool {
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) != nil {
		return false
	}
	left := float64(s.Freeram) * float64(s.Unit)
	return left/2 >= float64(size) && left >= float64(s.Totalram)*float64(s.Unit)/16
}

// group is a memory control group, by the names that its version gives things.
type group struct {
	dir, limit, used, cache, shared string
}

// memoryGroups are the control groups of this process and their parents, as
// far as they can be seen from here.
func memoryGroups() []group {
	all, err := readKernel("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	var groups []group
	for line := range strings.Lines(string(all)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		var mounts []string
		g := group{limit: "memory.max", used: "memory.current", cache: "file", shared: "shmem"}
		switch {
		case fields[1] == "":
			mounts = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}
		case strings.Contains(","+fields[1]+",", ",memory,"):
			mounts = []string{"/sys/fs/cgroup/memory"}
			g = group{limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", cache: "total_cache", shared: "total_shmem"}
		}
		for _, mount := range mounts {
			for at := path.Clean("/" + fields[2]); ; at = path.Dir(at) {
				g.dir = path.Join(mount, at)
				groups = append(groups, g)
				if at == "/" {
					break
				}
			}
		}
	}
	return groups
}

// left is what may still be taken, or any number above wanted; ok is false without
// a limit.
func (g group) left(wanted int64) (bytes int64, ok bool) {
	limit, okLimit := fileNumber(path.Join(g.dir, g.limit))
	used, okUsed := fileNumber(path.Join(g.dir, g.used))
	if !okLimit || !okUsed {
		return 0, false
	}
	if limit-used >= wanted {
		return limit - used, true // the statistics below take the kernel a millisecond
	}
	// Page cache counts as used but can be dropped. Shared memory counts as page
	// cache and cannot.
	stat := path.Join(g.dir, "memory.stat")
	cached, _ := numberOf(stat, g.cache)
	shared, _ := numberOf(stat, g.shared)
	return max(limit-used+max(cached-shared, 0), 0), true
}

func fileNumber(name string) (int64, bool) {
	b, err := readKernel(name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil
}

// numberOf returns the number behind key in a file of lines "KEY NUMBER ...".
func numberOf(name, key string) (int64, bool) {
	b, err := readKernel(name)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == key {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// readKernel reads the start of a file that the kernel makes up, which is all of
// it for those read here. An os.File would be made known to the poller and cost
// several times as much; this is done for each segment.
func readKernel(name string) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }() // only read
	b := make([]byte, 0, 4<<10)
	for len(b) < 64<<10 {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := unix.Read(fd, b[len(b):cap(b)])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return b, nil
		}
		b = b[:len(b)+n]
	}
	return b, nil
}
