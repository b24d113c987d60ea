package flights

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/stokehold/stokehold/python"
	"github.com/stokehold/stokehold/stages/worker"
)

//go:embed python/*.py
var pythonFiles embed.FS

// PythonWorker is the name of the worker that makes the features in Python; see
// Stages.FeaturesWorker.
const PythonWorker = "python"

// CheckPython returns an error that says what to do if interpreter cannot run the
// example's Python worker: it needs pyarrow and NumPy.
func CheckPython(ctx context.Context, interpreter string) error {
	out, err := exec.CommandContext(ctx, interpreter, "-c", "import pyarrow, numpy").CombinedOutput()
	if err == nil {
		return nil
	}
	why := err.Error()
	if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); lines[len(lines)-1] != "" {
		why = lines[len(lines)-1]
	}
	return fmt.Errorf("python worker: %s cannot run it: %s: name a Python of version 3.10 or newer that has pyarrow and numpy (python3 -m venv DIR && DIR/bin/pip install pyarrow numpy)", interpreter, why)
}

// NewPythonWorker says how to start the example's features stage in Python. It
// writes the stage and the SDK below dir, which has to stay.
func NewPythonWorker(interpreter, dir string) (worker.Config, error) {
	stage, err := fs.Sub(pythonFiles, "python")
	if err != nil {
		return worker.Config{}, err
	}
	dir = filepath.Join(dir, "python")
	for _, tree := range []fs.FS{python.SDK(), stage} {
		if err := python.Install(dir, tree); err != nil {
			return worker.Config{}, err
		}
	}
	return worker.Config{
		Command: []string{interpreter, filepath.Join(dir, "worker.py")},
		Set:     map[string]string{"PYTHONPATH": dir, "PYTHONDONTWRITEBYTECODE": "1"},
		// Importing pyarrow takes a second, and many on a busy machine.
		StartTimeout: time.Minute,
	}, nil
}
