package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/policy"
	"github.com/stokehold/stokehold/workflows"
)

// planner plans one step after another.
type planner struct {
	mu      sync.Mutex
	steps   []policy.Step
	asked   []policy.Cursor
	expired []string
	denied  error // what expiring comes to
	end     func()
}

func (p *planner) PlanTiers(_ context.Context, at policy.Cursor) (policy.Step, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, at)
	if len(p.steps) == 0 {
		p.end()
		return policy.Step{Done: true, Every: time.Hour}, nil
	}
	s := p.steps[0]
	p.steps = p.steps[1:]
	return s, nil
}

func (p *planner) ExpireTier(_ context.Context, t policy.Task) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expired = append(p.expired, fmt.Sprintf("%s %d-%d", t.Dataset, t.From, t.To))
	return 0, p.denied
}

func tierTask(a policy.Action, from, to uint64) policy.Task {
	return policy.Task{Dataset: "flights", From: from, To: to, Decision: policy.Decision{Action: a, Policy: "p", Rule: string(a)}}
}

// carryOut runs the workflow on the steps of p until there are none.
func carryOut(t *testing.T, f *fakes, p *planner) {
	t.Helper()
	f.tiers = p
	env := environment(t, f)
	p.end = env.CancelWorkflow
	env.ExecuteWorkflow(workflows.TierPolicyWorkflow, struct{}{})
	if !env.IsWorkflowCompleted() {
		t.Fatal("it goes on")
	}
}

// A pass moves, evicts with the step's grace and expires, and goes on at the cursor.
func TestTierPoliciesAreCarriedOut(t *testing.T) {
	f := &fakes{}
	next := policy.Cursor{Dataset: "flights", Next: 5}
	p := &planner{steps: []policy.Step{
		{Tasks: []policy.Task{tierTask(policy.Move, 0, 2), tierTask(policy.Evict, 2, 4)}, Next: next, Grace: time.Millisecond},
		{Tasks: []policy.Task{tierTask(policy.Expire, 5, 9)}, Done: true, Every: time.Minute},
	}}
	carryOut(t, f, p)
	if want := []policy.Cursor{{}, next, {}}; !slices.Equal(p.asked, want) {
		t.Errorf("asked from %+v, want %+v", p.asked, want)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.Sort(f.moved)
	if !slices.Equal(f.moved, []uint64{0, 1, 2, 3}) || len(f.dropped) != 2 || !slices.Equal(p.expired, []string{"flights 5-9"}) {
		t.Fatalf("moved %v, dropped %v, expired %v", f.moved, f.dropped, p.expired)
	}
	for i, m := range f.dropped {
		if m.Sequence != uint64(2+i) || m.Reason != "p/evict" {
			t.Errorf("dropped %+v", m)
		}
	}
}

// What is refused is not asked for at each pass, but again after a while.
func TestRefusedTierTasksAreLeftAlone(t *testing.T) {
	for name, refusal := range map[string]error{"denied": events.ErrDenied, "pinned": tiers.ErrPinned} {
		tries := 0
		f := &fakes{move: func(uint64) error { tries++; return fmt.Errorf("move: %w", refusal) }}
		p := &planner{denied: fmt.Errorf("expire: %w", refusal)}
		for range 8 {
			p.steps = append(p.steps, policy.Step{Tasks: []policy.Task{tierTask(policy.Move, 0, 1), tierTask(policy.Expire, 1, 2)}, Done: true, Every: time.Minute})
		}
		carryOut(t, f, p)
		// In passes 0, 2 and 5.
		if tries != 3 || len(p.expired) != 3 {
			t.Errorf("%s: tried %d times, expired %v", name, tries, p.expired)
		}
	}
}

var errNotNow = errors.New("later")

// A move that fails for a moment is tried again within the pass.
func TestTierTaskOutlastsFaults(t *testing.T) {
	tries := 0
	f := &fakes{move: func(uint64) error {
		if tries++; tries < 4 {
			return errNotNow
		}
		return nil
	}}
	p := &planner{steps: []policy.Step{{Tasks: []policy.Task{tierTask(policy.Move, 7, 8)}, Done: true, Every: time.Minute}}}
	carryOut(t, f, p)
	if !slices.Equal(f.moved, []uint64{7}) {
		t.Errorf("moved %v after %d tries", f.moved, tries)
	}
}

// What is refused of a task is left alone, and that alone: the rest moves at once, and
// so does what comes to be beside it.
func TestRefusedPartsOfTierTasksAreLeftAlone(t *testing.T) {
	tries := map[uint64]int{}
	f := &fakes{move: func(seq uint64) error {
		if tries[seq]++; seq == 3 || seq == 7 {
			return &tiers.Error{Op: "move (intent)", Dataset: "flights", Batch: fmt.Sprint("flights#", seq), Err: tiers.ErrPinned}
		}
		return nil
	}}
	p := &planner{}
	pass := func(tasks ...policy.Task) {
		p.steps = append(p.steps, policy.Step{Tasks: tasks, Done: true, Every: time.Minute})
	}
	pass(tierTask(policy.Move, 0, 8))                              // pass 0: 3 and 7 are refused
	pass(tierTask(policy.Move, 3, 4), tierTask(policy.Move, 7, 9)) // 8 is new
	pass(tierTask(policy.Move, 3, 4), tierTask(policy.Move, 7, 8)) // they are asked for again
	for range 3 {
		pass(tierTask(policy.Move, 3, 4), tierTask(policy.Move, 7, 8)) // once more, in pass 5
	}
	carryOut(t, f, p)
	want := map[uint64]int{0: 1, 1: 1, 2: 1, 3: 3, 4: 1, 5: 1, 6: 1, 7: 3, 8: 1}
	if !maps.Equal(tries, want) {
		t.Errorf("tried %v, want %v", tries, want)
	}
}
