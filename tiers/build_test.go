package tiers_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/tiers"
)

// built writes batch(seq, rows) by way of a Build of room bytes.
func (w *world) built(s *tiers.Store, wr *tiers.Writer, seq uint64, rows int, room int64) (ref arrowio.Ref, copied int64, inPlace bool) {
	w.tb.Helper()
	b, err := s.Build(w.ctx, schema, room)
	if err != nil {
		w.tb.Fatal(err)
	}
	rec := batchIn(b.Allocator(), seq, rows)
	defer rec.Release()
	ref, copied, err = wr.WriteBuilt(w.ctx, seq, b, rec)
	if err != nil {
		w.tb.Fatal(err)
	}
	return ref, copied, b.InPlace()
}

func location(tb testing.TB, ref arrowio.Ref, t arrowio.Tier) arrowio.Location {
	tb.Helper()
	l, ok := ref.In(t)
	if !ok {
		tb.Fatalf("%s has no %s location: %+v", ref.ID(), t, ref.Locations)
	}
	return l
}

func TestBuiltBatchIsNotCopied(t *testing.T) {
	w := newWorld(t)
	s, arena := w.store(4 << 20)
	wr := w.writer(s, dataset, fence("run-1", 1))
	ref, copied, inPlace := w.built(s, wr, 0, 1000, 256<<10)
	if !inPlace || copied != 0 || s.Stats().CopiedBytes != 0 || s.Stats().Spilled != 0 {
		t.Errorf("in place %v, copied %d, stats %+v", inPlace, copied, s.Stats())
	}
	b, err := s.OpenBatch(w.ctx, ref, true)
	if err != nil {
		t.Fatal(err)
	}
	if b.Tier != arrowio.Hot || arrowio.BytesOutside(b.Record, b.Lease.Bytes()) != 0 {
		t.Errorf("read from %s", b.Tier)
	}
	same(t, b.Record, 0, 1000)
	b.Release()
	if st := arena.Stats(); st.Builds != 0 || st.Built != 1 || st.Used > 64<<10 {
		t.Errorf("%+v", st)
	}

	// The warm copy is the same whether the batch was built in place or not.
	other := w.writer(s, "other", fence("run-1", 1))
	rec := batch(0, 1000)
	defer rec.Release()
	plain, err := other.WriteAt(w.ctx, 0, rec)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := location(t, ref, arrowio.Warm).SHA256, location(t, plain, arrowio.Warm).SHA256; got != want || ref.BodyBytes != plain.BodyBytes {
		t.Errorf("SHA-256 %s, body of %d bytes; built elsewhere %s, %d", got, ref.BodyBytes, want, plain.BodyBytes)
	}
	fresh, _ := w.store(0)
	if b, err = fresh.OpenBatch(w.ctx, ref, false); err != nil {
		t.Fatal(err)
	}
	same(t, b.Record, 0, 1000)
	b.Release()

	// A repeat stores nothing and gives the memory back.
	used := arena.Stats().Used
	if _, copied, _ = w.built(s, wr, 0, 1000, 256<<10); copied != 0 || arena.Stats().Used != used {
		t.Errorf("copied %d, %d bytes in use, before %d", copied, arena.Stats().Used, used)
	}
	// A foreign batch costs one copy.
	slot, err := s.Build(w.ctx, schema, 256<<10)
	if err != nil {
		t.Fatal(err)
	}
	foreign := batch(1, 1000)
	defer foreign.Release()
	before := s.Stats().CopiedBytes
	ref, copied, err = wr.WriteBuilt(w.ctx, 1, slot, foreign)
	if err != nil || copied != ref.BodyBytes || s.Stats().CopiedBytes-before != copied {
		t.Error(copied, ref.BodyBytes, s.Stats().CopiedBytes, err)
	}
}

func TestBuildWithoutAnArena(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	wr := w.writer(s, dataset, fence("run-1", 1))
	ref, copied, inPlace := w.built(s, wr, 0, 100, 64<<10)
	if inPlace || copied != 0 || s.Stats().Spilled != 0 {
		t.Errorf("in place %v, copied %d, stats %+v", inPlace, copied, s.Stats())
	}
	if _, hot := ref.In(arrowio.Hot); hot {
		t.Error("hot without an arena")
	}
}

