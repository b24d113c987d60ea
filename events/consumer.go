package events

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// maxWaiting bounds the messages of one consumer that wait in this process
	// for the judge.
	maxWaiting = 1024
	// defaultMaxPending is enough to keep the server, the Judge's log and the
	// handler at work at the same time, also where each has to wait for a
	// processor.
	defaultMaxPending = 4096
	// judgesAtOnce bounds the calls of the Judge, of one consumer or one Publish,
	// that wait for their decisions to be durable. Messages that come one at a time
	// make a call each while there is room; then they gather for the next.
	judgesAtOnce = 4
	// judgeRetryMax bounds the pause between tries to reach a Judge that decides
	// nothing.
	judgeRetryMax = 5 * time.Second
	// stopWait bounds a Stop whose context has no deadline.
	stopWait = 30 * time.Second
)

var (
	wordAck        = []byte("+ACK")
	wordNak        = []byte("-NAK")
	wordInProgress = []byte("+WPI")
)

// intake is what a consumer needs to know of where its events come from and
// what becomes of them. Bus subscriptions and the Watermill Subscriber differ in
// decode and handle alone.
type intake struct {
	stream     string
	durable    string // empty: ephemeral and ordered
	filters    []string
	start      uint64
	maxDeliver int // 0: without end
	ackWait    time.Duration
	retryDelay time.Duration
	maxBatch   int
	maxWait    time.Duration
	maxPending int
	decode     func(jetstream.Msg, *decoded) (Event, error)
	handle     func(*Consumer) // takes from c.judged until it is closed
}

// Consumer is a running subscription.
//
// Its messages pass four goroutines: the feed's, which enters each in the queue;
// the judge's, which takes all that wait, decodes them and has them judged in one
// call; one that awaits the verdicts in order; and the handler's. A few calls of
// the Judge run at once, since each waits for its decisions to be durable, so the
// next events are judged while the last are handled. A fifth goroutine tells the
// server of all messages not yet resolved that they are being worked on.
type Consumer struct {
	b        *Bus
	in       intake
	feed     *feed
	queue    *queue
	verdicts chan *judgement // in the order of their messages
	judged   chan []*received

	stopping chan struct{} // closed by halt: nothing new is handled
	haltOnce sync.Once
	done     chan struct{} // closed when all goroutines have ended
	// hard is the context of handlers: it ends with the subscriber's, or when a
	// Stop runs out of time.
	hard   context.Context //nolint:containedctx // the consumer is a running thing, not a value
	cancel context.CancelFunc
	soft   context.Context //nolint:containedctx // of the judge: ends with halt
	unjudg context.CancelFunc
}

// received is one message on its way through a consumer, with all that handing
// it out takes, so that it costs one allocation.
type received struct {
	msg        jetstream.Msg // nil once acknowledged: who keeps the event does not keep this
	reply      string
	sequence   uint64
	deliveries int
	touched    time.Time // last told to the server to be in progress
	ev         Event
	attributes decoded
	handed     handed    // of the Watermill subscriber
	prev, next *received // in queue.open, guarded by the queue
}

// judgement is one call of the Judge.
type judgement struct {
	messages []*received
	verdicts []Verdict
	err      error
	done     chan struct{}
}

func (r *received) delivery() Delivery {
	return Delivery{Event: r.ev, Sequence: r.sequence, Deliveries: r.deliveries}
}

