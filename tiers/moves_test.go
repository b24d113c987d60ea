package tiers_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/smalldisk"
	"github.com/stokehold/stokehold/tiers"
)

// eventually polls a condition for at most ten seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func mustRef(t *testing.T, w *world, s *tiers.Store, seq uint64) arrowio.Ref {
	t.Helper()
	ref, err := s.Ref(w.ctx, dataset, seq)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// tiersOf says where the catalog has a batch, besides shared memory.
func tiersOf(ref arrowio.Ref) string {
	var at []string
	for _, tier := range []arrowio.Tier{arrowio.Warm, arrowio.Cold} {
		if _, ok := ref.In(tier); ok {
			at = append(at, string(tier))
		}
	}
	return strings.Join(at, "+")
}

func readable(t *testing.T, w *world, s *tiers.Store, from arrowio.Tier) {
	t.Helper()
	b, err := s.OpenBatch(w.ctx, mustRef(t, w, s, 0), false)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	same(t, b.Record, 0, 100)
	if from != "" && b.Tier != from {
		t.Errorf("read from the %s tier, not the %s one", b.Tier, from)
	}
}

func TestMoveToColdEvictAndBack(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	for round := range 2 {
		if st, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Evict: true, Reason: "test"}, nil); err != nil || st.Done != tiers.StepDrop {
			t.Fatalf("evict: %+v, %v", st, err)
		}
		if at := tiersOf(mustRef(t, w, s, 0)); at != "cold" {
			t.Errorf("round %d: the batch is in %s", round, at)
		}
		if got := files(t, w.warm); len(got) != 0 {
			t.Errorf("round %d: warm files %q", round, got)
		}
		readable(t, w, s, arrowio.Cold)
		if st, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, To: arrowio.Warm}, nil); err != nil || st.Done != tiers.StepDrop {
			t.Fatalf("back: %+v, %v", st, err)
		}
		if at := tiersOf(mustRef(t, w, s, 0)); at != "warm+cold" {
			t.Errorf("round %d: the batch is in %s", round, at)
		}
		readable(t, w, s, arrowio.Warm)
	}
	if got := w.published(events.TypeTierMoveRequested); len(got) != 4 {
		t.Errorf("requested: %v", got)
	}
	if got := w.published(events.TypeTierMoved); len(got) != 4 { // that the second time to cold made no copy does not hide it
		t.Errorf("moved: %v", got)
	}
}

func TestDeniedMoveReadsNothing(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	w.deny = func(ev *events.Event) string {
		if ev.Type() == events.TypeTierMoveRequested {
			return "residency: stays in the EU"
		}
		return ""
	}
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); !errors.Is(err, events.ErrDenied) {
		t.Fatalf("got %v", err)
	}
	if got := files(t, w.cold); len(got) != 0 {
		t.Errorf("bytes moved: %q", got)
	}
	w.deny = nil
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); err != nil {
		t.Errorf("once it is allowed: %v", err)
	}
}

func TestPinsAndHoldsKeepTheWarmCopy(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0, 1)
	for _, hold := range []bool{false, true} {
		if err := s.Pin(w.ctx, dataset, tiers.Pin{From: 0, To: 1, Hold: hold, Reason: "case 7"}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Evict: true}, nil); !errors.Is(err, tiers.ErrPinned) || !strings.Contains(err.Error(), "case 7") {
			t.Errorf("got %v", err)
		}
		if n, err := s.Unpin(w.ctx, dataset, 0, tiers.End, hold); err != nil || n != 1 {
			t.Errorf("unpinned %d, %v", n, err)
		}
	}
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Evict: true}, nil); err != nil {
		t.Error(err)
	}
}

