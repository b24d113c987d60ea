package workflows_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/testsuite"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

// people are asked by runs; decide says what they have come to, look by look.
type people struct {
	mu     sync.Mutex
	asked  []events.ApprovalNeed
	looks  int
	decide func(look int) (approval.Outcome, error)
	err    error  // of asking
	told   func() // when asked; nil: nobody listens
}

func (p *people) Request(_ context.Context, need events.ApprovalNeed, _ string) (approval.Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, need)
	if p.told != nil {
		p.told()
	}
	return approval.Status{Request: approval.Request{ID: need.ID, Expires: approval.Duration(need.Expires), Created: time.Now()}, Outcome: approval.Outcome{State: approval.Pending}}, p.err
}

func (p *people) Settle(context.Context, string) (approval.Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks++
	o, err := p.decide(p.looks)
	return approval.Status{Outcome: o}, err
}

// gated is a stage whose event waits for approval until the run has been told.
func gated(p *people, ids ...string) stageFunc {
	attempt := 0
	return func(_ context.Context, a stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if attempt++; attempt <= len(ids) {
			return stages.Result{}, &events.Error{Op: "publish", Err: &events.ApprovalRequiredError{
				Need: events.ApprovalNeed{ID: ids[attempt-1], Policy: "gate/four-eyes", Reason: "goes to production", Quorum: 1, Expires: time.Hour},
			}}
		}
		return stages.Result{Rows: int64(a.Attempt)}, nil
	}
}

func askingEnvironment(t *testing.T, f *fakes, p *people, d *workflows.Definition) *testsuite.TestWorkflowEnvironment {
	t.Helper()
	suite := &testsuite.WorkflowTestSuite{}
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(20 * time.Second)
	err := workflows.Register(env, workflows.WorkerConfig{
		Client: f, Executor: f, Publisher: f, Aliases: f, Pipelines: []*workflows.Definition{d}, Approvals: p, WithoutSearchAttributes: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func oneStage(t *testing.T) *workflows.Definition {
	t.Helper()
	p := workflows.New("gated", "")
	p.Ingest("ask", nothing)
	return build(t, p)
}

func id(c string) string { return strings.Repeat(c, 40) }

// A signal that never comes is made up for by looking, also while the bucket of
// approvals is away.
func TestLostSignalIsFoundByLooking(t *testing.T) {
	p := &people{decide: func(look int) (approval.Outcome, error) {
		switch {
		case look == 2:
			return approval.Outcome{}, errors.New("bucket away")
		case look < 5:
			return approval.Outcome{State: approval.Pending}, nil
		case look == 5: // counted, but not sealed: not decided yet
			return approval.Outcome{State: approval.Approved}, nil
		}
		return approval.Outcome{State: approval.Approved, Sealed: true}, nil
	}}
	d := oneStage(t)
	f := &fakes{stages: map[string]stageFunc{"ask": gated(p, id("a"))}}
	res, err := execute(t, askingEnvironment(t, f, p, d), d, workflows.RunInput{Run: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := res.Stage("ask"); got.Rows != 2 || len(p.asked) != 1 || p.looks != 6 {
		t.Errorf("%+v, asked %d times, looked %d times", got, len(p.asked), p.looks)
	}
	if res.Seconds < 60 {
		t.Errorf("waited %v s: nothing was to be seen sooner", res.Seconds)
	}
}

func TestASecondApprovalIsAskedForAndTheSameIsNot(t *testing.T) {
	yes := func(int) (approval.Outcome, error) {
		return approval.Outcome{State: approval.Approved, Sealed: true}, nil
	}
	d := oneStage(t)
	p := &people{decide: yes}
	f := &fakes{stages: map[string]stageFunc{"ask": gated(p, id("a"), id("b"))}}
	res, err := execute(t, askingEnvironment(t, f, p, d), d, workflows.RunInput{Run: "r1"})
	if got, _ := res.Stage("ask"); err != nil || got.Rows != 3 || len(p.asked) != 2 {
		t.Errorf("%+v, %v, asked %d times", got, err, len(p.asked))
	}
	p = &people{decide: yes}
	f = &fakes{stages: map[string]stageFunc{"ask": gated(p, id("a"), id("a"))}}
	_, err = execute(t, askingEnvironment(t, f, p, d), d, workflows.RunInput{Run: "r2"})
	if err == nil || !strings.Contains(err.Error(), "event needs approval") || len(p.asked) != 1 {
		t.Errorf("an approval that does not count: %v, asked %d times", err, len(p.asked))
	}
}

func TestWithoutPeopleNothingPasses(t *testing.T) {
	d := oneStage(t)
	p := &people{err: &approval.Error{Op: "request", Err: events.ErrDenied}}
	f := &fakes{stages: map[string]stageFunc{"ask": gated(p, id("a"))}}
	_, err := execute(t, askingEnvironment(t, f, p, d), d, workflows.RunInput{Run: "r1"})
	if err == nil || !strings.Contains(err.Error(), "people could not be asked for approval") {
		t.Errorf("%v", err)
	}
	f = &fakes{stages: map[string]stageFunc{"ask": gated(p, id("a"))}}
	f.stages["ask"] = gated(&people{}, id("a"))
	if _, err = execute(t, environment(t, f, d), d, workflows.RunInput{Run: "r2"}); err == nil || !strings.Contains(err.Error(), "this worker cannot ask") {
		t.Errorf("%v", err)
	}
}

// Another stage's failure ends the wait.
func TestFailureEndsTheWait(t *testing.T) {
	pl := workflows.New("two", "")
	pl.Ingest("ask", nothing)
	pl.Ingest("fail", nothing)
	d := build(t, pl)
	asked := make(chan struct{})
	p := &people{told: func() { close(asked) }, decide: func(int) (approval.Outcome, error) {
		return approval.Outcome{State: approval.Pending}, nil
	}}
	f := &fakes{stages: map[string]stageFunc{"ask": gated(p, id("a")), "fail": func(ctx context.Context, _ stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		select {
		case <-asked:
		case <-ctx.Done():
		}
		return stages.Result{}, stages.Permanent(errors.New("no such file"))
	}}}
	_, err := execute(t, askingEnvironment(t, f, p, d), d, workflows.RunInput{Run: "r1"})
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
}
