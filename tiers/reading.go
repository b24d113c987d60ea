package tiers

import (
	"context"
	"fmt"
	"iter"
	"sync"

	"github.com/stokehold/stokehold/arrowio"
)

// Reading is one loop over a dataset in two halves: which batches there are, and
// opening them, which may be done ahead and several at once (package prefetch).
// Batches and Appended are both halves in one. Refs is ranged over by one goroutine;
// the other methods are safe for concurrent use.
type Reading struct {
	store   *Store
	dataset string
	of      *Fence
	from    uint64
	to      uint64

	mu    sync.Mutex
	named map[uint64]*entry // that are not opened yet
}

// Reading is Batches in two halves.
func (s *Store) Reading(dataset string, from, to uint64) *Reading {
	return &Reading{store: s, dataset: dataset, from: from, to: to, named: map[uint64]*entry{}}
}

// ReadingAppended is Appended in two halves.
func (s *Store) ReadingAppended(dataset, run, stage string) *Reading {
	r := s.Reading(dataset, 0, End)
	r.of = &Fence{Run: run, Stage: stage}
	return r
}

// Refs names the batches in sequence, waiting for those that are not committed yet,
// as Batches does. An error is yielded once and ends the loop.
func (r *Reading) Refs(ctx context.Context) iter.Seq2[arrowio.Ref, error] {
	return func(yield func(arrowio.Ref, error) bool) {
		in := &reader{store: r.store, dataset: r.dataset, of: r.of}
		defer in.stop(ctx)
		for seq := r.from; seq < r.to; seq++ {
			e, err := in.find(ctx, seq)
			if err != nil {
				yield(arrowio.Ref{}, r.fail(seq, err))
				return
			}
			if e == nil {
				return
			}
			seq = e.Ref.Sequence
			r.mu.Lock()
			r.named[seq] = e
			r.mu.Unlock()
			if !yield(e.Ref, nil) {
				return
			}
		}
	}
}

// Batches is both halves in one.
func (r *Reading) Batches(ctx context.Context, toArena bool) iter.Seq2[*Batch, error] {
	if r.of != nil {
		return r.store.Appended(ctx, r.dataset, r.of.Run, r.of.Stage, toArena)
	}
	return r.store.Batches(ctx, r.dataset, r.from, r.to, toArena)
}

// OpenBatch opens a committed batch of the dataset as a reader of the dataset sees it: without
// the columns that governance takes out. For the rest it is as Store.OpenBatch.
func (r *Reading) OpenBatch(ctx context.Context, ref arrowio.Ref, toArena bool) (*Batch, error) {
	return r.open(ctx, ref, arena(toArena))
}

// OpenAhead is OpenBatch for a batch that nobody waits for yet: it is brought into
// the arena if there is room now, and else stays where it is (Batch.Lease is nil).
func (r *Reading) OpenAhead(ctx context.Context, ref arrowio.Ref) (*Batch, error) {
	return r.open(ctx, ref, ifRoom)
}

// Bring is Store.Bring.
func (r *Reading) Bring(ctx context.Context, b *Batch) (*Batch, error) { return r.store.Bring(ctx, b) }

// OnPressure is Store.OnPressure.
func (r *Reading) OnPressure(give func() bool) (stop func()) { return r.store.OnPressure(give) }

func (r *Reading) open(ctx context.Context, ref arrowio.Ref, use arenaUse) (*Batch, error) {
	r.mu.Lock()
	e := r.named[ref.Sequence]
	delete(r.named, ref.Sequence)
	r.mu.Unlock()
	if e == nil { // opened before, or never named by Refs
		now, err := r.store.entry(ctx, r.dataset, ref.Sequence, true)
		if err != nil {
			return nil, r.fail(ref.Sequence, err)
		}
		e = &now
	}
	if e.State == Expired {
		return nil, r.fail(ref.Sequence, fmt.Errorf("%s: %w", ref.ID(), ErrExpired))
	}
	b, err := r.store.openEntry(ctx, e, use)
	if err != nil {
		return nil, r.fail(ref.Sequence, err)
	}
	r.store.count(b)
	return b, nil
}

func (r *Reading) fail(seq uint64, err error) error {
	e := &Error{Op: "read", Dataset: r.dataset, Err: err}
	if r.of == nil {
		e.Batch = batchID(r.dataset, seq)
	}
	return e
}

// OpenAhead is OpenBatch for a batch that nobody waits for yet: it is brought into
// the arena if there is room now, and else stays where it is (Batch.Lease is nil).
func (s *Store) OpenAhead(ctx context.Context, ref arrowio.Ref) (*Batch, error) {
	b, err := s.openRef(ctx, ref, ifRoom)
	if err != nil {
		return nil, &Error{Op: "open", Dataset: ref.Dataset, Batch: ref.ID(), Err: err}
	}
	s.count(b)
	return b, nil
}

// Bring returns b in the arena, with a lease to hand on: b itself if it is there,
// else a copy, for which it waits for room until ctx ends. It takes b, errors
// included.
func (s *Store) Bring(ctx context.Context, b *Batch) (*Batch, error) {
	if b.Lease != nil {
		return b, nil
	}
	labels := b.Labels
	in, err := s.bringOne(ctx, b)
	if err != nil {
		return nil, &Error{Op: "open", Dataset: b.Ref.Dataset, Batch: b.Ref.ID(), Err: err}
	}
	in.Labels = labels
	return in, nil
}

func (s *Store) bringOne(ctx context.Context, b *Batch) (*Batch, error) {
	if b.partial {
		return s.copyFor(ctx, b, inArena)
	}
	if s.hot.arena == nil {
		b.Release()
		return nil, ErrNoArena
	}
	unlock, err := s.hot.fetch.lock(ctx, b.Ref.ID())
	if err != nil {
		b.Release()
		return nil, err
	}
	defer unlock()
	if there, _ := s.openHot(b.Ref); there != nil {
		b.Release()
		return there, nil
	}
	return s.bring(ctx, b, inArena)
}
