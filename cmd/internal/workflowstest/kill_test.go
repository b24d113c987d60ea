package workflowstest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/cmd/internal/workflowstest"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

// childEnv makes the test binary a worker process: "TEMPORAL NATS USER PASSWORD
// [training]".
const childEnv = "STOKEHOLD_TEST_WORKER"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		if err := child(strings.Fields(spec)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func counting() (*workflows.Definition, error) {
	p := workflows.New("counting", "Counts to a hundred.")
	p.Ingest("count", workflowstest.Nothing)
	return p.Build()
}

// child hosts a stage that reports progress up to 40 and then never ends.
func child(spec []string) error {
	ctx := context.Background()
	conn, err := nats.Connect(spec[1], nats.UserInfo(spec[2], spec[3]))
	if err != nil {
		return err
	}
	bus, err := events.Open(ctx, events.Config{Conn: conn, Judge: events.AllowAll()})
	if err != nil {
		return err
	}
	c, err := workflows.Dial(ctx, workflows.DialConfig{Address: spec[0], Namespace: "default"})
	if err != nil {
		return err
	}
	if len(spec) > 4 {
		return trainer(ctx, conn, bus, c)
	}
	d, err := counting()
	if err != nil {
		return err
	}
	light := &workflowstest.Light{}
	light.Set("count", func(ctx context.Context, _ stages.Assignment, h stages.Hooks) (stages.Result, error) {
		h.Report(stages.Progress{Done: 40, Checkpoint: []byte(`{"counted":40}`)})
		<-ctx.Done()
		return stages.Result{}, ctx.Err()
	})
	w, err := workflows.NewWorker(workflows.WorkerConfig{
		Client: c, Bus: bus, Pipelines: []*workflows.Definition{d}, Executor: light, Aliases: workflowstest.NoAliases{},
	})
	if err != nil {
		return err
	}
	if err := w.Start(ctx); err != nil {
		return err
	}
	fmt.Println("working")
	select {}
}

// startChild starts a worker process, and returns it and what it says after that
// it works.
func startChild(t *testing.T, env *workflowstest.Env, more ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	at := env.Stack.Endpoints()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	spec := append([]string{at.TemporalAddress, at.NATSURL, at.NATSUser, string(at.NATSPassword)}, more...)
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(spec, " "))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(out)
	if line, err := said.ReadString('\n'); err != nil {
		t.Fatalf("the worker said %q: %v", line, err)
	}
	return cmd, said
}

// A worker that dies of kill -9 in the middle of a stage is replaced: the stage
// runs again within the heartbeat timeout and goes on from its checkpoint.
func TestKilledWorkerResumes(t *testing.T) {
	env := open(t)
	d, err := counting()
	if err != nil {
		t.Fatal(err)
	}
	cmd, _ := startChild(t, env)
	run, err := workflows.Start(t.Context(), env.Client, d, workflows.RunInput{Run: "r1"}, workflows.StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the progress in the heartbeat", func() bool {
		info, err := run.Describe(t.Context())
		return err == nil && len(info.Active) == 1 && info.Active[0].Progress.Done == 40 && info.Active[0].Stage == "count"
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // says only that it was killed
	killed := time.Now()

	light := &workflowstest.Light{}
	light.Set("count", func(_ context.Context, a stages.Assignment, h stages.Hooks) (stages.Result, error) {
		return stages.Result{Rows: 100 - h.Previous.Done, Metrics: map[string]float64{"attempt": float64(a.Attempt)}, Notes: map[string]string{"from": string(h.Previous.Checkpoint)}}, nil
	})
	startWorker(t, env, light, d)
	res, err := run.Result(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, _ := res.Stage("count")
	if got.Rows != 60 || got.Metrics["attempt"] != 2 || got.Notes["from"] != `{"counted":40}` {
		t.Errorf("the second attempt gave %+v", got)
	}
	t.Logf("resumed and done %v after the kill", time.Since(killed).Round(time.Millisecond))
}

// Stopping a worker hands its stages over at once, with their progress.
func TestStoppedWorkerHandsOver(t *testing.T) {
	env := open(t)
	d, err := counting()
	if err != nil {
		t.Fatal(err)
	}
	first, second := &workflowstest.Light{}, &workflowstest.Light{}
	working := make(chan struct{})
	first.Set("count", func(ctx context.Context, _ stages.Assignment, h stages.Hooks) (stages.Result, error) {
		h.Report(stages.Progress{Done: 40})
		close(working)
		<-ctx.Done()
		return stages.Result{}, ctx.Err()
	})
	second.Set("count", func(_ context.Context, _ stages.Assignment, h stages.Hooks) (stages.Result, error) {
		return stages.Result{Rows: 100 - h.Previous.Done}, nil
	})
	w := startWorker(t, env, first, d)
	run, err := workflows.Start(t.Context(), env.Client, d, workflows.RunInput{Run: "r1"}, workflows.StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	<-working
	stop(t, w)
	stop(t, w) // repeatable
	if err := w.Start(t.Context()); !errors.Is(err, workflows.ErrStopped) {
		t.Errorf("starting a stopped worker: %v", err)
	}
	startWorker(t, env, second, d)
	res, err := run.Result(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := res.Stage("count"); got.Rows != 60 {
		t.Errorf("the second worker gave %+v", got)
	}
}

// A failing stage stops the others, which are told so while they work.
func TestFailureStopsTheOthers(t *testing.T) {
	env := open(t)
	d := twoStages(t)
	light := &workflowstest.Light{}
	working, stopped := make(chan struct{}), make(chan error, 1)
	light.Set("rows", func(context.Context, stages.Assignment, stages.Hooks) (stages.Result, error) {
		<-working
		return stages.Result{}, stages.Permanent(errors.New("no such file"))
	})
	light.Set("doubled", func(ctx context.Context, _ stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		close(working)
		<-ctx.Done()
		stopped <- context.Cause(ctx)
		return stages.Result{}, ctx.Err()
	})
	startWorker(t, env, light, d)
	run, err := workflows.Start(t.Context(), env.Client, d, workflows.RunInput{Run: "r1"}, workflows.StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = run.Result(t.Context())
	var failed *workflows.RunError
	if !errors.As(err, &failed) || failed.Stage != "rows" || failed.Reason != "no such file" || failed.Attempts != 1 {
		t.Errorf("the run ended with %v", err)
	}
	if cause := <-stopped; cause == nil {
		t.Error("the other stage was not told why it stops")
	}
	found := 0
	eventually(t, "the run in the list", func() bool {
		found = 0
		for info, err := range workflows.Runs(t.Context(), env.Client, "StokeholdPipeline = 'two-stages' AND ExecutionStatus = 'Failed'") {
			if err != nil {
				t.Fatal(err)
			}
			if info.ID == "two-stages/r1" && info.Status == "failed" {
				found++
			}
		}
		return found == 1
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
