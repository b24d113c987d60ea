package devstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Stack is a running development stack. Its methods may be called concurrently.
type Stack struct {
	endpoints Endpoints
	dir       string
	startup   time.Duration

	st       *state
	nats     *natsServer
	temporal *temporalServer
	ui       *uiServer
	s3       *s3Server
	log      *slog.Logger

	mu     sync.Mutex
	err    error
	failed chan struct{}
	closed chan struct{} // closed when Close has finished
	once   sync.Once
	result error // of Close, valid after closed
}

// Start starts all servers and returns when they answer. It starts everything or nothing: on an error, or when
// ctx ends first, whatever was started is stopped again and the directory and ports are free when it returns.
// The servers outlive ctx; Close ends them.
//
// Errors to decide on: ErrPortInUse, ErrLocked, ErrState, ErrS3Running.
func Start(ctx context.Context, opts Options) (*Stack, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	begin := time.Now()
	timeout := opts.StartTimeout
	if timeout == 0 {
		timeout = DefaultStartTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("devstack: not ready within %v", timeout))
	defer cancel()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	st, err := openState(opts.Dir)
	if err != nil {
		return nil, err
	}
	s := &Stack{
		st: st, dir: st.dir, log: opts.Logger,
		failed: make(chan struct{}), closed: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.start(ctx, opts); err != nil {
		// The servers were asked to start moments ago and hold no work: a stop without deadline is short.
		if stopErr := s.stop(context.WithoutCancel(ctx)); stopErr != nil {
			s.log.Error("development stack did not stop cleanly after its failed start", "error", stopErr)
		}
		return nil, err
	}
	s.startup = time.Since(begin)
	return s, nil
}

func (s *Stack) start(ctx context.Context, opts Options) error {
	withUI := !opts.WithoutTemporal && !opts.WithoutUI
	natsPort := opts.port(opts.Ports.NATS, DefaultNATSPort)
	temporalPort := opts.port(opts.Ports.Temporal, DefaultTemporalPort)
	uiPort := opts.port(opts.Ports.UI, DefaultUIPort)
	s3Port := opts.port(opts.Ports.S3, DefaultS3Port)
	for _, c := range []struct {
		service string
		port    int
		used    bool
	}{{"NATS", natsPort, true}, {"Temporal", temporalPort, !opts.WithoutTemporal}, {"Temporal UI", uiPort, withUI}, {"S3", s3Port, !opts.WithoutS3}} {
		if !c.used {
			continue
		}
		if err := checkPort(ctx, c.service, c.port); err != nil {
			return err
		}
	}

	var group sync.WaitGroup
	var natsErr, temporalErr, s3Err error
	group.Go(func() { s.nats, natsErr = startNATS(ctx, s.st, natsPort, s.fail) })
	if !opts.WithoutTemporal {
		group.Go(func() { s.temporal, temporalErr = startTemporal(ctx, s.st, temporalPort, opts.Tuning, s.fail) })
	}
	if !opts.WithoutS3 {
		group.Go(func() { s.s3, s3Err = startS3Retrying(ctx, s.st, s3Port, s.fail) })
	}
	group.Wait()
	if err := errors.Join(natsErr, s3Err, temporalErr); err != nil {
		return err
	}
	if withUI {
		var err error
		if s.ui, err = startUI(ctx, s.st, uiPort, s.temporal.address, s.fail); err != nil {
			return err
		}
	}
	a := addresses{NATSURL: s.nats.url()}
	if s.temporal != nil {
		a.TemporalAddress, a.Namespace = s.temporal.address, Namespace
	}
	if s.ui != nil {
		a.UIURL = s.ui.url
	}
	if s.s3 != nil {
		a.S3Endpoint, a.S3Region, a.S3Bucket = s.s3.url, Region, Bucket
	}
	s.endpoints = endpoints(a, s.st.cred)
	if err := s.Ready(ctx); err != nil {
		return err
	}
	return s.st.publish(a)
}

// startS3Retrying tries other free ports where another program took the chosen one meanwhile.
func startS3Retrying(ctx context.Context, st *state, port int, fail func(error)) (*s3Server, error) {
	for try := 1; ; try++ {
		g, err := startS3(ctx, st, port, fail)
		if port != 0 || try == internalPortTries || !errors.Is(err, ErrPortInUse) {
			return g, err
		}
	}
}

// Endpoints gives the addresses and credentials of the stack's servers.
func (s *Stack) Endpoints() Endpoints { return s.endpoints }

// Dir is the absolute path of the state directory.
func (s *Stack) Dir() string { return s.dir }

// StartupTime is how long Start took.
func (s *Stack) StartupTime() time.Duration { return s.startup }

// Failed is closed when a server stopped on its own. Err then says which and why; Close is still due.
func (s *Stack) Failed() <-chan struct{} { return s.failed }

// Err gives the first failure of a server since the start, ErrClosed after Close, and nil while all is well.
func (s *Stack) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	select {
	case <-s.closed:
		return ErrClosed
	default:
		return nil
	}
}

