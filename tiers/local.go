package tiers

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
)

// Local gives out what a store has itself, in its arenas and its warm directory:
// the source of a server that other hosts ask (package arrowio/flight). It asks
// no peers, who might ask back, and not the cold tier, which the other hosts
// reach themselves. Safe for concurrent use.
type Local struct{ store *Store }

// Local returns the view of s that may be given to other hosts.
func (s *Store) Local() Local { return Local{s} }

// Resolve implements arrowio.Resolver. The ref names the batch; where it is, the
// store knows better.
func (l Local) Resolve(ctx context.Context, ref arrowio.Ref) (arrow.RecordBatch, error) {
	frame, _, release, err := l.Frame(ctx, ref.Dataset, ref.Sequence)
	if err != nil {
		return nil, err
	}
	// Written or validated by this store, in an arena or under the file's hash.
	return l.store.decoders.For(ref.Dataset).Decode(frame, release, arrowio.Trusted())
}

// Frame lends the framed bytes of a committed batch, to be released once: those
// that were written to the warm tier, whether they lie in an arena or in the file.
// digest is their SHA-256 in hexadecimal, computed when they were written or when
// the file was mapped. The error wraps arrowio.ErrGone if the batch is not here,
// arrowio.ErrCorrupt if its file is damaged.
func (l Local) Frame(ctx context.Context, dataset string, seq uint64) (frame []byte, digest string, release func(), err error) {
	s := l.store
	if s.closed.Load() {
		return nil, "", nil, fmt.Errorf("%w: %w", arrowio.ErrGone, ErrClosed)
	}
	// A batch gets its hot slot when it is committed, so this needs no catalog.
	if lease, digest := s.hot.leaseDigest(batchID(dataset, seq)); digest != "" {
		return lease.Bytes(), digest, lease.Release, nil
	} else if lease != nil {
		lease.Release() // framed anew: not the bytes that the catalog's checksum is of
	}
	ref, err := s.Ref(ctx, dataset, seq)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrName) {
		return nil, "", nil, fmt.Errorf("%w: %w", arrowio.ErrGone, err)
	}
	if err != nil {
		return nil, "", nil, err
	}
	loc, ok := ref.In(arrowio.Warm)
	if !ok {
		return nil, "", nil, fmt.Errorf("%w: %s is in no tier of this host", arrowio.ErrGone, ref.ID())
	}
	frame, release, err = s.warm.open(ref, loc)
	return frame, loc.SHA256, release, err
}

// Head is Store.Head.
func (l Local) Head(ctx context.Context, dataset string) (Head, error) {
	return l.store.Head(ctx, dataset)
}
