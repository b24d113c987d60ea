package workflowstest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/nats-io/nats.go"
	"go.temporal.io/api/sdk/v1"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/cmd/internal/workflowstest"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/objectdir"
	"github.com/stokehold/stokehold/tiers/policy"
	"github.com/stokehold/stokehold/workflows"
)

const askBeforeMoves = `
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: moves}
spec:
  match: {types: [tier.migration.requested], subjects: ["held/*"]}
  rules:
    - name: asked
      expression: data.to != 'cold'
      message: leaves the building
      action: requireApproval
      approval: {roles: [release], quorum: 1, expires: 24h}
---
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: money}
spec:
  match: {types: [budget.changed]}
  rules:
    - {name: reason, expression: data.reason != 'because', message: say why}
    - name: raises
      expression: "!data.weaker"
      message: more money
      action: requireApproval
      approval: {roles: [release], quorum: 1, expires: 24h}
`

// archive is a store with a cold tier, on a bus that judges by a policy, and people.
type archive struct {
	env    *workflowstest.Env
	bus    *events.Bus
	store  *tiers.Store
	log    *governance.MemoryLog
	co     *approval.Coordinator
	limits workflows.Limits // of its workers; nil: they change none
	ahead  atomic.Int64     // how far the clock of those who count votes is, ns
}

func openArchive(t *testing.T, env *workflowstest.Env) *archive {
	t.Helper()
	a := &archive{env: env, log: &governance.MemoryLog{}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := env.Stack.Endpoints()
	conn, err := nats.Connect(at.NATSURL, nats.UserInfo(at.NATSUser, string(at.NATSPassword)))
	must(err)
	t.Cleanup(conn.Close)
	who, err := approval.NewDirectory(approval.Actor{Name: "bob", Roles: []string{"release"}}, approval.Actor{Name: "ann", Roles: []string{"release"}})
	must(err)
	people, err := approval.Open(t.Context(), approval.Config{Conn: conn, Directory: who, Clock: func() time.Time { return time.Now().Add(time.Duration(a.ahead.Load())) }})
	must(err)
	set, err := governance.Load(governance.Options{Types: env.Types}, governance.Source{Name: "moves.yaml", Data: []byte(askBeforeMoves)})
	must(err)
	key, err := governance.NewKey("k")
	must(err)
	ring, err := governance.NewKeyRing(key)
	must(err)
	engine, err := governance.NewEngine(governance.Config{Policies: set, Log: a.log, Keys: ring, Approvals: people})
	must(err)
	a.bus, err = events.Open(t.Context(), events.Config{Conn: conn, Types: env.Types, Judge: engine})
	must(err)
	cold, err := objectdir.Open(t.TempDir())
	must(err)
	a.store, err = tiers.Open(t.Context(), tiers.Config{Conn: conn, Bus: a.bus, Host: &shm.Host{}, Warm: t.TempDir(), Cold: cold})
	must(err)
	a.co = &approval.Coordinator{Store: people, Bus: a.bus}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), workflowstest.StopTimeout)
		defer cancel()
		if err := errors.Join(a.store.Close(ctx), a.bus.Close(ctx)); err != nil {
			t.Error(err)
		}
	})
	return a
}

