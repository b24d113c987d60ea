package tiers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/arrowio"
)

const (
	// blockBatches is how many committed batches are kept in one value. Each key costs
	// the NATS server memory for as long as it exists; a dataset of a million batches
	// has 4,000 blocks and about 2,000 keys of its tail, whatever its length.
	blockBatches = 256
	// blockLag is how many of the newest batches stay under keys of their own: those
	// that migrations and readers at the tail change and read most.
	blockLag = 64
	// blockVersion begins each value, so that another encoding can be told apart.
	blockVersion = 1
	// maxBlockBytes bounds a block decoded: a value that says it is larger is damaged.
	maxBlockBytes = 64 << 20
	// blockFresh is how old a block may be that a sequential reader is served from
	// memory. Its refs may then name a copy that is gone; opening one looks again.
	blockFresh = time.Second
	// blockCache is how many decoded blocks a store keeps, about 0.5 MiB each.
	blockCache = 8
	// purgeWidth is how many keys are removed at once.
	purgeWidth = 16
)

// block holds the entries of batches N*blockBatches and following, all of them.
//
// The key of a batch is the truth while it exists, and its block after that. An
// entry passes from one to the other by two compare-and-sets: the block is stored
// with it, and the key is removed at the revision that was stored. Whoever changes
// the entry in between changes the key, so its removal fails and the block is
// stored again. Head.Compacted spares readers the look at keys that are gone.
type block struct {
	Entries []entry `json:"entries"`
}

// blockCodec compresses blocks. Safe for concurrent use.
type blockCodec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newBlockCodec() (blockCodec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return blockCodec{}, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxBlockBytes), zstd.WithDecoderConcurrency(2))
	return blockCodec{enc, dec}, err
}

func (c blockCodec) encode(b block) ([]byte, error) {
	raw, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	return c.enc.EncodeAll(raw, []byte{blockVersion}), nil
}

func (c blockCodec) decode(raw []byte) (block, error) {
	var b block
	if len(raw) == 0 || raw[0] != blockVersion {
		return b, fmt.Errorf("%w: block of an unknown version", ErrFormat)
	}
	text, err := c.dec.DecodeAll(raw[1:], nil)
	if err != nil {
		return b, fmt.Errorf("%w: block: %w", arrowio.ErrCorrupt, err)
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return b, fmt.Errorf("%w: block: %w", arrowio.ErrCorrupt, err)
	}
	if len(b.Entries) != blockBatches {
		return b, fmt.Errorf("%w: block of %d batches, %d expected", arrowio.ErrCorrupt, len(b.Entries), blockBatches)
	}
	return b, nil
}

// getBlock returns a block and its revision, ErrNotFound if there is none. The
// caller may change it.
func (c *catalog) getBlock(ctx context.Context, key string) (block, uint64, error) {
	e, err := c.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return block{}, 0, ErrNotFound
	}
	if err != nil {
		return block{}, 0, fmt.Errorf("catalog: get %s: %w", key, err)
	}
	b, err := c.blocks.decode(e.Value())
	if err != nil {
		return block{}, 0, fmt.Errorf("catalog: %s: %w", key, err)
	}
	return b, e.Revision(), nil
}

func (c *catalog) setBlock(ctx context.Context, key string, b block, rev uint64) error {
	raw, err := c.blocks.encode(b)
	if err != nil {
		return fmt.Errorf("catalog: encode %s: %w", key, err)
	}
	_, err = c.setRaw(ctx, key, raw, rev)
	return err
}

// blocks are the decoded blocks that a store read last.
type blocks struct {
	mu   sync.Mutex
	list []cachedBlock // the one used last is last
}

type cachedBlock struct {
	key string
	at  time.Time
	b   block
}

func (c *blocks) get(key string) (block, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.list, func(b cachedBlock) bool { return b.key == key })
	if i < 0 || time.Since(c.list[i].at) > blockFresh {
		return block{}, false
	}
	return c.list[i].b, true
}

func (c *blocks) put(key string, b block) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = slices.DeleteFunc(c.list, func(b cachedBlock) bool { return b.key == key })
	if len(c.list) == blockCache {
		c.list = slices.Delete(c.list, 0, 1)
	}
	c.list = append(c.list, cachedBlock{key, time.Now(), b})
}

