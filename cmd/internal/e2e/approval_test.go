package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	fourEyes = `
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: four-eyes}
spec:
  match: {types: [model.promotion.requested]}
  rules:
    - name: people
      expression: "false"
      message: goes into service
      action: requireApproval
      approval: {roles: [release], quorum: 1, expires: 1h}
`
	actors = `
apiVersion: stokehold.dev/v1
kind: Actors
actors:
  - {name: ann, roles: [release]}
  - {name: bob, roles: [release]}
  - {name: cem, roles: [viewer]}
`
)

// A promotion that needs people waits through kill -9 and is made once they have
// approved it; the one they reject is kept as refused.
func TestApprovalsByCommandLine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	policy, people := filepath.Join(dir, "four-eyes.yaml"), filepath.Join(dir, "actors.yaml")
	for path, text := range map[string]string{policy: fourEyes, people: actors} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dev := func() *process {
		p := spawn(t, "dev", "--free-ports", "--state", state, "--policy", policy, "--actors", people)
		p.waitLine("Ctrl-C stops it")
		return p
	}
	as := func(who string, args ...string) []string {
		return append(args, "--policy", policy, "--actors", people, "--actor", who)
	}
	pending := func(p *process) string {
		t.Helper()
		var list []struct{ ID, Type, Requester, Run string }
		p.waitUntil("a request for approval", func() bool {
			if err := json.Unmarshal([]byte(ask(t, state, as("bob", "approvals", "-o", "json")...)), &list); err != nil {
				t.Fatal(err)
			}
			return len(list) == 1
		})
		if list[0].Type != "model.promotion.requested" || list[0].Requester != "ann" {
			t.Errorf("asked %+v", list[0])
		}
		return list[0].ID
	}
	p := dev()
	ask(t, state, as("ann", "run", "flights-train", "--param", "week=6", "--key", "one")...)
	id := pending(p)
	vote := func(who, how string) []string {
		return append(as(who, how, id[:10], "--reason", "looked at it"), "--state", state)
	}
	failing(t, 1, "the requester cannot decide", vote("ann", "approve")...)
	failing(t, 1, "not allowed to decide release viewer", vote("cem", "approve")...)
	failing(t, 1, "not allowed to decide nobody", vote("eve", "approve")...)
	p.kill()
	p = dev()
	if out := ask(t, state, as("bob", "approve", id[:10], "--reason", "looked at it")...); !strings.Contains(out, "approved model.promotion.requested") {
		t.Errorf("said %q", out)
	}
	p.waitUntil("the promotion", func() bool { return strings.Contains(ask(t, state, "events", "--type", "model.promoted"), "champion") })
	failing(t, 1, "the request is decided approved bob", vote("ann", "reject")...)

	ask(t, state, as("ann", "run", "flights-train", "--param", "week=7", "--key", "two")...)
	id = pending(p)
	ask(t, state, as("bob", "reject", id, "--reason", "not this week")...)
	p.waitUntil("the refusal", func() bool {
		return strings.Contains(ask(t, state, "events", "--type", "model.refused", "--json"), "rejected by bob: not this week")
	})
	if out := ask(t, state, as("bob", "approvals", "--all")...); !strings.Contains(out, "rejected") || !strings.Contains(out, "approved") {
		t.Errorf("all:\n%s", out)
	}
}
