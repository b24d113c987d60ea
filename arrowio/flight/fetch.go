package flight

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	gen "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"google.golang.org/grpc"

	"github.com/stokehold/stokehold/arrowio"
)

// Batch is one batch that came from another host.
type Batch struct {
	Dataset string
	Meta    Meta
	Record  arrow.RecordBatch
}

const doGet = "/arrow.flight.protocol.FlightService/DoGet"

// prefixBytes come before each message of a frame, and alone at its end.
const prefixBytes = 8

// fetch is one DoGet.
type fetch struct {
	client *Client
	conn   *grpc.ClientConn
	ticket Ticket
	want   *arrowio.Ref // of the one batch of the ticket; nil: the host's word counts
	got    func(*Batch) // called with each batch in order; owns its record

	schema []byte // the stream's first message, encapsulated
	meta   Meta   // of the batch that is being put together
	frame  []byte // nil: between batches
	filled int
	next   uint64
}

// run returns nil when all batches of the ticket have come, each given to got,
// and an error that wraps a sentinel otherwise.
func (f *fetch) run(ctx context.Context) (err error) {
	f.next = f.ticket.From
	call, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Reset before each message: a long stream may take its time, silence may not.
	silence := time.AfterFunc(f.client.cfg.Timeout, func() { cancel(errSilent) })
	defer silence.Stop()
	fail := func(err error) error {
		if ctx.Err() == nil && call.Err() != nil {
			return context.Cause(call)
		}
		if f.client.isClosed() && ctx.Err() == nil {
			return ErrClosed
		}
		return fromStatus(ctx, err)
	}
	st, err := f.conn.NewStream(call, &grpc.StreamDesc{ServerStreams: true}, doGet)
	if err != nil {
		return fail(err)
	}
	if err := st.SendMsg(&gen.Ticket{Ticket: f.ticket.Encode()}); err != nil && !errors.Is(err, io.EOF) {
		return fail(err) // with io.EOF the reason comes with RecvMsg
	}
	if err := st.CloseSend(); err != nil {
		return fail(err)
	}
	in := incoming{limit: arrowio.MaxMetadataBytes, place: f.place}
	for {
		silence.Reset(f.client.cfg.Timeout)
		err := st.RecvMsg(&in)
		if errors.Is(err, io.EOF) {
			return f.ended()
		}
		if err != nil {
			return fail(err)
		}
		if in.err != nil {
			return f.broken(in.err)
		}
		if f.frame == nil || !f.whole() {
			continue
		}
		b, err := f.finish()
		if err != nil {
			return f.broken(err)
		}
		f.got(b)
	}
}

func (f *fetch) ended() error {
	if f.frame != nil || f.next < f.ticket.To {
		return fmt.Errorf("%w: its stream ended before batch %d", ErrDown, f.next)
	}
	return nil
}

func (f *fetch) broken(err error) error {
	if errors.Is(err, ErrTooLarge) {
		return err
	}
	f.client.corrupt.Add(1)
	if !errors.Is(err, arrowio.ErrCorrupt) {
		err = fmt.Errorf("%w: %w", arrowio.ErrCorrupt, err)
	}
	return err
}

// place begins or goes on with a batch and returns where the message's body
// belongs in its frame.
func (f *fetch) place(header, app []byte, bodyLen int) ([]byte, error) {
	if len(header) == 0 {
		if bodyLen > 0 {
			return nil, errors.New("body without a header")
		}
		return nil, nil // metadata alone: not ours, and harmless
	}
	if f.schema == nil {
		if bodyLen > 0 {
			return nil, errors.New("the stream begins with a message that has a body, which a schema has not")
		}
		f.schema = encapsulate(nil, header)
		return nil, nil
	}
	meta, err := DecodeMeta(app)
	if err != nil {
		return nil, err
	}
	if f.frame == nil {
		if err := f.begin(meta); err != nil {
			return nil, err
		}
	} else if meta.Sequence != f.meta.Sequence || meta.SHA256 != f.meta.SHA256 || meta.FrameBytes != f.meta.FrameBytes {
		return nil, fmt.Errorf("message of batch %d within batch %d", meta.Sequence, f.meta.Sequence)
	}
	need := prefixBytes + len(header) + bodyLen
	if need > len(f.frame)-f.filled {
		return nil, fmt.Errorf("message of %d bytes, %d left of the batch's frame", need, len(f.frame)-f.filled)
	}
	f.filled = len(encapsulate(f.frame[:f.filled], header))
	body := f.frame[f.filled : f.filled+bodyLen]
	f.filled += bodyLen
	return body, nil
}

