package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second
	idleTimeout      = time.Minute
	// writeBytes is how much one system call takes of a body. What it must be written
	// within is StallTimeout, so it is small enough for slow links.
	writeBytes = 1 << 20
)

func (s *settings) makeTransport() error {
	proxy := http.ProxyFromEnvironment
	switch s.Proxy {
	case "":
	case "none":
		proxy = nil
	default:
		u, err := url.Parse(s.Proxy)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5" {
			return errors.New("proxy is not a URL of http, https or socks5") // it may hold a password
		}
		proxy = http.ProxyURL(u)
	}
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	s.transport = &http.Transport{
		Proxy: proxy,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &conn{Conn: c, stall: s.StallTimeout}, nil
		},
		TLSClientConfig:       s.tls,
		TLSHandshakeTimeout:   handshakeTimeout,
		ResponseHeaderTimeout: max(s.StallTimeout, time.Millisecond),
		ExpectContinueTimeout: time.Second,
		MaxIdleConns:          256,
		MaxIdleConnsPerHost:   maxConcurrency,
		IdleConnTimeout:       idleTimeout,
		DisableCompression:    true, // an object of content-encoding gzip is what was put
	}
	return nil
}

// conn is a connection that gives up writes which do not move, and takes bodies
// that lie in memory from where they lie.
type conn struct {
	net.Conn
	stall time.Duration
}

func (c *conn) Write(p []byte) (int, error) {
	n := 0
	for {
		end := min(n+writeBytes, len(p))
		if err := c.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
			return n, err
		}
		m, err := c.Conn.Write(p[n:end])
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// ReadFrom implements io.ReaderFrom. net/http hands bodies over through an
// io.LimitedReader and would copy them in pieces of 32 KiB; one that can write
// itself, as bytes.Reader can, is spared the copy and most of the system calls.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	if limited, ok := r.(*io.LimitedReader); ok {
		if body, ok := limited.R.(io.WriterTo); ok {
			n, err := body.WriteTo(&atMost{c, limited.N})
			limited.N -= n
			return n, err
		}
	}
	return io.Copy(struct{ io.Writer }{c}, r)
}

// atMost refuses to write more than a request's length.
type atMost struct {
	w    io.Writer
	left int64
}

func (a *atMost) Write(p []byte) (int, error) {
	if int64(len(p)) > a.left {
		return 0, fmt.Errorf("s3: %d bytes more than the request's length", int64(len(p))-a.left)
	}
	n, err := a.w.Write(p)
	a.left -= int64(n)
	return n, err
}

// expectBytes is from how large a body on a request asks before it sends it. An
// endpoint that refuses (no permission, object exists, overload) then says so, rather than
// reset a connection that is being written to; and the body is not sent in vain.
const expectBytes = 1 << 20

// bodyKey is the context's key of a request's body, a []byte. minio-go hands bodies
// over in a reader of its own, which hides that they can write themselves.
type bodyKey struct{}

func withBody(ctx context.Context, body []byte) context.Context {
	return context.WithValue(ctx, bodyKey{}, body)
}

// wire is what requests go through. It notes how far the endpoint's clock is from
// ours.
type wire struct {
	next http.RoundTripper
	skew atomic.Int64 // nanoseconds, theirs minus ours
	seen atomic.Bool
}

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.ContentLength >= expectBytes {
		asking := *req // a round tripper must leave the request as it is
		asking.Header = req.Header.Clone()
		asking.Header.Set("Expect", "100-continue") // not among the signed headers
		if body, ok := req.Context().Value(bodyKey{}).([]byte); ok && int64(len(body)) == req.ContentLength {
			asking.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
			asking.Body, _ = asking.GetBody() // never fails
			if err := req.Body.Close(); err != nil {
				return nil, err
			}
		}
		req = &asking
	}
	begun := time.Now()
	res, err := w.next.RoundTrip(req)
	if err == nil {
		if date, err := http.ParseTime(res.Header.Get("Date")); err == nil {
			// Date has whole seconds: its middle, against the middle of the round trip.
			ours := begun.Add(time.Since(begun) / 2)
			w.skew.Store(int64(date.Add(time.Second / 2).Sub(ours)))
			w.seen.Store(true)
		}
	}
	return res, err
}
