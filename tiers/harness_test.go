package tiers_test

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/objectdir"
)

// world is what a store needs, real throughout.
type world struct {
	tb   testing.TB
	ctx  context.Context
	srv  *natstest.Server
	conn *nats.Conn
	bus  *events.Bus
	warm string
	cold string
	deny func(*events.Event) string // reason to deny on publish, "" to allow
	wrap func(tiers.ObjectStore) tiers.ObjectStore
	set  func(*tiers.Config) // changes what stores are opened with

	judge events.Judge // in place of deny
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	return worldOn(tb, natstest.Start(tb))
}

// worldOn is newWorld with a server, and as one of its users.
func worldOn(tb testing.TB, srv *natstest.Server, user ...nats.Option) *world {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	tb.Cleanup(cancel)
	w := &world{tb: tb, ctx: ctx, srv: srv, conn: srv.Connect(user...), warm: filepath.Join(tb.TempDir(), "warm"), cold: tb.TempDir()}
	bus, err := events.Open(ctx, events.Config{Conn: w.conn, Judge: w})
	if err != nil {
		tb.Fatal(err)
	}
	w.bus = bus
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := bus.Close(ctx); err != nil {
			tb.Errorf("close bus: %v", err)
		}
	})
	return w
}

// Judge implements events.Judge.
func (w *world) Judge(ctx context.Context, at events.Point, evs []*events.Event) ([]events.Verdict, error) {
	if w.judge != nil {
		return w.judge.Judge(ctx, at, evs)
	}
	out := make([]events.Verdict, len(evs))
	for i, ev := range evs {
		out[i] = events.Verdict{Action: events.Allow}
		if at == events.OnPublish && w.deny != nil {
			if reason := w.deny(ev); reason != "" {
				out[i] = events.Verdict{Action: events.Deny, Reason: reason}
			}
		}
	}
	return out, nil
}

// store opens a store as a new process would: an arena of arenaBytes of its own
// (0: none), the same catalog and disk.
func (w *world) store(arenaBytes int64) (*tiers.Store, *shm.Arena) {
	w.tb.Helper()
	host := &shm.Host{}
	var arena *shm.Arena
	if arenaBytes > 0 {
		var err error
		if arena, err = shm.New(shm.Config{Bytes: arenaBytes}); err != nil {
			w.tb.Fatal(err)
		}
	}
	dir, err := objectdir.Open(w.cold)
	if err != nil {
		w.tb.Fatal(err)
	}
	var cold tiers.ObjectStore = dir
	if w.wrap != nil {
		cold = w.wrap(cold)
	}
	cfg := tiers.Config{Conn: w.conn, Bus: w.bus, Host: host, Arena: arena, Warm: w.warm, Cold: cold}
	if w.set != nil {
		w.set(&cfg)
	}
	s, err := tiers.Open(w.ctx, cfg)
	if err != nil {
		w.tb.Fatal(err)
	}
	w.tb.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			w.tb.Errorf("close store: %v", err)
		}
		if err := host.Close(); err != nil {
			w.tb.Errorf("close host: %v", err)
		}
		if arena == nil {
			return
		}
		if st := arena.Stats(); st.Leases != 0 || st.Loans != 0 || st.Used != 0 {
			w.tb.Errorf("arena not back to its baseline: %+v", st)
		}
	})
	return s, arena
}

// host is for stores that are not opened by store.
func (w *world) host() *shm.Host {
	h := &shm.Host{}
	w.tb.Cleanup(func() {
		if err := h.Close(); err != nil {
			w.tb.Errorf("close host: %v", err)
		}
	})
	return h
}

func (w *world) writer(s *tiers.Store, dataset string, f tiers.Fence) *tiers.Writer {
	w.tb.Helper()
	wr, err := s.Writer(w.ctx, dataset, schema, f)
	if err != nil {
		w.tb.Fatal(err)
	}
	return wr
}

func (w *world) write(wr *tiers.Writer, seqs ...uint64) {
	w.tb.Helper()
	for _, seq := range seqs {
		rec := batch(seq, 100)
		if _, err := wr.WriteAt(w.ctx, seq, rec); err != nil {
			w.tb.Fatal(err)
		}
		rec.Release()
	}
}

// published counts the events of that type in the stream, by id.
func (w *world) published(typ string) map[string]int {
	w.tb.Helper()
	got := map[string]int{}
	for d, err := range w.bus.Replay(w.ctx, events.Subscription{Types: []string{typ}}) {
		if err != nil {
			w.tb.Fatal(err)
		}
		got[d.ID()]++
	}
	return got
}

// files lists the files under dir by relative path, markers left out.
func files(tb testing.TB, dir string) []string {
	tb.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Base(path) != ".lock" && filepath.Base(path) != tiers.OwnerKey {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, rel)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		tb.Fatal(err)
	}
	return out
}

var schema = arrow.NewSchema([]arrow.Field{
	{Name: "id", Type: arrow.PrimitiveTypes.Int64},
	{Name: "value", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
	{Name: "place", Type: arrow.BinaryTypes.String},
}, nil)

// batch makes rows rows that depend on seed alone.
func batch(seed uint64, rows int) arrow.RecordBatch {
	return batchIn(memory.DefaultAllocator, seed, rows)
}

func batchIn(mem memory.Allocator, seed uint64, rows int) arrow.RecordBatch {
	b := array.NewRecordBuilder(mem, schema)
	defer b.Release()
	for i := range rows {
		b.Field(0).(*array.Int64Builder).Append(int64(seed)*1_000_000 + int64(i))
		if i%7 == 3 {
			b.Field(1).AppendNull()
		} else {
			b.Field(1).(*array.Float64Builder).Append(float64(seed) + float64(i)/8)
		}
		b.Field(2).(*array.StringBuilder).Append(strings.Repeat("x", i%5))
	}
	return b.NewRecordBatch()
}

func fence(run string, attempt int) tiers.Fence {
	return tiers.Fence{Run: run, Stage: "features", Attempt: attempt}
}

// same fails unless got holds the values of batch(seed, rows).
func same(tb testing.TB, got arrow.RecordBatch, seed uint64, rows int) {
	tb.Helper()
	want := batch(seed, rows)
	defer want.Release()
	if err := tiers.SameRecord(want, got); err != nil {
		tb.Errorf("batch %d: %v", seed, err)
	}
}
