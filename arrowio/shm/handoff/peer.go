package handoff

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	crand "crypto/rand"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

// State of a connection, as Status shows it.
type State string

// The states, in the order of a connection's life. A peer that broke off, or was
// cut off, while it held leases keeps them until it has closed its end or died.
const (
	Greeting State = "greeting" // no hello yet
	Alive    State = "alive"
	Stalled  State = "stalled"  // silent for too long, still holding leases
	Draining State = "draining" // cut off for another reason, still holding leases
)

// Messages that achieve nothing (refused leases, inspections) are answered at
// this rate; who sends more of them waits.
const (
	fruitlessBurst     = 512
	fruitlessPerSecond = 2000
)

// peer is one connection, on the owner's side.
type peer struct {
	s     *Server
	conn  *Conn
	owner string // of its leases; unguessable, so that no other connection's is hit

	heard   atomic.Int64  // ns since the server started, when something last came
	pinged  atomic.Uint64 // the last ping
	sending atomic.Bool   // the serving goroutine is in Send
	token   *rand.ChaCha8

	mu     sync.Mutex
	id     identity
	fence  bool // may be killed
	state  State
	why    string // it was cut off
	held   map[uint64]hold
	grants map[[16]byte]*grant
	bytes  int64
	since  time.Time
	ended  bool
	told   bool // that this side is closing

	// Of the serving goroutine.
	out       []byte
	ponged    uint64
	evicted   [16]byte // arena that the client is to forget
	evicting  bool
	fruitless float64
	refilled  time.Time
}

type hold struct {
	lease shm.Lease
	grant *grant
	bytes int64
}

type grant struct {
	arena  *shm.Arena
	id     string
	leases int
}

func newPeer(s *Server, c *Conn, id identity) *peer {
	var r [16]byte
	var seed [32]byte
	crand.Read(r[:]) // never fails since Go 1.24
	crand.Read(seed[:])
	p := &peer{
		s: s, conn: c, id: id, owner: fmt.Sprintf("peer-%d-%s", id.pid, hex.EncodeToString(r[:])), token: rand.NewChaCha8(seed),
		state: Greeting, held: map[uint64]hold{}, grants: map[[16]byte]*grant{}, since: time.Now(),
		fruitless: fruitlessBurst, refilled: time.Now(),
	}
	p.hear()
	return p
}

func (p *peer) hear() { p.heard.Store(int64(time.Since(p.s.started))) }

// errBye means: the client has said goodbye.
var errBye = errors.New("goodbye")

// serve answers the client until the connection ends in some way.
func (p *peer) serve() {
	err := p.greet()
	for err == nil {
		var pkt Packet
		if pkt, err = p.conn.Receive(); err == nil {
			p.hear()
			err = p.handle(pkt)
		}
	}
	switch {
	case isEOF(err), errors.Is(err, errBye):
		p.finish("")
	case errors.Is(err, ErrVersion):
		p.cutOff(Draining, CodeVersion, err.Error())
	case errors.Is(err, ErrProtocol):
		p.s.total.Violations.Add(1)
		p.cutOff(Draining, CodeProtocol, err.Error())
	case errors.Is(err, os.ErrDeadlineExceeded):
		p.s.total.Stalled.Add(1)
		p.cutOff(Stalled, CodeStalled, "no answer in time")
	default:
		p.cutOff(Draining, CodeInternal, err.Error())
	}
	// What it still holds stays until it is known that it does not read any more.
	p.conn.awaitHangUp()
	p.finish("it has closed the connection")
}

func (p *peer) greet() error {
	p.conn.SetReceiveDeadline(time.Now().Add(p.s.cfg.HandshakeTimeout))
	p.s.at("accepted")
	pkt, err := p.conn.Receive()
	if err != nil {
		return err
	}
	p.hear()
	p.s.at("hello")
	if pkt.Kind != kindHello || pkt.Job != 0 {
		return Violation("message of kind %d, want hello", pkt.Kind)
	}
	m, err := decodeHello(pkt.Payload)
	if err != nil {
		return err
	}
	p.conn.SetReceiveDeadline(time.Time{})
	p.mu.Lock()
	p.state = Alive
	// The number is compared in case the socket was handed on to another process.
	p.fence = m.flags&flagFence != 0 && !p.s.cfg.KeepStopped && p.id.pidfd >= 0 && p.id.pid != ownPID() && int(m.pid) == p.id.pid
	p.mu.Unlock()
	cfg := &p.s.cfg
	return p.send(kindWelcome, 0, welcome{
		version: Version, pid: uint32(ownPID()), heartbeat: uint32(max(cfg.Heartbeat.Milliseconds(), 1)), stall: uint32(cfg.StallTimeout.Milliseconds()),
		leases: uint32(cfg.MaxLeases), bytes: uint64(cfg.MaxLeasedBytes),
	}.append(p.out[:0]))
}

