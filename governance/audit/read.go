package audit

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// ErrGap means that messages of the stream are missing between two that were read.
var ErrGap = errors.New("gap in the decision stream")

const (
	fetchMessages = 32               // at most 8 MiB
	idleConsumer  = 30 * time.Second // after which the server drops an abandoned reader
)

// Read yields the decisions made at or after from (the zero time: all that are
// kept) and stored when Read was called, in the stream's order: by action in the
// order they were appended, actions of one moment interleaved as their messages
// were acknowledged. A redelivered or retried event has the same decision id
// each time. An error ends the sequence.
func (l *JetStreamLog) Read(ctx context.Context, from time.Time) iter.Seq2[governance.Decision, error] {
	return func(yield func(governance.Decision, error) bool) {
		stopped := false
		err := l.messages(ctx, from, false, func(m jetstream.Msg) error {
			err := decodeMessage(m.Data(), func(d governance.Decision) bool {
				if d.Time.Before(from) {
					return true
				}
				stopped = !yield(d, nil)
				return !stopped
			})
			if stopped {
				return errStopped
			}
			return err
		})
		if err != nil && !stopped {
			yield(governance.Decision{}, err)
		}
	}
}

// Count counts the decisions in messages stored at or after from (the zero
// time: all that are kept), from their headers alone.
func (l *JetStreamLog) Count(ctx context.Context, from time.Time) (governance.Counts, error) {
	counts := governance.Counts{}
	err := l.messages(ctx, from, true, func(m jetstream.Msg) error {
		action := events.Action(m.Subject()[strings.LastIndexByte(m.Subject(), '.')+1:])
		for header, at := range map[string]events.Point{headerPublish: events.OnPublish, headerReceive: events.OnReceive} {
			n, err := strconv.ParseUint(m.Headers().Get(header), 10, 32)
			if err != nil {
				return fmt.Errorf("%w: header %s is %q", ErrCorrupt, header, m.Headers().Get(header))
			}
			if n > 0 {
				counts.Add(at, action, n)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return counts, nil
}

var errStopped = errors.New("stopped")

// messages hands the messages stored from a time until now to f.
func (l *JetStreamLog) messages(ctx context.Context, from time.Time, headersOnly bool, f func(jetstream.Msg) error) (err error) {
	cfg := jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverAllPolicy,
		InactiveThreshold: idleConsumer, MemoryStorage: true, HeadersOnly: headersOnly,
	}
	if !from.IsZero() {
		// A message is stored after its decisions were made.
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &from
	}
	cons, err := l.js.CreateConsumer(ctx, l.stream, cfg)
	if err != nil {
		return fmt.Errorf("audit: read %s: %w", l.stream, err)
	}
	defer func() {
		drop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if derr := l.js.DeleteConsumer(drop, l.stream, cons.CachedInfo().Name); derr != nil && err == nil && !errors.Is(derr, jetstream.ErrConsumerNotFound) {
			err = fmt.Errorf("audit: end reading %s: %w", l.stream, derr)
		}
	}()
	left, expect := cons.CachedInfo().NumPending, uint64(1)
	for left > 0 {
		wait, cancel := context.WithTimeout(ctx, 5*time.Second)
		batch, err := cons.Fetch(int(min(left, fetchMessages)), jetstream.FetchContext(wait))
		if err != nil {
			cancel()
			return fmt.Errorf("audit: read %s: %w", l.stream, err)
		}
		got := 0
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err == nil && meta.Sequence.Consumer != expect {
				err = fmt.Errorf("%w: message %d of the reader came instead of %d", ErrGap, meta.Sequence.Consumer, expect)
			}
			if err == nil {
				err = f(m)
			}
			if err != nil {
				cancel()
				if errors.Is(err, errStopped) {
					return nil
				}
				return fmt.Errorf("audit: read %s: %w", l.stream, err)
			}
			got++
			expect++
			left--
		}
		cancel()
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("audit: read %s: %w", l.stream, err)
		}
		if got == 0 {
			info, err := cons.Info(ctx)
			if err != nil {
				return fmt.Errorf("audit: read %s: %w", l.stream, err)
			}
			if info.NumPending > 0 {
				return fmt.Errorf("audit: read %s: %d message(s) did not come: %w", l.stream, info.NumPending, batch.Error())
			}
			return nil // retention dropped the rest meanwhile
		}
	}
	return nil
}
