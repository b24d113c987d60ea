package tiers

import (
	"math"
	"testing"
	"time"
)

// The speed is that of the newest marks, and of a reader that stands still what it can
// be at most.
func TestSpeedOfAReader(t *testing.T) {
	var s speed
	at := time.Now()
	mark := func(after time.Duration, place uint64, want float64) {
		t.Helper()
		at = at.Add(after)
		if got := s.note(at, place); math.Abs(got-want) > 1e-9 {
			t.Errorf("at %d: %v per second, want %v", place, got, want)
		}
	}
	mark(0, 100, 0)
	mark(time.Second, 104, 4)
	mark(9*time.Second, 120, 2)
	for i := range 2 * speedMarks {
		s.note(at.Add(time.Duration(i+1)*10*time.Second), 120+10*uint64(i+1))
	}
	at = at.Add(2 * speedMarks * 10 * time.Second)
	mark(10*time.Second, 120+10*(2*speedMarks+1), 1) // as fast as of late
	for range 2 * speedMarks {
		at = at.Add(10 * time.Second)
		s.note(at, 290)
	}
	mark(10*time.Second, 290, 1/(10.*(2*speedMarks+1))) // one in all that time, at most
	if n := len(s.marks); n > speedMarks+1 {
		t.Errorf("%d marks are kept", n)
	}
}

func TestReads(t *testing.T) {
	r := Reads{At: 100, To: 1000, PerSecond: 4}
	for seq, want := range map[uint64]time.Duration{100: 0, 101: 250 * time.Millisecond, 500: 100 * time.Second, 999: 224750 * time.Millisecond} {
		if got, ok := r.Until(seq); !ok || got != want {
			t.Errorf("batch %d in %v, %t, want %v", seq, got, ok, want)
		}
	}
	for _, seq := range []uint64{0, 99, 1000, End} {
		if got, ok := r.Until(seq); ok {
			t.Errorf("batch %d in %v", seq, got)
		}
	}
	if got, ok := (Reads{To: End, PerSecond: 1e-9}).Until(End - 1); !ok || got != maxUntil {
		t.Errorf("the last of all in %v, %t", got, ok)
	}
	for name, c := range map[string]struct {
		r        Reads
		from, to uint64
	}{
		"slow":             {Reads{At: 100, To: 1000, PerSecond: 0.01}, 100, 132},
		"by its speed":     {Reads{At: 100, To: 1000, PerSecond: 4}, 100, 220},
		"bounded":          {Reads{At: 100, To: End, PerSecond: 1e9}, 100, 612},
		"up to its end":    {Reads{At: 100, To: 110, PerSecond: 4}, 100, 110},
		"at the beginning": {Reads{At: 0, To: End, PerSecond: 0.01}, 0, 32},
		"behind its end":   {Reads{At: 110, To: 110, PerSecond: 4}, 110, 110},
		"not begun":        {Reads{At: 0, To: End, Later: true}, 0, 0},
		"in epochs":        {Reads{At: 5, To: 10, PerSecond: 4, Order: []byte("{}")}, 0, 0},
	} {
		if from, to := c.r.hold(30 * time.Second); from != c.from || to != c.to {
			t.Errorf("%s: holds %d to before %d, want %d to before %d", name, from, to, c.from, c.to)
		}
	}
}
