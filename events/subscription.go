package events

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

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
	MaxPending int           // unacknowledged events at once; default 4,096
}

// FromNow starts an ephemeral subscription after the newest event.
const FromNow = ^uint64(0)

const (
	minAckWait = 50 * time.Millisecond
	// crashFactor times MaxDeliver is when the server gives up by itself. Each
	// delivery counts there, also of events that only waited in a process that
	// died, so that the server must be more patient than the handler's failures
	// deserve.
	crashFactor = 4
)

// withDefaults returns the complete subscription, or all its faults at once.
func (s Subscription) withDefaults(types *Registry) (Subscription, error) {
	var faults []error
	if s.Durable != "" {
		if err := checkDurable(s.Durable); err != nil {
			faults = append(faults, fmt.Errorf("%w: %w", ErrConfig, err))
		}
		if s.Start != 0 {
			faults = append(faults, fmt.Errorf("%w: Start: only an ephemeral subscription may choose where it begins", ErrConfig))
		}
	}
	for _, t := range s.Types {
		if _, ok := types.Lookup(t); !ok {
			faults = append(faults, fmt.Errorf("%w: %q", ErrUnknownType, t))
		}
	}
	if len(EncodeToken(s.Subject)) > maxTokenBytes {
		faults = append(faults, fmt.Errorf("%w: Subject: longer than %d bytes as a NATS token", ErrConfig, maxTokenBytes))
	}
	if s.MaxDeliver == 0 {
		s.MaxDeliver = 5
	}
	if s.AckWait == 0 {
		s.AckWait = 30 * time.Second
	}
	if s.RetryDelay == 0 {
		s.RetryDelay = time.Second
	}
	if s.MaxBatch == 0 {
		s.MaxBatch = 100
	}
	if s.MaxPending == 0 {
		s.MaxPending = defaultMaxPending
	}
	if s.MaxDeliver < 0 || s.MaxDeliver > 1000 || s.RetryDelay < 0 || s.MaxBatch < 1 || s.MaxWait < 0 || s.MaxPending < 1 {
		faults = append(faults, fmt.Errorf("%w: MaxDeliver must be 1 to 1000, MaxBatch and MaxPending at least 1, times not negative", ErrConfig))
	}
	if s.AckWait < minAckWait {
		faults = append(faults, fmt.Errorf("%w: AckWait: %s is shorter than %s", ErrConfig, s.AckWait, minAckWait))
	}
	s.MaxBatch = min(s.MaxBatch, s.MaxPending)
	if len(faults) > 0 {
		return s, &Error{Op: "subscribe", Err: errors.Join(faults...)}
	}
	return s, nil
}

// filters are the NATS subjects of the wanted events; none: all of the stream.
func (s Subscription) filters(n names, types *Registry) []string {
	if len(s.Types) == 0 && s.Subject == "" {
		return nil
	}
	wanted := s.Types
	if len(wanted) == 0 {
		for _, t := range types.All() {
			wanted = append(wanted, t.Name)
		}
	}
	fs := make([]string, 0, len(wanted))
	seen := make(map[string]bool)
	for _, t := range wanted {
		if seen[t] {
			continue
		}
		seen[t] = true
		if s.Subject != "" {
			fs = append(fs, n.event(t, s.Subject))
		} else {
			fs = append(fs, n.prefix+"."+eventSubject+"."+t+".*")
		}
	}
	return fs
}

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

// RefusedError is what a BatchHandler returns that has handled its events but for some,
// by index, which are not worth a retry: these are dead-lettered, the others
// acknowledged.
type RefusedError map[int]error

// Error implements error.
func (r RefusedError) Error() string {
	for _, i := range slices.Sorted(maps.Keys(r)) {
		return fmt.Sprintf("%d event(s) refused, the first since: %v", len(r), r[i])
	}
	return "no event refused"
}

// of is what became of the event at an index of a batch.
func (r RefusedError) of(i int) error {
	if err, ok := r[i]; ok {
		return Terminate(err)
	}
	return nil
}

// Terminate marks err as not worth a retry: the event is dead-lettered.
func Terminate(err error) error {
	if err == nil {
		err = errors.New("terminated")
	}
	return &terminal{err}
}

type terminal struct{ err error }

func (t *terminal) Error() string { return t.err.Error() }
func (t *terminal) Unwrap() error { return t.err }

// Subscribe judges and hands each matching event to h, one after another, until
// ctx ends, the returned Consumer is stopped, or the bus closes.
//
// A durable subscription acknowledges what h took and delivers what it failed on
// again, behind later events, after RetryDelay doubled with each failure. An
// ephemeral one keeps the order: it calls h again with the same event before it
// goes on. After MaxDeliver failures an event is dead-lettered, as is one that
// is malformed or denied; neither reaches h.
func (b *Bus) Subscribe(ctx context.Context, s Subscription, h Handler) (*Consumer, error) {
	return b.subscribe(ctx, s, func(c *Consumer) { c.handleEach(h) })
}

// SubscribeBatch is Subscribe for handlers that take many events at once.
func (b *Bus) SubscribeBatch(ctx context.Context, s Subscription, h BatchHandler) (*Consumer, error) {
	return b.subscribe(ctx, s, func(c *Consumer) { c.handleBatches(h) })
}

func (b *Bus) subscribe(ctx context.Context, s Subscription, handle func(*Consumer)) (*Consumer, error) {
	s, err := s.withDefaults(b.cfg.Types)
	if err != nil {
		return nil, err
	}
	in := intake{
		stream:     b.names.events(),
		durable:    s.Durable,
		filters:    s.filters(b.names, b.cfg.Types),
		start:      s.Start,
		maxDeliver: s.MaxDeliver,
		ackWait:    s.AckWait,
		retryDelay: s.RetryDelay,
		maxBatch:   s.MaxBatch,
		maxWait:    s.MaxWait,
		maxPending: s.MaxPending,
		decode:     b.eventDecoder(),
		handle:     handle,
	}
	return b.consume(ctx, in)
}

// eventDecoder returns what reads events off the event stream, for one goroutine.
func (b *Bus) eventDecoder() func(jetstream.Msg, *decoded) (Event, error) {
	var d decoder
	return func(m jetstream.Msg, into *decoded) (Event, error) { return b.decode(&d, m, into) }
}

// decode holds an event to what Publish holds it to: anyone who may write to the
// subjects can put anything there.
func (b *Bus) decode(dec *decoder, m jetstream.Msg, into *decoded) (Event, error) {
	if len(m.Data()) > MaxDataBytes {
		return Event{}, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(m.Data()), MaxDataBytes)
	}
	ev, err := dec.decode(m.Headers(), m.Data(), into)
	if err != nil {
		return ev, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	ec, err := contextOf(&ev)
	if err != nil {
		return ev, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if !b.names.matches(m.Subject(), ec.Type, ec.Subject) {
		return ev, fmt.Errorf("%w: type and subject do not belong to NATS subject %s", ErrInvalid, m.Subject())
	}
	if err := b.checkData(&ev); err != nil {
		return ev, err
	}
	return ev, nil
}
