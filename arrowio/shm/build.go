package shm

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
)

// Build is a slot in which Arrow builders make a batch, so that publishing it
// moves no body bytes. It ends with Publish or Cancel. Builders and what they
// built hold the slot's memory until they are released, like any other Arrow
// memory: Stats.Builds counts the slots that are held so. Its allocator is safe
// for concurrent use, the rest is not.
type Build struct {
	region region
	done   bool
}

// region is the memory of a build, in its role as an Arrow allocator.
type region struct {
	arena *Arena
	slot  *slot
	head  int64  // bytes before the buffers
	bytes []byte // behind the head

	mu      sync.Mutex
	ended   bool
	space   *space // of bytes
	parts   map[int64]int32
	live    int   // parts that somebody holds
	outside int64 // bytes that did not fit
}

// Build takes memory of the arena for building a batch of that schema, with room
// for buffers of bytes in all, dictionaries and what growing buffers leave behind
// included. It waits as Loan does. What is reserved and not used goes back at
// Publish, so ask for what the batch may need at most.
//
// Buffers that grow do so in place where they can, and else move within the slot.
// The library's builders grow, and Reserve, in powers of two and give back what
// is too much, which leaves gaps in the frame: call Resize with the number of
// rows on each field's builder where it is known. What does not fit is taken from
// the Go heap, and copied by Publish.
func (a *Arena) Build(ctx context.Context, schema *arrow.Schema, bytes int64) (*Build, error) {
	if bytes <= 0 {
		return nil, fmt.Errorf("shm: build of %d bytes: want a size above 0", bytes)
	}
	head, err := arrowio.HeadBytes(schema, bytes)
	if err != nil {
		return nil, err
	}
	bytes = roundUp(bytes, Alignment) + endOfStream
	if bytes <= 0 || bytes > a.size {
		return nil, &LimitError{What: "build", Asked: bytes, Used: a.Stats().Used, Limit: a.size, Err: ErrTooLarge}
	}
	loan, err := a.Loan(ctx, head+bytes)
	if err != nil {
		return nil, err
	}
	b := &Build{region: region{arena: a, slot: loan.slot, head: head, bytes: loan.Bytes()[head:], parts: map[int64]int32{}}}
	a.mu.Lock()
	defer a.mu.Unlock()
	loan.slot.pinned = true
	a.stats.Builds++
	if n := len(a.spareSpaces); n > 0 {
		b.region.space, a.spareSpaces = a.spareSpaces[n-1], a.spareSpaces[:n-1]
	} else {
		b.region.space = &space{}
	}
	b.region.space.reset(roundUp(bytes-endOfStream, Alignment))
	return b, nil
}

// endOfStream is room for the marker that ends a frame, as slots are sized.
const endOfStream = Alignment

// Allocator is for the builders of the batch: its memory is zeroed and 64-byte
// aligned. It may be used, and its memory freed, after the build has ended; what
// is allocated then lies on the Go heap.
func (b *Build) Allocator() memory.Allocator { return &b.region }

// Outside is the number of bytes that were asked of the allocator and did not
// fit; what of them is in the batch is copied by Publish.
func (b *Build) Outside() int64 {
	b.region.mu.Lock()
	defer b.region.mu.Unlock()
	return b.region.outside
}

// Publish makes a batch immutable and returns its name: a frame around those of
// its buffers that lie in the slot. Buffers from elsewhere (the Go heap, another
// slot) and all dictionaries are copied, once; their bytes are counted in copies
// and returned. Dictionaries must come before the batch in a frame, and their
// builders make them last; they are small as a rule. A slice keeps its place only
// where its buffers begin on a 64-byte boundary.
//
// If what must be copied does not fit behind what was built, or the dictionaries
// not in an eighth of what was asked for, the whole batch is copied to a new
// slot, waiting for room as Loan does. ErrTooLarge: it could not fit beside the
// build's own slot, which lasts until batch is released.
//
// The caller keeps its reference to batch, and releases it soon: the memory is
// used again when the publisher's hold, all leases and the batch are gone.
// Publish ends the build, errors included. Nothing may be written through its
// memory any more.
func (b *Build) Publish(ctx context.Context, batch arrow.RecordBatch, copies *arrowio.Copies) (h Handle, copied int64, err error) {
	if b.done {
		return Handle{}, 0, fmt.Errorf("shm: publish: %w", ErrEnded)
	}
	frame, err := arrowio.Prepare(batch)
	if err != nil {
		b.Cancel()
		return Handle{}, 0, err
	}
	b.done = true
	r, a := &b.region, b.region.arena
	r.mu.Lock()
	used := r.head + r.space.top()
	offset := r.slot.handle.Offset
	slot := a.writable[offset : offset+r.slot.handle.Length]
	settled, err := frame.Settle(slot, used, copies)
	if err != nil {
		pinned := r.live > 0
		r.mu.Unlock()
		b.end(0)
		if !errors.Is(err, arrowio.ErrSize) {
			return Handle{}, 0, err
		}
		if behind := a.size - (offset + used); pinned && max(offset, behind) < frame.Size() {
			// The build's own slot stays until batch is released, so waiting is in vain.
			return Handle{}, 0, fmt.Errorf("shm: publish a batch of %d bytes that did not fit in its build of %d: %w beside that build: ask for more bytes", frame.Size(), len(slot), ErrTooLarge)
		}
		h, err = a.PutFrame(ctx, frame, copies)
		if err == nil {
			copied = frame.BodyBytes()
			a.built()
		}
		return h, copied, err
	}
	// What lay in the gaps before belongs to other batches.
	if settled.Head < r.head {
		clear(slot[settled.Head:r.head])
	}
	r.space.gaps(r.space.bytes, func(at, bytes int64) {
		if low, high := max(r.head+at, settled.Head), min(r.head+at+bytes, used); low < high {
			clear(slot[low:high])
		}
	})
	r.mu.Unlock()
	a.copied(settled.Copied)
	h = b.end(settled.Length)
	a.built()
	return h, settled.Copied, nil
}

