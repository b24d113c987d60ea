// Package arrowio names Arrow record batches and moves them as standard
// encapsulated IPC messages, in place where memory allows. It imports nothing
// else of Stokehold's.
//
// A framed batch is a complete Arrow IPC stream of one batch: schema message,
// dictionary messages if any, one record batch message, end-of-stream marker.
// Every body starts on a 64-byte boundary of the frame and so does every
// buffer in it; a frame in memory that is itself 64-byte aligned (an arena slot,
// a mapped file) can therefore be used where it lies. Any Arrow implementation
// reads a frame as a stream.
package arrowio
