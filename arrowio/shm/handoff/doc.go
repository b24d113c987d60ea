// Package handoff is how processes hand each other slots of shared memory: packets
// over a SOCK_SEQPACKET Unix socket, with the descriptors of arenas passed along.
// Batch bodies never cross the socket.
package handoff
