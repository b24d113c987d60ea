package tiers

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/stokehold/stokehold/events"
)

// End is the "to" of an open-ended read: until the dataset is sealed.
const End = ^uint64(0)

const (
	// recheck is how often a waiting reader looks at the head itself. Events wake it
	// much sooner; this bounds the wait when one is lost.
	recheck = 250 * time.Millisecond
	// stopWait bounds how long a reader's end waits for its subscription's.
	stopWait = 5 * time.Second
)

// Batches yields batches from..to-1 in sequence, waiting for those that are not
// committed yet (woken by judged events), until to, the seal, or ctx. The batch
// is released when the loop body ends: retain Record to keep it. A dataset that
// does not exist yet is waited for too. An error is yielded once and ends the
// loop.
func (s *Store) Batches(ctx context.Context, dataset string, from, to uint64, toArena bool) iter.Seq2[*Batch, error] {
	return func(yield func(*Batch, error) bool) {
		r := &reader{store: s, dataset: dataset}
		defer r.stop(ctx)
		for seq := from; seq < to; seq++ {
			b, err := r.next(ctx, seq, toArena)
			if err != nil {
				yield(nil, &Error{Op: "read", Dataset: dataset, Batch: batchID(dataset, seq), Err: err})
				return
			}
			if b == nil || !lend(b, yield) {
				return
			}
		}
	}
}

// lend releases the batch even if the loop body panics.
func lend(b *Batch, yield func(*Batch, error) bool) bool {
	defer b.Release()
	return yield(b, nil)
}

type reader struct {
	store    *Store
	dataset  string
	of       *Fence // whose batches are wanted; nil: all
	first    uint64 // there are none before
	limit    uint64 // as far as is known, there are none from here on
	ended    bool   // nor will there be
	consumer *events.Consumer
	wake     chan struct{}
	finished <-chan struct{}
}

// next waits for batch seq, or the first wanted one after it, and opens it; nil
// and no error if there is none and will be none.
func (r *reader) next(ctx context.Context, seq uint64, toArena bool) (*Batch, error) {
	e, err := r.find(ctx, seq)
	if err != nil || e == nil {
		return nil, err
	}
	b, err := r.store.openEntry(ctx, e, arena(toArena))
	if err == nil {
		r.store.count(b)
	}
	return b, err
}

// find waits for batch seq, or the first wanted one after it; nil and no error if
// there is none and will be none.
func (r *reader) find(ctx context.Context, seq uint64) (*entry, error) {
	var e entry
	for found := false; !found; {
		for seq >= r.limit {
			if r.ended {
				return nil, nil
			}
			if err := r.advance(ctx, seq); err != nil {
				return nil, err
			}
		}
		seq = max(seq, r.first)
		if seq >= r.limit {
			continue
		}
		var err error
		if e, err = r.store.entry(ctx, r.dataset, seq, true); err != nil {
			return nil, err
		}
		if found = r.of == nil || e.of(*r.of); !found {
			seq++
		}
	}
	if e.State == Expired {
		return nil, fmt.Errorf("%s: %w", e.Ref.ID(), ErrExpired)
	}
	return &e, nil
}

// advance returns once there is a batch seq or never will be, and otherwise after
// a wake-up.
func (r *reader) advance(ctx context.Context, seq uint64) error {
	if err := r.look(ctx); err != nil || r.limit > seq || r.ended {
		return err
	}
	if r.consumer == nil {
		// Subscribed before the head is looked at again: what is committed in between
		// is seen by one or the other.
		r.wake = make(chan struct{}, 1)
		c, err := r.store.bus.Subscribe(ctx, events.Subscription{
			Types: []string{events.TypeBatchPublished, events.TypeDatasetSealed}, Subject: r.dataset, Start: events.FromNow,
		}, func(context.Context, events.Delivery) error {
			select {
			case r.wake <- struct{}{}:
			default: // awake already
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("wait for batches: %w", err)
		}
		r.consumer = c
		return r.look(ctx)
	}
	t := time.NewTimer(recheck)
	defer t.Stop()
	select {
	case <-r.wake:
	case <-r.finished:
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return r.look(ctx)
}

// look reads how far the dataset, or the wanted part of it, has come. One that
// does not exist is one without batches.
func (r *reader) look(ctx context.Context) error {
	if r.of != nil {
		r.finished = r.store.finished.wait() // before looking: a ring after that is not missed
		p, err := r.store.part(ctx, r.dataset, *r.of)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err == nil {
			r.first, r.limit, r.ended = p.Base, p.To, p.Done
		}
		return err
	}
	rec, _, err := r.store.head(ctx, r.dataset)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err == nil {
		r.limit, r.ended = rec.Next, rec.Sealed
	}
	return err
}

func (r *reader) stop(ctx context.Context) {
	if r.consumer == nil {
		return
	}
	// The reader's context may have ended; its subscription must end all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWait)
	defer cancel()
	if err := r.consumer.Stop(ctx); err != nil {
		r.store.log.WarnContext(ctx, "a reader's subscription did not stop", "dataset", r.dataset, "error", err)
	}
}
