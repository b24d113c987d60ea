package workflows_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/temporal"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/workflows"
)

// refusing refuses some batches as a store does.
func refusing(seq uint64) error {
	var no error
	switch {
	case seq == 4:
		no = fmt.Errorf("%w in the warm tier: legal hold on batches 4 to 4", tiers.ErrPinned)
	case seq >= 300 && seq < 310:
		no = &events.DeniedError{Verdict: events.Verdict{Action: events.Deny, Policy: "keep/here", Reason: "stays in the EU", DecisionID: fmt.Sprint("d", seq)}}
	default:
		return nil
	}
	return &tiers.Error{Op: "move (intent)", Dataset: "flights", Batch: fmt.Sprint("flights#", seq), Err: no}
}

func resultOf(t *testing.T, err error) (r workflows.MigrationResult) {
	t.Helper()
	var app *temporal.ApplicationError
	if !errors.As(err, &app) || !app.NonRetryable() || app.Details(&r) != nil {
		t.Fatalf("no result in %v", err)
	}
	return r
}

// What is refused stays, and what is not moves, is evicted and counted, over retries
// of the activities.
func TestRefusedBatchesStopNoOthers(t *testing.T) {
	failed := false
	f := &fakes{held: 1, move: func(seq uint64) error {
		if seq == 305 && !failed {
			failed = true
			return errFlaky
		}
		return refusing(seq)
	}}
	env := environment(t, f)
	env.ExecuteWorkflow(workflows.MigrateWorkflow, workflows.Migration{Dataset: "flights", To: 600, Evict: true, Grace: time.Millisecond})
	err := env.GetWorkflowError()
	r := resultOf(t, err)
	want := []workflows.Refusal{
		{From: 4, To: 5, Why: "pinned in the warm tier: legal hold on batches 4 to 4"},
		{From: 300, To: 310, Why: "event denied: deny by keep/here: stays in the EU"},
	}
	if r.Moved != 589 || r.Refused != 11 || !slices.Equal(r.Refusals, want) {
		t.Errorf("%+v, want %+v", r, want)
	}
	for _, said := range []string{"flights: 11 of 600 batches were not moved: 4: pinned", "300 to 309: event denied", "stays in the EU"} {
		if !strings.Contains(err.Error(), said) {
			t.Errorf("%v does not say %q", err, said)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.moved) != 589 || slices.Contains(f.moved, 4) || slices.Contains(f.moved, 300) || !slices.Contains(f.moved, 599) {
		t.Errorf("%d moved", len(f.moved))
	}
	for _, m := range f.dropped {
		if m.Sequence == 4 || m.Sequence >= 300 && m.Sequence < 310 {
			t.Errorf("batch %d is dropped", m.Sequence)
		}
	}
	if len(f.dropped) != 589 {
		t.Errorf("%d dropped", len(f.dropped))
	}
}

// Where everything is refused not every batch is asked for: each refusal is a decision
// in the log.
func TestRefusalOfEverythingEndsEarly(t *testing.T) {
	tried := 0
	f := &fakes{move: func(uint64) error { tried++; return refusing(300) }}
	env := environment(t, f)
	env.ExecuteWorkflow(workflows.MigrateWorkflow, workflows.Migration{Dataset: "flights", To: 100_000, Evict: true})
	r := resultOf(t, env.GetWorkflowError())
	if tried != 256 || r.Moved != 0 || r.Refused != 100_000 || len(r.Refusals) != 2 || r.Refusals[1].From != 256 || r.Refusals[1].To != 100_000 || len(f.dropped) != 0 {
		t.Errorf("%d tried, %d dropped: %+v", tried, len(f.dropped), r)
	}
}

// What is told is bounded, and still covers all that was refused.
func TestRefusalsAreBounded(t *testing.T) {
	f := &fakes{move: func(seq uint64) error {
		if seq%2 == 1 {
			return nil
		}
		return fmt.Errorf("%w: %d %s", tiers.ErrPinned, seq, strings.Repeat("why ", 1000))
	}}
	env := environment(t, f)
	env.ExecuteWorkflow(workflows.MigrateWorkflow, workflows.Migration{Dataset: "flights", To: 1000})
	err := env.GetWorkflowError()
	r := resultOf(t, err)
	if r.Moved != 500 || r.Refused != 500 || len(r.Refusals) != 64 || r.Refusals[63].To != 999 || len(err.Error()) > 4096 {
		t.Errorf("%d moved, %d refused, %d refusals, the last %+v, a text of %d bytes", r.Moved, r.Refused, len(r.Refusals), r.Refusals[len(r.Refusals)-1], len(err.Error()))
	}
	for _, no := range r.Refusals {
		if len(no.Why) > 300 {
			t.Errorf("a reason of %d bytes", len(no.Why))
		}
	}
	if len(f.moved) != 500 {
		t.Errorf("%d moved", len(f.moved))
	}
}
