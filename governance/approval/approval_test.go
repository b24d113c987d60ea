package approval_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/internal/natstest"
)

const actors = `
apiVersion: stokehold.dev/v1
kind: Actors
actors:
  - {name: ann, roles: [release], team: late}
  - {name: bob, roles: [release, ops], nats: [UBOB]}
  - {name: cem, roles: [release]}
  - {name: dee, roles: [viewer]}
`

func directory(t testing.TB) *approval.Directory {
	t.Helper()
	d, err := approval.ParseDirectory([]byte(actors))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// clock is the local clock of one party, which may be wrong.
type clock struct {
	mu  sync.Mutex
	off time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.off)
}

func (c *clock) ahead(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = d
}

// bench is a deployment with a real server, bus and engine.
type bench struct {
	nc    *nats.Conn
	clock *clock
	store *approval.Store
	bus   *events.Bus
	log   *governance.MemoryLog
	co    *approval.Coordinator
}

const gate = `
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

func newBench(t *testing.T, policies ...string) *bench {
	t.Helper()
	b := &bench{nc: natstest.Start(t).Connect(), clock: &clock{}, log: &governance.MemoryLog{}}
	var err error
	b.store, err = approval.Open(t.Context(), approval.Config{Conn: b.nc, Directory: directory(t), Clock: b.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	types, err := events.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	var sources []governance.Source
	for i, p := range append([]string{gate}, policies...) {
		sources = append(sources, governance.Source{Name: fmt.Sprintf("p%d.yaml", i), Data: []byte(p)})
	}
	set, err := governance.Load(governance.Options{Types: types}, sources...)
	if err != nil {
		t.Fatal(err)
	}
	key, err := governance.NewKey("k")
	if err != nil {
		t.Fatal(err)
	}
	ring, err := governance.NewKeyRing(key)
	if err != nil {
		t.Fatal(err)
	}
	engine, err := governance.NewEngine(governance.Config{
		Policies: set, Log: b.log, Keys: ring, Approvals: b.store, Facts: governance.Facts{Actor: b.store.Directory().Facts},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.bus, err = events.Open(t.Context(), events.Config{Conn: b.nc, Types: types, Judge: engine})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.bus.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	b.co = &approval.Coordinator{Store: b.store, Bus: b.bus}
	return b
}

// promotion is the same event each time it is made, but for its time.
func promotion(t *testing.T, actor string) events.Event {
	t.Helper()
	e, err := events.New(events.TypePromotionRequested, "/stokehold/p/deploy", "late", "p/1/deploy/promotion", time.Now(), events.PromotionRequested{
		Model: "late", Challenger: "v2", Run: "p/1", Metrics: events.PromotionMetrics{Challenger: map[string]float64{"auc": 0.7}}, Rows: 10,
	})
	if err != nil {
		t.Fatal(err)
	}
	e.SetExtension(events.ExtActor, actor)
	e.SetExtension(events.ExtRun, "p/1")
	return e
}

// asked publishes the event, which must wait, and asks people.
func (b *bench) asked(t *testing.T) events.ApprovalNeed {
	t.Helper()
	err := b.bus.Publish(t.Context(), promotion(t, "ann"))
	var wait *events.ApprovalRequiredError
	if !errors.As(err, &wait) {
		t.Fatalf("published: %v", err)
	}
	st, err := b.co.Request(t.Context(), wait.Need, "p/1")
	if err != nil || st.Outcome.State != approval.Pending || st.Workflow != "p/1" || st.Requester != "ann" || st.Quorum != 2 {
		t.Fatalf("%+v, %v", st, err)
	}
	return wait.Need
}

func (b *bench) vote(t *testing.T, id, actor string, approve bool) (approval.Status, error) {
	t.Helper()
	return b.store.Vote(t.Context(), id, actor, approve, "because of "+actor)
}

func (b *bench) mustVote(t *testing.T, id, actor string, approve bool) approval.Status {
	t.Helper()
	st, err := b.vote(t, id, actor, approve)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (b *bench) published(t *testing.T) []string {
	t.Helper()
	var types []string
	for d, err := range b.bus.Replay(t.Context(), events.Subscription{}) {
		if err != nil {
			t.Fatal(err)
		}
		types = append(types, d.Type())
	}
	return types
}

func TestQuorumLetsTheEventPass(t *testing.T) {
	b := newBench(t)
	need := b.asked(t)
	if st := b.mustVote(t, need.ID[:8], "bob", true); st.Outcome.State != approval.Pending {
		t.Fatalf("one of two: %+v", st.Outcome)
	}
	b.mustVote(t, need.ID, "bob", true) // the same again
	if st, err := b.co.Settle(t.Context(), need.ID); err != nil || st.Outcome.State != approval.Pending {
		t.Fatalf("settled early: %+v, %v", st.Outcome, err)
	}
	if err := b.bus.Publish(t.Context(), promotion(t, "ann")); !errors.Is(err, events.ErrApprovalRequired) {
		t.Fatalf("one vote was enough: %v", err)
	}
	if st := b.mustVote(t, need.ID, "cem", true); st.Outcome.State != approval.Approved || st.Outcome.Sealed {
		t.Fatalf("two of two: %+v", st.Outcome)
	}
	for range 2 { // repeatable, and announced once
		st, err := b.co.Settle(t.Context(), need.ID)
		if err != nil || st.Outcome.State != approval.Approved || !st.Outcome.Sealed || !slices.Equal(st.Outcome.By(), []string{"bob", "cem"}) {
			t.Fatalf("%+v, %v", st.Outcome, err)
		}
		if v := st.Outcome.Votes[0]; !slices.Equal(v.Roles, []string{"release", "ops"}) || v.Reason != "because of bob" {
			t.Errorf("recorded as %+v", v)
		}
	}
	if err := b.bus.Publish(t.Context(), promotion(t, "ann")); err != nil {
		t.Fatalf("approved, but: %v", err)
	}
	want := []string{events.TypeApprovalRequested, events.TypeApprovalDecided, events.TypePromotionRequested}
	if got := b.published(t); !slices.Equal(got, want) {
		t.Errorf("in the stream: %v, want %v", got, want)
	}
	logged := 0
	for d, err := range b.log.Read(t.Context(), time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(d.Type, "approval.") && d.Point == events.OnPublish {
			logged++
		}
	}
	if logged < 2 {
		t.Errorf("%d decisions on approval events", logged)
	}
	// Another event is another question.
	other := promotion(t, "ann")
	other.SetID("p/2/deploy/promotion")
	if err := b.bus.Publish(t.Context(), other); !errors.Is(err, events.ErrApprovalRequired) {
		t.Errorf("another event: %v", err)
	}
}

func TestRejectionDeniesWithWhoAndWhy(t *testing.T) {
	b := newBench(t)
	need := b.asked(t)
	b.mustVote(t, need.ID, "bob", true)
	if st := b.mustVote(t, need.ID, "cem", false); st.Outcome.State != approval.Rejected {
		t.Fatalf("%+v", st.Outcome)
	}
	if _, err := b.co.Settle(t.Context(), need.ID); err != nil {
		t.Fatal(err)
	}
	err := b.bus.Publish(t.Context(), promotion(t, "ann"))
	if !errors.Is(err, events.ErrDenied) || !strings.Contains(err.Error(), "approval rejected by cem: because of cem") {
		t.Errorf("%v", err)
	}
}

func TestVotesThatAreRefused(t *testing.T) {
	b := newBench(t)
	need := b.asked(t)
	for name, c := range map[string]struct {
		id, actor, reason string
		want              error
	}{
		"the requester":       {need.ID, "ann", "mine", approval.ErrRequester},
		"without the role":    {need.ID, "dee", "ok", approval.ErrRole},
		"an unknown actor":    {need.ID, "eve", "ok", approval.ErrRole},
		"an actor of no form": {need.ID, "eve > all", "ok", approval.ErrInvalid},
		"no reason":           {need.ID, "bob", "  ", approval.ErrInvalid},
		"a long reason":       {need.ID, "bob", strings.Repeat("x", 2000), approval.ErrInvalid},
		"an unknown request":  {strings.Repeat("0", 40), "bob", "ok", approval.ErrNotFound},
		"an unknown prefix":   {"000000", "bob", "ok", approval.ErrNotFound},
		"a short prefix":      {need.ID[:5], "bob", "ok", approval.ErrAmbiguous},
		"a wildcard":          {"*", "bob", "ok", approval.ErrInvalid},
		"too many digits":     {need.ID + "0", "bob", "ok", approval.ErrInvalid},
	} {
		_, err := b.store.Vote(t.Context(), c.id, c.actor, true, c.reason)
		var typed *approval.Error
		if !errors.Is(err, c.want) || !errors.As(err, &typed) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	b.mustVote(t, need.ID, "bob", true)
	if _, err := b.vote(t, need.ID, "bob", false); !errors.Is(err, approval.ErrVoted) {
		t.Errorf("a changed mind: %v", err)
	}
	b.mustVote(t, need.ID, "cem", true)
	for _, sealed := range []bool{false, true} {
		if sealed {
			if _, err := b.co.Settle(t.Context(), need.ID); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.vote(t, need.ID, "bob", false); !errors.Is(err, approval.ErrDecided) {
			t.Errorf("sealed %v: %v", sealed, err)
		}
	}
}

// What is in the bucket without right counts for nothing, whoever put it there.
func TestForgedVotesDoNotCount(t *testing.T) {
	b := newBench(t)
	need := b.asked(t)
	js, err := jetstream.New(b.nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), "stokehold_approvals")
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{"ann", "dee", "eve", "=62ob", "b=6Fb"} {
		if _, err := kv.Create(t.Context(), "vote."+need.ID+"."+who, []byte(`{"approve":true,"reason":"forged"}`)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kv.Create(t.Context(), "vote."+need.ID+".cem", []byte(`{"approve":`)); err != nil {
		t.Fatal(err)
	}
	st, err := b.co.Settle(t.Context(), need.ID)
	if err != nil || st.Outcome.State != approval.Pending || len(st.Outcome.Votes) != 0 {
		t.Errorf("%+v, %v", st.Outcome, err)
	}
	if _, err := kv.Create(t.Context(), "outcome."+need.ID, []byte(`{"state":"certainly","id":"`+need.ID+`"}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Approved(t.Context(), need.ID); !errors.Is(err, approval.ErrCorrupt) {
		t.Errorf("a made-up state: %v", err)
	}
}

