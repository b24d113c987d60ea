// Package natstest runs a real nats-server with JetStream inside a test. Every
// server listens on a free loopback port, keeps its state in a directory of the
// test, and is gone when the test ends.
package natstest

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// readyWait bounds how long a server may take to accept connections.
const readyWait = 20 * time.Second

// Server is a nats-server in this process. Safe for concurrent use.
type Server struct {
	tb   testing.TB
	opts server.Options

	mu  sync.Mutex
	srv *server.Server
	url string
}

// Option changes how a server runs.
type Option func(*server.Options)

// SyncAlways makes the server sync every write to disk before it acknowledges,
// as a production server must.
func SyncAlways() Option {
	return func(o *server.Options) { o.SyncAlways = true }
}

// MaxStore limits what JetStream may keep on disk, in bytes.
func MaxStore(sizeBytes int64) Option {
	return func(o *server.Options) { o.JetStreamMaxStore = sizeBytes }
}

// StoreDir keeps the state in dir rather than in the test's own directory.
func StoreDir(dir string) Option {
	return func(o *server.Options) { o.StoreDir = dir }
}

// Users lets in the users of an authorization block alone: entries as an operator
// writes them into the server's configuration file.
func Users(tb testing.TB, entries string) Option {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "nats.conf")
	if err := os.WriteFile(path, []byte("authorization { users = [\n"+entries+"] }\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	parsed, err := server.ProcessConfigFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return func(o *server.Options) { o.Users = parsed.Users }
}

// Start runs a server until the test ends.
func Start(tb testing.TB, opts ...Option) *Server {
	tb.Helper()
	s := &Server{tb: tb, opts: server.Options{
		Host:      "127.0.0.1",
		Port:      server.RANDOM_PORT,
		JetStream: true,
		NoLog:     true,
		NoSigs:    true,
		// Left to itself the server offers 75% of what is free on the disk and
		// then refuses writes when that shrinks.
		JetStreamMaxStore:  4 << 30,
		JetStreamMaxMemory: 64 << 20,
	}}
	for _, o := range opts {
		o(&s.opts)
	}
	if s.opts.StoreDir == "" {
		s.opts.StoreDir = tb.TempDir()
	}
	s.start()
	tb.Cleanup(s.Stop)
	return s
}

func (s *Server) start() {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	opts := s.opts
	srv, err := server.NewServer(&opts)
	if err != nil {
		s.tb.Fatalf("natstest: configure nats-server: %v", err)
	}
	srv.Start()
	if !srv.ReadyForConnections(readyWait) {
		srv.Shutdown()
		s.tb.Fatalf("natstest: nats-server in %s not ready within %s", s.opts.StoreDir, readyWait)
	}
	s.srv = srv
	s.url = srv.ClientURL()
	// A restart keeps the port, so that clients reconnect.
	if s.opts.Port == server.RANDOM_PORT {
		s.opts.Port = opts.Port
	}
}

// URL returns the address clients connect to. It stays the same across restarts.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.url
}

// Stop shuts the server down and waits until its files are closed. Repeatable.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.srv == nil {
		return
	}
	s.srv.Shutdown()
	s.srv.WaitForShutdown()
	s.srv = nil
}

// Restart stops the server, if it runs, and starts it again on the same port and
// directory.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Stop()
	s.start()
}

// Server returns the running server, nil after Stop.
func (s *Server) Server() *server.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.srv
}

// Connect returns a connection that reconnects without end and is closed when
// the test ends.
func (s *Server) Connect(opts ...nats.Option) *nats.Conn {
	s.tb.Helper()
	opts = append([]nats.Option{
		nats.MaxReconnects(-1),
		nats.ReconnectWait(20 * time.Millisecond),
		nats.ReconnectJitter(0, 0),
		nats.IgnoreAuthErrorAbort(),
	}, opts...)
	nc, err := nats.Connect(s.URL(), opts...)
	if err != nil {
		s.tb.Fatalf("natstest: connect to %s: %v", s.URL(), err)
	}
	s.tb.Cleanup(nc.Close)
	return nc
}
