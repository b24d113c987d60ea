// Package events is the bus: CloudEvents 1.0 in binary mode on NATS JetStream,
// judged on publish and again before a handler runs.
//
// # The way of an event
//
// [Bus.Publish] holds each event to CloudEvents, to the limits and to the Go type
// that its [Type] declares, has the [Judge] decide on up to 256 at once, and sends
// those that were permitted with many in flight, while the next are judged. It
// returns when the stream has acknowledged all, with one [Error] for each event
// that is not stored.
//
// [Bus.Subscribe] and [Bus.SubscribeBatch] pull messages, hold them to the same,
// and have the Judge decide on all that are at hand before a handler sees any.
// The server is told of every unresolved message that it is being worked on, so
// that a slow handler's events come to nobody else. What fails comes again after
// a growing delay; what cannot be handled becomes a [DeadLetter], exactly one for
// each consumer and message.
//
// Without a durable name a subscription is ephemeral and ordered: it sees each
// event from its start once and in order, through restarts of the server and
// messages that the client library dropped. [Bus.Replay] reads what is there and
// ends.
//
// # Failing closed
//
// A bus without a Judge refuses everything. A Judge that returns an error, or
// too few verdicts, has permitted nothing: on publish that is [ErrUnavailable],
// on receive events wait until it can be asked again. [AllowAll] is for tests.
//
// # Watermill
//
// [Publisher] and [Subscriber] carry arbitrary Watermill messages over the same
// machinery.
//
// Subjects, streams, headers and event types are listed in docs/EVENTS.md.
package events
