package tiers_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
)

const dataset = "flights/schedule"

func TestWriteCommitsAnnouncesAndReads(t *testing.T) {
	w := newWorld(t)
	s, arena := w.store(1 << 20)
	wr := w.writer(s, dataset, fence("run-1", 1))
	if wr.Base() != 0 || wr.Next() != 0 {
		t.Fatalf("base %d, next %d of an empty dataset", wr.Base(), wr.Next())
	}
	w.write(wr, 0, 1, 2)
	if err := wr.Seal(w.ctx); err != nil {
		t.Fatal(err)
	}
	head, err := s.Head(w.ctx, dataset)
	if err != nil || head.Next != 3 || head.Rows != 300 || !head.Sealed || head.Epoch != 1 || head.Fence != fence("run-1", 1) {
		t.Errorf("head %+v, %v", head, err)
	}
	for seq := range uint64(3) {
		ref, err := s.Ref(w.ctx, dataset, seq)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.OpenBatch(w.ctx, ref, false)
		if err != nil {
			t.Fatal(err)
		}
		same(t, b.Record, seq, 100)
		if b.Tier != arrowio.Hot || b.Lease == nil || !arena.Contains(b.Lease.Bytes()) {
			t.Errorf("batch %d came from %s, lease %v", seq, b.Tier, b.Lease)
		}
		b.Release()
		b.Release() // harmless
	}
	want := map[string]int{dataset + "#0": 1, dataset + "#1": 1, dataset + "#2": 1}
	if got := w.published(events.TypeBatchPublished); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("batch.published: %v", got)
	}
	if got := w.published(events.TypeDatasetSealed); got[dataset+"#sealed"] != 1 {
		t.Errorf("dataset.sealed: %v", got)
	}
	st := s.Stats()
	if st.Hot != 3 || st.Warm != 0 || st.Cold != 0 || st.CopiedBytes == 0 {
		t.Errorf("stats %+v", st)
	}
	dir, err := os.Stat(w.warm)
	if err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("warm directory: %v, %v", dir.Mode(), err)
	}
	for _, f := range files(t, w.warm) {
		if info, err := os.Stat(filepath.Join(w.warm, f)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	wr := w.writer(s, dataset, fence("run-1", 1))
	w.write(wr, 0)
	rec := batch(1, 10)
	defer rec.Release()
	if _, err := wr.WriteAt(w.ctx, 2, rec); !errors.Is(err, tiers.ErrGap) {
		t.Errorf("gap: %v", err)
	}
	other := arrow.NewSchema([]arrow.Field{{Name: "id", Type: arrow.PrimitiveTypes.Int32}}, nil)
	if _, err := s.Writer(w.ctx, dataset, other, fence("run-2", 1)); !errors.Is(err, tiers.ErrSchema) {
		t.Errorf("writer of another schema: %v", err)
	}
	if err := wr.Seal(w.ctx); err != nil {
		t.Fatal(err)
	}
	if err := wr.Seal(w.ctx); err != nil {
		t.Errorf("sealing twice: %v", err)
	}
	if _, err := wr.WriteAt(w.ctx, 1, rec); !errors.Is(err, tiers.ErrSealed) {
		t.Errorf("write after the seal: %v", err)
	}
	if _, err := s.Writer(w.ctx, dataset, schema, fence("run-2", 1)); !errors.Is(err, tiers.ErrSealed) {
		t.Errorf("another run's writer after the seal: %v", err)
	}
	again := w.writer(s, dataset, fence("run-1", 2))
	if ref, err := again.WriteAt(w.ctx, 0, rec); err != nil || ref.Rows != 100 {
		t.Errorf("the sealing stage's retry: %+v, %v", ref, err)
	}
	for _, name := range []string{"", "a\x00b", "a\nb", "\xff", strings.Repeat("a", 300), strings.Repeat(".", 90)} {
		if _, err := s.Writer(w.ctx, name, schema, fence("run-1", 1)); !errors.Is(err, tiers.ErrName) {
			t.Errorf("dataset %.20q: %v", name, err)
		}
	}
	if _, err := s.Writer(w.ctx, "d", schema, tiers.Fence{Stage: "s"}); !errors.Is(err, tiers.ErrName) {
		t.Errorf("fence without run: %v", err)
	}
	if _, err := s.Head(w.ctx, "absent"); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("head of an absent dataset: %v", err)
	}
	if _, err := s.Ref(w.ctx, dataset, 7); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("ref of an absent batch: %v", err)
	}
	if err := s.Close(w.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Head(w.ctx, dataset); !errors.Is(err, tiers.ErrClosed) {
		t.Errorf("head of a closed store: %v", err)
	}
	if _, err := wr.WriteAt(w.ctx, 1, rec); !errors.Is(err, tiers.ErrClosed) {
		t.Errorf("write to a closed store: %v", err)
	}
}

