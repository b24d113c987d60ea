package shm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

func TestLeaseTakesNoHeap(t *testing.T) {
	a := arena(t, page)
	h := loan(t, a, 64).Publish()
	kept, err := a.Hold(h, "other")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Release()
	for name, step := range map[string]func(){
		"hold": func() {
			l, err := a.Hold(h, "reader")
			if err != nil || l.Bytes() == nil {
				t.Fatal(err)
			}
			l.Release()
		},
		"lease": func() {
			l, err := a.Lease(h, "reader")
			if err != nil {
				t.Fatal(err)
			}
			l.Release()
		},
		"reclaim": func() {
			if _, err := a.Hold(h, "reader"); err != nil {
				t.Fatal(err)
			}
			if _, err := a.Hold(h, "reader"); err != nil {
				t.Fatal(err)
			}
			a.ReclaimOwner("reader")
		},
	} {
		step()
		if n := testing.AllocsPerRun(200, step); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	n := testing.AllocsPerRun(200, func() {
		l, err := a.Loan(context.Background(), 640)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Drop(l.Publish()); err != nil {
			t.Fatal(err)
		}
	})
	if n > 1 { // the Loan itself
		t.Errorf("loan, publish and drop: %v allocations", n)
	}
}

// TestStaleLeaseEndsNothing holds that a released lease has no power over the
// lease that uses its book-keeping after it.
func TestStaleLeaseEndsNothing(t *testing.T) {
	a := arena(t, page)
	h := loan(t, a, 64).Publish()
	first, err := a.Lease(h, "first")
	if err != nil {
		t.Fatal(err)
	}
	again := *first
	first.Release()
	second, err := a.Lease(h, "second")
	if err != nil {
		t.Fatal(err)
	}
	first.Release()
	again.Release()
	if first.Bytes() != nil || again.Bytes() != nil {
		t.Error("bytes of a lease that was released")
	}
	if _, err := again.Batch(); !errors.Is(err, arrowio.ErrGone) {
		t.Error(err)
	}
	if second.Bytes() == nil || a.Stats().Leases != 1 || first.Handle() != h {
		t.Errorf("%+v", a.Stats())
	}
	if n := a.ReclaimOwner("first"); n != 0 {
		t.Error(n)
	}
	if err := a.Drop(h); err != nil {
		t.Fatal(err)
	}
	if n := a.ReclaimOwner("second"); n != 1 {
		t.Error(n)
	}
	second.Release()
	var zero shm.Lease
	zero.Release()
	if _, err := zero.Batch(); zero.Bytes() != nil || !errors.Is(err, arrowio.ErrGone) {
		t.Error("the zero lease holds something:", err)
	}
	idle(t, a)
}

func TestKeepPublishesAgainInPlace(t *testing.T) {
	a := arena(t, page)
	h := loan(t, a, 64).Publish()
	if err := a.Keep(h); err != nil {
		t.Fatal(err)
	}
	if err := a.Drop(h); err != nil {
		t.Fatal(err)
	}
	lease, err := a.Lease(h, "reader")
	if err != nil {
		t.Fatal("the second publication ended with the first:", err)
	}
	if err := a.Drop(h); err != nil {
		t.Fatal(err)
	}
	if err := a.Drop(h); !errors.Is(err, arrowio.ErrGone) {
		t.Error("third drop of two:", err)
	}
	if _, err := a.Lease(h, "late"); !errors.Is(err, arrowio.ErrGone) {
		t.Error(err)
	}
	if err := a.Keep(h); err != nil { // by who leases it
		t.Error(err)
	}
	lease.Release()
	if lease, err = a.Lease(h, "again"); err != nil {
		t.Fatal(err)
	}
	lease.Release()
	if err := a.Drop(h); err != nil {
		t.Fatal(err)
	}
	if err := a.Keep(h); !errors.Is(err, arrowio.ErrGone) {
		t.Error("kept what is gone:", err)
	}
	if a.Stats().CopiedBytes != 0 {
		t.Error("copied")
	}
}

func TestStatsOfFreeMemory(t *testing.T) {
	a := arena(t, 64*page)
	var handles []shm.Handle
	for range 8 {
		handles = append(handles, loan(t, a, 8*page).Publish())
	}
	if s := a.Stats(); s.Free != 0 || s.LargestFree != 0 || s.Fragmentation() != 0 {
		t.Errorf("full: %+v", s)
	}
	for _, i := range []int{0, 2, 4} {
		if err := a.Drop(handles[i]); err != nil {
			t.Fatal(err)
		}
	}
	s := a.Stats()
	if s.Free != 24*page || s.FreePieces != 3 || s.LargestFree != 8*page || s.Fragmentation() < 0.66 || s.Fragmentation() > 0.67 {
		t.Errorf("%+v, fragmentation %v", s, s.Fragmentation())
	}
	want := []shm.Class{{Bytes: 8 * page, Taken: 5, TakenSize: 40 * page, Free: 3, FreeSize: 24 * page}}
	if got := a.Classes(); len(got) != 1 || got[0] != want[0] {
		t.Errorf("%+v", got)
	}
}

func TestHolders(t *testing.T) {
	a := arena(t, page)
	small, large := loan(t, a, 64).Publish(), loan(t, a, 640).Publish()
	for owner, h := range map[string]shm.Handle{"b": large, "a": small} {
		if _, err := a.Lease(h, owner); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Lease(large, "a"); err != nil {
		t.Fatal(err)
	}
	want := []shm.Holder{{Owner: "a", Leases: 2, Bytes: 704}, {Owner: "b", Leases: 1, Bytes: 640}}
	if got := a.Holders(); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	a.ReclaimOwner("a")
	a.ReclaimOwner("b")
	if got := a.Holders(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestHostQuota(t *testing.T) {
	host := shm.Host{Limit: 4 * page}
	defer host.Close()
	a, err := host.New(shm.Config{Bytes: 2*page + 1})
	if err != nil {
		t.Fatal(err)
	}
	if known, ok := host.Arena(a.ID()); !ok || known != a {
		t.Error("not known")
	}
	var limit *shm.LimitError
	_, err = host.New(shm.Config{Bytes: 2 * page})
	if !errors.Is(err, shm.ErrQuota) || !errors.As(err, &limit) || limit.Used != 3*page || limit.Asked != 2*page || limit.Limit != 4*page {
		t.Error(err)
	}
	if _, err := host.New(shm.Config{Bytes: 1 << 62}); !errors.Is(err, shm.ErrQuota) {
		t.Error(err)
	}
	if _, err := host.New(shm.Config{}); err == nil || errors.Is(err, shm.ErrQuota) {
		t.Error(err)
	}
	// Segments that another process wrote count as well.
	adopt := func(pages int64) *shm.Arena {
		seg, err := shm.NewSegment(pages * page)
		if err != nil {
			t.Fatal(err)
		}
		defer seg.Close()
		fd, err := seg.Seal()
		if err != nil {
			t.Fatal(err)
		}
		if fd, err = unix.Dup(fd); err != nil {
			t.Fatal(err)
		}
		got, _, err := shm.Adopt(fd, seg.Size(), seg.Size())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	over, fits := adopt(2), adopt(1)
	defer over.Close()
	if err := host.Add(over); !errors.Is(err, shm.ErrQuota) {
		t.Error(err)
	}
	if err := host.Add(fits); err != nil {
		t.Error(err)
	}
	if err := host.Add(fits); err != nil { // counted once
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := host.Add(over); err != nil {
		t.Error("room was not given back:", err)
	}
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := host.New(shm.Config{Bytes: page}); !errors.Is(err, shm.ErrClosed) {
		t.Error(err)
	}
}

func TestHugePagesAreNeverDemanded(t *testing.T) {
	for _, want := range []shm.HugePages{shm.AdviseHugePages, shm.ReservedHugePages} {
		a, err := shm.New(shm.Config{Bytes: 4 << 20, HugePages: want, Prefault: true})
		if err != nil {
			t.Fatal(err)
		}
		if a.Stats().HugePages == "" {
			t.Error("Stats does not say what became of huge pages")
		}
		t.Log(a.Stats().HugePages)
		l := loan(t, a, a.Size())
		copy(l.Bytes()[len(l.Bytes())-4:], "last")
		h := l.Publish()
		err = a.WithFD(func(fd int) error {
			v, err := shm.OpenView(fd, a.ID(), a.Size())
			if err != nil {
				return err
			}
			defer v.Close()
			b, err := v.Bytes(h)
			if err == nil && string(b[len(b)-4:]) != "last" {
				err = errors.New("other bytes")
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	a, err := shm.New(shm.Config{Bytes: page, Prefault: true})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if a.Stats().HugePages != "" {
		t.Error(a.Stats().HugePages)
	}
}

// limitEnv makes the test binary a process that takes all the shared memory it
// can get and writes to every page of it; see TestFullMachineIsAnError. mapEnv
// limits what it may map beyond what it has at its start.
const (
	limitEnv = "STOKEHOLD_TEST_SHM_FILL"
	mapEnv   = "STOKEHOLD_TEST_SHM_MAP"
	// mostFilled is more of either than the limits of the tests leave room for: where
	// a limit is not in force, the test ends before the machine is full.
	mostFilled = 24
)

func TestMain(m *testing.M) {
	if bytes := os.Getenv(limitEnv); bytes != "" {
		if err := fillMemory(bytes, os.Getenv(mapEnv)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// fillMemory makes arenas, in each way there is, until it is refused, then
// segments until it is refused.
func fillMemory(bytes, more string) error {
	each, err := strconv.ParseInt(bytes, 10, 64)
	if err != nil {
		return err
	}
	if more != "" {
		room, err := strconv.ParseUint(more, 10, 64)
		if err != nil {
			return err
		}
		stat, err := os.ReadFile("/proc/self/statm")
		if err != nil {
			return err
		}
		pages, err := strconv.ParseUint(strings.Fields(string(stat))[0], 10, 64)
		if err != nil {
			return err
		}
		most := pages*uint64(os.Getpagesize()) + room
		if err := unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return err
		}
	}
	touch := func(b []byte) {
		for i := 0; i < len(b); i += page {
			b[i] = 1
		}
	}
	arenas, segments := 0, 0
	for ; err == nil && arenas < mostFilled; arenas++ {
		var a *shm.Arena
		if a, err = shm.New(shm.Config{Bytes: each, Prefault: arenas%2 == 0, HugePages: shm.HugePages(arenas % 3)}); err == nil {
			var l *shm.Loan
			if l, err = a.Loan(context.Background(), a.Size()); err == nil {
				touch(l.Bytes())
			}
		}
	}
	if !errors.Is(err, shm.ErrNoMemory) {
		return errors.Join(fmt.Errorf("arena %d of %d: want ErrNoMemory", arenas, mostFilled), err)
	}
	for err = nil; err == nil && segments < mostFilled; segments++ {
		var s *shm.Segment
		if s, err = shm.NewSegment(each); err == nil {
			touch(s.Bytes())
		}
	}
	if !errors.Is(err, shm.ErrNoMemory) {
		return errors.Join(fmt.Errorf("segment %d of %d: want ErrNoMemory", segments, mostFilled), err)
	}
	fmt.Println("refused arena", arenas, "and segment", segments)
	return nil
}

// TestFullMachineIsAnError runs a process in a control group with little memory,
// where writing to what was given would kill it if too much had been given.
func TestFullMachineIsAnError(t *testing.T) {
	dir := ""
	for _, g := range []struct{ base, limit, swap string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"},
		{"/sys/fs/cgroup", "memory.max", "memory.swap.max"},
	} {
		// Where version 1 is mounted the second is an ordinary directory, in which
		// anybody could make files of these names that limit nothing.
		var fs unix.Statfs_t
		if unix.Statfs(g.base, &fs) != nil || fs.Type != unix.CGROUP_SUPER_MAGIC && fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		try := filepath.Join(g.base, fmt.Sprint("stokehold-test-", os.Getpid()))
		if os.Mkdir(try, 0o700) != nil {
			continue
		}
		t.Cleanup(func() { os.Remove(try) })
		set := func(name string, n int) error {
			f, err := os.OpenFile(filepath.Join(try, name), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString(strconv.Itoa(n))
			return errors.Join(err, f.Close())
		}
		if set(g.limit, 160<<20) != nil {
			continue // the controller is not given to groups here
		}
		// What may be swapped out is not limited by the group. Version 1 counts both.
		swap := 0
		if g.limit == "memory.limit_in_bytes" {
			swap = 160 << 20
		}
		_ = set(g.swap, swap) // there may be no swap, and no such file
		dir = try
		break
	}
	if dir == "" {
		t.Skip("SKIPPED, this test proves nothing here: control groups cannot be made")
	}
	// The shell enters the group before it becomes the process.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `echo $$ > "$0"/cgroup.procs && exec "$1"`, dir, os.Args[0])
	cmd.Env = append(os.Environ(), limitEnv+"="+strconv.Itoa(16<<20))
	refused(t, cmd)
}

// TestAddressSpaceIsAnError limits what a process may map.
func TestAddressSpaceIsAnError(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), limitEnv+"="+strconv.Itoa(32<<20), mapEnv+"="+strconv.Itoa(400<<20))
	refused(t, cmd)
}

// refused runs fillMemory, which must get some memory and be refused more.
func refused(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "refused arena ") || strings.Contains(string(out), "arena 1 ") {
		t.Errorf("%v: %s", err, out)
	}
	t.Logf("%s", out)
}
