package policy

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/stokehold/stokehold/arrowio"
)

const (
	// keepEvery is how often a Keeper looks, unless it is told.
	keepEvery = 5 * time.Second
	// measureShare bounds what looking costs: after it took a time, the next look is
	// at least so many times that later.
	measureShare = 20
	// demoteBatches is how many batches a Keeper has on their way out at most, those that
	// wait for people aside.
	demoteBatches = 512
	// maxParked bounds the migrations that wait for people and are remembered.
	maxParked = 256
)

// Room is what a Keeper needs of a *tiers.Store.
type Room interface {
	Tiers
	HasWarm(ref arrowio.Ref, l arrowio.Location) bool
	ArenaBytes() (used, size int64)
	TrimHot(most int64) int
}

// Keeper keeps the arena and the warm directory of one process below the watermarks
// of the policies. Run does, until its context ends.
type Keeper struct {
	Store    Room
	Policies func() *Set
	Quota    int64         // bytes of the warm directory; 0: none
	Every    time.Duration // between looks; default 5 s
	// Evict starts the migration that a task asks for and returns how to wait for its
	// end, grace and all. The move is judged there: what is refused is asked for again
	// after a while that doubles. That is all of the task, unless the error wraps a
	// RefusedError. wait calls parked, once, when people must approve it: the batches are
	// left alone until they have answered, and others are evicted instead, so that nobody's
	// silence keeps what needs no approval on a full disk.
	Evict func(ctx context.Context, t Task) (wait func(ctx context.Context, parked func()) error, err error)
	Clock func() time.Time // that batches are committed by; default time.Now
	Log   *slog.Logger

	mu      sync.Mutex
	leaving []Task // under way
	parked  []Task // wait for people
	refused []hold // asked for again later
	wg      sync.WaitGroup
}

// RefusedError says which parts of a task were refused: the rest was carried out.
type RefusedError struct {
	Parts []Task
	Err   error
}

func (e *RefusedError) Error() string { return e.Err.Error() }

func (e *RefusedError) Unwrap() error { return e.Err }

// hold is how long a refused task is left alone, by the monotonic clock.
type hold struct {
	Task
	until time.Time
	pause time.Duration
}

const (
	firstPause = 10 * time.Second
	lastPause  = 10 * time.Minute
	maxRefused = 1024
)

// Run looks again and again until ctx ends, and returns when what it has started no
// longer needs it. The migrations themselves go on.
func (k *Keeper) Run(ctx context.Context) {
	defer k.wg.Wait()
	if k.Log == nil {
		k.Log = slog.New(slog.DiscardHandler)
	}
	every := k.Every
	if every <= 0 {
		every = keepEvery
	}
	for {
		begun := time.Now()
		if err := k.Look(ctx); err != nil && ctx.Err() == nil {
			k.Log.WarnContext(ctx, "the watermarks of the tiers cannot be looked after; it is tried again", "error", err)
		}
		t := time.NewTimer(max(every, measureShare*time.Since(begun)))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// Look makes room once, where there is too little: in the arena at once, in the warm
// directory by starting migrations.
func (k *Keeper) Look(ctx context.Context) error {
	set := k.Policies()
	marks, ok := set.Watermarks()
	if !ok {
		return nil
	}
	if used, size := k.Store.ArenaBytes(); marks.HotHigh > 0 && float64(used) > marks.HotHigh*float64(size) {
		n := k.Store.TrimHot(int64(marks.HotLow * float64(size)))
		k.log().DebugContext(ctx, "hot copies are given up", "batches", n, "policy", marks.Policy)
	}
	if k.Quota <= 0 {
		return nil
	}
	used, err := k.Store.WarmBytes(ctx)
	if err != nil || float64(used) <= marks.High*float64(k.Quota) {
		return err
	}
	now := time.Now
	if k.Clock != nil {
		now = k.Clock
	}
	next, stays := Uses(ctx, k.Store, k.log())
	tasks, _, err := set.Demote(ctx, k.Store, Shortage{
		Quota: k.Quota, Limit: k.room(), Here: k.Store.HasWarm, Leaving: k.isLeaving,
		Stays:      func(dataset string, seq uint64) bool { return k.isHeld(dataset, seq) || stays(dataset, seq) },
		Conditions: Conditions{Now: now(), Pressure: float64(used) / float64(k.Quota), Next: next},
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tasks {
		errs = append(errs, k.evict(ctx, t))
	}
	return errors.Join(errs...)
}

func (k *Keeper) log() *slog.Logger {
	if k.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return k.Log
}

// room is how many more batches may be on their way out.
func (k *Keeper) room() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := demoteBatches
	for _, t := range k.leaving {
		n -= int(t.To - t.From)
	}
	return max(n, 0)
}

func (k *Keeper) isLeaving(dataset string, seq uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range k.leaving {
		if t.covers(dataset, seq) {
			return true
		}
	}
	return false
}

// isHeld reports whether a batch was refused a short while ago, or waits for people.
func (k *Keeper) isHeld(dataset string, seq uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range k.parked {
		if t.covers(dataset, seq) {
			return true
		}
	}
	for _, h := range k.refused {
		if h.covers(dataset, seq) && time.Now().Before(h.until) {
			return true
		}
	}
	return false
}

// hold leaves a refused task alone for a while, twice as long as the last time.
// Callers hold mu.
func (k *Keeper) hold(t Task) (pause time.Duration) {
	pause = firstPause
	k.refused = slices.DeleteFunc(k.refused, func(h hold) bool {
		if !h.Overlaps(t) {
			return false
		}
		pause = max(pause, min(2*h.pause, lastPause))
		return true
	})
	if len(k.refused) == maxRefused {
		k.refused = k.refused[1:]
	}
	k.refused = append(k.refused, hold{t, time.Now().Add(pause), pause})
	return pause
}

func (k *Keeper) evict(ctx context.Context, t Task) error {
	wait, err := k.Evict(ctx, t)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.leaving = append(k.leaving, t)
	k.mu.Unlock()
	k.wg.Go(func() {
		err := wait(ctx, func() { k.park(ctx, t) })
		k.mu.Lock()
		defer k.mu.Unlock()
		k.leaving, k.parked = without(k.leaving, t), without(k.parked, t)
		if err == nil || ctx.Err() != nil {
			return
		}
		parts := []Task{t}
		if refused := new(RefusedError); errors.As(err, &refused) {
			parts = refused.Parts
		}
		for _, part := range parts {
			k.log().WarnContext(ctx, "batches do not leave the warm tier", "dataset", part.Dataset, "from", part.From, "to", part.To, "again_in", k.hold(part), "error", err)
		}
	})
	return nil
}

// park no longer counts on a task that waits for people. Of too many the oldest are
// forgotten, which may ask for some of their batches once more.
func (k *Keeper) park(ctx context.Context, t Task) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !slices.Contains(k.leaving, t) {
		return
	}
	k.leaving = without(k.leaving, t)
	if len(k.parked) == maxParked {
		k.parked = k.parked[1:]
	}
	k.parked = append(k.parked, t)
	k.log().WarnContext(ctx, "batches leave the warm tier once people have approved it; others go instead", "dataset", t.Dataset, "from", t.From, "to", t.To)
}

func without(tasks []Task, t Task) []Task {
	return slices.DeleteFunc(tasks, func(have Task) bool { return have == t })
}
