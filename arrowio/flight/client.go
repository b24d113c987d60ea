package flight

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	gen "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"

	"github.com/stokehold/stokehold/arrowio"
)

// Config configures a Client.
type Config struct {
	// TLS for hosts with a grpc+tls URI; nil: the system's roots. With it set,
	// grpc+tcp URIs are refused unless Insecure: whoever can write a ref must not be
	// able to take the encryption away.
	TLS *tls.Config
	// Token is shown to every host. In the clear it goes to loopback addresses only,
	// unless Insecure.
	Token    Token
	Insecure bool
	// Self are the URIs of this process's own servers, which it need not ask.
	Self []string

	Timeout time.Duration // longest wait for a host's next message. Default 5 s
	// Patience is how long Range tries again to get its next batch. Default 30 s.
	Patience         time.Duration
	Streams          int   // of one Range at once, each on a connection of its own. Default 4, at most 64
	MaxMessageBytes  int64 // a larger batch is refused. Default 256 MiB
	MaxBytesInFlight int64 // of one Range, fetched and not yet released, see Range. Default 256 MiB
	MaxHosts         int   // connected to at once; idle ones give way. Default 64
}

func (c Config) withDefaults() (Config, error) {
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	if c.Patience == 0 {
		c.Patience = 30 * time.Second
	}
	if c.Streams == 0 {
		c.Streams = 4
	}
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = DefaultMaxMessageBytes
	}
	if c.MaxBytesInFlight == 0 {
		c.MaxBytesInFlight = 256 << 20
	}
	if c.MaxHosts == 0 {
		c.MaxHosts = 64
	}
	var faults []error
	if err := c.Token.check(); err != nil {
		faults = append(faults, err)
	}
	for _, u := range c.Self {
		if _, err := arrowio.ParseFlightURI(u); err != nil {
			faults = append(faults, fmt.Errorf("own URI: %w", err))
		}
	}
	if c.Timeout < 0 || c.Patience < 0 || c.Streams < 1 || c.Streams > 64 || c.MaxBytesInFlight < 1 || c.MaxHosts < 1 {
		faults = append(faults, errors.New("a time or limit is out of range"))
	}
	if c.MaxMessageBytes < 1 || c.MaxMessageBytes > maxMessage {
		faults = append(faults, fmt.Errorf("MaxMessageBytes %d: want at most %d", c.MaxMessageBytes, int64(maxMessage)))
	}
	if len(faults) > 0 {
		return c, fmt.Errorf("%w: %w", ErrConfig, errors.Join(faults...))
	}
	return c, nil
}

// Client reads batches from other hosts. It connects when it first needs a host
// and keeps the connection. Safe for concurrent use.
type Client struct {
	cfg    Config
	copies arrowio.Copies
	// By dataset.
	decoders arrowio.Decoders

	mu     sync.Mutex
	hosts  map[arrowio.FlightURI]*host
	closed bool

	batches, received, corrupt, resumed, skipped atomic.Int64
}

// Stats counts since Dial.
type Stats struct {
	Batches     int64 // received, checked and handed out
	Bytes       int64 // of their frames
	CopiedBytes int64 // body bytes copied to receive them
	Corrupt     int64 // batches that were not what they should be
	Resumed     int64 // streams of a Range that broke and were begun again
	Skipped     int64 // asks left out because the host had just failed
	Hosts       int   // connected
}

// Dial makes a client. It connects to nobody yet. The error wraps ErrConfig.
func Dial(cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, hosts: map[arrowio.FlightURI]*host{}}, nil
}

// Close cuts all connections; what is under way fails with ErrClosed. Batches
// handed out stay valid. Repeatable.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var errs []error
	for uri, h := range c.hosts {
		errs = append(errs, h.close())
		delete(c.hosts, uri)
	}
	return errors.Join(errs...)
}

func (c *Client) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Stats returns the counters.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	hosts := len(c.hosts)
	c.mu.Unlock()
	return Stats{
		Batches: c.batches.Load(), Bytes: c.received.Load(), CopiedBytes: c.copies.Bytes(), Corrupt: c.corrupt.Load(),
		Resumed: c.resumed.Load(), Skipped: c.skipped.Load(), Hosts: hosts,
	}
}

