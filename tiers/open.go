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

// OpenBatch resolves ref: hot, then the peers, then warm, then cold. Bytes from
// warm and cold are verified against their SHA-256; a copy that is damaged or
// gone is passed over for the next tier, which repairs it, and reported as
// tier.copy.damaged; so is a peer that fails or does not
// answer in Config.PeerTimeout. toArena brings the batch into the arena first, so
// that Lease is set (ErrNoArena without one); it waits for room until ctx ends.
//
// Of a batch that the catalog has, the columns that governance takes out are not
// there, as when the dataset is read; what cannot be looked up is not opened.
//
// The error wraps ErrNoTierHas and each tier's reason: arrowio.ErrCorrupt,
// arrowio.ErrGone, ErrNotFound.
func (s *Store) OpenBatch(ctx context.Context, ref arrowio.Ref, toArena bool) (*Batch, error) {
	b, err := s.openRef(ctx, ref, toArena)
	if err != nil {
		return nil, &Error{Op: "open", Dataset: ref.Dataset, Batch: ref.ID(), Err: err}
	}
	s.count(b)
	return b, nil
}

// openRef opens what the ref names as its event was approved. A batch that is not
// committed has no event yet: only who writes it has a ref to it.
func (s *Store) openRef(ctx context.Context, ref arrowio.Ref, toArena bool) (*Batch, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	columns, err := s.columnsOf(ctx, ref.Dataset, ref.Sequence)
	if err != nil {
		return nil, err
	}
	return s.openWithout(ctx, ref, columns, toArena)
}

func (s *Store) open(ctx context.Context, ref arrowio.Ref, toArena bool) (*Batch, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	b, err := s.resolve(ctx, ref, toArena)
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
	return s.resolve(ctx, fresh, toArena)
}

func (s *Store) resolve(ctx context.Context, ref arrowio.Ref, toArena bool) (*Batch, error) {
	faults := []error{ErrNoTierHas}
	b, err := s.openHot(ref)
	if b != nil {
		return b, nil
	}
	if err != nil {
		faults = append(faults, err)
	}
	if toArena {
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
	b, err = s.openPeer(ctx, ref)
	switch {
	case b != nil && toArena:
		return s.bring(ctx, b)
	case b != nil:
		return b, nil
	case err != nil && ctx.Err() != nil:
		return nil, err
	case err != nil:
		faults = append(faults, err)
	}
	var damaged []damage
	for _, tier := range []struct {
		name arrowio.Tier
		open func(context.Context, arrowio.Ref, arrowio.Location) (*Batch, error)
	}{{arrowio.Warm, s.openWarm}, {arrowio.Cold, s.openCold}} {
		loc, ok := ref.In(tier.name)
		if !ok {
			continue
		}
		b, err := tier.open(ctx, ref, loc)
		if err == nil {
			s.healLater(ref, damaged, b.Record)
		}
		if err == nil && toArena {
			return s.bring(ctx, b)
		}
		if err == nil {
			return b, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		if errors.Is(err, arrowio.ErrCorrupt) {
			s.log.ErrorContext(ctx, "damaged copy passed over", "batch", ref.ID(), "tier", tier.name, "error", err)
		}
		// A warm file that is not here may be on the disk of another host.
		if errors.Is(err, arrowio.ErrCorrupt) || tier.name == arrowio.Cold && errors.Is(err, arrowio.ErrGone) && s.cold != nil {
			damaged = append(damaged, damage{loc, err})
		}
		faults = append(faults, fmt.Errorf("%s: %w", tier.name, err))
	}
	s.healLater(ref, damaged, nil)
	if len(faults) == 1 {
		faults = append(faults, errors.New("the ref names no location that is still there"))
	}
	return nil, errors.Join(faults...)
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

// bring copies a batch into the arena and returns that copy instead.
func (s *Store) bring(ctx context.Context, b *Batch) (*Batch, error) {
	defer b.Release()
	frame, err := arrowio.Prepare(b.Record)
	if err != nil {
		return nil, err
	}
	loan, err := s.hot.loan(ctx, frame.Size(), 0)
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