// Nobody seals an expiry before the deadline has passed by the skew on its own
// clock, nobody votes after it by any clock, and what has expired denies.
func TestExpiry(t *testing.T) {
	b := newBench(t)
	need := b.asked(t)
	b.mustVote(t, need.ID, "bob", true)
	b.clock.ahead(24*time.Hour + approval.DefaultSkew/2)
	if st, err := b.co.Settle(t.Context(), need.ID); err != nil || st.Outcome.State != approval.Pending {
		t.Fatalf("within the skew: %+v, %v", st.Outcome, err)
	}
	if _, err := b.vote(t, need.ID, "cem", true); !errors.Is(err, approval.ErrExpired) {
		t.Fatalf("a vote that may be late: %v", err)
	}
	b.clock.ahead(24*time.Hour + 2*approval.DefaultSkew)
	st, err := b.co.Settle(t.Context(), need.ID)
	if err != nil || st.Outcome.State != approval.Expired || !strings.HasPrefix(st.Outcome.Reason, "1 of 2 had approved by ") {
		t.Fatalf("%+v, %v", st.Outcome, err)
	}
	b.clock.ahead(0) // a clock that was wrong changes nothing any more
	if _, err := b.vote(t, need.ID, "cem", true); !errors.Is(err, approval.ErrExpired) {
		t.Errorf("%v", err)
	}
	err = b.bus.Publish(t.Context(), promotion(t, "ann"))
	if !errors.Is(err, events.ErrDenied) || !strings.Contains(err.Error(), "expired: 1 of 2") {
		t.Errorf("%v", err)
	}
}