// Resolve implements arrowio.Resolver for refs with a flight location. It asks
// the hosts that ref names, other than this process, one after the other; each
// has Config.Timeout for each of its messages. A host that has just failed is
// left out for a while, so that a dead one costs its time once and not for every
// batch. The error wraps arrowio.ErrGone if ref names no host, or none has the
// batch; ErrDown, ErrRefused, ErrTooLarge, ErrSchema or arrowio.ErrCorrupt
// otherwise.
func (c *Client) Resolve(ctx context.Context, ref arrowio.Ref) (arrow.RecordBatch, error) {
	var errs []error
	if ref.Sequence == math.MaxUint64 {
		return nil, fmt.Errorf("flight: resolve %s: %w: no such sequence", ref.ID(), arrowio.ErrGone)
	}
	for _, l := range ref.Locations {
		if !arrowio.IsFlightURI(l.URI) || slices.Contains(c.cfg.Self, l.URI) {
			continue
		}
		rec, err := c.resolveAt(ctx, l.URI, ref)
		if err == nil {
			return rec, nil
		}
		errs = append(errs, &Error{Op: "resolve", Host: l.URI, Batch: ref.ID(), Err: err})
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("flight: resolve %s: %w: the ref names no other host", ref.ID(), arrowio.ErrGone)
	}
	return nil, errors.Join(errs...)
}

func (c *Client) resolveAt(ctx context.Context, uri string, ref arrowio.Ref) (arrow.RecordBatch, error) {
	h, leave, err := c.host(uri)
	if err != nil {
		return nil, err
	}
	defer leave()
	if wait, down := h.down(); down {
		c.skipped.Add(1)
		return nil, fmt.Errorf("%w: it failed a moment ago and is asked again in %s", ErrDown, wait.Round(time.Millisecond))
	}
	var rec arrow.RecordBatch
	f := fetch{
		client: c, conn: h.conn(), want: &ref,
		ticket: Ticket{Dataset: ref.Dataset, From: ref.Sequence, To: ref.Sequence + 1, Fingerprint: ref.Fingerprint},
		got:    func(b *Batch) { rec = b.Record },
	}
	err = f.run(ctx)
	if err == nil && rec == nil {
		err = fmt.Errorf("%w: the stream ended without the batch", ErrDown)
	}
	if err != nil && rec != nil { // a batch too many after it, or a bad end
		rec.Release()
	}
	if ctx.Err() == nil {
		h.report(err)
	}
	if err != nil {
		return nil, err
	}
	return rec, nil
}

// Describe asks the host at uri what it has of a dataset. The error wraps
// arrowio.ErrGone if it has none of that name.
func (c *Client) Describe(ctx context.Context, uri, dataset string) (Info, error) {
	info, err := c.describe(ctx, uri, dataset)
	if err != nil {
		return Info{}, &Error{Op: "describe", Host: uri, Batch: dataset, Err: err}
	}
	return info, nil
}

func (c *Client) describe(ctx context.Context, uri, dataset string) (info Info, err error) {
	h, leave, err := c.host(uri)
	if err != nil {
		return info, err
	}
	defer leave()
	call, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout, errSilent)
	defer cancel()
	out, err := gen.NewFlightServiceClient(h.conn()).GetFlightInfo(call, &gen.FlightDescriptor{
		Type: gen.FlightDescriptor_PATH, Path: []string{dataset},
	})
	if err != nil {
		return info, fromStatus(ctx, err)
	}
	err = object(out.GetAppMetadata(), maxTicketBytes, func(key string, dec *json.Decoder) error {
		switch key {
		case "fingerprint":
			return dec.Decode(&info.Fingerprint)
		case "next":
			return dec.Decode(&info.Next)
		case "rows":
			return dec.Decode(&info.Rows)
		case "sealed":
			return dec.Decode(&info.Sealed)
		}
		return errUnknownMember
	})
	if err != nil {
		return info, fmt.Errorf("%w: %w", ErrMeta, err)
	}
	return info, nil
}
