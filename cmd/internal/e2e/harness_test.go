// Package e2e_test drives the stokehold binary as a person does: by its command
// line, its output, signals and kills.
package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Bounds of the polls below; a loaded machine of two cores keeps well within.
const (
	patience  = 90 * time.Second
	pollEvery = 2 * time.Millisecond
)

// binary is the path of the program under test.
var binary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "stokehold-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "stokehold")
	// Without symbols: half the time to link.
	build := exec.CommandContext(context.Background(), "go", "build", "-ldflags=-s -w", "-o", binary, "../../stokehold")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the program under test:", err)
		return 1
	}
	// The program waits more than it computes: for the disk, for what the dead held.
	flag.Parse()
	if flag.Lookup("test.parallel").Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := flag.Set("test.parallel", strconv.Itoa(runtime.GOMAXPROCS(0)+1)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// process is one run of the program.
type process struct {
	t      testing.TB
	cmd    *exec.Cmd
	began  time.Time
	exited chan struct{} // reaped, and nobody holds its output any more

	mu      sync.Mutex
	lines   []string // of standard output
	changed chan struct{}
	stderr  bytes.Buffer
}

// spawn starts the program in a process group of its own. It is killed at the end
// of the test if it is still there.
func spawn(t testing.TB, args ...string) *process {
	t.Helper()
	return spawnIn(t, "", nil, args...)
}

func spawnIn(t testing.TB, dir string, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, exited: make(chan struct{}), changed: make(chan struct{}), began: time.Now()}
	p.cmd = exec.CommandContext(context.Background(), binary, args...)
	p.cmd.Dir = dir
	p.cmd.Env = append(cleanEnv(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = lockedWriter{&p.mu, &p.stderr}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.read(out)
		_ = p.cmd.Wait() // how it ended is in ProcessState
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s wrote:\n%s\n%s", strings.Join(args, " "), p.output(), p.errors())
		}
	})
	return p
}

// cleanEnv is the environment without what configures stokehold.
func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch prefix, _, _ := strings.Cut(name, "_"); prefix {
		case "STOKEHOLD", "NATS", "TEMPORAL", "S3", "AWS":
		default:
			env = append(env, kv)
		}
	}
	return env
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func (p *process) read(out io.Reader) {
	s := bufio.NewScanner(out)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		p.mu.Lock()
		p.lines = append(p.lines, s.Text())
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n") + "\n"
}

func (p *process) errors() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// waitLine waits until the output holds a line with text.
func (p *process) waitLine(text string) {
	p.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for seen := 0; ; {
		p.mu.Lock()
		lines, changed := p.lines, p.changed
		p.mu.Unlock()
		for ; seen < len(lines); seen++ {
			if strings.Contains(lines[seen], text) {
				return
			}
		}
		select {
		case <-changed:
		case <-p.exited:
			p.t.Fatalf("ended (%v) without saying %q:\n%s%s", p.cmd.ProcessState, text, p.output(), p.errors())
		case <-limit.C:
			p.t.Fatalf("did not say %q within %v:\n%s%s", text, patience, p.output(), p.errors())
		}
	}
}

// waitUntil polls for a condition while the program runs; false: it ended before.
func (p *process) waitUntil(what string, holds func() bool) bool {
	p.t.Helper()
	tick, limit := time.NewTicker(pollEvery), time.NewTimer(patience)
	defer tick.Stop()
	defer limit.Stop()
	for {
		if holds() {
			return true
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return holds()
		case <-limit.C:
			p.t.Fatalf("not within %v: %s\n%s%s", patience, what, p.output(), p.errors())
		}
	}
}

// wait waits for the end and returns the exit code; -1: ended by a signal.
func (p *process) wait(within time.Duration) int {
	p.t.Helper()
	limit := time.NewTimer(within)
	defer limit.Stop()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode()
	case <-limit.C:
		p.t.Fatalf("did not end within %v:\n%s%s", within, p.output(), p.errors())
		return 0
	}
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signal: %v", err)
	}
}

// kill ends the program at once with everything in its group; its worker
// processes, which have groups of their own, must go by themselves.
func (p *process) kill() {
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL) // ESRCH: it is gone
	<-p.exited
}

