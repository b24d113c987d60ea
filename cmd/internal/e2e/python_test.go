package e2e_test

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stokehold/stokehold/internal/pythontest"
)

// TestDemoWithPythonWorker holds that features made in Python give the models
// that features made in Go do, bit for bit, also when the Python process is
// killed while it works; and that no body byte is copied on the way.
func TestDemoWithPythonWorker(t *testing.T) {
	t.Parallel()
	python := pythontest.Interpreter(t)
	pythontest.Needs(t, python, "numpy")
	want := reference(t)
	for name, disturb := range map[string]func(*process){
		"undisturbed": func(*process) {},
		"killed": func(p *process) {
			var worker int
			if p.waitUntil("a worker process", func() bool { worker = p.worker(); return worker != 0 }) {
				_ = syscall.Kill(worker, syscall.SIGKILL)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			report := filepath.Join(t.TempDir(), "report.json")
			p := spawn(t, demo("", report, "--worker", "python", "--python", python)...)
			disturb(p)
			if code := p.wait(patience); code != 0 || p.errors() != "" {
				t.Fatalf("exit code %d, standard error %q", code, p.errors())
			}
			got := readReport(t, report)
			sameOutcome(t, got, want.result)
			if got.Batches.CopiedBytes != 0 || got.Batches.Leased == 0 {
				t.Errorf("%d bytes copied, %d batches leased", got.Batches.CopiedBytes, got.Batches.Leased)
			}
		})
	}
}
