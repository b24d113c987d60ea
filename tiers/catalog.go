package tiers

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/governance/label"
)

// maxEntryBytes bounds one value of the catalog; an entry holds a ref and an
// event, whose data the bus limits to 64 KiB.
const maxEntryBytes = 256 << 10

// errConflict: the key's revision is not the one expected.
var errConflict = errors.New("changed by another")

// catalog is the KV bucket. Every change of a shared key is a compare-and-set on
// the key's revision; nothing else arbitrates.
//
// Reads go to any replica when the bucket has several, and may then be old. No
// decision rests on a read alone: whoever acted on an old value loses the
// compare-and-set that follows.
type catalog struct {
	kv     jetstream.KeyValue
	stream jetstream.Stream
	conn   *nats.Conn
	bucket string
	id     string // of this catalog, wherever it is opened
	blocks blockCodec
}

// catalogFormat is the encoding that this package writes. Version 1 had a key for
// every batch and no format record; its keys are still read, and become blocks as
// their datasets are written to (see Store.Compact).
const catalogFormat = 2

type formatRecord struct {
	Version int    `json:"version"`
	ID      string `json:"id,omitempty"` // random; see catalog.deployment
}

// headRecord is what is stored of a dataset. The part belongs to Fence: keeping
// both in one value makes "who writes" and "what is theirs" change together.
type headRecord struct {
	Head
	part
	// Compacted is how many of the first batches are in blocks and have no keys.
	Compacted uint64 `json:"compacted,omitempty"`
}

// ours reports whether r is what a writer stored as w, but for what others may
// change beside it.
func (r headRecord) ours(w headRecord) bool {
	r.Labels, w.Labels, r.Compacted, w.Compacted = nil, nil, 0, 0
	return reflect.DeepEqual(r, w)
}

// part is what one stage of one run has appended. All of it but Base, which is
// fixed, only grows.
type part struct {
	Base uint64 `json:"base"`
	To   uint64 `json:"to"`   // one past the newest of its batches; Base before the first
	Own  uint64 `json:"own"`  // its batches; fewer than To-Base where others wrote in between
	Done bool   `json:"done"` // the stage has completed
}

// partRecord keeps the part of a writer that was displaced.
type partRecord struct {
	part
	Attempt int `json:"attempt"` // the highest that has opened
}

// entry is what is stored of a batch. It exists for readers once the head's Next
// is beyond its sequence.
type entry struct {
	Ref       arrowio.Ref     `json:"ref"`
	Epoch     uint64          `json:"epoch"` // of the writer; only a higher one may replace an uncommitted entry
	Fence     Fence           `json:"fence"`
	Committed time.Time       `json:"committed"`
	Event     json.RawMessage `json:"event,omitempty"` // batch.published as approved, to be published again after a crash
	State     State           `json:"state,omitempty"`
	Labels    label.Set       `json:"labels,omitempty"` // of the dataset when the batch was committed
}

func openCatalog(ctx context.Context, nc *nats.Conn, prefix string) (*catalog, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	kv, err := openBucket(ctx, js, jetstream.KeyValueConfig{
		Bucket:       prefix + "_catalog",
		Description:  "Stokehold: where each batch of each dataset is",
		Storage:      jetstream.FileStorage,
		History:      1,
		MaxValueSize: maxEntryBytes,
	})
	if err != nil {
		return nil, err
	}
	stream, err := js.Stream(ctx, "KV_"+prefix+"_catalog")
	if err != nil {
		return nil, fmt.Errorf("bucket %s_catalog: %w", prefix, err)
	}
	codec, err := newBlockCodec()
	if err != nil {
		return nil, err
	}
	c := &catalog{blocks: codec, kv: kv, stream: stream, conn: nc, bucket: prefix + "_catalog"}
	return c, c.checkFormat(ctx)
}

// checkFormat refuses a catalog that a later version wrote, and marks one that has
// no mark: it is new, or of version 1, whose entries are read as they are.
func (c *catalog) checkFormat(ctx context.Context) error {
	f, err := update(ctx, c, "format", func(f *formatRecord, _ bool) (bool, error) {
		if f.Version > catalogFormat || f.Version == catalogFormat && f.ID != "" {
			return false, nil
		}
		f.Version = catalogFormat
		if f.ID == "" {
			f.ID = rand.Text()
		}
		return true, nil
	})
	if err == nil && f.Version > catalogFormat {
		err = fmt.Errorf("%w: bucket %s has version %d, this program knows versions up to %d: use a newer program, or another prefix",
			ErrFormat, c.bucket, f.Version, catalogFormat)
	}
	c.id = f.ID
	return err
}