// consume starts a consumer.
func (b *Bus) consume(ctx context.Context, in intake) (*Consumer, error) {
	if b.cfg.Judge == nil {
		// Dead-lettering the whole stream would be the letter of failing closed.
		return nil, &Error{Op: "subscribe", Hint: "give the bus a Judge", Err: fmt.Errorf("%w: the bus has no Judge", ErrDenied)}
	}
	if err := b.enter("subscribe"); err != nil {
		return nil, err
	}
	defer b.leave()
	c := &Consumer{
		b: b, in: in,
		queue:    newQueue(min(maxWaiting, in.maxPending)),
		verdicts: make(chan *judgement, judgesAtOnce-1),
		judged:   make(chan []*received, 1),
		stopping: make(chan struct{}),
		done:     make(chan struct{}),
	}
	c.feed = &feed{
		js: b.js, stream: in.stream, order: in.durable == "",
		pull: min(pullMessages, in.maxPending),
		push: c.push,
		report: func(msg string, args ...any) {
			b.cfg.Logger.Warn(msg, args...)
		},
		config: jetstream.ConsumerConfig{FilterSubjects: in.filters},
	}
	if c.feed.order {
		next := max(in.start, 1)
		if in.start == FromNow {
			s, err := b.js.Stream(ctx, in.stream)
			if err != nil {
				return nil, subscribeError(err)
			}
			next = s.CachedInfo().State.LastSeq + 1
		}
		c.feed.next.Store(next)
	} else {
		c.feed.config.Durable = in.durable
		c.feed.config.AckPolicy = jetstream.AckExplicitPolicy
		c.feed.config.AckWait = in.ackWait
		c.feed.config.MaxAckPending = in.maxPending
		c.feed.config.MaxDeliver = -1
		if in.maxDeliver > 0 {
			c.feed.config.MaxDeliver = crashFactor * in.maxDeliver
		}
	}
	c.hard, c.cancel = context.WithCancel(ctx)
	c.soft, c.unjudg = context.WithCancel(ctx)
	if err := c.feed.start(ctx); err != nil {
		c.cancel()
		c.unjudg()
		return nil, subscribeError(err)
	}
	b.mu.Lock()
	b.consumers[c] = struct{}{}
	b.mu.Unlock()
	go c.run(ctx)
	return c, nil
}

func subscribeError(err error) error {
	return &Error{Op: "subscribe", Hint: "is the server reachable?", Err: fmt.Errorf("%w: %w", ErrUnavailable, err)}
}

func (c *Consumer) run(ctx context.Context) {
	var work sync.WaitGroup
	work.Go(c.judgeAll)
	work.Go(c.passAll)
	work.Go(func() {
		c.in.handle(c)
		// Whatever a stopped handler left.
		for rs := range c.judged {
			c.handBack(rs)
		}
	})
	finished := make(chan struct{})
	go func() {
		work.Wait()
		close(finished)
	}()
	tick := time.NewTicker(c.in.ackWait / 3)
	defer tick.Stop()
	// The running handler's events are extended until it has ended, also when the
	// consumer halts.
	ended, closing := ctx.Done(), (<-chan struct{})(c.b.closing)
	for running := true; running; {
		select {
		case <-tick.C:
			c.extend()
		case <-ended:
			c.halt()
			ended = nil
		case <-closing:
			c.halt()
			closing = nil
		case <-finished:
			running = false
		}
	}
	c.halt()
	<-c.feed.done
	c.handBack(c.queue.unresolved(time.Now().Add(time.Hour), time.Now()))
	c.cancel()
	c.b.mu.Lock()
	delete(c.b.consumers, c)
	c.b.mu.Unlock()
	close(c.done)
}

// halt ends delivery. The handler that runs may finish.
func (c *Consumer) halt() {
	c.haltOnce.Do(func() {
		close(c.stopping)
		c.unjudg()
		c.feed.halt()
		c.queue.close()
	})
}

func (c *Consumer) halted() bool {
	select {
	case <-c.stopping:
		return true
	default:
		return false
	}
}

// Stop stops delivery and waits for the running handler until ctx ends, when it
// cancels the handler's context and returns the context's error. Events that no
// handler has taken go back to the stream. Repeatable.
func (c *Consumer) Stop(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, stopWait)
		defer cancel()
	}
	c.halt()
	select {
	case <-c.done:
		return c.b.flush(ctx)
	case <-ctx.Done():
		c.cancel()
		return &Error{Op: "close", Hint: "the handler does not obey its context", Err: fmt.Errorf("consumer %q: handler still runs: %w", c.in.durable, context.Cause(ctx))}
	}
}

// Done is closed when the consumer has ended, for whatever reason, and no
// handler runs any more.
func (c *Consumer) Done() <-chan struct{} { return c.done }

func (c *Consumer) push(m jetstream.Msg, pos position) {
	r := &received{msg: m, reply: m.Reply(), sequence: pos.sequence, deliveries: pos.deliveries}
	if !c.queue.push(r) {
		c.say(r, wordNak)
	}
}

// say sends the server one word on a message. What is lost is made good by the
// server's delivering again.
func (c *Consumer) say(r *received, word []byte) {
	if c.feed.order {
		return
	}
	_ = c.b.nc.Publish(r.reply, word)
}

func (c *Consumer) ack(r *received) {
	if c.queue.resolve(r) {
		c.say(r, wordAck)
		r.msg = nil
	}
}

