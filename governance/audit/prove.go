package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit/proof"
)

var (
	// ErrNoDecision means that no decision of an id is in the log.
	ErrNoDecision = errors.New("no such decision")
	// ErrNotCovered means that no checkpoint covers a decision yet.
	ErrNotCovered = errors.New("no checkpoint covers the decision yet")
)

// Prove makes the inclusion proof of the decision of an id, in the first
// checkpoint that covers it. A decision that was logged more than once, because
// its event was retried, is proven where it was first. Only messages between that
// checkpoint and the one before are hashed; the others are looked through for the
// id. Errors wrap ErrNoDecision, ErrNotCovered, ErrTampered or proof's.
func (r *Reader) Prove(ctx context.Context, id string, store CheckpointStore, keys *proof.Keys) (*proof.Inclusion, error) {
	if store == nil || keys == nil {
		return nil, fmt.Errorf("%w: a proof needs the checkpoint store and the keys to trust", ErrConfig)
	}
	at, err := r.locate(ctx, id)
	if err != nil {
		return nil, err
	}
	before, rec, err := covering(ctx, store, keys, at)
	if err != nil {
		return nil, err
	}
	growth, next := proof.NewGrowth(before), uint64(1)
	if before != nil {
		next = before.Sequence + 1
	}
	var leaf []byte
	index, first := int64(-1), next
	var h hasher
	err = r.scan(ctx, start{sequence: next}, func(m message) error {
		if m.sequence > rec.Sequence {
			return errStopped
		}
		if m.sequence != next {
			return fmt.Errorf("%w: messages %d to %d, which a checkpoint covers together with the decision, are gone", ErrTampered, next, m.sequence-1)
		}
		next++
		return h.leaves(m.data, func(b []byte, d *governance.Decision) {
			if m.sequence == at && index < 0 && d.ID == id {
				leaf, index = bytes.Clone(b), growth.Size()
			}
			growth.Add(proof.LeafHash(b))
		})
	})
	if err != nil && !errors.Is(err, errStopped) {
		return nil, err
	}
	if growth.Size() != rec.Size || growth.Root() != rec.Root || index < 0 {
		return nil, fmt.Errorf("%w: messages %d to %d do not hold what the checkpoint of %d entries says: 'verify' tells how they differ", ErrTampered, first, rec.Sequence, rec.Size)
	}
	var hashes tlog.RecordProof
	if hashes, err = growth.Prove(index, rec.Size); err != nil {
		return nil, err
	}
	return proof.NewInclusion(leaf, index, hashes, rec.Signed, keys)
}

// locate finds the first message that holds a decision of an id.
func (r *Reader) locate(ctx context.Context, id string) (uint64, error) {
	// Most messages do not hold the id's bytes, and need not be decoded.
	needle := []byte(id)
	if raw, ok := unhexID(id); ok {
		needle = raw[:]
	}
	at := uint64(0)
	err := r.scan(ctx, start{}, func(m message) error {
		if !bytes.Contains(m.data, needle) {
			return nil
		}
		err := decodeMessage(m.data, func(d *governance.Decision) bool {
			if d.ID == id {
				at = m.sequence
			}
			return at == 0
		})
		if err == nil && at != 0 {
			err = errStopped
		}
		return err
	})
	switch {
	case err != nil && !errors.Is(err, errStopped):
		return 0, err
	case at == 0:
		return 0, fmt.Errorf("%w: %s is not among those that stream %s keeps", ErrNoDecision, id, r.stream)
	}
	return at, nil
}

// covering returns the first checkpoint that covers a message and the one that it
// extends, nil if that is the empty log.
func covering(ctx context.Context, store CheckpointStore, keys *proof.Keys, sequence uint64) (before, rec *proof.Record, err error) {
	names, err := sortedNames(ctx, store)
	if err != nil {
		return nil, nil, err
	}
	lo, hi := 0, len(names)
	for lo < hi { // sequences grow with sizes
		mid := (lo + hi) / 2
		if rec, err = openRecord(ctx, store, names[mid], keys); err != nil {
			return nil, nil, err
		}
		if rec.Sequence < sequence {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(names) {
		return nil, nil, fmt.Errorf("%w: it is in message %d; wait for the next checkpoint, or sign one", ErrNotCovered, sequence)
	}
	if rec, err = openRecord(ctx, store, names[lo], keys); err != nil || rec.Since == 0 {
		return nil, rec, err
	}
	for _, n := range ofSize(names, rec.Since) {
		if before, err = openRecord(ctx, store, n, keys); err != nil {
			return nil, nil, err
		}
		if err = rec.Extends(before.Root); err == nil {
			return before, rec, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("%w: the store lacks the checkpoint of %d entries that the one of %d extends", proof.ErrFork, rec.Since, rec.Size)
	}
	return nil, nil, err
}
