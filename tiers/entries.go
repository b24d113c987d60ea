package tiers

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/governance/label"
)

// State is what a batch has become. The empty one is the usual: it is there.
type State string

// Expired is the state of a batch whose copies were removed because its time was
// over; see Store.Expire. Its entry stays, so that the sequence has no gap.
const Expired State = "expired"

// BatchInfo is what the catalog knows of a batch.
type BatchInfo struct {
	Ref       arrowio.Ref `json:"ref"`
	State     State       `json:"state,omitempty"`
	Labels    label.Set   `json:"labels,omitempty"` // that it was committed with
	Committed time.Time   `json:"committed"`        // by the writer's clock
	// Read is when the batch, or another of its block of 256, was last opened, late
	// by up to a minute; zero if never since the catalog has kept it.
	Read time.Time `json:"read,omitzero"`
}

// Entries yields what the catalog knows of batches from..to-1, or those that there
// are, in sequence. However long the dataset, one block of 256 is in memory at a
// time. An error is yielded once and ends the loop.
func (s *Store) Entries(ctx context.Context, dataset string, from, to uint64) iter.Seq2[BatchInfo, error] {
	return func(yield func(BatchInfo, error) bool) {
		fail := func(err error) { yield(BatchInfo{}, &Error{Op: "list", Dataset: dataset, Err: err}) }
		rec, _, err := s.head(ctx, dataset)
		if err != nil {
			fail(err)
			return
		}
		name, err := token("dataset", dataset)
		if err != nil {
			fail(err)
			return
		}
		to := min(to, rec.Next)
		for seq := from; seq < to; {
			n := seq / blockBatches
			entries, err := s.blockEntries(ctx, dataset, name, n)
			if err != nil {
				fail(err)
				return
			}
			read, err := s.uses.last(ctx, s.catalog, name, n)
			if err != nil {
				fail(err)
				return
			}
			for ; seq < to && seq/blockBatches == n; seq++ {
				e, ok := entries(seq)
				if !ok {
					fail(errors.Join(ErrNotFound, errors.New(batchID(dataset, seq)+" is committed and has no entry")))
					return
				}
				if !yield(BatchInfo{Ref: e.Ref, State: e.State, Labels: e.Labels, Committed: e.Committed, Read: read}, nil) {
					return
				}
			}
		}
	}
}

// blockEntries reads the entries of one block wherever they are.
func (s *Store) blockEntries(ctx context.Context, dataset, name string, n uint64) (func(seq uint64) (entry, bool), error) {
	var keys map[uint64]revised
	if (n+1)*blockBatches > s.compacted(dataset) {
		var err error // the keys before the block: what moves in between is in the block
		if keys, err = s.tail(ctx, name, n); err != nil {
			return nil, err
		}
	}
	b, _, err := s.catalog.getBlock(ctx, blockKey(name, n))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	return func(seq uint64) (entry, bool) {
		if r, ok := keys[seq]; ok {
			return r.entry, true
		}
		if len(b.Entries) == 0 {
			return entry{}, false
		}
		return b.Entries[seq%blockBatches], true
	}, nil
}