func (c *Consumer) nak(r *received, delay time.Duration) {
	if !c.queue.resolve(r) {
		return
	}
	word := wordNak
	if delay > 0 {
		word = fmt.Appendf(nil, "-NAK {\"delay\": %d}", delay.Nanoseconds())
	}
	c.say(r, word)
}

// handBack returns messages that no handler has seen.
func (c *Consumer) handBack(rs []*received) {
	for _, r := range rs {
		c.nak(r, 0)
	}
}

// extend tells the server that all unresolved messages are being worked on.
func (c *Consumer) extend() {
	if c.feed.order {
		return
	}
	now := time.Now()
	for _, r := range c.queue.unresolved(now.Add(-c.in.ackWait/3), now) {
		c.say(r, wordInProgress)
	}
}

// judgeAll takes what waits and starts judging it.
func (c *Consumer) judgeAll() {
	defer close(c.verdicts)
	for {
		rs := c.queue.take(judgeChunk)
		if rs == nil {
			return
		}
		j := c.judge(rs)
		if j == nil {
			continue
		}
		select {
		case c.verdicts <- j:
		case <-c.stopping:
			<-j.done
			c.handBack(j.messages)
		}
	}
}

// passAll passes on, in order, what may reach the handler.
func (c *Consumer) passAll() {
	defer close(c.judged)
	for j := range c.verdicts {
		<-j.done
		rs := c.pass(j)
		if len(rs) == 0 {
			continue
		}
		select {
		case c.judged <- rs:
		case <-c.stopping:
			c.handBack(rs)
		}
	}
}

// judge decodes the messages, buries the malformed and has the rest judged. nil
// if none is left.
func (c *Consumer) judge(rs []*received) *judgement {
	c.b.stats.received.Add(uint64(len(rs)))
	j := &judgement{messages: rs[:0], done: make(chan struct{})}
	evs := make([]*Event, 0, len(rs))
	for _, r := range rs {
		ev, err := c.in.decode(r.msg, &r.attributes)
		if err != nil {
			c.bury(r, DeadLetter{Kind: DeadMalformed, Reason: err.Error()})
			continue
		}
		r.ev = ev
		j.messages = append(j.messages, r)
		evs = append(evs, &r.ev)
	}
	if len(evs) == 0 {
		return nil
	}
	go func() {
		defer close(j.done)
		j.verdicts, j.err = c.decide(evs)
	}()
	return j
}

// pass returns the messages that may reach the handler and holds or buries the
// others.
func (c *Consumer) pass(j *judgement) []*received {
	if j.err != nil {
		c.handBack(j.messages)
		return nil
	}
	pass := j.messages[:0]
	for i, r := range j.messages {
		v := &j.verdicts[i]
		if v.Action.Permits() {
			pass = append(pass, r)
			continue
		}
		c.b.stats.denied.Add(1)
		if v.Action == Quarantine || v.Action == RequireApproval {
			c.hold(r, v)
			continue
		}
		c.bury(r, DeadLetter{Kind: DeadDenied, Reason: (&DeniedError{Verdict: *v}).Error(), DecisionID: v.DecisionID, Policy: v.Policy})
	}
	return pass
}

// decide asks the Judge until it answers or the consumer halts. The messages are
// kept meanwhile: that governance is away is not the events' fault.
func (c *Consumer) decide(evs []*Event) ([]Verdict, error) {
	for wait := feedRetryMin; ; wait = min(2*wait, judgeRetryMax) {
		verdicts, err := c.b.judge(c.soft, OnReceive, evs)
		if err == nil || c.soft.Err() != nil {
			return verdicts, err
		}
		c.b.cfg.Logger.Error("events cannot be judged, trying again", "consumer", c.in.durable, "events", len(evs), "error", err)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-c.soft.Done():
			t.Stop()
			return nil, err
		}
	}
}

// bury dead-letters a message and, once that is stored, ends it at the server.
func (c *Consumer) bury(r *received, d DeadLetter) {
	d.Stream, d.Consumer = c.in.stream, c.in.durable
	if d.Consumer == "" {
		d.Consumer = ephemeralConsumer
	}
	d.Subject, d.Sequence, d.Deliveries = r.msg.Subject(), r.sequence, r.deliveries
	d.Header, d.Data = r.msg.Headers(), r.msg.Data()
	// Not the handler's context: what cannot be handled is to be buried even when
	// the consumer stops.
	if err := c.b.bury(context.WithoutCancel(c.hard), d); err != nil {
		c.b.cfg.Logger.Error("cannot dead-letter event, it will be delivered again", "kind", d.Kind, "reason", d.Reason, "error", err)
		c.nak(r, backoff(c.in.retryDelay, r.deliveries))
		return
	}
	if c.queue.resolve(r) {
		c.say(r, append([]byte("+TERM "), d.Kind...))
	}
}

