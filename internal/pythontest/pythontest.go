// Package pythontest finds a Python interpreter for tests that run Python code.
// On a machine without one those tests are skipped and say so, unless
// $STOKEHOLD_REQUIRE_PYTHON is set, which turns the skip into a failure.
package pythontest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	// InterpreterEnv is the variable that names an interpreter, absolute or relative to the repository's
	// root. Where it is set, no other is looked for.
	InterpreterEnv = "STOKEHOLD_PYTHON"
	// RequireEnv is the variable that, if not empty, makes a missing interpreter a
	// failure.
	RequireEnv = "STOKEHOLD_REQUIRE_PYTHON"
)

// ErrNone means: no interpreter that has pyarrow was found.
var ErrNone = errors.New("no Python with pyarrow: create one with `task python:venv`, or name one in $" + InterpreterEnv)

// probeTimeout bounds how long one interpreter may take to answer.
const probeTimeout = 30 * time.Second

// probe asks for the version rather than imports the library, which would cost
// each test a few hundred milliseconds.
const probe = `import sys, importlib.metadata as m
if sys.version_info < (3, 10): sys.exit("Python %d.%d is older than 3.10" % sys.version_info[:2])
try: print(m.version("pyarrow"))
except m.PackageNotFoundError: sys.exit("has no pyarrow")`

// Interpreter returns the path of a Python that has pyarrow: the one that
// $STOKEHOLD_PYTHON names, else .venv/bin/python in the repository, else python3
// from the path. Without one the test is skipped, or fails if
// $STOKEHOLD_REQUIRE_PYTHON is set.
func Interpreter(tb testing.TB) string {
	tb.Helper()
	path, err := Find(tb.Context())
	switch {
	case err == nil:
		return path
	case os.Getenv(RequireEnv) != "":
		tb.Fatalf("pythontest: $%s is set: %v", RequireEnv, err)
	default:
		tb.Skipf("pythontest: SKIPPED, this test proves nothing here: %v", err)
	}
	return ""
}

// Needs skips the test if the interpreter lacks a module, or fails it if
// $STOKEHOLD_REQUIRE_PYTHON is set.
func Needs(tb testing.TB, interpreter, module string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), probeTimeout)
	defer cancel()
	// Found, not imported: that would cost each test the time that it takes.
	find := "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
	err := exec.CommandContext(ctx, interpreter, "-c", find, module).Run()
	switch {
	case err == nil:
	case os.Getenv(RequireEnv) != "":
		tb.Fatalf("pythontest: $%s is set, and %s has no %s: %v", RequireEnv, interpreter, module, err)
	default:
		tb.Skipf("pythontest: SKIPPED, this test proves nothing here: %s has no %s: `task python:venv`", interpreter, module)
	}
}

// Source returns the directory that holds the package stokehold, for PYTHONPATH:
// an interpreter that only has pyarrow then runs the code of this checkout. It
// reads the files there: go test then takes no result from its cache that came of
// others.
func Source(tb testing.TB) string {
	tb.Helper()
	root, err := repository()
	if err != nil {
		tb.Fatalf("pythontest: %v", err)
	}
	dir := filepath.Join(root, "python", "src")
	if err := Touch(dir); err != nil {
		tb.Fatalf("pythontest: %v", err)
	}
	return dir
}

// Touch reads the Python files in dir and below, as Source does.
func Touch(dir string) error {
	return fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".py" || d.IsDir() {
			return err
		}
		f, err := os.Open(filepath.Join(dir, path))
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// Find looks for an interpreter as Interpreter does. The error wraps ErrNone and
// says what was wrong with each candidate.
func Find(ctx context.Context) (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	candidates := []string{filepath.Join(root, ".venv", "bin", "python"), "python3"}
	if named := os.Getenv(InterpreterEnv); named != "" {
		if strings.ContainsRune(named, filepath.Separator) && !filepath.IsAbs(named) {
			named = filepath.Join(root, named)
		}
		candidates = []string{named}
	}
	faults := []error{ErrNone}
	for _, c := range candidates {
		path, err := exec.LookPath(c)
		if err == nil {
			err = answers(ctx, path)
		}
		if err == nil {
			return path, nil
		}
		faults = append(faults, fmt.Errorf("%s: %w", c, err))
	}
	return "", errors.Join(faults...)
}

func answers(ctx context.Context, interpreter string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, interpreter, "-c", probe).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// repository is the directory of go.work, at or above the working directory: a
// test runs in the directory of its package.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "go.work")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no go.work at or above %s", dir)
		}
	}
}
