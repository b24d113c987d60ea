// Package prefetch reads batches ahead of their consumer, so that an accelerator
// does not wait for a disk or a network.
//
//	for batch, err := range prefetch.Batches(ctx, store, refs, prefetch.Config{ToArena: true}, &stats) {
//
// It opens batches in the order in which the consumer will ask for them, several at
// once, and hands them out in that order. How far ahead follows from what is
// measured: if opening a batch takes a time T from request to arrival and the
// consumer takes C for each, then T/C batches must be under way for one to be
// ready each time (Little's law: J. D. C. Little, "A proof for the queuing formula
// L = λW", Operations Research 9, 1961). The window is that and one to spare,
// within limits of batches and bytes; it grows at once when the consumer had to
// wait and shrinks slowly. When the loop ends everything that was opened ahead is
// given back.
package prefetch

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

// Opener opens a batch wherever it is. *tiers.Store implements it.
type Opener interface {
	OpenBatch(ctx context.Context, ref arrowio.Ref, toArena bool) (*tiers.Batch, error)
}

// Spare is an optional power of an Opener, for what is brought into the arena: that
// what is read ahead never keeps the memory from what is wanted now. *tiers.Store and
// *tiers.Reading have it.
type Spare interface {
	// OpenAhead opens a batch in the arena if there is room now, else elsewhere.
	OpenAhead(ctx context.Context, ref arrowio.Ref) (*tiers.Batch, error)
	// Bring returns it in the arena, waiting for room; it takes b, errors included.
	Bring(ctx context.Context, b *tiers.Batch) (*tiers.Batch, error)
	// OnPressure has give called when somebody waits for room that is not to be had.
	OnPressure(give func() bool) (stop func())
}

// Config bounds how far ahead is read. Zero values take the defaults.
type Config struct {
	MaxBatches int   // opened, or being opened, beside the one that the consumer has; default 32
	MaxBytes   int64 // of their bodies; default 512 MiB. One batch is read ahead whatever its size
	Parallel   int   // opened at once; default 4, at most MaxBatches
	// ToArena brings batches into the store's arena, so that each can be leased to
	// another process: MaxBytes must then leave room in it.
	ToArena bool
	// Budget bounds the bodies that are read ahead by all loops that have it, beside
	// MaxBytes for this one. nil: there is no other bound.
	Budget *Budget
	// Tail says that refs waits for batches that are still to be made: how long it
	// takes to name one is then counted as Idle, and no stall.
	Tail bool
	// Starved, if the consumer keeps batches beyond the loop body (it hands them on),
	// says since when it has had none: a wait before that is no stall. ok is false
	// while it has some. nil: it waits whenever the loop does.
	Starved func() (since time.Time, ok bool)
}

// ErrConfig means that a limit is negative.
var ErrConfig = errors.New("prefetch: unusable limits")

func (c Config) filled() (Config, error) {
	if c.MaxBatches < 0 || c.MaxBytes < 0 || c.Parallel < 0 {
		return c, fmt.Errorf("%w: MaxBatches %d, MaxBytes %d, Parallel %d: none may be negative", ErrConfig, c.MaxBatches, c.MaxBytes, c.Parallel)
	}
	if c.MaxBatches == 0 {
		c.MaxBatches = 32
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 512 << 20
	}
	if c.Parallel == 0 {
		c.Parallel = 4
	}
	c.Parallel = min(c.Parallel, c.MaxBatches)
	return c, nil
}

