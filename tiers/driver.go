package tiers

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

// Driver keeps copies of batches in one tier. What it is told and what it returns are
// for the catalog, which it knows nothing of. tierstest.RunDriver is what each keeps
// to. Safe for concurrent use.
type Driver interface {
	// Write returns once the copy is as durable as the tier makes it: in shared memory,
	// synced to the disk, acknowledged by the object store. ref names the batch; its
	// locations do not matter. Writing a batch again is a success. Where there is no
	// room the error says so, after the context's end where room is waited for.
	Write(ctx context.Context, ref arrowio.Ref, rec arrow.RecordBatch) (arrowio.Location, error)
	// Read returns the copy that loc names, verified against its SHA-256, if it has one,
	// and valid to the last offset. The caller releases it. The error wraps
	// arrowio.ErrGone if there is none and arrowio.ErrCorrupt if it is not what was
	// written.
	Read(ctx context.Context, ref arrowio.Ref, loc arrowio.Location) (arrow.RecordBatch, error)
	// Remove takes a copy away; that there is none is a success. Who has it open keeps
	// it. Objects are named by their content: the caller knows that no other batch has
	// the same.
	Remove(ctx context.Context, ref arrowio.Ref, loc arrowio.Location) error
}

// Driver returns the driver of a tier; ok is false if the store does not have it.
func (s *Store) Driver(t arrowio.Tier) (d Driver, ok bool) {
	switch {
	case t == arrowio.Hot && s.hot.arena != nil:
		return hotDriver{s}, true
	case t == arrowio.Warm:
		return warmDriver{s}, true
	case t == arrowio.Cold && s.cold != nil:
		return coldDriver{s}, true
	}
	return nil, false
}

// durable is the driver of a tier whose copies outlive this process.
func (s *Store) durable(t arrowio.Tier) (d Driver, ok bool) {
	if t == arrowio.Hot {
		return nil, false
	}
	return s.Driver(t)
}

// hotDriver is the arena.
type hotDriver struct{ s *Store }

// Write implements Driver. It waits for room, pushing out what nobody reads.
func (d hotDriver) Write(ctx context.Context, ref arrowio.Ref, rec arrow.RecordBatch) (arrowio.Location, error) {
	h := d.s.hot
	if l := h.lease(ref.ID()); l != nil {
		defer l.Release()
		return hotLocation(l.Handle()), nil
	}
	if err := ctx.Err(); err != nil {
		return arrowio.Location{}, err
	}
	frame, err := arrowio.Prepare(rec)
	if err != nil {
		return arrowio.Location{}, err
	}
	loan, err := h.loanAs(ctx, frame.Size(), inArena)
	if err != nil {
		return arrowio.Location{}, fmt.Errorf("write to shared memory: %w", err)
	}
	if _, err := frame.EncodeTo(loan.Bytes(), h.copies); err != nil {
		loan.Cancel()
		return arrowio.Location{}, err
	}
	lease, err := h.arena.Hold(loan.Publish(), leaseOwner)
	if err != nil {
		return arrowio.Location{}, err
	}
	defer lease.Release()
	return hotLocation(h.add(ref.ID(), h.arena, lease.Handle(), "")), nil
}

func hotLocation(h shm.Handle) arrowio.Location {
	return arrowio.Location{Tier: arrowio.Hot, URI: h.String(), Bytes: h.Length, Codec: CodecArrow}
}

// Read implements Driver. The record holds a lease until it is released.
func (d hotDriver) Read(ctx context.Context, ref arrowio.Ref, loc arrowio.Location) (arrow.RecordBatch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	lease, err := d.s.hot.host.Open(loc.URI, leaseOwner)
	if errors.Is(err, arrowio.ErrURI) {
		err = fmt.Errorf("%w: %w", arrowio.ErrGone, err)
	}
	if err != nil {
		return nil, err
	}
	return lease.BatchBy(d.s.decoders.For(ref.Dataset))
}

// Remove implements Driver.
func (d hotDriver) Remove(_ context.Context, ref arrowio.Ref, _ arrowio.Location) error {
	d.s.hot.remove(ref.ID())
	return nil
}

// warmDriver is the directory.
type warmDriver struct{ s *Store }

// Write implements Driver.
func (d warmDriver) Write(ctx context.Context, ref arrowio.Ref, rec arrow.RecordBatch) (arrowio.Location, error) {
	frame, err := arrowio.Prepare(rec)
	if err != nil {
		return arrowio.Location{}, err
	}
	file, err := d.s.warm.stage(ctx, ref.Dataset, ref.Sequence, frame)
	if err != nil {
		return arrowio.Location{}, err
	}
	defer file.discard()
	return file.location, file.commit()
}

// Read implements Driver. The record is the mapped file until it is released.
func (d warmDriver) Read(ctx context.Context, ref arrowio.Ref, loc arrowio.Location) (arrow.RecordBatch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	data, release, err := d.s.warm.open(ref, loc)
	if err != nil {
		return nil, err
	}
	return d.s.decoders.For(ref.Dataset).Decode(data, release)
}

// Remove implements Driver.
func (d warmDriver) Remove(_ context.Context, ref arrowio.Ref, loc arrowio.Location) error {
	return d.s.warm.remove(ref.Dataset, ref.Sequence, loc.SHA256)
}
