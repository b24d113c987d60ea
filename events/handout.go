package events

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cloudevents/sdk-go/v2/event"
)

const (
	// slowMessage is how long a message handed out may hold up looking at the
	// answers to later ones, before it gets a goroutine of its own, and
	// manyUnanswered how many later ones. Most are answered sooner and in the
	// order in which they were handed out; a goroutine for each would cost more
	// than all the rest.
	slowMessage    = 2 * time.Millisecond
	manyUnanswered = 128
	// handoutRoom is how many messages wait in the channel that a subscriber reads:
	// as many are handed out, and their answers looked at, for one switch between
	// goroutines.
	handoutRoom = 64
)

var errNacked = errors.New("refused by Nack")

// handout passes judged messages to a Watermill channel and their answers back.
// One goroutine does both.
type handout struct {
	c     *Consumer
	out   chan *message.Message
	grace time.Duration

	next  []*received // judged, not handed out
	m     *message.Message
	given []*handed // handed out, answers awaited, oldest first
	first int       // index of the oldest in given
	slow  sync.WaitGroup
	ctx   context.Context //nolint:containedctx // of all messages; ends with the subscription
}

// handed is a message handed out. It is also that message's context.
type handed struct {
	context.Context
	r    *received
	m    *message.Message
	back bool // nobody took it from the channel

	mu     sync.Mutex
	own    context.Context //nolint:containedctx // made when Done is first asked for
	cancel context.CancelFunc
	ended  bool
}

// Done makes the context that most handlers never look at.
func (h *handed) Done() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.own == nil {
		h.own, h.cancel = context.WithCancel(h.Context)
		if h.ended {
			h.cancel()
		}
	}
	return h.own.Done()
}

func (h *handed) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return context.Canceled
	}
	return h.Context.Err()
}

func (h *handed) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	if h.cancel != nil {
		h.cancel()
	}
}

func newHandout(c *Consumer, out chan *message.Message, grace time.Duration) *handout {
	return &handout{c: c, out: out, grace: grace}
}

// run hands out until the consumer halts, and returns when every message handed
// out has been answered or given up.
func (h *handout) run() {
	var cancel context.CancelFunc
	h.ctx, cancel = context.WithCancel(h.c.hard)
	defer cancel()
	defer h.slow.Wait()
	patience := time.NewTimer(slowMessage)
	defer patience.Stop()
	armed := true
	for open := true; open; {
		h.sweep()
		h.fill()
		var (
			out           chan<- *message.Message
			judged        <-chan []*received
			acked, nacked <-chan struct{}
		)
		if h.ready() {
			out = h.out
		} else {
			judged = h.c.judged
		}
		if h.first < len(h.given) {
			g := h.given[h.first]
			acked, nacked = g.m.Acked(), g.m.Nacked()
			if !armed {
				patience.Reset(slowMessage)
				armed = true
			}
		}
		select {
		case out <- h.m:
			h.sent()
		case rs, ok := <-judged:
			h.next, open = rs, ok
		case <-acked:
		case <-nacked:
		case <-patience.C:
			armed = false
			h.offload(0)
		case <-h.c.stopping:
			open = false
		}
	}
	h.takeBack()
	close(h.out)
	cancel()
	h.c.handBack(h.next)
	h.sweep()
	h.offload(0)
}

// fill hands out what there is room for.
func (h *handout) fill() {
	for h.ready() {
		select {
		case h.out <- h.m:
			h.sent()
		default:
			return
		}
	}
}

func (h *handout) sent() {
	h.given = append(h.given, &h.next[0].handed)
	h.next, h.m = h.next[1:], nil
}

// takeBack returns the messages that nobody has read to the stream.
func (h *handout) takeBack() {
	for {
		select {
		case m := <-h.out:
			g := m.Context().(*handed)
			g.back = true
			g.end()
			h.c.nak(g.r, 0)
		default:
			return
		}
	}
}

// ready prepares the next message, if there is one.
func (h *handout) ready() bool {
	for h.m == nil && len(h.next) > 0 {
		r := h.next[0]
		m, err := toMessage(r)
		if err != nil {
			h.next = h.next[1:]
			h.c.bury(r, DeadLetter{Kind: DeadMalformed, Reason: err.Error()})
			continue
		}
		g := &r.handed
		g.Context, g.r, g.m = h.ctx, r, m //nolint:fatcontext // g belongs to this message alone and is not nested
		m.SetContext(g)
		h.m = m
	}
	return h.m != nil
}

// sweep takes the answers that are there, oldest first, up to the first that is
// not.
func (h *handout) sweep() {
	for ; h.first < len(h.given); h.first++ {
		g := h.given[h.first]
		select {
		case <-g.m.Acked():
			h.answer(g, nil)
		default:
			select {
			case <-g.m.Nacked():
				h.answer(g, errNacked)
			default:
				h.offload(manyUnanswered)
				return
			}
		}
		h.given[h.first] = nil
	}
	h.given, h.first = h.given[:0], 0
}

// offload gives all but the newest n unanswered messages goroutines of their
// own, bounded by how many may be unacknowledged at all.
func (h *handout) offload(n int) {
	for len(h.given)-h.first > n {
		g := h.given[h.first]
		h.given[h.first] = nil
		h.first++
		if !g.back {
			h.slow.Go(func() { h.await(g) })
		}
	}
}

// await waits for one answer as long as it takes, or for a while once the
// subscription has ended; the message then goes back to the stream.
func (h *handout) await(g *handed) {
	select {
	case <-g.m.Acked():
		h.answer(g, nil)
		return
	case <-g.m.Nacked():
		h.answer(g, errNacked)
		return
	case <-h.c.stopping:
	}
	grace := time.NewTimer(h.grace)
	defer grace.Stop()
	select {
	case <-g.m.Acked():
		h.answer(g, nil)
	case <-g.m.Nacked():
		h.answer(g, errNacked)
	case <-grace.C:
		g.end()
		h.c.nak(g.r, 0)
	}
}

func (h *handout) answer(g *handed, err error) {
	h.c.settle(g.r, err)
	g.end()
}

func toMessage(r *received) (*message.Message, error) {
	ec := r.ev.Context.(*event.EventContextV1)
	m := message.NewMessage(ec.ID, r.ev.DataEncoded)
	if packed, ok := ec.Extensions[ExtMetadata].(string); ok {
		if err := unpackMetadata(m.Metadata, packed); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}
