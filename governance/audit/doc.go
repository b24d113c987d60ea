// Package audit keeps the decisions of governance in a JetStream stream, durable
// before their effect.
//
// Concurrent Append calls are committed in groups: while one message waits for
// its acknowledgement, the decisions of other calls gather and go out together
// in the next, so that a synced write is paid by many. Nothing is dropped: a
// full queue makes Append wait, and a stream that does not acknowledge makes it
// fail, upon which governance lets no event pass.
package audit
