package e2e_test

import (
	"bytes"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

func TestDemo(t *testing.T) { //nolint:tparallel // the subtests look at one finished run
	t.Parallel()
	r := reference(t)
	t.Run("report keeps to its schema", func(t *testing.T) {
		schema, err := jsonschema.NewCompiler().Compile("../../../docs/report.schema.json")
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(r.raw))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(doc); err != nil {
			t.Error(err)
		}
	})
	t.Run("weeks", func(t *testing.T) {
		if len(r.Weeks) != liveWeeks {
			t.Fatalf("%d weeks, want %d", len(r.Weeks), liveWeeks)
		}
		versions := map[string]model{}
		for _, m := range r.Models {
			versions[m.ID] = m
		}
		for i, w := range r.Weeks {
			if w.Week != r.Weeks[0].Week+i {
				t.Errorf("week %d comes after %d", w.Week, r.Weeks[max(0, i-1)].Week)
			}
			for what, s := range map[string]score{"frozen": w.Frozen, "loop": w.Loop} {
				if !finite(s.LogLoss) || *s.LogLoss <= 0 || !finite(s.AUC) || *s.AUC < 0 || *s.AUC > 1 {
					t.Errorf("week %d: the %s model's log loss %v or AUC %v is no such thing", w.Week, what, s.LogLoss, s.AUC)
				}
			}
			if w.Rows <= 0 {
				t.Errorf("week %d has %d rows", w.Week, w.Rows)
			}
			if _, ok := versions[w.Model]; !ok {
				t.Errorf("week %d was scored by %q, which is no version in the registry", w.Week, w.Model)
			}
			if w.Retrained && (!w.Drift || w.Reason == "" || versions[w.Challenger].ID == "") {
				t.Errorf("week %d was retrained for no reason that is known: %+v", w.Week, w)
			}
			if w.Promoted && i+1 < len(r.Weeks) && r.Weeks[i+1].Model != w.Challenger {
				t.Errorf("week %d promoted %q, but %q scored the next", w.Week, w.Challenger, r.Weeks[i+1].Model)
			}
		}
	})
	t.Run("models", func(t *testing.T) {
		retrained, champions := 0, 0
		for _, w := range r.Weeks {
			if w.Retrained {
				retrained++
			}
		}
		if len(r.Models) != 1+retrained {
			t.Errorf("%d models of one training and %d retrainings", len(r.Models), retrained)
		}
		known := map[string]bool{"": true}
		for i, m := range r.Models {
			if m.Champion {
				champions++
			}
			if m.Run == "" || m.Reason == "" || m.Bytes <= 0 || len(m.Metrics) == 0 {
				t.Errorf("model %s lacks run, reason, bytes or metrics: %+v", m.ID, m)
			}
			if first := i == 0; first != (m.Parent == "") || !known[m.Parent] {
				t.Errorf("model %d, %s, has parent %q", i, m.ID, m.Parent)
			}
			known[m.ID] = true
		}
		if champions != 1 {
			t.Errorf("%d champions", champions)
		}
	})
	t.Run("counts", func(t *testing.T) {
		if r.Batches.CopiedBytes != 0 || r.Batches.Leased <= 0 || r.Batches.BodyBytes <= 0 || r.Batches.Published <= 0 {
			t.Errorf("batches %+v", r.Batches)
		}
		if r.Events.Judged < r.Events.Published || r.Events.Published <= 0 {
			t.Errorf("events %+v", r.Events)
		}
		if r.Tiers.Moved <= 0 || r.Tiers.Moved != r.Tiers.Cold || r.Tiers.Cold > r.Batches.Published {
			t.Errorf("tiers %+v of %d batches", r.Tiers, r.Batches.Published)
		}
		if r.Data.Rows <= 0 || r.Seconds <= 0 || r.Peak <= 0 || r.Peak > 1<<30 {
			t.Errorf("%d rows, %v s, %d bytes of memory", r.Data.Rows, r.Seconds, r.Peak)
		}
	})
	t.Run("output", func(t *testing.T) {
		for line := range strings.Lines(r.output) {
			line = strings.TrimSuffix(line, "\n")
			if i := strings.IndexFunc(line, unicode.IsControl); i >= 0 {
				t.Errorf("a control character at column %d of %q", i, line)
			}
		}
		for _, m := range r.Models {
			if !strings.Contains(r.output, m.ID[:8]) {
				t.Errorf("nothing is said of model %s", m.ID[:8])
			}
		}
		if !regexp.MustCompile(`Temporal UI http://127\.0\.0\.1:\d+`).MatchString(r.output) {
			t.Error("the Temporal UI's address is not said")
		}
	})
	t.Logf("took %v, peak memory %d MiB", r.took, r.Peak>>20)
}

func finite(x *float64) bool { return x != nil && !math.IsNaN(*x) && !math.IsInf(*x, 0) }

func TestSameSeedSameModels(t *testing.T) {
	t.Parallel()
	want := reference(t)
	path := filepath.Join(t.TempDir(), "report.json")
	if code := spawn(t, demo("", path)...).wait(patience); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	sameOutcome(t, readReport(t, path), want.result)
}

// What does not depend on the models is the same whatever the seed.
func TestAnotherSeed(t *testing.T) {
	t.Parallel()
	want := reference(t)
	path := filepath.Join(t.TempDir(), "report.json")
	if code := spawn(t, demo("", path, "--seed", "7", "--weeks", "1")...).wait(patience); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	got := readReport(t, path)
	if got.Seed != 7 || len(got.Weeks) != 1 || got.Weeks[0].Week != want.Weeks[0].Week || got.Weeks[0].Rows != want.Weeks[0].Rows {
		t.Errorf("seed 7 gave %+v, seed %d gave %+v", got.Weeks, want.Seed, want.Weeks[0])
	}
	same := slices.ContainsFunc(want.Models, func(m model) bool { return m.ID == got.Models[0].ID })
	t.Logf("the first model is the same: %v", same)
}
