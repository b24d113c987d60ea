package events

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// historyChunk is how many stored messages are fetched, and judged, at once.
	historyChunk = 256
	historyWait  = 5 * time.Second
	// historyTries is how often in a row a fetch may bring nothing.
	historyTries = 3
)

// Replay yields every matching event that is in the stream when it begins, in
// stream order, and ends. Of s it obeys Types, Subject and Start. Nothing is
// acknowledged and no consumer's position moves.
//
// Events are judged on receive as for a handler. One that is malformed or denied
// yields an *Error with its Sequence in the Delivery, and the loop may go on; it
// is not dead-lettered. An error that wraps ErrUnavailable is the last.
func (b *Bus) Replay(ctx context.Context, s Subscription) iter.Seq2[Delivery, error] {
	return func(yield func(Delivery, error) bool) {
		s, err := s.withDefaults(b.cfg.Types)
		if err != nil {
			yield(Delivery{}, err)
			return
		}
		if b.cfg.Judge == nil {
			yield(Delivery{}, &Error{Op: "receive", Hint: "give the bus a Judge", Err: fmt.Errorf("%w: the bus has no Judge", ErrDenied)})
			return
		}
		if s.Start == FromNow {
			return
		}
		var chunk []stored
		for m, err := range b.history(ctx, b.names.events(), s.filters(b.names, b.cfg.Types), max(s.Start, 1)) {
			if err != nil {
				if b.replay(ctx, chunk, yield) {
					yield(Delivery{}, err)
				}
				return
			}
			chunk = append(chunk, m)
			if !m.last && len(chunk) < historyChunk {
				continue
			}
			if !b.replay(ctx, chunk, yield) {
				return
			}
			chunk = chunk[:0]
		}
		b.replay(ctx, chunk, yield)
	}
}

// replay judges and yields a chunk, and reports whether more is wanted.
func (b *Bus) replay(ctx context.Context, chunk []stored, yield func(Delivery, error) bool) bool {
	b.stats.received.Add(uint64(len(chunk)))
	evs := make([]Event, len(chunk))
	errs := make([]error, len(chunk))
	judged := make([]*Event, 0, len(chunk))
	decode := b.eventDecoder()
	for i, m := range chunk {
		if evs[i], errs[i] = decode(m.msg, &decoded{}); errs[i] == nil {
			judged = append(judged, &evs[i])
		}
	}
	var verdicts []Verdict
	if len(judged) > 0 {
		var err error
		if verdicts, err = b.judge(ctx, OnReceive, judged); err != nil {
			yield(Delivery{}, &Error{Op: "receive", Err: err})
			return false
		}
	}
	for i, m := range chunk {
		if errs[i] == nil {
			v := verdicts[0]
			verdicts = verdicts[1:]
			if !v.Action.Permits() {
				b.stats.denied.Add(1)
				errs[i] = refusal(v)
			}
		}
		d := Delivery{Sequence: m.sequence, Deliveries: 1}
		if errs[i] != nil {
			if !yield(d, eventError("receive", &evs[i], fmt.Errorf("stream sequence %d: %w", m.sequence, errs[i]))) {
				return false
			}
			continue
		}
		d.Event = evs[i]
		if !yield(d, nil) {
			return false
		}
	}
	return true
}

// stored is a message read back from a stream.
type stored struct {
	msg      jetstream.Msg
	header   nats.Header
	data     []byte
	sequence uint64
	at       time.Time
	last     bool
}

// history yields what a stream holds from a sequence on, and ends at what was
// the newest message when it began. An error is the last it yields.
func (b *Bus) history(ctx context.Context, stream string, filters []string, from uint64) iter.Seq2[stored, error] {
	return func(yield func(stored, error) bool) {
		fail := func(err error) {
			yield(stored{}, &Error{Op: "receive", Hint: "is the server reachable?", Err: fmt.Errorf("%w: read stream %s: %w", ErrUnavailable, stream, err)})
		}
		s, err := b.js.Stream(ctx, stream)
		if b.cfg.ReadOnly && errors.Is(err, jetstream.ErrStreamNotFound) {
			return // nobody who may has made it yet
		}
		if err != nil {
			fail(err)
			return
		}
		end := s.CachedInfo().State.LastSeq
		next := from
		for empty := 0; next <= end; {
			got, err := b.readSome(ctx, stream, filters, next, end, func(m stored) bool {
				next = m.sequence + 1
				if m.last {
					next = end + 1
				}
				return yield(m, nil)
			})
			switch {
			case errors.Is(err, errStopped), errors.Is(err, errNoMore):
				return
			case ctx.Err() != nil:
				fail(context.Cause(ctx))
				return
			case got > 0:
				empty = 0
			default:
				if empty++; empty >= historyTries {
					if err == nil {
						err = context.DeadlineExceeded
					}
					fail(err)
					return
				}
			}
		}
	}
}

// readSome reads from one ephemeral consumer until the end, or until something
// goes wrong with it; the caller then goes on with another.
func (b *Bus) readSome(ctx context.Context, stream string, filters []string, from, end uint64, yield func(stored) bool) (got int, err error) {
	cons, err := b.js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
		FilterSubjects:    filters,
		AckPolicy:         jetstream.AckNonePolicy,
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       from,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: ephemeralAge,
	})
	if err != nil {
		return 0, err
	}
	info := cons.CachedInfo()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = b.js.DeleteConsumer(ctx, stream, info.Name)
	}()
	left := info.NumPending
	if left == 0 {
		return 0, errNoMore
	}
	for left > 0 {
		batch, err := cons.Fetch(int(min(left, historyChunk)), jetstream.FetchMaxWait(historyWait))
		if err != nil {
			return got, err
		}
		n := 0
		for open := true; open; {
			select {
			case m, ok := <-batch.Messages():
				if !ok {
					open = false
					break
				}
				pos, err := parsePosition(m.Reply())
				if err != nil {
					return got, err
				}
				if pos.consumed != uint64(got)+1 {
					return got, nil // dropped on the way: go on from the last
				}
				if pos.sequence > end {
					return got, errNoMore
				}
				n++
				got++
				out := stored{msg: m, header: m.Headers(), data: m.Data(), sequence: pos.sequence, last: pos.sequence == end || pos.pending == 0}
				if meta, err := m.Metadata(); err == nil {
					out.at = meta.Timestamp
				}
				if !yield(out) {
					return got, errStopped
				}
				if out.last {
					return got, errNoMore
				}
			case <-ctx.Done():
				return got, context.Cause(ctx)
			}
		}
		if n == 0 {
			return got, batch.Error()
		}
		left -= min(left, uint64(n))
	}
	return got, errNoMore
}

// sentinel ends a read, rather than failing it.
type sentinel string

func (s sentinel) Error() string { return string(s) }

const (
	errStopped = sentinel("stopped by the caller")
	errNoMore  = sentinel("nothing more")
)
