package tiers

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go/jetstream"

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
	name, err := token("dataset", dataset)
	if err != nil {
		return err
	}
	js, err := jetstream.New(s.catalog.conn)
	if err != nil {
		return err
	}
	for seq := range n {
		e := entry{Ref: arrowio.Ref{Dataset: dataset, Sequence: seq, Rows: 1, Fingerprint: "f"}, Committed: time.Unix(int64(seq), 0).UTC()}
		digest := digestOf([]byte(e.Ref.ID()))
		e.Ref.Locations = []arrowio.Location{{Tier: arrowio.Warm, URI: "file:///warm/" + digest, Bytes: 100, SHA256: digest, Codec: "arrow-ipc"}}
		ev, err := events.New(events.TypeBatchPublished, source, dataset, e.Ref.ID(), e.Committed, events.BatchPublished{Dataset: dataset, Sequence: int64(seq), SHA256: digest})
		if err != nil {
			return err
		}
		if e.Event, err = json.Marshal(ev); err != nil {
			return err
		}
		raw, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if _, err := js.PublishAsync("$KV."+s.catalog.bucket+"."+batchKey(name, seq), raw); err != nil {
			return err
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err = s.catalog.set(ctx, headKey(name), headRecord{Head: Head{Dataset: dataset, Fingerprint: "f", Next: n, Rows: int64(n)}}, 0)
	return err
}

// Flip marks batches as moved, as one compare-and-set for those of one block.
func Flip(ctx context.Context, s *Store, dataset string, seqs []uint64, to string) error {
	return s.change(ctx, dataset, seqs, func(e *entry) (bool, error) {
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
