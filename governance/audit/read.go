package audit

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

var (
	// ErrGap means that messages of the stream were not delivered, time after time.
	ErrGap = errors.New("gap in the decision stream")
	// ErrNoLog means that there is no decision stream.
	ErrNoLog = errors.New("no decision log")
)

const (
	fetchBytes   = 8 << 20          // that a reader asks for at once
	fetchMost    = 4096             // messages, likewise
	fetchWait    = 5 * time.Second  // for messages that the server says it has
	idleConsumer = 30 * time.Second // after which the server drops an abandoned reader
	readAttempts = 4                // to read on without getting one message further
)

// Reader reads a decision log. It needs the right to read the stream and creates
// nothing there but consumers in memory. Safe for concurrent use.
type Reader struct {
	js     jetstream.JetStream
	stream string
}

// NewReader returns a reader of the log with that prefix ("": "stokehold"). It does
// not ask the server for anything.
func NewReader(conn *nats.Conn, prefix string) (*Reader, error) {
	if prefix == "" {
		prefix = defaultPrefix
	}
	if conn == nil || !prefixRule.MatchString(prefix) {
		return nil, fmt.Errorf("%w: a connection and a prefix that is a lower-case word are needed; got %q", ErrConfig, prefix)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return &Reader{js: js, stream: streamName(prefix)}, nil
}

// Stream is the stream's name.
func (r *Reader) Stream() string { return r.stream }

// info asks for the state of the stream.
func (r *Reader) info(ctx context.Context) (*jetstream.StreamInfo, error) {
	s, err := r.js.Stream(ctx, r.stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w: the server has no stream %s", ErrNoLog, r.stream)
	}
	if err != nil {
		return nil, fmt.Errorf("audit: look at %s: %w", r.stream, err)
	}
	return s.CachedInfo(), nil
}

// Record is a decision with its place in the stream.
type Record struct {
	governance.Decision
	Sequence uint64    // of the message
	Index    int       // of the decision in it, from 0
	Stored   time.Time // when the server stored the message
}

// Read yields the decisions made at or after from (the zero time: all that are
// kept) and stored when Read was called, in the stream's order: by action in the
// order they were appended, actions of one moment interleaved as their messages
// were acknowledged. A redelivered or retried event has the same decision id
// each time. An error ends the sequence.
func (r *Reader) Read(ctx context.Context, from time.Time) iter.Seq2[governance.Decision, error] {
	return func(yield func(governance.Decision, error) bool) {
		for rec, err := range r.Records(ctx, from) {
			if !yield(rec.Decision, err) {
				return
			}
		}
	}
}

// Records is Read with the place of each decision.
func (r *Reader) Records(ctx context.Context, from time.Time) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		err := r.scan(ctx, start{time: from}, func(m message) error {
			stopped := false
			rec := Record{Sequence: m.sequence, Stored: m.stored, Index: -1}
			err := decodeMessage(m.data, func(d *governance.Decision) bool {
				rec.Index++
				if d.Time.Before(from) {
					return true
				}
				rec.Decision = *d
				stopped = !yield(rec, nil)
				return !stopped
			})
			if stopped {
				return errStopped
			}
			if err != nil {
				return fmt.Errorf("message %d: %w", m.sequence, err)
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStopped) {
			yield(Record{}, err)
		}
	}
}

// Count counts the decisions in messages stored at or after from (the zero
// time: all that are kept), from their headers alone.
func (r *Reader) Count(ctx context.Context, from time.Time) (governance.Counts, error) {
	counts := governance.Counts{}
	err := r.scan(ctx, start{time: from, headersOnly: true}, func(m message) error {
		action := events.Action(m.subject[strings.LastIndexByte(m.subject, '.')+1:])
		if action == probeAction {
			return nil
		}
		for header, at := range map[string]events.Point{headerPublish: events.OnPublish, headerReceive: events.OnReceive} {
			n, err := strconv.ParseUint(m.header.Get(header), 10, 32)
			if err != nil {
				return fmt.Errorf("%w: message %d: header %s is %q", ErrCorrupt, m.sequence, header, m.header.Get(header))
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

// message is one of the stream.
type message struct {
	sequence uint64
	stored   time.Time
	subject  string
	header   nats.Header
	data     []byte
}

// start is where a scan begins; the zero value is the stream's first message.
type start struct {
	sequence    uint64 // the first message wanted, if there is none of it the next
	time        time.Time
	headersOnly bool
}

// scan hands the messages that are stored now to f, in order. What the server
// did not deliver is asked for again; what it no longer has is not there, which
// the sequences show. An error of f ends the scan and comes back as it is.
func (r *Reader) scan(ctx context.Context, from start, f func(message) error) error {
	info, err := r.info(ctx)
	if err != nil {
		return err
	}
	end := info.State.LastSeq
	for attempts := 0; ; {
		next, err := r.scanOnce(ctx, from, end, f)
		var broken *brokenError
		if err == nil || !errors.As(err, &broken) || ctx.Err() != nil {
			return err
		}
		if next > from.sequence {
			attempts = 0
		}
		if attempts++; attempts == readAttempts {
			return err
		}
		if next > 0 {
			from.sequence, from.time = next, time.Time{}
		}
	}
}

// brokenError is a delivery that a new consumer may mend.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

// scanOnce scans with one consumer. next is the sequence after the last message
// that f was given; 0 if there was none.
func (r *Reader) scanOnce(ctx context.Context, from start, end uint64, f func(message) error) (next uint64, err error) {
	cfg := jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverAllPolicy,
		InactiveThreshold: idleConsumer, MemoryStorage: true, HeadersOnly: from.headersOnly,
	}
	switch {
	case from.sequence > 0:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, from.sequence
	case !from.time.IsZero():
		// A message is stored after its decisions were made.
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &from.time
	}
	cons, err := r.js.CreateConsumer(ctx, r.stream, cfg)
	if err != nil {
		return 0, fmt.Errorf("audit: read %s: %w", r.stream, err)
	}
	defer func() {
		drop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if derr := r.js.DeleteConsumer(drop, r.stream, cons.CachedInfo().Name); derr != nil && err == nil && !errors.Is(derr, jetstream.ErrConsumerNotFound) {
			err = fmt.Errorf("audit: end reading %s: %w", r.stream, derr)
		}
	}()
	left, expect, bytes := cons.CachedInfo().NumPending, uint64(1), uint64(0)
	for left > 0 {
		n := min(left, fetchMost, max(32, fetchBytes/max(1, bytes/expect)))
		wait, cancel := context.WithTimeout(ctx, fetchWait)
		batch, err := cons.Fetch(int(n), jetstream.FetchContext(wait))
		if err != nil {
			cancel()
			return next, fmt.Errorf("audit: read %s: %w", r.stream, err)
		}
		got := 0
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err == nil && meta.Sequence.Consumer != expect {
				err = &brokenError{fmt.Errorf("%w: message %d of the reader came instead of %d", ErrGap, meta.Sequence.Consumer, expect)}
			}
			if err == nil && meta.Sequence.Stream > end {
				cancel()
				return next, nil
			}
			if err == nil {
				err = f(message{sequence: meta.Sequence.Stream, stored: meta.Timestamp.UTC(), subject: m.Subject(), header: m.Headers(), data: m.Data()})
			}
			if err != nil {
				cancel()
				return next, err
			}
			next = meta.Sequence.Stream + 1
			got++
			expect++
			left--
			bytes += uint64(len(m.Data()))
		}
		cancel()
		if err := ctx.Err(); err != nil {
			return next, fmt.Errorf("audit: read %s: %w", r.stream, err)
		}
		if got == 0 {
			info, err := cons.Info(ctx)
			if err != nil {
				return next, &brokenError{fmt.Errorf("audit: read %s: %w", r.stream, err)}
			}
			if info.NumPending > 0 {
				return next, &brokenError{fmt.Errorf("audit: read %s: %w: %d message(s) did not come", r.stream, ErrGap, info.NumPending)}
			}
			return next, nil // retention dropped the rest meanwhile
		}
	}
	return next, nil
}
