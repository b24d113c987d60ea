package handoff_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

const kindCount = handoff.Kind(1) // the messages of these tests: their payload is a number

// inbox is one end of a connection whose messages are counted, and the other end.
type inbox struct {
	*handoff.Inbox
	conn, peer *handoff.Conn
	got        atomic.Uint64 // the number in the last message
	err        atomic.Value  // given to handle
	kept       chan error    // what Keep returned
}

// opener makes an inbox whose connection waits in one of the two ways.
type opener func(t *testing.T, silence time.Duration) *inbox

// eachWay runs a test with connections that wait in the kernel, and with those of a
// process that has one processor.
func eachWay(t *testing.T, test func(t *testing.T, newInbox opener)) {
	for name, poller := range map[string]bool{"in the kernel": false, "in the poller": true} {
		t.Run(name, func(t *testing.T) {
			test(t, func(t *testing.T, silence time.Duration) *inbox { return openInbox(t, silence, poller) })
		})
	}
}

func openInbox(t *testing.T, silence time.Duration, poller bool) *inbox {
	t.Helper()
	ours, theirs, err := handoff.Pair()
	if err != nil {
		t.Fatal(err)
	}
	in := &inbox{conn: must(handoff.NewConnWaiting(ours, poller)), peer: must(handoff.NewConnWaiting(theirs, poller)), kept: make(chan error, 1)}
	ours.Close()
	theirs.Close()
	in.Inbox = handoff.NewInbox(in.conn, silence, func(p handoff.Packet, err error) error {
		if err != nil {
			in.err.Store(err)
			return err
		}
		in.got.Store(binary.LittleEndian.Uint64(p.Payload))
		return nil
	})
	t.Cleanup(func() {
		in.conn.Close()
		in.peer.Close()
	})
	return in
}

// keep runs Keep, which the test's end ends.
func (in *inbox) keep() { go func() { in.kept <- in.Keep() }() }

func (in *inbox) send(t *testing.T, n uint64) {
	t.Helper()
	if err := in.peer.Send(kindCount, 0, binary.LittleEndian.AppendUint64(nil, n)); err != nil {
		t.Fatal(err)
	}
}

// await waits for a number, in a goroutine of its own.
func (in *inbox) await(n uint64) <-chan error {
	c := make(chan error, 1)
	go func() { c <- in.Wait(false, func() bool { return in.got.Load() >= n }) }()
	return c
}

func told(t *testing.T, what string, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: not within 10 s", what)
		return nil
	}
}

// TestInboxWaiterReceives: without a keeper nobody but the waiter could.
func TestInboxWaiterReceives(t *testing.T) { eachWay(t, inboxWaiterReceives) }

func inboxWaiterReceives(t *testing.T, newInbox opener) {
	in := newInbox(t, 0)
	done := in.await(3)
	for n := uint64(1); n <= 3; n++ {
		in.send(t, n)
	}
	if err := told(t, "three messages", done); err != nil || in.got.Load() != 3 {
		t.Errorf("got %d, %v", in.got.Load(), err)
	}
}

// TestInboxTakesTurns: a waiter takes over from the keeper, waiters from one
// another, and the keeper from the last of them.
func TestInboxTakesTurns(t *testing.T) { eachWay(t, inboxTakesTurns) }

func inboxTakesTurns(t *testing.T, newInbox opener) {
	in := newInbox(t, 0)
	in.keep()
	in.send(t, 1)
	eventually(t, "kept", func() bool { return in.got.Load() == 1 })
	for n := uint64(2); n < 200; n += 3 {
		first, second := in.await(n), in.await(n+1)
		in.send(t, n)
		if err := told(t, "the first waiter", first); err != nil {
			t.Fatal(err)
		}
		in.send(t, n+1)
		if err := told(t, "the second waiter", second); err != nil {
			t.Fatal(err)
		}
		in.send(t, n+2) // nobody waits
		eventually(t, "kept again", func() bool { return in.got.Load() == n+2 })
	}
}

// TestInboxAfterALongTurn: the keeper comes back when a waiter that it has left
// alone for long ends.
func TestInboxAfterALongTurn(t *testing.T) { eachWay(t, inboxAfterALongTurn) }

func inboxAfterALongTurn(t *testing.T, newInbox opener) {
	in := newInbox(t, 0)
	in.keep()
	done := in.await(1)
	eventually(t, "the keeper waits for the waiter", in.Parked)
	in.send(t, 1)
	if err := told(t, "the waiter", done); err != nil {
		t.Fatal(err)
	}
	in.send(t, 2)
	eventually(t, "kept", func() bool { return in.got.Load() == 2 })
}

func TestInboxPolls(t *testing.T) { eachWay(t, inboxPolls) }

func inboxPolls(t *testing.T, newInbox opener) {
	in := newInbox(t, 0)
	in.keep()
	other := in.await(1) // receives without a limit
	eventually(t, "a waiter receives", in.Listening)
	var stop atomic.Bool
	polled := make(chan error, 1)
	go func() { polled <- in.Wait(true, stop.Load) }()
	stop.Store(true) // nobody is woken
	if err := told(t, "who polls", polled); err != nil {
		t.Error(err)
	}
	in.send(t, 1)
	if err := told(t, "the other", other); err != nil {
		t.Error(err)
	}
}

