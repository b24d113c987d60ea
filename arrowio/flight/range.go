package flight

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/stokehold/stokehold/arrowio"
)

// maxWindow bounds how many batches one stream asks for at once.
const maxWindow = 1 << 10

// Request says what a Range reads.
type Request struct {
	URI         string // of the host: grpc+tcp://HOST:PORT or grpc+tls://HOST:PORT
	Dataset     string
	From, To    uint64 // the batches From to To-1, all of which must exist
	Fingerprint string // of the schema expected; "": any
}

// Range yields the batches of a request in sequence. A batch is released when
// the loop body ends: retain Record to keep it. An error is yielded once and ends
// the loop; it wraps the same sentinels as those of Resolve.
//
// Config.Streams windows of the range are fetched at once, and only those for
// which there is room in Config.MaxBytesInFlight, so that a slow reader keeps
// nothing waiting at the host. The room is reckoned by the largest batch so far:
// a larger one than ever goes beyond it until it is released. A stream that
// breaks is begun again after the last batch that came whole, again and again
// until no batch has come for Config.Patience.
func (c *Client) Range(ctx context.Context, r Request) iter.Seq2[*Batch, error] {
	return func(yield func(*Batch, error) bool) {
		fail := func(err error) {
			yield(nil, &Error{Op: "read", Host: r.URI, Batch: fmt.Sprintf("%s#%d-%d", r.Dataset, r.From, r.To), Err: err})
		}
		ticket := Ticket{Dataset: r.Dataset, From: r.From, To: r.To, Fingerprint: r.Fingerprint}
		if r.From == r.To {
			return
		}
		if err := ticket.check(); err != nil {
			fail(fmt.Errorf("%w: %w", ErrTicket, err))
			return
		}
		h, leave, err := c.host(r.URI)
		if err != nil {
			fail(err)
			return
		}
		defer leave()
		ctx, cancel := context.WithCancel(ctx)
		p := &prefetch{
			client: c, host: h, ticket: ticket,
			room: semaphore.NewWeighted(c.cfg.MaxBytesInFlight), order: make(chan *window, c.cfg.Streams),
			slots: semaphore.NewWeighted(int64(c.cfg.Streams)),
		}
		p.largest.Store(max(1, c.cfg.MaxBytesInFlight/int64(c.cfg.Streams)))
		p.wg.Go(func() { p.plan(ctx) })
		defer p.end()
		defer cancel()
		for w := range p.order {
			for it := range w.out {
				if it.err != nil {
					fail(it.err)
					return
				}
				if !p.lend(it, yield) {
					return
				}
			}
		}
		if err := ctx.Err(); err != nil {
			fail(err)
		}
	}
}

// prefetch is the windows of one Range.
type prefetch struct {
	client  *Client
	host    *host
	ticket  Ticket
	room    *semaphore.Weighted // bytes
	slots   *semaphore.Weighted // streams
	order   chan *window        // in sequence
	largest atomic.Int64        // bytes of a batch; a guess until one came
	came    atomic.Bool
	wg      sync.WaitGroup
}

// window is some batches in a row, fetched by one stream.
type window struct {
	from, to uint64
	each     int64     // bytes of room taken for each batch
	out      chan item // has room for all of them and an error
}

type item struct {
	batch *Batch
	room  int64
	err   error
}

// plan cuts the range into windows. Room is taken in sequence: the batch that
// the reader waits for never waits for room that later ones hold.
func (p *prefetch) plan(ctx context.Context) {
	defer close(p.order)
	for next := p.ticket.From; next < p.ticket.To; {
		each := min(p.largest.Load(), p.client.cfg.MaxBytesInFlight)
		n := uint64(1)
		if p.came.Load() {
			n = uint64(min(max(1, p.client.cfg.MaxBytesInFlight/int64(p.client.cfg.Streams)/each), maxWindow))
		}
		n = min(n, p.ticket.To-next)
		if p.room.Acquire(ctx, each*int64(n)) != nil || p.slots.Acquire(ctx, 1) != nil {
			return // the reader is gone, or sees the same
		}
		w := &window{from: next, to: next + n, each: each, out: make(chan item, n+1)}
		next += n
		p.wg.Go(func() {
			defer close(w.out)
			defer p.slots.Release(1)
			if err := p.fill(ctx, w); err != nil {
				w.out <- item{err: err}
			}
		})
		select {
		case p.order <- w:
		case <-ctx.Done():
			p.wg.Go(w.discard)
			return
		}
	}
}

// fill fetches a window, beginning again where a stream broke.
func (p *prefetch) fill(ctx context.Context, w *window) error {
	next, last, fails := w.from, time.Now(), 0
	for {
		f := fetch{client: p.client, conn: p.host.conn(), ticket: p.ticket}
		f.ticket.From, f.ticket.To = next, w.to
		f.got = func(b *Batch) {
			next, last, fails = next+1, time.Now(), 0
			p.size(b.Meta.FrameBytes)
			w.out <- item{batch: b, room: w.each}
		}
		err := f.run(ctx)
		if err == nil && next == w.to {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if next == w.to { // all came, and then the connection broke
			return nil
		}
		if !errors.Is(err, ErrDown) || time.Since(last) > p.client.cfg.Patience {
			return err
		}
		p.client.resumed.Add(1)
		if err := pause(ctx, fails); err != nil {
			return err
		}
		fails++
	}
}

// size learns how large batches are.
func (p *prefetch) size(n int64) {
	if p.came.CompareAndSwap(false, true) {
		p.largest.Store(n)
		return
	}
	for was := p.largest.Load(); n > was && !p.largest.CompareAndSwap(was, n); {
		was = p.largest.Load()
	}
}

// lend releases the batch even if the loop body panics.
func (p *prefetch) lend(it item, yield func(*Batch, error) bool) bool {
	defer p.room.Release(it.room)
	defer it.batch.Record.Release()
	return yield(it.batch, nil)
}

// end waits for the streams, which the context has ended, and releases what was
// not read.
func (p *prefetch) end() {
	for w := range p.order {
		w.discard()
	}
	p.wg.Wait()
}

func (w *window) discard() {
	for it := range w.out {
		if it.batch != nil {
			it.batch.Record.Release()
		}
	}
}

var _ arrowio.Resolver = (*Client)(nil)
