package devstack_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.temporal.io/api/workflowservice/v1"

	"github.com/stokehold/stokehold/cmd/devstack"
	"github.com/stokehold/stokehold/cmd/internal/stacktest"
)

// childDir makes the test binary a development stack on that directory instead.
const childDir = "STOKEHOLD_DEVSTACK_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		runChild(dir)
		return
	}
	os.Exit(m.Run())
}

// report is what the child says once it is ready.
type report struct {
	Startup  time.Duration
	RSSBytes int64
}

func runChild(dir string) {
	s, err := devstack.Start(context.Background(), devstack.Options{Dir: dir, FreePorts: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(report{s.StartupTime(), residentBytes()}); err != nil {
		os.Exit(1)
	}
	select {} // until it is killed
}

func residentBytes() int64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var total, resident int64
	if _, err := fmt.Sscan(string(data), &total, &resident); err != nil {
		return 0
	}
	return resident * int64(os.Getpagesize())
}

func startChild(t *testing.T, dir string) (*exec.Cmd, devstack.Endpoints) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("the child said nothing: %v", err)
	}
	var r report
	if err := json.Unmarshal(line, &r); err != nil {
		// A server that prints to standard output would show here.
		t.Fatalf("the child said %q: %v", line, err)
	}
	t.Logf("ready in %v, resident %d MiB", r.Startup.Round(time.Millisecond), r.RSSBytes>>20)
	e, err := devstack.Discover(dir)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, e
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
}

// TestStackSurvivesKill kills a stack twice with SIGKILL right after its acknowledgements, and finds everything
// acknowledged in the next ones: in a process of its own, then in this one.
func TestStackSurvivesKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	child, e := startChild(t, dir)
	writeAll(t, e)
	kill(t, child)
	if _, err := devstack.Discover(dir); err == nil {
		t.Fatal("a killed stack still seems to run")
	}

	child, again := startChild(t, dir)
	if again.NATSPassword != e.NATSPassword || again.S3AccessKey != e.S3AccessKey {
		t.Error("the credentials changed")
	}
	readAll(t, again)
	kill(t, child)

	s := stacktest.Start(t, stacktest.In(dir))
	readAll(t, s.Endpoints())
	c := temporalClient(t, s.Endpoints())
	eventually(t, "finding the workflow by its search attributes", func() bool {
		got, err := c.ListWorkflow(t.Context(), &workflowservice.ListWorkflowExecutionsRequest{
			Query: fmt.Sprintf("StokeholdRun = '%s' AND StokeholdBatches = 7", kept),
		})
		return err == nil && len(got.GetExecutions()) == 1
	})
}