// Many settle, ask and vote at once: one request, one outcome, one event of each.
func TestRacesEndInOneOutcome(t *testing.T) {
	b := newBench(t)
	need := b.asked(t)
	var wg sync.WaitGroup
	states := make(chan approval.State, 64)
	for i := range 4 {
		wg.Go(func() {
			_, _ = b.store.Vote(t.Context(), need.ID, []string{"bob", "cem"}[i%2], i < 3, "r") // some lose, as they should
		})
		wg.Go(func() {
			for range 8 {
				if _, err := b.co.Request(t.Context(), need, "p/1"); err != nil {
					t.Error(err)
				}
				st, err := b.co.Settle(t.Context(), need.ID)
				if err != nil {
					t.Error(err)
				}
				if st.Outcome.Sealed {
					states <- st.Outcome.State
				}
			}
		})
	}
	wg.Wait()
	close(states)
	last, err := b.co.Settle(t.Context(), need.ID)
	if err != nil || !last.Outcome.Sealed {
		t.Fatalf("%+v, %v", last.Outcome, err)
	}
	for s := range states {
		if s != last.Outcome.State {
			t.Errorf("sealed as %s and as %s", s, last.Outcome.State)
		}
	}
	if got := b.published(t); !slices.Equal(got, []string{events.TypeApprovalRequested, events.TypeApprovalDecided}) {
		t.Errorf("in the stream: %v", got)
	}
}

