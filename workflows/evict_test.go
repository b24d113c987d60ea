package workflows_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/workflows"
)

// The warm copies go after the grace, each once, and not while a reader holds one.
func TestEvictionWaitsForGraceAndReaders(t *testing.T) {
	f := &fakes{held: 1}
	env := environment(t, f)
	const grace = 50 * time.Millisecond
	begun := time.Now()
	env.ExecuteWorkflow(workflows.MigrateWorkflow, workflows.Migration{Dataset: "flights", To: 3, Evict: true, Grace: grace, Reason: "test"})
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < grace {
		t.Errorf("it took %v", took)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.moved) != 3 || len(f.dropped) != 3 {
		t.Fatalf("moved %v, dropped %v", f.moved, f.dropped)
	}
	for i, m := range f.dropped {
		if m.Sequence != uint64(i) || !m.Evict || m.Reason != "test" {
			t.Errorf("dropped %+v", m)
		}
	}
}

func TestStartMigrationRefuses(t *testing.T) {
	for name, m := range map[string]workflows.Migration{
		"to warm and evict":  {Dataset: "d", To: 1, Tier: arrowio.Warm, Evict: true},
		"to hot":             {Dataset: "d", To: 1, Tier: arrowio.Hot},
		"with minus a grace": {Dataset: "d", To: 1, Evict: true, Grace: -1},
		"of nothing":         {Dataset: "d"},
	} {
		if _, err := workflows.StartMigration(t.Context(), &fakes{}, m, workflows.StartOptions{}); err == nil {
			t.Errorf("a migration %s is started", name)
		}
	}
}

// A move that people would have to approve fails at once, and says so.
func TestMoveThatNeedsApprovalFailsAtOnce(t *testing.T) {
	tried := 0
	f := &fakes{move: func(uint64) error {
		tried++
		return &events.ApprovalRequiredError{Need: events.ApprovalNeed{ID: "abc", Policy: "keep/here"}}
	}}
	env := environment(t, f)
	env.ExecuteWorkflow(workflows.MigrateWorkflow, workflows.Migration{Dataset: "flights", To: 3})
	if err := env.GetWorkflowError(); err == nil || !strings.Contains(err.Error(), "let the rule be about tier.migration.requested") || tried != 1 {
		t.Errorf("tried %d times: %v", tried, err)
	}
}
