// Package golden compares what a test got with a file in its testdata.
// `go test PACKAGE -update` rewrites the files; look at the difference before
// you commit it.
package golden

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
)

//nolint:gochecknoglobals // flags of a test binary are declared before it parses them
var update = flag.Bool("update", false, "rewrite the golden files")

// Compare fails the test if got is not what testdata/name holds.
func Compare(t testing.TB, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update and look at the difference); got:\n%s", path, got)
	}
}
