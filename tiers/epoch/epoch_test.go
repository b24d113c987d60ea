package epoch_test

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/epoch"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

const dataset = "flights/features"

var schema = arrow.NewSchema([]arrow.Field{
	{Name: "row", Type: arrow.PrimitiveTypes.Int64},
	{Name: "name", Type: arrow.BinaryTypes.String, Nullable: true},
}, nil)

// world is a store with a dataset whose batches have the given rows, numbered
// throughout.
type world struct {
	store  *tiers.Store
	writer *tiers.Writer
	arena  *shm.Arena
	rows   []int64
	total  int64
}

func newWorld(t *testing.T, rows ...int64) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	conn := natstest.Start(t).Connect()
	bus, err := events.Open(ctx, events.Config{Conn: conn, Judge: events.AllowAll()})
	if err != nil {
		t.Fatal(err)
	}
	host := &shm.Host{}
	arena, err := shm.New(shm.Config{Bytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{arena: arena}
	w.store, err = tiers.Open(ctx, tiers.Config{Conn: conn, Bus: bus, Host: host, Arena: arena, Warm: filepath.Join(t.TempDir(), "warm")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := arena.Stats().Leases; n != 0 {
			t.Errorf("%d leases are left", n)
		}
		if err := errors.Join(w.store.Close(ctx), bus.Close(ctx), host.Close()); err != nil {
			t.Error(err)
		}
	})
	if w.writer, err = w.store.Writer(ctx, dataset, schema, tiers.Fence{Run: "r", Stage: "s", Attempt: 1}); err != nil {
		t.Fatal(err)
	}
	for _, n := range rows {
		w.append(t, n)
	}
	return w
}

func (w *world) append(t *testing.T, rows int64) {
	t.Helper()
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for range rows {
		b.Field(0).(*array.Int64Builder).Append(w.total)
		if w.total%7 == 0 {
			b.Field(1).AppendNull()
		} else {
			b.Field(1).(*array.StringBuilder).Append(name(w.total))
		}
		w.total++
	}
	rec := b.NewRecordBatch()
	defer rec.Release()
	if _, err := w.writer.WriteAt(t.Context(), uint64(len(w.rows)), rec); err != nil {
		t.Fatal(err)
	}
	w.rows = append(w.rows, rows)
}

func name(row int64) string { return strings.Repeat("x", int(row%11)) }

// sequence is what an epoch of one worker is to be: the rows of its batches.
func (w *world) sequence(cfg epoch.Config, e uint64) [][]int64 {
	first := make([]int64, len(w.rows)+1)
	for i, n := range w.rows {
		first[i+1] = first[i] + n
	}
	if cfg.To == 0 {
		cfg.To = uint64(len(w.rows))
	}
	var all []int64
	var stored [][]int64
	n := cfg.To - cfg.From
	for i := range n {
		seq := cfg.From + cfg.Order.At(e, n, i)
		batch := make([]int64, 0, w.rows[seq])
		for row := first[seq]; row < first[seq+1]; row++ {
			batch = append(batch, row)
		}
		all, stored = append(all, batch...), append(stored, batch)
	}
	if cfg.BatchRows == 0 {
		return stored
	}
	var cut [][]int64
	for len(all) > 0 {
		k := min(int64(len(all)), cfg.BatchRows)
		if cfg.DropLast && k < cfg.BatchRows {
			break
		}
		cut, all = append(cut, all[:k]), all[k:]
	}
	return cut
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
	Context() context.Context
}

// rowsOf reads a batch back, every value checked.
func rowsOf(t failer, b *epoch.Batch) []int64 {
	t.Helper()
	rows := b.Record.Column(0).(*array.Int64)
	names := b.Record.Column(1).(*array.String)
	got := make([]int64, rows.Len())
	for i := range got {
		got[i] = rows.Value(i)
		if null := got[i]%7 == 0; names.IsNull(i) != null || !null && names.Value(i) != name(got[i]) {
			t.Fatalf("row %d has another's name", got[i])
		}
	}
	return got
}

func open(t failer, w *world, cfg epoch.Config) *epoch.Dataset {
	t.Helper()
	d, err := epoch.Open(t.Context(), w.store, dataset, cfg)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return d
}

func equal(a, b []int64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func drawConfig(t *rapid.T, w *world) epoch.Config {
	n := uint64(len(w.rows))
	cfg := epoch.Config{
		Order:     epoch.Order{Kind: rapid.SampledFrom([]epoch.Kind{epoch.Sequential, epoch.Shuffled, epoch.Windowed}).Draw(t, "kind"), Seed: rapid.Uint64().Draw(t, "seed")},
		BatchRows: rapid.SampledFrom([]int64{0, 1, 3, 10, 64, 100, 1000, 100_000}).Draw(t, "batch rows"),
		Prefetch:  prefetch.Config{MaxBatches: rapid.IntRange(1, 8).Draw(t, "ahead"), ToArena: rapid.Bool().Draw(t, "to arena")},
	}
	if cfg.Order.Kind == epoch.Windowed {
		cfg.Order.Window = rapid.Uint64Range(2, n).Draw(t, "window")
	}
	if cfg.BatchRows > 0 {
		cfg.DropLast = rapid.Bool().Draw(t, "drop last")
	}
	if rapid.Bool().Draw(t, "part") {
		cfg.From = rapid.Uint64Range(0, n-1).Draw(t, "from")
		cfg.To = rapid.Uint64Range(cfg.From+1, n).Draw(t, "to")
	}
	return cfg
}

var uneven = []int64{100, 100, 100, 37, 1, 250, 1, 1, 1, 100, 64, 64, 64, 500, 3, 2, 99, 100, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 80}

// TestSequenceIsEveryWorkers: however many share an epoch, their batches are those
// of one sequence, which the order decides.
func TestSequenceIsEveryWorkers(t *testing.T) {
	w := newWorld(t, uneven...)
	rapid.Check(t, func(t *rapid.T) {
		cfg := drawConfig(t, w)
		e := rapid.Uint64().Draw(t, "epoch")
		cfg.Workers = rapid.IntRange(1, 5).Draw(t, "workers")
		want := w.sequence(cfg, e)
		seen := 0
		for cfg.Worker = range cfg.Workers {
			number := uint64(cfg.Worker)
			for b, err := range open(t, w, cfg).Epoch(t.Context(), e) {
				if err != nil {
					t.Fatal(err)
				}
				if b.Number != number || b.Number >= uint64(len(want)) || b.Next.Next != number+1 {
					t.Fatalf("worker %d got batch %d for %d of %d, then %d", cfg.Worker, b.Number, number, len(want), b.Next.Next)
				}
				if got := rowsOf(t, b); !equal(got, want[number]) {
					t.Fatalf("batch %d has rows %v, want %v", number, got, want[number])
				}
				number += uint64(cfg.Workers)
				seen++
			}
		}
		if seen != len(want) {
			t.Fatalf("%d of %d batches", seen, len(want))
		}
	})
}

// TestResume: a reader that is left goes on with the next batch, from a position
// that was stored, also with another number of workers.
func TestResume(t *testing.T) {
	w := newWorld(t, uneven...)
	rapid.Check(t, func(t *rapid.T) {
		cfg := drawConfig(t, w)
		want := w.sequence(cfg, 5)
		if len(want) == 0 {
			t.Skip("an epoch without batches")
		}
		stop := rapid.Uint64Range(0, uint64(len(want)-1)).Draw(t, "stop")
		var stored []byte
		for b, err := range open(t, w, cfg).Epoch(t.Context(), 5) {
			if err != nil {
				t.Fatal(err)
			}
			if b.Number == stop {
				if stored, err = json.Marshal(b.Next); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		var at epoch.Position
		if err := json.Unmarshal(stored, &at); err != nil {
			t.Fatal(err)
		}
		skip := rapid.Uint64Range(0, 3).Draw(t, "skip")
		at, err := at.At(at.Next + skip)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Workers = rapid.IntRange(1, 3).Draw(t, "workers")
		left := map[uint64]bool{}
		for n := stop + 1 + skip; n < uint64(len(want)); n++ {
			left[n] = true
		}
		for cfg.Worker = range cfg.Workers {
			for b, err := range open(t, w, cfg).Resume(t.Context(), at) {
				if err != nil {
					t.Fatal(err)
				}
				if !left[b.Number] || !equal(rowsOf(t, b), want[b.Number]) {
					t.Fatalf("batch %d, twice or not as it was", b.Number)
				}
				delete(left, b.Number)
			}
		}
		if len(left) > 0 {
			t.Fatalf("%d batches were left out", len(left))
		}
	})
}

// TestInPlace: what lies in one stored batch is not copied, and what spans two is
// copied once.
func TestInPlace(t *testing.T) {
	w := newWorld(t, 100, 100, 100, 100)
	for name, tc := range map[string]struct {
		rows   int64
		copies bool
	}{"as stored": {0, false}, "whole": {100, false}, "parts": {25, false}, "several": {200, true}, "across": {60, true}} {
		t.Run(name, func(t *testing.T) {
			d := open(t, w, epoch.Config{BatchRows: tc.rows})
			batches := uint64(0)
			for b, err := range d.Epoch(t.Context(), 0) {
				if err != nil {
					t.Fatal(err)
				}
				batches++
				if inside := w.arena.Contains(b.Record.Column(0).Data().Buffers()[1].Bytes()); !inside && !tc.copies {
					t.Errorf("batch %d was copied out of the arena", b.Number)
				}
			}
			if s := d.Stats(); s.Batches != batches || (s.CopiedBytes > 0) != tc.copies || s.Prefetch.Hits+s.Prefetch.Misses != 4 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestGrowingDataset: an epoch is of what there was, and so is a position in it.
func TestGrowingDataset(t *testing.T) {
	w := newWorld(t, 10, 10, 10)
	cfg := epoch.Config{Order: epoch.Order{Kind: epoch.Shuffled, Seed: 1}}
	d := open(t, w, cfg)
	w.append(t, 10)
	n := 0
	var at epoch.Position
	for b, err := range d.Epoch(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 1 {
			at = b.Next
		}
	}
	if n != 3 {
		t.Errorf("%d batches", n)
	}
	for _, err := range open(t, w, cfg).Resume(t.Context(), at) {
		if !errors.Is(err, epoch.ErrPosition) || !strings.Contains(err.Error(), "open it with From and To as they were") {
			t.Error(err)
		}
	}
	cfg.To = at.From + at.Batches
	n = 0
	for _, err := range open(t, w, cfg).Resume(t.Context(), at) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 2 {
		t.Errorf("%d batches after the first", n)
	}
}

func TestBadInput(t *testing.T) {
	w := newWorld(t, 10, 10)
	for name, tc := range map[string]struct {
		dataset string
		cfg     epoch.Config
		want    error
		says    string
	}{
		"no such dataset":     {dataset: "nowhere", want: tiers.ErrNotFound},
		"more than there are": {cfg: epoch.Config{To: 3}, want: epoch.ErrShort, says: "has 2"},
		"order":               {cfg: epoch.Config{Order: epoch.Order{Kind: "random"}}, want: epoch.ErrConfig, says: `"random"`},
		"window":              {cfg: epoch.Config{Order: epoch.Order{Kind: epoch.Windowed, Window: 1}}, want: epoch.ErrConfig},
		"window of shuffled":  {cfg: epoch.Config{Order: epoch.Order{Kind: epoch.Shuffled, Window: 9}}, want: epoch.ErrConfig},
		"worker":              {cfg: epoch.Config{Workers: 2, Worker: 2}, want: epoch.ErrConfig, says: "worker 2 of 2"},
		"no workers":          {cfg: epoch.Config{Worker: 1}, want: epoch.ErrConfig},
		"nothing":             {cfg: epoch.Config{From: 1, To: 1}, want: epoch.ErrConfig},
		"all at once":         {cfg: epoch.Config{BatchRows: -1, Workers: -1}, want: epoch.ErrConfig, says: "BatchRows -1 is negative\n"},
		"drop of what":        {cfg: epoch.Config{DropLast: true}, want: epoch.ErrConfig},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.dataset == "" {
				tc.dataset = dataset
			}
			_, err := epoch.Open(t.Context(), w.store, tc.dataset, tc.cfg)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
	d := open(t, w, epoch.Config{BatchRows: 5})
	start := d.Start(0)
	for name, change := range map[string]func(*epoch.Position){
		"dataset": func(p *epoch.Position) { p.Dataset = "other" },
		"order":   func(p *epoch.Position) { p.Order.Kind = epoch.Shuffled },
		"rows":    func(p *epoch.Position) { p.BatchRows = 6 },
		"place":   func(p *epoch.Position) { p.Place = 3 },
		"row":     func(p *epoch.Position) { p.Row = -1 },
	} {
		p := start
		change(&p)
		for b, err := range d.Resume(t.Context(), p) {
			if b != nil || !errors.Is(err, epoch.ErrPosition) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	start.Next = 4
	if _, err := start.At(3); !errors.Is(err, epoch.ErrPosition) {
		t.Error(err)
	}
}

func TestCancelledAndLeft(t *testing.T) {
	w := newWorld(t, uneven...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	var got error
	for _, err := range open(t, w, epoch.Config{BatchRows: 10}).Epoch(ctx, 0) {
		if err != nil {
			got = err
			continue
		}
		if n++; n == 3 {
			cancel()
		}
	}
	if !errors.Is(got, context.Canceled) {
		t.Errorf("%d batches, then %v", n, got)
	}
	for range open(t, w, epoch.Config{BatchRows: 300, Prefetch: prefetch.Config{ToArena: true}}).Epoch(t.Context(), 0) {
		break // what was opened ahead is given back: see newWorld
	}
}
