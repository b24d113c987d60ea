package prefetch

import (
	"math"
	"time"
)

// window is how many batches are under way or ready beside the one that the
// consumer has.
type window struct {
	most   int
	now    float64
	open   average // seconds from a request to its arrival
	use    average // seconds that the consumer takes for a batch
	served int
}

// firstWindow is what is read ahead before anything is known.
const firstWindow = 2

// shrink is how much of the way to a smaller window is gone with each batch: slow
// enough that one quick batch does not close the window.
const shrink = 1.0 / 16

func newWindow(most int) window { return window{most: most, now: float64(min(firstWindow, most))} }

func (w *window) batches() int { return min(max(int(math.Ceil(w.now)), 1), w.most) }

func (w *window) opened(took time.Duration) { w.open.add(took.Seconds()) }

func (w *window) consumed(took time.Duration) { w.use.add(took.Seconds()) }

// asked notes that the consumer took a batch, for which it had to wait.
func (w *window) asked(stall time.Duration) {
	w.served++
	want := w.want()
	if stall > 0 && w.served > 1 { // the first always waits
		want = max(want, w.now+1)
	}
	if want > w.now {
		w.now = want
	} else {
		w.now += (want - w.now) * shrink
	}
	w.now = min(max(w.now, 1), float64(w.most))
}

// want is Little's law, and one to spare.
func (w *window) want() float64 {
	if !w.open.known || !w.use.known {
		return w.now
	}
	const least = 1e-6 // a consumer that takes no time wants all there is
	return math.Ceil(w.open.mean/max(w.use.mean, least)) + 1
}

// average is an exponentially weighted moving average over about eight values.
type average struct {
	mean  float64
	known bool
}

func (a *average) add(v float64) {
	if !a.known {
		a.mean, a.known = v, true
		return
	}
	a.mean += (v - a.mean) / 8
}