func TestInboxWake(t *testing.T) { eachWay(t, inboxWake) }

func inboxWake(t *testing.T, newInbox opener) {
	in := newInbox(t, 0)
	var stop atomic.Bool
	var done []chan error
	for range 3 { // one receives, two wait for it
		c := make(chan error, 1)
		go func() { c <- in.Wait(false, stop.Load) }()
		done = append(done, c)
	}
	eventually(t, "one receives", in.Listening)
	stop.Store(true)
	in.Wake()
	for _, c := range done {
		if err := told(t, "a waiter", c); err != nil {
			t.Error(err)
		}
	}
}

func TestInboxEnds(t *testing.T) { eachWay(t, inboxEnds) }

func inboxEnds(t *testing.T, newInbox opener) {
	for name, tc := range map[string]struct {
		silence time.Duration
		end     func(*inbox)
		want    error
	}{
		"the peer has closed": {end: func(in *inbox) { in.peer.Close() }, want: io.EOF},
		"this end is closed":  {end: func(in *inbox) { in.conn.Close() }, want: net.ErrClosed},
		"silence":             {silence: 20 * time.Millisecond, end: func(*inbox) {}, want: os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInbox(t, tc.silence)
			in.keep()
			waiters := []<-chan error{in.await(1), in.await(1), in.await(2)}
			tc.end(in)
			for _, c := range append(waiters, in.kept) {
				if err := told(t, "who waited", c); !errors.Is(err, tc.want) {
					t.Errorf("told %v, want %v", err, tc.want)
				}
			}
			if err := in.Wait(false, func() bool { return false }); !errors.Is(err, tc.want) {
				t.Errorf("later told %v", err)
			}
			if err := in.Wait(false, func() bool { return true }); err != nil {
				t.Errorf("what is there already: %v", err)
			}
		})
	}
}

// TestConnCloseReleases: Close returns when nobody uses the descriptors, also of a
// connection that is received from and one whose peer does not read.
func TestConnCloseReleases(t *testing.T) { eachWay(t, connCloseReleases) }

func connCloseReleases(t *testing.T, newInbox opener) {
	before := ownFootprint()
	in := newInbox(t, 0)
	in.keep()
	eventually(t, "somebody receives", in.Listening)
	full := make(chan error, 1)
	go func() {
		for {
			if err := in.peer.Send(kindCount, 0, make([]byte, 16<<10)); err != nil {
				full <- err
				return
			}
			in.conn.Close()
		}
	}()
	if err := told(t, "the sender", full); err == nil {
		t.Error("sent to a closed connection")
	}
	in.peer.Close()
	in.conn.Close()
	if after := ownFootprint(); after != before {
		t.Errorf("%+v, before %+v", after, before)
	}
}

// TestConnCloseEndsSend: a Send that waits for a peer that does not read ends.
func TestConnCloseEndsSend(t *testing.T) { eachWay(t, connCloseEndsSend) }

func connCloseEndsSend(t *testing.T, newInbox opener) {
	in := newInbox(t, 0)
	ended := make(chan error, 1)
	var sent atomic.Int64
	go func() {
		for {
			if err := in.conn.Send(kindCount, 0, make([]byte, 16<<10)); err != nil {
				ended <- err
				return
			}
			sent.Add(1)
		}
	}()
	eventually(t, "the socket is full", func() bool {
		n := sent.Load()
		ok, _ := in.conn.TrySend(kindCount, 0, nil)
		return n > 0 && !ok
	})
	in.conn.Close()
	if err := told(t, "the sender", ended); err == nil {
		t.Error("sent to a closed connection")
	}
}

// BenchmarkRoundTrip is a message there and back between two goroutines of a
// process, received by the one that wants the answer.
func BenchmarkRoundTrip(b *testing.B) {
	ours, theirs, err := handoff.Pair()
	if err != nil {
		b.Fatal(err)
	}
	none := func(handoff.Kind) int { return 0 }
	conn, peer := must(handoff.NewConn(ours, none)), must(handoff.NewConn(theirs, none))
	defer conn.Close()
	go func() {
		defer peer.Close()
		for {
			p, err := peer.Receive()
			if err != nil {
				return
			}
			if peer.Send(p.Kind, 0, p.Payload) != nil {
				return
			}
		}
	}()
	var got atomic.Uint64
	in := handoff.NewInbox(conn, 0, func(p handoff.Packet, err error) error {
		if err == nil {
			got.Add(1)
		}
		return err
	})
	payload := make([]byte, 8)
	b.ReportAllocs()
	for n := uint64(1); b.Loop(); n++ {
		if err := conn.Send(kindCount, 0, payload); err != nil {
			b.Fatal(err)
		}
		if err := in.Wait(false, func() bool { return got.Load() == n }); err != nil {
			b.Fatal(err)
		}
	}
}
