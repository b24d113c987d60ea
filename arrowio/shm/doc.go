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
// # Building in place
//
// Arena.Build gives Arrow builders memory of a slot, and Build.Publish makes a
// frame around the buffers where they lie: schema and record batch metadata go to
// the room that was left at the start, gaps stay between the buffers, and no body
// byte moves. What of the batch lies elsewhere is copied, once, and so are
// dictionaries; the bytes are returned and counted, so the difference is seen.
// Put, one copy of all, is for batches that were made by somebody else. Who has a
// batch from a slot and passes it on as it is takes Host.Locate and Arena.Keep,
// which copy nothing.
//
// What builders made holds the slot like a lease until it is released
// (Stats.Builds): a batch that the collector is left to deal with keeps its
// memory for ever.
//
// # Memory
//
// Slots come from a segregated fit with coalescing, which hands out what was used
// last before what was never touched: the first touch of a page costs several
// times a later one. Config.Prefault touches all beforehand. Stats and Classes say
// how much is free and in what pieces. A full arena makes Loan, Build and Put wait
// in order of arrival; no memory of it is ever promised twice. Config.Bytes bounds
// an arena, Host.Limit all arenas of a process, adopted ones included. Before
// memory is taken, what the machine and the process's control groups have left is
// looked at, since a group at its limit kills where a machine refuses.
//
// Leases are values with a serial number; taking and releasing one allocates
// nothing on the Go heap.
//
// Memfds have no name in any file system: nothing is left behind however the
// processes end.
package shm