func TestWriteOfAnotherSchemaLeavesNothing(t *testing.T) {
	w := newWorld(t)
	s, arena := w.store(1 << 20)
	other := arrow.NewSchema([]arrow.Field{{Name: "id", Type: arrow.PrimitiveTypes.Int32}}, nil)
	wr, err := s.Writer(w.ctx, dataset, other, fence("run-1", 1))
	if err != nil {
		t.Fatal(err)
	}
	rec := batch(0, 10)
	defer rec.Release()
	if _, err := wr.WriteAt(w.ctx, 0, rec); !errors.Is(err, tiers.ErrSchema) {
		t.Fatalf("got %v", err)
	}
	if left := files(t, w.warm); len(left) != 0 || arena.Stats().Slots != 0 {
		t.Errorf("left %q and %+v", left, arena.Stats())
	}
}

func TestBaseIsTheSameOnEveryAttempt(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("week-0", 1)), 0, 1)

	a1 := w.writer(s, dataset, fence("week-1", 1))
	w.write(a1, 2, 3)
	if got := w.writer(s, dataset, fence("week-1", 2)); got.Base() != 2 || got.Next() != 4 {
		t.Errorf("retry: base %d next %d, want 2 and 4", got.Base(), got.Next())
	}
	b := w.writer(s, dataset, fence("week-2", 1))
	w.write(b, 4)
	if b.Base() != 4 {
		t.Errorf("next run: base %d, want 4", b.Base())
	}
	if got := w.writer(s, dataset, fence("week-1", 3)); got.Base() != 2 || got.Next() != 5 {
		t.Errorf("retry after another run: base %d next %d, want 2 and 5", got.Base(), got.Next())
	}
	if got := w.writer(s, dataset, fence("week-2", 1)); got.Base() != 4 {
		t.Errorf("other run again: base %d, want 4", got.Base())
	}
	if _, err := s.Writer(w.ctx, dataset, schema, fence("week-1", 2)); !errors.Is(err, tiers.ErrFenced) {
		t.Errorf("attempt 2 after attempt 3, displaced: %v", err)
	}
	w.writer(s, dataset, fence("week-1", 3))
	if _, err := s.Writer(w.ctx, dataset, schema, fence("week-1", 1)); !errors.Is(err, tiers.ErrFenced) {
		t.Errorf("attempt 1 after attempt 3: %v", err)
	}
}

