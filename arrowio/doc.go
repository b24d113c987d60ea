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
//
// EncodeTo and WriteTo lay buffers out in the schema's order without gaps: a
// batch's bytes are then the same wherever it was made. Settle makes a frame of
// memory that holds the buffers already; such a frame may have them in any order,
// with gaps between, which the format allows.
package arrowio
