package workflows_test

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/workflows"
)

// The histories in testdata/histories were recorded from the real server by
//
//	go test ./cmd/internal/workflowstest -run TestHistoriesReplay -update
//
// A change to a workflow that fails here would break runs that are under way
// when it is rolled out: guard it with workflow.GetVersion and record again
// beside the old, not over it. Those that end in -v1 are of versions before such a
// guard.
func TestReplay(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "histories", "*.json"))
	if err != nil || len(files) < 4 {
		t.Fatalf("histories: %q, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			r := worker.NewWorkflowReplayer()
			workflows.RegisterWorkflows(r)
			if err := r.ReplayWorkflowHistoryFromJSONFile(workflows.Logger(slog.New(slog.DiscardHandler)), file); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestReplayFindsAReorderedWorkflow(t *testing.T) {
	r := worker.NewWorkflowReplayer()
	r.RegisterWorkflowWithOptions(workflows.RunPipelineReordered, workflow.RegisterOptions{Name: workflows.PipelineWorkflow})
	err := r.ReplayWorkflowHistoryFromJSONFile(workflows.Logger(slog.New(slog.DiscardHandler)), filepath.Join("testdata", "histories", "run-completed.json"))
	// TMPRL1100 is how the SDK marks non-determinism.
	if err == nil || !strings.Contains(err.Error(), "TMPRL1100") {
		t.Errorf("a reordered workflow replays: %v", err)
	}
}
