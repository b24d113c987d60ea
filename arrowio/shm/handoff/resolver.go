package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
)

const (
	retryAfter       = time.Second      // a process that could not be connected to, or an arena that nobody has
	silentRetryAfter = 10 * time.Second // a process that did not answer: everyone waited for it
	maxMissing       = 1024             // arenas remembered as nobody's
	maxKnown         = 4096             // arenas remembered as somebody's
	maxParallel      = 16               // processes asked at once
)

// PeersConfig configures Peers. The zero value is ready for use.
type PeersConfig struct {
	Dir    string // runtime directory; default RuntimeDir
	Except string // path of a socket to leave out: this process's own Server's
	Dial   DialConfig
	// Trusted leaves out the validation of values (see arrowio.Trusted): for owners
	// that are trusted as this process is. Framing and bounds are checked regardless.
	Trusted bool
	Logger  *slog.Logger
}

// Peers finds batches in the shared memory of the other processes of this host: it
// connects to each process in the runtime directory once, when it is first
// needed, and remembers which arena is whose. It is the arrowio.Resolver of
// shm:// locations. Safe for concurrent use.
type Peers struct {
	cfg      PeersConfig
	decoders arrowio.Decoders // by dataset

	mu      sync.Mutex
	clients map[string]*dialling // by name of the socket
	known   map[string]*Client   // by arena id
	missing map[string]time.Time // until when, by arena id
	closed  bool
}

// dialling is a connection, made or being made.
type dialling struct {
	done   chan struct{}
	client *Client
	err    error
	until  time.Time // when failed: not tried again before
}

