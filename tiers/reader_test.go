package tiers_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

func TestMain(m *testing.M) {
	runIfChild()
	goleak.VerifyTestMain(m)
}

func dupFD(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

func TestBatchesFollowAWriterToTheSeal(t *testing.T) {
	for _, c := range []struct {
		name string
		deaf bool // wake-ups are lost: the reader's own look at the head must do
		n    uint64
	}{{"woken by events", false, 8}, {"wake-ups lost", true, 3}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.store(1 << 20)
			if c.deaf {
				tiers.DeafenReaders(s)
			}
			step := make(chan struct{})
			done := make(chan error, 1)
			go func() { // the dataset does not exist when the reader begins
				done <- func() error {
					wr, err := s.Writer(w.ctx, dataset, schema, fence("run-1", 1))
					if err != nil {
						return err
					}
					for seq := range c.n {
						rec := batch(seq, 100)
						if _, err := wr.WriteAt(w.ctx, seq, rec); err != nil {
							return err
						}
						rec.Release()
						<-step // until the reader has it
					}
					return wr.Seal(w.ctx)
				}()
			}()
			next := uint64(0)
			for b, err := range s.Batches(w.ctx, dataset, 0, tiers.End, false) {
				if err != nil {
					t.Fatal(err)
				}
				if b.Ref.Sequence != next {
					t.Fatalf("sequence %d, want %d", b.Ref.Sequence, next)
				}
				same(t, b.Record, next, 100)
				next++
				step <- struct{}{}
			}
			if err := <-done; err != nil || next != c.n {
				t.Fatalf("%d batches of %d, %v", next, c.n, err)
			}
		})
	}
}

func TestBatchesEnds(t *testing.T) {
	w := newWorld(t)
	s, arena := w.store(1 << 20)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0, 1, 2, 3)
	t.Run("at to", func(t *testing.T) {
		var got []uint64
		for b, err := range s.Batches(w.ctx, dataset, 1, 3, false) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, b.Ref.Sequence)
		}
		if len(got) != 2 || got[0] != 1 || got[1] != 2 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("when the loop breaks", func(t *testing.T) {
		for _, err := range s.Batches(w.ctx, dataset, 0, tiers.End, false) {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if got := arena.Stats().Leases; got != 0 {
			t.Errorf("%d leases left", got)
		}
	})
	t.Run("with the context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(w.ctx)
		defer cancel()
		n := 0
		var last error
		for b, err := range s.Batches(ctx, dataset, 0, tiers.End, false) {
			if err != nil {
				last = err
				continue
			}
			if n++; b.Ref.Sequence == 3 {
				cancel() // the next one will never come
			}
		}
		if n != 4 || !errors.Is(last, context.Canceled) {
			t.Errorf("%d batches, then %v", n, last)
		}
	})
	t.Run("empty range", func(t *testing.T) {
		for range s.Batches(w.ctx, dataset, 3, 3, false) {
			t.Error("yielded something")
		}
	})
	t.Run("retained record outlives the loop", func(t *testing.T) {
		for b, err := range s.Batches(w.ctx, dataset, 0, 1, false) {
			if err != nil {
				t.Fatal(err)
			}
			kept := b.Record
			kept.Retain()
			defer kept.Release()
			defer func() { same(t, kept, 0, 100) }()
		}
		if got := arena.Stats().Leases; got != 1 {
			t.Errorf("%d leases, want the retained one", got)
		}
	})
}

func TestDamagedCopiesArePassedOver(t *testing.T) {
	damage := map[string]func(path string) error{
		"bit flipped": func(path string) error {
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			raw[len(raw)/2] ^= 1
			return os.WriteFile(path, raw, 0o600)
		},
		"truncated": func(path string) error { return os.Truncate(path, 100) },
		"emptied":   func(path string) error { return os.Truncate(path, 0) },
		"removed":   os.Remove,
		"replaced by a link": func(path string) error {
			return errors.Join(os.Remove(path), os.Symlink("/dev/null", path))
		},
	}
	for name, f := range damage {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.store(0)
			w.write(w.writer(s, dataset, fence("run-1", 1)), 0, 1)
			if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); err != nil {
				t.Fatal(err)
			}
			for _, file := range files(t, w.warm) {
				if err := f(filepath.Join(w.warm, file)); err != nil {
					t.Fatal(err)
				}
			}
			ref, err := s.Ref(w.ctx, dataset, 0)
			if err != nil {
				t.Fatal(err)
			}
			b, err := s.OpenBatch(w.ctx, ref, false)
			if err != nil {
				t.Fatal(err)
			}
			same(t, b.Record, 0, 100)
			if b.Tier != arrowio.Cold {
				t.Errorf("read from %s", b.Tier)
			}
			b.Release()
			// The other batch has no cold copy.
			ref, err = s.Ref(w.ctx, dataset, 1)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.OpenBatch(w.ctx, ref, false)
			if !errors.Is(err, tiers.ErrNoTierHas) {
				t.Errorf("no copy left: %v", err)
			}
			if name == "bit flipped" && !errors.Is(err, arrowio.ErrCorrupt) {
				t.Errorf("the reason is lost: %v", err)
			}
			if name == "removed" && !errors.Is(err, arrowio.ErrGone) {
				t.Errorf("the reason is lost: %v", err)
			}
		})
	}
}

