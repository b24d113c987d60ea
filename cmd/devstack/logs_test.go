package devstack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLogIsBounded is internal since the real limit takes long to reach.
func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	l, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	l.limit = 100
	line := strings.Repeat("x", 39) + "\n"
	for range 25 {
		if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("Write gives %d, %v", n, err)
		}
	}
	for _, p := range []string{path, path + ".1"} {
		info, err := os.Stat(p)
		if err != nil || info.Size() == 0 || info.Size() > 100 {
			t.Errorf("%s: %v, %v; want 1 to 100 bytes", p, info.Size(), err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
		t.Errorf("Write after Close gives %d, %v; a server must not notice", n, err)
	}
}
