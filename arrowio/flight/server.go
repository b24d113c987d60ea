package flight

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	gen "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/stokehold/stokehold/arrowio"
)

// Defaults of ServerConfig and Config.
const (
	DefaultMaxMessageBytes = 256 << 20
	DefaultMaxStreams      = 64
)

const (
	maxRequestBytes = 64 << 10
	maxHeaderBytes  = 16 << 10
	windowBytes     = 4 << 20  // HTTP/2 flow control, per stream
	connWindowBytes = 16 << 20 // and per connection
	maxMessage      = math.MaxInt32 - maxMetaBytes - arrowio.MaxMetadataBytes
)

// Framer is an optional power of a server's source: one that has batches framed
// in memory gives out those very bytes, which saves framing them again and keeps
// the checksum that the catalog has.
type Framer interface {
	// Frame returns the framed batch, ErrGone as Resolve does. The ref names the
	// batch alone.
	Frame(ctx context.Context, ref arrowio.Ref) (Frame, error)
}

// Frame is a framed batch lent by a Framer.
type Frame struct {
	Bytes   []byte
	SHA256  string // of Bytes, if it is known; "": the server computes it
	Release func() // called once; Bytes are valid until then
}

// Describer is an optional power of a server's source: it answers GetFlightInfo.
type Describer interface {
	// Describe says what there is of a dataset; the error wraps arrowio.ErrGone if
	// there is no such dataset.
	Describe(ctx context.Context, dataset string) (Info, error)
}

// Info is what a server has of a dataset.
type Info struct {
	Fingerprint string `json:"fingerprint"`
	Next        uint64 `json:"next"` // batches 0 to Next-1 exist
	Rows        int64  `json:"rows"`
	Sealed      bool   `json:"sealed"` // there will be no more
}

// ServerConfig configures a Server.
type ServerConfig struct {
	// Listener, or Addr ("HOST:PORT", port 0 for any free one). The server closes
	// the listener.
	Listener net.Listener
	Addr     string
	// Source has the batches; refs that it is asked for name the batch alone. It
	// must not ask other hosts, which might ask back. Framer and Describer are used
	// where it implements them.
	Source arrowio.Resolver
	// TLS nil: in the clear. With ClientAuth RequireAndVerifyClientCert the
	// certificate does what a token does, and the token may be empty.
	TLS *tls.Config
	// Token that clients must show.
	Token Token
	// Insecure allows what is refused otherwise: a listener that asks for neither
	// token nor certificate, and a token in the clear on an address other than
	// loopback.
	Insecure bool
	// Advertise is the address that GetFlightInfo names, HOST:PORT. Default: the
	// listener's.
	Advertise string

	MaxConns        int           // connections; default 256
	MaxStreams      int           // DoGets at once, of all clients; more are told to come later. Default 64
	MaxMessageBytes int64         // a larger batch is refused. Default 256 MiB, at most about 2 GiB
	MaxClientBytes  int64         // in memory for sending, by client address; default and least MaxMessageBytes
	MaxBytes        int64         // and in all; default 4 times MaxClientBytes
	StallTimeout    time.Duration // a client that takes longer to take one message is cut off. Default 2 min
	Logger          *slog.Logger
}

func (c ServerConfig) withDefaults() (ServerConfig, error) {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.MaxMessageBytes, DefaultMaxMessageBytes)
	def(&c.MaxClientBytes, c.MaxMessageBytes)
	def(&c.MaxBytes, 4*c.MaxClientBytes)
	if c.MaxStreams == 0 {
		c.MaxStreams = DefaultMaxStreams
	}
	if c.MaxConns == 0 {
		c.MaxConns = 256
	}
	if c.StallTimeout == 0 {
		c.StallTimeout = 2 * time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	var faults []error
	bad := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Source == nil {
		bad("Source is missing")
	}
	if (c.Listener == nil) == (c.Addr == "") {
		bad("give either a Listener or an Addr")
	}
	if err := c.Token.check(); err != nil {
		faults = append(faults, err)
	}
	if c.MaxMessageBytes < 0 || c.MaxMessageBytes > maxMessage {
		bad("MaxMessageBytes %d: want at most %d", c.MaxMessageBytes, int64(maxMessage))
	}
	if c.MaxClientBytes < c.MaxMessageBytes || c.MaxBytes < c.MaxClientBytes {
		bad("MaxMessageBytes %d, MaxClientBytes %d, MaxBytes %d: each must have room for the one before", c.MaxMessageBytes, c.MaxClientBytes, c.MaxBytes)
	}
	if c.MaxStreams < 0 || c.MaxConns < 0 || c.StallTimeout < 0 {
		bad("a limit is negative")
	}
	if c.Advertise != "" {
		if _, err := arrowio.ParseFlightURI(arrowio.FlightURI{Addr: c.Advertise}.String()); err != nil {
			bad("Advertise: %w", err)
		}
	}
	if len(faults) > 0 {
		return c, fmt.Errorf("%w: %w", ErrConfig, errors.Join(faults...))
	}
	return c, nil
}