// children are the processes that pid has started, at the moment.
func children(pid int) []int {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	var out []int
	for _, t := range tasks {
		raw, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		for f := range strings.FieldsSeq(string(raw)) {
			if n, err := strconv.Atoi(f); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// worker is the process id of a worker process of p that has begun to be one;
// 0: there is none.
func (p *process) worker() int {
	for _, c := range children(p.pid()) {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c))
		if err == nil && bytes.Contains(env, []byte("STOKEHOLD_WORKER")) {
			return c
		}
	}
	return 0
}

// alive reports whether a process is there and no zombie.
func alive(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	return rest != "" && rest[0] != 'Z' && rest[0] != 'X'
}

// gone fails the test unless all of pids end soon.
func gone(t testing.TB, pids ...int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for _, pid := range pids {
		for alive(pid) {
			if time.Now().After(deadline) {
				t.Fatalf("process %d is left over", pid)
			}
			<-time.After(pollEvery)
		}
	}
}

// result is what the tests read of a report.
type result struct {
	Seed uint64 `json:"seed"`
	Data struct {
		Rows int64 `json:"rows"`
	} `json:"data"`
	Weeks   []week  `json:"weeks"`
	Models  []model `json:"models"`
	Events  struct{ Published, Judged, Denied int64 }
	Batches struct {
		Published, Leased int64
		BodyBytes         int64 `json:"body_bytes"`
		CopiedBytes       int64 `json:"copied_bytes"`
	}
	Tiers struct {
		Hot, Warm, Cold, Moved int64
		Moves                  []struct {
			To, Reason   string
			Count, Bytes int64
		}
		Reads struct{ Hot, Warm, Cold, Peer int64 }
	}
	Seconds float64
	Peak    int64 `json:"peak_memory_bytes"`
}

type score struct {
	LogLoss *float64 `json:"logloss"`
	AUC     *float64 `json:"auc"`
}

type week struct {
	Week                       int
	Rows                       int64
	Frozen, Loop               score
	Drift, Retrained, Promoted bool
	Reason, Model, Challenger  string
}

type model struct {
	Model, ID, Status, Reason, Parent, Run string
	Champion                               bool
	Bytes                                  int64
	Metrics                                map[string]float64
}

func readReport(t testing.TB, path string) result {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return r
}

// outcome is what must not depend on what happened on the way.
func (r result) outcome(t testing.TB) string {
	t.Helper()
	raw, err := json.MarshalIndent(struct {
		Weeks  []week
		Models []model
		// Stored once, moved once, however often a stage was tried.
		Published, Hot, Warm, Cold int64
	}{r.Weeks, r.Models, r.Batches.Published, r.Tiers.Hot, r.Tiers.Warm, r.Tiers.Cold}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// sameOutcome compares with the undisturbed run.
func sameOutcome(t testing.TB, got, want result) {
	t.Helper()
	g, w := got.outcome(t), want.outcome(t)
	if g == w {
		return
	}
	gl, wl := strings.Split(g, "\n"), strings.Split(w, "\n")
	for i := range max(len(gl), len(wl)) {
		if i >= len(gl) || i >= len(wl) || gl[i] != wl[i] {
			t.Fatalf("differs from the undisturbed run at line %d:\n got %q\nwant %q\n\ngot:\n%s\nwant:\n%s",
				i+1, gl[min(i, len(gl)-1)], wl[min(i, len(wl)-1)], g, w)
		}
	}
}

const liveWeeks = 4

// demo are the arguments of a short demo.
func demo(state, report string, more ...string) []string {
	args := []string{"demo", "--plain", "--weeks", strconv.Itoa(liveWeeks)}
	if state != "" {
		args = append(args, "--state", state)
	}
	if report != "" {
		args = append(args, "--report", report)
	}
	return append(args, more...)
}

// undisturbed is a short demo without disturbance, run once for all tests.
type undisturbed struct {
	result
	raw    []byte // the report
	output string
	took   time.Duration
}

var (
	undisturbedOnce sync.Once
	undisturbedRun  *undisturbed
)

func reference(t testing.TB) undisturbed {
	t.Helper()
	undisturbedOnce.Do(func() {
		report := filepath.Join(t.TempDir(), "report.json")
		p := spawn(t, demo("", report)...)
		if code := p.wait(patience); code != 0 || p.errors() != "" {
			t.Fatalf("exit code %d, standard error %q", code, p.errors())
		}
		raw, err := os.ReadFile(report)
		if err != nil {
			t.Fatal(err)
		}
		undisturbedRun = &undisturbed{readReport(t, report), raw, p.output(), time.Since(p.began)}
	})
	if undisturbedRun == nil {
		t.Fatal("the undisturbed run failed")
	}
	return *undisturbedRun
}
