package events

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers of a held event, beside its own.
const (
	hdrHeld         = "stk-held-"
	hdrHeldPoint    = hdrHeld + "point"
	hdrHeldAction   = hdrHeld + "action"
	hdrHeldReason   = hdrHeld + "reason"
	hdrHeldDecision = hdrHeld + "decision"
	hdrHeldPolicy   = hdrHeld + "policy"
	hdrHeldConsumer = hdrHeld + "consumer"
	hdrHeldSequence = hdrHeld + "sequence"
	hdrHeldSubject  = hdrHeld + "subject"
	hdrHeldReleased = hdrHeld + "released" // the event was let go: by whom
)

const (
	heldWait      = 10 * time.Second
	maxHeldReason = 512
)

// HeldEvent is an event in the held stream: governance quarantined it, or on
// receive asked for an approval, and nobody has handled it.
type HeldEvent struct {
	ID         string // 32 hex digits
	Point      Point  // where it was held
	Action     Action // Quarantine or RequireApproval
	DecisionID string
	Policy     string // "policy/rule"; "" when no rule decided
	Reason     string
	Consumer   string // durable name of who was to handle it; "-": an ephemeral one; "": held on publish
	Sequence   uint64 // of the original in its stream; 0: held on publish
	Subject    string // NATS subject that the event belongs to
	At         time.Time
	Header     nats.Header // of the event
	Data       []byte

	stored uint64 // sequence in the held stream
}

// Event decodes the event.
func (h *HeldEvent) Event() (Event, error) {
	ev, err := decodeEvent(h.Header, h.Data)
	if err != nil {
		return Event{}, &Error{Op: "receive", Err: fmt.Errorf("%w: %w", ErrInvalid, err)}
	}
	return ev, nil
}

// heldID names what is held: on publish the event by its content, on receive the
// message that carried it, whichever consumer met it.
func heldID(h *HeldEvent, stream string) string {
	sum := sha256.New()
	put := func(s string) { fmt.Fprintf(sum, "%d:%s", len(s), s) }
	put(string(h.Point))
	if h.Point == OnReceive {
		put(stream)
		put(strconv.FormatUint(h.Sequence, 10))
	} else {
		for _, k := range []string{hdrSource, hdrID, hdrType, hdrSubject} {
			put(h.Header.Get(k))
		}
		put(h.Subject)
		put(string(h.Data))
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

// hold puts an event in the held stream, once. Held again after it was let go, a
// published event is held anew; a received one is not, since its release is
// already on its way behind it.
func (b *Bus) hold(ctx context.Context, stream string, h HeldEvent) error {
	ctx, cancel := context.WithTimeout(ctx, heldWait)
	defer cancel()
	h.ID = heldID(&h, stream)
	if len(h.Reason) > maxHeldReason {
		h.Reason = strings.ToValidUTF8(h.Reason[:maxHeldReason], "")
	}
	m := &nats.Msg{Subject: b.names.held(h.ID), Header: make(nats.Header, len(h.Header)+10), Data: h.Data}
	maps.Copy(m.Header, h.Header)
	maps.DeleteFunc(m.Header, func(k string, _ []string) bool {
		return strings.HasPrefix(strings.ToLower(k), "nats-") || strings.HasPrefix(k, hdrHeld)
	})
	for k, v := range map[string]string{
		hdrHeldPoint: string(h.Point), hdrHeldAction: string(h.Action), hdrHeldReason: h.Reason, hdrHeldDecision: h.DecisionID,
		hdrHeldPolicy: h.Policy, hdrHeldConsumer: h.Consumer, hdrHeldSubject: h.Subject, hdrHeldSequence: strconv.FormatUint(h.Sequence, 10),
	} {
		if v != "" {
			m.Header[k] = []string{escapeAttr(v)}
		}
	}
	err := b.store(ctx, m, 0)
	if isTaken(err) && h.Point == OnPublish {
		if last, heldErr := b.held(ctx, h.ID); last != nil && errors.Is(heldErr, ErrNotHeld) {
			err = b.store(ctx, m, last.stored)
		}
	}
	switch {
	case isTaken(err):
		return nil // it is there
	case err != nil:
		return fmt.Errorf("%w: hold the event: %w", ErrUnavailable, err)
	}
	b.stats.held.Add(1)
	b.cfg.Logger.WarnContext(ctx, "event held", "held", h.ID, "point", h.Point, "action", h.Action, "policy", h.Policy, "reason", h.Reason, "subject", h.Subject)
	return nil
}

// store writes a message whose subject's last has the given sequence.
func (b *Bus) store(ctx context.Context, m *nats.Msg, last uint64) error {
	m.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(last, 10)}
	call := b.sender.begin(1)
	b.sender.send(ctx, call, m)
	return b.sender.wait(ctx, call)[0]
}

// isTaken reports that the server has another message for the subject.
func isTaken(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == errCodeWrongSequence
}

// Held yields the events in the held stream, oldest first, and ends.
func (b *Bus) Held(ctx context.Context) iter.Seq2[HeldEvent, error] {
	return func(yield func(HeldEvent, error) bool) {
		for m, err := range b.history(ctx, b.names.heldStream(), nil, 1) {
			if err != nil {
				yield(HeldEvent{}, err)
				return
			}
			if h, held := readHeld(m.msg.Subject(), m.header, m.data, m.sequence, m.at); held && !yield(h, nil) {
				return
			}
		}
	}
}

// held returns the held event of that id. With ErrNotHeld it also returns what
// is left of one that was let go, if that is there.
func (b *Bus) held(ctx context.Context, id string) (*HeldEvent, error) {
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%w: %.80q", ErrNotHeld, id)
	}
	s, err := b.js.Stream(ctx, b.names.heldStream())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	raw, err := s.GetLastMsgForSubject(ctx, b.names.held(id))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, fmt.Errorf("%w: %s", ErrNotHeld, id)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	h, held := readHeld(raw.Subject, raw.Header, raw.Data, raw.Sequence, raw.Time)
	if !held {
		return &h, fmt.Errorf("%w: %s was let go", ErrNotHeld, id)
	}
	return &h, nil
}

