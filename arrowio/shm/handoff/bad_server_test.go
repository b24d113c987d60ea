package handoff_test

import (
	"context"
	"errors"
	"math"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// lease leases by hand.
func (r *raw) lease(t *testing.T, job uint32, h shm.Handle) uint64 {
	t.Helper()
	if err := r.write(handoff.LeasePacket(job, h)); err != nil {
		t.Fatal(err)
	}
	p, err := r.await(handoff.KindLeased)
	if err != nil {
		t.Fatal(err)
	}
	token, err := handoff.Token(p)
	if err != nil || p.Job != job {
		t.Fatalf("answer to %d: %v", p.Job, err)
	}
	return token
}

func packet(t *testing.T, k handoff.Kind, job uint32, payload []byte) []byte {
	t.Helper()
	b, err := handoff.Append(nil, k, job, payload)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestClientBreaksTheProtocol: whatever a client sends, it is told so and cut off,
// its leases end with its connection and nobody else notices.
func TestClientBreaksTheProtocol(t *testing.T) {
	type peers struct {
		o     *owner
		h     shm.Handle
		r     *raw
		other uint64 // another client's token
	}
	lease := func(change func(h *shm.Handle)) func(*testing.T, peers) [][]byte {
		return func(_ *testing.T, p peers) [][]byte {
			h := p.h
			change(&h)
			return [][]byte{handoff.LeasePacket(9, h)}
		}
	}
	for _, tc := range []struct {
		name string
		send func(*testing.T, peers) [][]byte
	}{
		{"forged token", func(*testing.T, peers) [][]byte { return [][]byte{handoff.ReleasePacket(12345)} }},
		{"another peer's token", func(_ *testing.T, p peers) [][]byte { return [][]byte{handoff.ReleasePacket(p.other)} }},
		{"double release", func(t *testing.T, p peers) [][]byte {
			b := handoff.ReleasePacket(p.r.lease(t, 2, p.h))
			return [][]byte{b, b}
		}},
		{"double release in one message", func(t *testing.T, p peers) [][]byte {
			token := p.r.lease(t, 2, p.h)
			return [][]byte{handoff.ReleasePacket(token, token)}
		}},
		{"release of nothing", func(*testing.T, peers) [][]byte { return [][]byte{handoff.ReleasePacket()} }},
		{"offset beyond 2^62", lease(func(h *shm.Handle) { h.Offset = math.MinInt64 })},
		{"length of 0", lease(func(h *shm.Handle) { h.Length = 0 })},
		{"negative length", lease(func(h *shm.Handle) { h.Length = -1 })},
		{"lease without a number", func(_ *testing.T, p peers) [][]byte { return [][]byte{handoff.LeasePacket(0, p.h)} }},
		{"pong without a ping", func(t *testing.T, _ peers) [][]byte {
			return [][]byte{packet(t, handoff.KindPong, 0, []byte{255, 255, 0, 0, 0, 0, 0, 0})}
		}},
		{"goodbye while holding", func(t *testing.T, _ peers) [][]byte { return [][]byte{packet(t, handoff.KindGoodbye, 0, nil)} }},
		{"second hello", func(*testing.T, peers) [][]byte { return [][]byte{handoff.HelloPacket(1, 1, false)} }},
		{"a server's message", func(*testing.T, peers) [][]byte { return [][]byte{handoff.LeasedPacket(1, 1)} }},
		{"unknown kind", func(t *testing.T, _ peers) [][]byte { return [][]byte{packet(t, 999, 0, nil)} }},
		{"half a header", func(*testing.T, peers) [][]byte { return [][]byte{{1, 0, 0}} }},
		{"larger than a packet", func(*testing.T, peers) [][]byte { return [][]byte{make([]byte, handoff.MaxPacket+1)} }},
		{"inspect with a payload", func(t *testing.T, _ peers) [][]byte { return [][]byte{packet(t, handoff.KindInspect, 3, []byte{1})} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := serve(t, nil)
			h := put(t, o.arena, 1)
			bystander := dialRaw(t, o.Path())
			r := dialRaw(t, o.Path())
			if err := errors.Join(bystander.greet(), r.greet()); err != nil {
				t.Fatal(err)
			}
			other := bystander.lease(t, 1, h)
			r.lease(t, 1, h)
			for _, b := range tc.send(t, peers{o, h, r, other}) {
				if err := r.write(b); err != nil {
					t.Fatal(err)
				}
			}
			p, err := r.await(handoff.KindError)
			if err != nil {
				t.Fatal(err)
			}
			if code, text, err := handoff.ErrorText(p); code != handoff.CodeProtocol || err != nil {
				t.Errorf("told: %d %q %v", code, text, err)
			}
			if n := o.arena.Stats().Leases; n < 2 {
				t.Errorf("%d leases: it may still read", n)
			}
			r.close()
			eventually(t, "its leases taken back", func() bool { return o.arena.Stats().Leases == 1 })
			if err := bystander.write(handoff.ReleasePacket(other)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the other's lease released", func() bool { return o.arena.Stats().Leases == 0 })
			if v := o.Status().Served.Violations; v != 1 {
				t.Errorf("%d violations counted", v)
			}
		})
	}
}

// TestClientSendsDescriptors: a client has none to send.
func TestClientSendsDescriptors(t *testing.T) {
	for name, n := range map[string]int{"one": 1, "too many": 9} {
		t.Run(name, func(t *testing.T) {
			o := serve(t, nil)
			before := ownFootprint()
			r := dialRaw(t, o.Path())
			var fds []int
			for range n {
				fds = append(fds, int(os.Stdin.Fd()))
			}
			b := handoff.HelloPacket(handoff.Version, 1, false)
			if _, _, err := r.u.WriteMsgUnix(b, unix.UnixRights(fds...), nil); err != nil {
				t.Fatal(err)
			}
			if _, err := r.await(handoff.KindError); err != nil {
				t.Fatal(err)
			}
			r.close()
			eventually(t, "descriptors closed", func() bool { return ownFootprint() == before })
		})
	}
}

func TestHandleOfNothing(t *testing.T) {
	o := serve(t, nil)
	h := put(t, o.arena, 1)
	c := dial(t, o.Path(), handoff.DialConfig{})
	for name, change := range map[string]func(*shm.Handle){
		"no such arena":      func(h *shm.Handle) { h.Arena = "00112233445566778899aabbccddeeff" },
		"no such slot":       func(h *shm.Handle) { h.Offset += 64 },
		"another length":     func(h *shm.Handle) { h.Length++ },
		"another generation": func(h *shm.Handle) { h.Generation++ },
		"beyond the arena":   func(h *shm.Handle) { h.Offset = 1 << 40 },
		"overflow of the end": func(h *shm.Handle) {
			h.Offset, h.Length = 1<<62, 1<<29
		},
	} {
		bad := h
		change(&bad)
		if _, err := c.Lease(t.Context(), bad); !errors.Is(err, arrowio.ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*shm.Handle){
		"arena id of another form": func(h *shm.Handle) { h.Arena = "abc" },
		"negative offset":          func(h *shm.Handle) { h.Offset = -1 },
	} {
		bad := h
		change(&bad)
		if _, err := c.Lease(t.Context(), bad); !errors.Is(err, arrowio.ErrURI) {
			t.Errorf("%s: %v", name, err)
		}
	}
	l, err := c.Lease(t.Context(), h)
	if err != nil {
		t.Fatalf("after all that: %v", err)
	}
	l.Release()
	l.Release() // repeatable
	if l.Bytes() != nil {
		t.Error("bytes of a released lease")
	}
	_ = o.arena.Close()
	if _, err := c.Lease(t.Context(), h); !errors.Is(err, arrowio.ErrGone) {
		t.Errorf("of a closed arena: %v", err)
	}
}

func TestQuotas(t *testing.T) {
	o := serve(t, func(c *handoff.ServerConfig) { c.MaxLeases, c.MaxLeasedBytes = 3, 80<<10 })
	h := put(t, o.arena, 1)
	c := dial(t, o.Path(), handoff.DialConfig{})
	var held []handoff.Lease
	for range 2 {
		l, err := c.Lease(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, l)
	}
	if _, err := c.Lease(t.Context(), h); !errors.Is(err, handoff.ErrQuota) {
		t.Errorf("over the limit of bytes: %v", err)
	}
	small := shm.Handle{}
	if l, err := o.arena.Loan(t.Context(), 64); err != nil {
		t.Fatal(err)
	} else {
		small = l.Publish()
	}
	l, err := c.Lease(t.Context(), small)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Lease(ctx, small); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("over the limit of leases: %v", err)
	}
	waited := make(chan error)
	go func() {
		l, err := c.Lease(t.Context(), small)
		l.Release()
		waited <- err
	}()
	l.Release()
	if err := <-waited; err != nil {
		t.Errorf("after a release: %v", err)
	}
	// A client that does not count gets a refusal.
	r := dialRaw(t, o.Path())
	if err := r.greet(); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(3) {
		r.lease(t, i+1, small)
	}
	if err := r.write(handoff.LeasePacket(4, small)); err != nil {
		t.Fatal(err)
	}
	if p, err := r.await(handoff.KindRefused); err != nil || p.Job != 4 {
		t.Errorf("%d, %v", p.Job, err)
	} else if code, _, _ := handoff.ErrorText(p); code != handoff.CodeQuota {
		t.Errorf("code %d", code)
	}
	for _, l := range held {
		l.Release()
	}
}

// TestFlood: a peer that asks all the time and reads nothing holds up itself
// alone.
func TestFlood(t *testing.T) {
	o := serve(t, func(c *handoff.ServerConfig) {
		c.StallTimeout, c.Heartbeat = 1500*time.Millisecond, 200*time.Millisecond
	})
	h := put(t, o.arena, 1)
	r := dialRaw(t, o.Path())
	if err := r.greet(); err != nil {
		t.Fatal(err)
	}
	gone := h
	gone.Generation += 1000
	flooded := make(chan struct{})
	go func() {
		defer close(flooded)
		for r.write(handoff.LeasePacket(1, gone)) == nil { // until it is cut off
		}
	}()
	c := dial(t, o.Path(), handoff.DialConfig{})
	for range 500 {
		l, err := c.Lease(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		l.Release()
	}
	<-flooded
	eventually(t, "the flooding peer cut off", func() bool { return len(o.Status().Peers) == 1 })
}

func TestSilentFromTheStart(t *testing.T) {
	o := serve(t, func(c *handoff.ServerConfig) { c.HandshakeTimeout = 50 * time.Millisecond })
	r := dialRaw(t, o.Path())
	if _, err := r.await(handoff.KindError); err != nil {
		t.Error(err)
	}
	eventually(t, "disconnected", func() bool { return len(o.Status().Peers) == 0 })
}

func TestTooManyConnections(t *testing.T) {
	o := serve(t, func(c *handoff.ServerConfig) { c.MaxConnections = 2 })
	dial(t, o.Path(), handoff.DialConfig{})
	second := dial(t, o.Path(), handoff.DialConfig{})
	if _, err := handoff.Dial(t.Context(), o.Path(), handoff.DialConfig{}); !errors.Is(err, handoff.ErrQuota) || !errors.Is(err, arrowio.ErrGone) {
		t.Errorf("third connection: %v", err)
	}
	_ = second.Close()
	eventually(t, "room", func() bool {
		c, err := handoff.Dial(t.Context(), o.Path(), handoff.DialConfig{})
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func TestVersions(t *testing.T) {
	o := serve(t, nil)
	r := dialRaw(t, o.Path())
	if err := r.write(handoff.HelloPacket(99, 1, false)); err != nil {
		t.Fatal(err)
	}
	p, err := r.await(handoff.KindError)
	if err != nil {
		t.Fatal(err)
	}
	if code, _, err := handoff.ErrorText(p); code != handoff.CodeVersion || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
}

func TestUsers(t *testing.T) {
	me := uint32(os.Geteuid())
	o := serve(t, func(c *handoff.ServerConfig) { c.AllowUIDs = []uint32{me + 1} })
	if _, err := handoff.Dial(t.Context(), o.Path(), handoff.DialConfig{}); !errors.Is(err, arrowio.ErrGone) {
		t.Errorf("not allowed by the server: %v", err)
	}
	o = serve(t, nil)
	if _, err := handoff.Dial(t.Context(), o.Path(), handoff.DialConfig{AllowUIDs: []uint32{me + 1}}); !errors.Is(err, handoff.ErrNotAllowed) {
		t.Errorf("not allowed by the client: %v", err)
	}
}

// TestNoDescriptorsLeft: a full descriptor table delays, or ends, what needs a
// descriptor and nothing else.
func TestNoDescriptorsLeft(t *testing.T) {
	t.Run("at the owner", func(t *testing.T) {
		o, at := startOwner(t, childConfig{StallMS: 3000})
		_, unaffected := startBystander(t, at)
		o.ask(nil, "limit", "on")
		dialled := make(chan error)
		go func() {
			c, err := handoff.Dial(t.Context(), at.Path, handoff.DialConfig{HandshakeTimeout: 4 * patience})
			if err == nil {
				_ = c.Close()
				<-c.Over()
			}
			dialled <- err
		}()
		unaffected(t)
		o.ask(nil, "limit", "off")
		// The connection that found the table full may have been turned away.
		if err := <-dialled; err != nil && !errors.Is(err, arrowio.ErrGone) {
			t.Error(err)
		}
		eventually(t, "connections accepted", func() bool {
			c, err := handoff.Dial(t.Context(), at.Path, handoff.DialConfig{})
			if err == nil {
				_ = c.Close()
			}
			return err == nil
		})
		unaffected(t)
	})
	t.Run("at the client", func(t *testing.T) {
		_, at := startOwner(t, childConfig{})
		c := start(t, "consumer", childConfig{})
		c.ask(nil, "dial", at.Path)
		c.ask(nil, "limit", "on")
		var msg string
		if c.ask(&msg, "lease", at.Handles[0]); msg == "" {
			t.Error("leased without a descriptor")
		}
		c.ask(nil, "limit", "off")
		c.ask(nil, "dial", at.Path)
		if c.ask(&msg, "lease", at.Handles[0]); msg != "" {
			t.Error(msg)
		}
	})
}

// TestManyAtOnce leases from many goroutines with little credit.
func TestManyAtOnce(t *testing.T) {
	o := serve(t, func(c *handoff.ServerConfig) { c.MaxLeases = 5 })
	var handles []shm.Handle
	for i := range int64(8) {
		handles = append(handles, put(t, o.arena, i))
	}
	c := dial(t, o.Path(), handoff.DialConfig{})
	var all sync.WaitGroup
	for g := range 16 {
		all.Go(func() {
			for i := range 100 {
				ctx, cancel := context.WithCancel(t.Context())
				if i%7 == 0 { // gives up at some moment
					time.AfterFunc(time.Duration(i)*time.Microsecond, cancel)
				}
				n := (g + i) % len(handles)
				l, err := c.Lease(ctx, handles[n])
				cancel()
				if errors.Is(err, context.Canceled) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				rec, err := l.Batch()
				if err != nil {
					t.Error(err)
					return
				}
				if v, err := value(rec); err != nil || v != int64(n) {
					t.Errorf("%d, %v, want %d", v, err, n)
				}
				rec.Release()
			}
		})
	}
	all.Wait()
	eventually(t, "all released", func() bool { return o.arena.Stats().Leases == 0 })
	if o.arena.Stats().Reclaimed != 0 {
		t.Error("leases were reclaimed, not released")
	}
}
