package workflowstest_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stokehold/stokehold/cmd/internal/workflowstest"
	"github.com/stokehold/stokehold/tiers/policy"
	"github.com/stokehold/stokehold/workflows"
)

// passes plans one move a pass and counts what is asked for.
type passes struct {
	mu     sync.Mutex
	passes int
	at     time.Time // of the last pass
	early  int       // passes that came sooner than the pause after the one before
	moved  map[uint64]int
	more   chan struct{} // one for each move
}

const passEvery = time.Second

func (p *passes) PlanTiers(context.Context, policy.Cursor) (policy.Step, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.at.IsZero() && time.Since(p.at) < passEvery*9/10 {
		p.early++
	}
	p.at = time.Now()
	n := uint64(p.passes)
	p.passes++
	task := policy.Task{Dataset: "flights", From: n, To: n + 1, Decision: policy.Decision{Action: policy.Move, Policy: "p", Rule: "r"}}
	return policy.Step{Tasks: []policy.Task{task}, Done: true, Every: passEvery}, nil
}

func (p *passes) ExpireTier(context.Context, policy.Task) (int, error) { return 0, nil }

func (p *passes) MigrateBatch(_ context.Context, _ string, seq uint64) error {
	p.mu.Lock()
	p.moved[seq]++
	p.mu.Unlock()
	p.more <- struct{}{}
	return nil
}

// Whoever starts them how often: tier policies are carried out once, and go on when
// the worker that did is gone.
func TestTierPoliciesHaveOneWinner(t *testing.T) {
	env := open(t)
	p := &passes{moved: map[uint64]int{}, more: make(chan struct{}, 100)}
	ids := map[string]bool{}
	worker := func() *workflows.Worker {
		w, err := workflows.NewWorker(workflows.WorkerConfig{
			Client: env.Client, Bus: env.Bus, Types: env.Types, Executor: &workflowstest.Light{}, Aliases: workflowstest.NoAliases{}, Migrator: p, Tiers: p,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			id, err := workflows.StartTierPolicies(t.Context(), env.Client, workflows.StartOptions{})
			if err != nil {
				t.Fatal(err)
			}
			ids[id] = true
		}
		return w
	}
	moves := func(n int) {
		t.Helper()
		limit := time.NewTimer(time.Minute)
		defer limit.Stop()
		for range n {
			select {
			case <-p.more:
			case <-limit.C:
				t.Fatal("no pass within a minute")
			}
		}
	}
	first, second := worker(), worker()
	defer stop(t, second)
	moves(2)
	stop(t, first)
	moves(2)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(ids) != 1 || p.early > 0 {
		t.Errorf("%d workflows; %d of %d passes came early", len(ids), p.early, p.passes)
	}
	for seq, n := range p.moved {
		if n != 1 {
			t.Errorf("batch %d was moved %d times", seq, n)
		}
	}
	if err := env.Client.CancelWorkflow(t.Context(), "tier-policies/"+workflows.DefaultTaskQueue, ""); err != nil {
		t.Error(err)
	}
}
