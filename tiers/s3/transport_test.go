package s3

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// writes notes the largest piece that is written.
type writes struct {
	net.Conn
	largest *atomic.Int64
}

func (w writes) Write(p []byte) (int, error) {
	w.largest.Store(max(w.largest.Load(), int64(len(p))))
	return w.Conn.Write(p)
}

func TestBodiesInMemoryAreNotCopied(t *testing.T) {
	var got atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		got.Store(n)
	}))
	defer srv.Close()
	var largest atomic.Int64
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return &conn{Conn: writes{c, &largest}, stall: time.Minute}, err
	}}
	defer transport.CloseIdleConnections()
	const size = 3<<20 + 7
	for range 2 { // a kept connection too
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, srv.URL, io.NopCloser(bytes.NewReader(make([]byte, size))))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = size
		res, err := (&wire{next: transport}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := res.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if got.Load() != size || largest.Swap(0) != writeBytes {
			t.Errorf("the server got %d bytes of %d, and not in pieces of %d", got.Load(), size, writeBytes)
		}
		if req.Header.Get("Expect") != "" {
			t.Error("the caller's request was changed")
		}
	}
}

// The same for what the store puts, through minio-go.
func TestPutsAreNotCopied(t *testing.T) {
	var got atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		if r.Method == http.MethodPut {
			got.Add(n)
		}
		w.Header().Set("ETag", `"e"`)
		if r.Method == http.MethodPost && r.URL.Query().Has("uploads") {
			_, _ = io.WriteString(w, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
		} else if r.Method == http.MethodPost {
			_, _ = io.WriteString(w, "<CompleteMultipartUploadResult><Bucket>bucket</Bucket><Key>key</Key><ETag>e</ETag></CompleteMultipartUploadResult>")
		}
	}))
	defer srv.Close()
	s, err := Open(t.Context(), Config{Endpoint: srv.URL, Bucket: "bucket", AccessKey: "a", SecretKey: "secret", NoProbe: true, PartBytes: smallestPart, Proxy: "none"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Close() // connections without the dialer below
	var largest atomic.Int64
	s.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return &conn{Conn: writes{c, &largest}, stall: time.Minute}, err
	}
	for name, size := range map[string]int{"in one request": 3<<20 + 7, "in parts": 2*smallestPart + 2<<20} {
		got.Store(0)
		if err := s.Put(t.Context(), "key", make([]byte, size)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got.Load() != int64(size) || largest.Swap(0) != writeBytes {
			t.Errorf("%s: the server got %d bytes of %d, and not in pieces of %d", name, got.Load(), size, writeBytes)
		}
	}
}

func TestConnWritesNoMoreThanItsRequest(t *testing.T) {
	var out bytes.Buffer
	n, err := strings.NewReader("too long").WriteTo(&atMost{&out, 3})
	if err == nil || n != 0 || out.Len() != 0 {
		t.Errorf("wrote %d bytes, %v", n, err)
	}
}

func TestConnGivesUpWhatDoesNotMove(t *testing.T) {
	a, b := net.Pipe() // nobody reads b
	defer func() { _ = b.Close() }()
	c := &conn{Conn: a, stall: 10 * time.Millisecond}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("written")
	}
}
