package e2e_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// ask runs another command against the stack on state and returns its output.
func ask(t testing.TB, state string, args ...string) string {
	t.Helper()
	p := spawn(t, append(args, "--state", state)...)
	if code := p.wait(patience); code != 0 || p.errors() != "" {
		t.Fatalf("%s: exit code %d: %s%s", strings.Join(args, " "), code, p.output(), p.errors())
	}
	return p.output()
}

func startDev(t testing.TB, state string) *process {
	t.Helper()
	p := spawn(t, "dev", "--free-ports", "--state", state)
	p.waitLine("Ctrl-C stops it")
	for line := range strings.Lines(p.output()) {
		if strings.Contains(line, "is ready in") {
			t.Log(strings.TrimSpace(line))
		}
	}
	return p
}

// What dev keeps is there again after kill -9 and after a clean end.
func TestDevKeepsItsState(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	p := startDev(t, state)
	if out := ask(t, state, "pipelines"); !strings.Contains(out, "flights-train") {
		t.Errorf("pipelines:\n%s", out)
	}
	if out := ask(t, state, "runs"); strings.Contains(out, "flights-train/") {
		t.Errorf("a run before any was started:\n%s", out)
	}
	out := ask(t, state, "run", "flights-train", "--param", "week=6", "--key", "mine", "--wait")
	for _, want := range []string{"flights-train/mine", "schedule", "features", "train", "evaluate", "deploy", "flights/features"} {
		if !strings.Contains(out, want) {
			t.Errorf("the run's outcome lacks %q:\n%s", want, out)
		}
	}
	// What the sources say of their licence, everything made of them says.
	for _, of := range [][]string{{"data", "show", "flights/features"}, {"models", "flights"}, {"events", "--json", "--type", "model.promoted"}} {
		if out := ask(t, state, of...); !strings.Contains(out, "licence:public-domain") {
			t.Errorf("%s lacks the licence:\n%s", strings.Join(of, " "), out)
		}
	}
	look := func() map[string]string {
		seen := map[string]string{}
		for what, format := range map[string]string{"runs": "-o=json", "models": "-o=json", "events": "--json"} {
			seen[what] = ask(t, state, what, format) // tables tell ages
		}
		return seen
	}
	before := look()
	for what, want := range map[string]string{"runs": "flights-train/mine", "models": "champion", "events": "model.promoted"} {
		if !strings.Contains(before[what], want) {
			t.Errorf("%s lacks %q:\n%s", what, want, before[what])
		}
	}
	same := func(when string) {
		t.Helper()
		for what, is := range look() {
			if was := before[what]; is != was {
				t.Errorf("%s, %s says:\n%s\nand said:\n%s", when, what, is, was)
			}
		}
	}
	p.kill()
	p = startDev(t, state)
	same("after kill -9")
	p.signal(syscall.SIGINT)
	if code := p.wait(stopLimit); code != 0 || p.errors() != "" {
		t.Errorf("exit code %d, standard error %q", code, p.errors())
	}
	if left := leftIn(t, state); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	startDev(t, state)
	same("after a clean end")
	// A run of a name that is taken, and one that fails, each in one line.
	failing(t, 1, `flights-train/mine`, "run", "flights-train", "--param", "week=6", "--key", "mine", "--state", state)
	failing(t, 1, `flights-train batches 26`, "run", "flights-train", "--param", "week=99", "--wait", "--state", state)
	failing(t, 1, `no-such`, "run", "no-such", "--state", state)
	var runs []struct{ Status string }
	if err := json.Unmarshal([]byte(ask(t, state, "runs", "-o", "json")), &runs); err != nil || len(runs) != 2 {
		t.Errorf("%v, %v", runs, err)
	}
}

// failing runs a command that must fail with the code and one line on standard
// error that holds every one of the words.
func failing(t testing.TB, code int, words string, args ...string) {
	t.Helper()
	failingWith(t, code, words, nil, args...)
}

// failingWith is failing with more environment.
func failingWith(t testing.TB, code int, words string, env []string, args ...string) {
	t.Helper()
	p := spawnIn(t, "", env, args...)
	got := p.wait(patience)
	line := p.errors()
	t.Logf("exit %d: %s", got, strings.TrimSpace(line))
	if got != code {
		t.Errorf("%s: exit code %d, want %d", strings.Join(args, " "), got, code)
	}
	body := strings.TrimSuffix(line, "\nRun 'stokehold help' for what there is.\n")
	if body = strings.TrimSuffix(body, "\n"); strings.Contains(body, "\n") || !strings.HasPrefix(body, "stokehold: ") || len(body) > 400 {
		t.Errorf("%s: not one readable line: %q", strings.Join(args, " "), line)
	}
	for w := range strings.FieldsSeq(words) {
		if !strings.Contains(line, w) {
			t.Errorf("%s: the line lacks %q: %q", strings.Join(args, " "), w, line)
		}
	}
}
