package worker_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/stages/worker"
)

// Every thread of a child has short slices where the kernel knows such, those of its
// runtime too; the thread that started it has what it had.
func TestChildHasShortSlices(t *testing.T) {
	slice, usual := slices(t, 500_000)
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
		if got != usual {
			t.Errorf("a thread of this process has slices of %d ns, not %d", got, usual)
		}
	}
}

// slices are what a thread has that asks for slices of so many nanoseconds, and what it
// had before. They are the same on Linux before 6.12, and where a sandbox forbids it.
func slices(t *testing.T, ask uint64) (asked, usual uint64) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	was, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	short := *was
	short.Runtime = ask
	if unix.SchedSetAttr(0, &short, 0) != nil {
		return was.Runtime, was.Runtime
	}
	got, err := unix.SchedGetAttr(0, 0)
	if err := errors.Join(err, unix.SchedSetAttr(0, was, 0)); err != nil {
		t.Fatal(err)
	}
	return got.Runtime, was.Runtime
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
