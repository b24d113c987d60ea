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
	h := a.publish(l.slot)
	end := a.settle()
	a.mu.Unlock()
	end()
	return h
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

// Lease is one reader's hold on a published slot. It is a value: copies are the
// same lease, and one released stays so, whatever its memory serves since.
// Release may be called from any goroutine; the bytes must not be used after
// it, by anyone. The zero Lease holds nothing.
type Lease struct {
	arena  *Arena
	hold   *hold
	serial uint64 // of hold, while this lease has it
	handle Handle
}

// hold is the book-keeping of a lease, used again for another after it.
type hold struct {
	slot         *slot // nil: spare
	owner        *leaser
	before, next *hold // among the owner's, or next spare
	serial       uint64
}

// leaser is the leases of one name; it is forgotten with the last of them.
type leaser struct {
	name  string
	first *hold
	next  *leaser // spare
}

// Handle names the slot.
func (l Lease) Handle() Handle { return l.handle }

// Arena is the arena that the slot is in.
func (l Lease) Arena() *Arena { return l.arena }

// Bytes is the published memory, mapped read-only: writing to it faults. Valid
// until Release; nil after it.
func (l Lease) Bytes() []byte {
	if l.arena == nil {
		return nil
	}
	h := l.handle
	l.arena.mu.Lock()
	defer l.arena.mu.Unlock()
	if l.hold.serial != l.serial {
		return nil
	}
	return l.arena.readable[h.Offset : h.Offset+h.Length : h.Offset+h.Length]
}

// Batch returns the framed batch in place; the lease passes to it and is
// released with it. On error the lease is released too.
func (l Lease) Batch(opts ...arrowio.DecodeOption) (arrow.RecordBatch, error) {
	if l.arena == nil {
		return nil, fmt.Errorf("shm: batch: %w: no lease", arrowio.ErrGone)
	}
	return l.BatchBy(&l.arena.decoder, opts...)
}

// BatchBy is Batch by a decoder that may know the schema: of an arena's batches,
// Batch knows only that of the one before, of an adopted segment's none.
func (l Lease) BatchBy(d *arrowio.Decoder, opts ...arrowio.DecodeOption) (arrow.RecordBatch, error) {
	b := l.Bytes()
	if b == nil {
		return nil, fmt.Errorf("shm: batch at %s: %w: lease released", l.handle, arrowio.ErrGone)
	}
	return d.Decode(b, l.Release, opts...)
}

// Release ends the lease. Repeatable, also after ReclaimOwner.
func (l Lease) Release() {
	a := l.arena
	if a == nil {
		return
	}
	a.mu.Lock()
	if l.hold.serial == l.serial {
		a.release(l.hold)
	}
	end := a.settle()
	a.mu.Unlock()
	end()
}

// Lease holds a published slot for reading on behalf of owner. The error wraps
// arrowio.ErrGone if the handle's slot never was published here, or has been
// dropped, or the arena is closed.
//
// It takes no memory of the Go heap once the arena has seen as many leases and
// owners at once, unless the caller makes the result outlive its own function;
// Hold, which returns a value, never does.
func (a *Arena) Lease(h Handle, owner string) (*Lease, error) { // small enough to be inlined
	l, err := a.Hold(h, owner)
	if err != nil {
		return nil, err
	}
	return &l, nil
}

// Hold is Lease, by value.
func (a *Arena) Hold(h Handle, owner string) (Lease, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.find(h)
	if err != nil {
		return Lease{}, err
	}
	if s.holds == 0 {
		return Lease{}, fmt.Errorf("shm: lease %s: %w: dropped", h, arrowio.ErrGone)
	}
	x := a.spareHolds
	if x == nil {
		x = &hold{}
	} else {
		a.spareHolds = x.next
	}
	o := a.owners[owner]
	if o == nil {
		if o = a.spareOwners; o == nil {
			o = &leaser{}
		} else {
			a.spareOwners = o.next
		}
		o.name, o.next = owner, nil
		a.owners[owner] = o
	}
	x.slot, x.owner, x.before, x.next = s, o, nil, o.first
	if o.first != nil {
		o.first.before = x
	}
	o.first = x
	s.leases++
	a.stats.Leases++
	a.stats.Leased++
	a.stats.LeasedBytes += uint64(h.Length)
	return Lease{arena: a, hold: x, serial: x.serial, handle: s.handle}, nil
}

// release ends the lease that has x. Callers hold mu.
func (a *Arena) release(x *hold) {
	s, o := x.slot, x.owner
	if x.before != nil {
		x.before.next = x.next
	} else {
		o.first = x.next
	}
	if x.next != nil {
		x.next.before = x.before
	}
	x.serial++ // who still has the old one can do nothing with it
	x.slot, x.owner, x.before, x.next = nil, nil, nil, a.spareHolds
	a.spareHolds = x
	if o.first == nil {
		delete(a.owners, o.name)
		o.name, o.next = "", a.spareOwners
		a.spareOwners = o
	}
	s.leases--
	a.stats.Leases--
	a.stats.Released++
	a.reuse(s)
}

// ReclaimOwner ends all leases of an owner, which must no longer read through
// them (its process is gone), and returns how many there were.
func (a *Arena) ReclaimOwner(owner string) int {
	a.mu.Lock()
	n := 0
	for o := a.owners[owner]; o != nil && o.first != nil; {
		a.release(o.first)
		a.stats.Reclaimed++
		n++
	}
	end := a.settle()
	a.mu.Unlock()
	end()
	return n
}