func TestBatchPassedOnIsNotCopied(t *testing.T) {
	w := newWorld(t)
	s, arena := w.store(1 << 20)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	ref, err := s.Ref(w.ctx, dataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.OpenBatch(w.ctx, ref, false)
	if err != nil {
		t.Fatal(err)
	}
	before, used := s.Stats().CopiedBytes, arena.Stats().Used
	onward := w.writer(s, "onward", fence("run-1", 1))
	passed, err := onward.WriteAt(w.ctx, 0, b.Record)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := location(t, passed, arrowio.Hot).URI, location(t, ref, arrowio.Hot).URI; got != want {
		t.Errorf("lies at %s, came from %s", got, want)
	}
	// A part of it is another batch.
	part := b.Record.NewSlice(0, 50)
	cut, err := onward.WriteAt(w.ctx, 1, part)
	part.Release()
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Stats().CopiedBytes - before; got != cut.BodyBytes || arena.Stats().Used <= used {
		t.Errorf("copied %d bytes for a part of %d", got, cut.BodyBytes)
	}
	b.Release()

	// An adopted segment can be passed on as well, and outlives its first name.
	seg := segment(t, 2, 100)
	third := w.writer(s, "third", fence("run-1", 1))
	if ref, err = third.AdoptAt(w.ctx, 0, seg); err != nil {
		t.Fatal(err)
	}
	if b, err = s.OpenBatch(w.ctx, ref, false); err != nil {
		t.Fatal(err)
	}
	before = s.Stats().CopiedBytes
	if _, err = onward.WriteAt(w.ctx, 2, b.Record); err != nil {
		t.Fatal(err)
	}
	b.Release()
	if got := s.Stats().CopiedBytes; got != before {
		t.Errorf("copied %d bytes of a segment", got-before)
	}
}

func TestFullArenaSpills(t *testing.T) {
	w := newWorld(t)
	var log bytes.Buffer
	w.set = func(cfg *tiers.Config) {
		cfg.HotWait = 2 * time.Millisecond
		cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s, arena := w.store(64 << 10)
	wr := w.writer(s, dataset, fence("run-1", 1))
	rec := func(seq uint64) arrowio.Ref {
		t.Helper()
		r := batch(seq, 1000) // about 20 KiB
		defer r.Release()
		ref, err := wr.WriteAt(w.ctx, seq, r)
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	var readers []*tiers.Batch
	seq := uint64(0)
	for ; ; seq++ {
		ref := rec(seq)
		if _, hot := ref.In(arrowio.Hot); !hot {
			break
		}
		b, err := s.OpenBatch(w.ctx, ref, true) // being read, it cannot be pushed out
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, b)
	}
	ref, err := s.Ref(w.ctx, dataset, seq)
	if err != nil {
		t.Fatal(err)
	}
	location(t, ref, arrowio.Warm)
	if st := s.Stats(); len(readers) == 0 || st.Spilled != 1 || st.SpilledBytes != ref.BodyBytes {
		t.Errorf("%d batches were hot, stats %+v", len(readers), st)
	}
	// What was built elsewhere for want of room spills too.
	seq++
	if ref, copied, inPlace := w.built(s, wr, seq, 1000, 32<<10); inPlace || copied != 0 || len(ref.Locations) != 1 {
		t.Error(inPlace, copied, ref.Locations)
	}
	// A batch larger than the arena does not wait.
	seq++
	large := batch(seq, 10_000)
	defer large.Release()
	if ref, err = wr.WriteAt(w.ctx, seq, large); err != nil || len(ref.Locations) != 1 {
		t.Fatal(ref.Locations, err)
	}
	b, err := s.Build(w.ctx, schema, 1<<20)
	if err != nil || b.InPlace() {
		t.Error("built in an arena that is too small:", err)
	}
	if st := s.Stats(); st.Spilled != 3 {
		t.Errorf("%+v", st)
	}
	if text := log.String(); strings.Count(text, "no room in shared memory") != 3 || strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, "larger than the arena") {
		t.Error(text)
	}
	got, err := s.OpenBatch(w.ctx, ref, false)
	if err != nil || got.Tier != arrowio.Warm {
		t.Fatal(err)
	}
	same(t, got.Record, seq, 10_000)
	got.Release()

	for _, r := range readers {
		r.Release()
	}
	seq++
	if _, hot := rec(seq).In(arrowio.Hot); !hot || s.Stats().Spilled != 3 {
		t.Error("spilled though there is room")
	}
	if arena.Stats().Leases != 0 {
		t.Error("leases are left")
	}
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	if _, err := s.Build(ctx, schema, 1000); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestBuiltOverwhelmsTheArena: what must be copied finds no room, not even for
// the batch as a whole.
func TestBuiltOverwhelmsTheArena(t *testing.T) {
	w := newWorld(t)
	w.set = func(cfg *tiers.Config) { cfg.HotWait = time.Millisecond }
	s, arena := w.store(64 << 10)
	wr := w.writer(s, dataset, fence("run-1", 1))
	b, err := s.Build(w.ctx, schema, 4<<10)
	if err != nil || !b.InPlace() {
		t.Fatal(err)
	}
	rec := batchIn(b.Allocator(), 0, 10_000)
	ref, copied, err := wr.WriteBuilt(w.ctx, 0, b, rec)
	rec.Release()
	if err != nil || copied != 0 || len(ref.Locations) != 1 || s.Stats().Spilled != 1 {
		t.Error(copied, ref.Locations, s.Stats(), err)
	}
	if st := arena.Stats(); st.Used != 0 || st.Builds != 0 {
		t.Errorf("%+v", st)
	}
}

func TestSegmentOverTheQuotaSpills(t *testing.T) {
	w := newWorld(t)
	w.set = func(cfg *tiers.Config) { cfg.Host.Limit = cfg.Arena.Size() }
	s, _ := w.store(64 << 10)
	wr := w.writer(s, dataset, fence("run-1", 1))
	seg := segment(t, 0, 100)
	ref, err := wr.AdoptAt(w.ctx, 0, seg)
	if err != nil {
		t.Fatal(err)
	}
	if len(ref.Locations) != 1 || s.Stats().Spilled != 1 || seg.Stats().Arenas != 0 {
		t.Errorf("%+v, %+v, segment %+v", ref.Locations, s.Stats(), seg.Stats())
	}
	b, err := s.OpenBatch(w.ctx, ref, false)
	if err != nil {
		t.Fatal(err)
	}
	same(t, b.Record, 0, 100)
	b.Release()
	var limit *shm.LimitError
	seg = segment(t, 1, 100)
	defer seg.Close()
	if err := (&shm.Host{Limit: 1}).Add(seg); !errors.As(err, &limit) {
		t.Error(err)
	}
}
