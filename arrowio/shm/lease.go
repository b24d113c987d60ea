package shm

import (
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
)

// Loan is memory being written. It ends with Publish or Cancel. Not safe for
// concurrent use.
type Loan struct {
	arena *Arena
	slot  *slot
	done  bool
}

// Bytes is the memory, 64-byte aligned, of the length that was asked for; nil
// once the loan has ended. What it holds before it is written is undefined.
func (l *Loan) Bytes() []byte {
	if l.done {
		return nil
	}
	h := l.slot.handle
	return l.arena.writable[h.Offset : h.Offset+h.Length : h.Offset+h.Length]
}

// Publish makes the bytes immutable and returns their name. The publisher's
// hold lasts until Arena.Drop. Nothing may be written through earlier results
// of Bytes any more. A loan that has ended gives the zero Handle.
func (l *Loan) Publish() Handle {
	if l.done {
		return Handle{}
	}
	l.done = true
	a := l.arena
	a.mu.Lock()
	l.slot.open = false
	a.stats.Loans--
	a.stats.Published++
	if a.closed { // while it was being written: nobody can lease it any more
		l.slot.held = false
		a.reuse(l.slot)
	}
	end := a.settle()
	a.mu.Unlock()
	end()
	return l.slot.handle
}

// Cancel gives the memory back unpublished. Does nothing once the loan has ended.
func (l *Loan) Cancel() {
	if l.done {
		return
	}
	l.done = true
	a := l.arena
	a.mu.Lock()
	a.discard(l.slot)
	end := a.settle()
	a.mu.Unlock()
	end()
}

// Lease is one reader's hold on a published slot. Release may be called from any
// goroutine; the bytes must not be used after it, by anyone.
type Lease struct {
	arena    *Arena
	slot     *slot
	owner    string
	released bool
}

// Handle names the slot.
func (l *Lease) Handle() Handle { return l.slot.handle }

// Arena is the arena that the slot is in.
func (l *Lease) Arena() *Arena { return l.arena }

// Bytes is the published memory, mapped read-only: writing to it faults. Valid
// until Release.
func (l *Lease) Bytes() []byte {
	h := l.slot.handle
	l.arena.mu.Lock()
	defer l.arena.mu.Unlock()
	if l.released {
		return nil
	}
	return l.arena.readable[h.Offset : h.Offset+h.Length : h.Offset+h.Length]
}

// Batch returns the framed batch in place; the lease passes to it and is
// released with it. On error the lease is released too.
func (l *Lease) Batch(opts ...arrowio.DecodeOption) (arrow.RecordBatch, error) {
	b := l.Bytes()
	if b == nil {
		return nil, fmt.Errorf("shm: batch at %s: %w: lease released", l.Handle(), arrowio.ErrGone)
	}
	return arrowio.Decode(b, l.Release, opts...)
}

// Release ends the lease. Repeatable, also after ReclaimOwner.
func (l *Lease) Release() {
	a := l.arena
	a.mu.Lock()
	a.release(l)
	end := a.settle()
	a.mu.Unlock()
	end()
}
