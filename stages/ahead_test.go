package stages_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/epoch"
)

// asked is a peer that has nothing, and notes for which batches it is asked: those
// that are being opened.
type asked struct {
	mu   sync.Mutex
	seqs []uint64
	wake chan struct{}
}

func newAsked() *asked { return &asked{wake: make(chan struct{}, 1)} }

func (a *asked) Resolve(_ context.Context, ref arrowio.Ref) (arrow.RecordBatch, error) {
	a.mu.Lock()
	a.seqs = append(a.seqs, ref.Sequence)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
	return nil, arrowio.ErrGone
}

func (a *asked) all() []uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.seqs)
}

// await waits until n batches were asked for.
func (a *asked) await(ctx context.Context, n int) error {
	for len(a.all()) < n {
		select {
		case <-a.wake:
		case <-time.After(10 * time.Second):
			return fmt.Errorf("%d batches were opened, want %d", len(a.all()), n)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// elsewhere is a process that has none of the batches in its arena.
func (w *world) elsewhere(peer arrowio.Resolver) *process {
	return w.process(func(c *tiers.Config) { c.Peers = peer })
}

func reader(name string, child bool) stages.Assignment {
	return stages.Assignment{
		Pipeline: pipeline, Run: "read-" + name, Stage: name, Attempt: 1, ChildProcess: child,
		Output: "out/" + name, Seal: true, Inputs: []stages.Binding{{Name: "in", Dataset: "in"}},
	}
}

// TestReadsAhead: while a stage has its first batch the next ones are opened, and
// counted as early.
func TestReadsAhead(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	w.process().fill("in", 12, 10)
	peer := newAsked()
	p := w.elsewhere(peer)
	res := p.run(stages.Func(func(ctx context.Context, task *stages.Task) error {
		n := 0
		for b, err := range task.Batches(ctx) {
			if err != nil {
				return err
			}
			if first(b) != int64(100*n) {
				t.Errorf("batch %d begins with %d", n, first(b))
			}
			n++
			if err := peer.await(ctx, min(n+1, 12)); err != nil {
				return err
			}
		}
		return nil
	}), reader("ahead", false))
	if d := res.Data; d.BatchesIn != 12 || d.Ahead.Hits+d.Ahead.Misses+d.Ahead.Fresh != 12 || d.Ahead.Hits < 6 || d.Ahead.Wasted != 0 {
		t.Errorf("%+v", d)
	}
	if got := p.ReadAhead(); got != res.Data.Ahead {
		t.Errorf("the runtime counts %+v, the stage %+v", got, res.Data.Ahead)
	}
	var told events.ReadAhead
	for d, err := range w.bus.Replay(w.ctx, events.Subscription{Types: []string{events.TypeStageCompleted}}) {
		if err != nil {
			t.Fatal(err)
		}
		var data events.StageCompleted
		if err := d.DataAs(&data); err != nil {
			t.Fatal(err)
		}
		if data.Stage == "ahead" {
			told = data.Ahead
		}
	}
	if told.Hits != int64(res.Data.Ahead.Hits) || told.BytesEarly != res.Data.Ahead.BytesEarly {
		t.Errorf("the event says %+v", told)
	}
}

func TestReadsAheadNoFurther(t *testing.T) {
	for name, tc := range map[string]struct {
		ahead stages.Ahead
		want  int // opened while the stage has its first batch
	}{
		"off":                     {stages.Ahead{Off: true}, 1},
		"less than a batch":       {stages.Ahead{Bytes: 1}, 2}, // one is always under way
		"one batch at a time":     {stages.Ahead{MaxBatches: 1}, 2},
		"as many as are expected": {stages.Ahead{}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, events.AllowAll())
			w.process().fill("in", 12, 10)
			peer := newAsked()
			p := w.elsewhere(peer)
			p.Ahead = tc.ahead
			p.run(stages.Func(func(ctx context.Context, task *stages.Task) error {
				for _, err := range task.Batches(ctx) {
					if err != nil {
						return err
					}
					if err := peer.await(ctx, tc.want); err != nil {
						return err
					}
					// That no more come is shown by those that could: another input is read.
					for range task.Range(ctx, "in", 11, 12) {
						break
					}
					got := peer.all()
					if got = slices.DeleteFunc(got, func(seq uint64) bool { return seq == 11 }); len(got) != tc.want {
						t.Errorf("opened %v", got)
					}
					return nil
				}
				return nil
			}), reader("bounded", false))
		})
	}
}

// TestReadAheadEnds: however a stage ends, what was opened ahead of it is given back
// (process and TestMain check leases, arena and goroutines).
func TestReadAheadEnds(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.fill("in", 20, 1000) // hot here: each batch that is open is a lease
	broken := errors.New("broken")
	gone, cancel := context.WithCancel(w.ctx)
	defer cancel()
	for name, tc := range map[string]struct {
		ctx  context.Context
		body func(n int) error
		want error
	}{
		"returns":   {w.ctx, func(int) error { return broken }, broken},
		"panics":    {w.ctx, func(int) error { panicking(); return nil }, nil},
		"cancelled": {gone, func(n int) error { cancel(); return nil }, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.Execute(tc.ctx, stages.Func(func(ctx context.Context, task *stages.Task) error {
				n := 0
				for _, err := range task.Batches(ctx) {
					if err != nil {
						return err
					}
					if n++; n < 3 {
						continue
					}
					if !within(10*time.Second, func() bool { return p.arena.Stats().Leases >= 2 }) {
						return errors.New("nothing is opened ahead")
					}
					if err := tc.body(n); err != nil {
						return err
					}
				}
				return nil
			}), reader(name, false), stages.Hooks{})
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("ended with %v", err)
			}
			if n := p.arena.Stats().Leases; n != 0 {
				t.Errorf("%d leases are left", n)
			}
		})
	}
	if n := p.ReadAhead(); n.Wasted == 0 {
		t.Errorf("nothing was opened ahead: %+v", n)
	}
}

