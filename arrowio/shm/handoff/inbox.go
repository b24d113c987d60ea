package handoff

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Inbox is the receiving end of a connection on which several goroutines wait,
// each for what some message will bring. Who waits receives, the messages of
// others too, in a system call that blocks. So a message wakes the thread that
// wants what it brings and no other: a goroutine that receives for all would have
// to wake a second one, often on another CPU, and that takes longer than all else
// in a hand-over. While nobody waits, Keep receives.
//
// An Inbox takes a thread while it is open, except with GOMAXPROCS=1: see Conn.
type Inbox struct {
	conn    *Conn
	silence time.Duration
	handle  func(Packet, error) error

	listening atomic.Bool // somebody is in receive, not in handle

	mu      sync.Mutex
	turn    turn
	turns   uint64    // of waiters
	waiting int       // waiters whose turn it is not
	polling int       // of these, who look at something that no Wake tells of
	limited bool      // the turn is a short one
	changed sync.Cond // for them: a message was handled, or the turn is free
	parked  bool      // Keep waits for a waiter's turn to end
	resume  sync.Cond // for Keep
	err     error
	ended   chan struct{}
}

// turn is who receives.
type turn int

const (
	nobodys turn = iota
	waiters
	keepers
)

// leave is how long Keep leaves an inbox alone that waiters receive from. It is
// the time for which a message may lie unread when the last of them does not come
// back.
const leave = 2 * time.Millisecond

// glance is how often who polls asks whether it is done.
const glance = 25 * time.Millisecond

// NewInbox takes over the receiving end of c, whose receive deadline no longer
// counts. handle is given each message, or the error of receiving one, by whichever
// goroutine received it, one at a time and in order. An error that it returns ends
// the inbox. It is given os.ErrDeadlineExceeded when nothing has come for silence
// (0: never), while somebody was receiving and nobody polled.
func NewInbox(c *Conn, silence time.Duration, handle func(Packet, error) error) *Inbox {
	in := &Inbox{conn: c, silence: silence, handle: handle, ended: make(chan struct{})}
	in.changed.L, in.resume.L = &in.mu, &in.mu
	return in
}

// Wait returns nil when done reports true, or the error that ended the inbox. done
// must be quick and take no lock that is held around calls of the inbox. It is
// asked after each message and each Wake, and with poll every 25 ms too.
func (in *Inbox) Wait(poll bool, done func() bool) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for !done() {
		switch {
		case in.err != nil:
			return in.err
		case in.turn == nobodys:
			in.turns++
			in.receive(waiters, poll || in.polling > 0)
		default:
			if in.turn == keepers || poll && !in.limited {
				in.conn.sock.ring()
			}
			in.waiting++
			if poll {
				in.polling++
			}
			in.changed.Wait()
			in.waiting--
			if poll {
				in.polling--
			}
		}
	}
	return nil
}

// Wake has every Wait ask again whether it is done.
func (in *Inbox) Wake() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.changed.Broadcast()
	if in.turn != nobodys {
		in.conn.sock.ring()
	}
}

// Listening reports whether somebody waits for a message now.
func (in *Inbox) Listening() bool { return in.listening.Load() }

// Keep receives while nobody waits, and returns the error that ended the inbox. It
// is called once.
func (in *Inbox) Keep() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	pause := time.NewTimer(leave)
	defer pause.Stop()
	for seen := in.turns; in.err == nil; {
		switch {
		case in.turn == waiters && in.turns == seen:
			// The same one for long: it is not worth while to look again and again.
			in.parked = true
			in.resume.Wait()
		case in.turn == nobodys && in.turns == seen && in.waiting == 0:
			in.receive(keepers, false)
			continue
		}
		seen = in.turns
		in.mu.Unlock()
		pause.Reset(leave)
		select {
		case <-pause.C:
		case <-in.ended:
		}
		in.mu.Lock()
	}
	return in.err
}

// receive takes one turn, a short one or one as long as the silence that is
// allowed. Callers hold mu.
func (in *Inbox) receive(by turn, short bool) {
	in.turn, in.limited = by, short
	in.mu.Unlock()
	limit := in.silence
	if short = short && (limit == 0 || limit > glance); short {
		limit = glance
	}
	in.listening.Store(true)
	pkt, err := in.conn.receive(limit)
	in.listening.Store(false)
	if errors.Is(err, errWoken) || short && errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	} else {
		err = in.handle(pkt, err)
	}
	in.mu.Lock()
	in.turn = nobodys
	if err != nil && in.err == nil {
		in.err = err
		close(in.ended)
	}
	if in.waiting > 0 {
		in.changed.Broadcast()
	}
	if in.parked {
		in.parked = false
		in.resume.Signal()
	}
}
