package stages

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/epoch"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

// Ahead bounds how far ahead of its stages a Runtime reads. Zero values take the
// defaults.
type Ahead struct {
	Off bool // batches are opened when a stage asks for them
	// Bytes bounds the bodies that are read ahead for all stages together; default a
	// quarter of the store's arena, 64 MiB where it has none. Each loop has one batch
	// under way besides.
	Bytes      int64
	MaxBatches int // of one loop; default 32
	Parallel   int // opened at once for one loop; default 4
}

// aheadWithoutArena is Ahead.Bytes where there is no arena to take a part of.
const aheadWithoutArena = 64 << 20

// readAhead is what the loops of a Runtime share.
type readAhead struct {
	once      sync.Once
	budget    *prefetch.Budget
	stats     prefetch.Stats
	preparing sync.Map      // RUN/STAGE/INPUT of stages that have not begun
	stuck     time.Duration // see stuckAfter; 0: that
}

// ReadAhead counts what reading ahead has achieved for all stages of this process.
func (r *Runtime) ReadAhead() prefetch.Counts { return r.ahead.stats.Counts() }

func readAheadOf(c prefetch.Counts) events.ReadAhead {
	return events.ReadAhead{
		Hits: int64(c.Hits), Misses: int64(c.Misses), Fresh: int64(c.Fresh), //nolint:gosec // counts of batches
		BytesEarly: c.BytesEarly, BytesLate: c.BytesLate, StallSeconds: c.Stall.Seconds(),
	}
}

// aheadConfig is how a loop over an input reads.
func (r *Runtime) aheadConfig(toArena bool) prefetch.Config {
	r.ahead.once.Do(func() { r.ahead.budget = prefetch.NewBudget(r.aheadBytes()) })
	return prefetch.Config{
		MaxBatches: r.Ahead.MaxBatches, Parallel: r.Ahead.Parallel, ToArena: toArena, Budget: r.ahead.budget,
	}
}

func (r *Runtime) aheadBytes() int64 {
	if r.Ahead.Bytes > 0 {
		return r.Ahead.Bytes
	}
	if arena := r.Store.ArenaSize(); arena > 0 {
		return arena / 4
	}
	return aheadWithoutArena
}

// reading names and opens the batches of an input.
func (d *runDriver) reading(dataset string, from, to uint64) (*tiers.Reading, error) {
	if from != Start {
		return d.rt.Store.Reading(dataset, from, to), nil
	}
	for _, b := range d.a.Inputs {
		if b.Dataset == dataset && b.Bounded {
			return d.rt.Store.ReadingAppended(dataset, d.a.Run, b.Name), nil
		}
	}
	return nil, Permanent(errors.New("is not written by a stage of this run: it has no start of its own"))
}

// batches is Batches for a consumer that says when it has had nothing.
func (d *runDriver) batches(ctx context.Context, dataset string, from, to uint64, starved func() (time.Time, bool)) iter.Seq2[*tiers.Batch, error] {
	return func(yield func(*tiers.Batch, error) bool) {
		reading, err := d.reading(dataset, from, to)
		if err != nil {
			yield(nil, fmt.Errorf("read %s: %w", dataset, err))
			return
		}
		var reads *tiers.Announced
		announced := from != Start // where that is, is known with the first batch
		if announced {
			reads = d.comesTo(dataset, tiers.Reads{At: from, To: to})
		}
		defer func() { reads.End() }()
		for b, err := range d.follow(ctx, reading, starved) {
			if err == nil {
				err = d.made.batch(ctx, b)
			}
			if err != nil {
				yield(nil, fmt.Errorf("read %s: %w", dataset, err))
				return
			}
			d.count(func(s *DataStats) { s.BatchesIn++ })
			if !announced {
				announced = true
				reads = d.comesTo(dataset, tiers.Reads{At: b.Ref.Sequence, To: to})
			}
			seq := b.Ref.Sequence
			if !yield(b, nil) {
				return
			}
			reads.Done(seq + 1)
		}
	}
}