func TestDamagedObjectIsNotServed(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Evict: true}, nil); err != nil {
		t.Fatal(err)
	}
	if got := files(t, w.warm); len(got) != 0 {
		t.Fatalf("warm files %q after eviction", got)
	}
	object := filepath.Join(w.cold, files(t, w.cold)[0])
	raw, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/3] ^= 4
	if err := os.WriteFile(object, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	ref, err := s.Ref(w.ctx, dataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenBatch(w.ctx, ref, false); !errors.Is(err, arrowio.ErrCorrupt) || !errors.Is(err, tiers.ErrNoTierHas) {
		t.Errorf("got %v", err)
	}
}

func TestOpenBatchIntoTheArena(t *testing.T) {
	w := newWorld(t)
	old, _ := w.store(1 << 20)
	w.write(w.writer(old, dataset, fence("run-1", 1)), 0)
	ref, err := old.Ref(w.ctx, dataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	s, arena := w.store(1 << 20) // another process: the hot location is of a dead arena
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			b, err := s.OpenBatch(w.ctx, ref, true)
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Release()
			same(t, b.Record, 0, 100)
			if b.Lease == nil || !arena.Contains(b.Lease.Bytes()) {
				t.Error("not in the arena")
			}
		})
	}
	wg.Wait()
	st := s.Stats()
	if st.CopiedBytes != ref.BodyBytes || st.Warm != 1 || st.Hot != 7 {
		t.Errorf("one copy of %d bytes for eight readers wanted, stats %+v", ref.BodyBytes, st)
	}
	none, _ := w.store(0)
	if _, err := none.OpenBatch(w.ctx, ref, true); !errors.Is(err, tiers.ErrNoArena) {
		t.Errorf("without an arena: %v", err)
	}
	// A ref that only names the batch is enough.
	b, err := none.OpenBatch(w.ctx, arrowio.Ref{Dataset: dataset}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	same(t, b.Record, 0, 100)
}

// A full arena pushes out the oldest batches that nobody reads; a writer is never
// held up, and readers find the rest on disk.
func TestArenaKeepsTheNewest(t *testing.T) {
	w := newWorld(t)
	s, arena := w.store(16 << 10) // about four batches
	wr := w.writer(s, dataset, fence("run-1", 1))
	w.write(wr, 0)
	ref, err := s.Ref(w.ctx, dataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	held, err := s.OpenBatch(w.ctx, ref, false)
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq < 12; seq++ {
		w.write(wr, seq)
	}
	if held.Tier != arrowio.Hot {
		t.Errorf("batch 0 came from %s", held.Tier)
	}
	same(t, held.Record, 0, 100)
	tier := func(seq uint64) arrowio.Tier {
		ref, err := s.Ref(w.ctx, dataset, seq)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.OpenBatch(w.ctx, ref, false)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Release()
		same(t, b.Record, seq, 100)
		return b.Tier
	}
	if tier(0) != arrowio.Hot || tier(11) != arrowio.Hot || tier(1) != arrowio.Warm {
		t.Errorf("tiers of batches 0, 1, 11: %s %s %s, want hot (held), warm, hot", tier(0), tier(1), tier(11))
	}
	held.Release()
	if st := arena.Stats(); st.Used > st.Capacity || st.Leases != 0 {
		t.Errorf("arena %+v", st)
	}
	// A batch larger than the arena is written all the same.
	big := batch(12, 5000)
	defer big.Release()
	start := time.Now()
	if _, err := wr.WriteAt(w.ctx, 12, big); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}