func (p *peer) send(k Kind, job uint32, payload []byte, fds ...int) error {
	p.out = payload
	p.sending.Store(true)
	err := p.conn.Send(k, job, payload, fds...)
	p.sending.Store(false)
	return err
}

func (p *peer) handle(pkt Packet) error {
	if (pkt.Job != 0) != (pkt.Kind == kindLease || pkt.Kind == kindInspect) {
		return Violation("message of kind %d with request number %d", pkt.Kind, pkt.Job)
	}
	switch pkt.Kind {
	case kindLease:
		name, err := decodeSlotName(pkt.Payload)
		if err != nil {
			return err
		}
		return p.lease(pkt.Job, name)
	case kindRelease:
		m, err := decodeRelease(pkt.Payload)
		if err != nil {
			return err
		}
		p.s.at("release")
		return p.release(m)
	case kindPong:
		v, err := decodeU64(pkt.Payload)
		if err != nil {
			return err
		}
		if v <= p.ponged || v > p.pinged.Load() {
			return Violation("pong without a ping")
		}
		p.ponged = v
		return nil
	case kindInspect:
		if len(pkt.Payload) != 0 {
			return Violation("inspect with a payload")
		}
		p.s.at("inspect")
		return p.inspect(pkt.Job)
	case kindGoodbye:
		p.s.at("goodbye")
		p.mu.Lock()
		n := len(p.held)
		p.mu.Unlock()
		if len(pkt.Payload) != 0 || n > 0 {
			return Violation("goodbye with %d leases", n)
		}
		return errBye
	default:
		return Violation("message of kind %d from a client", pkt.Kind)
	}
}

// lease answers one request.
func (p *peer) lease(job uint32, name slotName) error {
	token, g, isNew, code, err := p.take(name)
	if p.evicting {
		p.evicting = false
		if err := p.send(kindForget, 0, append(p.out[:0], p.evicted[:]...)); err != nil {
			return err
		}
	}
	if err != nil {
		p.s.total.Refused.Add(1)
		p.pace()
		return p.send(kindRefused, job, notice{code, err.Error()}.append(p.out[:0]))
	}
	p.s.at("taken")
	if isNew {
		// First of all the client must know the arena.
		err := p.grant(name.arena, g)
		if errors.Is(err, shm.ErrClosed) || errors.Is(err, unix.ETOOMANYREFS) {
			p.undo(token, name.arena)
			code := CodeInternal
			if errors.Is(err, shm.ErrClosed) {
				code = CodeGone
			}
			p.s.total.Refused.Add(1)
			return p.send(kindRefused, job, notice{code, err.Error()}.append(p.out[:0]))
		}
		if err != nil {
			return err
		}
	}
	p.s.at("granted")
	p.s.total.Leased.Add(1)
	p.out = appendU64(p.out[:0], token)
	err = p.send(kindLeased, job, p.out)
	p.s.at("leased")
	return err
}

// undo takes back a lease, and the grant of its arena, that the client never
// heard of.
func (p *peer) undo(token uint64, arena [16]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h, ok := p.held[token]; ok {
		p.drop(token, h)
		delete(p.grants, arena)
	}
}

// drop ends one lease. Callers hold mu.
func (p *peer) drop(token uint64, h hold) {
	delete(p.held, token)
	p.bytes -= h.bytes
	h.grant.leases--
	h.lease.Release()
}

