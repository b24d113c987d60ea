package tiers

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/stokehold/stokehold/events"
)

// Segment is what one stage of one run has appended to a dataset. Where other
// runs appended at the same time, some of From..To-1 are theirs.
type Segment struct {
	From    uint64 `json:"from"` // where the dataset ended when the stage first opened it
	To      uint64 `json:"to"`   // one past the newest of the stage's batches
	Batches uint64 `json:"batches"`
	Done    bool   `json:"done"` // the stage has completed: nothing is added any more
}

// Segment returns what a stage of a run has appended so far, ErrNotFound if the
// stage has not opened the dataset.
func (s *Store) Segment(ctx context.Context, dataset, run, stage string) (Segment, error) {
	p, err := s.part(ctx, dataset, Fence{Run: run, Stage: stage})
	if err != nil {
		return Segment{}, &Error{Op: "segment", Dataset: dataset, Err: err}
	}
	return Segment{From: p.Base, To: p.To, Batches: p.Own, Done: p.Done}, nil
}

// part looks at the head first: a writer that is displaced after that has its
// part archived before, so it is found in one place or the other.
func (s *Store) part(ctx context.Context, dataset string, f Fence) (part, error) {
	rec, _, err := s.head(ctx, dataset)
	switch {
	case err == nil && rec.of(f):
		return rec.part, nil
	case err != nil && !errors.Is(err, ErrNotFound):
		return part{}, err
	}
	name, err := token("dataset", dataset)
	if err != nil {
		return part{}, err
	}
	key, err := fenceKey(name, f)
	if err != nil {
		return part{}, err
	}
	var kept partRecord
	_, err = s.catalog.get(ctx, key, &kept)
	return kept.part, err
}

// Appended yields the batches that a stage of a run appends to a long-lived
// dataset, in sequence, waiting for those not committed yet, until the stage has
// completed (Writer.Finish) or ctx ends. Batches that others append meanwhile are
// left out. For the rest it is as Batches.
func (s *Store) Appended(ctx context.Context, dataset, run, stage string, toArena bool) iter.Seq2[*Batch, error] {
	return func(yield func(*Batch, error) bool) {
		r := &reader{store: s, dataset: dataset, of: &Fence{Run: run, Stage: stage}}
		defer r.stop(ctx)
		for seq := uint64(0); ; seq++ {
			b, err := r.next(ctx, seq, toArena)
			if err != nil {
				yield(nil, &Error{Op: "read", Dataset: dataset, Err: err})
				return
			}
			if b == nil {
				return
			}
			seq = b.Ref.Sequence
			if !lend(b, yield) {
				return
			}
		}
	}
}

// Place returns the sequence of the n-th batch, from 0, that the writer's stage
// has appended in this run; for the one after the newest, where it goes. ErrGap
// beyond that.
//
// It is Base+n unless another run has appended in between.
func (w *Writer) Place(ctx context.Context, n uint64) (uint64, error) {
	p := w.head.part
	switch {
	case n > p.Own:
		return 0, &Error{Op: "write", Dataset: w.dataset, Err: fmt.Errorf("%w: batch %d of stage %s, which has appended %d in this run", ErrGap, n, w.fence.Stage, p.Own)}
	case n == p.Own:
		return w.head.Next, nil
	case p.To-p.Base == p.Own:
		return p.Base + n, nil
	}
	if w.own == nil {
		own := make([]uint64, 0, p.Own)
		for seq := p.Base; seq < p.To; seq++ {
			e, err := w.store.entry(ctx, w.dataset, seq, true)
			if err != nil {
				return 0, &Error{Op: "write", Dataset: w.dataset, Batch: batchID(w.dataset, seq), Err: err}
			}
			if e.of(w.fence) {
				own = append(own, seq)
			}
		}
		w.own = own
	}
	return w.own[n], nil
}

// of reports whether f's stage and run wrote the batch, in whichever attempt.
func (e entry) of(f Fence) bool { return e.Fence.Run == f.Run && e.Fence.Stage == f.Stage }

// of reports whether f's stage and run write the dataset, in whichever attempt.
func (h headRecord) of(f Fence) bool { return h.Fence.Run == f.Run && h.Fence.Stage == f.Stage }

// bell wakes all who wait, in this process.
type bell struct {
	mu sync.Mutex
	ch chan struct{} // closed by the next ring; nil: nobody has asked
}

