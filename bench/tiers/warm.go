package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/benchtable"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

const (
	warmBatches = 64
	warmBytes   = 16 << 20 // of a batch: 1 GiB in all
	warmSet     = "bench/warm"
)

// warmGroup measures reading 1 GiB from the warm tier, which maps files and compares
// the SHA-256 of each: with a consumer that does nothing against mmap and SHA-256 by
// hand; and with one that takes an accelerator's time for each batch against the same on
// files that nobody checks, which tells how much of the checksums' time is hidden. The
// files are in the page cache.
func warmGroup(s settings) (rows []benchtable.Row, err error) {
	if !s.wants("warm") {
		return nil, nil
	}
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "stokehold-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	w, err := newWarmDataset(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer w.close(ctx)
	if err := w.fill(ctx); err != nil {
		return nil, err
	}

	ahead := prefetch.Config{Parallel: 2}
	cases := map[string]func() error{
		warmRead:       func() error { return eachBatch(w.store.Batches(ctx, warmSet, 0, tiers.End, false), 0) },
		warmPlain:      func() error { return w.plain(true, 0) },
		warmAhead:      func() error { return eachBatch(prefetch.Batches(ctx, w.store, w.each, ahead, nil), 0) },
		warmFed:        func() error { return eachBatch(prefetch.Batches(ctx, w.store, w.each, ahead, nil), compute) },
		warmFedAlone:   func() error { return eachBatch(w.store.Batches(ctx, warmSet, 0, tiers.End, false), compute) },
		warmFedUnknown: func() error { return w.plain(false, compute) },
	}
	rates := map[string][]float64{}
	for round := range s.rounds + 1 { // the first warms up
		for name, read := range cases {
			begun := time.Now()
			if err := read(); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if round > 0 {
				rates[name] = append(rates[name], warmBatches*warmBytes/1e9/time.Since(begun).Seconds())
			}
		}
	}
	for _, pair := range [][2]string{
		{warmRead, warmPlain}, {warmAhead, warmPlain}, {warmFed, warmFedUnknown}, {warmFedAlone, warmFedUnknown},
	} {
		v, base := middle(rates[pair[0]]), middle(rates[pair[1]])
		rows = append(rows, benchtable.Row{Case: "warm " + pair[0] + ", vs " + pair[1], Unit: "GB/s", Value: v, Baseline: base, Ratio: v / base})
	}
	return rows, nil
}

const (
	warmRead       = "read"
	warmPlain      = "mmap and SHA-256"
	warmAhead      = "read ahead"
	warmFed        = "read ahead of 20 ms for each 16 MiB"
	warmFedAlone   = "read, then 20 ms for each 16 MiB"
	warmFedUnknown = "mmap without a checksum, then 20 ms"
)

// eachBatch reads all, as a consumer that takes pause for each does.
func eachBatch(batches iter.Seq2[*tiers.Batch, error], pause time.Duration) error {
	n := 0
	for b, err := range batches {
		if err != nil {
			return err
		}
		if b.Tier != arrowio.Warm || b.Record.NumRows() != warmBytes/8 {
			return fmt.Errorf("%d rows from %s", b.Record.NumRows(), b.Tier)
		}
		n++
		if pause > 0 {
			<-time.After(pause)
		}
	}
	if n != warmBatches {
		return fmt.Errorf("%d of %d batches", n, warmBatches)
	}
	return nil
}

// warmDataset is a sealed dataset in the warm tier alone.
type warmDataset struct {
	server *server.Server
	conn   *nats.Conn
	bus    *events.Bus
	host   *shm.Host
	store  *tiers.Store
	refs   []arrowio.Ref
}

func newWarmDataset(ctx context.Context, dir string) (_ *warmDataset, err error) {
	w := &warmDataset{host: &shm.Host{}}
	defer func() {
		if err != nil {
			w.close(ctx)
		}
	}()
	if w.server, err = server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, JetStream: true, StoreDir: filepath.Join(dir, "nats"),
	}); err != nil {
		return nil, err
	}
	w.server.Start()
	if !w.server.ReadyForConnections(10 * time.Second) {
		return nil, errors.New("embedded nats-server not ready within 10 s")
	}
	if w.conn, err = nats.Connect(w.server.ClientURL()); err != nil {
		return nil, err
	}
	if w.bus, err = events.Open(ctx, events.Config{Conn: w.conn, Judge: events.AllowAll()}); err != nil {
		return nil, err
	}
	w.store, err = tiers.Open(ctx, tiers.Config{Conn: w.conn, Bus: w.bus, Host: w.host, Warm: filepath.Join(dir, "warm")})
	return w, err
}

func (w *warmDataset) fill(ctx context.Context) error {
	schema := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Float64}}, nil)
	wr, err := w.store.Writer(ctx, warmSet, schema, tiers.Fence{Run: "bench", Stage: "fill", Attempt: 1})
	if err != nil {
		return err
	}
	for seq := range uint64(warmBatches) {
		rec := randomBatch(schema, seq, warmBytes)
		ref, err := wr.WriteAt(ctx, seq, rec)
		rec.Release()
		if err != nil {
			return err
		}
		w.refs = append(w.refs, ref)
	}
	return wr.Seal(ctx)
}

func (w *warmDataset) each(yield func(arrowio.Ref, error) bool) {
	for _, ref := range w.refs {
		if !yield(ref, nil) {
			return
		}
	}
}

// plain maps each file and, if asked, compares its SHA-256.
func (w *warmDataset) plain(check bool, pause time.Duration) error {
	for _, ref := range w.refs {
		loc, _ := ref.In(arrowio.Warm)
		if err := plainFile(loc, check); err != nil {
			return err
		}
		if pause > 0 {
			<-time.After(pause)
		}
	}
	return nil
}

func plainFile(loc arrowio.Location, check bool) (err error) {
	path, err := arrowio.ParseFileURI(loc.URI)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err := unix.Mmap(int(f.Fd()), 0, int(loc.Bytes), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Munmap(data)) }()
	if !check {
		return nil
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != loc.SHA256 {
		return fmt.Errorf("%s has another SHA-256", path)
	}
	return nil
}

func (w *warmDataset) close(ctx context.Context) {
	if w.store != nil {
		_ = w.store.Close(ctx) // the process ends
	}
	_ = w.host.Close()
	if w.bus != nil {
		_ = w.bus.Close(ctx)
	}
	if w.conn != nil {
		w.conn.Close()
	}
	if w.server != nil {
		w.server.Shutdown()
	}
}
