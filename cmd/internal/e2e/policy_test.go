package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What is applied to a running dev decides there within a second, and it goes on
// deciding after kill -9.
func TestApplyChangesWhatDevDecides(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	write := func(name, subjects string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		text := fmt.Sprintf("apiVersion: stokehold.dev/v1\nkind: Policy\nmetadata: {name: runs}\nspec:\n  match: {types: [run.started], points: [publish]}\n"+
			"  rules: [{name: known, expression: \"!(event.subject in [%s])\", message: this run may not start}]\n", subjects)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	none, second := write("none.yaml", "'none'"), write("second.yaml", "'flights-train/second', 'flights-train/second-again'")
	p := startDev(t, state)
	run := func(key string) []string {
		return []string{"run", "flights-train", "--param", "week=6", "--key", key, "--wait"}
	}
	refused := func(key string) {
		t.Helper()
		q := spawn(t, append(run(key), "--state", state)...)
		if code := q.wait(patience); code != 1 || !strings.Contains(q.errors(), "this run may not start") {
			t.Errorf("run %s: exit code %d:\n%s", key, code, q.errors())
		}
	}
	if out := ask(t, state, "policy", "apply", none); !strings.Contains(out, "applied version 1, signed by local+") {
		t.Errorf("apply:\n%s", out)
	}
	ask(t, state, run("first")...)
	if out := ask(t, state, "policy", "apply", second, "--reason", "no second run"); !strings.Contains(out, "applied version 2") {
		t.Errorf("apply:\n%s", out)
	}
	applied := time.Now()
	refused("second")
	t.Logf("a run was started and refused within %s of the policy", time.Since(applied))
	// What is in the stream would have been decided otherwise by other policies.
	first := write("first.yaml", "'flights-train/first'")
	q := spawn(t, "policy", "replay", "--since", "1h", "--policy", first, "--state", state)
	if code := q.wait(patience); code != 3 || !strings.Contains(q.output(), "allow → deny runs/known: this run may not start") {
		t.Errorf("replay: exit code %d:\n%s%s", code, q.output(), q.errors())
	}
	if out := ask(t, state, "policy", "explain", "--id", "flights-train/first/run.started"); !strings.Contains(out, `event.subject = "flights-train/first"`) {
		t.Errorf("explain:\n%s", out)
	}
	p.kill()
	startDev(t, state)
	refused("second-again")
	if out := ask(t, state, "policy", "history"); !strings.Contains(out, "no second run") {
		t.Errorf("history:\n%s", out)
	}
}
