package handoff

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

// DialConfig configures a Client. The zero value is ready for use.
type DialConfig struct {
	// AllowUIDs are the users whose servers are trusted to keep leased memory as it
	// is; default: this process's.
	AllowUIDs []uint32
	// MaxLeases bounds the leases held at once, below what the server allows.
	MaxLeases int
	// HandshakeTimeout bounds the server's first answer; default 2 s.
	HandshakeTimeout time.Duration
	// KeepStopped asks the server not to kill this process when it is stopped
	// (SIGSTOP) while it holds leases. The owner cannot use their memory again until
	// this process goes on or ends.
	KeepStopped bool
}

// ErrQuota means: a limit of the connection to the owner of the batch is reached.
// Release a batch first.
var ErrQuota = errors.New("too much leased from another process")

// releaseDelay is how long a release waits for others to share a message with.
// Nobody waits for it but a writer whose arena is full.
const releaseDelay = time.Millisecond

// Client leases batches from the arenas of another process of this host. Safe for
// concurrent use.
type Client struct {
	conn    *Conn
	inbox   *Inbox
	pid     int
	stall   time.Duration
	started time.Time
	heard   atomic.Int64  // ns since started
	free    chan *held    // credit: entries that are not in use
	lost    chan struct{} // closed when nothing more can be asked
	over    chan struct{} // closed when the connection is closed and nothing is mapped
	decoder arrowio.Decoder

	mu      sync.Mutex
	entries []held
	views   map[[16]byte]*view
	active  int // entries that are held or wait for an answer
	ending  bool
	ended   bool
	why     error   // nothing more can be asked
	dropped []*held // released here, the server not told yet
	tokens  []uint64
	timer   *time.Timer // sends them
	armed   bool
	buf     []byte // for sending releases
	ask     statusRequest
}

// view is an arena as mapped here.
type view struct {
	v         *shm.View
	users     int
	forgotten bool // by the owner: unmapped when nobody uses it
}

// held is an entry for one lease. Entries are made once, so that leasing
// allocates nothing.
type held struct {
	c       *Client
	index   uint32
	waiting atomic.Bool // for an answer; changed under the client's mu

	// Under the client's mu.
	gen    uint64 // of the Lease that uses it; odd: none
	left   bool   // who asked has gone
	arena  [16]byte
	handle shm.Handle
	token  uint64
	view   *view
	bytes  []byte
	err    error
}

// Lease is a hold on a slot of another process's arena, from Client.Lease to
// Release. Its bytes stay what they are until then, whatever becomes of the owner
// or the connection. The zero Lease holds nothing.
type Lease struct {
	h   *held
	gen uint64
}

// Dial connects to the server whose socket is at path; see Server.Path. The
// directory of the socket must be this user's alone (ErrDirectory), and so must
// the server (ErrNotAllowed). ctx bounds the dialling only.
func Dial(ctx context.Context, path string, cfg DialConfig) (*Client, error) {
	dir, err := openDirectory(filepath.Dir(path), false)
	if err != nil {
		return nil, err
	}
	defer dir.close()
	return dial(ctx, dir, filepath.Base(path), cfg)
}

func dial(ctx context.Context, dir *directory, name string, cfg DialConfig) (*Client, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	u, err := dir.connect(name) // never waits: the queue is long or it fails
	if err != nil {
		return nil, goneErr("no process serves %s: %w", filepath.Join(dir.path, name), err)
	}
	id, err := identify(u, false)
	if err == nil && !isAllowed(id.uid, cfg.AllowUIDs) {
		err = fmt.Errorf("handoff: %w: process %d is user %d's", ErrNotAllowed, id.pid, id.uid)
	}
	if err != nil {
		_ = u.Close()
		return nil, err
	}
	conn, err := newConn(u, peerCarries)
	_ = u.Close() // conn has its own descriptor
	if err != nil {
		return nil, err
	}
	c, err := greetServer(ctx, conn, id.pid, cfg)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("handoff: connect to process %d: %w", id.pid, err)
	}
	return c, nil
}

