package tiers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

// body is a batch about to be written.
type body struct {
	content     io.WriterTo // its frame for the warm tier
	fingerprint string
	rows        int64
	bodyBytes   int64
	hot         *arrowio.Location
	keep        func(id, digest string) // makes the shared slot the batch's hot copy
	abandon     func()                  // gives the shared slot up
	spilled     error                   // why it has no hot copy, where it should have one
	copied      int64                   // body bytes copied into shared memory
}

// framed is a frame in memory.
type framed []byte

func (f framed) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(f)
	return int64(n), err
}

// lay makes the body of a batch that is not hot.
func (w *Writer) lay(batch arrow.RecordBatch) (*body, *arrowio.Frame, error) {
	frame, err := arrowio.Prepare(batch)
	if err != nil {
		return nil, nil, err
	}
	if frame.Size() > MaxBatchBytes {
		return nil, nil, fmt.Errorf("%w: %d bytes framed, at most %d: write smaller batches", ErrTooLarge, frame.Size(), int64(MaxBatchBytes))
	}
	return &body{
		content: frame, fingerprint: w.fingerprintOf(batch.Schema()), rows: batch.NumRows(), bodyBytes: frame.BodyBytes(),
		keep: func(_, _ string) {}, abandon: func() {},
	}, frame, nil
}

// fingerprintOf is arrowio.Fingerprint, worked out once where one batch after the
// other has the same schema.
func (w *Writer) fingerprintOf(schema *arrow.Schema) string {
	if w.last != schema {
		w.last, w.lastPrint = schema, arrowio.Fingerprint(schema)
	}
	return w.lastPrint
}

// place makes a published slot the hot copy that b will have. lease is on the
// slot, so that it stays until the write has ended.
func (h *hot) place(b *body, lease shm.Lease) {
	handle, arena := lease.Handle(), lease.Arena()
	b.hot = &arrowio.Location{Tier: arrowio.Hot, URI: handle.String(), Bytes: handle.Length, Codec: "arrow-ipc"}
	b.keep = func(id, digest string) { h.add(id, arena, handle, digest); lease.Release() }
	b.abandon = func() { _ = arena.Drop(handle); lease.Release() } // gone with its arena: as wanted
}

// encode copies a batch into the arena, unless it lies in shared memory as a
// whole; without room it spills.
func (w *Writer) encode(ctx context.Context, batch arrow.RecordBatch) (*body, error) {
	b, frame, err := w.lay(batch)
	if err != nil {
		return nil, err
	}
	h := w.store.hot
	if h.again(b, batch) {
		return b, nil
	}
	loan, err := h.loan(ctx, frame.Size(), h.wait)
	if err != nil && ctx.Err() != nil {
		return nil, err
	}
	if loan == nil { // no arena, or no room: the batch is not hot, and that is all
		b.spilled = err
		return b, nil
	}
	if _, err := frame.EncodeTo(loan.Bytes(), h.copies); err != nil {
		loan.Cancel()
		return nil, err
	}
	lease, err := h.arena.Hold(loan.Publish(), leaseOwner) // or the memory goes if the arena is closed now
	if err != nil {
		return nil, err
	}
	b.content, b.copied = framed(lease.Bytes()), b.bodyBytes
	h.place(b, lease)
	return b, nil
}

// again publishes a batch that was read from a slot of this process, and is
// passed on as it was, where it lies. It reports whether that is so.
func (h *hot) again(b *body, batch arrow.RecordBatch) bool {
	first := firstBuffer(batch)
	if first == nil {
		return false
	}
	lease, ok := h.host.Locate(first, leaseOwner)
	if !ok {
		return false
	}
	there, err := h.passed.Decode(lease.Bytes(), nil, arrowio.Trusted()) // only compared
	if err == nil {
		ok = arrowio.SameMemory(batch, there)
		there.Release()
	}
	if err != nil || !ok || lease.Arena().Keep(lease.Handle()) != nil {
		lease.Release()
		return false
	}
	h.place(b, lease)
	return true
}

func firstBuffer(batch arrow.RecordBatch) []byte {
	for _, col := range batch.Columns() {
		for _, b := range col.Data().Buffers() {
			if b != nil && b.Len() > 0 {
				return b.Bytes()
			}
		}
	}
	return nil
}

// adopt makes a slot that another process wrote the hot copy; over the host's
// quota it is written to the warm tier alone.
func (w *Writer) adopt(seg *shm.Arena, handle shm.Handle) (*body, error) {
	h := w.store.hot
	fail := func(err error) (*body, error) {
		_ = seg.Drop(handle) // gone with its arena: as wanted
		return nil, err
	}
	full := h.host.Add(seg)
	if full != nil && !errors.Is(full, shm.ErrQuota) {
		return fail(full)
	}
	lease, err := seg.Lease(handle, leaseOwner)
	if err != nil {
		return fail(err)
	}
	frame := lease.Bytes()
	d := w.store.decoders.For(w.dataset)
	rec, err := lease.BatchBy(d) // validated in full: the writer was another process
	if err != nil {
		return fail(err)
	}
	bodyBytes, err := arrowio.BodyBytes(rec)
	if err != nil {
		rec.Release()
		return fail(err)
	}
	b := &body{
		content: framed(frame), fingerprint: d.Fingerprint(rec.Schema()), rows: rec.NumRows(), bodyBytes: bodyBytes,
		abandon: func() { rec.Release(); _ = seg.Drop(handle) }, // gone with its arena: as wanted
		spilled: full,
	}
	b.keep = func(_, _ string) { b.abandon() }
	if b.spilled == nil {
		b.hot = &arrowio.Location{Tier: arrowio.Hot, URI: handle.String(), Bytes: handle.Length, Codec: "arrow-ipc"}
		b.keep = func(id, digest string) { h.add(id, seg, handle, digest); rec.Release() }
	}
	return b, nil
}

// spillLogEvery bounds how often spilling is logged: a full arena spills each
// batch.
const spillLogEvery = 10 * time.Second

// spills counts the batches that found no room in the arena.
type spills struct {
	batches, bytes atomic.Int64

	mu       sync.Mutex
	logged   time.Time
	unlogged int64
}

// spill counts and reports a batch that goes to the warm tier alone.
func (s *Store) spill(ctx context.Context, id string, b *body) {
	p := &s.spills
	p.batches.Add(1)
	p.bytes.Add(b.bodyBytes)
	p.mu.Lock()
	p.unlogged++
	n, now := p.unlogged, time.Now()
	level := slog.LevelDebug
	if now.Sub(p.logged) >= spillLogEvery {
		level, p.logged, p.unlogged = slog.LevelWarn, now, 0
	}
	p.mu.Unlock()
	s.log.Log(ctx, level, "no room in shared memory: batch goes to the warm tier alone; enlarge the arena, or find what holds its batches",
		"batch", id, "bytes", b.bodyBytes, "batches_since_last_report", n, "error", b.spilled)
}