func readHeld(subject string, header nats.Header, data []byte, sequence uint64, at time.Time) (h HeldEvent, held bool) {
	get := func(k string) string {
		v, err := unescapeAttr(header.Get(k))
		if err != nil {
			return header.Get(k)
		}
		return v
	}
	h = HeldEvent{
		ID: subject[strings.LastIndexByte(subject, '.')+1:], Point: Point(get(hdrHeldPoint)), Action: Action(get(hdrHeldAction)),
		DecisionID: get(hdrHeldDecision), Policy: get(hdrHeldPolicy), Reason: get(hdrHeldReason), Consumer: get(hdrHeldConsumer),
		Subject: get(hdrHeldSubject), At: at, Header: make(nats.Header), Data: data, stored: sequence,
	}
	h.Sequence, _ = strconv.ParseUint(get(hdrHeldSequence), 10, 64)
	for k, vs := range header {
		if !strings.HasPrefix(k, hdrHeld) && !strings.HasPrefix(k, "Nats-") {
			h.Header[k] = vs
		}
	}
	return h, header.Get(hdrHeldReleased) == ""
}

// Release lets a held event go: it is judged once more, at the point OnRelease,
// published, and taken out of the held stream. What a policy denies now, or wants
// approved, stays held, with an error as Publish gives it. The error wraps
// ErrNotHeld if there is no such event, or another has let it go.
//
// The event goes to all consumers of its subject as a new message; the decision
// log has who let it go, why, and under which policies. A release that was cut
// short may be repeated.
func (b *Bus) Release(ctx context.Context, id string, r Release) error {
	if err := b.enter("release"); err != nil {
		return err
	}
	defer b.leave()
	ctx, cancel := context.WithTimeout(ctx, defaultPublishWait)
	defer cancel()
	if r.By == "" || r.Reason == "" {
		return &Error{Op: "release", ID: id, Err: fmt.Errorf("%w: say who lets the event go (By) and why (Reason)", ErrConfig)}
	}
	judge, ok := b.cfg.Judge.(Releaser)
	if !ok {
		return &Error{Op: "release", ID: id, Err: fmt.Errorf("%w: the bus's Judge cannot let held events go", ErrConfig)}
	}
	h, err := b.held(ctx, id)
	if err != nil {
		return &Error{Op: "release", ID: id, Hint: "list what is held", Err: err}
	}
	ev, err := b.judgeHeld(ctx, judge, h, r)
	if err != nil {
		return eventError("release", &ev, err)
	}
	if err := b.letGo(ctx, h, &ev, r); err != nil {
		return eventError("release", &ev, err)
	}
	return nil
}

