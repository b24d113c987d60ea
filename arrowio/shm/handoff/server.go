package handoff

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stokehold/stokehold/arrowio/shm"
)

// ServerConfig configures a Server. Only Host is required.
type ServerConfig struct {
	Host *shm.Host // whose arenas are leased to others
	Dir  string    // runtime directory, created if its parent exists; default RuntimeDir
	// AllowUIDs are the users whose processes may connect; default: this process's.
	AllowUIDs []uint32

	MaxConnections int   // default 64; those that still hold something after they broke off count
	MaxLeases      int   // of one connection at once; default 256, at most 65,536
	MaxLeasedBytes int64 // of one connection at once; default 1 GiB
	MaxArenas      int   // granted to one connection at once, each a descriptor and a mapping there; default 512

	HandshakeTimeout time.Duration // from connecting to hello; default 2 s
	Heartbeat        time.Duration // between pings; default 1 s
	// StallTimeout is the silence after which a peer is given up; default 3 s, at
	// least two heartbeats.
	StallTimeout time.Duration
	// KeepStopped lets peers that are stopped (SIGSTOP) with leases keep them until
	// they go on or end. Otherwise they are killed after StallTimeout, unless they
	// asked not to be when they connected: that alone frees the memory and makes sure
	// that they never read what is written there next.
	KeepStopped bool
	Logger      *slog.Logger

	// step, set by tests alone, is called at each point of the protocol at which a
	// process may be killed.
	step func(point string)
}