// wait returns a channel that the next ring closes.
func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// Finish records that the writer's stage has completed in this run: Appended
// ends there. The dataset stays open to other runs; a later attempt of the stage
// finds its batches but can add none. Repeatable.
func (w *Writer) Finish(ctx context.Context) error {
	if err := w.finish(ctx); err != nil {
		return &Error{Op: "finish", Dataset: w.dataset, Err: err}
	}
	return nil
}

func (w *Writer) finish(ctx context.Context) error {
	if err := w.announce(ctx); err != nil {
		return err
	}
	if err := w.settleLabels(ctx); err != nil {
		return err
	}
	if err := w.store.finish(ctx, w.dataset, w.fence); err != nil {
		return err
	}
	w.head.Done = true
	return nil
}

// Finish is Writer.Finish for an attempt that has no Writer open since it had
// nothing to write. It fences nobody.
func (s *Store) Finish(ctx context.Context, dataset string, f Fence) error {
	if err := s.finish(ctx, dataset, f); err != nil {
		return &Error{Op: "finish", Dataset: dataset, Err: err}
	}
	return nil
}

// finish marks f's part, wherever it is, as done. A writer of another run may
// have taken over since f's last commit: that does not undo the commit, so it is
// no reason to refuse. A newer attempt of the same stage is.
func (s *Store) finish(ctx context.Context, dataset string, f Fence) error {
	name, err := token("dataset", dataset)
	if err != nil {
		return err
	}
	key, err := fenceKey(name, f)
	if err != nil {
		return err
	}
	for range maxRaces {
		rec, rev, err := s.head(ctx, dataset)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if err != nil || !rec.of(f) {
			_, err = update(ctx, s.catalog, key, func(p *partRecord, exists bool) (bool, error) {
				switch {
				case exists && p.Attempt > f.Attempt:
					return false, fenced(p.Attempt, f)
				case exists && p.Done:
					return false, nil
				case !exists:
					p.Base, p.To = rec.Next, rec.Next
				}
				p.Attempt, p.Done = f.Attempt, true
				return true, nil
			})
			s.finished.ring()
			return err
		}
		if rec.Fence.Attempt > f.Attempt {
			return fenced(rec.Fence.Attempt, f)
		}
		if rec.Done {
			return nil
		}
		rec.Done = true
		if _, err = s.catalog.set(ctx, headKey(name), rec, rev); err == nil {
			s.finished.ring()
			return nil
		}
		if !errors.Is(err, errConflict) {
			return err
		}
		if err := backoff(ctx); err != nil {
			return err
		}
	}
	return fmt.Errorf("lost %d compare-and-sets in a row", maxRaces)
}

// Seal says that no more batches will come. Repeatable.
func (w *Writer) Seal(ctx context.Context) error {
	if err := w.seal(ctx); err != nil {
		return &Error{Op: "seal", Dataset: w.dataset, Err: err}
	}
	return nil
}

// Seal is Writer.Seal for an attempt that has no Writer open since it had nothing
// to write. A dataset that nobody has written to comes into being, empty.
func (s *Store) Seal(ctx context.Context, dataset string, f Fence) error {
	w, err := s.takeOver(ctx, dataset, "", f)
	if err == nil {
		if err = w.announceNewest(ctx); err == nil {
			err = w.seal(ctx)
		}
	}
	if err != nil {
		return &Error{Op: "seal", Dataset: dataset, Err: err}
	}
	return nil
}

func (w *Writer) seal(ctx context.Context) error {
	switch {
	case w.store.closed.Load():
		return ErrClosed
	case w.fenced:
		return ErrFenced
	}
	if err := w.announce(ctx); err != nil {
		return err
	}
	labels, err := w.labelled()
	if err != nil {
		return err
	}
	ev, err := w.newEvent(events.TypeDatasetSealed, w.dataset+"#sealed", time.Now().UTC(), labels,
		events.DatasetSealed{Dataset: w.dataset, Batches: int64(w.head.Next), Rows: w.head.Rows})
	if err == nil {
		err = w.store.bus.Approve(ctx, &ev)
	}
	if err != nil {
		return err
	}
	if err := w.settleLabels(ctx); err != nil {
		return err
	}
	if !w.head.Sealed {
		if !w.head.of(w.fence) {
			return fmt.Errorf("%w: stage %s of run %s has finished, and run %s writes now", ErrFenced, w.fence.Stage, w.fence.Run, w.head.Fence.Run)
		}
		next := w.head
		next.Sealed, next.Done, next.Labels = true, true, labels
		if err := w.commit(ctx, next); err != nil {
			return err
		}
		if err := w.store.crash("sealed"); err != nil {
			return err
		}
	}
	return w.store.bus.Publish(ctx, ev)
}
