package s3_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/internal/minioserver"
	"github.com/stokehold/stokehold/internal/miniotest"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/s3"
)

// faults is a proxy in front of a real server. What is set while a request passes
// happens to it.
type faults struct {
	*httptest.Server
	mu       sync.Mutex
	request  func(w http.ResponseWriter, r *http.Request) (handled bool)
	response func(res *http.Response)
	requests atomic.Int64
}

func inFront(t *testing.T, m *minioserver.Server) *faults {
	t.Helper()
	u, err := url.Parse(m.URL)
	if err != nil {
		t.Fatal(err)
	}
	f := &faults{}
	proxy := &httputil.ReverseProxy{
		// The client signs the host that it speaks to, which is this one.
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = u.Scheme, u.Host },
		ModifyResponse: func(res *http.Response) error {
			f.mu.Lock()
			change := f.response
			f.mu.Unlock()
			if change != nil {
				change(res)
			}
			return nil
		},
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		FlushInterval: -1,
	}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.requests.Add(1)
		f.mu.Lock()
		handle := f.request
		f.mu.Unlock()
		if handle == nil || !handle(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *faults) onRequest(do func(http.ResponseWriter, *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.request = do
}

func (f *faults) onResponse(do func(*http.Response)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.response = do
}

func (f *faults) off() { f.onRequest(nil); f.onResponse(nil) }

// cut ends the client's connection after n bytes of the body have been read.
func cut(w http.ResponseWriter, r *http.Request, n int64) bool {
	_, _ = io.CopyN(io.Discard, r.Body, n) // whatever came
	panic(http.ErrAbortHandler)
}

func isPart(r *http.Request) bool {
	return r.Method == http.MethodPut && r.URL.Query().Has("partNumber")
}

func isGet(res *http.Response) bool {
	return res.Request.Method == http.MethodGet && !res.Request.URL.Query().Has("list-type") && res.StatusCode < 300
}

// broken is a body that ends or changes on its way.
type broken struct {
	io.ReadCloser
	left  int // bytes until it happens
	event func(p []byte) (int, error)
}

func (b *broken) Read(p []byte) (int, error) {
	if b.left == 0 {
		return b.event(p)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

func TestFaultsOnTheWay(t *testing.T) {
	m := miniotest.Start(t)
	f := inFront(t, m)
	cfg := onMinIO(m, "faults")
	cfg.Endpoint, cfg.StallTimeout, cfg.Retries = f.URL, time.Second, 3
	s := open(t, cfg)
	ctx := t.Context()
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB: four parts
	clean := func(t *testing.T) {
		t.Helper()
		f.off()
		for o, err := range s.List(ctx, "") {
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Delete(ctx, o.Key); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := s.SweepPartial(ctx, 0); err != nil || n != 0 {
			t.Errorf("uploads left behind: %d, %v", n, err)
		}
	}

	t.Run("cut once in a part", func(t *testing.T) {
		var once sync.Once
		f.onRequest(func(w http.ResponseWriter, r *http.Request) bool {
			if isPart(r) {
				once.Do(func() { cut(w, r, 1<<20) })
			}
			return false
		})
		if err := s.Put(ctx, "large", large); err != nil {
			t.Fatal(err)
		}
		f.off()
		if got, err := s.Get(ctx, "large"); err != nil || !bytes.Equal(got, large) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		clean(t)
	})

	t.Run("cut in every part", func(t *testing.T) {
		f.onRequest(func(w http.ResponseWriter, r *http.Request) bool { return isPart(r) && cut(w, r, 1<<20) })
		if err := s.Put(ctx, "large", large); !errors.Is(err, s3.ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
		f.off()
		if _, err := s.Get(ctx, "large"); !errors.Is(err, tiers.ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		}
		clean(t) // the parts were aborted, so nothing is swept
	})

	t.Run("cancelled in a part", func(t *testing.T) {
		short, cancel := context.WithCancel(ctx)
		defer cancel()
		f.onRequest(func(_ http.ResponseWriter, r *http.Request) bool {
			if isPart(r) && r.URL.Query().Get("partNumber") == "3" {
				cancel()
			}
			return false
		})
		if err := s.Put(short, "large", large); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
		clean(t)
	})

	t.Run("no abort reaches the server", func(t *testing.T) {
		f.onRequest(func(w http.ResponseWriter, r *http.Request) bool {
			return (isPart(r) || r.Method == http.MethodDelete) && cut(w, r, 0)
		})
		if err := s.Put(ctx, "large", large); !errors.Is(err, s3.ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
		f.off()
		if n, err := s.SweepPartial(ctx, time.Hour); err != nil || n != 0 {
			t.Errorf("swept %d uploads within their grace, %v", n, err)
		}
		if n, err := s.SweepPartial(ctx, 0); err != nil || n != 1 {
			t.Errorf("swept %d uploads, %v; want 1", n, err)
		}
		clean(t)
	})

	t.Run("answer to the completion lost", func(t *testing.T) {
		var once sync.Once
		f.onResponse(func(res *http.Response) {
			if res.Request.Method == http.MethodPost && res.Request.URL.Query().Has("uploadId") {
				once.Do(func() { panic(http.ErrAbortHandler) })
			}
		})
		if err := s.Put(ctx, "large", large); err != nil {
			t.Errorf("it has arrived, and: %v", err)
		}
		f.off()
		if got, err := s.Get(ctx, "large"); err != nil || !bytes.Equal(got, large) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		clean(t)
	})

	slowDown := func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")
		return true
	}
	t.Run("a storm of 503 that passes", func(t *testing.T) {
		var n atomic.Int64
		f.onRequest(func(w http.ResponseWriter, r *http.Request) bool { return n.Add(1)%2 == 1 && slowDown(w, r) })
		if err := s.Put(ctx, "small", []byte("x")); err != nil {
			t.Error(err)
		}
		if got, err := s.Get(ctx, "small"); err != nil || string(got) != "x" {
			t.Errorf("got %q, %v", got, err)
		}
		clean(t)
	})
	t.Run("a storm of 503 that stays", func(t *testing.T) {
		f.onRequest(slowDown)
		before, begun := f.requests.Load(), time.Now()
		if err := s.Put(ctx, "small", []byte("x")); !errors.Is(err, s3.ErrUnavailable) || !strings.Contains(err.Error(), "overloaded") {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
		if n := f.requests.Load() - before; n != 3 {
			t.Errorf("%d requests, want the 3 that are configured", n)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("took %s", took)
		}
		clean(t)
	})

	if err := s.Put(ctx, "read", large); err != nil {
		t.Fatal(err)
	}
	get := func(t *testing.T, want error) {
		t.Helper()
		got, err := s.Get(ctx, "read")
		if want == nil && (err != nil || !bytes.Equal(got, large)) || want != nil && !errors.Is(err, want) {
			t.Errorf("got %d bytes, %v; want %v", len(got), err, want)
		}
	}
	breakAt := func(at int, event func(p []byte, rc io.ReadCloser) (int, error), every bool) {
		var n atomic.Int64
		f.onResponse(func(res *http.Response) {
			if isGet(res) && (n.Add(1) == 1 || every) {
				rc := res.Body
				res.Body = &broken{ReadCloser: rc, left: at, event: func(p []byte) (int, error) { return event(p, rc) }}
			}
		})
	}
	truncated := func([]byte, io.ReadCloser) (int, error) { return 0, io.ErrUnexpectedEOF }
	t.Run("truncated once", func(t *testing.T) {
		breakAt(5<<20+1, truncated, false)
		get(t, nil)
	})
	t.Run("truncated again and again, but it moves", func(t *testing.T) {
		breakAt(3<<20, truncated, true)
		get(t, nil)
	})
	t.Run("truncated each time at the same place", func(t *testing.T) {
		breakAt(0, truncated, true)
		get(t, s3.ErrUnavailable)
	})
	flip := func() func([]byte, io.ReadCloser) (int, error) {
		return func(p []byte, rc io.ReadCloser) (int, error) {
			n, err := rc.Read(p)
			if n > 0 {
				p[n/2] ^= 4
			}
			return n, err
		}
	}
	t.Run("wrong content once", func(t *testing.T) {
		breakAt(1<<20, flip(), false)
		get(t, nil)
	})
	t.Run("wrong content each time", func(t *testing.T) {
		breakAt(1<<20, flip(), true)
		get(t, arrowio.ErrCorrupt)
	})
	drip := func(p []byte, rc io.ReadCloser) (int, error) {
		time.Sleep(20 * time.Millisecond) //nolint:forbidigo // this is the fault
		return rc.Read(p[:1])
	}
	t.Run("dripping once", func(t *testing.T) {
		breakAt(2<<20, drip, false)
		get(t, nil)
	})
	t.Run("dripping always", func(t *testing.T) {
		begun := time.Now()
		breakAt(100, drip, true)
		get(t, s3.ErrUnavailable)
		if took := time.Since(begun); took > 30*time.Second {
			t.Errorf("took %s", took)
		}
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		if _, err := s.Get(short, "read"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a deadline: %v", err)
		}
	})
	t.Run("an upload that nobody takes", func(t *testing.T) {
		given := make(chan struct{}) // up by the client
		defer close(given)
		f.onRequest(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut {
				return false
			}
			_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
			<-given
			panic(http.ErrAbortHandler)
		})
		if err := s.Put(ctx, "large", large[:4<<20]); !errors.Is(err, s3.ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
	})
	t.Run("ranges that break off", func(t *testing.T) {
		breakAt(2<<20, truncated, false)
		dst := make([]byte, 8<<20)
		if n, err := s.ReadRange(ctx, "read", 777, dst); err != nil || !bytes.Equal(dst, large[777:777+len(dst)]) {
			t.Errorf("got %d bytes, %v", n, err)
		}
	})
	clean(t)
}

// An endpoint whose conditions race or do nothing, and which compares no checksum,
// is found out.
func TestProbeFindsLies(t *testing.T) {
	m := miniotest.Start(t)
	f := inFront(t, m)
	cfg := onMinIO(m, "lies")
	honest := open(t, cfg).Guarantees()
	if !honest.ConditionalPut || !honest.ConditionalMultipart || !honest.ReadAfterWrite || !honest.ListAfterWrite || len(honest.Checksums) != 2 || honest.Syncs {
		t.Errorf("MinIO itself: %+v", honest)
	}
	cfg.Endpoint = f.URL
	for _, c := range []struct {
		name     string
		request  func(http.ResponseWriter, *http.Request) bool
		response func(*http.Response)
		lie      func(tiers.Guarantees) bool
	}{
		{"a clock two minutes off", nil, func(res *http.Response) {
			res.Header.Set("Date", time.Now().Add(2*time.Minute).UTC().Format(http.TimeFormat))
		}, func(g tiers.Guarantees) bool { return g.ClockSkew < 110*time.Second || g.ClockSkew > 130*time.Second }},
		{"acknowledges conditions it has not met", nil, func(res *http.Response) {
			if res.StatusCode == http.StatusPreconditionFailed {
				res.StatusCode, res.Body, res.ContentLength = http.StatusOK, http.NoBody, 0
				res.Header.Set("Content-Length", "0")
			}
		}, func(g tiers.Guarantees) bool { return g.ConditionalPut || g.MostWinners < 2 }},
		{"acknowledges what does not match its checksum", nil, func(res *http.Response) {
			if res.StatusCode == http.StatusBadRequest {
				res.StatusCode, res.Body, res.ContentLength = http.StatusOK, http.NoBody, 0
				res.Header.Set("Content-Length", "0")
			}
		}, func(g tiers.Guarantees) bool { return len(g.Checksums) > 0 }},
		{"forgets checksums", nil, func(res *http.Response) {
			res.Header.Del("X-Amz-Checksum-Crc64nvme")
		}, func(g tiers.Guarantees) bool { return strings.Contains(strings.Join(g.Checksums, " "), "CRC64NVME") }},
		{"lists late", func(w http.ResponseWriter, r *http.Request) bool {
			if !r.URL.Query().Has("list-type") {
				return false
			}
			_, _ = io.WriteString(w, `<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>lies</Name><IsTruncated>false</IsTruncated></ListBucketResult>`)
			return true
		}, nil, func(g tiers.Guarantees) bool { return g.ListAfterWrite }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.onRequest(c.request)
			f.onResponse(c.response)
			defer f.off()
			s, err := s3.Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if g := s.Guarantees(); c.lie(g) {
				t.Errorf("not found out: %+v", g)
			}
		})
	}
	t.Run("nothing is left", func(t *testing.T) {
		cfg.Endpoint = m.URL
		s := open(t, cfg)
		for o, err := range s.List(t.Context(), "") {
			if err != nil {
				t.Fatal(err)
			}
			t.Errorf("left behind: %s", o.Key)
		}
	})
}

func TestSkewedClockIsTyped(t *testing.T) {
	s := endpoint(t, refuse(http.StatusForbidden, "RequestTimeTooSkewed"))
	if err := s.Put(t.Context(), "k", []byte("x")); !errors.Is(err, s3.ErrClock) || !strings.Contains(err.Error(), "NTP") {
		t.Errorf("got %v", err)
	}
}

// The store's time is the endpoint's: a wrong clock here deletes nothing early.
func TestTimeIsTheEndpoints(t *testing.T) {
	const off = -26 * time.Hour
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", strconv.Itoa(0))
	}))
	defer srv.Close()
	s := open(t, config(srv.URL))
	now, err := s.Now(t.Context())
	if d := time.Until(now) - off; err != nil || d < -2*time.Second || d > 2*time.Second {
		t.Errorf("%s from the endpoint's, %v", d, err)
	}
}
