package handoff

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Survey is all shared memory of this user on this host, as far as it can be
// seen.
type Survey struct {
	Processes []Status   `json:"processes"`
	Silent    []Silent   `json:"silent"`    // have a socket and do not answer
	Unclaimed []Orphaned `json:"unclaimed"` // memory that no answering process claims
}

// Silent is a process that could not be asked.
type Silent struct {
	PID    int    `json:"pid"`
	Socket string `json:"socket"`
	Error  string `json:"error"`
}

// Orphaned is a memfd of ours that no answering process has among its arenas: a
// leak, or the memory of a process that serves no one, or of one being handed
// over at this moment.
type Orphaned struct {
	Name  string `json:"name"`
	Inode uint64 `json:"inode"`
	Bytes int64  `json:"bytes"` // of memory in use
	PIDs  []int  `json:"pids"`  // that have it open or mapped
}

// Look asks every process in the runtime directory dir ("": RuntimeDir) and then
// looks through /proc for memory that none of them claims. Without a directory
// there is nobody to ask. The error is of the directory or ctx.
func Look(ctx context.Context, dir string, cfg DialConfig) (Survey, error) {
	if dir == "" {
		dir = RuntimeDir()
	}
	sv := Survey{Processes: []Status{}, Silent: []Silent{}, Unclaimed: []Orphaned{}}
	d, err := openDirectory(dir, false)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return sv, err
	default:
		defer d.close()
		if err := sv.ask(ctx, d, cfg); err != nil {
			return sv, err
		}
	}
	claimed := map[uint64]bool{}
	for _, st := range sv.Processes {
		for _, a := range st.Arenas {
			claimed[a.Inode] = true
		}
	}
	found := memfds()
	for inode, o := range found {
		if !claimed[inode] {
			sv.Unclaimed = append(sv.Unclaimed, *o)
		}
	}
	slices.SortFunc(sv.Unclaimed, func(x, y Orphaned) int {
		return cmp.Or(cmp.Compare(y.Bytes, x.Bytes), cmp.Compare(x.Inode, y.Inode))
	})
	return sv, ctx.Err()
}

func (sv *Survey) ask(ctx context.Context, d *directory, cfg DialConfig) error {
	names, err := d.sockets()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	limit := make(chan struct{}, maxParallel)
	for _, name := range names {
		all.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			st, err := askOne(ctx, d, name, cfg)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				sv.Processes = append(sv.Processes, st)
			} else if !errors.Is(err, unix.ECONNREFUSED) { // dead; its socket is removed
				pid, _ := socketPID(name)
				sv.Silent = append(sv.Silent, Silent{PID: pid, Socket: filepath.Join(d.path, name), Error: err.Error()})
			}
		})
	}
	all.Wait()
	slices.SortFunc(sv.Processes, func(x, y Status) int {
		return cmp.Or(cmp.Compare(x.PID, y.PID), cmp.Compare(x.Socket, y.Socket))
	})
	slices.SortFunc(sv.Silent, func(x, y Silent) int { return cmp.Compare(x.Socket, y.Socket) })
	return nil
}

func askOne(ctx context.Context, d *directory, name string, cfg DialConfig) (Status, error) {
	c, err := dial(ctx, d, name, cfg)
	if err != nil {
		return Status{}, err
	}
	defer func() {
		_ = c.Close()
		<-c.Over() // nothing is leased
	}()
	ctx, cancel := context.WithTimeout(ctx, c.stall)
	defer cancel()
	return c.Status(ctx)
}

const memfdPrefix = "/memfd:stokehold"

// memfds finds the memfds named stokehold... that processes have open or mapped,
// by inode: those of this user, or all if it is root. Processes that end
// meanwhile, and those that may not be looked at, are passed over.
func memfds() map[uint64]*Orphaned {
	found := map[uint64]*Orphaned{}
	pids := map[uint64]map[int]bool{}
	note := func(pid int, inode uint64, name string, bytes int64) {
		o := found[inode]
		if o == nil {
			o = &Orphaned{Inode: inode, Name: name}
			found[inode], pids[inode] = o, map[int]bool{}
		}
		o.Bytes = max(o.Bytes, bytes)
		pids[inode][pid] = true
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return found
	}
	for _, e := range procs {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		openMemfds(pid, note)
		mappedMemfds(pid, note)
	}
	for inode, o := range found {
		o.PIDs = slices.Sorted(maps.Keys(pids[inode]))
	}
	return found
}

func openMemfds(pid int, note func(pid int, inode uint64, name string, bytes int64)) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }() // only read
	names, _ := f.Readdirnames(-1)
	for _, n := range names {
		path := dir + "/" + n
		target, err := os.Readlink(path)
		var st unix.Stat_t
		if err == nil && strings.HasPrefix(target, memfdPrefix) && unix.Stat(path, &st) == nil {
			note(pid, st.Ino, memfdName(target), st.Blocks*512)
		}
	}
}

func mappedMemfds(pid int, note func(pid int, inode uint64, name string, bytes int64)) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }() // only read
	// FROM-TO PERMISSIONS OFFSET DEVICE INODE NAME
	for s := bufio.NewScanner(io.LimitReader(f, 16<<20)); s.Scan(); {
		line := s.Text()
		at := strings.Index(line, memfdPrefix)
		fields := strings.Fields(line)
		if at < 0 || len(fields) < 6 {
			continue
		}
		inode, err := strconv.ParseUint(fields[4], 10, 64)
		from, to, ok := strings.Cut(fields[0], "-")
		low, err1 := strconv.ParseUint(from, 16, 64)
		high, err2 := strconv.ParseUint(to, 16, 64)
		if err == nil && ok && err1 == nil && err2 == nil && high > low {
			note(pid, inode, memfdName(line[at:]), int64(high-low))
		}
	}
}

func memfdName(s string) string {
	return strings.TrimSuffix(strings.TrimPrefix(s, "/memfd:"), " (deleted)")
}