// Policies judge what people decide, with the roles of who asked.
func TestPoliciesJudgeDecisions(t *testing.T) {
	b := newBench(t, `
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: no-friday}
spec:
  match: {types: [approval.decided]}
  rules:
    - name: not-now
      expression: data.state != 'approved' || 'ops' in actor.roles
      message: nothing is approved today
`)
	need := b.asked(t)
	b.mustVote(t, need.ID, "bob", true)
	b.mustVote(t, need.ID, "cem", true)
	st, err := b.co.Settle(t.Context(), need.ID)
	if err != nil || st.Outcome.State != approval.Rejected || !strings.Contains(st.Outcome.Reason, "nothing is approved today") {
		t.Fatalf("%+v, %v", st.Outcome, err)
	}
	if err := b.bus.Publish(t.Context(), promotion(t, "ann")); !errors.Is(err, events.ErrDenied) {
		t.Errorf("%v", err)
	}
}

func TestDeniedRequestIsNotAsked(t *testing.T) {
	b := newBench(t, `
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: silent}
spec:
  match: {types: [approval.requested]}
  rules:
    - {name: never, expression: "false", message: nobody is asked here}
`)
	err := b.bus.Publish(t.Context(), promotion(t, "ann"))
	var wait *events.ApprovalRequiredError
	if !errors.As(err, &wait) {
		t.Fatal(err)
	}
	if _, err := b.co.Request(t.Context(), wait.Need, ""); !errors.Is(err, events.ErrDenied) {
		t.Errorf("%v", err)
	}
	if list, err := b.store.List(t.Context(), true); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestList(t *testing.T) {
	b := newBench(t)
	need := b.asked(t)
	for _, all := range []bool{false, true} {
		if list, err := b.store.List(t.Context(), all); err != nil || len(list) != 1 || list[0].ID != need.ID {
			t.Fatalf("%v, %v", list, err)
		}
	}
	b.mustVote(t, need.ID, "bob", false)
	if list, err := b.store.List(t.Context(), false); err != nil || len(list) != 0 {
		t.Errorf("pending: %v, %v", list, err)
	}
	if list, err := b.store.List(t.Context(), true); err != nil || len(list) != 1 || list[0].Outcome.State != approval.Rejected {
		t.Errorf("all: %v, %v", list, err)
	}
}

// With the documented permissions the server keeps one person from voting as
// another, and says who a connection is.
func TestCredentialsAreTheActor(t *testing.T) {
	user := func(name string, allow ...string) *server.User {
		return &server.User{Username: name, Password: "x", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Allow: allow}}}
	}
	srv := natstest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{
			user("deployment", ">"),
			user("bob", approval.VoterSubjects("stokehold", "bob")...),
			user("UBOB", approval.VoterSubjects("stokehold", "bob")...),
		}
	})
	as := func(name string) *nats.Conn {
		return srv.Connect(nats.UserInfo(name, "x"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	}
	who := directory(t)
	co := &approval.Coordinator{Bus: allowing{}}
	var err error
	if co.Store, err = approval.Open(t.Context(), approval.Config{Conn: as("deployment"), Directory: who}); err != nil {
		t.Fatal(err)
	}
	need := events.ApprovalNeed{ID: strings.Repeat("ab", 20), Roles: []string{"release"}, Quorum: 1, Expires: time.Hour, EventID: "e", Type: events.TypeRunStarted}
	if _, err := co.Request(t.Context(), need, ""); err != nil {
		t.Fatal(err)
	}
	bob := as("bob")
	mine, err := approval.Open(t.Context(), approval.Config{Conn: bob, Directory: who})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := mine.Vote(ctx, need.ID, "cem", true, "as another"); !errors.Is(err, approval.ErrUnavailable) {
		t.Errorf("bob votes as cem: %v", err)
	}
	if st, err := co.Store.Status(t.Context(), need.ID); err != nil || len(st.Outcome.Votes) != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	if list, err := mine.List(t.Context(), true); err != nil || len(list) != 1 {
		t.Errorf("bob reads %v, %v", list, err)
	}
	for _, subject := range []string{
		"$KV.stokehold_approvals.outcome." + need.ID, "$KV.stokehold_approvals.request." + need.ID, "$JS.API.STREAM.PURGE.KV_stokehold_approvals",
		"$JS.API.STREAM.MSG.DELETE.KV_stokehold_approvals", "$JS.API.STREAM.UPDATE.KV_stokehold_approvals",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if answer, err := bob.RequestWithContext(ctx, subject, []byte("{}")); err == nil {
			t.Errorf("bob may write to %s: %s", subject, answer.Data)
		}
		cancel()
	}
	if st, err := mine.Vote(t.Context(), need.ID, "bob", true, "as myself"); err != nil || st.Outcome.State != approval.Approved {
		t.Errorf("bob votes as bob: %+v, %v", st, err)
	}
	for _, c := range []struct {
		conn          string
		claimed, want string
		err           error
	}{
		{"bob", "", "bob", nil}, {"bob", "bob", "bob", nil}, {"bob", "cem", "", approval.ErrRole}, {"UBOB", "", "bob", nil},
		{"deployment", "", "", nil}, {"deployment", "cem", "cem", nil}, {"deployment", "c m", "", approval.ErrInvalid},
	} {
		got, err := approval.Whoami(t.Context(), as(c.conn), who, c.claimed)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s as %q: %q, %v", c.conn, c.claimed, got, err)
		}
	}
}

