// Package worker runs stage code in a child process that is fed through shared
// memory.
//
// The Host (in the process that owns the arenas) starts the child, sends it jobs
// and leases batches to it by reference; the child maps them read-only, and
// publishes its results in memfds of its own that it seals, which the host
// verifies, adopts and validates. No batch body crosses the socket between them.
// The child holds leases only as long as it lives: however it ends, the host
// takes them back and the job fails with ErrWorkerDied; the next job gets a new
// child.
//
// Config.Outputs Shared lets a child publish in an arena of its own instead, whose
// memory it uses again while it is warm; it can then alter a batch after it was
// validated, so this is for children trusted as the host is. A child also hands
// over models (Job.OnModel). A Pool is several children of one program, for jobs
// that wait for one another.
//
// In Go the child is usually the same program started again: call RunIfChild
// first thing in main. The protocol is specified in docs/WORKER-PROTOCOL.md, for
// children in other languages.
package worker
