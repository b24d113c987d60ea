package events

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
)

// Config configures a Bus. Zero values take the documented defaults.
type Config struct {
	Conn     *nats.Conn    // required; the bus does not close it
	Types    *Registry     // event types that may pass; nil: NewRegistry()
	Judge    Judge         // nil: every event is refused (fails closed); see AllowAll for tests
	Prefix   string        // first subject token and stream-name prefix; default "stokehold"
	Replicas int           // of the streams; default 1
	MaxAge   time.Duration // retention of the event stream; default 7 days
	MaxBytes int64         // of the event stream; default 1 GiB
	Dedupe   time.Duration // JetStream duplicate window; default 10 minutes
	Logger   *slog.Logger
}

// Bus publishes and consumes judged CloudEvents over JetStream. Safe for
// concurrent use.
type Bus struct{}

// Open checks the configuration, creates or updates the streams and returns
// the bus. It proves that the server persists by waiting for a publish
// acknowledgement.
func Open(ctx context.Context, cfg Config) (*Bus, error) { panic("contract") }

// Close drains: it stops all subscriptions, waits for running handlers until
// ctx ends, and flushes acknowledgements. Repeatable.
func (b *Bus) Close(ctx context.Context) error { panic("contract") }

// Approve validates and judges the events without publishing them, and stamps
// them in place, so that an effect that must precede publication (a catalog
// commit) happens only after an allow. Publish does not judge a stamped event
// again. The error joins one *Error per refused event.
func (b *Bus) Approve(ctx context.Context, evs ...*Event) error { panic("contract") }

// Publish validates, judges and publishes the events in order, and returns when
// all that were permitted are persisted (publish acknowledgements received).
// The error joins one *Error per event that is not in the stream; the others
// are. Publishing an id again is a success and stores nothing.
func (b *Bus) Publish(ctx context.Context, evs ...Event) error { panic("contract") }

// Subscription says which events a consumer wants and how.
type Subscription struct {
	// Durable names a consumer whose position survives restarts and is shared by
	// all subscribers of that name. Empty: ephemeral, ordered, from Start.
	Durable string
	Types   []string // event types; empty: all
	Subject string   // CloudEvents subject (token-encoded); empty: all
	// Start is the stream sequence an ephemeral subscription begins at;
	// 0: the beginning, and FromNow: only new events.
	Start      uint64
	MaxDeliver int           // then dead-lettered; default 5
	AckWait    time.Duration // default 30 s, extended while the handler runs
	RetryDelay time.Duration // base of the backoff after a failed handler; default 1 s
	MaxBatch   int           // for SubscribeBatch; default 100
	MaxWait    time.Duration // how long a batch waits for its first-come events to be joined by others; default 0
	MaxPending int           // unacknowledged events at once; default 1,000
}

// FromNow starts an ephemeral subscription after the newest event.
const FromNow = ^uint64(0)

// Delivery is one received event with its place in the stream.
type Delivery struct {
	Event
	Sequence   uint64 // stream sequence
	Deliveries int    // 1 on the first
}

// Handler handles one event. nil acknowledges; an error negatively
// acknowledges with delay; an error wrapped by Terminate dead-letters at once.
type Handler func(ctx context.Context, d Delivery) error

// BatchHandler handles up to Subscription.MaxBatch events at once, in stream
// order; its result applies to all of them.
type BatchHandler func(ctx context.Context, ds []Delivery) error

// Terminate marks err as not worth a retry: the event is dead-lettered.
func Terminate(err error) error { panic("contract") }

// Subscribe judges and hands each matching event to h, one after another, until
// ctx ends, the returned Consumer is stopped, or the bus closes.
func (b *Bus) Subscribe(ctx context.Context, s Subscription, h Handler) (*Consumer, error) {
	panic("contract")
}

// SubscribeBatch is Subscribe for handlers that take many events at once.
func (b *Bus) SubscribeBatch(ctx context.Context, s Subscription, h BatchHandler) (*Consumer, error) {
	panic("contract")
}

// Consumer is a running subscription.
type Consumer struct{}

// Stop stops delivery and waits for the running handler until ctx ends.
func (c *Consumer) Stop(ctx context.Context) error { panic("contract") }

// Stats counts what passed this process's bus.
type Stats struct {
	Published, Received, Judged, Denied, DeadLettered uint64
}

// Stats returns the counters since Open.
func (b *Bus) Stats() Stats { panic("contract") }
