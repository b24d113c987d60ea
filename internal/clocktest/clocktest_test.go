package clocktest_test

import (
	"testing"
	"time"

	"github.com/stokehold/stokehold/internal/clocktest"
)

// Times of both clocks differ by the wall clock and agree by the monotonic one.
func TestNow(t *testing.T) {
	for _, by := range []time.Duration{0, time.Hour, -time.Hour, 100 * 24 * time.Hour} {
		before := time.Now()
		set := clocktest.Now(by)
		after := time.Now()
		if set.Sub(before) < 0 || after.Sub(set) < 0 {
			t.Errorf("%v: the monotonic clock was set: %v, between %v and %v", by, set, before, after)
		}
		if wall := set.Round(0); wall.Before(before.Round(0).Add(by)) || wall.After(after.Round(0).Add(by)) {
			t.Errorf("%v: the wall clock is %v, between %v and %v", by, wall, before, after)
		}
	}
}