// take leases the slot on behalf of the connection, if its limits allow.
func (p *peer) take(name slotName) (token uint64, g *grant, isNew bool, code Code, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told || p.ended || p.state != Alive {
		return 0, nil, false, CodeClosing, errors.New("the owner is closing")
	}
	cfg := &p.s.cfg
	switch {
	case len(p.held) >= cfg.MaxLeases:
		return 0, nil, false, CodeQuota, fmt.Errorf("%d batches are leased already", len(p.held))
	case name.length > cfg.MaxLeasedBytes-p.bytes:
		return 0, nil, false, CodeQuota, fmt.Errorf("%d bytes are leased already, %d more than %d are too many", p.bytes, name.length, cfg.MaxLeasedBytes)
	}
	g = p.grants[name.arena]
	if g == nil {
		isNew = true
		if len(p.grants) >= cfg.MaxArenas && !p.dropIdle() {
			return 0, nil, false, CodeQuota, fmt.Errorf("batches of %d arenas are leased already", len(p.grants))
		}
		id := hex.EncodeToString(name.arena[:])
		a, ok := cfg.Host.Arena(id)
		if !ok {
			return 0, nil, false, CodeGone, errors.New("no such arena in this process")
		}
		g = &grant{arena: a, id: id}
	}
	l, err := g.arena.Hold(shm.Handle{Arena: g.id, Offset: name.offset, Length: name.length, Generation: name.generation}, p.owner)
	if err != nil {
		return 0, nil, false, CodeGone, err
	}
	if isNew {
		p.grants[name.arena] = g
	}
	for token == 0 || p.held[token].grant != nil {
		token = p.token.Uint64()
	}
	p.held[token] = hold{lease: l, grant: g, bytes: name.length}
	p.bytes += name.length
	g.leases++
	return token, g, isNew, 0, nil
}

func (p *peer) grant(id [16]byte, g *grant) error {
	return g.arena.WithFD(func(fd int) error {
		return p.send(kindArena, 0, ArenaGrant{ID: id, Size: g.arena.Size()}.Encode(), fd)
	})
}

// dropIdle takes back the grant of an arena that the connection leases nothing of;
// the serving goroutine, which alone calls this, tells the client. Callers hold mu.
func (p *peer) dropIdle() bool {
	for id, g := range p.grants {
		if g.leases == 0 {
			delete(p.grants, id)
			p.evicted, p.evicting = id, true
			return true
		}
	}
	return false
}

func (p *peer) release(m releases) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return errBye
	}
	for i := range m.len() {
		h, ok := p.held[m.token(i)]
		if !ok {
			return Violation("release of a lease that this connection does not hold")
		}
		p.drop(m.token(i), h)
	}
	return nil
}

// pace makes the serving goroutine, and so the client, wait if there are too many
// fruitless messages.
func (p *peer) pace() {
	now := time.Now()
	p.fruitless = min(p.fruitless+now.Sub(p.refilled).Seconds()*fruitlessPerSecond, fruitlessBurst) - 1
	p.refilled = now
	if p.fruitless < 0 {
		wait := time.NewTimer(time.Second / fruitlessPerSecond)
		select {
		case <-wait.C:
		case <-p.s.stop:
			wait.Stop()
		}
	}
}

func (p *peer) inspect(job uint32) error {
	p.pace()
	st := p.s.statusFor(p)
	b, err := st.encode()
	if err == nil && len(b) > maxStatusPart*statusPiece {
		for i := range st.Arenas {
			st.Arenas[i].Holders = nil
		}
		b, err = st.encode()
	}
	if err != nil {
		return err
	}
	parts := max((len(b)+statusPiece-1)/statusPiece, 1)
	if parts > maxStatusPart {
		return p.send(kindRefused, job, notice{CodeInternal, "the status is too large"}.append(p.out[:0]))
	}
	for i := range parts {
		m := piece{part: uint32(i), parts: uint32(parts), json: b[i*statusPiece : min((i+1)*statusPiece, len(b))]}
		if err := p.send(kindStatus, job, m.append(p.out[:0])); err != nil {
			return err
		}
	}
	return nil
}

// leave tells the client that this side is closing.
func (p *peer) leave() {
	p.mu.Lock()
	if !p.told && !p.ended {
		p.told = true
		_, _ = p.conn.TrySend(kindLeave, 0, nil) // end of file will say it otherwise
	}
	idle := len(p.held) == 0
	p.mu.Unlock()
	if idle {
		p.finish("closing")
	}
}

