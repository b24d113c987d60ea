package tiers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
)

// columns are what governance takes out of the batch, as its event was approved.
func (e *entry) columns() (events.Columns, error) {
	if !bytes.Contains(e.Event, []byte(events.ExtColumns)) {
		return events.Columns{}, nil
	}
	var ev events.Event
	if err := json.Unmarshal(e.Event, &ev); err != nil {
		return events.Columns{}, fmt.Errorf("columns to take out: %w", err)
	}
	return events.ColumnsOf(&ev)
}

// openEntry opens a batch without the columns that are to be taken out of it.
func (s *Store) openEntry(ctx context.Context, e *entry, use arenaUse) (*Batch, error) {
	columns, err := e.columns()
	if err != nil {
		return nil, err
	}
	b, err := s.openWithout(ctx, e.Ref, columns, use)
	if err == nil {
		b.Labels = e.Labels
	}
	return b, err
}

func (s *Store) openWithout(ctx context.Context, ref arrowio.Ref, columns events.Columns, use arenaUse) (*Batch, error) {
	if columns.IsZero() {
		return s.open(ctx, ref, use)
	}
	b, err := s.open(ctx, ref, anywhere)
	if err != nil {
		return nil, err
	}
	defer b.Release()
	rec := without(b.Record, columns)
	// The lease is on all of the batch and must not be handed on.
	part := &Batch{Ref: b.Ref, Record: rec, Tier: b.Tier, Peer: b.Peer, partial: true}
	if use == anywhere {
		return part, nil
	}
	return s.copyFor(ctx, part, use)
}

// columnsOf looks up what governance takes out of a batch; nothing, of one that is
// not in the catalog. What was committed stays as it is, and is remembered.
func (s *Store) columnsOf(ctx context.Context, dataset string, seq uint64) (events.Columns, error) {
	id := batchPlace{dataset, seq}
	if c, ok := s.takenOut.get(id); ok {
		return c, nil
	}
	e, err := s.entry(ctx, dataset, seq, true)
	if errors.Is(err, ErrNotFound) {
		return events.Columns{}, nil
	}
	var c events.Columns
	if err == nil {
		c, err = e.columns()
	}
	if err != nil {
		return c, err
	}
	// Before the head has moved past it, another writer may put another entry there.
	if head, _, err := s.head(ctx, dataset); err == nil && seq < head.Next {
		s.takenOut.put(id, c)
	}
	return c, nil
}

// batchPlace names a batch.
type batchPlace struct {
	dataset  string
	sequence uint64
}

// maxTakenOut bounds takenOut. What it holds is small where nothing is taken out.
const maxTakenOut = 4096

// takenOut remembers what is taken out of batches.
type takenOut struct {
	mu sync.Mutex
	of map[batchPlace]events.Columns
}

func (t *takenOut) get(id batchPlace) (events.Columns, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, ok := t.of[id]
	return c, ok
}

func (t *takenOut) put(id batchPlace, c events.Columns) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil || len(t.of) >= maxTakenOut {
		t.of = make(map[batchPlace]events.Columns)
	}
	t.of[id] = c
}

// copyFor puts a batch without some of its columns in the arena for one reader:
// unlike what bring makes it is not the batch, and nobody else finds it. With ifRoom
// it stays where it is if there is no room.
func (s *Store) copyFor(ctx context.Context, b *Batch, use arenaUse) (*Batch, error) {
	stays := false
	defer func() {
		if !stays {
			b.Release()
		}
	}()
	if s.hot.arena == nil {
		return nil, ErrNoArena
	}
	frame, err := arrowio.Prepare(b.Record)
	if err != nil {
		return nil, err
	}
	loan, err := s.hot.loanAs(ctx, frame.Size(), use)
	if stays = err != nil && use == ifRoom && ctx.Err() == nil; stays {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bring into the arena: %w", err)
	}
	if _, err := frame.EncodeTo(loan.Bytes(), s.hot.copies); err != nil {
		loan.Cancel()
		return nil, err
	}
	handle := loan.Publish()
	// Until the batch is given back others may lease the slot, as of any batch.
	drop := func() { _ = s.hot.arena.Drop(handle) } // gone with its arena: as wanted
	lease, err := s.hot.arena.Lease(handle, leaseOwner)
	if err != nil {
		drop()
		return nil, err
	}
	copied, err := lease.Batch(arrowio.Trusted())
	if err != nil {
		drop()
		return nil, err
	}
	return &Batch{Ref: b.Ref, Record: copied, Tier: b.Tier, Peer: b.Peer, Lease: lease, partial: true, drop: drop}, nil
}

// without returns a record of the same rows, which the caller releases. Columns
// that it does not have are none to take out.
func without(rec arrow.RecordBatch, c events.Columns) arrow.RecordBatch {
	var fields []arrow.Field
	var cols []arrow.Array
	for i, f := range rec.Schema().Fields() {
		switch {
		case slices.Contains(c.Drop, f.Name):
			continue
		case slices.Contains(c.Mask, f.Name):
			f.Nullable = true
			cols = append(cols, array.MakeArrayOfNull(memory.DefaultAllocator, f.Type, int(rec.NumRows())))
		default:
			col := rec.Column(i)
			col.Retain()
			cols = append(cols, col)
		}
		fields = append(fields, f)
	}
	meta := rec.Schema().Metadata()
	out := array.NewRecordBatch(arrow.NewSchema(fields, &meta), cols, rec.NumRows())
	for _, col := range cols {
		col.Release()
	}
	return out
}