// exposed says why serving on addr would give batches or the token away.
func (c ServerConfig) exposed(addr string) error {
	certs := c.TLS != nil && c.TLS.ClientAuth == tls.RequireAndVerifyClientCert
	switch {
	case c.Insecure:
		return nil
	case c.Token == "" && !certs:
		return fmt.Errorf("%w: %s would give batches to anyone: set a token, ask for client certificates, or allow it with Insecure", ErrConfig, addr)
	case c.Token != "" && c.TLS == nil && !loopback(addr):
		return fmt.Errorf("%w: on %s the token would travel in the clear: set TLS, listen on a loopback address, or allow it with Insecure", ErrConfig, addr)
	}
	return nil
}

// Server gives out batches over Arrow Flight. Safe for concurrent use.
type Server struct {
	gen.UnimplementedFlightServiceServer

	cfg     ServerConfig
	uri     arrowio.FlightURI
	grpc    *grpc.Server
	streams *semaphore.Weighted
	budget  budget
	copies  arrowio.Copies
	served  chan struct{} // closed when the accept loop has ended
	handles sync.WaitGroup
	closing atomic.Bool
	unbind  func() bool // from Serve's context
	known   atomic.Pointer[knownSchema]

	opened, refused, batches, stalled atomic.Int64
}

// ServerStats counts since Serve.
type ServerStats struct {
	Streams      int64 // DoGets begun
	Refused      int64 // calls without the token, and DoGets over MaxStreams
	Stalled      int64 // streams cut off after StallTimeout
	Batches      int64 // sent
	CopiedBytes  int64 // body bytes copied to send them
	PendingBytes int64 // in memory for sending now
}

// Serve starts a server and returns when it listens. It runs until Close, or
// until ctx ends, which closes it hard. It refuses to start where it would give
// batches or the token away, see ServerConfig.Insecure; the error wraps ErrConfig.
func Serve(ctx context.Context, cfg ServerConfig) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err == nil {
		// Before listening: nobody shall connect to what is not allowed.
		at := cfg.Addr
		if cfg.Listener != nil {
			at = cfg.Listener.Addr().String()
		}
		err = cfg.exposed(at)
	}
	if err != nil {
		if cfg.Listener != nil {
			err = errors.Join(err, cfg.Listener.Close())
		}
		return nil, err
	}
	l := cfg.Listener
	if l == nil {
		if l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Addr); err != nil {
			return nil, fmt.Errorf("flight: listen on %s: %w", cfg.Addr, err)
		}
	}
	s := &Server{
		cfg: cfg, served: make(chan struct{}), streams: semaphore.NewWeighted(int64(cfg.MaxStreams)),
		budget: budget{total: semaphore.NewWeighted(cfg.MaxBytes), each: cfg.MaxClientBytes},
		uri:    arrowio.FlightURI{Addr: cfg.Advertise, TLS: cfg.TLS != nil},
	}
	if s.uri.Addr == "" {
		s.uri.Addr = l.Addr().String()
	}
	s.grpc = grpc.NewServer(s.options()...)
	gen.RegisterFlightServiceServer(s.grpc, s)
	go func() {
		defer close(s.served)
		if err := s.grpc.Serve(netutil.LimitListener(l, cfg.MaxConns)); err != nil && !s.closing.Load() {
			cfg.Logger.Error("flight server ended", "address", l.Addr().String(), "error", err)
		}
	}()
	s.unbind = context.AfterFunc(ctx, func() { s.closing.Store(true); s.grpc.Stop() })
	return s, nil
}

func (s *Server) options() []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxRequestBytes), grpc.MaxSendMsgSize(math.MaxInt32), grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(uint32(min(s.cfg.MaxStreams+8, math.MaxInt32))), // and some for GetFlightInfo
		grpc.ConnectionTimeout(10 * time.Second), grpc.WriteBufferSize(256 << 10),
		// A client that is gone without a word is noticed in half a minute.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.StreamInterceptor(func(srv any, st grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := s.authorize(st.Context()); err != nil {
				return err
			}
			return next(srv, st)
		}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := s.authorize(ctx); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
	}
	if s.cfg.TLS != nil {
		t := s.cfg.TLS.Clone()
		t.MinVersion = max(t.MinVersion, tls.VersionTLS12)
		opts = append(opts, grpc.Creds(credentials.NewTLS(t)))
	}
	return opts
}