// cutOff ends the service of a client. If it holds leases, they stay until it is
// known that it does not read any more: it has closed its end, or is dead.
func (p *peer) cutOff(state State, code Code, why string) {
	p.mu.Lock()
	if p.ended || p.state == Stalled || p.state == Draining {
		p.mu.Unlock()
		return
	}
	p.s.cfg.Logger.Warn("handoff: peer cut off", "pid", p.id.pid, "reason", why, "leases", len(p.held))
	_, _ = p.conn.TrySend(kindError, 0, notice{code, why}.append(nil)) // a courtesy
	p.state, p.why = state, why
	none := len(p.held) == 0
	if !none {
		p.conn.sock.shutdownWrite()
	}
	p.mu.Unlock()
	if none {
		p.finish(why)
	}
}

// finish takes back everything and closes the connection. The client reads no
// more: it said so, or closed its end, or is dead, or has no leases.
func (p *peer) finish(why string) {
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return
	}
	p.ended = true
	if n := len(p.held); n > 0 {
		p.s.total.Reclaimed.Add(uint64(p.s.cfg.Host.ReclaimOwner(p.owner)))
		p.s.cfg.Logger.Warn("handoff: leases of a peer taken back", "pid", p.id.pid, "leases", n, "reason", why)
	}
	p.held, p.grants, p.bytes = nil, nil, 0
	p.id.close()
	p.mu.Unlock()
	p.conn.Close()
	p.s.forget(p)
}

// abandon closes the connection of a peer that still holds leases, which stay,
// and returns how many.
func (p *peer) abandon() int {
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return 0
	}
	n := len(p.held)
	if n == 0 {
		p.mu.Unlock()
		p.finish("closing")
		return 0
	}
	p.ended = true
	p.id.close()
	p.mu.Unlock()
	p.conn.Close()
	p.s.forget(p)
	return n
}

// check is called on every beat. late: this process itself was held up since the
// last one.
func (p *peer) check(now time.Time, late, ping bool) {
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return
	}
	state, dead := p.state, p.id.dead()
	idle := len(p.held) == 0 && (p.told || state == Stalled || state == Draining)
	p.forgetEnded()
	p.mu.Unlock()
	// Death is looked for too, since a forked child may keep the connection open.
	if dead || idle {
		p.finish("it has ended")
		return
	}
	if state == Stalled || state == Draining {
		p.fenceStopped()
		return
	}
	if late {
		p.hear()
	}
	silent := now.Sub(p.s.started) - time.Duration(p.heard.Load())
	if state == Alive && silent > p.s.cfg.StallTimeout && (p.sending.Load() || !p.conn.unread()) {
		p.s.total.Stalled.Add(1)
		p.cutOff(Stalled, CodeStalled, fmt.Sprintf("silent for %v", silent.Round(time.Millisecond)))
		p.fenceStopped()
		return
	}
	if ping && state == Alive {
		var b [8]byte
		_, _ = p.conn.TrySend(kindPing, 0, appendU64(b[:0], p.pinged.Add(1))) // it may have enough to read
	}
}

// fenceStopped kills a peer that is stopped while it holds leases. While it lives
// it may read them, so their memory cannot be used again, and it may never go on.
// A process that is merely slow, or stopped by a debugger, is left alone.
func (p *peer) fenceStopped() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || !p.fence || len(p.held) == 0 || !p.id.stopped() {
		return
	}
	p.fence = false // once
	err := p.id.kill()
	p.s.total.Killed.Add(1)
	p.s.cfg.Logger.Error("handoff: killed a peer that was stopped with leases", "pid", p.id.pid, "leases", len(p.held), "bytes", p.bytes, "error", err)
}

// forgetEnded takes back the grants of arenas that have ended. Callers hold mu.
func (p *peer) forgetEnded() {
	if p.state != Alive {
		return
	}
	for id, g := range p.grants {
		if g.leases > 0 {
			continue
		}
		if _, ok := p.s.cfg.Host.Arena(g.id); ok {
			continue
		}
		if ok, _ := p.conn.TrySend(kindForget, 0, id[:]); !ok {
			return
		}
		delete(p.grants, id)
	}
}

// goneErr makes an error that wraps arrowio.ErrGone.
func goneErr(format string, args ...any) error {
	return fmt.Errorf("handoff: %w: "+format, append([]any{arrowio.ErrGone}, args...)...)
}
