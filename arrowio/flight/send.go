package flight

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net"
	"sync"
	"sync/atomic"
	"time"

	gen "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/stokehold/stokehold/arrowio"
)

// DoGet implements Flight.
func (s *Server) DoGet(t *gen.Ticket, st gen.FlightService_DoGetServer) error {
	ticket, err := DecodeTicket(t.GetTicket())
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "%v", err)
	}
	if !s.streams.TryAcquire(1) {
		s.refused.Add(1)
		return status.Errorf(codes.Unavailable, "%d streams at once are the limit here: come again", s.cfg.MaxStreams)
	}
	s.opened.Add(1)
	ctx := st.Context()
	account, leave := s.budget.enter(clientOf(ctx))
	w := &sending{server: s, ticket: ticket, stream: st, account: account}
	w.moved.Store(time.Now().UnixNano())
	done := make(chan error, 1)
	s.handles.Add(1)
	go func() {
		defer s.handles.Done()
		defer s.streams.Release(1)
		defer leave()
		defer w.abandon()
		done <- w.all(ctx)
	}()
	// gRPC gives no way to end a stream but to return from here, and a send that a
	// client does not take blocks: therefore the two goroutines.
	check := time.NewTicker(max(s.cfg.StallTimeout/4, time.Millisecond))
	defer check.Stop()
	for {
		select {
		case err := <-done:
			return err
		case now := <-check.C:
			if w.stalled(now) {
				s.stalled.Add(1)
				return status.Errorf(codes.Aborted, "a batch was not taken in %s", s.cfg.StallTimeout)
			}
		}
	}
}

func clientOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	return host
}

// sending is one DoGet.
type sending struct {
	server  *Server
	ticket  Ticket
	stream  grpc.ServerStream
	account *account
	schema  []byte // the stream's, once it is sent

	moved atomic.Int64 // when the client last took something, Unix nanoseconds

	mu      sync.Mutex
	unsent  map[*[]byte]int64 // bodies that gRPC holds, with what they count
	emptied chan struct{}     // closed when unsent gets empty
}

// all sends the ticket's batches, and returns when the client's connection has
// taken the last.
func (w *sending) all(ctx context.Context) error {
	for seq := w.ticket.From; seq < w.ticket.To; seq++ {
		ref := arrowio.Ref{Dataset: w.ticket.Dataset, Sequence: seq}
		if err := w.batch(ctx, ref); err != nil {
			return w.server.toStatus(ctx, ref.ID(), err)
		}
		w.server.batches.Add(1)
	}
	return w.flushed(ctx)
}

func (w *sending) batch(ctx context.Context, ref arrowio.Ref) error {
	frame, err := w.server.frame(ctx, ref)
	if err != nil {
		return err
	}
	defer frame.Release()
	if n, most := int64(len(frame.Bytes)), w.server.cfg.MaxMessageBytes; n > most {
		return status.Errorf(codes.ResourceExhausted, "%s has %d bytes, more than the %d that are sent at once here", ref.ID(), n, most)
	}
	l, err := arrowio.Inspect(frame.Bytes)
	if err != nil {
		return err
	}
	meta := Meta{
		Sequence: ref.Sequence, SHA256: frame.SHA256, Rows: l.Rows, BodyBytes: l.BodyBytes, FrameBytes: int64(len(frame.Bytes)),
	}
	if meta.SHA256 == "" {
		sum := sha256.Sum256(frame.Bytes)
		meta.SHA256 = hex.EncodeToString(sum[:])
	}
	if err := w.head(l.Messages[0].Meta, &meta); err != nil {
		return err
	}
	app := meta.Encode()
	for _, m := range l.Messages[1:] {
		out := newOutgoing(m.Meta, app, len(m.Body))
		if err := w.load(ctx, out, m.Body); err != nil {
			return err
		}
		err := w.stream.SendMsg(out)
		out.drop()
		if err != nil {
			return err
		}
		w.moved.Store(time.Now().UnixNano())
	}
	return nil
}

// head sends the schema, which is the first message of the stream, or has it
// travel with its batch if it is another than the stream's.
func (w *sending) head(schema []byte, meta *Meta) error {
	if bytes.Equal(schema, w.schema) {
		return nil
	}
	got, err := w.server.fingerprint(schema)
	if err != nil {
		return err
	}
	if w.ticket.Fingerprint != "" && got != w.ticket.Fingerprint {
		return status.Errorf(codes.FailedPrecondition, "%s#%d has schema %s here, not %s", w.ticket.Dataset, meta.Sequence, got, w.ticket.Fingerprint)
	}
	if w.schema == nil {
		w.schema = schema
		return w.stream.SendMsg(newOutgoing(schema, nil, 0))
	}
	if len(schema) > maxSchemaBytes {
		return status.Errorf(codes.ResourceExhausted, "schema of %d bytes, which is not the stream's: ask for batch %d alone", len(schema), meta.Sequence)
	}
	meta.Schema = schema
	return nil
}

