// Package shm shares record batches between processes through pooled memory.
package shm

// Arena is a pooled shared-memory region owned by this process.
type Arena struct{}

// Lease is the right to read one published slot until it is released.
type Lease struct{}

// Host knows the arenas of this process.
type Host struct{}
