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

// Config bounds how far ahead is read. Zero values take the defaults.
type Config struct {
	MaxBatches int   // opened, or being opened, beside the one that the consumer has; default 32
	MaxBytes   int64 // of their bodies; default 512 MiB. One batch is read ahead whatever its size
	Parallel   int   // opened at once; default 4, at most MaxBatches
	// ToArena brings batches into the store's arena, so that each can be leased to
	// another process: MaxBytes must then leave room in it.
	ToArena bool
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
	bytes int64
	ready bool
	took  time.Duration
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
		a := &ahead{bytes: ref.BodyBytes, ready: err != nil, err: err}
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
			b, err := r.from.OpenBatch(ctx, ref, r.cfg.ToArena)
			<-r.slots
			r.settle(a, b, err, time.Since(begun))
		})
	}
}

// admit waits until the window has room for one more, and queues it.
func (r *reader) admit(ctx context.Context, a *ahead) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) > 0 && (len(r.queue) >= r.window.batches() || r.bytes+a.bytes > r.cfg.MaxBytes) && ctx.Err() == nil {
		r.changed.Wait()
	}
	if ctx.Err() != nil {
		return false
	}
	r.queue = append(r.queue, a)
	r.bytes += a.bytes
	r.changed.Broadcast()
	return true
}

func (r *reader) settle(a *ahead, b *tiers.Batch, err error, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a.batch, a.err, a.took, a.ready = b, err, took, true
	if err == nil {
		r.window.opened(took)
	}
	r.changed.Broadcast()
}

// next takes the batch that the consumer wants now; nil and no error at the end.
func (r *reader) next(ctx context.Context) (*tiers.Batch, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	begun := time.Now()
	waited := false
	for len(r.queue) == 0 && !r.ended || len(r.queue) > 0 && !r.queue[0].ready {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		waited = true
		r.changed.Wait()
	}
	if len(r.queue) == 0 {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		return nil, nil
	}
	a := r.queue[0]
	r.queue[0] = nil
	r.queue = r.queue[1:]
	r.bytes -= a.bytes
	r.changed.Broadcast()
	if a.err != nil {
		return nil, a.err
	}
	var stall time.Duration
	if waited {
		stall = time.Since(begun)
	}
	r.window.asked(stall)
	r.stats.add(a.bytes, waited, stall, r.window.batches())
	return a.batch, nil
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
	for _, a := range r.queue {
		if a.batch != nil {
			a.batch.Release()
			r.stats.wasted(a.bytes)
		}
	}
}
