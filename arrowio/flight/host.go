package flight

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/stokehold/stokehold/arrowio"
)

const (
	minDown = 250 * time.Millisecond
	maxDown = 15 * time.Second
)

// errSilent is why a wait for a host ended.
var errSilent = fmt.Errorf("%w: it has not answered in time", ErrDown)

// host is the connections to one other host.
type host struct {
	uri   arrowio.FlightURI
	conns []*grpc.ClientConn // each connects when it is first used
	next  atomic.Uint32

	users int       // guarded by Client.mu
	used  time.Time // likewise

	mu    sync.Mutex
	fails int
	until time.Time // not asked before
}

// host returns the host of a URI, and leave to be called when done with it. The
// error wraps arrowio.ErrURI, ErrRefused or ErrClosed.
func (c *Client) host(s string) (_ *host, leave func(), err error) {
	uri, err := arrowio.ParseFlightURI(s)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case uri.TLS || c.cfg.Insecure:
	case c.cfg.TLS != nil:
		return nil, nil, fmt.Errorf("%w: the URI is without TLS, and this client is set up for TLS", ErrRefused)
	case c.cfg.Token != "" && !loopback(uri.Addr):
		return nil, nil, fmt.Errorf("%w: the token would travel in the clear: use a grpc+tls host", ErrRefused)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, ErrClosed
	}
	h := c.hosts[uri]
	if h == nil {
		if err := c.makeRoom(); err != nil {
			return nil, nil, err
		}
		if h, err = c.connect(uri); err != nil {
			return nil, nil, err
		}
		c.hosts[uri] = h
	}
	h.users++
	return h, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		h.users--
		h.used = time.Now()
	}, nil
}

// makeRoom forgets the host that has been idle longest if there are too many.
// Callers hold mu.
func (c *Client) makeRoom() error {
	if len(c.hosts) < c.cfg.MaxHosts {
		return nil
	}
	var idle *host
	for _, h := range c.hosts {
		if h.users == 0 && (idle == nil || h.used.Before(idle.used)) {
			idle = h
		}
	}
	if idle == nil {
		return fmt.Errorf("%w: %d hosts are being read from, which is the limit", ErrDown, len(c.hosts))
	}
	delete(c.hosts, idle.uri)
	return idle.close()
}

func (c *Client) connect(uri arrowio.FlightURI) (*host, error) {
	opts := []grpc.DialOption{
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(newCodec()),
			grpc.MaxCallRecvMsgSize(int(c.cfg.MaxMessageBytes)+maxMetaBytes+arrowio.MaxMetadataBytes),
		),
		grpc.WithInitialWindowSize(windowBytes), grpc.WithInitialConnWindowSize(connWindowBytes),
		grpc.WithReadBufferSize(256 << 10), grpc.WithMaxHeaderListSize(maxHeaderBytes),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: c.cfg.Timeout,
		}),
		// A host that is gone without a word: TCP alone would take minutes to tell.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: c.cfg.Timeout}),
		// The hosts are peers: a proxy of the environment's is not for them, nor is a
		// service configuration out of DNS.
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
	}
	creds := insecure.NewCredentials()
	if uri.TLS {
		t := &tls.Config{MinVersion: tls.VersionTLS12}
		if c.cfg.TLS != nil {
			t = c.cfg.TLS.Clone()
			t.MinVersion = max(t.MinVersion, tls.VersionTLS12)
		}
		creds = credentials.NewTLS(t)
	}
	opts = append(opts, grpc.WithTransportCredentials(creds))
	if c.cfg.Token != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(c.cfg.Token))
	}
	h := &host{uri: uri}
	for range c.cfg.Streams {
		conn, err := grpc.NewClient("dns:///"+uri.Addr, opts...)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%w: %w", ErrDown, err), h.close())
		}
		h.conns = append(h.conns, conn)
	}
	return h, nil
}

// conn spreads calls over the connections.
func (h *host) conn() *grpc.ClientConn {
	return h.conns[int(h.next.Add(1)-1)%len(h.conns)]
}

func (h *host) close() error {
	var errs []error
	for _, conn := range h.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// down reports whether the host is not to be asked now, and for how long.
func (h *host) down() (time.Duration, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	wait := time.Until(h.until)
	return wait, wait > 0
}

// report notes how a call went. Only a host that does not answer, or does not
// want us, is left out for a while; one without a batch may have the next.
func (h *host) report(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !errors.Is(err, ErrDown) && !errors.Is(err, ErrRefused) {
		h.fails, h.until = 0, time.Time{}
		return
	}
	wait := min(minDown<<min(h.fails, 16), maxDown)
	h.fails++
	h.until = time.Now().Add(wait/2 + rand.N(wait/2+1))
}

// pause waits a while that grows with the number of failures in a row.
func pause(ctx context.Context, fails int) error {
	wait := min(20*time.Millisecond<<min(fails, 16), 2*time.Second)
	t := time.NewTimer(wait/2 + rand.N(wait/2+1))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
