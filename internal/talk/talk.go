// Package talk starts programs that tests speak with over their standard input
// and output.
package talk

import (
	"io"
	"os"
	"os/exec"
	"testing"
)

// Start starts cmd and returns its standard input and output. Its standard error
// is the test's. The caller ends it and waits for it.
func Start(t testing.TB, cmd *exec.Cmd) (in io.WriteCloser, out io.ReadCloser) {
	t.Helper()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if out, err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return in, out
}