func greetServer(ctx context.Context, conn *Conn, pid int, cfg DialConfig) (*Client, error) {
	if cfg.HandshakeTimeout <= 0 {
		cfg.HandshakeTimeout = 2 * time.Second
	}
	conn.SetReceiveDeadline(time.Now().Add(cfg.HandshakeTimeout))
	stop := context.AfterFunc(ctx, func() { conn.SetReceiveDeadline(time.Unix(1, 0)) })
	defer stop()
	conn.SendTimeout = cfg.HandshakeTimeout
	m := hello{version: Version, pid: uint32(ownPID())}
	if !cfg.KeepStopped {
		m.flags |= flagFence
	}
	// A server that turns the connection away may have closed it already; its reason
	// is there to be read.
	sendErr := conn.Send(kindHello, 0, m.append(nil))
	pkt, err := conn.Receive()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case isEOF(err):
		return nil, errors.Join(goneErr("it closed the connection"), sendErr)
	case err != nil:
		return nil, errors.Join(arrowio.ErrGone, err)
	}
	switch pkt.Kind {
	case kindWelcome:
	case kindError:
		return nil, errorFrom(pkt.Payload)
	default:
		pkt.CloseFDs()
		return nil, Violation("message of kind %d, want welcome", pkt.Kind)
	}
	w, err := decodeWelcome(pkt.Payload)
	if err != nil {
		return nil, err
	}
	if !stop() { // ctx ended at this moment and has spoilt the deadline
		return nil, context.Cause(ctx)
	}
	conn.SetReceiveDeadline(time.Time{})
	n := int(w.leases)
	if cfg.MaxLeases > 0 {
		n = min(n, cfg.MaxLeases)
	}
	c := &Client{
		conn: conn, pid: pid, stall: time.Duration(w.stall) * time.Millisecond, started: time.Now(),
		free: make(chan *held, n), lost: make(chan struct{}), over: make(chan struct{}),
		entries: make([]held, n), views: map[[16]byte]*view{},
		dropped: make([]*held, 0, n), tokens: make([]uint64, 0, n), buf: make([]byte, 0, 8+8*maxReleases),
	}
	conn.SendTimeout = c.stall
	for i := range c.entries {
		h := &c.entries[i]
		h.c, h.index, h.gen = c, uint32(i), 1
		c.free <- h
	}
	c.timer = time.AfterFunc(time.Hour, c.flushLater)
	c.timer.Stop()
	c.hear()
	c.inbox = NewInbox(conn, 0, c.received)
	go func() { _ = c.inbox.Keep() }() // why it ended is in why
	go c.watch(time.Duration(w.heartbeat) * time.Millisecond)
	return c, nil
}

func (c *Client) hear() { c.heard.Store(int64(time.Since(c.started))) }

// PID is the server's process.
func (c *Client) PID() int { return c.pid }

// Lost is closed when the connection has ended, or is ending: Lease then fails.
// Leases held stay good.
func (c *Client) Lost() <-chan struct{} { return c.lost }

// Over is closed when the connection is closed and nothing of the owner is mapped
// here any more, which is not before the last lease has been released.
func (c *Client) Over() <-chan struct{} { return c.over }

// Err says why the connection was lost; nil before. It wraps arrowio.ErrGone.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

// Lease asks the owner for the slot that handle names, and returns when it is
// leased and mapped. While as many leases are held as the owner allows, it waits.
// The error wraps arrowio.ErrGone if the slot is gone or the connection lost,
// ErrQuota if the owner's limit of bytes is reached, or is ctx's.
func (c *Client) Lease(ctx context.Context, handle shm.Handle) (Lease, error) {
	id, err := ArenaID(handle.Arena)
	if err != nil || handle.Offset < 0 || handle.Length <= 0 {
		return Lease{}, fmt.Errorf("handoff: lease %s: %w", handle, arrowio.ErrURI)
	}
	h, err := c.entry(ctx)
	if err != nil {
		return Lease{}, err
	}
	c.mu.Lock()
	if c.why != nil {
		c.mu.Unlock()
		c.free <- h
		return Lease{}, c.lostErr()
	}
	h.left, h.err, h.arena, h.handle = false, nil, id, handle
	h.waiting.Store(true)
	c.active++
	c.mu.Unlock()
	var b [40]byte
	m := slotName{id, handle.Offset, handle.Length, handle.Generation}
	if err := c.conn.Send(kindLease, h.index+1, m.append(b[:0])); err != nil {
		c.lose(goneErr("%w", err))
	}
	// Who ends the connection has answered everybody.
	_ = c.inbox.Wait(true, func() bool { return !h.waiting.Load() || ctx.Err() != nil })
	c.mu.Lock()
	if h.waiting.Load() {
		h.left = true // the answer's receiver gives the lease back
		c.mu.Unlock()
		return Lease{}, fmt.Errorf("handoff: lease %s from process %d: %w", handle, c.pid, ctx.Err())
	}
	if err := h.err; err != nil {
		h.err = nil
		c.idle(h)
		c.mu.Unlock()
		c.free <- h
		return Lease{}, fmt.Errorf("handoff: lease %s from process %d: %w", handle, c.pid, err)
	}
	h.gen++ // even: held
	l := Lease{h, h.gen}
	c.mu.Unlock()
	return l, nil
}

// entry takes one unit of credit.
func (c *Client) entry(ctx context.Context) (*held, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case h := <-c.free:
		return h, nil
	default:
	}
	c.mu.Lock()
	c.flush()
	c.mu.Unlock()
	select {
	case h := <-c.free:
		return h, nil
	case <-c.lost:
		return nil, c.lostErr()
	case <-ctx.Done():
		return nil, fmt.Errorf("handoff: %d batches of process %d are held: %w", len(c.entries), c.pid, ctx.Err())
	}
}

func (c *Client) lostErr() error { return fmt.Errorf("handoff: process %d: %w", c.pid, c.Err()) }

// idle notes that an entry is neither held nor waits. Callers hold mu.
func (c *Client) idle(h *held) {
	h.view, h.bytes = nil, nil
	c.active--
	c.finish()
}

