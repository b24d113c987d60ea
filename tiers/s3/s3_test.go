package s3_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/s3"
)

// The driver's conformance is proved against a real gateway in the cmd module,
// whose dependencies the library does not share. Here is what a sound endpoint
// does not show.

func config(endpoint string) s3.Config {
	return s3.Config{Endpoint: endpoint, Bucket: "stokehold", AccessKey: "key-id", SecretKey: "hush-hush", SessionToken: "also-hush", NoProbe: true}
}

func TestOpenNamesEveryFault(t *testing.T) {
	_, err := s3.Open(t.Context(), s3.Config{
		Endpoint: "ftp://x", MaxObjectBytes: -1, SecretKey: "hush", SessionToken: "hush", Addressing: "dns",
		CAFile: "/no/such/ca", ClientCert: "/no/such/cert", Proxy: "gopher://user:hush@h", Encryption: "rot13",
		CustomerKey: []byte("hush"), KMSKeyID: "k", StorageClass: "cold ice", PartBytes: 1, Concurrency: 1000,
		Retries: -1, StallTimeout: -1, STSEndpoint: "sts",
	})
	if !errors.Is(err, s3.ErrConfig) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{
		"endpoint", "bucket", "access key", "session token", "MaxObjectBytes", "addressing", "CA file", "client certificate", "proxy",
		"encryption", "customer key", "KMS key", "storage class", "PartBytes", "Concurrency", "Retries", "StallTimeout", "STS endpoint",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name the %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "hush") {
		t.Errorf("secret in %q", err)
	}
}

func TestEndpointDownIsOneClearError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, err = s3.Open(t.Context(), config("http://"+addr))
	if !errors.Is(err, s3.ErrUnavailable) || !strings.Contains(err.Error(), addr) {
		t.Errorf("got %v", err)
	}
	if strings.Contains(fmt.Sprint(err), "\n") {
		t.Errorf("more than one line: %q", err)
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("took %s", took)
	}
}

// endpoint answers the bucket check, and everything else as h does.
func endpoint(t *testing.T, h http.HandlerFunc) *s3.Store {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stokehold/" || r.URL.Path == "/stokehold" {
			return
		}
		h(w, r)
	}))
	t.Cleanup(srv.Close)
	s, err := s3.Open(t.Context(), config(srv.URL))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func refuse(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>because</Message></Error>", code)
	}
}

func TestRefusalsAreTyped(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   error
	}{
		{404, "NoSuchKey", tiers.ErrNotFound},
		{404, "NoSuchBucket", s3.ErrBucket},
		{403, "AccessDenied", s3.ErrAccess},
		{403, "SignatureDoesNotMatch", s3.ErrAccess},
		{501, "NotImplemented", s3.ErrUnavailable},
	} {
		t.Run(c.code, func(t *testing.T) {
			s := endpoint(t, refuse(c.status, c.code))
			err := s.Put(t.Context(), "k", []byte("x"))
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if strings.Contains(fmt.Sprint(err), "hush") {
				t.Errorf("secret in %q", err)
			}
		})
	}
}

func TestDamagedObjectIsCorrupt(t *testing.T) {
	s := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"e"`)
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("X-Amz-Meta-Stokehold-Sha256", strings.Repeat("0", 64))
		w.Header().Set("Content-Length", "5")
		if r.Method == http.MethodGet {
			_, _ = w.Write([]byte("wrong"))
		}
	})
	if _, err := s.Get(t.Context(), "k"); !errors.Is(err, arrowio.ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestShortObjectIsAnError(t *testing.T) {
	s := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"e"`)
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", "100")
		if r.Method == http.MethodGet {
			_, _ = w.Write([]byte("cut")) // and the connection closes
		}
	})
	if body, err := s.Get(t.Context(), "k"); err == nil {
		t.Errorf("got %d bytes", len(body))
	}
}

func TestLimits(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"e"`)
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", "1000")
	}))
	defer srv.Close()
	cfg := config(srv.URL)
	cfg.MaxObjectBytes = 10
	s, err := s3.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "k", make([]byte, 11)); !errors.Is(err, tiers.ErrTooLarge) {
		t.Errorf("put: %v", err)
	}
	if _, err := s.Get(t.Context(), "k"); !errors.Is(err, tiers.ErrTooLarge) {
		t.Errorf("get: %v", err)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	cfg := config("http://h:1")
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).LogAttrs(context.Background(), slog.LevelInfo, "x", slog.Any("cfg", cfg))
	for _, s := range []string{fmt.Sprint(cfg), fmt.Sprintf("%v %+v %#v %s", cfg, cfg, &cfg, cfg), log.String()} {
		if strings.Contains(s, "hush") || strings.Contains(s, "key-id") {
			t.Errorf("secret in %q", s)
		}
	}
}
