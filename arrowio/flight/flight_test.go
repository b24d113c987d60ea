package flight_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/flight"
)

func TestResolve(t *testing.T) {
	s := newShelf(t, 3, 1000)
	srv := serve(t, flight.ServerConfig{Source: s})
	c := dial(t, flight.Config{})
	for seq := range uint64(3) {
		rec, err := c.Resolve(t.Context(), s.ref(t, seq, srv.URI()))
		if err != nil {
			t.Fatal(err)
		}
		s.same(t, seq, rec)
		rec.Release()
	}
	l, err := arrowio.Inspect(s.frames[0])
	if err != nil {
		t.Fatal(err)
	}
	// Copied once on either side.
	if st := c.Stats(); st.Batches != 3 || st.CopiedBytes != 3*l.BodyBytes || st.Hosts != 1 || st.Corrupt != 0 {
		t.Errorf("%+v, a body has %d bytes", st, l.BodyBytes)
	}
	if st := srv.Stats(); st.Batches != 3 || st.CopiedBytes != 3*l.BodyBytes || st.Refused != 0 {
		t.Errorf("%+v, a body has %d bytes", st, l.BodyBytes)
	}
	eventually(t, "all frames are given back", func() bool { return s.lent.Load() == 0 && srv.Stats().PendingBytes == 0 })
}

func TestResolveOfASourceThatOnlyResolves(t *testing.T) {
	s := newShelf(t, 1, 100)
	srv := serve(t, flight.ServerConfig{Source: arrowio.ResolverFunc(s.Resolve)})
	c := dial(t, flight.Config{})
	rec, err := c.Resolve(t.Context(), s.ref(t, 0, srv.URI()))
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Release()
	s.same(t, 0, rec)
	if _, err := c.Describe(t.Context(), srv.URI().String(), dataset); !errors.Is(err, flight.ErrRefused) {
		t.Errorf("a source that describes nothing: %v", err)
	}
	if s.lent.Load() != 0 {
		t.Error("the batch was not given back")
	}
}

func TestResolveErrors(t *testing.T) {
	s := newShelf(t, 2, 10)
	srv := serve(t, flight.ServerConfig{Source: s})
	good := s.ref(t, 0, srv.URI())
	change := func(f func(*arrowio.Ref)) arrowio.Ref {
		r := s.ref(t, 0, srv.URI())
		f(&r)
		return r
	}
	for _, c := range []struct {
		name string
		ref  arrowio.Ref
		cfg  flight.Config
		want error
	}{
		{"no host", change(func(r *arrowio.Ref) { r.Locations = r.Locations[1:] }), flight.Config{}, arrowio.ErrGone},
		{"host is this process", good, flight.Config{Self: []string{srv.URI().String()}}, arrowio.ErrGone},
		{"no such batch", change(func(r *arrowio.Ref) { r.Sequence = 9 }), flight.Config{}, arrowio.ErrGone},
		{"no such dataset", change(func(r *arrowio.Ref) { r.Dataset = "x" }), flight.Config{}, arrowio.ErrGone},
		{"last sequence there can be", change(func(r *arrowio.Ref) { r.Sequence = ^uint64(0) }), flight.Config{}, arrowio.ErrGone},
		{"another checksum", change(func(r *arrowio.Ref) { r.Locations[1].SHA256 = strings.Repeat("0", 64) }), flight.Config{}, arrowio.ErrCorrupt},
		{"another number of rows", change(func(r *arrowio.Ref) { r.Rows++ }), flight.Config{}, arrowio.ErrCorrupt},
		{"another schema", change(func(r *arrowio.Ref) { r.Fingerprint = strings.Repeat("0", 32) }), flight.Config{}, flight.ErrSchema},
		{"fingerprint is none", change(func(r *arrowio.Ref) { r.Fingerprint = "x" }), flight.Config{}, flight.ErrTicket},
		{"nobody there", change(func(r *arrowio.Ref) { r.Locations[0].URI = closedPort(t) }), flight.Config{}, flight.ErrDown},
		{"malformed host", change(func(r *arrowio.Ref) { r.Locations[0].URI = "grpc+tcp://x" }), flight.Config{}, arrowio.ErrURI},
		{"wrong token", good, flight.Config{Token: "another-another-another"}, flight.ErrRefused},
		{"over the client's limit", good, flight.Config{MaxMessageBytes: 100}, flight.ErrTooLarge},
		{"token would go in the clear", change(func(r *arrowio.Ref) { r.Locations[0].URI = "grpc+tcp://192.0.2.1:1" }), flight.Config{}, flight.ErrRefused},
		{"TLS would be left out", good, flight.Config{TLS: &tls.Config{}}, flight.ErrRefused},
		{"TLS where there is none", change(func(r *arrowio.Ref) { r.Locations[0].URI = "grpc+tls://" + srv.URI().Addr }), flight.Config{}, flight.ErrDown},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, c.cfg)
			rec, err := client.Resolve(t.Context(), c.ref)
			if !errors.Is(err, c.want) {
				t.Errorf("%v, %v; want %v", rec, err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), string(secret)) {
				t.Errorf("the token is in %v", err)
			}
		})
	}
	eventually(t, "all frames are given back", func() bool { return s.lent.Load() == 0 })
}

