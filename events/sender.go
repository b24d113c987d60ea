package events

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// maxInFlight bounds the messages of one sender that wait for the server.
	maxInFlight = 2048
	// resendWait is how long a message waits for its acknowledgement before it is
	// sent again, doubling each time. Its message id keeps it single.
	resendWait = 2 * time.Second
	// defaultPublishWait bounds a publish whose context has no deadline.
	defaultPublishWait = 30 * time.Second
	// noResponderRetry is the pause before a message that no stream took is sent
	// again, and maxNoResponders how often: a server that starts, or a cluster
	// that elects a leader, is silent for a moment.
	noResponderRetry = 250 * time.Millisecond
	maxNoResponders  = 8
)

// sender publishes to JetStream with many messages in flight. It does what
// jetstream.PublishMsgAsync does, with three differences: waiting for room obeys
// a context, a lost connection sends the unacknowledged messages again instead
// of failing them (message ids make that safe), and it costs a third of the
// allocations, since an acknowledgement is matched by slot and not decoded
// unless it is an error. Safe for concurrent use.
type sender struct {
	nc     *nats.Conn
	sub    *nats.Subscription
	prefix string
	free   chan uint32
	slots  []slot
}

type slot struct {
	mu   sync.Mutex
	gen  uint32 // counts the uses of the slot, so that late words are not taken for another message's
	call *call
	i    int
}

// call is one publish of some messages.
type call struct {
	msgs    []*nats.Msg
	at      []uint32 // slot of each message
	errs    []error
	state   []atomic.Uint32
	pending atomic.Int64
	done    chan struct{}
}

const (
	statePending uint32 = iota
	stateUnheard        // no stream answered: send again
	stateDone
)

func newSender(nc *nats.Conn) (*sender, error) {
	s := &sender{
		nc:     nc,
		prefix: nc.NewInbox() + ".",
		free:   make(chan uint32, maxInFlight),
		slots:  make([]slot, maxInFlight),
	}
	for i := range maxInFlight {
		s.free <- uint32(i)
	}
	sub, err := nc.Subscribe(s.prefix+"*", s.acked)
	if err != nil {
		return nil, err
	}
	// The bound is maxInFlight; words beyond it are repetitions.
	if err := sub.SetPendingLimits(8*maxInFlight, -1); err != nil {
		return nil, err
	}
	s.sub = sub
	return s, nil
}

func (s *sender) close() { _ = s.sub.Unsubscribe() }

// begin starts a call for up to n messages.
func (s *sender) begin(n int) *call {
	c := &call{
		msgs:  make([]*nats.Msg, 0, n),
		at:    make([]uint32, 0, n),
		errs:  make([]error, n),
		state: make([]atomic.Uint32, n),
		done:  make(chan struct{}),
	}
	// One more than is sent, so that done closes only in wait.
	c.pending.Store(1)
	return c
}

// send adds a message to the call, waiting for room until ctx ends.
func (s *sender) send(ctx context.Context, c *call, m *nats.Msg) {
	i := len(c.msgs)
	c.msgs = append(c.msgs, m)
	c.pending.Add(1)
	var n uint32
	select {
	case n = <-s.free:
	default:
		select {
		case n = <-s.free:
		case <-ctx.Done():
			c.at = append(c.at, 0)
			c.resolve(i, fmt.Errorf("%w: no room among %d messages in flight: %w", ErrUnavailable, maxInFlight, context.Cause(ctx)))
			return
		}
	}
	c.at = append(c.at, n)
	sl := &s.slots[n]
	sl.mu.Lock()
	sl.gen++
	sl.call, sl.i = c, i
	gen := sl.gen
	sl.mu.Unlock()
	m.Reply = s.reply(n, gen)
	s.transmit(c, i)
}

func (s *sender) reply(n, gen uint32) string {
	var buf [80]byte
	b := append(buf[:0], s.prefix...)
	b = strconv.AppendUint(b, uint64(n), 36)
	b = append(b, '-')
	b = strconv.AppendUint(b, uint64(gen), 36)
	return string(b)
}

func (s *sender) transmit(c *call, i int) {
	err := s.nc.PublishMsg(c.msgs[i])
	if err == nil || errors.Is(err, nats.ErrReconnectBufExceeded) {
		return // the latter is sent again later
	}
	if s.release(c, i) {
		c.resolve(i, fmt.Errorf("%w: %w", ErrUnavailable, err))
	}
}