// entry reads a batch's entry. It proves nothing of whether the batch is
// committed: compare with the head first. recent allows what was read within
// blockFresh.
func (s *Store) entry(ctx context.Context, dataset string, seq uint64, recent bool) (entry, error) {
	var e entry
	name, err := token("dataset", dataset)
	if err != nil {
		return e, err
	}
	if seq >= s.compacted(dataset) {
		_, err = s.catalog.get(ctx, batchKey(name, seq), &e)
		if !errors.Is(err, ErrNotFound) {
			return e, err
		}
	}
	key := blockKey(name, seq/blockBatches)
	b, ok := block{}, false
	if recent {
		b, ok = s.blocks.get(key)
	}
	if !ok {
		if b, _, err = s.catalog.getBlock(ctx, key); err != nil {
			return e, err
		}
		s.blocks.put(key, b)
	}
	return cloneEntry(b.Entries[seq%blockBatches]), nil
}

// cloneEntry keeps a caller that edits locations from editing a cached block.
func cloneEntry(e entry) entry {
	e.Ref.Locations = slices.Clone(e.Ref.Locations)
	return e
}

// compacted is how far a dataset is known to be in blocks alone.
func (s *Store) compacted(dataset string) uint64 {
	if v, ok := s.watermarks.Load(dataset); ok {
		return v.(uint64)
	}
	return 0
}

func (s *Store) learnCompacted(dataset string, to uint64) {
	if to > s.compacted(dataset) { // a race of two stores the smaller: then the keys are looked at
		s.watermarks.Store(dataset, to)
	}
}

// change applies f to the entries of committed batches by compare-and-set, those of
// one block together. f may be called several times for one entry, and returns
// false to leave it as it is. seqs are sorted in place.
func (s *Store) change(ctx context.Context, dataset string, seqs []uint64, f func(e *entry) (bool, error)) error {
	name, err := token("dataset", dataset)
	if err != nil {
		return err
	}
	slices.Sort(seqs)
	for len(seqs) > 0 {
		n := seqs[0] / blockBatches
		end := slices.IndexFunc(seqs, func(seq uint64) bool { return seq/blockBatches != n })
		if end < 0 {
			end = len(seqs)
		}
		if err := s.changeBlock(ctx, dataset, name, seqs[:end], f); err != nil {
			return err
		}
		seqs = seqs[end:]
	}
	return nil
}

func (s *Store) changeBlock(ctx context.Context, dataset, name string, seqs []uint64, f func(e *entry) (bool, error)) error {
	var inBlock []uint64
	for _, seq := range seqs {
		there := false
		if seq >= s.compacted(dataset) {
			_, err := update(ctx, s.catalog, batchKey(name, seq), func(e *entry, exists bool) (bool, error) {
				if there = exists; !exists {
					return false, nil
				}
				return f(e)
			})
			if err != nil {
				return err
			}
		}
		if !there {
			inBlock = append(inBlock, seq)
		}
	}
	if len(inBlock) == 0 {
		return nil
	}
	key := blockKey(name, seqs[0]/blockBatches)
	for range maxRaces {
		b, rev, err := s.catalog.getBlock(ctx, key)
		if err != nil {
			return err
		}
		changed := false
		for _, seq := range inBlock {
			write, err := f(&b.Entries[seq%blockBatches])
			if err != nil {
				return err
			}
			changed = changed || write
		}
		if !changed {
			return nil
		}
		if err = s.catalog.setBlock(ctx, key, b, rev); err == nil || !errors.Is(err, errConflict) {
			return err
		}
		if err := backoff(ctx); err != nil {
			return err
		}
	}
	return fmt.Errorf("catalog: %s: lost %d compare-and-sets in a row", key, maxRaces)
}

// revised is an entry under its key, and the key's revision.
type revised struct {
	entry entry
	rev   uint64
}

// tail reads the keys that there are of one block.
func (s *Store) tail(ctx context.Context, name string, n uint64) (map[uint64]revised, error) {
	found := map[uint64]revised{}
	err := s.catalog.list(ctx, shardFilter(name, n*blockBatches/shardBatches), func(kv jetstream.KeyValueEntry) error {
		var r revised
		if err := json.Unmarshal(kv.Value(), &r.entry); err != nil {
			return fmt.Errorf("catalog: decode %s: %w", kv.Key(), err)
		}
		r.rev = kv.Revision()
		if r.entry.Ref.Sequence/blockBatches == n {
			found[r.entry.Ref.Sequence] = r
		}
		return nil
	})
	return found, err
}

