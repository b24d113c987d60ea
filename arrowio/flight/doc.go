// Package flight carries batches between hosts over Arrow Flight, with the same
// contract as everywhere: arrowio.Resolver.
//
// # On the wire
//
// A server answers GetFlightInfo and DoGet of the standard Flight service. A
// ticket is a JSON object, see Ticket; the stream is a standard one that any
// Flight client can read: the schema, then each batch as one record batch message
// with its dictionaries before it. Each of a batch's messages carries, as
// application metadata, a JSON object, see Meta: its sequence, its size, and the
// SHA-256 of its frame.
//
// The frame is what the checksum covers and what Client puts together again byte
// for byte: for each message of the batch, the stream's schema first,
//
//	FF FF FF FF | length of data_header, u32 little-endian | data_header | data_body
//
// and then FF FF FF FF 00 00 00 00, which is left out where Meta's frame_bytes
// leaves no room for it. data_header holds the message's metadata with the padding
// that the frame has. These are the bytes that the warm tier stores, so that the
// catalog's checksum of a batch holds on every host. Where batches of one dataset
// have schema messages that differ in their bytes (programs in two languages wrote
// them), Meta.Schema holds the batch's own.
//
// # Copies
//
// A body byte is copied twice in user space from one host's arena to the other
// host's array: by the server out of the arena into a message of gRPC's, since
// gRPC may still read a message after the call that sent it, and by the client
// out of HTTP/2 frames into a 64-byte aligned frame, in which the arrays then
// lie. (The library's own reader and writer copy four times.) The kernel's
// copies, and those of TLS, come on top; Stats counts ours. A source that is no
// Framer costs one more.
//
// # Trust
//
// A server asks each client for a token, or a certificate, and refuses to start
// where that could be overheard. A client checks every batch: its checksum, that
// of the ref, its schema and its rows; every value is validated unless the ref's
// own checksum proves that these are the bytes that were validated when they were
// written. A client with a token connects to the hosts that refs name: TLS with
// certificates of one's own authority keeps the token from others.
package flight