// closedPort is the URI of a port of this machine where nobody listens.
func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return arrowio.FlightURI{Addr: l.Addr().String()}.String()
}

func TestSeveralHostsAreAskedInTurn(t *testing.T) {
	s := newShelf(t, 1, 10)
	empty := serve(t, flight.ServerConfig{Source: &shelf{}})
	full := serve(t, flight.ServerConfig{Source: s})
	ref := s.ref(t, 0, full.URI())
	ref.Locations = append([]arrowio.Location{
		{Tier: arrowio.Hot, URI: closedPort(t), Codec: "arrow-ipc"}, {Tier: arrowio.Hot, URI: empty.URI().String(), Codec: "arrow-ipc"},
	}, ref.Locations...)
	c := dial(t, flight.Config{})
	rec, err := c.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Release()
	s.same(t, 0, rec)
}

func TestDeadHostIsLeftOutForAWhile(t *testing.T) {
	s := newShelf(t, 1, 10)
	ref := s.ref(t, 0, arrowio.FlightURI{Addr: "127.0.0.1:1"})
	ref.Locations[0].URI = closedPort(t)
	c := dial(t, flight.Config{})
	for range 3 {
		if _, err := c.Resolve(t.Context(), ref); !errors.Is(err, flight.ErrDown) {
			t.Fatal(err)
		}
	}
	if st := c.Stats(); st.Skipped == 0 {
		t.Errorf("it was asked each time: %+v", st)
	}
}

func TestSilentHostCostsItsTimeoutAlone(t *testing.T) {
	// A host that takes connections and says nothing.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	s := newShelf(t, 1, 10)
	c := dial(t, flight.Config{Timeout: 50 * time.Millisecond})
	if _, err := c.Resolve(t.Context(), s.ref(t, 0, arrowio.FlightURI{Addr: l.Addr().String()})); !errors.Is(err, flight.ErrDown) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	c = dial(t, flight.Config{})
	if _, err := c.Resolve(ctx, s.ref(t, 0, arrowio.FlightURI{Addr: l.Addr().String()})); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's deadline: %v", err)
	}
}

func TestSlowServerMeetsTheDeadline(t *testing.T) {
	s := newShelf(t, 1, 10)
	s.setFail(func(ctx context.Context, _ uint64) error { <-ctx.Done(); return ctx.Err() })
	srv := serve(t, flight.ServerConfig{Source: s})
	c := dial(t, flight.Config{Timeout: 50 * time.Millisecond})
	if _, err := c.Resolve(t.Context(), s.ref(t, 0, srv.URI())); !errors.Is(err, flight.ErrDown) {
		t.Error(err)
	}
}

func TestBatchOverTheServersLimit(t *testing.T) {
	s := newShelf(t, 1, 10_000)
	srv := serve(t, flight.ServerConfig{Source: s, MaxMessageBytes: 1000})
	c := dial(t, flight.Config{})
	if _, err := c.Resolve(t.Context(), s.ref(t, 0, srv.URI())); !errors.Is(err, flight.ErrTooLarge) {
		t.Error(err)
	}
	eventually(t, "the frame is given back", func() bool { return s.lent.Load() == 0 })
}

