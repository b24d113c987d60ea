package events

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Why a message is a dead letter.
const (
	DeadMalformed  = "malformed"      // no valid CloudEvent of a known type
	DeadDenied     = "denied"         // governance refused it on receive
	DeadTerminated = "terminated"     // the handler said that no retry helps
	DeadFailed     = "failed"         // the handler failed Subscription.MaxDeliver times
	DeadExhausted  = "max_deliveries" // the server gave up: its handlers ended without a word
)

// Headers of a dead letter, beside those of the original.
const (
	hdrDead           = "stk-dlq-"
	hdrDeadKind       = hdrDead + "kind"
	hdrDeadReason     = hdrDead + "reason"
	hdrDeadStream     = hdrDead + "stream"
	hdrDeadConsumer   = hdrDead + "consumer"
	hdrDeadSubject    = hdrDead + "subject"
	hdrDeadSequence   = hdrDead + "sequence"
	hdrDeadDeliveries = hdrDead + "deliveries"
	hdrDeadDecision   = hdrDead + "decision"
	hdrDeadPolicy     = hdrDead + "policy"
	hdrDeadCut        = hdrDead + "cut"
)

const (
	// ephemeralConsumer stands for every consumer without a durable name, so that
	// each message has at most one dead letter of theirs.
	ephemeralConsumer = "-"
	maxReasonBytes    = 1 << 10
	// maxKeptHeaderBytes bounds what is kept of the original's headers.
	maxKeptHeaderBytes = 32 << 10
	moverName          = "dead-letter-mover"
	deadLetterWait     = 10 * time.Second
	// errCodeWrongSequence is the server's answer when the subject of a dead
	// letter is taken, which means that the dead letter is already there.
	errCodeWrongSequence = 10071
)

// DeadLetter is a message that could not be handled, and why.
type DeadLetter struct {
	Kind       string // one of the Dead constants
	Reason     string // one line for a person
	Stream     string // where the original is or was
	Consumer   string // durable name of who could not handle it; "-": an ephemeral one
	Subject    string // NATS subject of the original
	Sequence   uint64 // of the original in its stream
	Deliveries int
	DecisionID string // of DeadDenied
	Policy     string // of DeadDenied
	Cut        bool   // the original was too large, or is gone: headers or data are missing
	At         time.Time
	Header     nats.Header // of the original
	Data       []byte
}

// Event decodes the original, if it is a CloudEvent.
func (d *DeadLetter) Event() (Event, error) {
	ev, err := decodeEvent(d.Header, d.Data)
	if err != nil {
		return Event{}, &Error{Op: "receive", Err: fmt.Errorf("%w: %w", ErrInvalid, err)}
	}
	return ev, nil
}

// bury copies a message to the dead-letter stream. Its subject names the
// consumer and the original's sequence, and the server takes a subject only
// once: however often a message is buried, by whichever process, there is one
// dead letter.
func (b *Bus) bury(ctx context.Context, d DeadLetter) error {
	m := &nats.Msg{
		Subject: b.names.deadLetter(d.Stream, d.Consumer, d.Sequence),
		Header:  make(nats.Header, len(d.Header)+12),
		Data:    d.Data,
	}
	size := 0
	for k, vs := range d.Header {
		for _, v := range vs {
			size += len(k) + len(v)
		}
	}
	if size <= maxKeptHeaderBytes {
		maps.Copy(m.Header, d.Header)
		maps.DeleteFunc(m.Header, func(k string, _ []string) bool {
			return strings.HasPrefix(strings.ToLower(k), "nats-") || strings.HasPrefix(k, hdrDead)
		})
	} else {
		d.Cut = true
	}
	if len(m.Data) > MaxDataBytes {
		m.Data = m.Data[:MaxDataBytes]
		d.Cut = true
	}
	if len(d.Reason) > maxReasonBytes {
		d.Reason = strings.ToValidUTF8(d.Reason[:maxReasonBytes], "")
	}
	put := func(k, v string) {
		if v != "" {
			m.Header[k] = []string{escapeAttr(v)}
		}
	}
	put(hdrDeadKind, d.Kind)
	put(hdrDeadReason, d.Reason)
	put(hdrDeadStream, d.Stream)
	put(hdrDeadConsumer, d.Consumer)
	put(hdrDeadSubject, d.Subject)
	put(hdrDeadSequence, strconv.FormatUint(d.Sequence, 10))
	put(hdrDeadDeliveries, strconv.Itoa(d.Deliveries))
	put(hdrDeadDecision, d.DecisionID)
	put(hdrDeadPolicy, d.Policy)
	if d.Cut {
		put(hdrDeadCut, "true")
	}
	m.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{"0"}

	ctx, cancel := context.WithTimeout(ctx, deadLetterWait)
	defer cancel()
	call := b.sender.begin(1)
	b.sender.send(ctx, call, m)
	err := b.sender.wait(ctx, call)[0]
	if isTaken(err) {
		return nil
	}
	if err != nil {
		return &Error{Op: "receive", Err: fmt.Errorf("dead-letter %s: %w", m.Subject, err)}
	}
	b.stats.deadLettered.Add(1)
	b.cfg.Logger.WarnContext(ctx, "event dead-lettered", "kind", d.Kind, "reason", d.Reason,
		"consumer", d.Consumer, "subject", d.Subject, "sequence", d.Sequence, "deliveries", d.Deliveries)
	return nil
}

