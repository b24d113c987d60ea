package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// How a feed pulls. Short expiry and heartbeat notice a lost consumer in about
// five seconds; an idle pull costs one message each time it expires.
const (
	pullMessages  = 1000
	pullExpiry    = 10 * time.Second
	pullHeartbeat = 2500 * time.Millisecond
	idleCheck     = 2 * time.Second
	feedRetryMin  = 50 * time.Millisecond
	feedRetryMax  = 5 * time.Second
	// ephemeralAge is how long the server keeps an ordered feed's consumer
	// without a pull.
	ephemeralAge = time.Minute
)

// feed brings the messages of one JetStream consumer to push, one after
// another, and keeps doing so when the server restarts, the consumer is deleted
// or messages are dropped on the way. push may block: that is the backpressure.
//
// An ordered feed owns an ephemeral consumer without acknowledgements. Messages
// of such a consumer are numbered without gaps, so that a number left out means
// that the client dropped messages (nats.go#2137); the feed then starts a new
// consumer behind the last message it passed on.
type feed struct {
	js     jetstream.JetStream
	stream string
	config jetstream.ConsumerConfig // of a durable
	next   atomic.Uint64            // ordered: stream sequence to go on from
	order  bool
	pull   int
	push   func(jetstream.Msg, position)
	report func(msg string, args ...any) // of what went wrong and is being mended

	ctx    context.Context //nolint:containedctx // ends with halt; the feed is a running thing, not a value
	cancel context.CancelFunc
	done   chan struct{}
}

// position is what a message's reply subject says of it.
type position struct {
	sequence   uint64 // in the stream
	consumed   uint64 // in the consumer
	deliveries int
	pending    uint64 // matching messages behind it
}

// start creates the consumer and begins to push. An error here is the caller's
// to see; later ones are mended.
func (f *feed) start(ctx context.Context) error {
	f.ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
	f.done = make(chan struct{})
	cons, err := f.create(ctx)
	if err != nil {
		f.cancel()
		return err
	}
	go f.run(cons)
	return nil
}

// halt stops pulling. Messages that are already here still go to push. Repeatable.
func (f *feed) halt() { f.cancel() }

func (f *feed) create(ctx context.Context) (jetstream.Consumer, error) {
	if !f.order {
		return f.js.CreateOrUpdateConsumer(ctx, f.stream, f.config)
	}
	cfg := f.config
	cfg.AckPolicy = jetstream.AckNonePolicy
	cfg.DeliverPolicy = jetstream.DeliverByStartSequencePolicy
	cfg.OptStartSeq = max(f.next.Load(), 1)
	cfg.MemoryStorage = true
	cfg.Replicas = 1
	cfg.InactiveThreshold = ephemeralAge
	return f.js.CreateConsumer(ctx, f.stream, cfg)
}

func (f *feed) run(cons jetstream.Consumer) {
	defer close(f.done)
	wait := feedRetryMin
	for {
		if cons != nil {
			moved := f.consume(cons)
			if f.order {
				f.remove(cons)
			}
			if moved {
				wait = feedRetryMin
			}
		}
		if f.ctx.Err() != nil {
			return
		}
		t := time.NewTimer(wait)
		select {
		case <-f.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		wait = min(2*wait, feedRetryMax)
		ctx, cancel := context.WithTimeout(f.ctx, feedRetryMax)
		var err error
		cons, err = f.create(ctx)
		cancel()
		if err != nil && f.ctx.Err() == nil {
			f.report("cannot create consumer, trying again", "stream", f.stream, "consumer", f.config.Durable, "error", err)
		}
	}
}

// remove drops an ephemeral consumer; the server would do so later.
func (f *feed) remove(cons jetstream.Consumer) {
	info := cons.CachedInfo()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.ctx), time.Second)
	defer cancel()
	_ = f.js.DeleteConsumer(ctx, f.stream, info.Name)
}

