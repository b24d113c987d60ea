// Package clocktest sets clocks for tests: what time.Now returns after somebody has
// set the machine's wall clock, which its monotonic clock does not notice.
package clocktest

import (
	"time"
	"unsafe"
)

// layout is that of time.Time, which the test of this package holds to.
type layout struct {
	wall uint64 // a bit that says it has a monotonic reading, 33 bits of seconds, 30 of nanoseconds
	_    int64
	_    uintptr
}

const secondShift = 30

// Now is time.Now on a machine whose wall clock was set forward, or back, by whole
// seconds of by, while the monotonic one goes on.
func Now(by time.Duration) time.Time {
	t := time.Now()
	(*layout)(unsafe.Pointer(&t)).wall += uint64(by/time.Second) << secondShift //nolint:gosec // modulo 2^64, as is meant; see the test
	return t
}
