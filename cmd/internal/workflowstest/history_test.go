package workflowstest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/worker"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/stokehold/stokehold/cmd/internal/workflowstest"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

var update = flag.Bool("update", false, "record the histories that package workflows replays")

var identity = regexp.MustCompile(`"identity": ?"[^"]*"`)

// TestHistoriesReplay makes the histories that package workflows replays in its
// own tests, and replays them as they are made today.
func TestHistoriesReplay(t *testing.T) {
	env := open(t)
	p := workflows.New("recorded", "What a history of everything holds.")
	north := p.Ingest("north", workflowstest.Nothing)
	south := p.Ingest("south", workflowstest.Nothing)
	model := p.Train("train", north, workflowstest.Nothing, workflows.Reads(south))
	p.Evaluate("evaluate", model, south, workflowstest.Nothing)
	p.FineTune("tune", p.Current("recorded", "champion"), north, workflowstest.Nothing)
	p.On(workflows.Trigger{Types: []string{"data.arrived"}, Debounce: 100 * time.Millisecond, Cooldown: time.Hour})
	d, err := p.Build()
	if err != nil {
		t.Fatal(err)
	}
	light := &workflowstest.Light{}
	light.Set("train", func(_ context.Context, a stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		if a.Attempt == 1 {
			return stages.Result{}, errors.New("try again")
		}
		return stages.Result{Model: a.Model, Version: "v1", Metrics: map[string]float64{"auc": 0.7, "logloss": 0.4}}, nil
	})
	light.Set("evaluate", func(_ context.Context, a stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		if a.Cause == "" && string(a.RunParams) != "" {
			return stages.Result{}, stages.Permanent(errors.New("told to fail"))
		}
		return stages.Result{}, nil
	})
	startWorker(t, env, light, d)

	completed := mustStart(t, env, d, workflows.RunInput{Run: "completed"})
	if _, err := completed.Result(t.Context()); err != nil {
		t.Fatal(err)
	}
	failed := mustStart(t, env, d, workflows.RunInput{Run: "failed", Params: []byte(`{"fail":true}`)})
	if _, err := failed.Result(t.Context()); err == nil {
		t.Fatal("the run that was to fail did not")
	}
	for i := range 3 { // the third comes in the cooldown
		e, err := events.New("data.arrived", "/test", "site", fmt.Sprint("arrival-", i), time.Now(), map[string]int{"week": i})
		if err != nil {
			t.Fatal(err)
		}
		if err := env.Bus.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			continue
		}
		eventually(t, "the trigger's decision", func() bool {
			s, err := workflows.TriggerStateOf(t.Context(), env.Client, "recorded", "data.arrived", "")
			return err == nil && s.Received == int64(i+1) && s.Fired == 1 && s.Active == ""
		})
	}
	for name, id := range map[string]string{
		"run-completed": completed.ID, "run-failed": failed.ID, "trigger": workflows.TriggerID("recorded", "data.arrived", ""),
	} {
		replay(t, env, name, id)
	}
	id, err := workflows.StartMigration(t.Context(), env.Client, workflows.Migration{Dataset: "flights/schedule", To: 600}, workflows.StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := workflows.MigrationOutcome(t.Context(), env.Client, id)
	if err != nil || r.Moved != 600 {
		t.Fatalf("migration: %+v, %v", r, err)
	}
	replay(t, env, "migrate-asked", id) // "migrate" is from before migrations were judged as a whole
}

func mustStart(t *testing.T, env *workflowstest.Env, d *workflows.Definition, in workflows.RunInput) *workflows.Run {
	t.Helper()
	run, err := workflows.Start(t.Context(), env.Client, d, in, workflows.StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func replay(t *testing.T, env *workflowstest.Env, name, id string) {
	t.Helper()
	var h historypb.History
	it := env.Client.GetWorkflowHistory(t.Context(), id, "", false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for it.HasNext() {
		e, err := it.Next()
		if err != nil {
			t.Fatal(err)
		}
		h.Events = append(h.Events, e)
	}
	r := worker.NewWorkflowReplayer()
	workflows.RegisterWorkflows(r)
	if err := r.ReplayWorkflowHistory(workflows.Logger(slog.New(slog.DiscardHandler)), &h); err != nil {
		t.Errorf("%s does not replay: %v", name, err)
	}
	if !*update {
		return
	}
	raw, err := protojson.Marshal(&h)
	if err != nil {
		t.Fatal(err)
	}
	// Names of machines and processes are nobody's business.
	raw = identity.ReplaceAll(raw, []byte(`"identity":"worker"`))
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.ReplaceAll(raw, []byte(`"`+host+`:`), []byte(`"worker:`))
	var out bytes.Buffer
	// protojson varies its spaces on purpose.
	if err := json.Indent(&out, raw, "", " "); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("..", "..", "..", "workflows", "testdata", "histories", name+".json")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(out.Bytes(), '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}