// settle gives the server a handler's word on a message.
func (c *Consumer) settle(r *received, err error) {
	if err == nil {
		c.ack(r)
		return
	}
	var t *terminal
	switch {
	case errors.As(err, &t):
		c.bury(r, DeadLetter{Kind: DeadTerminated, Reason: err.Error()})
	case c.in.maxDeliver > 0 && r.deliveries >= c.in.maxDeliver && c.hard.Err() == nil:
		c.bury(r, DeadLetter{Kind: DeadFailed, Reason: err.Error()})
	default:
		c.b.cfg.Logger.Debug("handler failed, event will be delivered again", "consumer", c.in.durable,
			"sequence", r.sequence, "deliveries", r.deliveries, "error", err)
		c.nak(r, backoff(c.in.retryDelay, r.deliveries))
	}
}

// retryHere reports whether an ordered consumer must try the same messages
// again, after it has waited for that.
func (c *Consumer) retryHere(rs []*received, err error) bool {
	var t *terminal
	var some RefusedError
	if !c.feed.order || err == nil || errors.As(err, &t) || errors.As(err, &some) {
		return false
	}
	if c.in.maxDeliver > 0 && rs[0].deliveries >= c.in.maxDeliver {
		return false
	}
	timer := time.NewTimer(backoff(c.in.retryDelay, rs[0].deliveries))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.stopping:
		return false
	}
	for _, r := range rs {
		r.deliveries++
	}
	return true
}

func (c *Consumer) handleEach(h Handler) {
	for rs := range c.judged {
		for i, r := range rs {
			if c.halted() {
				c.handBack(rs[i:])
				break
			}
			err := h(c.hard, r.delivery())
			for c.retryHere(rs[i:i+1], err) {
				err = h(c.hard, r.delivery())
			}
			c.settle(r, err)
		}
	}
}

func (c *Consumer) handleBatches(h BatchHandler) {
	for {
		rs, ok := <-c.judged
		if !ok {
			return
		}
		rs, ok = c.gather(rs)
		for len(rs) > 0 {
			if c.halted() {
				c.handBack(rs)
				break
			}
			n := min(len(rs), c.in.maxBatch)
			c.handleBatch(h, rs[:n])
			rs = rs[n:]
			if len(rs) > 0 && len(rs) < c.in.maxBatch && ok {
				rs, ok = c.gather(rs)
			}
		}
		if !ok {
			return
		}
	}
}

// gather adds to a batch what comes until it is full or MaxWait has passed. It
// reports false once nothing more can come.
func (c *Consumer) gather(rs []*received) ([]*received, bool) {
	var late <-chan time.Time
	if c.in.maxWait > 0 {
		t := time.NewTimer(c.in.maxWait)
		defer t.Stop()
		late = t.C
	} else {
		now := make(chan time.Time)
		close(now)
		late = now
	}
	for len(rs) < c.in.maxBatch {
		// What is there already is taken even when no waiting is wanted.
		select {
		case more, ok := <-c.judged:
			if !ok {
				return rs, false
			}
			rs = append(rs, more...)
			continue
		default:
		}
		select {
		case more, ok := <-c.judged:
			if !ok {
				return rs, false
			}
			rs = append(rs, more...)
		case <-late:
			return rs, true
		}
	}
	return rs, true
}

func (c *Consumer) handleBatch(h BatchHandler, rs []*received) {
	// Events that come again come behind younger ones.
	bySequence := func(a, b *received) int { return cmp.Compare(a.sequence, b.sequence) }
	if !slices.IsSortedFunc(rs, bySequence) {
		slices.SortFunc(rs, bySequence)
	}
	ds := make([]Delivery, len(rs))
	for i, r := range rs {
		ds[i] = r.delivery()
	}
	err := h(c.hard, ds)
	for c.retryHere(rs, err) {
		for i, r := range rs {
			ds[i] = r.delivery()
		}
		err = h(c.hard, ds)
	}
	var some RefusedError
	if errors.As(err, &some) {
		for i, r := range rs {
			c.settle(r, some.of(i))
		}
		return
	}
	for _, r := range rs {
		c.settle(r, err)
	}
}
