package events

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
)

const (
	// judgeChunk is how many events one call of the Judge takes at most. A call
	// costs a durable write, so few calls are good; the next chunk is judged
	// while the one before is on its way to the stream, so several are better
	// than one.
	judgeChunk = 512
	// maxApproved bounds the approvals that wait for their publication. The
	// oldest is forgotten first: its event is then judged once more.
	maxApproved = 16 << 10
)

// outgoing is one event on its way to a stream. err is why it is not there.
type outgoing struct {
	ev       Event
	source   string // the attribute as text
	subject  string // of NATS
	digest   [sha256.Size]byte
	approved bool
	err      error
}

// Approve validates and judges the events without publishing them, and stamps
// them in place, so that an effect that must precede publication (a catalog
// commit) happens only after an allow. Publish does not judge a stamped event
// again. The error joins one *Error per refused event. Nothing is held: the
// effect of an event that is quarantined here has not happened.
//
// The bus remembers a digest of all that it approved, stamp included, until the
// event is published: an event that is changed after Approve, or approved by
// another process, is judged when it is published. Approve brings the attributes
// into their normal form: extensions as strings, the time in UTC.
func (b *Bus) Approve(ctx context.Context, evs ...*Event) error {
	if err := b.enter("approve"); err != nil {
		return err
	}
	defer b.leave()
	out := make([]outgoing, len(evs))
	for i, ev := range evs {
		detach(ev)
		out[i].ev = *ev
		out[i].err = b.validate(&out[i])
	}
	for chunk := range slices.Chunk(out, judgeChunk) {
		b.judgeOutgoing(ctx, chunk)
	}
	for i := range out {
		if out[i].err == nil {
			b.approvals.add(digestOf(&out[i].ev))
		}
		*evs[i] = out[i].ev
	}
	return joinErrors("approve", out)
}

// Publish validates, judges and publishes the events in order, and returns when
// all that were permitted are persisted (publish acknowledgements received).
// The error joins one *Error per event that is not in the stream; the others
// are. Publishing an id again is a success and stores nothing. An event that
// governance quarantines is in the held stream (ErrQuarantined); one that needs
// approval first is nowhere (ErrApprovalRequired).
//
// The events are not changed, and may be the caller's again once Publish
// returns. A message that a broken connection lost is sent again, which may
// place it behind later ones. Without a deadline in ctx an acknowledgement is
// waited for 30 s.
func (b *Bus) Publish(ctx context.Context, evs ...Event) error {
	if err := b.enter("publish"); err != nil {
		return err
	}
	defer b.leave()
	out := make([]outgoing, len(evs))
	for i := range evs {
		o := &out[i]
		o.ev = evs[i]
		detach(&o.ev)
		if o.err = b.validate(o); o.err == nil {
			o.subject = b.names.event(o.ev.Type(), o.ev.Subject())
		}
	}
	return b.publish(ctx, out)
}

// publish judges and sends what has no error yet.
func (b *Bus) publish(ctx context.Context, out []outgoing) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultPublishWait)
		defer cancel()
	}
	call := b.sender.begin(len(out))
	sent := make([]int, 0, len(out))
	envelopes := make([]*envelope, 0, len(out))
	// Nothing is sent again once wait has returned.
	defer func() {
		for _, e := range envelopes {
			e.clear()
			b.envelopes.Put(e)
		}
	}()
	start := 0
	for chunk := range b.judgeChunks(ctx, out) {
		for i := range chunk {
			o := &chunk[i]
			if o.err != nil {
				b.holdRefused(ctx, o)
				continue
			}
			e, _ := b.envelopes.Get().(*envelope)
			if e == nil {
				e = &envelope{}
			}
			envelopes = append(envelopes, e)
			ec := o.ev.Context.(*event.EventContextV1) // as validated
			if err := e.encode(ec, o.source, o.ev.DataEncoded, o.subject); err != nil {
				o.err = fmt.Errorf("%w: %w", ErrInvalid, err)
				continue
			}
			sent = append(sent, start+i)
			b.sender.send(ctx, call, &e.msg)
		}
		start += len(chunk)
	}
	stored := uint64(0)
	for i, err := range b.sender.wait(ctx, call) {
		o := &out[sent[i]]
		o.err = err
		if err == nil {
			stored++
			if o.approved {
				b.approvals.remove(o.digest)
			}
		}
	}
	b.stats.published.Add(stored)
	return joinErrors("publish", out)
}