func TestTooManyStreams(t *testing.T) {
	s := newShelf(t, 2, 10)
	hold, held := make(chan struct{}), make(chan struct{})
	s.setFail(func(ctx context.Context, seq uint64) error {
		if seq == 0 {
			close(held)
			select {
			case <-hold:
			case <-ctx.Done():
			}
		}
		return nil
	})
	srv := serve(t, flight.ServerConfig{Source: s, MaxStreams: 1})
	c := dial(t, flight.Config{})
	done := make(chan error, 1)
	go func() {
		rec, err := c.Resolve(t.Context(), s.ref(t, 0, srv.URI()))
		if err == nil {
			rec.Release()
		}
		done <- err
	}()
	<-held
	if _, err := dial(t, flight.Config{}).Resolve(t.Context(), s.ref(t, 1, srv.URI())); !errors.Is(err, flight.ErrDown) {
		t.Errorf("one stream too many: %v", err)
	}
	if srv.Stats().Refused != 1 {
		t.Errorf("%+v", srv.Stats())
	}
	// A Range waits for its turn.
	got := make(chan int, 1)
	go func() {
		n := 0
		for _, err := range dial(t, flight.Config{}).Range(t.Context(), flight.Request{URI: srv.URI().String(), Dataset: dataset, From: 1, To: 2}) {
			if err != nil {
				t.Error(err)
				break
			}
			n++
		}
		got <- n
	}()
	eventually(t, "the range was refused", func() bool { return srv.Stats().Refused >= 2 })
	close(hold)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := <-got; n != 1 {
		t.Errorf("%d batches", n)
	}
}

func TestTLSAndTokens(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	s := newShelf(t, 1, 100)
	server := &tls.Config{Certificates: []tls.Certificate{ca.issue()}}
	mutual := &tls.Config{Certificates: []tls.Certificate{ca.issue()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool}
	trust := &tls.Config{RootCAs: ca.pool}
	const none = flight.Token("")
	for _, c := range []struct {
		name   string
		server *tls.Config
		token  flight.Token
		client *tls.Config
		shown  flight.Token
		want   error
	}{
		{"plain, right token", nil, secret, nil, secret, nil},
		{"plain, wrong token", nil, secret, nil, secret + "x", flight.ErrRefused},
		{"plain, no token", nil, secret, nil, none, flight.ErrRefused},
		{"TLS, right token", server, secret, trust, secret, nil},
		{"TLS, wrong token", server, secret, trust, "another-another-another", flight.ErrRefused},
		{"TLS, no token", server, secret, trust, none, flight.ErrRefused},
		{"TLS, another authority", server, secret, &tls.Config{RootCAs: other.pool}, secret, flight.ErrDown},
		{"TLS, the system's roots", server, secret, nil, secret, flight.ErrDown},
		{"TLS, other name", server, secret, &tls.Config{RootCAs: ca.pool, ServerName: "elsewhere"}, secret, flight.ErrDown},
		{"certificates", mutual, none, &tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{ca.issue()}}, none, nil},
		{"no certificate", mutual, none, trust, none, flight.ErrDown},
		{"another authority's certificate", mutual, none, &tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{other.issue()}}, none, flight.ErrDown},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv, err := flight.Serve(t.Context(), flight.ServerConfig{Addr: "127.0.0.1:0", Source: s, TLS: c.server, Token: c.token})
			if err != nil {
				t.Fatal(err)
			}
			defer stop(t, srv, 5*time.Second)
			client, err := flight.Dial(flight.Config{TLS: c.client, Token: c.shown, Timeout: 20 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			rec, err := client.Resolve(t.Context(), s.ref(t, 0, srv.URI()))
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if err == nil {
				s.same(t, 0, rec)
				rec.Release()
			}
			if c.want != nil {
				if _, err := client.Describe(t.Context(), srv.URI().String(), dataset); err == nil {
					t.Error("but the dataset was described")
				}
			}
		})
	}
}

