package approval_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/internal/natstest"
)

// roles runs a server that is configured as an operator would, by a file with the
// blocks that Grants.Config gives, and returns how to connect as one of its users.
func roles(t *testing.T, refused chan<- error, users map[string]events.Access) func(name string) *nats.Conn {
	t.Helper()
	var file strings.Builder
	inbox := map[string]string{}
	for name, a := range users {
		g, err := events.Permissions(a)
		if err != nil {
			t.Fatal(err)
		}
		inbox[name] = g.Inbox
		fmt.Fprintf(&file, "{user: %q, password: x, %s}\n", name, g.Config())
	}
	srv := natstest.Start(t, natstest.Users(t, file.String()))
	return func(name string) *nats.Conn {
		return srv.Connect(nats.UserInfo(name, "x"), nats.CustomInboxPrefix(inbox[name]), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				refused <- err
			}
		}))
	}
}

// An approver votes as itself and as nobody else, decides nothing, and writes no
// event, also not by having the server deliver one.
func TestApproverMayVoteAndNothingElse(t *testing.T) {
	refused := make(chan error, 64)
	as := roles(t, refused, map[string]events.Access{
		"deployment": {Role: events.RoleGate}, "bob": {Role: events.RoleApprover, Actor: "bob"}, "cem": {Role: events.RoleApprover, Actor: "cem"},
	})
	who := directory(t)
	gate := as("deployment")
	bus, err := events.Open(t.Context(), events.Config{Conn: gate, Judge: events.AllowAll()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bus.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	co := &approval.Coordinator{Bus: bus}
	if co.Store, err = approval.Open(t.Context(), approval.Config{Conn: gate, Directory: who}); err != nil {
		t.Fatal(err)
	}
	need := events.ApprovalNeed{ID: strings.Repeat("ab", 20), Roles: []string{"release"}, Quorum: 2, Expires: time.Hour, EventID: "e", Type: events.TypeRunStarted}
	if _, err := co.Request(t.Context(), need, ""); err != nil {
		t.Fatal(err)
	}
	bob := as("bob")
	mine, err := approval.Open(t.Context(), approval.Config{Conn: bob, Directory: who})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := mine.List(t.Context(), true); err != nil || len(list) != 1 || list[0].ID != need.ID {
		t.Errorf("bob reads %v, %v", list, err)
	}
	if st, err := mine.Vote(t.Context(), need.ID[:8], "bob", true, "measured"); err != nil || len(st.Outcome.Votes) != 1 {
		t.Errorf("bob votes: %+v, %v", st, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := mine.Vote(ctx, need.ID, "cem", true, "as another"); !errors.Is(err, approval.ErrUnavailable) {
		t.Errorf("bob votes as cem: %v", err)
	}
	<-refused
	forged, err := json.Marshal(jetstream.ConsumerConfig{DeliverSubject: "stokehold.event.run.started.run-1", FilterSubject: "$KV.stokehold_approvals.vote.*.bob"})
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{
		"$KV.stokehold_approvals.outcome." + need.ID, "$KV.stokehold_approvals.request." + need.ID, "$KV.stokehold_approvals.vote." + need.ID + ".cem",
		"stokehold.event.run.started.run-1", "stokehold.decision.allow", "stokehold.held.x", "$KV.stokehold_policies.default",
		"$JS.API.CONSUMER.CREATE.KV_stokehold_approvals.mine", "$JS.API.CONSUMER.CREATE.STOKEHOLD_EVENTS.mine",
		"$JS.API.STREAM.PURGE.KV_stokehold_approvals", "$JS.API.STREAM.MSG.DELETE.KV_stokehold_approvals", "$JS.API.STREAM.MSG.GET.STOKEHOLD_EVENTS",
	} {
		if err := bob.Publish(subject, forged); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-refused:
			if !strings.Contains(err.Error(), subject) {
				t.Errorf("refused, but for %v; want %s", err, subject)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("bob may publish to %s", subject)
		}
	}
	for _, subject := range []string{"_INBOX_approver_cem.>", "_INBOX_gate.>", "stokehold.>"} {
		if _, err := bob.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
		select {
		case <-refused:
		case <-time.After(10 * time.Second):
			t.Errorf("bob may listen to %s", subject)
		}
	}
	theirs, err := approval.Open(t.Context(), approval.Config{Conn: as("cem"), Directory: who})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := theirs.Vote(t.Context(), need.ID, "cem", true, "measured too"); err != nil || st.Outcome.State != approval.Approved {
		t.Errorf("cem votes: %+v, %v", st, err)
	}
	if st, err := co.Settle(t.Context(), need.ID); err != nil || !st.Outcome.Sealed || len(st.Outcome.Votes) != 2 {
		t.Errorf("settled %+v, %v", st, err)
	}
	if len(refused) > 0 {
		t.Errorf("refused too much: %v", <-refused)
	}
}
