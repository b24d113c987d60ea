// Package shm keeps record batches in shared memory that other processes map.
//
// An Arena is a memfd of fixed size, reserved in full when it is made: a machine
// without the memory gives an error then, never SIGBUS later. A slot of it goes
// through these states:
//
//	Loan     a writer has the memory to itself and writes in place
//	Publish  the bytes are immutable from now on; a Handle names them
//	Lease    readers hold the slot, each for an owner (a connection, a task)
//	Drop     the publisher gives up its own hold
//	         when the last hold is gone the memory is reused
//
// A Handle is arena, offset, length and generation, never a pointer. Each loan
// has a new generation, so a handle that outlived its slot is ErrGone and never
// somebody else's bytes. When a peer dies, ReclaimOwner ends its leases.
//
// Leases are read through a second, read-only mapping: writing to a published
// batch faults even in the process that owns it. Other processes get the
// descriptor, which is sealed against shrinking, growing and new writable maps,
// and open it with OpenView. A process that is not trusted publishes in a memfd
// of its own under F_SEAL_WRITE, which Adopt verifies and takes over without a
// copy.
//
// Memfds have no name in any file system: nothing is left behind however the
// processes end.
package shm
