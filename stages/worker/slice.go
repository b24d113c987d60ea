package worker

import (
	"time"

	"golang.org/x/sys/unix"
)

// childSlice is how long the threads of a child ask the kernel to run at a stretch.
// Who asks for little is put before who has long slices when it wakes, with the share of
// the processors that it would have had. Without it, the thread that feeds an accelerator
// wakes up to a scheduler tick late (4 ms) while this process hashes and decodes on all
// processors. docs/decisions/0048 has figures.
const childSlice = 500 * time.Microsecond

// sliced calls start with childSlice for the calling thread, which the caller has locked:
// what it starts inherits that. Kernels before Linux 6.12 have slices of one length.
func sliced(start func() error) error {
	had, err := unix.SchedGetAttr(0, 0)
	if err != nil || had.Policy != unix.SCHED_NORMAL {
		return start()
	}
	short := *had
	short.Runtime = uint64(childSlice)
	if unix.SchedSetAttr(0, &short, 0) != nil {
		return start() // forbidden; it is for speed alone
	}
	defer func() { _ = unix.SchedSetAttr(0, had, 0) }() // allowed a moment ago
	return start()
}
