package pythontest_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/internal/pythontest"
)

func TestInterpreterHasPyarrow(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), pythontest.Interpreter(t), "-c", "import pyarrow; print(pyarrow.__name__)").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "pyarrow" {
		t.Errorf("%v: %s", err, out)
	}
}

func TestSourceHoldsThePackage(t *testing.T) {
	if _, err := os.Stat(filepath.Join(pythontest.Source(t), "stokehold", "py.typed")); err != nil {
		t.Error(err)
	}
	if err := pythontest.Touch(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestNamedInterpreterIsTheOnlyOne(t *testing.T) {
	fake := filepath.Join(t.TempDir(), "python")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\necho has no pyarrow >&2; exit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{fake: "has no pyarrow", filepath.Join("no", "such", "python"): "no such file"} {
		t.Setenv(pythontest.InterpreterEnv, name)
		if path, err := pythontest.Find(t.Context()); !errors.Is(err, pythontest.ErrNone) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v", name, path, err)
		}
	}
}

// outcome notes how a test would have ended.
type outcome struct {
	testing.TB
	skipped, failed bool
}

func (o *outcome) Helper()               {}
func (o *outcome) Skipf(string, ...any)  { o.skipped = true }
func (o *outcome) Fatalf(string, ...any) { o.failed = true }

func TestMissingInterpreterSkipsUnlessRequired(t *testing.T) {
	t.Setenv(pythontest.InterpreterEnv, "/nonexistent/python")
	for _, required := range []string{"", "1"} {
		t.Setenv(pythontest.RequireEnv, required)
		o := &outcome{TB: t}
		if got := pythontest.Interpreter(o); got != "" || o.failed != (required != "") || o.skipped != (required == "") {
			t.Errorf("required %q: %q, %+v", required, got, o)
		}
	}
}