// consume pushes until the feed halts or the consumer has to be made anew. It
// reports whether any message came.
func (f *feed) consume(cons jetstream.Consumer) (moved bool) {
	broken := make(chan error, 1)
	fail := func(err error) {
		select {
		case broken <- err:
		default:
		}
	}
	var seen atomic.Uint64 // consumer sequence of the newest message
	var gap bool           // touched by the callback alone
	// While push waits for room, what was delivered but not seen waits too.
	var pushing atomic.Bool
	cc, err := cons.Consume(func(m jetstream.Msg) {
		pos, err := parsePosition(m.Reply())
		if err != nil {
			f.report("message without a JetStream reply subject", "error", err)
			return
		}
		if f.order {
			if gap {
				return
			}
			if want := seen.Load() + 1; pos.consumed != want {
				gap = true
				fail(fmt.Errorf("messages %d to %d of the consumer were dropped", want, pos.consumed-1))
				return
			}
			f.next.Store(pos.sequence + 1)
		}
		pushing.Store(true)
		seen.Store(pos.consumed)
		f.push(m, pos)
		pushing.Store(false)
	},
		jetstream.PullMaxMessages(f.pull),
		jetstream.PullExpiry(pullExpiry),
		jetstream.PullHeartbeat(pullHeartbeat),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
			switch {
			case errors.Is(err, jetstream.ErrConsumerDeleted), errors.Is(err, jetstream.ErrConsumerNotFound),
				errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrConnectionClosed),
				errors.Is(err, jetstream.ErrBadRequest), errors.Is(err, jetstream.ErrServerShutdown),
				f.order && errors.Is(err, jetstream.ErrNoHeartbeat):
				fail(err)
			}
		}),
	)
	if err != nil {
		f.report("cannot consume, trying again", "stream", f.stream, "consumer", f.config.Durable, "error", err)
		return false
	}
	defer func() {
		// Drained, not stopped: what is here already goes to push, which may hand
		// it back at once instead of leaving it to expire.
		cc.Drain()
		t := time.NewTimer(feedRetryMax)
		defer t.Stop()
		select {
		case <-cc.Closed():
		case <-t.C:
		}
		moved = seen.Load() > 0
	}()
	check := time.NewTicker(idleCheck)
	defer check.Stop()
	var last, lag uint64
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-cc.Closed():
			return
		case err := <-broken:
			if f.ctx.Err() == nil {
				f.report("consumer lost, making it anew", "stream", f.stream, "consumer", f.config.Durable, "error", err)
			}
			return
		case <-check.C:
			// A drop at the tail shows in no later message.
			if now := seen.Load(); f.order && now == last {
				ctx, cancel := context.WithTimeout(f.ctx, idleCheck)
				info, err := cons.Info(ctx)
				cancel()
				switch {
				case errors.Is(err, jetstream.ErrConsumerNotFound):
					fail(err)
				case err == nil && info.Delivered.Consumer > now && lag == info.Delivered.Consumer && !pushing.Load():
					fail(fmt.Errorf("messages %d to %d of the consumer were dropped", now+1, lag))
				case err == nil:
					lag = info.Delivered.Consumer
				}
			}
			last = seen.Load()
		}
	}
}

// parsePosition reads a reply subject:
// $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>[.<token>]
func parsePosition(reply string) (position, error) {
	var p position
	const pre = "$JS.ACK."
	rest, ok := strings.CutPrefix(reply, pre)
	if !ok {
		return p, fmt.Errorf("%w: reply %.100q", jetstream.ErrNotJSMessage, reply)
	}
	skip := 2
	switch strings.Count(rest, ".") {
	case 6:
	case 8, 9:
		skip = 4
	default:
		return p, fmt.Errorf("%w: reply %.100q", jetstream.ErrNotJSMessage, reply)
	}
	for range skip {
		_, rest, _ = strings.Cut(rest, ".")
	}
	var n [5]uint64
	for i := range n {
		var tok string
		tok, rest, _ = strings.Cut(rest, ".")
		for j := range len(tok) {
			c := tok[j]
			if c < '0' || c > '9' {
				return p, fmt.Errorf("%w: reply %.100q", jetstream.ErrNotJSMessage, reply)
			}
			n[i] = n[i]*10 + uint64(c-'0')
		}
	}
	return position{deliveries: int(n[0]), sequence: n[1], consumed: n[2], pending: n[4]}, nil
}

// queue holds messages between a feed and the judge, and knows all that are not
// resolved yet.
type queue struct {
	limit int

	mu      sync.Mutex
	room    sync.Cond // a place is free, or the queue is closed
	ready   sync.Cond // something is in, or the queue is closed
	waiting []*received
	closed  bool
	open    received // ring of all unresolved, oldest behind it
	count   int
}

func newQueue(limit int) *queue {
	q := &queue{limit: limit}
	q.room.L, q.ready.L = &q.mu, &q.mu
	q.open.prev, q.open.next = &q.open, &q.open
	return q
}

// push waits for room. It reports false once the queue is closed.
func (q *queue) push(r *received) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) >= q.limit && !q.closed {
		q.room.Wait()
	}
	if q.closed {
		return false
	}
	r.prev, r.next = q.open.prev, &q.open
	r.prev.next, r.next.prev = r, r
	q.count++
	q.waiting = append(q.waiting, r)
	if len(q.waiting) == 1 {
		q.ready.Signal()
	}
	return true
}

// take waits for messages and returns those that are there, up to limit; nil
// once closed. What it returns is the caller's.
func (q *queue) take(limit int) []*received {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) == 0 && !q.closed {
		q.ready.Wait()
	}
	if q.closed {
		return nil
	}
	full := len(q.waiting) >= q.limit
	n := min(len(q.waiting), limit)
	got := make([]*received, n)
	copy(got, q.waiting)
	left := copy(q.waiting, q.waiting[n:])
	clear(q.waiting[left:])
	q.waiting = q.waiting[:left]
	if full {
		q.room.Broadcast()
	}
	return got
}

// close ends push and take. What is unresolved stays so.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.room.Broadcast()
	q.ready.Broadcast()
}

// resolve takes a message off the books, and reports whether it was there.
func (q *queue) resolve(r *received) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if r.next == nil {
		return false
	}
	r.prev.next, r.next.prev = r.next, r.prev
	r.prev, r.next = nil, nil
	q.count--
	return true
}

// unresolved returns the messages not touched since the given time, and counts
// them as touched now.
func (q *queue) unresolved(since, now time.Time) []*received {
	q.mu.Lock()
	defer q.mu.Unlock()
	var rs []*received
	for r := q.open.next; r != &q.open; r = r.next {
		if !r.touched.After(since) {
			r.touched = now
			rs = append(rs, r)
		}
	}
	return rs
}
