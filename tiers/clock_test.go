package tiers_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/internal/clocktest"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/policy"
)

// setClock is a store whose clock was set.
type setClock struct {
	tiers.ObjectStore
	by *time.Duration
}

func (s setClock) Now(ctx context.Context) (time.Time, error) {
	now, err := s.ObjectStore.(tiers.Clock).Now(ctx)
	return now.Add(*s.by), err
}

func (setClock) Syncs() bool { return true }

// clocks runs test with the wall clocks of this machine and of the object store set
// by an hour, both ways, while it runs.
func clocks(t *testing.T, test func(t *testing.T, w *world, s *tiers.Store, set func(), by time.Duration)) {
	for name, by := range map[string]time.Duration{"forward": time.Hour, "back": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var there time.Duration
			w.wrap = func(o tiers.ObjectStore) tiers.ObjectStore { return setClock{o, &there} }
			s, _ := w.store(0)
			test(t, w, s, func() {
				there = by
				tiers.SetNow(s, func() time.Time { return clocktest.Now(by) })
			}, by)
		})
	}
}

// Files and objects that nothing names, and what uploads have left, stay for their
// grace, and go in the end.
func TestClockSetByAnHourCollectsNothingEarly(t *testing.T) {
	clocks(t, func(t *testing.T, w *world, s *tiers.Store, set func(), _ time.Duration) {
		w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
		if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); err != nil {
			t.Fatal(err)
		}
		name, err := tiers.Token("dataset", dataset)
		if err != nil {
			t.Fatal(err)
		}
		digest := strings.Repeat("ab", 32)
		for _, path := range []string{
			filepath.Join(w.warm, name, "00000000000000000000-"+digest+".arrow"),
			filepath.Join(w.cold, "batches", "sha256", "ab", digest+".parquet"),
		} {
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		const grace = 10 * time.Minute
		aged := func(by time.Duration) {
			age(t, w.warm, by)
			age(t, w.cold, by)
		}
		aged(grace - time.Minute)
		set()
		if got := collect(t, w, s, grace, true); len(got) != 0 {
			t.Errorf("a minute before their time: %q", got)
		}
		aged(grace + tiers.ClockStep + 2*time.Hour)
		if got := collect(t, w, s, grace, true); len(got) != 2 {
			t.Errorf("long after their time: %q", got)
		}
		if v, err := s.Verify(w.ctx, dataset, 0, tiers.End, false, nil); err != nil || len(v.Faults) != 0 || v.Copies != 2 {
			t.Errorf("%+v, %v", v, err)
		}
	})
}

// A lease that beats keeps what it holds, for removals and for the collector, and one
// of the dead ends in its time.
func TestClockSetByAnHourEndsNoLease(t *testing.T) {
	clocks(t, func(t *testing.T, w *world, s *tiers.Store, set func(), _ time.Duration) {
		reader, _ := w.store(0)
		w.write(w.writer(s, dataset, fence("run-1", 1)), 0, 1)
		lease, err := reader.Lease(w.ctx, dataset, 0, 1, "reader")
		if err != nil {
			t.Fatal(err)
		}
		m := tiers.Migration{Dataset: dataset, Evict: true}
		held := func(when string) {
			t.Helper()
			if _, err := s.Move(w.ctx, m, nil); !errors.Is(err, tiers.ErrLeased) {
				t.Errorf("%s: %v", when, err)
			}
		}
		held("before")
		set()
		held("after")
		if err := lease.Release(w.ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := s.MoveStep(w.ctx, m, tiers.StepDrop); err != nil {
			t.Fatal(err)
		}
		// Of the dead: seen before the clock is set back again.
		name, err := tiers.Token("dataset", dataset)
		if err != nil {
			t.Fatal(err)
		}
		m.Sequence = 1
		const ttl = 300 * time.Millisecond
		tiers.SetLeaseTTL(s, ttl)
		if _, err := catalogBucket(t, w).PutString(w.ctx, "lease."+name+".DEAD", `{"owner":"gone","from":0,"to":9}`); err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		held("its first sight")
		tiers.SetNow(s, time.Now)
		eventually(t, "the lease of the dead ends", func() bool {
			_, err := s.MoveStep(w.ctx, m, tiers.StepDrop)
			return err == nil
		})
		if took := time.Since(before); took < ttl {
			t.Errorf("it ended after %v", took)
		}
	})
}

// A rule about age comes an hour early, or late, by such a clock: what it evicts is
// there all the same, and pins and holds are asked before anything is read.
func TestClockSetByAnHourLosesNothing(t *testing.T) {
	after59Minutes := func(action policy.Action) func() *policy.Set {
		set, err := policy.Parse(governance.Source{Name: "p.yaml", Data: []byte(
			"apiVersion: stokehold.dev/v1\nkind: TierPolicy\nmetadata: {name: p}\nspec: {rules: [{name: r, when: age >= 59 * minute, action: " + string(action) + "}]}\n")})
		if err != nil {
			t.Fatal(err)
		}
		return func() *policy.Set { return set }
	}
	clocks(t, func(t *testing.T, w *world, s *tiers.Store, move func(), by time.Duration) {
		w.write(w.writer(s, dataset, fence("run-1", 1)), 0, 1, 2)
		if err := s.Pin(w.ctx, dataset, tiers.Pin{From: 1, To: 2, Hold: true, Reason: "case 7"}); err != nil {
			t.Fatal(err)
		}
		move()
		r := policy.Runner{Store: s, Policies: after59Minutes(policy.Expire), Clock: func() time.Time { return clocktest.Now(by) }}
		if step, err := r.PlanTiers(w.ctx, policy.Cursor{}); err != nil || len(step.Tasks) != 0 {
			t.Errorf("%+v expire, %v", step.Tasks, err)
		}
		r.Policies = after59Minutes(policy.Evict)
		step, err := r.PlanTiers(w.ctx, policy.Cursor{})
		if err != nil {
			t.Fatal(err)
		}
		if by < 0 && len(step.Tasks) != 0 {
			t.Errorf("a clock that was set back asks for %+v", step.Tasks)
		}
		for _, task := range step.Tasks {
			for seq := task.From; seq < task.To; seq++ {
				if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Sequence: seq, Evict: true}, nil); err != nil {
					t.Error(err)
				}
			}
		}
		if by > 0 && (len(step.Tasks) != 2 || tiersOf(mustRef(t, w, s, 0)) != string(arrowio.Cold)) {
			t.Errorf("it asks for %+v", step.Tasks)
		}
		for b, err := range s.Batches(w.ctx, dataset, 0, 3, false) {
			if err != nil {
				t.Fatal(err)
			}
			same(t, b.Record, b.Ref.Sequence, 100)
		}
		if _, err := s.Expire(w.ctx, dataset, 1, 2, "by a clock"); !errors.Is(err, tiers.ErrPinned) {
			t.Errorf("what is on hold expires: %v", err)
		}
		if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Sequence: 1, Evict: true}, nil); !errors.Is(err, tiers.ErrPinned) {
			t.Errorf("what is on hold is evicted: %v", err)
		}
	})
}