func TestStaleAttemptIsFenced(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(1 << 20)
	stale := w.writer(s, dataset, fence("run-1", 1))
	w.write(stale, 0)
	fresh := w.writer(s, dataset, fence("run-1", 2))
	rec := batch(99, 50)
	defer rec.Release()
	if _, err := stale.WriteAt(w.ctx, 1, rec); !errors.Is(err, tiers.ErrFenced) {
		t.Fatalf("stale write: %v", err)
	}
	w.write(fresh, 1)
	if _, err := stale.WriteAt(w.ctx, 1, rec); !errors.Is(err, tiers.ErrFenced) {
		t.Fatalf("stale write again: %v", err)
	}
	if err := stale.Seal(w.ctx); !errors.Is(err, tiers.ErrFenced) {
		t.Fatalf("stale seal: %v", err)
	}
	ref, err := s.Ref(w.ctx, dataset, 1)
	if err != nil || ref.Rows != 100 {
		t.Fatalf("batch 1 is %+v, %v", ref, err)
	}
	if got := w.published(events.TypeBatchPublished); len(got) != 2 {
		t.Errorf("batch.published: %v", got)
	}
	// What the stale attempt left on disk goes with the next writer.
	w.writer(s, dataset, fence("run-1", 3))
	if got := files(t, w.warm); len(got) != 2 {
		t.Errorf("warm files %q, want 2", got)
	}
}

// A stale attempt that is late with its entry must not change what the newer one
// committed in its place.
func TestStaleEntryCannotReplaceACommittedOne(t *testing.T) {
	w := newWorld(t)
	s1, _ := w.store(0)
	s2, _ := w.store(0)
	stale := w.writer(s1, dataset, fence("run-1", 1))
	tiers.SetFault(s1, func(point string) error {
		if point == "linked" { // the stale attempt pauses here, and the newer one commits
			w.write(w.writer(s2, dataset, fence("run-1", 2)), 0)
		}
		return nil
	})
	rec := batch(99, 50)
	defer rec.Release()
	if _, err := stale.WriteAt(w.ctx, 0, rec); !errors.Is(err, tiers.ErrFenced) {
		t.Fatalf("stale write: %v", err)
	}
	ref, err := s2.Ref(w.ctx, dataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s2.OpenBatch(w.ctx, ref, false)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	same(t, b.Record, 0, 100)
}

func TestBatchWrittenTwiceIsStoredOnce(t *testing.T) {
	w := newWorld(t)
	s, arena := w.store(1 << 20)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0, 1)
	before := files(t, w.warm)
	slots := arena.Stats().Slots
	retry := w.writer(s, dataset, fence("run-1", 2))
	w.write(retry, 0, 1)
	if after := files(t, w.warm); fmt.Sprint(after) != fmt.Sprint(before) || len(after) != 2 {
		t.Errorf("files %q became %q", before, after)
	}
	if got := arena.Stats().Slots; got != slots {
		t.Errorf("%d slots became %d", slots, got)
	}
	w.write(retry, 2)
	for id, n := range w.published(events.TypeBatchPublished) {
		if n != 1 {
			t.Errorf("%s announced %d times", id, n)
		}
	}
	if head, err := s.Head(w.ctx, dataset); err != nil || head.Next != 3 || head.Rows != 300 {
		t.Errorf("head %+v, %v", head, err)
	}
}

func TestDeniedBatchLeavesNothing(t *testing.T) {
	w := newWorld(t)
	s, arena := w.store(1 << 20)
	wr := w.writer(s, dataset, fence("run-1", 1))
	w.write(wr, 0)
	w.deny = func(ev *events.Event) string {
		if ev.Type() == events.TypeBatchPublished {
			return "too many rows"
		}
		return ""
	}
	before, slots := files(t, w.warm), arena.Stats().Slots
	rec := batch(1, 20)
	defer rec.Release()
	_, err := wr.WriteAt(w.ctx, 1, rec)
	var te *tiers.Error
	if !errors.Is(err, events.ErrDenied) || !errors.As(err, &te) || te.Batch != dataset+"#1" {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Ref(w.ctx, dataset, 1); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("a denied batch is in the catalog: %v", err)
	}
	if after := files(t, w.warm); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("files %q became %q", before, after)
	}
	if st := arena.Stats(); st.Slots != slots || st.Loans != 0 || st.Leases != 0 {
		t.Errorf("arena %+v, %d slots before", st, slots)
	}
	if got := w.published(events.TypeBatchPublished); len(got) != 1 {
		t.Errorf("announced %v", got)
	}
	w.deny = nil
	if _, err := wr.WriteAt(w.ctx, 1, rec); err != nil {
		t.Errorf("once allowed: %v", err)
	}
}

