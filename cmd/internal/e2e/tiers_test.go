package e2e_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// With quotas so small that batches have to leave the disk the loop makes the same
// models, reads from every tier, and loses nothing; and the data commands work on
// what it leaves, beside it.
func TestDemoWithSmallQuotas(t *testing.T) { //nolint:tparallel // the subtests look at one running demo, in order
	t.Parallel()
	want := reference(t)
	state, path := t.TempDir(), filepath.Join(t.TempDir(), "report.json")
	p := spawn(t, demo(state, path, "--hot", "5MiB", "--warm", "6MiB", "--keep")...)
	p.waitLine("stays up until Ctrl-C")
	r := readReport(t, path)
	t.Run("same models", func(t *testing.T) {
		got, err := json.Marshal(r.Models)
		ref, refErr := json.Marshal(want.Models)
		if err != nil || refErr != nil || string(got) != string(ref) {
			t.Errorf("got %s\nwant %s", got, ref)
		}
		if r.Batches.Published != want.Batches.Published || r.Batches.CopiedBytes != 0 {
			t.Errorf("batches %+v, want %d published", r.Batches, want.Batches.Published)
		}
	})
	t.Run("it demotes and reads back", func(t *testing.T) {
		demoted := int64(0)
		for _, m := range r.Tiers.Moves {
			if m.To == "cold" && m.Reason == "flights/watermarks" && m.Bytes > 0 {
				demoted += m.Count
			}
		}
		reads := r.Tiers.Reads
		if demoted == 0 || reads.Hot == 0 || reads.Warm == 0 || reads.Cold == 0 {
			t.Errorf("%d demoted; reads %+v; moves %+v", demoted, reads, r.Tiers.Moves)
		}
		if !strings.Contains(p.output(), "by flights/watermarks") || !strings.Contains(p.output(), "% cold") {
			t.Error("the report for people tells nothing of it")
		}
	})
	data := func(t *testing.T, code int, args ...string) string {
		t.Helper()
		c := spawn(t, append(append([]string{"data"}, args...), "--state", state)...)
		if got := c.wait(patience); got != code {
			t.Fatalf("data %v: exit code %d, want %d:\n%s%s", args, got, code, c.output(), c.errors())
		}
		return c.output() + c.errors()
	}
	t.Run("nothing is lost", func(t *testing.T) {
		batches := int64(0)
		for line := range strings.Lines(data(t, 0, "ls", "-o", "json")) {
			var head struct {
				Dataset string `json:"dataset"`
				Next    int64  `json:"next"`
			}
			if err := json.Unmarshal([]byte(line), &head); err != nil {
				continue
			}
			batches += head.Next
			var v struct{ Batches, Copies, More int64 }
			if err := json.Unmarshal([]byte(data(t, 0, "verify", head.Dataset, "-o", "json")), &v); err != nil || v.Batches != head.Next || v.Copies < v.Batches {
				t.Errorf("%s of %d batches: %+v, %v", head.Dataset, head.Next, v, err)
			}
		}
		if batches != r.Batches.Published {
			t.Errorf("the catalog has %d batches, %d were published", batches, r.Batches.Published)
		}
	})
	t.Run("data commands", func(t *testing.T) {
		const dataset = "flights/labels"
		for _, c := range []struct {
			want string
			code int
			args []string
		}{
			{"cold", 0, []string{"show", dataset, "--to", "4"}},
			{"pin on batches 0 to 1: audit", 0, []string{"pin", dataset, "--to", "2", "--reason", "audit"}},
			{"batches in the warm tier", 0, []string{"move", dataset, "--to", "2", "--tier", "warm", "--wait"}},
			{"pinned in the warm tier", 1, []string{"move", dataset, "--to", "2", "--evict", "--grace", "0s", "--wait"}},
			{"1 pin removed", 0, []string{"unpin", dataset}},
			{"0 pins removed", 0, []string{"unpin", dataset}},
			{"batches in the cold tier", 0, []string{"move", dataset, "--to", "2", "--evict", "--grace", "1ms", "--wait"}},
			{"0 copies", 0, []string{"gc"}},
			{"rows", 0, []string{"export", dataset, filepath.Join(t.TempDir(), "labels.parquet")}},
			{"this system's", 0, []string{"take-over"}},
		} {
			if out := data(t, c.code, c.args...); !strings.Contains(out, c.want) {
				t.Errorf("data %v says nothing of %q:\n%s", c.args, c.want, out)
			}
		}
	})
	p.signal(syscall.SIGINT)
	p.wait(patience)
}
