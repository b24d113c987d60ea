package tiers

import (
	"context"
	"errors"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

// Build is memory in which a batch is built, to be written by Writer.WriteBuilt
// without a copy. It ends there, or with Cancel. Not safe for concurrent use,
// except its allocator.
type Build struct {
	slot *shm.Build // nil: the Go heap
}

// HeapBuild is a Build on the Go heap: for where there is no arena.
func HeapBuild() *Build { return &Build{} }

// Build takes memory of the arena for a batch of that schema whose buffers need
// bytes at most; see shm.Arena.Build. Without an arena, or without room in it
// within Config.HotWait, the batch is built on the Go heap, and WriteBuilt does as
// WriteAt. The error is that of ctx, or of a schema that cannot be framed.
func (s *Store) Build(ctx context.Context, schema *arrow.Schema, bytes int64) (*Build, error) {
	if s.closed.Load() {
		return nil, &Error{Op: "build", Err: ErrClosed}
	}
	h := s.hot
	if h.arena == nil || bytes <= 0 {
		return HeapBuild(), nil
	}
	head, err := arrowio.HeadBytes(schema, bytes)
	if err != nil {
		return nil, &Error{Op: "build", Err: err}
	}
	within, cancel, err := h.room(ctx, head+bytes, h.wait)
	if err != nil {
		return HeapBuild(), nil // larger than the arena
	}
	defer cancel()
	slot, err := h.arena.Build(within, schema, bytes)
	if err != nil && ctx.Err() != nil {
		return nil, &Error{Op: "build", Err: ctx.Err()}
	}
	return &Build{slot: slot}, nil
}

// Allocator is for the Arrow builders of the batch. Release them and the batch
// soon after it was written: until then its memory cannot be used again.
func (b *Build) Allocator() memory.Allocator {
	if b.slot == nil {
		return memory.DefaultAllocator
	}
	return b.slot.Allocator()
}

// InPlace reports whether the memory is shared.
func (b *Build) InPlace() bool { return b.slot != nil }

// Cancel gives the memory up. Does nothing once the build has ended.
func (b *Build) Cancel() {
	if b.slot != nil {
		b.slot.Cancel()
	}
}

// WriteBuilt is WriteAt for a batch made in b, which it ends, errors included.
// copied is the number of body bytes that had to be copied into shared memory: 0
// for what was built there, or if nothing was stored because the sequence exists.
// Dictionaries are always copied.
func (w *Writer) WriteBuilt(ctx context.Context, seq uint64, b *Build, batch arrow.RecordBatch) (ref arrowio.Ref, copied int64, err error) {
	defer b.Cancel()
	ref, err = w.write(ctx, seq, func() (made *body, err error) {
		if b.slot == nil {
			made, err = w.encode(ctx, batch)
		} else {
			made, err = w.publish(ctx, b.slot, batch)
		}
		if err == nil {
			copied = made.copied
		}
		return made, err
	})
	if err != nil {
		return ref, copied, &Error{Op: "write", Dataset: w.dataset, Batch: batchID(w.dataset, seq), Err: err}
	}
	return ref, copied, nil
}

// publish completes a build. The warm tier gets the batch without the gaps that
// building in place leaves, so that its content does not depend on where it was
// built.
func (w *Writer) publish(ctx context.Context, slot *shm.Build, batch arrow.RecordBatch) (*body, error) {
	b, _, err := w.lay(batch)
	if err != nil {
		return nil, err
	}
	h := w.store.hot
	within, cancel := context.WithTimeout(ctx, h.wait)
	defer cancel()
	handle, copied, err := slot.Publish(within, batch, h.copies)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, shm.ErrTooLarge), errors.Is(err, context.DeadlineExceeded):
		b.spilled = err // what had to be copied found no room
		return b, nil
	default:
		return nil, err
	}
	lease, err := h.arena.Hold(handle, leaseOwner)
	if err != nil {
		return nil, err
	}
	h.place(b, lease)
	b.copied = copied
	return b, nil
}
