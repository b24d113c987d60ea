package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/testsuite"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/workflows"
)

// stageFunc is what a stage does in a test, without a data plane.
type stageFunc func(context.Context, stages.Assignment, stages.Hooks) (stages.Result, error)

// fakes stand in for the data plane, the bus and Temporal's client.
type fakes struct {
	client.Client // nil: only the methods below are called

	mu        sync.Mutex
	stages    map[string]stageFunc
	calls     []stages.Assignment
	published []events.Event
	refuse    map[string]error // by event type
	aliases   map[string]string
	started   []client.StartWorkflowOptions
	args      []any
	ended     map[string]bool // runs that are over
	startErr  error
	told      []string
	moved     []uint64
	move      func(seq uint64) error
	dropped   []tiers.Migration
	held      int // how many drops find a reader
	tiers     workflows.TierPlanner
	asked     []tiers.MigrationRequest
	judge     func(tiers.MigrationRequest) error // nil: migrations are allowed
	approvals workflows.Approvals
}

func (f *fakes) Execute(ctx context.Context, _ stages.Stage, a stages.Assignment, h stages.Hooks) (stages.Result, error) {
	f.mu.Lock()
	f.calls = append(f.calls, a)
	fn := f.stages[a.Stage]
	f.mu.Unlock()
	if fn == nil {
		return stages.Result{Dataset: a.Output, Model: a.Model}, nil
	}
	return fn(ctx, a, h)
}

func (f *fakes) Publish(_ context.Context, evs ...events.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range evs {
		if err := f.refuse[e.Type()]; err != nil {
			return &events.Error{Op: "publish", ID: e.ID(), Type: e.Type(), Err: err}
		}
		if !slices.ContainsFunc(f.published, func(have events.Event) bool { return have.ID() == e.ID() }) {
			f.published = append(f.published, e)
		}
	}
	return nil
}

func (f *fakes) Alias(_ context.Context, model, alias string) (models.Version, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id, ok := f.aliases[model+"@"+alias]; ok {
		return models.Version{Model: model, ID: id}, nil
	}
	return models.Version{}, models.ErrNotFound
}

func (f *fakes) ExecuteWorkflow(_ context.Context, o client.StartWorkflowOptions, _ any, args ...any) (client.WorkflowRun, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.startErr != nil {
		return nil, f.startErr
	}
	for _, have := range f.started {
		if have.ID == o.ID {
			return nil, serviceerror.NewWorkflowExecutionAlreadyStarted("started", "", "")
		}
	}
	f.started = append(f.started, o)
	f.args = append(f.args, args...)
	return fakeRun{}, nil
}

type fakeRun struct{ client.WorkflowRun }

func (fakeRun) GetRunID() string { return "temporal-run" }

func (f *fakes) DescribeWorkflowExecution(_ context.Context, id, _ string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	status := enums.WORKFLOW_EXECUTION_STATUS_RUNNING
	if f.ended[id] {
		status = enums.WORKFLOW_EXECUTION_STATUS_TERMINATED
	}
	return &workflowservice.DescribeWorkflowExecutionResponse{
		WorkflowExecutionInfo: &workflowpb.WorkflowExecutionInfo{Status: status},
	}, nil
}

func (f *fakes) SignalWorkflow(_ context.Context, id, _, name string, arg any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, fmt.Sprintf("%s %s %v", id, name, arg))
	return nil
}

func (f *fakes) MigrateBatch(_ context.Context, _ string, seq uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.move != nil {
		if err := f.move(seq); err != nil {
			return err
		}
	}
	f.moved = append(f.moved, seq)
	return nil
}

func (f *fakes) CopyBatch(ctx context.Context, m tiers.Migration) error {
	return f.MigrateBatch(ctx, m.Dataset, m.Sequence)
}

func (f *fakes) DropBatch(_ context.Context, m tiers.Migration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains(f.moved, m.Sequence) {
		return tiers.ErrOrder
	}
	if f.held > 0 {
		f.held--
		return tiers.ErrLeased
	}
	f.dropped = append(f.dropped, m)
	return nil
}

func (f *fakes) RequestMigration(_ context.Context, r tiers.MigrationRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r)
	if f.judge == nil {
		return nil
	}
	return f.judge(r)
}

// types lists the types of the published events.
func (f *fakes) types() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, e := range f.published {
		out = append(out, e.Type())
	}
	return out
}

func (f *fakes) last(t *testing.T, typ string, data any) events.Event {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range slices.Backward(f.published) {
		if e.Type() == typ {
			if err := e.DataAs(data); err != nil {
				t.Fatal(err)
			}
			return e
		}
	}
	t.Fatalf("no %s was published", typ)
	return events.Event{}
}

// attempts counts the calls of a stage.
func (f *fakes) attempts(stage string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, a := range f.calls {
		if a.Stage == stage {
			n++
		}
	}
	return n
}

// environment is a Temporal test environment, whose clock skips, with everything
// registered.
func environment(t *testing.T, f *fakes, ds ...*workflows.Definition) *testsuite.TestWorkflowEnvironment {
	t.Helper()
	suite := &testsuite.WorkflowTestSuite{}
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(time.Minute) // of real time without progress: machines may be slow
	err := workflows.Register(env, workflows.WorkerConfig{
		Client: f, Executor: f, Publisher: f, Aliases: f, Migrator: f, Tiers: f.tiers, Approvals: f.approvals, Pipelines: ds, WithoutSearchAttributes: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// runArgs is the interpreter's argument as Start sends it.
func runArgs(t *testing.T, d *workflows.Definition, in workflows.RunInput) any {
	t.Helper()
	f := &fakes{}
	if _, err := workflows.Start(t.Context(), f, d, in, workflows.StartOptions{WithoutSearchAttributes: true}); err != nil {
		t.Fatal(err)
	}
	return f.args[0]
}

func build(t *testing.T, p *workflows.Pipeline) *workflows.Definition {
	t.Helper()
	d, err := p.Build()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var errFlaky = errors.New("the network hiccuped")