// holdRefused holds an event that was quarantined. That it could not be held is
// the worse error: the publisher must then send it again.
func (b *Bus) holdRefused(ctx context.Context, o *outgoing) {
	var denied *DeniedError
	if !errors.As(o.err, &denied) || denied.Verdict.Action != Quarantine {
		return
	}
	if err := b.holdOutgoing(ctx, o, &denied.Verdict); err != nil {
		o.err = err
	}
}

// judgeChunks yields the events in order, chunk by chunk, once each is judged.
// The next chunks are judged meanwhile, since a call of the Judge mostly waits for
// its decisions to be durable.
func (b *Bus) judgeChunks(ctx context.Context, out []outgoing) iter.Seq[[]outgoing] {
	return func(yield func([]outgoing) bool) {
		type judging struct {
			chunk []outgoing
			done  chan struct{}
		}
		var ahead []judging
		for len(out) > 0 || len(ahead) > 0 {
			for len(out) > 0 && len(ahead) < judgesAtOnce {
				j := judging{out[:min(judgeChunk, len(out))], make(chan struct{})}
				out = out[len(j.chunk):]
				ahead = append(ahead, j)
				work := func() {
					defer close(j.done)
					b.recall(j.chunk)
					b.judgeOutgoing(ctx, j.chunk)
				}
				if len(out) == 0 && len(ahead) == 1 {
					work() // nothing to do beside it
				} else {
					go work()
				}
			}
			<-ahead[0].done
			if !yield(ahead[0].chunk) {
				return
			}
			ahead = ahead[1:]
		}
	}
}

// recall marks the events that Approve let pass and that are unchanged since.
func (b *Bus) recall(chunk []outgoing) {
	if b.approvals.count.Load() == 0 {
		return
	}
	for i := range chunk {
		if o := &chunk[i]; o.err == nil {
			o.digest = digestOf(&o.ev)
			o.approved = b.approvals.has(o.digest)
		}
	}
}

// judgeOutgoing judges what has no error and no approval yet.
func (b *Bus) judgeOutgoing(ctx context.Context, chunk []outgoing) {
	evs := make([]*Event, 0, len(chunk))
	at := make([]int, 0, len(chunk))
	for i := range chunk {
		if chunk[i].err == nil && !chunk[i].approved {
			evs = append(evs, &chunk[i].ev)
			at = append(at, i)
		}
	}
	if len(evs) == 0 {
		return
	}
	verdicts, err := b.judge(ctx, OnPublish, evs)
	for j, i := range at {
		switch {
		case err != nil:
			chunk[i].err = err
		case !verdicts[j].Action.Permits():
			b.stats.denied.Add(1)
			chunk[i].err = refusal(verdicts[j])
		case verdicts[j].Action == Redact && (chunk[i].subject == "" || b.names.isEvent(chunk[i].subject)):
			// A Judge that takes out what the type needs has made the event invalid.
			chunk[i].err = b.checkData(&chunk[i].ev)
		}
	}
}

// judge asks the Judge and holds it to its contract.
func (b *Bus) judge(ctx context.Context, at Point, evs []*Event) ([]Verdict, error) {
	if b.cfg.Judge == nil {
		return nil, fmt.Errorf("%w: the bus has no Judge", ErrDenied)
	}
	verdicts, err := b.cfg.Judge.Judge(ctx, at, evs)
	if err != nil {
		return nil, fmt.Errorf("%w: not judged: %w", ErrUnavailable, err)
	}
	if len(verdicts) != len(evs) {
		return nil, fmt.Errorf("%w: the Judge gave %d verdicts on %d events", ErrUnavailable, len(verdicts), len(evs))
	}
	b.stats.judged.Add(uint64(len(evs)))
	return verdicts, nil
}

