package workflows_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/temporal"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/workflows"
)

// needed is the answer to a request that people must approve first.
func needed(id string) error {
	return &tiers.Error{Op: "request a migration", Err: &events.ApprovalRequiredError{
		Need: events.ApprovalNeed{ID: id, Policy: "keep/here", Reason: "leaves the building", Quorum: 1, Expires: time.Hour},
	}}
}

// answering is people who come to that state at their second look.
func answering(s approval.State) *people {
	return &people{decide: func(look int) (approval.Outcome, error) {
		if look < 2 {
			return approval.Outcome{State: approval.Pending}, nil
		}
		return approval.Outcome{State: s, Sealed: true}, nil
	}}
}

// A migration is asked for as a whole, and the same again once people have answered.
func TestMigrationWaitsForPeople(t *testing.T) {
	for state, after := range map[approval.State]error{
		approval.Approved: nil,
		approval.Rejected: &tiers.Error{Op: "request a migration", Err: errors.Join(events.ErrDenied, errors.New("rejected by bob: too early"))},
		approval.Expired:  &tiers.Error{Op: "request a migration", Err: errors.Join(events.ErrDenied, errors.New("expired"))},
	} {
		p := answering(state)
		f := &fakes{approvals: p}
		f.judge = func(tiers.MigrationRequest) error {
			if len(f.asked) == 1 {
				return needed(id("a"))
			}
			return after
		}
		env := environment(t, f)
		env.ExecuteWorkflow(workflows.MigrateWorkflow, workflows.Migration{Dataset: "flights", From: 1, To: 4, Tier: arrowio.Warm, Reason: "test", Actor: "ann"})
		err := env.GetWorkflowError()
		if len(f.asked) != 2 || f.asked[0] != f.asked[1] || len(p.asked) != 1 {
			t.Fatalf("%s: requests %+v, people were asked %d times", state, f.asked, len(p.asked))
		}
		if r := f.asked[0]; r.ID == "" || r.Dataset != "flights" || r.From != 1 || r.To != 4 || r.Tier != arrowio.Warm || r.Reason != "test" || r.Actor != "ann" {
			t.Errorf("%s: asked %+v", state, r)
		}
		if after == nil {
			if err != nil || len(f.moved) != 3 {
				t.Errorf("%s: %v, moved %v", state, err, f.moved)
			}
			continue
		}
		var app *temporal.ApplicationError
		if !errors.As(err, &app) || app.Type() != "stokehold.Rejected" || !strings.Contains(app.Message(), after.Error()) || len(f.moved) != 0 {
			t.Errorf("%s: %v, moved %v", state, err, f.moved)
		}
	}
}

// What is denied, and what nobody can be asked about, moves nothing.
func TestMigrationThatMayNotBegin(t *testing.T) {
	for name, c := range map[string]struct {
		judge  error
		people *people
		want   string
	}{
		"denied":           {events.ErrDenied, nil, "event denied"},
		"nobody asks":      {needed(id("a")), nil, "this worker cannot ask"},
		"not to be asked":  {needed(id("a")), &people{err: events.ErrDenied}, "people could not be asked about the migration"},
		"approved in vain": {needed(id("a")), answering(approval.Approved), "event needs approval"},
		"not durable":      {tiers.ErrNotDurable, nil, "endpoint does not sync"},
	} {
		f := &fakes{judge: func(tiers.MigrationRequest) error { return c.judge }}
		if c.people != nil {
			f.approvals = c.people
		}
		env := environment(t, f)
		env.ExecuteWorkflow(workflows.MigrateWorkflow, workflows.Migration{Dataset: "flights", To: 3})
		if err := env.GetWorkflowError(); err == nil || !strings.Contains(err.Error(), c.want) || len(f.moved) != 0 {
			t.Errorf("%s: %v, moved %v", name, err, f.moved)
		}
	}
}

// Nobody gets around the question by saying that it was answered.
func TestMigrationThatSaysItWasJudgedIsAsked(t *testing.T) {
	f := &fakes{judge: func(tiers.MigrationRequest) error { return events.ErrDenied }}
	env := environment(t, f)
	env.ExecuteWorkflow(workflows.MigrateWorkflow, workflows.Migration{Dataset: "flights", To: 3, Judged: "an execution"})
	if err := env.GetWorkflowError(); err == nil || len(f.asked) != 1 || len(f.moved) != 0 {
		t.Errorf("%v, asked %d times, moved %v", err, len(f.asked), f.moved)
	}
}