// forget removes all that there is under keys that match filter, marks of removal
// included.
func (c *catalog) forget(ctx context.Context, filter string) error {
	if err := c.stream.Purge(ctx, jetstream.WithPurgeSubject("$KV."+c.bucket+"."+filter)); err != nil {
		return fmt.Errorf("catalog: purge %s: %w", filter, err)
	}
	return nil
}

// openBucket opens a bucket as its operator configured it, or creates it.
func openBucket(ctx context.Context, js jetstream.JetStream, cfg jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	kv, err := js.KeyValue(ctx, cfg.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = js.CreateKeyValue(ctx, cfg)
		if errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = js.KeyValue(ctx, cfg.Bucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", cfg.Bucket, err)
	}
	return kv, nil
}

// get reads key into v and returns its revision; ErrNotFound if it is not there.
func (c *catalog) get(ctx context.Context, key string, v any) (uint64, error) {
	e, err := c.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("catalog: get %s: %w", key, err)
	}
	if err := json.Unmarshal(e.Value(), v); err != nil {
		return 0, fmt.Errorf("catalog: decode %s: %w", key, err)
	}
	return e.Revision(), nil
}

// set stores v if key's revision is still rev (0: the key does not exist);
// errConflict otherwise. Any other error leaves open whether v was stored.
func (c *catalog) set(ctx context.Context, key string, v any, rev uint64) (uint64, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return 0, fmt.Errorf("catalog: encode %s: %w", key, err)
	}
	return c.setRaw(ctx, key, raw, rev)
}

func (c *catalog) setRaw(ctx context.Context, key string, raw []byte, rev uint64) (got uint64, err error) {
	if len(raw) > maxEntryBytes {
		return 0, fmt.Errorf("catalog: %s of %d bytes: %w", key, len(raw), ErrTooLarge)
	}
	if rev == 0 {
		got, err = c.kv.Create(ctx, key, raw)
	} else {
		got, err = c.kv.Update(ctx, key, raw, rev)
	}
	switch {
	case err == nil:
		return got, nil
	case errors.Is(err, jetstream.ErrKeyExists), errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		return 0, fmt.Errorf("catalog: %s: %w", key, errConflict)
	}
	return 0, fmt.Errorf("catalog: set %s: %w", key, err)
}

// remove deletes key if its revision is still rev; a key already gone is a
// success.
func (c *catalog) remove(ctx context.Context, key string, rev uint64) error {
	err := c.kv.Purge(ctx, key, jetstream.LastRevision(rev))
	switch {
	case err == nil, errors.Is(err, jetstream.ErrKeyNotFound):
		return nil
	case errors.Is(err, jetstream.ErrKeyExists), errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		return fmt.Errorf("catalog: %s: %w", key, errConflict)
	}
	return fmt.Errorf("catalog: remove %s: %w", key, err)
}

// maxRaces bounds how often a compare-and-set is tried again. Each failure means
// that another one succeeded, so this many in a row mean a fight.
const maxRaces = 100

// update applies change to the value under key until its compare-and-set holds.
// change gets a zero value with exists=false when the key is not there, and
// returns false to leave things as they are.
func update[T any](ctx context.Context, c *catalog, key string, change func(v *T, exists bool) (bool, error)) (T, error) {
	for range maxRaces {
		var v T
		rev, err := c.get(ctx, key, &v)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return v, err
		}
		write, err := change(&v, err == nil)
		if err != nil || !write {
			return v, err
		}
		if _, err = c.set(ctx, key, v, rev); err == nil || !errors.Is(err, errConflict) {
			return v, err
		}
	}
	var zero T
	return zero, fmt.Errorf("catalog: %s: lost %d compare-and-sets in a row", key, maxRaces)
}

// list calls visit for each key under filter, in no certain order.
func (c *catalog) list(ctx context.Context, filter string, visit func(jetstream.KeyValueEntry) error) error {
	w, err := c.kv.Watch(ctx, filter, jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("catalog: list %s: %w", filter, err)
	}
	defer func() { _ = w.Stop() }() // the consumer is ephemeral: the server drops it anyway
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("catalog: list %s: connection closed", filter)
			}
			if e == nil { // all that there was
				return nil
			}
			if err := visit(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("catalog: list %s: %w", filter, ctx.Err())
		}
	}
}
