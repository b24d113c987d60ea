package tiers

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/parquet"
	"github.com/stokehold/stokehold/arrowio/shm"
)

// openCold gets a batch's object, verifies its hash and decodes it: in the arena, if
// it is wanted there and there is room now, else on the heap.
func (s *Store) openCold(ctx context.Context, ref arrowio.Ref, loc arrowio.Location, use arenaUse) (*Batch, error) {
	if use != anywhere && s.hot.arena != nil {
		if b, err := s.coldInArena(ctx, ref, loc); b != nil || err != nil {
			return b, err
		}
	}
	// The hash says that these are the bytes that were validated when written.
	rec, err := s.readCold(ctx, ref, loc, arrowio.Trusted())
	if err != nil {
		return nil, err
	}
	return s.checked(&Batch{Ref: ref, Record: rec, Tier: arrowio.Cold})
}

// readCold reads a copy to the heap.
func (s *Store) readCold(ctx context.Context, ref arrowio.Ref, loc arrowio.Location, opts ...arrowio.DecodeOption) (arrow.RecordBatch, error) {
	if loc.Codec == CodecArrow { // the batch is the object's memory
		raw, err := s.fetchCold(ctx, loc, nil)
		if err != nil {
			return nil, err
		}
		return s.decoders.For(ref.Dataset).Decode(raw, nil, opts...)
	}
	raw, done, err := s.borrowCold(ctx, loc)
	if err != nil {
		return nil, err
	}
	defer done()
	f, err := openParquet(raw)
	if err != nil {
		return nil, err
	}
	return decodeParquet(f, nil)
}

// fetchCold gets an object and verifies its hash: into dst if it has the object's
// size and the driver can do that, else into memory of its own.
func (s *Store) fetchCold(ctx context.Context, loc arrowio.Location, dst []byte) ([]byte, error) {
	if s.cold == nil {
		return nil, fmt.Errorf("%w: this store has no cold tier, the batch is at %s", arrowio.ErrGone, loc.URI)
	}
	key, err := coldKey(loc)
	if err != nil {
		return nil, err
	}
	if filler, ok := s.cold.(Filler); ok && loc.Bytes > 0 && loc.Bytes <= MaxBatchBytes {
		if dst == nil {
			dst = make([]byte, loc.Bytes)
		}
		err := fillFrom(ctx, filler, key, loc, dst)
		if err == nil || !errors.Is(err, arrowio.ErrCorrupt) {
			return dst, err
		}
		// What was damaged on its way is whole the second time.
	}
	raw, err := s.cold.Get(ctx, key)
	if err != nil {
		return nil, goneIfAbsent(err)
	}
	if loc.Bytes > 0 && int64(len(raw)) != loc.Bytes {
		return nil, fmt.Errorf("%w: %s has %d bytes, %d expected", arrowio.ErrCorrupt, loc.URI, len(raw), loc.Bytes)
	}
	return raw, sameDigest(loc, digestOf(raw))
}

// fillFrom reads an object of len(dst) bytes, and hashes it as it arrives.
func fillFrom(ctx context.Context, from Filler, key string, loc arrowio.Location, dst []byte) error {
	sum := newYieldingHash()
	n, err := from.Fill(ctx, key, dst, sum)
	switch {
	case errors.Is(err, ErrTooLarge), err == nil && n < len(dst):
		return fmt.Errorf("%w: %s does not have the %d bytes that are expected", arrowio.ErrCorrupt, loc.URI, loc.Bytes)
	case err != nil:
		return goneIfAbsent(err)
	}
	return sameDigest(loc, sum.text())
}

func goneIfAbsent(err error) error {
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: %w", arrowio.ErrGone, err)
	}
	return err
}

func sameDigest(loc arrowio.Location, got string) error {
	if got != loc.SHA256 {
		return fmt.Errorf("%w: SHA-256 of %s is %s, %s expected", arrowio.ErrCorrupt, loc.URI, got, loc.SHA256)
	}
	return nil
}

// maxObjectBuffer bounds the memory that is kept for the next object.
const maxObjectBuffer = 64 << 20

// borrowCold is fetchCold into memory that is used again after done, which is called
// once, unless there is an error.
func (s *Store) borrowCold(ctx context.Context, loc arrowio.Location) (raw []byte, done func(), err error) {
	if loc.Bytes <= 0 || loc.Bytes > maxObjectBuffer {
		raw, err = s.fetchCold(ctx, loc, nil)
		return raw, func() {}, err
	}
	buf, _ := s.received.Get().(*[]byte)
	if buf == nil || int64(cap(*buf)) < loc.Bytes {
		fresh := make([]byte, loc.Bytes)
		buf = &fresh
	}
	done = func() { s.received.Put(buf) }
	if raw, err = s.fetchCold(ctx, loc, (*buf)[:loc.Bytes]); err != nil {
		done()
		return nil, nil, err
	}
	return raw, done, nil
}

