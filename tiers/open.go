package tiers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/governance/label"
)

// Batch is one opened batch. Release it exactly once; Record is valid until then
// unless retained.
type Batch struct {
	Ref    arrowio.Ref
	Record arrow.RecordBatch
	Tier   arrowio.Tier // where it was read from
	Peer   bool         // in another process, which Config.Peers asked; Tier is then Hot
	// Lease is the hot slot behind Record, for handing it on to another process;
	// nil when the batch came from another tier. It ends with the last reference to
	// Record.
	Lease *shm.Lease

	// Labels are what the batch was committed with, set by Store.Batches and
	// Store.Appended. The dataset's may have changed since, see Store.LabelsAt.
	Labels label.Set

	partial  bool   // columns were taken out: Record is not the batch, and never becomes its hot copy
	drop     func() // gives up the slot that only this batch has; may be nil
	released atomic.Bool
}

// Release gives the batch back.
func (b *Batch) Release() {
	if !b.released.Swap(true) {
		b.Record.Release()
		if b.drop != nil {
			b.drop()
		}
	}
}

// OpenBatch resolves ref: hot, then the peers on this host, then warm, then the far
// ones, then cold. Bytes from
// warm and cold are verified against their SHA-256; a copy that is damaged or
// gone is passed over for the next tier, which repairs it, and reported as
// tier.copy.damaged; so is a peer that fails or does not
// answer in Config.PeerTimeout. A source that takes longer than it usually does is
// not waited for alone (Config.HedgeAfter). toArena brings the batch into the arena first, so
// that Lease is set (ErrNoArena without one); it waits for room until ctx ends.
//
// Of a batch that the catalog has, the columns that governance takes out are not
// there, as when the dataset is read; what cannot be looked up is not opened.
//
// The error wraps ErrNoTierHas and each tier's reason: arrowio.ErrCorrupt,
// arrowio.ErrGone, ErrNotFound.
func (s *Store) OpenBatch(ctx context.Context, ref arrowio.Ref, toArena bool) (*Batch, error) {
	b, err := s.openRef(ctx, ref, arena(toArena))
	if err != nil {
		return nil, &Error{Op: "open", Dataset: ref.Dataset, Batch: ref.ID(), Err: err}
	}
	s.count(b)
	return b, nil
}

// openRef opens what the ref names as its event was approved. A batch that is not
// committed has no event yet: only who writes it has a ref to it.
func (s *Store) openRef(ctx context.Context, ref arrowio.Ref, use arenaUse) (*Batch, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	columns, err := s.columnsOf(ctx, ref.Dataset, ref.Sequence)
	if err != nil {
		return nil, err
	}
	return s.openWithout(ctx, ref, columns, use)
}

func (s *Store) open(ctx context.Context, ref arrowio.Ref, use arenaUse) (*Batch, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	b, err := s.resolve(ctx, ref, use)
	if err == nil || !errors.Is(err, ErrNoTierHas) {
		return b, err
	}
	// The ref may be older than a migration, or name the batch alone.
	fresh, refErr := s.Ref(ctx, ref.Dataset, ref.Sequence)
	if refErr != nil {
		return nil, errors.Join(err, refErr)
	}
	if slices.Equal(fresh.Locations, ref.Locations) {
		return nil, err
	}
	return s.resolve(ctx, fresh, use)
}

func (s *Store) resolve(ctx context.Context, ref arrowio.Ref, use arenaUse) (*Batch, error) {
	b, hotErr := s.openHot(ref)
	if b != nil {
		return b, nil
	}
	if use != anywhere {
		if s.hot.arena == nil {
			return nil, ErrNoArena
		}
		// Two readers at once make one copy.
		unlock, err := s.hot.fetch.lock(ctx, ref.ID())
		if err != nil {
			return nil, err
		}
		defer unlock()
		if b, _ := s.openHot(ref); b != nil {
			return b, nil
		}
	}
	b, err := s.fetch(ctx, ref, use, hotErr)
	if err != nil {
		return nil, err
	}
	s.promoteLater(b)
	if use != anywhere && b.Lease == nil {
		return s.bring(ctx, b, use)
	}
	return b, nil
}

