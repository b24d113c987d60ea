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
//
// # Types
//
// Every type of the format goes through unchanged, bit for bit, from this package
// to pyarrow and back: tests hold that for each type, for nests of them and for
// random schemas. What the format or the Arrow library has no form for is an
// error that wraps ErrUnsupported: dictionaries of dictionaries or of extension
// types, runs of extension types over dictionaries, fixed-size lists of size 0,
// decimals with a scale beyond their digits. Lost without an error, because the
// library has no place for them, are the names and metadata of the fields within
// maps and run-end encoded types that others wrote; an unknown extension type of
// the runs is then its storage.
//
// # Trust
//
// A batch that Decode has validated holds nothing that reading it could trip
// over: all of it lies in the frame, text is UTF-8, counts of nulls are right,
// fields that are not nullable have no nulls. What Decode accepts, pyarrow's full
// validation accepts. Checking it costs time in proportion to the frame, memory
// in proportion to the metadata, and never more than 64 levels of stack.
package arrowio