// Cancel ends the build unpublished. Does nothing once it has ended.
func (b *Build) Cancel() {
	if !b.done {
		b.done = true
		b.end(0)
	}
}

// end publishes the first length bytes of the slot, or discards it if 0.
func (b *Build) end(length int64) (h Handle) {
	r, a := &b.region, b.region.arena
	r.mu.Lock()
	r.ended = true
	live, top := r.live, r.head+r.space.top()
	spare := r.space
	r.space = nil
	r.mu.Unlock()

	a.mu.Lock()
	s := r.slot
	if live == 0 {
		a.unpin(s)
		top = 0
	}
	a.spareSpaces = append(a.spareSpaces, spare)
	a.trim(s, max(length, top, 1))
	if length > 0 {
		s.handle.Length = length
		h = a.publish(s)
	} else {
		a.discard(s)
	}
	end := a.settle()
	a.mu.Unlock()
	end()
	return h
}

// unpin ends the builders' hold on a slot. Callers hold mu.
func (a *Arena) unpin(s *slot) {
	s.pinned = false
	a.stats.Builds--
}

func (a *Arena) built() {
	a.mu.Lock()
	a.stats.Built++
	a.mu.Unlock()
}

// Allocate implements memory.Allocator.
func (r *region) Allocate(size int) []byte {
	if size <= 0 {
		return []byte{}
	}
	r.mu.Lock()
	b := r.take(size)
	r.mu.Unlock()
	if b == nil {
		return memory.NewGoAllocator().Allocate(size)
	}
	wipe(b)
	return b
}

// wipe clears memory, and yields on the way: 16 MiB in one piece take 1.5 ms in which
// the processor is nobody else's.
func wipe(b []byte) {
	const piece = 1 << 20
	for len(b) > piece {
		clear(b[:piece])
		b = b[piece:]
		runtime.Gosched()
	}
	clear(b)
}

// take returns memory as it is, or nil. Callers hold mu.
func (r *region) take(size int) []byte {
	if r.ended {
		return nil
	}
	i := r.space.take(roundUp(int64(size), Alignment))
	if i == 0 {
		r.outside += int64(size)
		return nil
	}
	at := r.space.parts[i].offset
	r.parts[at] = i
	r.live++
	return r.bytes[at : at+int64(size) : at+int64(size)]
}

// Reallocate implements memory.Allocator.
func (r *region) Reallocate(size int, b []byte) []byte {
	if size <= 0 {
		r.Free(b)
		return []byte{}
	}
	r.mu.Lock()
	at, i := r.part(b)
	if i != 0 && !r.ended && r.space.resize(i, roundUp(int64(size), Alignment)) {
		r.mu.Unlock()
		grown := r.bytes[at : at+int64(size) : at+int64(size)]
		if size > len(b) {
			clear(grown[len(b):])
		}
		return grown
	}
	grown := r.take(size)
	r.mu.Unlock()
	if grown == nil {
		grown = memory.NewGoAllocator().Allocate(size)
	}
	clear(grown[copy(grown, b):])
	r.Free(b)
	return grown
}

// Free implements memory.Allocator. Memory of the Go heap is left to the
// collector.
func (r *region) Free(b []byte) {
	r.mu.Lock()
	at, i := r.part(b)
	if i == 0 {
		r.mu.Unlock()
		return
	}
	delete(r.parts, at)
	r.live--
	if !r.ended {
		r.space.give(i)
	}
	last := r.ended && r.live == 0
	r.mu.Unlock()
	if !last {
		return
	}
	a := r.arena
	a.mu.Lock()
	a.unpin(r.slot)
	a.reuse(r.slot)
	end := a.settle()
	a.mu.Unlock()
	end()
}

// part finds the part that b begins; 0 if it is not of the slot. Callers hold mu.
func (r *region) part(b []byte) (at int64, i int32) {
	if cap(b) == 0 {
		return 0, 0
	}
	low, p := uintptr(unsafe.Pointer(unsafe.SliceData(r.bytes))), uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	if p < low || p-low >= uintptr(len(r.bytes)) {
		return 0, 0
	}
	at = int64(p - low)
	return at, r.parts[at]
}