func (f *fetch) begin(meta Meta) error {
	if meta.Sequence != f.next || f.next >= f.ticket.To {
		return fmt.Errorf("batch %d came where %d belongs", meta.Sequence, f.next)
	}
	if most := f.client.cfg.MaxMessageBytes; meta.FrameBytes > most {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, meta.FrameBytes, most)
	}
	schema := f.schema
	if meta.Schema != nil {
		schema = encapsulate(nil, meta.Schema)
	}
	if int64(len(schema)) > meta.FrameBytes {
		return fmt.Errorf("frame of %d bytes, its schema has %d", meta.FrameBytes, len(schema))
	}
	f.meta = meta
	f.frame = memory.DefaultAllocator.Allocate(int(meta.FrameBytes)) // 64-byte aligned
	f.filled = copy(f.frame, schema)
	return nil
}

// whole reports whether the frame has all its messages: no message is as short
// as what may be left.
func (f *fetch) whole() bool { return len(f.frame)-f.filled <= prefixBytes }

// finish checks the frame and makes a batch of it.
func (f *fetch) finish() (*Batch, error) {
	frame, meta := f.frame, f.meta
	f.frame = nil
	if len(frame)-f.filled == prefixBytes {
		encapsulate(frame[:f.filled], nil) // the end of the stream
	} else if len(frame) != f.filled {
		return nil, fmt.Errorf("%d bytes left of the batch's frame", len(frame)-f.filled)
	}
	sum := sha256.Sum256(frame)
	digest := hex.EncodeToString(sum[:])
	if digest != meta.SHA256 {
		return nil, fmt.Errorf("SHA-256 of batch %d is %s, %s expected", meta.Sequence, digest, meta.SHA256)
	}
	var opts []arrowio.DecodeOption
	if f.want != nil {
		known, err := checksum(*f.want, digest)
		if err != nil {
			return nil, err
		}
		if known {
			// These are the bytes that were validated when they were written.
			opts = append(opts, arrowio.Trusted())
		}
	}
	d := f.client.decoders.For(f.ticket.Dataset)
	rec, err := d.Decode(frame, nil, opts...)
	if err != nil {
		return nil, err
	}
	if err := f.check(rec, d); err != nil {
		rec.Release()
		return nil, err
	}
	f.client.copies.Add(meta.BodyBytes)
	f.client.received.Add(meta.FrameBytes)
	f.client.batches.Add(1)
	f.next++
	return &Batch{Dataset: f.ticket.Dataset, Meta: meta, Record: rec}, nil
}

// checksum compares with the ref's own checksum; known is false if it has none.
func checksum(ref arrowio.Ref, digest string) (known bool, err error) {
	for _, l := range ref.Locations {
		if l.Codec != "arrow-ipc" || l.SHA256 == "" {
			continue
		}
		if l.SHA256 != digest {
			return false, fmt.Errorf("SHA-256 is %s, the ref says %s", digest, l.SHA256)
		}
		known = true
	}
	return known, nil
}

func (f *fetch) check(rec arrow.RecordBatch, d *arrowio.Decoder) error {
	if rec.NumRows() != f.meta.Rows {
		return fmt.Errorf("%d rows, %d announced", rec.NumRows(), f.meta.Rows)
	}
	if f.want != nil && f.want.Fingerprint != "" && rec.NumRows() != f.want.Rows {
		return fmt.Errorf("%d rows, the ref says %d", rec.NumRows(), f.want.Rows)
	}
	if want := f.ticket.Fingerprint; want != "" {
		if got := d.Fingerprint(rec.Schema()); got != want {
			return fmt.Errorf("schema %s, %s expected", got, want)
		}
	}
	return nil
}