// TestResumedReadsAheadFromThere: an attempt that goes on at a checkpoint opens
// nothing before it.
func TestResumedReadsAheadFromThere(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	w.process().fill("in", 12, 10)
	peer := newAsked()
	p := w.elsewhere(peer)
	stage := stages.Func(func(ctx context.Context, task *stages.Task) error {
		from := uint64(0)
		if _, err := task.Restore(ctx, &from); err != nil {
			return err
		}
		for b, err := range task.Range(ctx, "in", from, 12) {
			if err != nil {
				return err
			}
			if err := task.Checkpoint(ctx, b.Ref.Sequence+1); err != nil {
				return err
			}
			if b.Ref.Sequence == 6 && task.Attempt == 1 {
				return errors.New("again")
			}
		}
		return nil
	})
	var seen reports
	a := reader("resumed", false)
	if _, err := p.Execute(w.ctx, stage, a, stages.Hooks{Report: seen.add}); err == nil {
		t.Fatal("the first attempt succeeded")
	}
	before := len(peer.all())
	a.Attempt = 2
	res, err := p.Execute(w.ctx, stage, a, stages.Hooks{Previous: seen.last()})
	if err != nil {
		t.Fatal(err)
	}
	again := peer.all()[before:]
	slices.Sort(again) // several are opened at once
	equal(t, "opened again", again, 7, 8, 9, 10, 11)
	if res.Data.BatchesIn != 5 {
		t.Errorf("%+v", res.Data)
	}
}

// TestEpochsOfAnInput: a stage reads its input in a seeded order, the same each
// time, read ahead in that order.
func TestEpochsOfAnInput(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	w.process().fill("in", 12, 10)
	for name, tc := range map[string]struct {
		order epoch.Order
	}{
		"shuffled": {epoch.Order{Kind: epoch.Shuffled, Seed: 7}},
		"windowed": {epoch.Order{Kind: epoch.Windowed, Seed: 7, Window: 4}},
		"in turn":  {epoch.Order{}},
	} {
		t.Run(name, func(t *testing.T) {
			peer := newAsked()
			p := w.elsewhere(peer)
			var want, got []int64
			res := p.run(stages.Func(func(ctx context.Context, task *stages.Task) error {
				d, err := task.Epochs(ctx, "in", epoch.Config{Order: tc.order})
				if err != nil {
					return err
				}
				for e := range uint64(2) {
					for i := range uint64(12) {
						want = append(want, 100*int64(tc.order.At(e, 12, i)))
					}
					for b, err := range d.Epoch(ctx, e) {
						if err != nil {
							return err
						}
						got = append(got, first(&tiers.Batch{Record: b.Record}))
						if err := peer.await(ctx, min(len(got)+1, 12*int(e+1))); err != nil {
							return err
						}
					}
				}
				return nil
			}), reader("epochs-"+name, false))
			equal(t, "read", got, want...)
			if d := res.Data; d.BatchesIn != 24 || d.Ahead.Hits+d.Ahead.Misses != 24 || d.Ahead.Hits == 0 {
				t.Errorf("%+v", d)
			}
		})
	}
}

func TestNoEpochsInAChild(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process().children()
	p.fill("in", 1, 1)
	_, err := p.Execute(w.ctx, stages.Func(epochs), reader("epochs", true), stages.Hooks{})
	if !stages.IsPermanent(err) {
		t.Errorf("%v", err)
	}
}

func epochs(ctx context.Context, task *stages.Task) error {
	_, err := task.Epochs(ctx, "in", epoch.Config{})
	return err
}

// TestReadAheadOfAChildInASmallArena: what is read ahead for one input gives way to
// what another one needs now.
func TestReadAheadOfAChildInASmallArena(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	const rows = 130_000 // about 1 MiB; the arena has 8
	full := w.process()
	full.fill("in", 16, rows)
	full.fill("other", 16, rows)
	p := w.elsewhere(nil).children()
	p.Ahead = stages.Ahead{Bytes: 1 << 30, MaxBatches: 32, Parallel: 8} // more than there is
	a := reader("zips", true)
	a.Inputs = append(a.Inputs, stages.Binding{Name: "other", Dataset: "other"})
	res := p.run(zips, a)
	if res.Data.BatchesIn != 32 || res.Rows != 16 {
		t.Errorf("%+v", res)
	}
	if res := p.run(double, reader("double", true)); res.Data.BatchesIn != 16 || res.Data.Ahead.Hits+res.Data.Ahead.Misses+res.Data.Ahead.Fresh != 16 {
		t.Errorf("%+v", res)
	}
}

// zips reads two inputs in step and holds several of the one.
var zips = stages.Func(func(ctx context.Context, task *stages.Task) error {
	next, stop := iter.Pull2(task.Range(ctx, "other", 0, 16))
	defer stop()
	for a, err := range task.Range(ctx, "in", 0, 16) {
		if err != nil {
			return err
		}
		b, err, ok := next()
		if err != nil || !ok {
			return fmt.Errorf("%v, %w", ok, err)
		}
		if first(a) != first(b) {
			return fmt.Errorf("%d beside %d", first(a), first(b))
		}
		if err := write(ctx, task, first(a), 1); err != nil {
			return err
		}
	}
	return nil
})

// within polls until ok, and reports whether it was in time.
func within(d time.Duration, ok func() bool) bool {
	end := time.NewTimer(d)
	defer end.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end.C:
			return false
		}
	}
	return true
}
