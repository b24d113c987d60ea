// Package audit keeps the decisions of governance in a JetStream stream, durable
// before their effect, as a Merkle log that shows what was done to it.
//
// Concurrent Append calls are committed in groups: while one message waits for
// its acknowledgement, the decisions of other calls gather and go out together
// in the next, so that a synced write is paid by many. Nothing is dropped: a
// full queue makes Append wait, and a stream that does not acknowledge makes it
// fail, upon which governance lets no event pass.
//
// The stream's order is the log's. A Sequencer follows it, builds the tree and
// stores signed checkpoints out of reach of whoever may write to the stream;
// Reader.Verify holds the stream to them, and Reader.Prove proves single
// decisions. The formats and what can be checked without NATS are in the package
// proof, and described in docs/AUDIT.md.
package audit