func TestServerRefusesToGiveAway(t *testing.T) {
	s := newShelf(t, 0, 0)
	some := &tls.Config{Certificates: []tls.Certificate{newAuthority(t).issue()}}
	for _, c := range []struct {
		name string
		cfg  flight.ServerConfig
		ok   bool
	}{
		{"loopback without a token", flight.ServerConfig{Addr: "127.0.0.1:0"}, false},
		{"everywhere without a token", flight.ServerConfig{Addr: "0.0.0.0:0"}, false},
		{"everywhere with TLS and no token", flight.ServerConfig{Addr: ":0", TLS: some}, false},
		{"token in the clear everywhere", flight.ServerConfig{Addr: ":0", Token: secret}, false},
		{"token in the clear everywhere, allowed", flight.ServerConfig{Addr: ":0", Token: secret, Insecure: true}, true},
		{"token with TLS everywhere", flight.ServerConfig{Addr: ":0", Token: secret, TLS: some}, true},
		{"token on loopback", flight.ServerConfig{Addr: "localhost:0", Token: secret}, true},
		{"open on loopback, allowed", flight.ServerConfig{Addr: "[::1]:0", Insecure: true}, true},
		{"guessable token", flight.ServerConfig{Addr: "127.0.0.1:0", Token: "123456"}, false},
		{"token with a line end", flight.ServerConfig{Addr: "127.0.0.1:0", Token: secret + "\n"}, false},
		{"no address", flight.ServerConfig{Token: secret}, false},
		{"limits at odds", flight.ServerConfig{Addr: "127.0.0.1:0", Token: secret, MaxMessageBytes: 2, MaxClientBytes: 1}, false},
		{"message over 2 GiB", flight.ServerConfig{Addr: "127.0.0.1:0", Token: secret, MaxMessageBytes: 1 << 31}, false},
		{"advertises nonsense", flight.ServerConfig{Addr: "127.0.0.1:0", Token: secret, Advertise: "http://x"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Source = s
			srv, err := flight.Serve(t.Context(), c.cfg)
			if err == nil {
				stop(t, srv, time.Second)
			}
			if (err == nil) != c.ok || err != nil && !errors.Is(err, flight.ErrConfig) {
				// A host without IPv6 comes to listening on ::1, and no further.
				if c.ok && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)) {
					return
				}
				t.Error(err)
			}
		})
	}
}

func TestTokenShowsItself(t *testing.T) {
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "token", secret, "config", flight.Config{Token: secret})
	raw, err := json.Marshal(map[string]any{"token": secret})
	if err != nil {
		t.Fatal(err)
	}
	cfg := flight.ServerConfig{Token: secret}
	for _, s := range []string{log.String(), string(raw), fmt.Sprintf("%v %+v %#v %s %q %x %d", cfg, cfg, cfg, secret, secret, secret, secret)} {
		if strings.Contains(s, string(secret)) || strings.Contains(s, fmt.Sprintf("%x", string(secret))) {
			t.Errorf("shown in %s", s)
		}
	}
}

func TestDescribe(t *testing.T) {
	s := newShelf(t, 3, 10)
	srv := serve(t, flight.ServerConfig{Source: s, Advertise: "gpu-7.example.org:8815"})
	at := arrowio.FlightURI{Addr: srv.URI().Addr}
	if at.Addr != "gpu-7.example.org:8815" {
		t.Error(at)
	}
	l := serve(t, flight.ServerConfig{Source: s})
	c := dial(t, flight.Config{})
	info, err := c.Describe(t.Context(), l.URI().String(), dataset)
	if want := (flight.Info{Fingerprint: arrowio.Fingerprint(schema), Next: 3, Rows: 30, Sealed: true}); err != nil || info != want {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := c.Describe(t.Context(), l.URI().String(), "another"); !errors.Is(err, arrowio.ErrGone) {
		t.Error(err)
	}
	if _, err := c.Describe(t.Context(), l.URI().String(), ""); !errors.Is(err, flight.ErrTicket) {
		t.Error(err)
	}
}

func TestHostsGiveWay(t *testing.T) {
	s := newShelf(t, 1, 10)
	c := dial(t, flight.Config{MaxHosts: 2})
	for range 4 {
		srv := serve(t, flight.ServerConfig{Source: s})
		rec, err := c.Resolve(t.Context(), s.ref(t, 0, srv.URI()))
		if err != nil {
			t.Fatal(err)
		}
		rec.Release()
	}
	if n := c.Stats().Hosts; n != 2 {
		t.Errorf("%d hosts", n)
	}
}

func TestClosed(t *testing.T) {
	s := newShelf(t, 1, 10)
	held := make(chan struct{})
	s.setFail(func(ctx context.Context, _ uint64) error { close(held); <-ctx.Done(); return ctx.Err() })
	srv := serve(t, flight.ServerConfig{Source: s})
	c := dial(t, flight.Config{})
	done := make(chan error, 1)
	go func() {
		_, err := c.Resolve(t.Context(), s.ref(t, 0, srv.URI()))
		done <- err
	}()
	<-held
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, flight.ErrClosed) {
		t.Error(err)
	}
	if _, err := c.Resolve(t.Context(), s.ref(t, 0, srv.URI())); !errors.Is(err, flight.ErrClosed) {
		t.Error(err)
	}
}