// coldInArena puts a batch where it is to lie, and makes that its hot copy; nil and no
// error where there is no room now, or no telling how much it takes.
func (s *Store) coldInArena(ctx context.Context, ref arrowio.Ref, loc arrowio.Location) (*Batch, error) {
	if loc.Codec == CodecArrow {
		return s.loadInArena(ctx, ref, loc)
	}
	if ref.BodyBytes <= 0 || ref.Fingerprint == "" || ref.BodyBytes > s.hot.arena.Size() {
		return nil, nil
	}
	raw, done, err := s.borrowCold(ctx, loc)
	if err != nil {
		return nil, err
	}
	defer done()
	f, err := openParquet(raw)
	if err != nil {
		return nil, err
	}
	b, err := s.decodeInArena(ctx, ref, f)
	if b != nil || err != nil {
		return b, err
	}
	rec, err := decodeParquet(f, nil) // no room: what was got is not to be got again
	if err != nil {
		return nil, err
	}
	return s.checked(&Batch{Ref: ref, Record: rec, Tier: arrowio.Cold})
}

// loadInArena gets an object that is a frame: its bytes go to the arena as they come.
func (s *Store) loadInArena(ctx context.Context, ref arrowio.Ref, loc arrowio.Location) (*Batch, error) {
	h := s.hot
	if _, ok := s.cold.(Filler); !ok || loc.Bytes <= 0 || loc.Bytes > h.arena.Size() {
		return nil, nil
	}
	loan, err := h.loanAs(ctx, loc.Bytes, ifRoom)
	if err != nil {
		return nil, ctx.Err()
	}
	slot := loan.Bytes()[:loc.Bytes]
	raw, err := s.fetchCold(ctx, loc, slot)
	if err != nil {
		loan.Cancel()
		return nil, err
	}
	if &raw[0] != &slot[0] {
		copy(slot, raw) // it came whole the second time
	}
	return s.hotCopy(ref, loan.Publish())
}

// decodeInArena decodes a Parquet object in memory of the arena; nil and no error if
// there is no room.
func (s *Store) decodeInArena(ctx context.Context, ref arrowio.Ref, f *parquet.File) (*Batch, error) {
	h := s.hot
	head, err := arrowio.HeadBytes(f.Schema(), ref.BodyBytes)
	if err != nil || !h.makeRoom(head+ref.BodyBytes) {
		return nil, nil // its frame is made, or refused, when it is brought into the arena
	}
	within, cancel := context.WithTimeout(ctx, roomAgain)
	defer cancel()
	slot, err := h.arena.Build(within, f.Schema(), ref.BodyBytes)
	if err != nil {
		return nil, ctx.Err() // others were quicker
	}
	defer slot.Cancel()
	mem := slotMemory{of: slot.Allocator()}
	defer mem.free()
	rec, err := decodeParquet(f, mem.allocate)
	if err != nil {
		return nil, err
	}
	b, err := s.checked(&Batch{Ref: ref, Record: rec, Tier: arrowio.Cold})
	if err != nil {
		return nil, err
	}
	defer b.Release()
	handle, _, err := slot.Publish(within, rec, h.copies)
	if err != nil {
		return nil, ctx.Err() // what had to be copied found no room
	}
	return s.hotCopy(ref, handle)
}

// hotCopy opens a slot that was just published, and keeps it as the batch's hot copy
// if it is the batch.
func (s *Store) hotCopy(ref arrowio.Ref, handle shm.Handle) (*Batch, error) {
	h := s.hot
	drop := func() { _ = h.arena.Drop(handle) } // gone with its arena: as wanted
	lease, err := h.arena.Lease(handle, leaseOwner)
	if err != nil {
		drop()
		return nil, err
	}
	rec, err := lease.BatchBy(s.decoders.For(ref.Dataset), arrowio.Trusted())
	if err != nil {
		drop()
		return nil, err
	}
	b, err := s.checked(&Batch{Ref: ref, Record: rec, Tier: arrowio.Cold, Lease: lease})
	if err != nil {
		drop()
		return nil, err
	}
	h.add(ref.ID(), h.arena, handle, "") // another slot may be it already
	return b, nil
}

// slotMemory is memory of a build that is given back as a whole. Safe for concurrent
// use.
type slotMemory struct {
	of memory.Allocator

	mu    sync.Mutex
	taken [][]byte
}

func (m *slotMemory) allocate(bytes int) []byte {
	b := m.of.Allocate(bytes)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.taken = append(m.taken, b)
	return b
}

func (m *slotMemory) free() {
	for _, b := range m.taken {
		m.of.Free(b)
	}
}