// openHot returns nil and no error if there is no hot copy.
func (s *Store) openHot(ref arrowio.Ref) (*Batch, error) {
	var opts []arrowio.DecodeOption
	lease := s.hot.lease(ref.ID())
	if lease != nil {
		// This store wrote these bytes, or validated them when it adopted them, and
		// nobody can write to them since.
		opts = append(opts, arrowio.Trusted())
	} else {
		// A hot location may also be another host's; that is for the peers.
		i := slices.IndexFunc(ref.Locations, func(l arrowio.Location) bool {
			return l.Tier == arrowio.Hot && strings.HasPrefix(l.URI, "shm:")
		})
		if i >= 0 {
			var err error
			if lease, err = s.hot.host.Open(ref.Locations[i].URI, leaseOwner); err != nil {
				return nil, fmt.Errorf("hot: %w", err)
			}
		}
	}
	if lease == nil {
		return nil, nil
	}
	rec, err := lease.BatchBy(s.decoders.For(ref.Dataset), opts...)
	if err != nil {
		return nil, fmt.Errorf("hot: %w", err)
	}
	return s.checked(&Batch{Ref: ref, Record: rec, Tier: arrowio.Hot, Lease: lease})
}

func (s *Store) openWarm(_ context.Context, ref arrowio.Ref, loc arrowio.Location) (*Batch, error) {
	data, release, err := s.warm.open(ref, loc)
	if err != nil {
		return nil, err
	}
	// The hash says that these are the bytes that were validated when written.
	rec, err := s.decoders.For(ref.Dataset).Decode(data, release, arrowio.Trusted())
	if err != nil {
		return nil, err
	}
	return s.checked(&Batch{Ref: ref, Record: rec, Tier: arrowio.Warm})
}

// checked refuses a batch that is not the one its ref describes.
func (s *Store) checked(b *Batch) (*Batch, error) {
	got := s.decoders.For(b.Ref.Dataset).Fingerprint(b.Record.Schema())
	rows := b.Record.NumRows()
	// A ref without a fingerprint only names the batch.
	if want := b.Ref; want.Fingerprint != "" && (got != want.Fingerprint || rows != want.Rows) {
		b.Release()
		return nil, fmt.Errorf("%w: %d rows of schema %s, catalog says %d of %s", arrowio.ErrCorrupt, rows, got, want.Rows, want.Fingerprint)
	}
	return b, nil
}

// bring copies a batch into the arena and returns that copy instead; with ifRoom
// b itself where there is no room.
func (s *Store) bring(ctx context.Context, b *Batch, use arenaUse) (_ *Batch, err error) {
	stays := false
	defer func() {
		if !stays {
			b.Release()
		}
	}()
	frame, err := arrowio.Prepare(b.Record)
	if err != nil {
		return nil, err
	}
	loan, err := s.hot.loanAs(ctx, frame.Size(), use)
	if stays = err != nil && use == ifRoom && ctx.Err() == nil; stays {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bring into the arena: %w", err)
	}
	if _, err := frame.EncodeTo(loan.Bytes(), s.hot.copies); err != nil {
		loan.Cancel()
		return nil, err
	}
	handle := loan.Publish()
	lease, err := s.hot.arena.Lease(handle, leaseOwner)
	if err != nil {
		return nil, err
	}
	s.hot.add(b.Ref.ID(), s.hot.arena, handle, "") // framed anew, maybe in other bytes
	rec, err := lease.BatchBy(s.decoders.For(b.Ref.Dataset), arrowio.Trusted())
	if err != nil {
		return nil, err
	}
	return &Batch{Ref: b.Ref, Record: rec, Tier: b.Tier, Peer: b.Peer, Lease: lease}, nil
}
