package policy_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/tiers/policy"
)

// A file that turns bad is told of once and leaves the last good policies in force.
func TestFilesKeepTheLastGood(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "p.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const good = "apiVersion: stokehold.dev/v1\nkind: TierPolicy\nmetadata: {name: %}\nspec: {watermarks: {high: 0.9, low: 0.5}}\n"
	named := func(name string) string { return strings.Replace(good, "%", name, 1) }
	write(named("first"))
	var log bytes.Buffer
	f, err := policy.Open(slog.New(slog.NewTextHandler(&log, nil)), nil, dir)
	if err != nil {
		t.Fatal(err)
	}
	inForce := func(want string) {
		t.Helper()
		if w, ok := f.Set().Watermarks(); !ok || w.Policy != want {
			t.Errorf("policy %q is in force, want %q", w.Policy, want)
		}
	}
	inForce("first")
	write(strings.Replace(named("second"), "high", "hihg", 1))
	inForce("first")
	inForce("first")
	if err := f.Err(); !errors.Is(err, governance.ErrPolicy) || !strings.Contains(err.Error(), "hihg") {
		t.Errorf("the fault is %v", err)
	}
	if n := strings.Count(log.String(), "last good ones"); n != 1 {
		t.Errorf("it is logged %d times:\n%s", n, log.String())
	}
	write(named("third"))
	inForce("third")
	if err := f.Err(); err != nil {
		t.Errorf("mended, and still %v", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	inForce("third")
	if f.Err() == nil {
		t.Error("a directory that is gone is no fault")
	}
}

func TestOpenRefusesBadPolicies(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("kind: Policy\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := policy.Open(nil, nil, bad); !errors.Is(err, governance.ErrPolicy) || !strings.Contains(err.Error(), "bad.yaml:1:1") {
		t.Errorf("a bad file: %v", err)
	}
	if _, err := policy.Open(nil, nil, filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}