// NewPeers returns Peers that have looked at nothing yet.
func NewPeers(cfg PeersConfig) *Peers {
	if cfg.Dir == "" {
		cfg.Dir = RuntimeDir()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Peers{cfg: cfg, clients: map[string]*dialling{}, known: map[string]*Client{}, missing: map[string]time.Time{}}
}

// Resolve implements arrowio.Resolver: it opens the batch in place, without a
// copy, and validates it in full unless PeersConfig.Trusted. Of ref's locations
// only those in shared memory are tried.
func (p *Peers) Resolve(ctx context.Context, ref arrowio.Ref) (arrow.RecordBatch, error) {
	var errs []error
	for _, loc := range ref.Locations {
		if loc.Tier != arrowio.Hot {
			continue
		}
		handle, err := arrowio.ParseSharedURI(loc.URI)
		if err != nil {
			continue // hot, but not in shared memory
		}
		rec, err := p.open(ctx, handle, ref)
		if err == nil {
			return rec, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("handoff: %s: %w: no location in shared memory", ref.ID(), arrowio.ErrGone)
	}
	return nil, errors.Join(errs...)
}

func (p *Peers) open(ctx context.Context, handle arrowio.SharedURI, ref arrowio.Ref) (arrow.RecordBatch, error) {
	l, err := p.Lease(ctx, handle)
	if err != nil {
		return nil, err
	}
	var opts []arrowio.DecodeOption
	if p.cfg.Trusted {
		opts = append(opts, arrowio.Trusted())
	}
	d := p.decoders.For(ref.Dataset)
	rec, err := l.BatchBy(d, opts...)
	if err != nil {
		return nil, err
	}
	got := d.Fingerprint(rec.Schema())
	// A ref without a fingerprint only names the batch.
	if ref.Fingerprint != "" && (got != ref.Fingerprint || rec.NumRows() != ref.Rows) {
		err := fmt.Errorf("handoff: %s at %s: %w: %d rows of schema %s, want %d of %s", ref.ID(), handle, arrowio.ErrCorrupt, rec.NumRows(), got, ref.Rows, ref.Fingerprint)
		rec.Release()
		return nil, err
	}
	return rec, nil
}

// Lease leases a slot from whichever process has its arena. The error wraps
// arrowio.ErrGone if none of this host does, or ErrQuota, or is ctx's.
func (p *Peers) Lease(ctx context.Context, handle arrowio.SharedURI) (Lease, error) {
	p.mu.Lock()
	c := p.known[handle.Arena]
	until, missing := p.missing[handle.Arena]
	p.mu.Unlock()
	if c != nil {
		l, err := c.Lease(ctx, handle)
		if err == nil || ctx.Err() != nil || c.Err() == nil {
			return l, err
		}
		p.forget(handle.Arena, c)
	}
	if missing && time.Now().Before(until) {
		return Lease{}, fmt.Errorf("handoff: %s: %w: its arena is in no process of this host", handle, arrowio.ErrGone)
	}
	return p.search(ctx, handle)
}

// search asks every process.
func (p *Peers) search(ctx context.Context, handle arrowio.SharedURI) (Lease, error) {
	dir, err := openDirectory(p.cfg.Dir, false)
	if err != nil {
		return Lease{}, errors.Join(arrowio.ErrGone, err)
	}
	names, err := dir.sockets()
	if err != nil {
		dir.close()
		return Lease{}, errors.Join(arrowio.ErrGone, err)
	}
	p.prune(names)
	type answer struct {
		c   *Client
		l   Lease
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	answers, limit := make(chan answer, len(names)), make(chan struct{}, maxParallel)
	var asked sync.WaitGroup
	for _, name := range names {
		asked.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			c, err := p.client(ctx, dir, name)
			a := answer{c: c, err: err}
			if err == nil && c != nil {
				a.l, a.err = c.Lease(ctx, handle)
			}
			answers <- a
		})
	}
	// Who is slow to answer delays nobody once somebody has the batch.
	go func() {
		asked.Wait()
		dir.close()
		cancel()
		close(answers)
	}()
	var errs []error
	for a := range answers {
		if a.err == nil && a.c != nil {
			p.learn(handle.Arena, a.c)
			cancel()
			go func() {
				for late := range answers {
					late.l.Release() // the zero Lease if there is none
				}
			}()
			return a.l, nil
		}
		if a.err != nil && !errors.Is(a.err, arrowio.ErrGone) {
			errs = append(errs, a.err)
		}
	}
	if len(errs) > 0 {
		return Lease{}, errors.Join(errs...)
	}
	p.learn(handle.Arena, nil)
	return Lease{}, fmt.Errorf("handoff: %s: %w: no process of this host has it", handle, arrowio.ErrGone)
}

// client returns the connection to a socket; nil if it is left out.
func (p *Peers) client(ctx context.Context, dir *directory, name string) (*Client, error) {
	if p.cfg.Except != "" && name == filepath.Base(p.cfg.Except) {
		return nil, nil
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, goneErr("closed")
	}
	d := p.clients[name]
	if d != nil && d.over() {
		delete(p.clients, name)
		d = nil
	}
	mine := d == nil
	if mine {
		d = &dialling{done: make(chan struct{})}
		p.clients[name] = d
	}
	p.mu.Unlock()
	if mine {
		// Others may wait for it, so that it does not end with who came first.
		client, err := dial(context.WithoutCancel(ctx), dir, name, p.cfg.Dial)
		p.mu.Lock()
		if p.closed && client != nil {
			_ = client.Close()
			client, err = nil, goneErr("closed")
		}
		again := retryAfter
		if errors.Is(err, os.ErrDeadlineExceeded) {
			again = silentRetryAfter
		}
		d.client, d.err, d.until = client, err, time.Now().Add(again)
		p.mu.Unlock()
		close(d.done)
		if err != nil {
			p.cfg.Logger.Debug("handoff: process not reached", "socket", name, "error", err)
		}
	}
	select {
	case <-d.done:
		return d.client, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// over reports whether it is to be dialled anew. Callers hold Peers.mu.
func (d *dialling) over() bool {
	select {
	case <-d.done:
	default:
		return false
	}
	if d.client == nil {
		return time.Now().After(d.until)
	}
	return d.client.Err() != nil
}

// prune forgets connections that have ended to sockets that are no more.
func (p *Peers) prune(names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, d := range p.clients {
		if d.over() && !slices.Contains(names, name) {
			delete(p.clients, name)
		}
	}
}

// learn remembers whose an arena is; nil: nobody's for now.
func (p *Peers) learn(arena string, c *Client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c == nil {
		if len(p.missing) >= maxMissing {
			clear(p.missing)
		}
		p.missing[arena] = time.Now().Add(retryAfter)
		return
	}
	if len(p.known) >= maxKnown {
		clear(p.known)
	}
	delete(p.missing, arena)
	p.known[arena] = c
}

func (p *Peers) forget(arena string, c *Client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known[arena] == c {
		delete(p.known, arena)
	}
}

// Close ends the connections; batches still held stay good until they are
// released. Repeatable.
func (p *Peers) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, d := range p.clients {
		if d.client != nil {
			_ = d.client.Close() // has no other outcome
		}
	}
	clear(p.known)
	return nil
}
