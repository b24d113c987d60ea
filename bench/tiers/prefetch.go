package main

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/benchtable"
	"github.com/stokehold/stokehold/stages/worker"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/objectdir"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

const (
	coldBatches = 48
	coldBytes   = 16 << 20              // of a batch
	hotBytes    = 256 << 20             // of the arena: a third of the dataset
	compute     = 20 * time.Millisecond // of the accelerator, for a batch
	linkTime    = 18 * time.Millisecond // of the link, for a batch: just less than the consumer takes
	settling    = 8                     // batches before which nothing is counted
)

// prefetchGroup measures how much of the time an accelerator works that takes 20 ms
// for a batch of 16 MiB, which comes from the cold tier over a link just faster than
// that: reading ahead, against opening each batch when it is wanted.
func prefetchGroup(s settings) (rows []benchtable.Row, err error) {
	const name = "accelerator busy, cold dataset three times the hot tier, reading ahead against not"
	if !s.wants(name) {
		return nil, nil
	}
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "stokehold-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c, err := newColdDataset(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer c.close()
	a, err := startAccelerator(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	reading := prefetch.Batches(ctx, c.store, c.each, prefetch.Config{ToArena: true, MaxBytes: hotBytes / 2}, nil)
	var ahead, alone fed
	for range s.rounds {
		if err := ahead.by(ctx, a, worker.Input{Batches: lend(reading)}); err != nil {
			return nil, err
		}
		if err := alone.by(ctx, a, worker.Input{Window: 1, Batches: c.whenWanted}); err != nil {
			return nil, err
		}
	}
	row := func(name string, v, b float64) benchtable.Row {
		return benchtable.Row{Case: name, Unit: "%", Value: 100 * v, Baseline: 100 * b, Ratio: v / b}
	}
	return []benchtable.Row{
		row(name, middle(ahead.busy), middle(alone.busy)),
		row("the same accelerator waits for a batch", middle(ahead.stalled), middle(alone.stalled)),
	}, nil
}

// coldDataset is a dataset of which a store has the cold copies alone.
type coldDataset struct {
	server *server.Server
	conn   *nats.Conn
	bus    *events.Bus
	host   *shm.Host
	store  *tiers.Store
	refs   []arrowio.Ref
}

func newColdDataset(ctx context.Context, dir string) (_ *coldDataset, err error) {
	c := &coldDataset{host: &shm.Host{}}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.server, err = server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, JetStream: true, StoreDir: filepath.Join(dir, "nats"),
	}); err != nil {
		return nil, err
	}
	c.server.Start()
	if !c.server.ReadyForConnections(10 * time.Second) {
		return nil, errors.New("embedded nats-server not ready within 10 s")
	}
	if c.conn, err = nats.Connect(c.server.ClientURL()); err != nil {
		return nil, err
	}
	if c.bus, err = events.Open(ctx, events.Config{Conn: c.conn, Judge: events.AllowAll()}); err != nil {
		return nil, err
	}
	objects, err := objectdir.Open(filepath.Join(dir, "cold"))
	if err != nil {
		return nil, err
	}
	arena, err := shm.New(shm.Config{Bytes: hotBytes, Prefault: true})
	if err != nil {
		return nil, err
	}
	c.store, err = tiers.Open(ctx, tiers.Config{
		Conn: c.conn, Bus: c.bus, Host: c.host, Arena: arena, Warm: filepath.Join(dir, "warm"), Cold: &link{Store: objects},
	})
	if err != nil {
		return nil, errors.Join(err, arena.Close())
	}
	return c, c.fill(ctx)
}

// fill writes the dataset, moves it to the cold tier, and keeps refs to that alone.
func (c *coldDataset) fill(ctx context.Context) error {
	const dataset = "bench/cold"
	schema := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Float64}}, nil)
	w, err := c.store.Writer(ctx, dataset, schema, tiers.Fence{Run: "bench", Stage: "fill", Attempt: 1})
	if err != nil {
		return err
	}
	for seq := range uint64(coldBatches) {
		rec := randomBatch(schema, seq, coldBytes)
		_, err := w.WriteAt(ctx, seq, rec)
		rec.Release()
		if err == nil {
			err = c.store.MigrateBatch(ctx, dataset, seq)
		}
		if err != nil {
			return err
		}
		ref, err := c.store.Ref(ctx, dataset, seq)
		if err != nil {
			return err
		}
		cold, ok := ref.In(arrowio.Cold)
		if !ok {
			return fmt.Errorf("%s has no cold copy", ref.ID())
		}
		ref.Locations = []arrowio.Location{cold}
		c.refs = append(c.refs, ref)
	}
	return nil
}

func (c *coldDataset) each(yield func(arrowio.Ref, error) bool) {
	for _, ref := range c.refs {
		if !yield(ref, nil) {
			return
		}
	}
}

// whenWanted names the batches, and opens each when the accelerator has none.
func (c *coldDataset) whenWanted(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
	return func(yield func(worker.InputBatch, error) bool) {
		for _, ref := range c.refs {
			open := func(ctx context.Context) (shm.Lease, error) {
				b, err := c.store.OpenBatch(ctx, ref, true)
				if err != nil {
					return shm.Lease{}, err
				}
				defer b.Release()
				return hold(b)
			}
			if !yield(worker.InputBatch{Sequence: ref.Sequence, Open: open, BodyBytes: ref.BodyBytes}, nil) {
				return
			}
		}
	}
}

func (c *coldDataset) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if c.store != nil {
		_ = c.store.Close(ctx) // the process ends
	}
	_ = c.host.Close()
	if c.bus != nil {
		_ = c.bus.Close(ctx)
	}
	if c.conn != nil {
		c.conn.Close()
	}
	if c.server != nil {
		c.server.Shutdown()
	}
}

// link is an object store at the other end of a link that takes linkTime for a
// batch, and lets one object through at a time.
type link struct {
	*objectdir.Store

	mu   sync.Mutex
	free time.Time // when what was asked for has come through
}

// pass waits until an object has come through. Those that wait for the link follow one
// another without a gap, however late their callers are woken.
func (l *link) pass() error {
	l.mu.Lock()
	if now := time.Now(); l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(linkTime)
	mine := l.free
	l.mu.Unlock()
	return wait(time.Until(mine))
}

// Get implements tiers.ObjectStore.
func (l *link) Get(ctx context.Context, key string) ([]byte, error) {
	if err := l.pass(); err != nil {
		return nil, err
	}
	return l.Store.Get(ctx, key)
}

// Fill implements tiers.Filler.
func (l *link) Fill(ctx context.Context, key string, dst []byte, sum hash.Hash) (int, error) {
	if err := l.pass(); err != nil {
		return 0, err
	}
	return l.Store.Fill(ctx, key, dst, sum)
}

// randomBatch makes a batch of random floats, the same for the same seed; the caller
// releases it.
func randomBatch(schema *arrow.Schema, seed uint64, bytes int) arrow.RecordBatch {
	random := rand.New(rand.NewPCG(1, seed)) //nolint:gosec // not a secret
	b := array.NewFloat64Builder(memory.DefaultAllocator)
	defer b.Release()
	b.Reserve(bytes / 8)
	for range bytes / 8 {
		b.Append(random.Float64())
	}
	col := b.NewArray()
	defer col.Release()
	return array.NewRecordBatch(schema, []arrow.Array{col}, int64(bytes/8))
}