// allowing is a bus that stores nothing.
type allowing struct{}

func (allowing) Approve(context.Context, ...*events.Event) error { return nil }
func (allowing) Publish(context.Context, ...events.Event) error  { return nil }

func TestDirectoryFaults(t *testing.T) {
	head := "apiVersion: stokehold.dev/v1\nkind: Actors\nactors:\n"
	for name, c := range map[string][2]string{
		"unknown field":       {head + "  - {name: ann, role: [x]}", "field role not found"},
		"twice":               {head + "  - {name: ann}\n  - {name: ann}", "ann is there twice"},
		"name":                {head + "  - {name: 'a b'}", `name "a b"`},
		"role":                {head + "  - {name: ann, roles: [Release]}", `role "Release"`},
		"one key, two people": {head + "  - {name: ann, nats: [U]}\n  - {name: bob, nats: [U]}", "another's"},
		"another's name":      {head + "  - {name: ann, nats: [bob]}\n  - {name: bob}", "another's"},
		"kind":                {"apiVersion: stokehold.dev/v1\nkind: Policy\nactors: []", "want stokehold.dev/v1 and Actors"},
		"two documents":       {head + "  - {name: ann}\n---\n{}", "more than one document"},
		"empty":               {"", "EOF"},
	} {
		_, err := approval.ParseDirectory([]byte(c[0]))
		if !errors.Is(err, approval.ErrConfig) || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := approval.ParseDirectory([]byte(head + "  - {name: '?'}\n  - {name: ann, roles: ['?']}"))
	if err == nil || strings.Count(err.Error(), "actors:") != 2 {
		t.Errorf("all faults at once: %v", err)
	}
}

func TestConfigFaults(t *testing.T) {
	_, err := approval.Open(t.Context(), approval.Config{Prefix: "no good", Skew: -1, MaxAge: time.Hour})
	if !errors.Is(err, approval.ErrConfig) || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("%v", err)
	}
}
