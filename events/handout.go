package events

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cloudevents/sdk-go/v2/event"
)

// slowMessage is how long the reaper waits for one message before it gives that
// message a goroutine of its own. Most are answered sooner, in about the order
// in which they were handed out; a goroutine for each would cost more than all
// the rest.
const slowMessage = 2 * time.Millisecond

var errNacked = errors.New("refused by Nack")

// handout passes judged messages to a Watermill channel and their answers back.
type handout struct {
	c     *Consumer
	out   chan<- *message.Message
	wait  time.Duration
	given chan handed
}

type handed struct {
	r      *received
	m      *message.Message
	cancel context.CancelFunc
}

func newHandout(c *Consumer, out chan<- *message.Message, wait time.Duration) *handout {
	return &handout{c: c, out: out, wait: wait, given: make(chan handed, c.in.maxPending)}
}

// run hands out until the consumer halts, and returns when every message handed
// out has been answered or given up.
func (h *handout) run() {
	reaped := make(chan struct{})
	go func() {
		defer close(reaped)
		h.reap()
	}()
	// Messages' contexts end with the subscription.
	ctx, cancel := context.WithCancel(h.c.hard)
	defer cancel()
	for rs := range h.c.judged {
		for i, r := range rs {
			if h.c.halted() || !h.give(ctx, r) {
				h.c.handBack(rs[i:])
				break
			}
		}
	}
	close(h.out)
	cancel()
	close(h.given)
	<-reaped
}

func (h *handout) give(ctx context.Context, r *received) bool {
	m, err := toMessage(r)
	if err != nil {
		h.c.bury(r, DeadLetter{Kind: DeadMalformed, Reason: err.Error()})
		return true
	}
	mctx, cancel := context.WithCancel(ctx)
	m.SetContext(mctx)
	select {
	case h.out <- m:
		h.given <- handed{r, m, cancel}
		return true
	case <-h.c.stopping:
		cancel()
		return false
	}
}

func toMessage(r *received) (*message.Message, error) {
	ec := r.ev.Context.(*event.EventContextV1)
	m := message.NewMessage(ec.ID, r.ev.DataEncoded)
	if packed, ok := ec.Extensions[ExtMetadata].(string); ok {
		md, err := unpackMetadata(packed)
		if err != nil {
			return nil, err
		}
		m.Metadata = md
	}
	return m, nil
}

// reap waits for the answers.
func (h *handout) reap() {
	slow := make(chan struct{}, h.c.in.maxPending)
	patience := time.NewTimer(time.Hour)
	defer patience.Stop()
	for g := range h.given {
		select {
		case <-g.m.Acked():
			h.answer(g, nil)
			continue
		case <-g.m.Nacked():
			h.answer(g, errNacked)
			continue
		default:
		}
		patience.Reset(slowMessage)
		select {
		case <-g.m.Acked():
			h.answer(g, nil)
		case <-g.m.Nacked():
			h.answer(g, errNacked)
		case <-patience.C:
			slow <- struct{}{}
			go func() {
				defer func() { <-slow }()
				h.await(g)
			}()
		}
	}
	for range cap(slow) {
		slow <- struct{}{}
	}
}

// await waits for one answer as long as it takes, or for a while once the
// subscription has ended; the message then goes back to the stream.
func (h *handout) await(g handed) {
	select {
	case <-g.m.Acked():
		h.answer(g, nil)
		return
	case <-g.m.Nacked():
		h.answer(g, errNacked)
		return
	case <-h.c.stopping:
	}
	grace := time.NewTimer(h.wait)
	defer grace.Stop()
	select {
	case <-g.m.Acked():
		h.answer(g, nil)
	case <-g.m.Nacked():
		h.answer(g, errNacked)
	case <-grace.C:
		g.cancel()
		h.c.nak(g.r, 0)
	}
}

func (h *handout) answer(g handed, err error) {
	h.c.settle(g.r, err)
	g.cancel()
}

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}
