package events_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
)

func ExamplePermissions() {
	g, err := events.Permissions(events.Access{Role: events.RoleComponent, Durables: []string{"scorer"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(g.Config())
	// Output:
	// permissions {
	//   publish { allow: [
	//     "$JS.ACK.STOKEHOLD_EVENTS.scorer.>"
	//     "$JS.API.CONSUMER.INFO.STOKEHOLD_EVENTS.scorer"
	//     "$JS.API.CONSUMER.MSG.NEXT.STOKEHOLD_EVENTS.scorer"
	//   ] }
	//   subscribe { allow: [
	//     "_INBOX_component.>"
	//   ] }
	// }
}

func TestPermissionsTellAllFaults(t *testing.T) {
	_, err := events.Permissions(events.Access{Prefix: "A.B", Role: "king", Durables: []string{"a b"}, Inbox: ">"})
	for _, want := range []string{"prefix", "king", "durable name", "inbox"} {
		if !errors.Is(err, events.ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	if _, err := events.Permissions(events.Access{Role: events.RoleComponent}); err == nil {
		t.Error("a component of no consumer")
	}
	if _, err := events.Permissions(events.Access{Role: events.RoleApprover}); err == nil {
		t.Error("an approver who is nobody")
	}
	if _, err := events.Permissions(events.Access{Role: events.RoleAuditor, Actor: "ann"}); err == nil {
		t.Error("an auditor who votes")
	}
}

// No role may do everything, and nobody but the gate may write events.
func TestPermissionsAreLeast(t *testing.T) {
	for _, role := range []events.Role{events.RoleGate, events.RoleComponent, events.RoleAuditor, events.RolePolicyAuthor, events.RoleBudgetAuthor, events.RoleApprover} {
		a := events.Access{Role: role}
		if role == events.RoleApprover {
			a.Actor = "ann"
		}
		if role == events.RoleComponent {
			a.Durables = []string{"d"}
		}
		g, err := events.Permissions(a)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range g.Publish {
			switch {
			case s == ">" || strings.HasPrefix(s, "$JS.>") || strings.HasPrefix(s, "$JS.API.>") || strings.HasPrefix(s, "$KV.>") || strings.HasPrefix(s, "_INBOX"):
				t.Errorf("%s may publish to %s", role, s)
			case strings.HasPrefix(s, "stokehold.event.") && role != events.RoleGate:
				t.Errorf("%s may publish events: %s", role, s)
			case strings.HasPrefix(s, "$KV.stokehold_policies.") && role != events.RolePolicyAuthor:
				t.Errorf("%s may write policies: %s", role, s)
			case strings.HasPrefix(s, "$KV.stokehold_budgets.") && role != events.RoleGate, strings.HasPrefix(s, "$KV.stokehold_budget_proposals.") && role != events.RoleBudgetAuthor, strings.HasPrefix(s, "$KV.stokehold_usage.") && role != events.RoleGate:
				t.Errorf("%s may write budgets: %s", role, s)
			case strings.Contains(s, "CONSUMER.CREATE") && (role == events.RoleComponent || role == events.RoleApprover):
				t.Errorf("%s may have the server write anywhere: %s", role, s)
			case s == "$JS.API.STREAM.PURGE.KV_stokehold_catalog" && role == events.RoleGate: // it may write all of that anyway
			case strings.Contains(s, "STREAM.DELETE") || strings.Contains(s, "STREAM.PURGE"):
				t.Errorf("%s may take records away: %s", role, s)
			}
		}
	}
}

// guarded runs a server whose users are the roles, configured as an operator
// would: by a file with the blocks that Config gives.
type guarded struct {
	srv    *natstest.Server
	inbox  map[events.Role]string
	refuse chan error // permission violations, as the server tells a client
}

func guard(t testing.TB) *guarded {
	t.Helper()
	g := &guarded{inbox: map[events.Role]string{}, refuse: make(chan error, 16)}
	var users strings.Builder
	for _, role := range []events.Role{events.RoleGate, events.RoleComponent, events.RoleAuditor, events.RolePolicyAuthor, events.RoleBudgetAuthor} {
		a := events.Access{Role: role}
		if role == events.RoleComponent {
			a.Durables = []string{"scorer"}
		}
		grants, err := events.Permissions(a)
		if err != nil {
			t.Fatal(err)
		}
		g.inbox[role] = grants.Inbox
		fmt.Fprintf(&users, "{user: %q, password: %q, %s}\n", role, role, grants.Config())
	}
	g.srv = natstest.Start(t, natstest.Users(t, users.String()))
	return g
}

func (g *guarded) as(role events.Role) *nats.Conn {
	return g.srv.Connect(nats.UserInfo(string(role), string(role)), nats.CustomInboxPrefix(g.inbox[role]),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				g.refuse <- err
			}
		}))
}

// refused expects the server's word that a subject is not allowed.
func (g *guarded) refused(t testing.TB, subject string) {
	t.Helper()
	select {
	case err := <-g.refuse:
		if !strings.Contains(err.Error(), subject) {
			t.Errorf("refused, but for %v; want %s", err, subject)
		}
	case <-time.After(10 * time.Second):
		t.Errorf("publishing to %s was not refused", subject)
	}
}

// A component has credentials of its own. With them it reads what the gate let
// pass, and writes no event past it.
func TestNobodyPublishesPastTheGate(t *testing.T) {
	g := guard(t)
	ctx := t.Context()
	types, err := events.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	gate := g.as(events.RoleGate)
	bus, err := events.Open(ctx, events.Config{Conn: gate, Types: types, Judge: events.AllowAll()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bus.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	// The gate makes the component's consumer; the component then has it alone.
	js, err := jetstream.New(gate)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateConsumer(ctx, "STOKEHOLD_EVENTS", jetstream.ConsumerConfig{Durable: "scorer", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	ev, err := events.New(events.TypeRunStarted, "stokehold/test", "run-1", "ev-1", time.Now(), events.RunStarted{Pipeline: "p", Run: "run-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Publish(ctx, ev); err != nil {
		t.Fatal(err)
	}

	component := g.as(events.RoleComponent)
	cjs, err := jetstream.New(component)
	if err != nil {
		t.Fatal(err)
	}
	cons, err := cjs.Consumer(ctx, "STOKEHOLD_EVENTS", "scorer")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := cons.Next(jetstream.FetchMaxWait(10 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if got := msg.Headers().Get("ce-id"); got != "ev-1" {
		t.Errorf("consumed %q", got)
	}
	if err := msg.DoubleAck(ctx); err != nil {
		t.Errorf("acknowledge: %v", err)
	}

	// Straight to NATS, with its own credentials.
	for _, subject := range []string{
		"stokehold.event.run.started.run-1", "stokehold.event.anything", "stokehold.topic.t", "stokehold.dlq.x", "stokehold.held.x", "stokehold.decision.allow",
		"$KV.stokehold_policies.default", "$KV.stokehold_catalog.x", "$KV.stokehold_usage.use.x", "$KV.stokehold_budgets.document", "$JS.API.STREAM.DELETE.STOKEHOLD_EVENTS", "$JS.API.STREAM.PURGE.STOKEHOLD_EVENTS",
		"$JS.API.CONSUMER.CREATE.STOKEHOLD_EVENTS.mine", "$JS.API.CONSUMER.DELETE.STOKEHOLD_EVENTS.scorer", "$JS.ACK.STOKEHOLD_EVENTS.other.1.1.1.1.1",
	} {
		forged := nats.NewMsg(subject)
		forged.Header.Set("ce-id", "forged")
		if err := component.PublishMsg(forged); err != nil {
			t.Fatal(err)
		}
		g.refused(t, subject)
	}
	// Nor may it look into the gate's inboxes, or at the subjects themselves.
	for _, subject := range []string{"_INBOX.>", "_INBOX_gate.>", "stokehold.>", ">"} {
		if _, err := component.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
		g.refused(t, subject)
	}
	for role, subjects := range map[events.Role][]string{
		events.RoleAuditor: {"stokehold.event.run.started.run-1"}, events.RolePolicyAuthor: {"stokehold.event.run.started.run-1", "$KV.stokehold_budgets.document"},
		events.RoleGate:         {"$KV.stokehold_policies.default", "$KV.stokehold_budget_proposals.x"},
		events.RoleBudgetAuthor: {"stokehold.event.run.started.run-1", "$KV.stokehold_budgets.document", "stokehold.decision.allow", "$KV.stokehold_policies.default", "$KV.stokehold_usage.use.x"},
	} {
		for _, subject := range subjects {
			if err := g.as(role).Publish(subject, nil); err != nil {
				t.Fatal(err)
			}
			g.refused(t, subject)
		}
	}
	s, err := js.Stream(ctx, "STOKEHOLD_EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d events in the stream; want the gate's alone", n)
	}
	// And the gate goes on: its own handlers, acknowledgements and dead letters.
	seen := make(chan string, 1)
	c, err := bus.Subscribe(ctx, events.Subscription{Durable: "gate", Types: []string{events.TypeRunStarted}}, func(_ context.Context, d events.Delivery) error {
		seen <- d.ID()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case id := <-seen:
		if id != "ev-1" {
			t.Errorf("handled %q", id)
		}
	case <-time.After(10 * time.Second):
		t.Error("the gate's own handler saw nothing")
	}
	if err := c.Stop(ctx); err != nil {
		t.Error(err)
	}
	select {
	case err := <-g.refuse:
		t.Errorf("the gate was refused: %v", err)
	default:
	}
}

// Who may only read opens a bus where nothing is yet, and makes nothing there.
func TestReadOnlyBus(t *testing.T) {
	srv := natstest.Start(t)
	bus, err := events.Open(t.Context(), events.Config{Conn: srv.Connect(), Judge: events.AllowAll(), ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	for d, err := range bus.Replay(t.Context(), events.Subscription{}) {
		t.Errorf("%v, %v", d, err)
	}
	ev, err := events.New(events.TypeRunStarted, "/test", "p/r", "r", time.Now(), events.RunStarted{Pipeline: "p", Run: "p/r"})
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Publish(t.Context(), ev); !errors.Is(err, events.ErrConfig) {
		t.Errorf("published: %v", err)
	}
	if err := bus.Close(t.Context()); err != nil {
		t.Error(err)
	}
	js, err := jetstream.New(srv.Connect())
	if err != nil {
		t.Fatal(err)
	}
	for s := range js.StreamNames(t.Context()).Name() {
		t.Errorf("it made the stream %s", s)
	}
}