func (s *Stack) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = err
	close(s.failed)
	s.log.Error("a server of the development stack failed", "error", err)
}

// Ready asks every server whether it answers, and gives the first fault.
func (s *Stack) Ready(ctx context.Context) error {
	if err := s.Err(); err != nil {
		return err
	}
	if err := dial(ctx, "NATS", strings.TrimPrefix(s.endpoints.NATSURL, "nats://")); err != nil {
		return err
	}
	if s.temporal != nil {
		if err := s.temporal.ready(ctx); err != nil {
			return err
		}
	}
	if s.s3 != nil {
		if err := dial(ctx, "S3", strings.TrimPrefix(s.endpoints.S3Endpoint, "http://")); err != nil {
			return err
		}
	}
	if s.ui != nil {
		return get(ctx, s.endpoints.UIURL+"/healthz")
	}
	return nil
}

func dial(ctx context.Context, service, address string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("devstack: %s does not answer: %w", service, err)
	}
	return conn.Close()
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("devstack: Temporal UI does not answer: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("devstack: Temporal UI answers %s", resp.Status)
	}
	return nil
}

// Close stops the servers, those that use others first: they may finish their requests until ctx ends and are
// cut off then. Workers and clients should be closed before. It is safe to call more than once and from several
// goroutines; all calls give the same error. Where a server can't be stopped in time the error says so and the
// state directory stays locked until it has.
func (s *Stack) Close(ctx context.Context) error {
	s.once.Do(func() {
		s.result = s.stop(ctx)
		close(s.closed)
	})
	<-s.closed
	return s.result
}

func (s *Stack) stop(ctx context.Context) error {
	var errs []error
	if s.ui != nil {
		errs = append(errs, s.ui.stop(ctx))
	}
	var group sync.WaitGroup
	var temporalErr, s3Err, natsErr error
	if s.temporal != nil {
		group.Go(func() { temporalErr = s.temporal.stop(ctx) })
	}
	if s.s3 != nil {
		group.Go(func() { s3Err = s.s3.stop(ctx) })
	}
	if s.nats != nil {
		group.Go(func() { natsErr = s.nats.stop(ctx) })
	}
	group.Wait()
	errs = append(errs, temporalErr, s3Err, natsErr)
	late := s.running()
	if late == nil {
		s.st.close()
	} else {
		// Another stack on this directory must not start while a server still writes to it.
		go func() {
			<-late
			s.st.close()
		}()
	}
	return errors.Join(errs...)
}

// running gives nil where all servers have ended, and otherwise a channel that is closed when they have.
func (s *Stack) running() <-chan struct{} {
	var waits []<-chan struct{}
	if s.temporal != nil {
		waits = append(waits, s.temporal.stopped)
	}
	if s.s3 != nil {
		waits = append(waits, s.s3.done)
	}
	all := make(chan struct{})
	pending := false
	for _, w := range waits {
		select {
		case <-w:
		default:
			pending = true
		}
	}
	if !pending {
		return nil
	}
	go func() {
		for _, w := range waits {
			<-w
		}
		close(all)
	}()
	return all
}