// Batches yields the batches of refs, in their order. Each is released when the
// loop body ends: retain Record to keep it. An error of refs or of opening a batch
// is yielded in its place and ends the loop. refs is ranged over in a goroutine of
// its own, ahead of the consumer, and must end when ctx does. stats is added to
// while the loop runs; nil: nobody wants to know.
func Batches(ctx context.Context, from Opener, refs iter.Seq2[arrowio.Ref, error], cfg Config, stats *Stats) iter.Seq2[*tiers.Batch, error] {
	return func(yield func(*tiers.Batch, error) bool) {
		cfg, err := cfg.filled()
		if err != nil {
			yield(nil, err)
			return
		}
		if stats == nil {
			stats = &Stats{}
		}
		ctx, cancel := context.WithCancel(ctx)
		r := &reader{from: from, cfg: cfg, stats: stats, slots: make(chan struct{}, cfg.Parallel), window: newWindow(cfg.MaxBatches)}
		r.changed.L = &r.mu
		defer r.end(cancel)
		if spare, ok := from.(Spare); ok && cfg.ToArena {
			r.spare = spare
			defer spare.OnPressure(r.give)()
		}
		defer cfg.Budget.join(r.wake)()
		// The end of ctx must wake whoever waits for a change.
		defer context.AfterFunc(ctx, r.wake)()
		r.running.Go(func() { r.ahead(ctx, refs) })
		for {
			b, err := r.next(ctx)
			if err != nil {
				yield(nil, err)
				return
			}
			if b == nil || !r.lend(b, yield) {
				return
			}
		}
	}
}

// reader is one loop.
type reader struct {
	from    Opener
	spare   Spare // nil: memory is not scarce, or from knows of no other way
	cfg     Config
	stats   *Stats
	slots   chan struct{} // one element for each batch being opened
	running sync.WaitGroup

	mu      sync.Mutex
	changed sync.Cond
	queue   []*ahead // in the consumer's order
	bytes   int64    // of their bodies
	window  window
	ended   bool // no more refs
}

// ahead is a batch that was asked for before the consumer did.
type ahead struct {
	ref   arrowio.Ref
	named time.Time // when it was known
	paid  bool      // its bytes are the budget's
	ready bool
	given bool // back, to somebody who wanted the memory
	batch *tiers.Batch
	err   error
}

func (r *reader) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed.Broadcast()
}

// ahead starts to open batches as far ahead as the window goes.
func (r *reader) ahead(ctx context.Context, refs iter.Seq2[arrowio.Ref, error]) {
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = true
		r.changed.Broadcast()
	}()
	for ref, err := range refs {
		a := &ahead{ref: ref, named: time.Now(), ready: err != nil, err: err}
		if !r.admit(ctx, a) || err != nil {
			return
		}
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			r.settle(a, nil, ctx.Err(), 0)
			return
		}
		r.running.Go(func() {
			begun := time.Now()
			b, err := r.open(ctx, ref)
			<-r.slots
			r.settle(a, b, err, time.Since(begun))
		})
	}
}

func (r *reader) open(ctx context.Context, ref arrowio.Ref) (*tiers.Batch, error) {
	if r.spare != nil {
		return r.spare.OpenAhead(ctx, ref)
	}
	return r.from.OpenBatch(ctx, ref, r.cfg.ToArena)
}

// admit waits until the window has room for one more, and queues it.
func (r *reader) admit(ctx context.Context, a *ahead) bool {
	if r.enqueue(ctx, a) {
		return true
	}
	r.pay(a)
	return false
}

func (r *reader) enqueue(ctx context.Context, a *ahead) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ctx.Err() == nil && len(r.queue) > 0 {
		if len(r.queue) < r.window.batches() && r.bytes+a.ref.BodyBytes <= r.cfg.MaxBytes && r.cfg.Budget.take(a.ref.BodyBytes) {
			a.paid = true
			break
		}
		r.changed.Wait()
	}
	if ctx.Err() != nil {
		return false
	}
	r.queue = append(r.queue, a)
	r.bytes += a.ref.BodyBytes
	r.changed.Broadcast()
	return true
}

// pay gives the budget back what a batch took of it. Not with mu held: others are
// woken.
func (r *reader) pay(a *ahead) {
	if a.paid {
		a.paid = false
		r.cfg.Budget.give(a.ref.BodyBytes)
	}
}