// release takes the slot of message i back and reports whether it still had it.
func (s *sender) release(c *call, i int) bool {
	n := c.at[i]
	sl := &s.slots[n]
	sl.mu.Lock()
	if sl.call != c || sl.i != i {
		sl.mu.Unlock()
		return false
	}
	sl.call = nil
	sl.mu.Unlock()
	s.free <- n
	return true
}

func (c *call) resolve(i int, err error) {
	c.errs[i] = err
	c.state[i].Store(stateDone)
	if c.pending.Add(-1) == 0 {
		close(c.done)
	}
}

// acked takes the server's word on one message.
func (s *sender) acked(m *nats.Msg) {
	a, b, ok := strings.Cut(m.Subject[len(s.prefix):], "-")
	if !ok {
		return
	}
	n, err1 := strconv.ParseUint(a, 36, 32)
	gen, err2 := strconv.ParseUint(b, 36, 32)
	if err1 != nil || err2 != nil || n >= maxInFlight {
		return
	}
	sl := &s.slots[n]
	sl.mu.Lock()
	if sl.call == nil || sl.gen != uint32(gen) {
		sl.mu.Unlock()
		return
	}
	c, i := sl.call, sl.i
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		c.state[i].Store(stateUnheard)
		sl.mu.Unlock()
		return
	}
	sl.call = nil
	sl.mu.Unlock()
	s.free <- uint32(n)
	c.resolve(i, pubAckError(m.Data))
}

var (
	ackStream = []byte(`{"stream":"`)
	ackError  = []byte(`"error"`)
)

// pubAckError reads an acknowledgement. The server writes a good one as
// {"stream":"X", "seq":N} with nothing that an error would hold; only what looks
// different is decoded.
func pubAckError(data []byte) error {
	if bytes.HasPrefix(data, ackStream) && !bytes.Contains(data, ackError) {
		return nil
	}
	var ack struct {
		Stream string              `json:"stream"`
		Error  *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(data, &ack); err != nil {
		return fmt.Errorf("%w: malformed acknowledgement %.100q", ErrUnavailable, data)
	}
	if ack.Error != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, ack.Error)
	}
	if ack.Stream == "" {
		return fmt.Errorf("%w: malformed acknowledgement %.100q", ErrUnavailable, data)
	}
	return nil
}

// wait returns when all messages of the call are acknowledged or refused, or
// ctx ended. errs then holds one entry for each message, nil when it is stored.
func (s *sender) wait(ctx context.Context, c *call) []error {
	if c.pending.Add(-1) == 0 {
		close(c.done)
	}
	select {
	case <-c.done:
		return c.errs[:len(c.msgs)]
	default:
	}
	var (
		unheard   = time.NewTicker(noResponderRetry)
		silences  = make(map[int]int)
		resendIn  = resendWait
		resend    = time.NewTimer(resendIn)
		abandoned error
		connects  = s.nc.Stats().Reconnects
	)
	sendAgain := func() {
		for i := range c.msgs {
			if c.state[i].Load() == statePending {
				s.transmit(c, i)
			}
		}
	}
	defer unheard.Stop()
	defer resend.Stop()
	for {
		select {
		case <-c.done:
			return c.errs[:len(c.msgs)]
		case <-ctx.Done():
			abandoned = fmt.Errorf("%w: not acknowledged: %w", ErrUnavailable, context.Cause(ctx))
		case <-unheard.C:
			for i := range c.msgs {
				if !c.state[i].CompareAndSwap(stateUnheard, statePending) {
					continue
				}
				if silences[i]++; silences[i] > maxNoResponders {
					if s.release(c, i) {
						c.resolve(i, fmt.Errorf("%w: no stream takes subject %s", ErrUnavailable, c.msgs[i].Subject))
					}
					continue
				}
				s.transmit(c, i)
			}
			// What was on its way when the connection broke is lost, or its
			// acknowledgement is.
			if n := s.nc.Stats().Reconnects; n != connects && s.nc.IsConnected() {
				connects = n
				sendAgain()
			}
		case <-resend.C:
			// While the connection is down the library keeps what is sent.
			if s.nc.IsConnected() {
				sendAgain()
			}
			resendIn *= 2
			resend.Reset(resendIn)
		}
		if s.nc.IsClosed() {
			abandoned = fmt.Errorf("%w: %w", ErrUnavailable, nats.ErrConnectionClosed)
		}
		if abandoned != nil {
			for i := range c.msgs {
				if s.release(c, i) {
					c.resolve(i, abandoned)
				}
			}
			<-c.done
			return c.errs[:len(c.msgs)]
		}
	}
}