func (b *Bus) judgeHeld(ctx context.Context, judge Releaser, h *HeldEvent, r Release) (Event, error) {
	ev, err := decodeEvent(h.Header, h.Data)
	if err != nil {
		return ev, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	v, err := judge.JudgeRelease(ctx, &ev, r)
	if err != nil {
		return ev, fmt.Errorf("%w: not judged: %w", ErrUnavailable, err)
	}
	b.stats.judged.Add(1)
	if !v.Action.Permits() {
		b.stats.denied.Add(1)
		return ev, refusal(v)
	}
	if v.Action == Redact && b.names.isEvent(h.Subject) {
		err = b.checkData(&ev)
	}
	return ev, err
}

// letGo publishes a held event and puts a mark in its place, by which the
// original, should it come again, is known to be dealt with.
func (b *Bus) letGo(ctx context.Context, h *HeldEvent, ev *Event, r Release) error {
	ec, err := contextOf(ev)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var e envelope
	if err := e.encode(ec, ec.Source.String(), ev.DataEncoded, h.Subject); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	// The stream may still know the original's id and would take this for it.
	e.msg.Header[hdrMsgID] = []string{fmt.Sprintf("%s released %d", e.msg.Header.Get(hdrMsgID), h.stored)}
	call := b.sender.begin(1)
	b.sender.send(ctx, call, &e.msg)
	if err := b.sender.wait(ctx, call)[0]; err != nil {
		return err
	}
	b.stats.published.Add(1)
	mark := &nats.Msg{Subject: b.names.held(h.ID), Header: nats.Header{hdrHeldReleased: {escapeAttr(r.By)}}}
	if err := b.store(ctx, mark, h.stored); err != nil && !isTaken(err) {
		return fmt.Errorf("%w: the event is published, but still held too: %w", ErrUnavailable, err)
	}
	return nil
}

// hold holds a received message, and ends it at the server once that is stored.
func (c *Consumer) hold(r *received, v *Verdict) {
	h := HeldEvent{
		Point: OnReceive, Action: v.Action, DecisionID: v.DecisionID, Policy: v.Policy, Reason: v.Reason,
		Consumer: c.in.durable, Sequence: r.sequence, Subject: r.msg.Subject(), Header: r.msg.Headers(), Data: r.msg.Data(),
	}
	if h.Consumer == "" {
		h.Consumer = ephemeralConsumer
	}
	if err := c.b.hold(context.WithoutCancel(c.hard), c.in.stream, h); err != nil {
		c.b.cfg.Logger.Error("cannot hold event, it will be delivered again", "policy", v.Policy, "reason", v.Reason, "error", err)
		c.nak(r, backoff(c.in.retryDelay, r.deliveries))
		return
	}
	c.ack(r)
}

// holdOutgoing holds an event that a publisher may not send.
func (b *Bus) holdOutgoing(ctx context.Context, o *outgoing, v *Verdict) error {
	ec := o.ev.Context.(*event.EventContextV1) // as validated
	var e envelope
	if err := e.encode(ec, o.source, o.ev.DataEncoded, o.subject); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return b.hold(ctx, "", HeldEvent{
		Point: OnPublish, Action: v.Action, DecisionID: v.DecisionID, Policy: v.Policy, Reason: v.Reason,
		Subject: o.subject, Header: e.msg.Header, Data: o.ev.DataEncoded,
	})
}