// Bytes is the slot, mapped read-only: writing to it faults. Valid until Release;
// nil after it.
func (l Lease) Bytes() []byte {
	if l.h == nil {
		return nil
	}
	l.h.c.mu.Lock()
	defer l.h.c.mu.Unlock()
	if l.h.gen != l.gen {
		return nil
	}
	return l.h.bytes
}

// Batch returns the framed batch in place; the lease passes to it and is released
// with it. On error, which wraps arrowio.ErrCorrupt, the lease is released too.
// The batch is validated in full unless arrowio.Trusted is given: it comes from
// another process.
func (l Lease) Batch(opts ...arrowio.DecodeOption) (arrow.RecordBatch, error) {
	if l.h == nil {
		return nil, fmt.Errorf("handoff: %w: no lease", arrowio.ErrGone)
	}
	return l.BatchBy(&l.h.c.decoder, opts...)
}

// BatchBy is Batch by a decoder that may know the schema: of what is read of an
// owner, Batch knows only that of the batch before.
func (l Lease) BatchBy(d *arrowio.Decoder, opts ...arrowio.DecodeOption) (arrow.RecordBatch, error) {
	b := l.Bytes()
	if b == nil {
		return nil, fmt.Errorf("handoff: %w: lease released", arrowio.ErrGone)
	}
	return d.Decode(b, l.Release, opts...)
}

// Release gives the slot back. The bytes must not be used after it, by anyone.
// Repeatable.
func (l Lease) Release() {
	if l.h == nil {
		return
	}
	c, h := l.h.c, l.h
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.gen != l.gen {
		return
	}
	h.gen++
	c.drop(h)
}

// drop gives an entry's lease back. Callers hold mu.
func (c *Client) drop(h *held) {
	h.view.users--
	c.unmapUnused(h.arena, h.view)
	if c.why != nil && !c.ending {
		c.idle(h)
		return
	}
	c.dropped = append(c.dropped, h)
	c.tokens = append(c.tokens, h.token)
	h.view, h.bytes = nil, nil
	c.active--
	switch {
	case c.active == 0 && c.ending, len(c.tokens) >= min(32, max(cap(c.free)/4, 1)):
		c.flush()
	case !c.armed:
		c.armed = true
		c.timer.Reset(releaseDelay)
	}
	c.finish()
}

func (c *Client) unmapUnused(id [16]byte, v *view) {
	if v.users == 0 && v.forgotten {
		v.v.Close()
		if c.views[id] == v {
			delete(c.views, id)
		}
	}
}

func (c *Client) flushLater() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flush()
}

// flush tells the server what was released. It never waits, since mu is held: what
// the server has no room for is sent later. Callers hold mu.
func (c *Client) flush() {
	c.armed = false
	for len(c.tokens) > 0 {
		n := min(len(c.tokens), maxReleases)
		if !c.gone() {
			c.buf = appendRelease(c.buf[:0], c.tokens[:n])
			ok, err := c.conn.TrySend(kindRelease, 0, c.buf)
			if err != nil {
				c.loseLocked(goneErr("%w", err))
			} else if !ok {
				c.armed = true
				c.timer.Reset(releaseDelay)
				return
			}
		}
		for _, h := range c.dropped[:n] {
			c.free <- h // has room for all
		}
		c.tokens = c.tokens[:copy(c.tokens, c.tokens[n:])]
		c.dropped = c.dropped[:copy(c.dropped, c.dropped[n:])]
	}
}

// gone reports whether the server does not listen any more. Callers hold mu.
func (c *Client) gone() bool { return c.why != nil && !c.ending }

// Close asks for no more leases. Those held stay good; the connection ends, and
// the owner's memory is unmapped, with the last of them: see Over. Repeatable.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why == nil {
		c.ending = true
		c.why = goneErr("the client is closed")
		close(c.lost)
	}
	c.finish()
	return nil
}

func (c *Client) lose(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loseLocked(why)
}

// loseLocked notes that nothing can be asked any more and fails those who wait.
// The socket stays open while leases are held: its end tells the owner that
// nobody reads.
func (c *Client) loseLocked(why error) {
	if c.why == nil {
		c.why = why
		close(c.lost)
	}
	c.ending = false
	for i := range c.entries {
		h := &c.entries[i]
		if !h.waiting.Load() {
			continue
		}
		h.err = c.why
		h.waiting.Store(false)
		if h.left {
			c.idle(h)
		}
	}
	c.finish()
	c.inbox.Wake()
}

// finish ends the connection if it is to end and nobody reads. Callers hold mu.
func (c *Client) finish() {
	if c.why == nil || c.active > 0 || c.ended {
		return
	}
	c.ended = true
	if c.ending {
		if c.flush(); c.ending {
			_, _ = c.conn.TrySend(kindGoodbye, 0, nil) // end of file says it too
		}
	}
	c.timer.Stop()
	for _, v := range c.views {
		v.v.Close()
	}
	c.views = nil
	c.conn.Close()
	close(c.over)
}
