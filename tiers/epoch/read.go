package epoch

import (
	"context"
	"fmt"
	"iter"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

// Batch is a batch of an epoch.
type Batch struct {
	Number uint64            // in the epoch, of all workers'
	Record arrow.RecordBatch // valid until the loop body ends unless retained
	Next   Position          // behind it, for Resume
}

// Epoch yields this worker's batches of an epoch. An error is yielded once and ends
// the loop.
func (d *Dataset) Epoch(ctx context.Context, epoch uint64) iter.Seq2[*Batch, error] {
	return d.Resume(ctx, d.Start(epoch))
}

// Resume is Epoch from a position on, which may be another worker's. The error
// wraps ErrPosition if the position is of another sequence of batches.
func (d *Dataset) Resume(ctx context.Context, from Position) iter.Seq2[*Batch, error] {
	return func(yield func(*Batch, error) bool) {
		if err := d.check(from); err != nil {
			yield(nil, err)
			return
		}
		r := &reader{d: d, from: from}
		next, stop := iter.Pull2(prefetch.Batches(ctx, d.store, r.refs(ctx), d.cfg.Prefetch, d.prefetch))
		defer stop()
		r.next = next
		reads := d.announce(from)
		defer reads.End()
		for p, err := range d.plan(ctx, from) {
			if err != nil {
				yield(nil, err)
				return
			}
			rec, err := r.assemble(p)
			if err != nil {
				yield(nil, fmt.Errorf("epoch %d of %s, batch %d: %w", from.Epoch, d.name, p.number, err))
				return
			}
			d.handed.Add(1)
			if !lend(&Batch{Number: p.number, Record: rec, Next: p.next}, yield) {
				return
			}
			reads.Done(p.next.Place)
		}
	}
}

// lend releases the batch even if the loop body panics.
func lend(b *Batch, yield func(*Batch, error) bool) bool {
	defer b.Record.Release()
	return yield(b, nil)
}

// planned is a batch of an epoch and the rows of stored batches that make it.
type planned struct {
	number uint64
	parts  []part
	next   Position
}

// part is rows from..to-1 of the stored batch seq, of how many.
type part struct {
	seq            uint64
	from, to, rows int64
}

// plan yields this worker's batches from a position on. It reads no batch, only how
// many rows each has.
func (d *Dataset) plan(ctx context.Context, at Position) iter.Seq2[planned, error] {
	return func(yield func(planned, error) bool) {
		first, number := at.Next, at.Next
		if at.Place == 0 && at.Row == 0 {
			number = 0 // of a position that does not say where Next begins, or of the epoch's beginning
		}
		if d.cfg.BatchRows == 0 {
			number, at.Place = at.Next, at.Next // each is a batch as it is stored
		}
		for ; at.Place < d.batches; number++ {
			parts, rows, err := d.take(ctx, &at)
			if err != nil {
				yield(planned{}, err)
				return
			}
			at.Next = number + 1
			if d.cfg.BatchRows > 0 && (rows == 0 || d.cfg.DropLast && rows < d.cfg.BatchRows) {
				return
			}
			if number < first || number%uint64(d.cfg.Workers) != uint64(d.cfg.Worker) {
				continue
			}
			if !yield(planned{number, parts, at}, nil) {
				return
			}
		}
	}
}

// take moves a position behind one batch.
func (d *Dataset) take(ctx context.Context, at *Position) (parts []part, rows int64, err error) {
	for at.Place < d.batches {
		seq, n, err := d.rowsOf(ctx, at.Epoch, at.Place)
		if err != nil {
			return nil, 0, err
		}
		if d.cfg.BatchRows == 0 {
			at.Place++
			return []part{{seq, 0, n, n}}, n, nil
		}
		to := min(n, at.Row+d.cfg.BatchRows-rows)
		if to > at.Row {
			parts = append(parts, part{seq, at.Row, to, n})
			rows += to - at.Row
		}
		if at.Row = to; to >= n {
			at.Place, at.Row = at.Place+1, 0
		}
		if rows == d.cfg.BatchRows {
			break
		}
	}
	return parts, rows, nil
}

// reader puts the batches of one loop together.
type reader struct {
	d    *Dataset
	from Position
	next func() (*tiers.Batch, error, bool)
	open *tiers.Batch // lent until the next is taken
}

// refs names the stored batches that a plan needs, each once in a row.
func (r *reader) refs(ctx context.Context) iter.Seq2[arrowio.Ref, error] {
	return func(yield func(arrowio.Ref, error) bool) {
		last, named := uint64(0), false
		for p, err := range r.d.plan(ctx, r.from) {
			if err != nil {
				yield(arrowio.Ref{}, err)
				return
			}
			for _, part := range p.parts {
				if named && part.seq == last {
					continue
				}
				last, named = part.seq, true
				ref, err := r.d.store.Ref(ctx, r.d.name, part.seq)
				if !yield(ref, err) || err != nil {
					return
				}
			}
		}
	}
}

// together is how many parts are held before they are put together: each may be a
// lease on shared memory that others wait for.
const together = 16

// assemble makes a planned batch, which the caller releases.
func (r *reader) assemble(p planned) (arrow.RecordBatch, error) {
	var got []arrow.RecordBatch
	defer func() {
		for _, rec := range got {
			rec.Release()
		}
	}()
	for _, part := range p.parts {
		rec, err := r.take(part)
		if err != nil {
			return nil, err
		}
		if got = append(got, rec); len(got) == together {
			if got, err = r.merge(got); err != nil {
				return nil, err
			}
		}
	}
	var err error
	if len(got) > 1 {
		if got, err = r.merge(got); err != nil {
			return nil, err
		}
	}
	rec := got[0]
	got = nil
	return rec, nil
}

// take returns rows of a stored batch, in place.
func (r *reader) take(p part) (arrow.RecordBatch, error) {
	if r.open == nil || r.open.Ref.Sequence != p.seq {
		b, err, ok := r.next()
		switch {
		case err != nil:
			return nil, err
		case !ok:
			return nil, fmt.Errorf("batch %d is not to be had", p.seq)
		}
		r.open = b
	}
	rec := r.open.Record
	if n := rec.NumRows(); r.open.Ref.Sequence != p.seq || n != p.rows {
		return nil, fmt.Errorf("%w: batch %d of %d rows in place of %d of %d", arrowio.ErrCorrupt, r.open.Ref.Sequence, n, p.seq, p.rows)
	}
	if p.from == 0 && p.to == p.rows {
		rec.Retain()
		return rec, nil
	}
	return rec.NewSlice(p.from, p.to), nil
}

// merge copies batches into one, and releases them.
func (r *reader) merge(got []arrow.RecordBatch) ([]arrow.RecordBatch, error) {
	schema := got[0].Schema()
	columns := make([]arrow.Array, 0, schema.NumFields())
	defer func() {
		for _, c := range columns {
			c.Release()
		}
	}()
	rows := int64(0)
	for _, rec := range got {
		rows += rec.NumRows()
	}
	for i := range schema.NumFields() {
		pieces := make([]arrow.Array, len(got))
		for j, rec := range got {
			pieces[j] = rec.Column(i)
		}
		c, err := array.Concatenate(pieces, r.d.cfg.Allocator)
		if err != nil {
			return got, fmt.Errorf("put column %q together: %w: read batches as they are stored (BatchRows 0)", schema.Field(i).Name, err)
		}
		columns = append(columns, c)
	}
	rec := array.NewRecordBatch(schema, columns, rows)
	n, err := arrowio.BodyBytes(rec)
	if err != nil {
		rec.Release()
		return got, err
	}
	r.d.copied.Add(n)
	for _, rec := range got {
		rec.Release()
	}
	return []arrow.RecordBatch{rec}, nil
}
