package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	runIfChild()
	os.Exit(m.Run())
}

// TestGoCases measures each case without Python once, and reads the JSON.
func TestGoCases(t *testing.T) {
	out := filepath.Join(t.TempDir(), ".bench", "arrowio.json")
	if err := run(t.Context(), []string{"-go", "-rounds", "1", "-seconds", "0.001", "-sizes", "1KiB", "-skip", "build on;build and", "-o", out}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var rows []map[string]any
	if err := json.Unmarshal(raw, &rows); err != nil {
		t.Fatal(err)
	}
	measured := map[string]bool{}
	for _, r := range rows {
		for _, key := range []string{"case", "size_bytes", "p50_us", "p99_us", "bytes_per_s", "against", "baseline", "ratio"} {
			if _, ok := r[key]; !ok {
				t.Errorf("%v has no %s", r, key)
			}
		}
		name, _ := r["case"].(string)
		if p50, _ := r["p50_us"].(float64); p50 <= 0 {
			t.Errorf("%s: not measured: %v", name, r["note"])
		}
		if r["size_bytes"] == 1024.0 && r["against"] == streamGo {
			if x, _ := r["ratio"].(float64); x <= 0 {
				t.Errorf("%s has no ratio: %v", name, r["note"])
			}
		}
		measured[name] = true
	}
	for _, name := range []string{workerGo, workerGoCopied, workerGoLook, peersGo, goSealed, goShared, streamGo, flightGo, flightGoCalls} {
		if !measured[name] {
			t.Errorf("%q is missing", name)
		}
	}
}

func TestACaseThatDoesNotStartIsNamed(t *testing.T) {
	out := filepath.Join(t.TempDir(), "arrowio.json")
	if err := run(t.Context(), []string{"-python", filepath.Join(t.TempDir(), "none"), "-only", "=" + rayCase, "-rounds", "1", "-sizes", "1KiB", "-o", out}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	if err := json.Unmarshal(raw, &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 || rows[0].Case != rayCase || !strings.Contains(rows[0].Note, "task bench:arrowio:setup") {
		t.Errorf("%+v", rows)
	}
}

func TestItEndsWhenItIsTold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, []string{"-go", "-only", "=" + workerGo, "-sizes", "1KiB", "-o", filepath.Join(t.TempDir(), "x.json")}); err == nil {
		t.Error("it measured")
	}
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]int64{"1KiB": 1 << 10, "64KiB": 64 << 10, "256MiB": 256 << 20, "1GiB": 1 << 30, "4096": 4096} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "KiB", "0KiB", "-1KiB", "2GiB", "1000", "9223372036854775807KiB", "1 KiB"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q: %d", s, got)
		}
	}
}

func TestQuantiles(t *testing.T) {
	r := result{rounds: [][]time.Duration{{3e3, 1e3, 2e3}, {5e3, 4e3, 6e3}, {900e3, 7e3, 8e3}}}
	if p50, p99 := r.p50(), r.p99(); p50 != 5 || p99 != 900 {
		t.Errorf("p50 %g, p99 %g", p50, p99)
	}
	if none := (&result{}); none.p50() != 0 || none.p99() != 0 {
		t.Error("something of nothing")
	}
}
