package workflowstest_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.temporal.io/api/sdk/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"github.com/stokehold/stokehold/cmd/internal/workflowstest"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

const fourEyes = `
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: gate}
spec:
  match: {types: [model.promotion.requested]}
  rules:
    - name: four-eyes
      expression: "false"
      message: goes to production
      action: requireApproval
      approval: {roles: [release], quorum: 2, expires: 24h}
`

// governed puts a bus that judges by fourEyes, and people, onto the stack.
func governed(t *testing.T, env *workflowstest.Env) *approval.Coordinator {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := env.Stack.Endpoints()
	conn, err := nats.Connect(at.NATSURL, nats.UserInfo(at.NATSUser, string(at.NATSPassword)))
	must(err)
	who, err := approval.NewDirectory(approval.Actor{Name: "bob", Roles: []string{"release"}}, approval.Actor{Name: "cem", Roles: []string{"release"}})
	must(err)
	store, err := approval.Open(t.Context(), approval.Config{Conn: conn, Directory: who})
	must(err)
	set, err := governance.Load(governance.Options{Types: env.Types}, governance.Source{Name: "gate.yaml", Data: []byte(fourEyes + fourEyesAtStart)})
	must(err)
	key, err := governance.NewKey("k")
	must(err)
	ring, err := governance.NewKeyRing(key)
	must(err)
	engine, err := governance.NewEngine(governance.Config{Policies: set, Log: &governance.MemoryLog{}, Keys: ring, Approvals: store})
	must(err)
	bus, err := events.Open(t.Context(), events.Config{Conn: conn, Types: env.Types, Judge: engine})
	must(err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), workflowstest.StopTimeout)
		defer cancel()
		if err := bus.Close(ctx); err != nil {
			t.Error(err)
		}
		conn.Close()
	})
	return &approval.Coordinator{Store: store, Bus: bus}
}

// promoting asks for a promotion through a bus, as stages/deploy does.
func promoting(bus approval.Bus, seen chan<- stages.Assignment) workflowstest.LightFunc {
	return func(ctx context.Context, a stages.Assignment, h stages.Hooks) (stages.Result, error) {
		a.Resume = &h.Previous
		seen <- a
		h.Report(stages.Progress{Done: 40, Checkpoint: []byte(`{"measured":true}`)})
		e, err := events.New(events.TypePromotionRequested, "/stokehold/"+a.Pipeline, "late", a.Run+"/promotion", time.Now(), events.PromotionRequested{
			Model: "late", Challenger: "v2", Run: a.Run, Metrics: events.PromotionMetrics{Challenger: map[string]float64{"auc": 0.7}}, Rows: 10,
		})
		if err != nil {
			return stages.Result{}, err
		}
		e.SetExtension(events.ExtRun, a.Run)
		e.SetExtension(events.ExtActor, a.Actor)
		err = bus.Publish(ctx, e)
		if errors.Is(err, events.ErrDenied) {
			return stages.Result{Notes: map[string]string{"outcome": "refused", "reason": err.Error()}}, nil
		}
		return stages.Result{Notes: map[string]string{"outcome": "promoted"}}, err
	}
}

func startGoverned(t *testing.T, env *workflowstest.Env, co *approval.Coordinator, x workflows.Executor, d *workflows.Definition) *workflows.Worker {
	t.Helper()
	w, err := workflows.NewWorker(workflows.WorkerConfig{
		Client: env.Client, Bus: co.Bus.(*events.Bus), Types: env.Types, Pipelines: []*workflows.Definition{d}, Executor: x, Aliases: workflowstest.NoAliases{}, Approvals: co,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, w) })
	return w
}