func TestRemovalWaitsForLeases(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	reader, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	lease, err := reader.Lease(w.ctx, dataset, 0, 1, "epoch reader 3")
	if err != nil {
		t.Fatal(err)
	}
	m := tiers.Migration{Dataset: dataset, Evict: true}
	if st, err := s.Move(w.ctx, m, nil); !errors.Is(err, tiers.ErrLeased) || !strings.Contains(err.Error(), "epoch reader 3") || st.Done != tiers.StepAnnounce {
		t.Fatalf("%+v, %v", st, err)
	}
	if got := files(t, w.warm); len(got) != 1 {
		t.Fatalf("warm files %q", got)
	}
	if err := lease.Release(w.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.MoveStep(w.ctx, m, tiers.StepDrop); err != nil {
		t.Fatal(err)
	}
	if got := files(t, w.warm); len(got) != 0 {
		t.Errorf("warm files %q", got)
	}
}

// A lease whose holder died ends once it was seen not to beat, and no sooner.
func TestLeaseOfTheDeadEnds(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	name, err := tiers.Token("dataset", dataset)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := catalogBucket(t, w).PutString(w.ctx, "lease."+name+".DEAD", `{"owner":"gone","from":0,"to":9}`); err != nil {
		t.Fatal(err)
	}
	const ttl = 200 * time.Millisecond
	tiers.SetLeaseTTL(s, ttl)
	begun := time.Now()
	m := tiers.Migration{Dataset: dataset, Evict: true}
	if _, err := s.Move(w.ctx, m, nil); !errors.Is(err, tiers.ErrLeased) {
		t.Fatalf("got %v", err)
	}
	eventually(t, "the lease ends", func() bool {
		_, err := s.MoveStep(w.ctx, m, tiers.StepDrop)
		return err == nil
	})
	if took := time.Since(begun); took < ttl {
		t.Errorf("it ended after %v", took)
	}
}

func TestDamageIsHealedAndReported(t *testing.T) {
	for _, tier := range []arrowio.Tier{arrowio.Warm, arrowio.Cold} {
		t.Run(string(tier), func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.store(0)
			w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
			if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); err != nil {
				t.Fatal(err)
			}
			ref := mustRef(t, w, s, 0)
			path := filepath.Join(w.cold, files(t, w.cold)[0])
			if tier == arrowio.Warm {
				var err error
				if path, err = tiers.WarmPath(s, ref); err != nil {
					t.Fatal(err)
				}
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			raw[len(raw)/2] ^= 1
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			if tier == arrowio.Cold { // reads prefer the warm copy: verifying reads both
				faults, err := s.Verify(w.ctx, dataset, 0, tiers.End, true, nil)
				if err != nil || len(faults.Faults) != 1 || !faults.Faults[0].Healed || faults.Copies != 2 {
					t.Fatalf("%+v, %v", faults, err)
				}
			} else {
				readable(t, w, s, arrowio.Cold)
			}
			eventually(t, "the event", func() bool { return len(w.published(events.TypeTierCopyDamaged)) == 1 })
			if got, err := s.Verify(w.ctx, dataset, 0, tiers.End, false, nil); err != nil || len(got.Faults) != 0 || got.Copies != 2 {
				t.Errorf("after the repair: %+v, %v", got, err)
			}
			readable(t, w, s, arrowio.Warm)
		})
	}
}

// A full disk fails the move and nothing else; with room again it goes on.
func TestMoveToAFullDisk(t *testing.T) {
	for _, c := range []struct {
		name string
		m    tiers.Migration
	}{{"cold", tiers.Migration{Dataset: dataset}}, {"warm", tiers.Migration{Dataset: dataset, To: arrowio.Warm}}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.store(0)
			wr := w.writer(s, dataset, fence("run-1", 1))
			rec := batch(0, 100_000)
			defer rec.Release()
			if _, err := wr.WriteAt(w.ctx, 0, rec); err != nil {
				t.Fatal(err)
			}
			full := w.cold
			if c.m.To == arrowio.Warm {
				if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Evict: true}, nil); err != nil {
					t.Fatal(err)
				}
				full = filepath.Join(w.warm, ".stage")
			}
			unmount := smalldisk.Mount(t, full, 64<<10)
			_, err := s.Move(w.ctx, c.m, nil)
			unmount()
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("got %v", err)
			}
			if _, err := s.Move(w.ctx, c.m, nil); err != nil {
				t.Fatalf("with room again: %v", err)
			}
			b, err := s.OpenBatch(w.ctx, mustRef(t, w, s, 0), false)
			if err != nil {
				t.Fatal(err)
			}
			b.Release()
		})
	}
}

const moverEnv = "STOKEHOLD_TEST_MOVER"

// moverChild is the process that TestKilledMover kills.
func moverChild(ctx context.Context, s *tiers.Store, args []string) error {
	point, to := args[0], args[1]
	tiers.SetFault(s, func(p string) error {
		if p == point {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	})
	_, err := s.Move(ctx, tiers.Migration{Dataset: dataset, Evict: to == "cold", To: arrowio.Tier(to)}, nil)
	return errors.Join(fmt.Errorf("not killed at %q", point), err)
}

// A process that is killed at any step of a move leaves a batch that can be read and
// verified at once, and a move that another process completes.
func TestKilledMover(t *testing.T) {
	t.Parallel()
	for _, to := range []arrowio.Tier{arrowio.Cold, arrowio.Warm} {
		for _, point := range []string{"moved intent", "put", "moved copy", "moved verify", "flipped", "moved flip", "moved announce", "moved drop"} {
			t.Run(fmt.Sprintf("%s/%s", to, strings.ReplaceAll(point, " ", "-")), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				s, _ := w.store(0)
				w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
				end := "cold"
				if to == arrowio.Warm {
					end = "warm+cold"
					if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Evict: true}, nil); err != nil {
						t.Fatal(err)
					}
				}
				child := w.child(moverEnv, point, string(to))
				out, err := child.CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the child ended with %v:\n%s", err, out)
				}
				far, _ := w.store(0)
				readable(t, w, far, "")
				if got, err := far.Verify(w.ctx, dataset, 0, tiers.End, false, nil); err != nil || len(got.Faults) != 0 || got.Copies == 0 {
					t.Fatalf("right after: %+v, %v", got, err)
				}
				m := tiers.Migration{Dataset: dataset, Evict: to == arrowio.Cold, To: to}
				for range 2 {
					if st, err := far.Move(w.ctx, m, nil); err != nil || st.Done != tiers.StepDrop {
						t.Fatalf("again: %+v, %v", st, err)
					}
				}
				if at := tiersOf(mustRef(t, w, far, 0)); at != end {
					t.Errorf("the batch is in %s, not in %s", at, end)
				}
				if got := files(t, w.warm); (len(got) == 1) != (to == arrowio.Warm) {
					t.Errorf("warm files %q", got)
				}
				readable(t, w, far, to)
			})
		}
	}
}
