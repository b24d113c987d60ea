package worker_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/stages/worker"
)

// Every thread of a child has short slices, those of its runtime too; the thread that
// started it has what it had.
func TestChildHasShortSlices(t *testing.T) {
	const slice = 500_000 // ns
	if !slicesDiffer(t, slice) {
		t.Skip("SKIPPED: slices of one length: Linux before 6.12, or a sandbox that forbids it")
	}
	h := host(t, worker.Config{})
	a := newArena(t, 1<<20)
	if err := h.Do(t.Context(), worker.Job{Stage: "double", Inputs: one(a, 3)}); err != nil {
		t.Fatal(err)
	}
	for _, got := range slicesOf(t, h.PID()) {
		if got != slice {
			t.Errorf("a thread of the child has slices of %d ns", got)
		}
	}
	for _, got := range slicesOf(t, os.Getpid()) {
		if got == slice {
			t.Error("a thread of this process has kept the child's slice")
		}
	}
}

// slicesDiffer reports whether a thread may have slices of its own.
func slicesDiffer(t *testing.T, slice uint64) bool {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	at, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return false
	}
	was := *at
	at.Runtime = slice
	if unix.SchedSetAttr(0, at, 0) != nil {
		return false
	}
	got, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SchedSetAttr(0, &was, 0); err != nil {
		t.Fatal(err)
	}
	return got.Runtime == slice
}

// slicesOf are the slices of a process's threads, in nanoseconds.
func slicesOf(t *testing.T, pid int) (ns []uint64) {
	t.Helper()
	threads, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*"))
	if err != nil || len(threads) == 0 {
		t.Fatalf("process %d has %d threads, %v", pid, len(threads), err)
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(filepath.Base(thread))
		if err != nil {
			t.Fatal(err)
		}
		if at, err := unix.SchedGetAttr(tid, 0); err == nil { // it has not ended meanwhile
			ns = append(ns, at.Runtime)
		}
	}
	return ns
}
