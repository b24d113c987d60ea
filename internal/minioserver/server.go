package minioserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

const (
	readyWait = 60 * time.Second
	stopWait  = 10 * time.Second
	// starts bounds how often a port is tried that somebody else took meanwhile.
	starts = 5
	// maxLogBytes is how much of the server's output is kept, from its end.
	maxLogBytes = 64 << 10
)

// Options configures a Server.
type Options struct {
	Dir string   // its data; required
	Env []string // KEY=VALUE, besides credentials
	// Certs is a directory with public.crt, private.key and CAs/: the server then
	// speaks TLS.
	Certs string
}

// Server is a running MinIO. Safe for concurrent use.
type Server struct {
	URL                  string // http://127.0.0.1:PORT, or https://
	AccessKey, SecretKey string // of its root user

	cmd    *exec.Cmd
	log    *tail
	exited chan struct{}
	stop   sync.Once
}

// Start runs the binary on a free loopback port and returns when it answers. It
// ends with the calling process at the latest; the caller must Stop it.
func Start(ctx context.Context, bin string, opts Options) (*Server, error) {
	if opts.Dir == "" {
		return nil, errors.New("minioserver: Options.Dir is missing")
	}
	var last error
	for range starts {
		s, err := start(ctx, bin, opts)
		if err == nil {
			return s, nil
		}
		if last = err; ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

func start(ctx context.Context, bin string, opts Options) (*Server, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("minioserver: %w", err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, fmt.Errorf("minioserver: %w", err)
	}
	s := &Server{URL: "http://" + address, AccessKey: "root-" + rand.Text()[:8], SecretKey: rand.Text(), log: &tail{}, exited: make(chan struct{})}
	args := []string{"server", "--quiet", "--address", address}
	if opts.Certs != "" {
		s.URL = "https://" + address
		args = append(args, "--certs-dir", opts.Certs)
	}
	s.cmd = exec.Command(bin, append(args, opts.Dir)...) //nolint:noctx // Stop ends it, with time to finish
	s.cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+s.AccessKey, "MINIO_ROOT_PASSWORD="+s.SecretKey, "MINIO_BROWSER=off", "MINIO_UPDATE=off")
	s.cmd.Env = append(s.cmd.Env, opts.Env...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("minioserver: %w", err)
	}
	go func() {
		defer close(s.exited)
		_ = s.cmd.Wait() // how it ended is in its output
	}()
	if err := s.ready(ctx); err != nil {
		s.Stop()
		return nil, fmt.Errorf("minioserver: %w; it printed:\n%s", err, s.Log())
	}
	return s, nil
}

// ready asks until the server takes requests: what it calls ready comes before its drive and
// its users are. Who answers is certain: nobody else listens where the server could, and a
// server that could not has exited.
func (s *Server) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // only whether it is up
	}}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/minio/health/cluster", nil)
		if err != nil {
			return err
		}
		if res, err := client.Do(req); err == nil {
			if err := res.Body.Close(); err == nil && res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-s.exited:
			return errors.New("MinIO exited at its start")
		case <-ctx.Done():
			return fmt.Errorf("MinIO is not ready: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// Stop ends the server's process group: asks, then kills. Repeatable.
func (s *Server) Stop() {
	s.stop.Do(func() {
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGTERM) // gone: as wanted
		select {
		case <-s.exited:
		case <-time.After(stopWait):
		}
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // gone: as wanted
		<-s.exited
	})
}

// Log returns the end of what the server printed.
func (s *Server) Log() string { return s.log.String() }

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if over := t.buf.Len() - maxLogBytes; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