// DeadLetters yields all dead letters, oldest first, and ends.
func (b *Bus) DeadLetters(ctx context.Context) iter.Seq2[DeadLetter, error] {
	return func(yield func(DeadLetter, error) bool) {
		for m, err := range b.history(ctx, b.names.deadLetters(), nil, 1) {
			if err != nil {
				yield(DeadLetter{}, err)
				return
			}
			if !yield(readDeadLetter(m), nil) {
				return
			}
		}
	}
}

func readDeadLetter(m stored) DeadLetter {
	h := m.header
	get := func(k string) string {
		v, err := unescapeAttr(h.Get(k))
		if err != nil {
			return h.Get(k)
		}
		return v
	}
	d := DeadLetter{
		Kind: get(hdrDeadKind), Reason: get(hdrDeadReason), Stream: get(hdrDeadStream), Consumer: get(hdrDeadConsumer),
		Subject: get(hdrDeadSubject), DecisionID: get(hdrDeadDecision), Policy: get(hdrDeadPolicy), Cut: get(hdrDeadCut) != "",
		At: m.at, Header: make(nats.Header), Data: m.data,
	}
	d.Sequence, _ = strconv.ParseUint(get(hdrDeadSequence), 10, 64)
	d.Deliveries, _ = strconv.Atoi(get(hdrDeadDeliveries))
	for k, vs := range h {
		if !strings.HasPrefix(k, hdrDead) && k != jetstream.ExpectedLastSubjSeqHeader {
			d.Header[k] = vs
		}
	}
	return d
}

// mover reads the server's advisories and buries what consumers gave up on.
// All processes on a bus share one durable consumer.
type mover struct {
	b    *Bus
	feed *feed
}

func startMover(ctx context.Context, b *Bus) (*mover, error) {
	m := &mover{b: b}
	m.feed = &feed{
		js:     b.js,
		stream: b.names.advisories(),
		config: jetstream.ConsumerConfig{
			Durable:       moverName,
			AckPolicy:     jetstream.AckExplicitPolicy,
			AckWait:       2 * deadLetterWait,
			MaxDeliver:    -1,
			MaxAckPending: 100,
		},
		pull:   16,
		push:   m.take,
		report: b.cfg.Logger.Warn,
	}
	if err := m.feed.start(ctx); err != nil {
		return nil, &Error{Op: "open", Err: fmt.Errorf("%w: dead-letter mover: %w", ErrUnavailable, err)}
	}
	return m, nil
}

func (m *mover) stop(ctx context.Context) error {
	m.feed.halt()
	select {
	case <-m.feed.done:
		return nil
	case <-ctx.Done():
		return &Error{Op: "close", Err: fmt.Errorf("dead-letter mover still runs: %w", context.Cause(ctx))}
	}
}

func (m *mover) take(msg jetstream.Msg, pos position) {
	if m.feed.ctx.Err() != nil {
		_ = msg.Nak()
		return
	}
	if err := m.move(m.feed.ctx, msg.Data()); err != nil {
		m.b.cfg.Logger.Error("cannot move event to the dead-letter stream, trying again", "error", err)
		_ = msg.NakWithDelay(backoff(time.Second, pos.deliveries))
		return
	}
	_ = msg.Ack()
}

// move buries the message that an advisory tells of.
func (m *mover) move(ctx context.Context, advisory []byte) error {
	var a struct {
		Type       string `json:"type"`
		Stream     string `json:"stream"`
		Consumer   string `json:"consumer"`
		StreamSeq  uint64 `json:"stream_seq"`
		Deliveries int    `json:"deliveries"`
		Reason     string `json:"reason"`
	}
	if err := json.Unmarshal(advisory, &a); err != nil || a.Stream == "" || a.Consumer == "" || a.StreamSeq == 0 {
		// Only the server may publish here; what is not its advisory can only be
		// reported.
		m.b.cfg.Logger.Error("malformed advisory dropped", "advisory", string(advisory[:min(len(advisory), 200)]))
		return nil
	}
	d := DeadLetter{
		Kind: DeadExhausted, Stream: a.Stream, Consumer: a.Consumer, Sequence: a.StreamSeq, Deliveries: a.Deliveries,
		Reason: fmt.Sprintf("not acknowledged in %d deliveries", a.Deliveries),
	}
	if strings.HasSuffix(a.Type, ".terminated") {
		d.Kind, d.Reason = DeadTerminated, a.Reason
	}
	ctx, cancel := context.WithTimeout(ctx, deadLetterWait)
	defer cancel()
	s, err := m.b.js.Stream(ctx, a.Stream)
	if err != nil {
		return err
	}
	raw, err := s.GetMsg(ctx, a.StreamSeq)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		d.Cut = true
		d.Reason += "; the original is gone from the stream"
	case err != nil:
		return err
	default:
		d.Subject, d.Header, d.Data = raw.Subject, raw.Header, raw.Data
	}
	return m.b.bury(ctx, d)
}

// backoff is the delay before delivery n+1: base doubled for each failure so
// far, at most a minute (or base, if that is longer).
func backoff(base time.Duration, deliveries int) time.Duration {
	d := base
	for range min(deliveries-1, 16) {
		if d >= time.Minute {
			break
		}
		d = min(2*d, time.Minute)
	}
	return max(d, base)
}