func (r *reader) settle(a *ahead, b *tiers.Batch, err error, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a.batch, a.err, a.ready = b, err, true
	if err == nil {
		r.window.opened(took)
	}
	r.changed.Broadcast()
}

// give gives back what was opened ahead of what the consumer wants next. It stays a
// hot copy until somebody needs the memory.
func (r *reader) give() bool {
	r.mu.Lock()
	var back []*tiers.Batch
	for i, a := range r.queue {
		if i > 0 && a.batch != nil && a.batch.Lease != nil {
			back = append(back, a.batch)
			a.batch, a.given = nil, true
		}
	}
	r.mu.Unlock()
	for _, b := range back {
		b.Release()
	}
	return len(back) > 0
}

// next takes the batch that the consumer wants now; nil and no error at the end.
func (r *reader) next(ctx context.Context) (*tiers.Batch, error) {
	begun := time.Now()
	a, waited, err := r.await(ctx)
	if a == nil || err != nil {
		return nil, err
	}
	defer r.pay(a) // what is read ahead, and not what the consumer has, counts
	b, err := a.batch, a.err
	switch {
	case err != nil:
	case a.given:
		waited = true
		b, err = r.from.OpenBatch(ctx, a.ref, r.cfg.ToArena)
	case r.spare != nil && b.Lease == nil:
		waited = true
		b, err = r.spare.Bring(ctx, b)
	}
	if err != nil {
		return nil, err
	}
	w := wait{waited: waited, fresh: waited && r.cfg.Tail && a.named.After(begun)}
	now := time.Now()
	if waited {
		if w.fresh {
			w.idle = a.named.Sub(begun)
			begun = a.named
		}
		w.stall = now.Sub(r.since(begun, now))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.fresh { // what its producer takes is not for the window to make up for
		r.window.asked(0)
	} else {
		r.window.asked(w.stall)
	}
	r.stats.add(a.ref.BodyBytes, w, r.window.batches())
	return b, nil
}

// since is when a wait from begun on began to keep the consumer from its work.
func (r *reader) since(begun, now time.Time) time.Time {
	if r.cfg.Starved == nil {
		return begun
	}
	at, starved := r.cfg.Starved()
	switch {
	case !starved || at.After(now):
		return now
	case at.After(begun):
		return at
	}
	return begun
}

// await waits for the first of the queue and takes it out; nil and no error at the
// end.
func (r *reader) await(ctx context.Context) (_ *ahead, waited bool, _ error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ctx.Err() == nil && (len(r.queue) == 0 && !r.ended || len(r.queue) > 0 && !r.queue[0].ready) {
		waited = true
		r.changed.Wait()
	}
	if ctx.Err() != nil { // also where there is one: the consumer was told to stop
		return nil, waited, context.Cause(ctx)
	}
	if len(r.queue) == 0 {
		return nil, waited, nil
	}
	a := r.queue[0]
	r.queue[0] = nil
	r.queue = r.queue[1:]
	r.bytes -= a.ref.BodyBytes
	r.changed.Broadcast()
	return a, waited, nil
}

// lend releases the batch even if the loop body panics, and notes how long the
// consumer took.
func (r *reader) lend(b *tiers.Batch, yield func(*tiers.Batch, error) bool) bool {
	defer b.Release()
	begun := time.Now()
	more := yield(b, nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.window.consumed(time.Since(begun))
	return more
}

// end stops reading ahead and gives back what was opened.
func (r *reader) end(cancel context.CancelFunc) {
	cancel()
	r.wake()
	r.running.Wait()
	r.mu.Lock()
	left := r.queue
	r.queue = nil
	r.mu.Unlock()
	for _, a := range left {
		r.pay(a)
		if a.batch != nil {
			a.batch.Release()
			r.stats.wasted(a.ref.BodyBytes)
		}
	}
}
