package tiers

import (
	"context"
	"encoding/json"
	"runtime"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
)

// SetFault makes every step of s that a crash may follow call f; an error ends
// the operation there.
func SetFault(s *Store, f func(point string) error) { s.fault = f }

// FailPublish makes the bus of s refuse to publish while fail returns an error.
func FailPublish(s *Store, fail func() error) { s.bus = failingBus{s.bus, fail} }

type failingBus struct {
	bus
	fail func() error
}

func (b failingBus) Publish(ctx context.Context, evs ...events.Event) error {
	if err := b.fail(); err != nil {
		return err
	}
	return b.bus.Publish(ctx, evs...)
}

// DeafenReaders makes subscriptions of s never deliver anything.
func DeafenReaders(s *Store) { s.bus = deafBus{s.bus} }

type deafBus struct{ bus }

func (b deafBus) Subscribe(ctx context.Context, sub events.Subscription, _ events.Handler) (*events.Consumer, error) {
	return b.bus.Subscribe(ctx, sub, func(context.Context, events.Delivery) error { return nil })
}

var (
	Token      = token
	Untoken    = untoken
	SameRecord = sameRecord
)

// Fill puts n committed batches into a new dataset's catalog as version 1 kept
// them: a key for each, and nothing else. There are no bytes behind them.
func Fill(ctx context.Context, s *Store, dataset string, n uint64) error {
	return fill(ctx, s, dataset, n, 0)
}

// FillBlocks is Fill as a writer leaves it: in blocks, but for the newest.
func FillBlocks(ctx context.Context, s *Store, dataset string, n uint64) error {
	if n < blockBatches+blockLag {
		return fill(ctx, s, dataset, n, 0)
	}
	return fill(ctx, s, dataset, n, (n-blockLag)/blockBatches*blockBatches)
}

// fill keeps the first of n batches, a multiple of blockBatches, in blocks.
func fill(ctx context.Context, s *Store, dataset string, n, inBlocks uint64) error {
	name, err := token("dataset", dataset)
	if err != nil {
		return err
	}
	js, err := jetstream.New(s.catalog.conn)
	if err != nil {
		return err
	}
	publish := func(key string, raw []byte) error {
		_, err := js.PublishAsync("$KV."+s.catalog.bucket+"."+key, raw)
		return err
	}
	group, _ := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i := range inBlocks / blockBatches {
		group.Go(func() error {
			b := block{Entries: make([]entry, blockBatches)}
			for j := range b.Entries {
				var err error
				if b.Entries[j], err = filled(dataset, i*blockBatches+uint64(j)); err != nil {
					return err
				}
			}
			raw, err := s.catalog.blocks.encode(b)
			if err != nil {
				return err
			}
			return publish(blockKey(name, i), raw)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for seq := inBlocks; seq < n; seq++ {
		e, err := filled(dataset, seq)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if err := publish(batchKey(name, seq), raw); err != nil {
			return err
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
		return ctx.Err()
	}
	head := headRecord{Head: Head{Dataset: dataset, Next: n, Rows: int64(n)}, Compacted: inBlocks}
	_, err = s.catalog.set(ctx, headKey(name), head, 0)
	return err
}

// FillAlike puts a dataset of n batches, a multiple of BlockBatches, into the catalog,
// every block of it the same: quick, for those who only count.
func FillAlike(ctx context.Context, s *Store, dataset string, n uint64) error {
	name, err := token("dataset", dataset)
	if err != nil {
		return err
	}
	b := block{Entries: make([]entry, blockBatches)}
	for i := range b.Entries {
		if b.Entries[i], err = filled(dataset, uint64(i)); err != nil {
			return err
		}
	}
	raw, err := s.catalog.blocks.encode(b)
	if err != nil {
		return err
	}
	for i := range n / blockBatches {
		if _, err := s.catalog.setRaw(ctx, blockKey(name, i), raw, 0); err != nil {
			return err
		}
	}
	_, err = s.catalog.set(ctx, headKey(name), headRecord{Head: Head{Dataset: dataset, Next: n, Sealed: true}, Compacted: n}, 0)
	return err
}

func filled(dataset string, seq uint64) (entry, error) {
	e := entry{Ref: arrowio.Ref{Dataset: dataset, Sequence: seq, Rows: 1, Fingerprint: "f"}, Committed: time.Unix(int64(seq), 0).UTC()}
	digest := digestOf([]byte(e.Ref.ID()))
	e.Ref.Locations = []arrowio.Location{{Tier: arrowio.Warm, URI: "file:///warm/" + digest, Bytes: 100, SHA256: digest, Codec: "arrow-ipc"}}
	ev, err := events.New(events.TypeBatchPublished, source, dataset, e.Ref.ID(), e.Committed, events.BatchPublished{Dataset: dataset, Sequence: int64(seq), SHA256: digest})
	if err != nil {
		return e, err
	}
	e.Event, err = json.Marshal(ev)
	return e, err
}

// Flip marks batches as moved, as one compare-and-set for those of one block. A
// second flip replaces the copy that the first has named.
func Flip(ctx context.Context, s *Store, dataset string, seqs []uint64, to string) error {
	return s.change(ctx, dataset, seqs, func(e *entry) (bool, error) {
		e.Ref.Locations = slices.DeleteFunc(e.Ref.Locations, func(l arrowio.Location) bool { return l.Tier == arrowio.Cold })
		e.Ref.Locations = append(e.Ref.Locations, arrowio.Location{Tier: arrowio.Cold, URI: "s3://b/" + to, SHA256: to, Bytes: 1, Codec: "parquet"})
		return true, nil
	})
}

// FlushUses writes down now when batches were read.
func FlushUses(ctx context.Context, s *Store) error { return s.uses.flush(ctx, s.catalog) }

const (
	BlockBatches  = blockBatches
	CatalogFormat = catalogFormat
)

// SetLeaseTTL makes the leases of s, and those that it observes, end sooner.
func SetLeaseTTL(s *Store, ttl time.Duration) { s.leaseTTL = ttl }

// WarmPath is where the warm file of a batch is.
func WarmPath(s *Store, ref arrowio.Ref) (string, error) {
	l, _ := ref.In(arrowio.Warm)
	return s.warm.path(ref.Dataset, ref.Sequence, l.SHA256)
}

// Readers is how many keys the readers of s have.
func Readers(s *Store) int {
	s.readers.mu.Lock()
	defer s.readers.mu.Unlock()
	n := 0
	for _, slots := range s.readers.taken {
		n += len(slots)
	}
	return n
}

// SetNow gives s another clock.
func SetNow(s *Store, now func() time.Time) { s.now = now }