func (s *Server) authorize(ctx context.Context) error {
	if s.cfg.Token == "" {
		return nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if !s.cfg.Token.accepts(md.Get(tokenHeader)) {
		s.refused.Add(1)
		return status.Error(codes.Unauthenticated, "the token is missing or wrong")
	}
	return nil
}

// URI is where the server is reached: Advertise, or the listener's address.
func (s *Server) URI() arrowio.FlightURI { return s.uri }

// Stats returns the counters.
func (s *Server) Stats() ServerStats {
	return ServerStats{
		Streams: s.opened.Load(), Refused: s.refused.Load(), Stalled: s.stalled.Load(), Batches: s.batches.Load(),
		CopiedBytes: s.copies.Bytes(), PendingBytes: s.budget.pending.Load(),
	}
}

// Close lets the streams end that are under way, and cuts them when ctx ends.
// Clients go on elsewhere, or here when there is a server again. Repeatable.
func (s *Server) Close(ctx context.Context) error {
	s.closing.Store(true)
	s.unbind()
	soft := make(chan struct{})
	go func() { defer close(soft); s.grpc.GracefulStop() }()
	select {
	case <-soft:
	case <-ctx.Done():
		s.grpc.Stop()
		<-soft
	}
	<-s.served
	s.handles.Wait() // of streams that were cut off
	return nil
}

// GetFlightInfo implements Flight: one endpoint, whose ticket is for all that
// there is now.
func (s *Server) GetFlightInfo(ctx context.Context, d *gen.FlightDescriptor) (*gen.FlightInfo, error) {
	desc, ok := s.cfg.Source.(Describer)
	if !ok {
		return nil, status.Error(codes.Unimplemented, "this server does not describe datasets: ask for batches with DoGet")
	}
	if d.GetType() != gen.FlightDescriptor_PATH || len(d.GetPath()) != 1 || d.Path[0] == "" || len(d.Path[0]) > maxDatasetBytes {
		return nil, status.Errorf(codes.InvalidArgument, "want a descriptor with a path of one element, the dataset's name, of at most %d bytes", maxDatasetBytes)
	}
	dataset := d.Path[0]
	info, err := desc.Describe(ctx, dataset)
	if err != nil {
		return nil, s.toStatus(ctx, dataset, err)
	}
	out := &gen.FlightInfo{
		FlightDescriptor: &gen.FlightDescriptor{Type: gen.FlightDescriptor_PATH, Path: []string{dataset}},
		TotalRecords:     info.Rows, TotalBytes: -1, Ordered: true, AppMetadata: encode(info),
	}
	if info.Next == 0 {
		return out, nil // its schema is not known yet
	}
	frame, err := s.frame(ctx, arrowio.Ref{Dataset: dataset, Sequence: info.Next - 1})
	if err != nil {
		return nil, s.toStatus(ctx, dataset, err)
	}
	defer frame.Release()
	l, err := arrowio.Inspect(frame.Bytes)
	if err != nil {
		return nil, s.toStatus(ctx, dataset, err)
	}
	out.Schema = encapsulate(nil, l.Messages[0].Meta)
	out.Endpoint = []*gen.FlightEndpoint{{
		Ticket:   &gen.Ticket{Ticket: Ticket{Dataset: dataset, To: info.Next, Fingerprint: info.Fingerprint}.Encode()},
		Location: []*gen.Location{{Uri: s.uri.String()}},
	}}
	return out, nil
}

// frame has the source's bytes of a batch, framing them here if need be.
func (s *Server) frame(ctx context.Context, ref arrowio.Ref) (Frame, error) {
	if f, ok := s.cfg.Source.(Framer); ok {
		return f.Frame(ctx, ref)
	}
	rec, err := s.cfg.Source.Resolve(ctx, ref)
	if err != nil {
		return Frame{}, err
	}
	defer rec.Release()
	b, err := arrowio.Encode(rec, &s.copies)
	return Frame{Bytes: b, Release: func() {}}, err
}

// toStatus is what a client is told. What is none of its business is logged here
// alone.
func (s *Server) toStatus(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	switch {
	case errors.Is(err, arrowio.ErrCorrupt):
		s.cfg.Logger.ErrorContext(ctx, "flight: a batch is damaged", "batch", what, "error", err)
		return status.Errorf(codes.DataLoss, "%s is damaged here", what)
	case errors.Is(err, arrowio.ErrGone):
		return status.Errorf(codes.NotFound, "%s is not here", what)
	}
	s.cfg.Logger.ErrorContext(ctx, "flight: a batch could not be opened", "batch", what, "error", err)
	return status.Errorf(codes.Unavailable, "%s could not be opened here", what)
}