func deploying(t *testing.T) *workflows.Definition {
	t.Helper()
	p := workflows.New("governed", "")
	rows := p.Ingest("rows", workflowstest.Nothing)
	p.Deploy("deploy", p.Train("train", rows, workflowstest.Nothing), p.Evaluate("evaluate", p.Current("late", "champion"), rows, workflowstest.Nothing), workflowstest.Nothing)
	d, err := p.Build()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// waiting waits until the run is parked and returns what people are asked.
func waiting(t *testing.T, env *workflowstest.Env, co *approval.Coordinator, run *workflows.Run) approval.Status {
	t.Helper()
	var asked []approval.Status
	eventually(t, "a request, and a run that shows it and holds no activity", func() bool {
		var err error
		if asked, err = co.Store.List(t.Context(), false); err != nil || len(asked) != 1 {
			return false
		}
		info, err := env.Client.DescribeWorkflowExecution(t.Context(), run.ID, "")
		if err != nil || len(info.GetPendingActivities()) > 0 {
			return false
		}
		p := info.GetWorkflowExecutionInfo().GetSearchAttributes().GetIndexedFields()["StokeholdWaiting"]
		var value string
		return p != nil && converter.GetDefaultDataConverter().FromPayload(p, &value) == nil && value == "approval"
	})
	return asked[0]
}

// A run waits for people without a worker's slot, through a change of workers, and
// goes on where it was.
func TestApprovalParksTheRun(t *testing.T) {
	env := open(t)
	co := governed(t, env)
	d := deploying(t)
	seen := make(chan stages.Assignment, 4)
	light := &workflowstest.Light{}
	light.Set("deploy", promoting(co.Bus, seen))
	first := startGoverned(t, env, co, light, d)
	run := mustStart(t, env, d, workflows.RunInput{Run: "approved", Actor: "ann"})
	st := waiting(t, env, co, run)
	if st.Workflow != run.ID || st.Requester != "ann" || st.Reason != "goes to production (not approved yet)" {
		t.Errorf("asked %+v", st.Request)
	}
	meta, err := env.Client.QueryWorkflow(t.Context(), run.ID, "", "__temporal_workflow_metadata")
	if err != nil {
		t.Fatal(err)
	}
	var shown sdk.WorkflowMetadata
	if err := meta.Get(&shown); err != nil || !strings.Contains(shown.GetCurrentDetails(), "stokehold approve "+st.ID) {
		t.Errorf("the UI shows %s, %v", shown.GetCurrentDetails(), err)
	}
	stop(t, first)
	vote := func(actor string, approve bool) {
		t.Helper()
		if _, err := co.Store.Vote(t.Context(), st.ID, actor, approve, "measured it"); err != nil {
			t.Fatal(err)
		}
		if err := workflows.TellApproval(t.Context(), env.Client, st.Workflow, st.ID); err != nil {
			t.Fatal(err)
		}
	}
	vote("bob", true) // while nobody works
	startGoverned(t, env, co, light, d)
	vote("cem", true)
	res, err := run.Result(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := res.Stage("deploy"); got.Notes["outcome"] != "promoted" {
		t.Errorf("%+v", got)
	}
	one, two := <-seen, <-seen
	if one.Attempt != 1 || two.Attempt != 2 || string(two.Resume.Checkpoint) != `{"measured":true}` || two.Resume.Done != 40 || !slices.Equal(one.Inputs, two.Inputs) {
		t.Errorf("attempts %+v and %+v", one, two)
	}
	if len(seen) > 0 {
		t.Errorf("%d attempts too many", len(seen))
	}
	replay(t, env, "run-approved", run.ID)
}

func TestRejectionReachesTheStage(t *testing.T) {
	env := open(t)
	co := governed(t, env)
	d := deploying(t)
	light := &workflowstest.Light{}
	light.Set("deploy", promoting(co.Bus, make(chan stages.Assignment, 4)))
	startGoverned(t, env, co, light, d)
	run := mustStart(t, env, d, workflows.RunInput{Run: "rejected", Actor: "ann"})
	st := waiting(t, env, co, run)
	if _, err := co.Store.Vote(t.Context(), st.ID, "bob", false, "not this week"); err != nil {
		t.Fatal(err)
	}
	if err := workflows.TellApproval(t.Context(), env.Client, st.Workflow, st.ID); err != nil {
		t.Fatal(err)
	}
	res, err := run.Result(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, _ := res.Stage("deploy")
	if got.Notes["outcome"] != "refused" || !strings.Contains(got.Notes["reason"], "rejected by bob: not this week") {
		t.Errorf("%+v", got)
	}
	if err := workflows.TellApproval(t.Context(), env.Client, st.Workflow, st.ID); err != nil {
		t.Errorf("telling a run that has ended: %v", err)
	}

	// Cancelling ends the wait.
	run = mustStart(t, env, d, workflows.RunInput{Run: "cancelled", Actor: "ann"})
	waiting(t, env, co, run)
	if err := run.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(t.Context()); !temporal.IsCanceledError(err) {
		var failed *workflows.RunError
		if !errors.As(err, &failed) || !temporal.IsCanceledError(failed.Err) {
			t.Errorf("cancelled: %v", err)
		}
	}
}

const fourEyesAtStart = `
---
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: starts}
spec:
  match: {types: [run.started], subjects: ["governed/held-*"]}
  rules:
    - name: asked
      expression: "false"
      message: costs a night
      action: requireApproval
      approval: {roles: [release], quorum: 1, expires: 24h}
`

// A run whose start people must approve waits for them before any of its stages,
// through a change of workers.
func TestApprovalHoldsTheStart(t *testing.T) {
	env := open(t)
	co := governed(t, env)
	d := deploying(t)
	begun := make(chan string, 10)
	light := &workflowstest.Light{}
	light.Set("rows", func(_ context.Context, a stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		begun <- a.Run
		return stages.Result{Dataset: a.Output}, nil
	})
	first := startGoverned(t, env, co, light, d)
	for i, c := range []struct {
		run     string
		approve bool
	}{{"held-approved", true}, {"held-rejected", false}} {
		run := mustStart(t, env, d, workflows.RunInput{Run: c.run, Actor: "ann"})
		st := waiting(t, env, co, run)
		if st.Workflow != run.ID || st.Type != events.TypeRunStarted || st.Requester != "ann" {
			t.Errorf("asked %+v", st.Request)
		}
		if len(begun) > 0 {
			t.Errorf("stages of %s began", <-begun)
		}
		if i == 0 {
			stop(t, first)
		}
		if _, err := co.Store.Vote(t.Context(), st.ID, "bob", c.approve, "looked at it"); err != nil {
			t.Fatal(err)
		}
		if err := workflows.TellApproval(t.Context(), env.Client, st.Workflow, st.ID); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			startGoverned(t, env, co, light, d)
		}
		_, err := run.Result(t.Context())
		if c.approve {
			if err != nil || len(begun) != 1 || <-begun != run.ID {
				t.Errorf("%s: %v", c.run, err)
			}
			replay(t, env, "run-started-approved", run.ID)
			continue
		}
		var failed *workflows.RunError
		if !errors.As(err, &failed) || !strings.Contains(failed.Reason, "rejected by bob: looked at it") || len(begun) > 0 {
			t.Errorf("%s: %v", c.run, err)
		}
	}
	run := mustStart(t, env, d, workflows.RunInput{Run: "held-cancelled", Actor: "ann"})
	waiting(t, env, co, run)
	if err := run.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(t.Context()); err == nil {
		t.Error("a cancelled run ended well")
	}
}