// validate holds an event to CloudEvents, the limits and its type, and brings
// it into normal form.
func (b *Bus) validate(o *outgoing) error {
	ec, err := contextOf(&o.ev)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	o.source = ec.Source.String()
	if err := checkEnvelope(&o.ev, ec, o.source); err != nil {
		return err
	}
	return b.checkData(&o.ev)
}

func checkEnvelope(ev *Event, ec *event.EventContextV1, source string) error {
	if len(ev.DataEncoded) > MaxDataBytes {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(ev.DataEncoded), MaxDataBytes)
	}
	if err := normalizeContext(ev, ec, source); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

func (b *Bus) checkData(ev *Event) error { return b.cfg.Types.Check(ev) }

// joinErrors makes an *Error of each failure.
func joinErrors(op string, out []outgoing) error {
	var errs []error
	for i := range out {
		if out[i].err != nil {
			errs = append(errs, eventError(op, &out[i].ev, out[i].err))
		}
	}
	return errors.Join(errs...)
}

func eventError(op string, ev *Event, err error) *Error {
	e := &Error{Op: op, Err: err}
	if ec, _ := contextOf(ev); ec != nil {
		e.ID, e.Type = ec.ID, ec.Type
	}
	switch {
	case errors.Is(err, ErrTooLarge):
		e.Hint = "store the data and send its address in the " + ExtDataRef + " attribute"
	case errors.Is(err, ErrUnknownType):
		e.Hint = "declare the type in the Registry of the bus"
	case errors.Is(err, ErrUnavailable):
		e.Hint = "publish the same id again"
	}
	return e
}

// digestOf covers all of an event, injectively.
func digestOf(ev *Event) [sha256.Size]byte {
	ec, err := contextOf(ev)
	if err != nil {
		return [sha256.Size]byte{}
	}
	h := sha256.New()
	var n [8]byte
	put := func(s string) {
		binary.LittleEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	opt := func(s *string) {
		if s == nil {
			put("-")
			return
		}
		put("+" + *s)
	}
	put(ec.Source.String())
	put(ec.ID)
	put(ec.Type)
	opt(ec.Subject)
	opt(ec.DataContentType)
	if ec.Time != nil {
		put(ec.Time.UTC().Format(time.RFC3339Nano))
	} else {
		put("")
	}
	if ec.DataSchema != nil {
		put(ec.DataSchema.String())
	} else {
		put("")
	}
	names := slices.Sorted(maps.Keys(ec.Extensions))
	put(strconv.Itoa(len(names)))
	for _, name := range names {
		put(name)
		put(fmt.Sprint(ec.Extensions[name]))
	}
	put(string(ev.DataEncoded))
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return sum
}

// approvals are the digests of events that Approve let pass.
type approvals struct {
	count atomic.Int64
	mu    sync.Mutex
	set   map[[sha256.Size]byte]struct{}
	order [][sha256.Size]byte // oldest first; may hold removed ones
}

func (a *approvals) add(d [sha256.Size]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set == nil {
		a.set = make(map[[sha256.Size]byte]struct{})
	}
	if _, ok := a.set[d]; ok {
		return
	}
	a.set[d] = struct{}{}
	a.order = append(a.order, d)
	for len(a.set) > maxApproved {
		delete(a.set, a.order[0])
		a.order = a.order[1:]
	}
	if len(a.order) > 2*maxApproved {
		a.order = slices.DeleteFunc(a.order, func(d [sha256.Size]byte) bool {
			_, ok := a.set[d]
			return !ok
		})
	}
	a.count.Store(int64(len(a.set)))
}

func (a *approvals) has(d [sha256.Size]byte) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.set[d]
	return ok
}

func (a *approvals) remove(d [sha256.Size]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.set, d)
	a.count.Store(int64(len(a.set)))
}