// Killed at any step and written again by the next attempt, in a new process, a
// batch is there once and announced once.
func TestCrashAtEveryStepOfAWrite(t *testing.T) {
	for _, point := range []string{"staged", "approved", "linked", "entered", "committed"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			s1, _ := w.store(1 << 20)
			wr := w.writer(s1, dataset, fence("run-1", 1))
			w.write(wr, 0)
			died := errors.New("killed")
			tiers.SetFault(s1, func(p string) error {
				if p == point {
					return died
				}
				return nil
			})
			rec := batch(1, 100)
			defer rec.Release()
			if _, err := wr.WriteAt(w.ctx, 1, rec); !errors.Is(err, died) {
				t.Fatalf("got %v", err)
			}
			if err := s1.Close(w.ctx); err != nil {
				t.Fatal(err)
			}
			s2, _ := w.store(1 << 20)
			retry := w.writer(s2, dataset, fence("run-1", 2))
			if point == "committed" {
				// Whoever opens the dataset announces what the dead writer could not.
				if got := w.published(events.TypeBatchPublished); got[dataset+"#1"] != 1 {
					t.Errorf("after the takeover: announced %v", got)
				}
			}
			w.write(retry, 0, 1, 2)
			for seq := range uint64(3) {
				ref, err := s2.Ref(w.ctx, dataset, seq)
				if err != nil {
					t.Fatal(err)
				}
				b, err := s2.OpenBatch(w.ctx, ref, false)
				if err != nil {
					t.Fatal(err)
				}
				same(t, b.Record, seq, 100)
				b.Release()
			}
			if got := w.published(events.TypeBatchPublished); len(got) != 3 || got[dataset+"#1"] != 1 {
				t.Errorf("announced %v", got)
			}
			if got := files(t, w.warm); len(got) != 3 {
				t.Errorf("warm files %q, want 3", got)
			}
		})
	}
}