// fill writes batches from..to-1 of a dataset.
func (a *archive) fill(t *testing.T, dataset string, from, to uint64) {
	t.Helper()
	w, err := a.store.Writer(t.Context(), dataset, measuredSchema, tiers.Fence{Run: fmt.Sprint("fill-", from), Stage: "fill", Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	for seq := from; seq < to; seq++ {
		b := array.NewRecordBuilder(memory.DefaultAllocator, measuredSchema)
		b.Field(0).(*array.Float32Builder).Append(float32(seq))
		b.Field(1).(*array.Int32Builder).Append(1)
		rec := b.NewRecordBatch()
		_, err := w.WriteAt(t.Context(), seq, rec)
		rec.Release()
		b.Release()
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// cold counts the batches of a dataset that have a cold copy.
func (a *archive) cold(t *testing.T, dataset string) (n int) {
	t.Helper()
	for b, err := range a.store.Entries(t.Context(), dataset, 0, tiers.End) {
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := b.Ref.In(arrowio.Cold); ok {
			n++
		}
	}
	return n
}

// requests counts the requests for migrations of a dataset that were published.
func (a *archive) requests(t *testing.T, dataset string) (n int) {
	t.Helper()
	for d, err := range a.bus.Replay(t.Context(), events.Subscription{Types: []string{events.TypeMigrationRequested}}) {
		if err != nil {
			t.Fatal(err)
		}
		if d.Subject() == dataset {
			n++
		}
	}
	return n
}

func (a *archive) work(t *testing.T, planner workflows.TierPlanner) *workflows.Worker {
	t.Helper()
	w, err := workflows.NewWorker(workflows.WorkerConfig{
		Client: a.env.Client, Bus: a.bus, Types: a.env.Types, Executor: &workflowstest.Light{}, Aliases: workflowstest.NoAliases{},
		Migrator: a.store, Tiers: planner, Approvals: a.co, Limits: a.limits,
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

// asked waits until people are asked about the dataset, and the migration says so.
func (a *archive) asked(t *testing.T, dataset string) (st approval.Status) {
	t.Helper()
	eventually(t, "a request, and a migration that says that it waits", func() bool {
		list, err := a.co.Store.List(t.Context(), false)
		if err != nil {
			return false
		}
		for _, s := range list {
			if s.Subject == dataset {
				st = s
			}
		}
		if st.ID == "" {
			return false
		}
		waits, err := workflows.MigrationWaits(t.Context(), a.env.Client, st.Workflow)
		return err == nil && waits == st.ID
	})
	return st
}

func (a *archive) vote(t *testing.T, st approval.Status, approve bool) {
	t.Helper()
	if _, err := a.co.Store.Vote(t.Context(), st.ID, "bob", approve, "looked at it"); err != nil {
		t.Fatal(err)
	}
	if err := workflows.TellApproval(t.Context(), a.env.Client, st.Workflow, st.ID); err != nil {
		t.Fatal(err)
	}
}

// A migration that people must approve waits for them, through a change of workers,
// and nothing moves before; it moves, or ends with what they said.
func TestMigrationWaitsForApproval(t *testing.T) {
	env := open(t)
	a := openArchive(t, env)
	for _, dataset := range []string{"held/yes", "held/no", "free/rows"} {
		a.fill(t, dataset, 0, 3)
	}
	first := a.work(t, nil)
	move := func(dataset string) string {
		t.Helper()
		id, err := workflows.StartMigration(t.Context(), env.Client, workflows.Migration{Dataset: dataset, To: 3, Reason: "a test", Actor: "ann"}, workflows.StartOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	// What needs nobody is asked for and moves.
	if _, err := workflows.MigrationOutcome(t.Context(), env.Client, move("free/rows")); err != nil || a.cold(t, "free/rows") != 3 || a.requests(t, "free/rows") != 1 {
		t.Errorf("%v, %d moved, %d requests", err, a.cold(t, "free/rows"), a.requests(t, "free/rows"))
	}

	id := move("held/yes")
	st := a.asked(t, "held/yes")
	if st.Workflow != id || st.Type != events.TypeMigrationRequested || st.Requester != "ann" || !strings.Contains(st.Reason, "leaves the building") {
		t.Errorf("asked %+v", st.Request)
	}
	meta, err := env.Client.QueryWorkflow(t.Context(), id, "", "__temporal_workflow_metadata")
	if err != nil {
		t.Fatal(err)
	}
	var shown sdk.WorkflowMetadata
	if err := meta.Get(&shown); err != nil || !strings.Contains(shown.GetCurrentDetails(), "stokehold approve "+st.ID) {
		t.Errorf("the UI shows %s, %v", shown.GetCurrentDetails(), err)
	}
	// Who asks for it again joins it, and asks nobody again.
	if again := move("held/yes"); again != id {
		t.Errorf("%s, and %s", id, again)
	}
	if a.cold(t, "held/yes") != 0 || a.requests(t, "held/yes") != 0 {
		t.Error("it moves before it is approved")
	}
	stop(t, first)
	a.vote(t, st, true) // while nobody works
	a.work(t, nil)
	r, err := workflows.MigrationOutcome(t.Context(), env.Client, id)
	if err != nil || r.Moved != 3 || a.cold(t, "held/yes") != 3 || a.requests(t, "held/yes") != 1 {
		t.Errorf("%+v, %v, %d moved, %d requests", r, err, a.cold(t, "held/yes"), a.requests(t, "held/yes"))
	}
	if waits, err := workflows.MigrationWaits(t.Context(), env.Client, id); err != nil || waits != "" {
		t.Errorf("it waits for %q, %v", waits, err)
	}
	replay(t, env, "migrate-approved", id)

	id = move("held/no")
	a.vote(t, a.asked(t, "held/no"), false)
	_, err = workflows.MigrationOutcome(t.Context(), env.Client, id)
	if err == nil || !strings.Contains(err.Error(), "rejected by bob: looked at it") || a.cold(t, "held/no") != 0 || a.requests(t, "held/no") != 0 {
		t.Errorf("%v, %d moved", err, a.cold(t, "held/no"))
	}
	// Asked for again it is another question.
	id = move("held/no")
	if again := a.asked(t, "held/no"); again.ID == "" || again.Outcome.State != approval.Pending {
		t.Errorf("%+v", again)
	}
	if err := env.Client.CancelWorkflow(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	if _, err = workflows.MigrationOutcome(t.Context(), env.Client, id); err == nil || a.cold(t, "held/no") != 0 {
		t.Errorf("cancelled: %v, %d moved", err, a.cold(t, "held/no"))
	}
}

// What nobody answers in time does not move.
func TestMigrationThatNobodyApproves(t *testing.T) {
	env := open(t)
	a := openArchive(t, env)
	a.fill(t, "held/rows", 0, 2)
	a.work(t, nil)
	id, err := workflows.StartMigration(t.Context(), env.Client, workflows.Migration{Dataset: "held/rows", To: 2}, workflows.StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	st := a.asked(t, "held/rows")
	a.ahead.Store(int64(25 * time.Hour))
	eventually(t, "the end of the migration", func() bool {
		// Without a word it would look for itself, later.
		if err := workflows.TellApproval(t.Context(), env.Client, id, st.ID); err != nil {
			t.Fatal(err)
		}
		d, err := env.Client.DescribeWorkflowExecution(t.Context(), id, "")
		return err == nil && d.GetWorkflowExecutionInfo().GetCloseTime() != nil
	})
	if _, err = workflows.MigrationOutcome(t.Context(), env.Client, id); err == nil || !strings.Contains(err.Error(), "expired") || a.cold(t, "held/rows") != 0 {
		t.Errorf("%v, %d moved", err, a.cold(t, "held/rows"))
	}
}

// noted counts what it is asked for and has nothing to move.
type noted struct {
	workflowstest.NoMoves
	mu    sync.Mutex
	asked []tiers.MigrationRequest
}

func (n *noted) RequestMigration(_ context.Context, r tiers.MigrationRequest) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, r)
	return nil
}

// A range that takes more than one execution is asked for once.
func TestLongMigrationIsAskedForOnce(t *testing.T) {
	env := open(t)
	n := &noted{}
	w, err := workflows.NewWorker(workflows.WorkerConfig{
		Client: env.Client, Bus: env.Bus, Executor: &workflowstest.Light{}, Aliases: workflowstest.NoAliases{}, Migrator: n,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer stop(t, w)
	const batches = 256*200 + 1
	id, err := workflows.StartMigration(t.Context(), env.Client, workflows.Migration{Dataset: "long", To: batches}, workflows.StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	begun, err := env.Client.DescribeWorkflowExecution(t.Context(), id, "")
	if err != nil {
		t.Fatal(err)
	}
	r, err := workflows.MigrationOutcome(t.Context(), env.Client, id)
	if err != nil || r.Moved != batches {
		t.Fatalf("%+v, %v", r, err)
	}
	ended, err := env.Client.DescribeWorkflowExecution(t.Context(), id, "")
	if err != nil || ended.GetWorkflowExecutionInfo().GetExecution().GetRunId() == begun.GetWorkflowExecutionInfo().GetExecution().GetRunId() {
		t.Fatalf("it was one execution: %v", err)
	}
	if len(n.asked) != 1 || n.asked[0].From != 0 || n.asked[0].To != batches {
		t.Errorf("asked %+v", n.asked)
	}
}

// growing plans the move of all that there is of some datasets, a pass a second.
type growing struct {
	store *tiers.Store
	names []string

	mu     sync.Mutex
	passes int
}

func (g *growing) PlanTiers(ctx context.Context, _ policy.Cursor) (policy.Step, error) {
	step := policy.Step{Done: true, Every: time.Second}
	for _, name := range g.names {
		t := policy.Task{Dataset: name, Decision: policy.Decision{Action: policy.Move, Policy: "p", Rule: "r"}}
		for b, err := range g.store.Entries(ctx, name, 0, tiers.End) {
			if err != nil {
				return step, err
			}
			if _, cold := b.Ref.In(arrowio.Cold); cold {
				t.From = b.Ref.Sequence + 1
			}
			t.To = b.Ref.Sequence + 1
		}
		if t.From < t.To {
			step.Tasks = append(step.Tasks, t)
		}
	}
	g.mu.Lock()
	g.passes++
	g.mu.Unlock()
	return step, nil
}

func (g *growing) ExpireTier(context.Context, policy.Task) (int, error) { return 0, nil }

func (g *growing) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.passes
}

// Tier policies ask once about a range, however it grows meanwhile, and go on with
// the others.
func TestTierPoliciesDoNotWaitForPeople(t *testing.T) {
	env := open(t)
	a := openArchive(t, env)
	for _, dataset := range []string{"held/rows", "free/rows"} {
		a.fill(t, dataset, 0, 2)
	}
	g := &growing{store: a.store, names: []string{"held/rows", "free/rows"}}
	a.work(t, g)
	id, err := workflows.StartTierPolicies(t.Context(), env.Client, workflows.StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	st := a.asked(t, "held/rows")
	eventually(t, "the move of what needs nobody", func() bool { return a.cold(t, "free/rows") == 2 })
	for n := range uint64(3) { // both datasets grow, and passes go on
		for _, dataset := range g.names {
			a.fill(t, dataset, 2+n, 3+n)
		}
		passes := g.count()
		eventually(t, "the next passes", func() bool { return g.count() >= passes+2 && a.cold(t, "free/rows") == int(3+n) })
	}
	list, err := a.co.Store.List(t.Context(), true)
	if err != nil || len(list) != 1 || a.cold(t, "held/rows") != 0 {
		t.Errorf("%v: people were asked %d times, %d moved", err, len(list), a.cold(t, "held/rows"))
	}
	a.vote(t, st, true)
	eventually(t, "the move of what was approved", func() bool { return a.cold(t, "held/rows") == 2 })
	// What has come meanwhile is another question. A no is remembered, so that the passes
	// after it ask nobody.
	second := a.asked(t, "held/rows")
	a.vote(t, second, false)
	eventually(t, "the end of the second migration", func() bool {
		d, err := env.Client.DescribeWorkflowExecution(t.Context(), second.Workflow, "")
		return err == nil && d.GetWorkflowExecutionInfo().GetCloseTime() != nil
	})
	passes := g.count()
	eventually(t, "passes after the no", func() bool { return g.count() >= passes+4 })
	if list, err = a.co.Store.List(t.Context(), true); err != nil || len(list) != 2 || a.cold(t, "held/rows") != 2 {
		t.Errorf("%v: people were asked %d times, %d moved", err, len(list), a.cold(t, "held/rows"))
	}
	replay(t, env, "tier-policies", id)
	if err := env.Client.CancelWorkflow(t.Context(), id, ""); err != nil {
		t.Error(err)
	}
}
