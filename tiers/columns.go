package tiers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

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
	if columns.IsZero() {
		b, err := s.open(ctx, e.Ref, use)
		if err == nil {
			b.Labels = e.Labels
		}
		return b, err
	}
	b, err := s.open(ctx, e.Ref, anywhere)
	if err != nil {
		return nil, err
	}
	defer b.Release()
	rec := without(b.Record, columns)
	// The lease is on all of the batch and must not be handed on.
	part := &Batch{Ref: b.Ref, Record: rec, Tier: b.Tier, Peer: b.Peer, Labels: e.Labels, partial: true}
	if use == anywhere {
		return part, nil
	}
	out, err := s.copyFor(ctx, part, use)
	if err == nil {
		out.Labels = e.Labels
	}
	return out, err
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