func TestUnreachableBusAfterTheCommit(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	wr := w.writer(s, dataset, fence("run-1", 1))
	cut := errors.New("connection lost")
	tiers.FailPublish(s, func() error { return cut })
	rec := batch(0, 100)
	defer rec.Release()
	if _, err := wr.WriteAt(w.ctx, 0, rec); !errors.Is(err, cut) {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Ref(w.ctx, dataset, 0); err != nil {
		t.Errorf("the commit stands: %v", err)
	}
	if got := w.published(events.TypeBatchPublished); len(got) != 0 {
		t.Fatalf("announced %v", got)
	}
	cut = nil
	if _, err := wr.WriteAt(w.ctx, 0, rec); err != nil {
		t.Fatal(err)
	}
	if got := w.published(events.TypeBatchPublished); got[dataset+"#0"] != 1 {
		t.Errorf("announced %v", got)
	}
}

// The server goes away under a writer and comes back: the writer goes on where it
// was, whatever became of the requests that were under way.
func TestServerRestartsUnderAWriter(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(1 << 20)
	wr := w.writer(s, dataset, fence("run-1", 1))
	w.write(wr, 0)
	w.srv.Stop()
	rec := batch(1, 100)
	defer rec.Release()
	short, cancel := context.WithTimeout(w.ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := wr.WriteAt(short, 1, rec); err == nil {
		t.Fatal("written without a server")
	}
	w.srv.Restart()
	for {
		short, cancel := context.WithTimeout(w.ctx, 5*time.Second)
		_, err := wr.WriteAt(short, 1, rec)
		cancel()
		if err == nil {
			break
		}
		if w.ctx.Err() != nil || errors.Is(err, tiers.ErrFenced) {
			t.Fatal(err)
		}
	}
	w.write(wr, 2)
	if head, err := s.Head(w.ctx, dataset); err != nil || head.Next != 3 || head.Rows != 300 || head.Epoch != 1 {
		t.Errorf("head %+v, %v", head, err)
	}
	for seq := range uint64(3) {
		if got := w.published(events.TypeBatchPublished)[fmt.Sprintf("%s#%d", dataset, seq)]; got != 1 {
			t.Errorf("batch %d announced %d times", seq, got)
		}
	}
}

func TestAdoptedSegmentIsNotCopied(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(1 << 20)
	wr := w.writer(s, dataset, fence("run-1", 1))
	seg := segment(t, 0, 100)
	ref, err := wr.AdoptAt(w.ctx, 0, seg)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Stats().CopiedBytes; got != 0 {
		t.Errorf("%d body bytes copied", got)
	}
	b, err := s.OpenBatch(w.ctx, ref, true)
	if err != nil {
		t.Fatal(err)
	}
	same(t, b.Record, 0, 100)
	if b.Tier != arrowio.Hot || b.Lease == nil || b.Lease.Arena() != seg {
		t.Errorf("read from %s, not from the segment", b.Tier)
	}
	if values := b.Record.Column(0).Data().Buffers()[1].Bytes(); !seg.Contains(values) {
		t.Error("values do not lie in the segment")
	}
	b.Release()
	if got := s.Stats().CopiedBytes; got != 0 {
		t.Errorf("%d body bytes copied", got)
	}

	// A repeat is recognised, and the segment given up.
	again := segment(t, 0, 100)
	if _, err := wr.AdoptAt(w.ctx, 0, again); err != nil {
		t.Fatal(err)
	}
	if st := again.Stats(); st.Arenas != 0 {
		t.Errorf("the repeated segment is still mapped: %+v", st)
	}
	// So is one that is refused.
	w.deny = func(*events.Event) string { return "no" }
	denied := segment(t, 1, 10)
	if _, err := wr.AdoptAt(w.ctx, 1, denied); !errors.Is(err, events.ErrDenied) {
		t.Errorf("denied: %v", err)
	}
	if st := denied.Stats(); st.Arenas != 0 {
		t.Errorf("the denied segment is still mapped: %+v", st)
	}
	w.deny = nil
	// And one that is not a batch.
	junk := sealed(t, make([]byte, 128))
	if _, err := wr.AdoptAt(w.ctx, 1, junk); !errors.Is(err, arrowio.ErrCorrupt) {
		t.Errorf("junk: %v", err)
	}
	if st := junk.Stats(); st.Arenas != 0 {
		t.Errorf("the junk segment is still mapped: %+v", st)
	}
	// A new process reads the warm copy.
	s2, _ := w.store(0)
	b, err = s2.OpenBatch(w.ctx, ref, false)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	same(t, b.Record, 0, 100)
	if b.Tier != arrowio.Warm {
		t.Errorf("read from %s", b.Tier)
	}
}

// segment makes what a child process would: a sealed memfd of one framed batch.
func segment(tb testing.TB, seed uint64, rows int) *shm.Arena {
	tb.Helper()
	rec := batch(seed, rows)
	defer rec.Release()
	frame, err := arrowio.Encode(rec, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return sealed(tb, frame)
}

func sealed(tb testing.TB, frame []byte) *shm.Arena {
	tb.Helper()
	seg, err := shm.NewSegment(int64(len(frame)))
	if err != nil {
		tb.Fatal(err)
	}
	defer seg.Close()
	copy(seg.Bytes(), frame)
	fd, err := seg.Seal()
	if err != nil {
		tb.Fatal(err)
	}
	dup, err := dupFD(fd)
	if err != nil {
		tb.Fatal(err)
	}
	arena, _, err := shm.Adopt(dup, seg.Size(), int64(len(frame)))
	if err != nil {
		tb.Fatal(err)
	}
	return arena
}