// knownSchema saves decoding the same schema for each small batch.
type knownSchema struct {
	message     []byte
	fingerprint string
}

func (s *Server) fingerprint(message []byte) (string, error) {
	if k := s.known.Load(); k != nil && bytes.Equal(k.message, message) {
		return k.fingerprint, nil
	}
	schema, err := arrowio.DecodeSchema(encapsulate(nil, message))
	if err != nil {
		return "", err
	}
	k := &knownSchema{message, arrowio.Fingerprint(schema)}
	s.known.Store(k)
	return k.fingerprint, nil
}

// encapsulate appends the message that goes with metadata of that many bytes to
// dst, without its body.
func encapsulate(dst, meta []byte) []byte {
	dst = append(dst, 0xFF, 0xFF, 0xFF, 0xFF)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(meta)))
	return append(dst, meta...)
}

// load copies the body into memory of gRPC's, which keeps it until the
// connection has taken it: maybe after the frame is gone, or never if the
// connection breaks. That is why frames are not sent where they lie.
func (w *sending) load(ctx context.Context, out *outgoing, body []byte) error {
	if len(body) == 0 {
		return nil
	}
	n := int64(len(body))
	if err := w.account.take(ctx, n); err != nil {
		return err
	}
	w.moved.Store(time.Now().UnixNano())
	// Below a certain size gRPC does not tell when it is done with a buffer.
	buf := mem.DefaultBufferPool().Get(max(len(body), 4<<10))
	*buf = (*buf)[:len(body)]
	w.mu.Lock()
	if w.unsent == nil {
		w.unsent, w.emptied = map[*[]byte]int64{}, make(chan struct{})
	}
	w.unsent[buf] = n
	w.mu.Unlock()
	copy(*buf, body)
	w.server.copies.Add(n)
	out.body = mem.NewBuffer(buf, (*sent)(w))
	return nil
}

// sent is a sending in its role as the pool to which gRPC returns a body.
type sent sending

func (p *sent) Get(n int) *[]byte { return mem.DefaultBufferPool().Get(n) }

func (p *sent) Put(buf *[]byte) {
	w := (*sending)(p)
	w.mu.Lock()
	n, ok := w.unsent[buf]
	w.forget(buf)
	w.mu.Unlock()
	if ok {
		w.account.give(n)
		w.moved.Store(time.Now().UnixNano())
	}
	mem.DefaultBufferPool().Put(buf)
}

// forget takes a body out of unsent. Callers hold mu.
func (w *sending) forget(buf *[]byte) {
	delete(w.unsent, buf)
	if len(w.unsent) == 0 && w.emptied != nil {
		close(w.emptied)
		w.unsent, w.emptied = nil, nil
	}
}

// flushed waits until gRPC holds no body any more: what counts against the
// client is what is in memory for it.
func (w *sending) flushed(ctx context.Context) error {
	w.mu.Lock()
	emptied := w.emptied
	w.mu.Unlock()
	if emptied == nil {
		return nil
	}
	select {
	case <-emptied:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// abandon gives back what bodies count that gRPC will never return: those of a
// connection that broke. The garbage collector has their memory.
func (w *sending) abandon() {
	w.mu.Lock()
	left := w.unsent
	w.unsent = nil
	if w.emptied != nil {
		close(w.emptied)
		w.emptied = nil
	}
	w.mu.Unlock()
	for _, n := range left {
		w.account.give(n)
	}
}

// stalled reports whether the client has taken nothing for StallTimeout although
// there was something. Waiting for room that other streams hold is no stall.
func (w *sending) stalled(now time.Time) bool {
	w.mu.Lock()
	waiting := len(w.unsent) > 0
	w.mu.Unlock()
	return waiting && now.UnixNano()-w.moved.Load() > int64(w.server.cfg.StallTimeout)
}

// budget bounds the bytes in memory for sending, in all and by client.
type budget struct {
	total   *semaphore.Weighted
	each    int64
	pending atomic.Int64

	mu      sync.Mutex
	clients map[string]*account // of those that have a stream
}

type account struct {
	budget *budget
	own    *semaphore.Weighted
	users  int
}

func (b *budget) enter(client string) (_ *account, leave func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.clients == nil {
		b.clients = map[string]*account{}
	}
	a := b.clients[client]
	if a == nil {
		a = &account{budget: b, own: semaphore.NewWeighted(b.each)}
		b.clients[client] = a
	}
	a.users++
	return a, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if a.users--; a.users == 0 {
			delete(b.clients, client)
		}
	}
}

// take waits for room: first the client's own, so that one that is at its limit
// does not stand in the way of others.
func (a *account) take(ctx context.Context, n int64) error {
	if err := a.own.Acquire(ctx, n); err != nil {
		return err
	}
	if err := a.budget.total.Acquire(ctx, n); err != nil {
		a.own.Release(n)
		return err
	}
	a.budget.pending.Add(n)
	return nil
}

func (a *account) give(n int64) {
	a.budget.pending.Add(-n)
	a.budget.total.Release(n)
	a.own.Release(n)
}
