package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Config configures a Bus. Zero values take the documented defaults.
type Config struct {
	Conn     *nats.Conn    // required; the bus does not close it
	Types    *Registry     // event types that may pass; nil: NewRegistry()
	Judge    Judge         // nil: every event is refused (fails closed); see AllowAll for tests
	Prefix   string        // first subject token and stream-name prefix; default "stokehold"
	Replicas int           // of the streams; default 1
	MaxAge   time.Duration // retention of the event stream; default 7 days
	MaxBytes int64         // of the event stream; default 1 GiB
	Dedupe   time.Duration // JetStream duplicate window; default 10 minutes
	Logger   *slog.Logger  // default slog.Default()
	// ReadOnly is for those who may read the streams and nothing else: nothing is created,
	// probed or moved, and publishing and subscribing fail.
	ReadOnly bool
}

// withDefaults returns the complete configuration, or all its faults at once.
func (c Config) withDefaults() (Config, error) {
	var faults []error
	if c.Conn == nil {
		faults = append(faults, errors.New("missing Conn"))
	}
	if c.Types == nil {
		r, err := NewRegistry()
		if err != nil {
			faults = append(faults, err)
		}
		c.Types = r
	}
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if err := checkPrefix(c.Prefix); err != nil {
		faults = append(faults, err)
	}
	if c.Replicas == 0 {
		c.Replicas = 1
	}
	if c.Replicas < 1 || c.Replicas > 5 {
		faults = append(faults, fmt.Errorf("want 1 to 5 Replicas, not %d", c.Replicas))
	}
	if c.MaxAge == 0 {
		c.MaxAge = 7 * 24 * time.Hour
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 1 << 30
	}
	if c.Dedupe == 0 {
		c.Dedupe = min(10*time.Minute, c.MaxAge)
	}
	if c.MaxAge < 0 || c.MaxBytes < 0 || c.Dedupe < 0 {
		faults = append(faults, errors.New("MaxAge, MaxBytes and Dedupe must be positive"))
	} else if c.Dedupe > c.MaxAge {
		faults = append(faults, fmt.Errorf("a Dedupe of %s is longer than MaxAge %s", c.Dedupe, c.MaxAge))
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if len(faults) > 0 {
		return c, &Error{Op: "open", Err: fmt.Errorf("%w: %w", ErrConfig, errors.Join(faults...))}
	}
	return c, nil
}

// Bus publishes and consumes judged CloudEvents over JetStream. Safe for
// concurrent use.
type Bus struct {
	cfg       Config
	names     names
	nc        *nats.Conn
	js        jetstream.JetStream
	sender    *sender
	approvals approvals
	stats     counters
	envelopes sync.Pool // of *envelope, empty

	mu        sync.Mutex
	closed    bool
	closing   chan struct{} // closed when Close begins
	active    sync.WaitGroup
	consumers map[*Consumer]struct{}
	topics    bool // the stream of Watermill topics exists
	mover     *mover
}

type counters struct {
	published, received, judged, denied, held, deadLettered atomic.Uint64
}

// Open checks the configuration, creates or updates the streams and returns
// the bus. It proves that the server persists by waiting for a publish
// acknowledgement. From then until Close it also moves events that any consumer
// gave up on to the dead-letter stream.
func Open(ctx context.Context, cfg Config) (*Bus, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(cfg.Conn)
	if err != nil {
		return nil, &Error{Op: "open", Err: fmt.Errorf("%w: %w", ErrUnavailable, err)}
	}
	b := &Bus{
		cfg:       cfg,
		names:     names{cfg.Prefix},
		nc:        cfg.Conn,
		js:        js,
		closing:   make(chan struct{}),
		consumers: make(map[*Consumer]struct{}),
	}
	for _, s := range cfg.streams() {
		if cfg.ReadOnly {
			break
		}
		if err := ensureStream(ctx, js, s); err != nil {
			return nil, err
		}
	}
	if b.sender, err = newSender(cfg.Conn); err != nil {
		return nil, &Error{Op: "open", Err: fmt.Errorf("%w: %w", ErrUnavailable, err)}
	}
	if cfg.ReadOnly {
		return b, nil
	}
	if err := b.Probe(ctx); err != nil {
		b.sender.close()
		return nil, err
	}
	if b.mover, err = startMover(ctx, b); err != nil {
		b.sender.close()
		return nil, err
	}
	return b, nil
}

// Probe publishes to a small stream of its own and waits until the server has
// persisted that. A server whose disk was full answers nothing, and says that it
// is well, until it is restarted: only a write shows it.
func (b *Bus) Probe(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
	}
	call := b.sender.begin(1)
	b.sender.send(ctx, call, &nats.Msg{Subject: b.names.probe(), Data: []byte(time.Now().UTC().Format(time.RFC3339Nano))})
	if err := b.sender.wait(ctx, call)[0]; err != nil {
		return &Error{Op: "probe", Hint: "check the server's disk, then restart the server", Err: err}
	}
	return nil
}

// Close drains: it stops all subscriptions, waits for running handlers until
// ctx ends, and flushes acknowledgements. Repeatable.
func (b *Bus) Close(ctx context.Context) error {
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		close(b.closing)
	}
	running := make([]*Consumer, 0, len(b.consumers))
	for c := range b.consumers {
		running = append(running, c)
	}
	b.mu.Unlock()

	stopped := make([]error, len(running))
	var stops sync.WaitGroup
	for i, c := range running {
		stops.Go(func() { stopped[i] = c.Stop(ctx) })
	}
	stops.Wait()
	errs := stopped
	if b.mover != nil {
		errs = append(errs, b.mover.stop(ctx))
	}

	idle := make(chan struct{})
	go func() {
		b.active.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		b.sender.close()
	case <-ctx.Done():
		errs = append(errs, &Error{Op: "close", Err: fmt.Errorf("publishes still running: %w", context.Cause(ctx))})
	}
	errs = append(errs, b.flush(ctx))
	return errors.Join(errs...)
}

// flush returns when the server has all that was written to the connection.
func (b *Bus) flush(ctx context.Context) error {
	if !b.nc.IsConnected() {
		return nil // unacknowledged messages are delivered again
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
	}
	if err := b.nc.FlushWithContext(ctx); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		return &Error{Op: "close", Err: fmt.Errorf("flush acknowledgements: %w", err)}
	}
	return nil
}

// enter counts an operation in, so that Close waits for it.
func (b *Bus) enter(op string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return &Error{Op: op, Err: ErrClosed}
	}
	if b.cfg.ReadOnly { // all that is counted writes
		return &Error{Op: op, Hint: "open it without ReadOnly", Err: fmt.Errorf("%w: the bus only reads", ErrConfig)}
	}
	b.active.Add(1)
	return nil
}

func (b *Bus) leave() { b.active.Done() }

// Stats counts what passed this process's bus.
type Stats struct {
	Published    uint64 // acknowledged by the stream
	Received     uint64 // messages taken from the stream
	Judged       uint64 // events decided on, on publish and on receive
	Denied       uint64 // of them refused
	Held         uint64 // put in the held stream by this process
	DeadLettered uint64 // moved to the dead-letter stream by this process
}

// Stats returns the counters since Open.
func (b *Bus) Stats() Stats {
	return Stats{
		Published:    b.stats.published.Load(),
		Received:     b.stats.received.Load(),
		Judged:       b.stats.judged.Load(),
		Denied:       b.stats.denied.Load(),
		Held:         b.stats.held.Load(),
		DeadLettered: b.stats.deadLettered.Load(),
	}
}
