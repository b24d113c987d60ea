package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stopLimit is how long an interrupted program may take to end.
const stopLimit = 10 * time.Second

// leftIn lists what is there of a stopped stack that should not be: what tells of
// a running one, sockets, and files of another kind than data.
func leftIn(t testing.TB, dir string) []string {
	t.Helper()
	var left []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == "endpoints.json" || !d.IsDir() && !d.Type().IsRegular() {
			left = append(left, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return left
}

func sharedMemory(t testing.TB) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	entries, err := os.ReadDir("/dev/shm")
	if err != nil {
		return found // there is no such place here
	}
	for _, e := range entries {
		found[e.Name()] = true
	}
	return found
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"the servers start", "the stack is up", "the worker process is there", "the first training", "a retraining", "a migration"} {
		m := named(t, name)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tmp, before := t.TempDir(), sharedMemory(t)
			// Without --state: what is made lies in TMPDIR.
			p := spawnIn(t, "", []string{"TMPDIR=" + tmp}, demo("", "")...)
			state := func() string {
				if found, _ := filepath.Glob(filepath.Join(tmp, "stokehold-demo-*")); len(found) == 1 {
					return found[0]
				}
				return filepath.Join(tmp, "none-yet")
			}
			if !p.waitUntil(m.name, func() bool { return m.holds(p, state()) }) {
				t.Fatalf("ended before: %s%s", p.output(), p.errors())
			}
			workers := children(p.pid())
			began := time.Now()
			p.signal(syscall.SIGINT)
			code := p.wait(stopLimit)
			took := time.Since(began)
			if code != 130 {
				t.Errorf("exit code %d, want 130", code)
			}
			if p.errors() != "stokehold: interrupted\n" {
				t.Errorf("standard error %q", p.errors())
			}
			gone(t, workers...)
			if err := syscall.Kill(-p.pid(), 0); err == nil {
				t.Error("its process group still has members")
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
				t.Errorf("left in TMPDIR: %v %v", left, err)
			}
			for name := range sharedMemory(t) {
				if !before[name] && strings.Contains(name, "stokehold") {
					t.Errorf("left in /dev/shm: %s", name)
				}
			}
			t.Logf("ended in %v", took.Round(time.Millisecond))
		})
	}
}

// A state directory that was named is kept, and an interrupted demo goes on there.
func TestInterruptedDemoGoesOn(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	p := spawn(t, demo(state, "")...)
	p.waitLine("promoted flights")
	p.signal(syscall.SIGTERM)
	if code := p.wait(stopLimit); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	if left := leftIn(t, state); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	t.Logf("then finished in %v", finish(t, state))
}

func TestSecondInterruptEndsAtOnce(t *testing.T) {
	t.Parallel()
	p := spawn(t, demo(filepath.Join(t.TempDir(), "state"), "")...)
	p.waitLine("of flights-train started")
	workers := children(p.pid())
	p.signal(syscall.SIGINT)
	p.waitLine("stopping")
	p.signal(syscall.SIGINT)
	began := time.Now()
	if code := p.wait(stopLimit); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	gone(t, workers...)
	t.Logf("ended in %v: %q", time.Since(began), p.errors())
}

// With --keep the stack stays, other processes find it, and Ctrl-C is then a
// success.
func TestKeep(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	p := spawn(t, demo(state, "", "--weeks", "1", "--keep")...)
	p.waitLine("stays up until Ctrl-C")
	if out := ask(t, state, "models"); !strings.Contains(out, "CHAMPION") {
		t.Errorf("models:\n%s", out)
	}
	p.signal(syscall.SIGINT)
	if code := p.wait(stopLimit); code != 0 || p.errors() != "" {
		t.Errorf("exit code %d, standard error %q", code, p.errors())
	}
	if left := leftIn(t, state); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