func (c ServerConfig) withDefaults() ServerConfig {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	defInt := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	if c.Dir == "" {
		c.Dir = RuntimeDir()
	}
	defInt(&c.MaxConnections, 64)
	defInt(&c.MaxLeases, 256)
	defInt(&c.MaxArenas, 512)
	c.MaxLeases = min(c.MaxLeases, maxCredit)
	if c.MaxLeasedBytes <= 0 {
		c.MaxLeasedBytes = 1 << 30
	}
	def(&c.HandshakeTimeout, 2*time.Second)
	def(&c.Heartbeat, time.Second)
	def(&c.StallTimeout, 3*time.Second)
	c.StallTimeout = max(c.StallTimeout, 2*c.Heartbeat)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Server leases the slots of this process's arenas to other processes of the
// host. Each connection is served on its own: one that does not read or answer
// delays nobody else, and never the owner of the arenas. Safe for concurrent use.
type Server struct {
	cfg     ServerConfig
	dir     *directory
	name    string
	l       *net.UnixListener
	started time.Time
	accept  chan struct{} // closed when nothing is accepted any more
	watched chan struct{} // closed when the watch has ended
	stop    chan struct{}
	idle    chan struct{} // closed when this is closed and the last peer has ended

	mu     sync.Mutex
	peers  map[*peer]struct{}
	closed bool

	total counters
}

// counters are totals since the server started.
type counters struct {
	Accepted   atomic.Uint64
	Rejected   atomic.Uint64 // not allowed, too many, or no proper hello
	Leased     atomic.Uint64
	Refused    atomic.Uint64
	Violations atomic.Uint64
	Stalled    atomic.Uint64
	Killed     atomic.Uint64
	Reclaimed  atomic.Uint64 // leases of peers that ended with them
}

// Serve starts to serve cfg.Host on a new socket in cfg.Dir. The error wraps
// ErrDirectory if that is not this user's alone.
func Serve(cfg ServerConfig) (*Server, error) {
	cfg = cfg.withDefaults()
	if cfg.Host == nil {
		return nil, errors.New("handoff: serve: Host is missing")
	}
	dir, l, name, err := open(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, dir: dir, name: name, l: l, started: time.Now(),
		accept: make(chan struct{}), watched: make(chan struct{}), stop: make(chan struct{}), idle: make(chan struct{}),
		peers: map[*peer]struct{}{},
	}
	go s.acceptAll()
	go s.watch()
	return s, nil
}

// open makes a socket in the runtime directory, which the last server of another
// process may be removing at this moment.
func open(path string) (dir *directory, l *net.UnixListener, name string, err error) {
	for range openAttempts {
		if dir, err = openDirectory(path, true); err == nil {
			dir.sweep()
			if l, name, err = dir.listen(); err == nil {
				return dir, l, name, nil
			}
			dir.close()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return nil, nil, "", err
}

// Path is the socket's path, for Dial.
func (s *Server) Path() string { return filepath.Join(s.cfg.Dir, s.name) }

// Close stops serving: no more connections and leases; peers are told. It waits
// until all have let go of what they hold, at most until ctx ends. What a living
// peer still holds then stays leased until this process ends, since the peer may
// be reading it. Repeatable.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	peers := s.all()
	if first && len(peers) == 0 {
		close(s.idle)
	}
	s.mu.Unlock()
	if first {
		s.dir.remove(s.name)
		if s.cfg.Dir == RuntimeDir() { // one that was named is the operator's
			s.dir.removeEmpty()
		}
		_ = s.l.Close() // nothing is accepted any more
	}
	<-s.accept
	for _, p := range peers {
		p.leave()
	}
	err := s.settled(ctx)
	if first {
		close(s.stop)
		<-s.watched
		s.dir.close()
	}
	return err
}

func (s *Server) settled(ctx context.Context) error {
	select {
	case <-s.idle:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	peers := s.all()
	s.mu.Unlock()
	held := 0
	for _, p := range peers {
		held += p.abandon()
	}
	if held == 0 {
		return nil
	}
	return fmt.Errorf("handoff: %d leases are still held by other processes: %w", held, ctx.Err())
}

func (s *Server) all() []*peer {
	all := make([]*peer, 0, len(s.peers))
	for p := range s.peers {
		all = append(all, p)
	}
	return all
}

const (
	acceptPause    = 5 * time.Millisecond // after a failure, doubled each time
	maxAcceptPause = time.Second
)

// acceptAll goes on when the descriptor table is full: who waits to be accepted
// is accepted when there is room.
func (s *Server) acceptAll() {
	defer close(s.accept)
	pause := acceptPause
	for {
		c, err := s.l.AcceptUnix()
		if err == nil {
			if err = s.admit(c); err == nil {
				pause = acceptPause
				continue
			}
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		s.cfg.Logger.Warn("handoff: a connection was not accepted", "error", err, "pause", pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-s.stop:
			timer.Stop()
		}
		pause = min(2*pause, maxAcceptPause)
	}
}

// admit takes over c. An error is this process's trouble, not the peer's.
func (s *Server) admit(c *net.UnixConn) error {
	id, err := identify(c, true)
	if err != nil {
		_ = c.Close()
		return err
	}
	conn, err := newConn(c, peerCarries)
	_ = c.Close() // conn has its own descriptor
	if err != nil {
		id.close()
		return err
	}
	conn.SendTimeout = s.cfg.StallTimeout
	p := newPeer(s, conn, id)
	turnAway := func(code Code, why string) {
		s.total.Rejected.Add(1)
		_, _ = conn.TrySend(kindError, 0, notice{code, why}.append(nil)) // a courtesy
		conn.Close()
		id.close()
	}
	allowed := isAllowed(id.uid, s.cfg.AllowUIDs)
	s.mu.Lock()
	full := len(s.peers) >= s.cfg.MaxConnections
	if allowed && !full && !s.closed {
		s.peers[p] = struct{}{}
	}
	closed := s.closed
	s.mu.Unlock()
	switch {
	case !allowed:
		turnAway(CodeProtocol, "this user is not allowed")
	case closed:
		turnAway(CodeClosing, "closing")
	case full:
		turnAway(CodeBusy, fmt.Sprintf("%d processes are connected already", s.cfg.MaxConnections))
	default:
		s.total.Accepted.Add(1)
		go p.serve()
	}
	return nil
}

func (s *Server) at(point string) {
	if s.cfg.step != nil {
		s.cfg.step(point)
	}
}

// forget removes a peer that has ended.
func (s *Server) forget(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.peers[p]; !ok {
		return
	}
	if delete(s.peers, p); s.closed && len(s.peers) == 0 {
		close(s.idle)
	}
}

// watch pings, and finds out who is silent or gone.
func (s *Server) watch() {
	defer close(s.watched)
	every := max(min(s.cfg.Heartbeat, s.cfg.StallTimeout/4), time.Millisecond)
	tick := time.NewTicker(every)
	defer tick.Stop()
	last, pinged := time.Now(), time.Now()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		now := time.Now()
		// This process was stopped or starved itself: the silence was its own.
		late := now.Sub(last) > 2*every+s.cfg.Heartbeat/2
		last = now
		ping := now.Sub(pinged) >= s.cfg.Heartbeat-every/2
		if ping {
			pinged = now
		}
		s.mu.Lock()
		peers := s.all()
		s.mu.Unlock()
		for _, p := range peers {
			p.check(now, late, ping)
		}
	}
}

// ownPID is this process, which is never killed.
func ownPID() int { return os.Getpid() }