// comesTo tells who manages the tiers what the stage comes to.
func (d *runDriver) comesTo(dataset string, reads tiers.Reads) *tiers.Announced {
	return d.rt.Store.Announce(dataset, d.a.Run+"/"+d.a.Stage, reads)
}

func (d *runDriver) follow(ctx context.Context, from *tiers.Reading, starved func() (time.Time, bool)) iter.Seq2[*tiers.Batch, error] {
	if d.rt.Ahead.Off {
		return from.Batches(ctx, d.a.ChildProcess)
	}
	cfg := d.rt.aheadConfig(d.a.ChildProcess)
	cfg.Tail, cfg.Starved = true, starved
	return prefetch.Batches(ctx, from, from.Refs(ctx), cfg, d.ahead)
}

// EpochReader is an optional power of a Driver: one that reads the batches of an
// input in other orders than that in which they were written.
type EpochReader interface {
	Epochs(ctx context.Context, dataset string, cfg epoch.Config) (*epoch.Dataset, error)
}

// Epochs opens the dataset that input name brings, as far as it is written now, for
// reading it in epochs: shuffled by seed, in windows, in batches of another size, by
// several workers. It is read ahead in that order. Keep a position
// (epoch.Batch.Next) in a checkpoint and go on with Dataset.Resume. The stage's own
// seed is Task.Seed. Not in a child process, which is fed in sequence.
func (t *Task) Epochs(ctx context.Context, name string, cfg epoch.Config) (*epoch.Dataset, error) {
	b, err := t.dataset(name)
	if err != nil {
		return nil, err
	}
	d, ok := t.driver.(EpochReader)
	if !ok {
		return nil, Permanent(fmt.Errorf("stage %s: epochs of %s: this kind of process is fed in sequence: run the stage in the worker's own process", t.Stage, b.Dataset))
	}
	return d.Epochs(ctx, b.Dataset, cfg)
}

// Epochs implements EpochReader.
func (d *runDriver) Epochs(ctx context.Context, dataset string, cfg epoch.Config) (*epoch.Dataset, error) {
	ahead := d.rt.aheadConfig(false)
	if d.rt.Ahead.Off {
		ahead.MaxBatches = 1
	}
	if cfg.Prefetch.MaxBatches == 0 {
		cfg.Prefetch.MaxBatches = ahead.MaxBatches
	}
	if cfg.Prefetch.Parallel == 0 {
		cfg.Prefetch.Parallel = ahead.Parallel
	}
	// Not into the arena: nobody leases them from here, and all must pass OpenBatch.
	cfg.Prefetch.ToArena, cfg.Prefetch.Budget, cfg.Stats = false, ahead.Budget, d.ahead
	return epoch.Open(ctx, &epochStore{Reading: d.rt.Store.Reading(dataset, 0, 0), store: d.rt.Store, d: d}, dataset, cfg)
}

// epochStore opens batches as a reader of the dataset may see them.
type epochStore struct {
	*tiers.Reading
	store *tiers.Store
	d     *runDriver
}

// Head implements epoch.Store.
func (s *epochStore) Head(ctx context.Context, dataset string) (tiers.Head, error) {
	return s.store.Head(ctx, dataset)
}

// Ref implements epoch.Store.
func (s *epochStore) Ref(ctx context.Context, dataset string, seq uint64) (arrowio.Ref, error) {
	return s.store.Ref(ctx, dataset, seq)
}

// Announce implements epoch.Announcer.
func (s *epochStore) Announce(dataset, _ string, reads tiers.Reads) *tiers.Announced {
	return s.d.comesTo(dataset, reads)
}

// OpenBatch implements prefetch.Opener.
func (s *epochStore) OpenBatch(ctx context.Context, ref arrowio.Ref, toArena bool) (*tiers.Batch, error) {
	b, err := s.Reading.OpenBatch(ctx, ref, toArena)
	if err != nil {
		return nil, err
	}
	if err := s.d.made.batch(ctx, b); err != nil {
		b.Release()
		return nil, err
	}
	s.d.count(func(n *DataStats) { n.BatchesIn++ })
	return b, nil
}