// compactBlock moves the entries of a block whose batches are all committed from
// their keys into the block. It may die anywhere, and run beside another.
func (s *Store) compactBlock(ctx context.Context, name string, n uint64) error {
	key := blockKey(name, n)
	var missing error
	for range maxRaces {
		// The block before the keys: what another one moves in between changes the
		// block, so that storing it below fails.
		b, rev, err := s.catalog.getBlock(ctx, key)
		fresh := errors.Is(err, ErrNotFound)
		if err != nil && !fresh {
			return err
		}
		keys, err := s.tail(ctx, name, n)
		if err != nil {
			return err
		}
		if fresh {
			if len(keys) != blockBatches {
				// Another one has stored the block since, and removes the keys; or a key that
				// was changed while they were listed was passed over.
				missing = fmt.Errorf("%w: block %d has %d keys of %d", ErrNotFound, n, len(keys), blockBatches)
				if err := backoff(ctx); err != nil {
					return err
				}
				continue
			}
			b.Entries = make([]entry, blockBatches)
		}
		for seq, r := range keys {
			b.Entries[seq%blockBatches] = r.entry
		}
		if len(keys) > 0 {
			err := s.catalog.setBlock(ctx, key, b, rev)
			if errors.Is(err, errConflict) {
				continue
			}
			if err != nil {
				return err
			}
		}
		if err := s.crash("block stored"); err != nil {
			return err
		}
		again, err := s.purgeKeys(ctx, name, keys)
		if err != nil || !again {
			return err
		}
	}
	if missing != nil {
		return missing
	}
	return fmt.Errorf("catalog: %s: lost %d compare-and-sets in a row", key, maxRaces)
}

// purgeKeys removes keys at the revisions given; again means that some had changed.
func (s *Store) purgeKeys(ctx context.Context, name string, keys map[uint64]revised) (again bool, err error) {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		gate = make(chan struct{}, purgeWidth)
	)
	for seq, r := range keys {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			removeErr := s.catalog.remove(ctx, batchKey(name, seq), r.rev)
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(removeErr, errConflict) {
				again = true
			} else if removeErr != nil {
				err = removeErr
			}
		})
	}
	wg.Wait()
	return again, err
}

// compact moves what may be into blocks, from the watermark on, at most limit
// blocks, and returns the new watermark.
func (s *Store) compact(ctx context.Context, dataset string, rec headRecord, limit int) (uint64, error) {
	name, err := token("dataset", dataset)
	if err != nil {
		return rec.Compacted, err
	}
	to := rec.Compacted
	for range limit {
		if rec.Next < to+blockBatches+blockLag && (!rec.Sealed || rec.Next < to+blockBatches) {
			break
		}
		if err := s.compactBlock(ctx, name, to/blockBatches); err != nil {
			return to, err
		}
		to += blockBatches
		s.learnCompacted(dataset, to)
		// What removal leaves of each key goes a shard later: until then it keeps a
		// writer that was fenced long ago from making the key anew unnoticed.
		if shard := to / shardBatches; to%shardBatches == 0 && shard >= 2 {
			if err := s.catalog.forget(ctx, shardFilter(name, shard-2)); err != nil {
				return to, err
			}
		}
	}
	return to, nil
}

// Compact moves the entries of a dataset's batches, but for the newest, from keys
// of their own into blocks. Writers do so as they go; this is for datasets that
// were written before there were blocks. It returns how many batches are in blocks.
func (s *Store) Compact(ctx context.Context, dataset string) (uint64, error) {
	to, err := s.compactAll(ctx, dataset)
	if err != nil {
		return to, &Error{Op: "compact", Dataset: dataset, Err: err}
	}
	return to, nil
}

func (s *Store) compactAll(ctx context.Context, dataset string) (uint64, error) {
	rec, _, err := s.head(ctx, dataset)
	if err != nil {
		return 0, err
	}
	to, err := s.compact(ctx, dataset, rec, int(rec.Next/blockBatches)+1)
	if err != nil || to == rec.Compacted {
		return to, err
	}
	_, err = s.setHead(ctx, dataset, func(r *headRecord) bool {
		r.Compacted = max(r.Compacted, to)
		return true
	})
	return to, err
}
