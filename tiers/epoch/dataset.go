package epoch

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

var (
	// ErrConfig means a configuration that makes no sense.
	ErrConfig = errors.New("epoch: unusable configuration")
	// ErrPosition means a position of another dataset, order or batch size, where a
	// reader would go on with other batches than it left.
	ErrPosition = errors.New("epoch: position of another sequence")
	// ErrShort means that the dataset has fewer batches than are asked for.
	ErrShort = errors.New("epoch: dataset has fewer batches")
)

// Store is where a dataset is. *tiers.Store implements it.
type Store interface {
	prefetch.Opener
	Head(ctx context.Context, dataset string) (tiers.Head, error)
	Ref(ctx context.Context, dataset string, seq uint64) (arrowio.Ref, error)
}

// Config says which batches make an epoch and who gets which. The zero value is
// the whole dataset in sequence, as it is stored, for one worker.
type Config struct {
	Order     Order
	BatchRows int64  // rows of each batch but the last; 0: batches as they are stored
	DropLast  bool   // leave out the last batch if it has fewer rows
	From, To  uint64 // sequences From..To-1 of the dataset; To 0: all that there are now
	Workers   int    // default 1
	Worker    int    // which of them this is, from 0
	// Prefetch bounds reading ahead of each loop; its defaults are 32 batches and 512 MiB.
	Prefetch prefetch.Config
	Stats    *prefetch.Stats // counts what Dataset.Stats does of reading ahead, for several datasets; nil: nobody wants to know
	// Allocator takes the batches that are put together from several; default the Go
	// heap.
	Allocator memory.Allocator
}

func (c Config) check() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...))
	}
	if err := c.Order.check(); err != nil {
		faults = append(faults, err)
	}
	if c.BatchRows < 0 {
		fault("BatchRows %d is negative", c.BatchRows)
	}
	if c.DropLast && c.BatchRows == 0 {
		fault("DropLast without BatchRows: stored batches have the rows they have")
	}
	if c.To != 0 && c.To <= c.From {
		fault("batches %d to before %d are none", c.From, c.To)
	}
	if c.Workers < 1 || c.Worker < 0 || c.Worker >= c.Workers {
		fault("worker %d of %d: they are numbered from 0", c.Worker, c.Workers)
	}
	return errors.Join(faults...)
}

// Dataset is a dataset as it was when it was opened. Safe for concurrent use; each
// loop over an epoch reads by itself.
type Dataset struct {
	store   Store
	name    string
	cfg     Config
	batches uint64 // from cfg.From

	rows     []atomic.Int64 // of each batch, and 1; 0: not looked up yet
	prefetch *prefetch.Stats
	copied   atomic.Int64
	handed   atomic.Uint64
}

// Open looks up how much there is of a dataset. It takes 8 bytes of memory for each
// batch. Errors wrap ErrConfig, ErrShort, or are of tiers (ErrNotFound).
func Open(ctx context.Context, store Store, dataset string, cfg Config) (*Dataset, error) {
	if cfg.Workers == 0 && cfg.Worker == 0 {
		cfg.Workers = 1
	}
	if cfg.Order.Kind == "" {
		cfg.Order.Kind = Sequential
	}
	if cfg.Allocator == nil {
		cfg.Allocator = memory.DefaultAllocator
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	head, err := store.Head(ctx, dataset)
	if err != nil {
		return nil, err
	}
	if cfg.To == 0 {
		cfg.To = max(head.Next, cfg.From)
	}
	if cfg.To > head.Next {
		return nil, fmt.Errorf("%w: %s has %d, batches %d to before %d are asked for: wait for them, or ask for fewer", ErrShort, dataset, head.Next, cfg.From, cfg.To)
	}
	d := &Dataset{store: store, name: dataset, cfg: cfg, batches: cfg.To - cfg.From}
	if d.prefetch = new(prefetch.Stats); cfg.Stats != nil {
		d.prefetch = cfg.Stats.Part()
	}
	d.rows = make([]atomic.Int64, d.batches)
	return d, nil
}

// Batches is how many stored batches make an epoch.
func (d *Dataset) Batches() uint64 { return d.batches }

// Stats counts what the loops over a Dataset did.
type Stats struct {
	Batches     uint64          `json:"batches"`      // handed out
	CopiedBytes int64           `json:"copied_bytes"` // of bodies, in putting batches together
	Prefetch    prefetch.Counts `json:"prefetch"`
}

// Stats returns the counts as of now.
func (d *Dataset) Stats() Stats {
	return Stats{Batches: d.handed.Load(), CopiedBytes: d.copied.Load(), Prefetch: d.prefetch.Counts()}
}

// Position is where in an epoch a reader is: before the batch Next of all workers'.
// It is to be stored, as JSON.
type Position struct {
	Epoch     uint64 `json:"epoch"`
	Next      uint64 `json:"next"`
	Dataset   string `json:"dataset"`
	From      uint64 `json:"from,omitempty"`
	Batches   uint64 `json:"batches"`
	Order     Order  `json:"order"`
	BatchRows int64  `json:"batch_rows,omitempty"`
	// Place and Row are where Next begins: which batch of the order, and which of its
	// rows.
	Place uint64 `json:"place"`
	Row   int64  `json:"row,omitempty"`
}

// At returns a position from which a reader first gets the batch with that number,
// or the first of its own after it, of the same epoch: for workers that go on in
// another number. next may not be before the position's own.
func (p Position) At(next uint64) (Position, error) {
	if next < p.Next {
		return p, fmt.Errorf("%w: batch %d is before %d; take an earlier position", ErrPosition, next, p.Next)
	}
	// Where it begins is found on the way.
	q := p
	q.Next = next
	if next > p.Next {
		q.Place, q.Row = 0, 0
	}
	return q, nil
}

// Start is the beginning of an epoch.
func (d *Dataset) Start(epoch uint64) Position {
	return Position{Epoch: epoch, Dataset: d.name, From: d.cfg.From, Batches: d.batches, Order: d.cfg.Order, BatchRows: d.cfg.BatchRows}
}

func (d *Dataset) check(p Position) error {
	want := d.Start(p.Epoch)
	want.Next, want.Place, want.Row = p.Next, p.Place, p.Row
	switch {
	case p != want && p.Batches != want.Batches && p.Dataset == want.Dataset:
		return fmt.Errorf("%w: it is of %d batches of %s from %d, this is of %d from %d: open it with From and To as they were", ErrPosition, p.Batches, p.Dataset, p.From, want.Batches, want.From)
	case p != want:
		return fmt.Errorf("%w: %+v, this is %+v", ErrPosition, p, want)
	case p.Place > d.batches || p.Row < 0:
		return fmt.Errorf("%w: place %d, row %d of %d batches", ErrPosition, p.Place, p.Row, d.batches)
	}
	return nil
}

// rowsOf returns how many rows the batch at a place of an epoch has, and which it
// is.
func (d *Dataset) rowsOf(ctx context.Context, epoch, place uint64) (seq uint64, rows int64, err error) {
	i := d.cfg.Order.At(epoch, d.batches, place)
	seq = d.cfg.From + i
	if known := d.rows[i].Load(); known != 0 {
		return seq, known - 1, nil
	}
	ref, err := d.store.Ref(ctx, d.name, seq)
	if err != nil {
		return seq, 0, err
	}
	d.rows[i].Store(ref.Rows + 1)
	return seq, ref.Rows, nil
}
