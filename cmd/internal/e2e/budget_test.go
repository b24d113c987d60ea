package e2e_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

// A training that reaches its budget waits, through kill -9, and comes to its model
// after a raise on the command line.
func TestBudgetByCommandLine(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	dev := func() *process {
		p := spawn(t, "dev", "--free-ports", "--state", state)
		p.waitLine("Ctrl-C stops it")
		return p
	}
	p := dev()
	if out := ask(t, state, "budget", "set", "run/*", "--seconds", "cpu=0.2", "--reason", "a small one", "--actor", "ann"); !strings.Contains(out, "run/* per run: 0.2 seconds of cpu, was no limit") {
		t.Errorf("said %q", out)
	}
	ask(t, state, "run", "flights-train", "--param", "week=6", "--key", "one")
	p.waitUntil("the exhausted budget", func() bool {
		return strings.Contains(ask(t, state, "events", "--type", "budget.exhausted"), "flights-train/one")
	})
	type balance struct {
		Scope, Resource    string
		Spent, Limit, Left float64
	}
	spent := func() balance {
		t.Helper()
		var list []balance
		if err := json.Unmarshal([]byte(ask(t, state, "budget", "ls", "-o", "json")), &list); err != nil {
			t.Fatal(err)
		}
		if len(list) != 1 || list[0].Scope != "run/flights-train/one" || list[0].Resource != "seconds:cpu" {
			t.Fatalf("%+v", list)
		}
		return list[0]
	}
	if b := spent(); b.Spent < 0.2 || b.Limit != 0.2 {
		t.Errorf("when it waits: %+v", b)
	}
	p.kill()
	p = dev()
	if out := ask(t, state, "events", "--type", "run.completed"); strings.Contains(out, "flights-train/one") {
		t.Errorf("it is over without a raise:\n%s", out)
	}
	failing(t, 2, "--reason is missing", "budget", "raise", "run/*", "--seconds", "cpu=100", "--state", state)
	ask(t, state, "budget", "raise", "run/*", "--seconds", "cpu=1000", "--reason", "it is worth it", "--actor", "bob")
	p.waitUntil("the run's end", func() bool {
		return strings.Contains(ask(t, state, "events", "--type", "run.completed"), "flights-train/one")
	})
	if out := ask(t, state, "events", "--type", "model.registered"); !strings.Contains(out, "flights-train/one") {
		t.Errorf("no model:\n%s", out)
	}
	if b := spent(); b.Spent <= 0.2 || b.Limit != 1000.2 {
		t.Errorf("in the end: %+v", b)
	}
	if out := ask(t, state, "budget", "history"); !strings.Contains(out, "it is worth it") || !strings.Contains(out, "bob") {
		t.Errorf("history:\n%s", out)
	}
}
