package policy_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/policy"
)

const day = 24 * time.Hour

func golden(t testing.TB) *policy.Set {
	t.Helper()
	raw, err := os.ReadFile("testdata/flights.yaml")
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Parse(governance.Source{Name: "flights.yaml", Data: raw})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func by(a policy.Action, rule string) policy.Decision {
	return policy.Decision{Action: a, Policy: "flights", Rule: rule}
}

func TestGoldenPolicy(t *testing.T) {
	set := golden(t)
	for _, c := range []struct {
		name string
		f    policy.Facts
		want policy.Decision
	}{
		{"fresh", policy.Facts{Age: time.Hour, Idle: time.Hour, Next: -1, Tiers: []string{"warm"}}, policy.Decision{}},
		{"old and idle", policy.Facts{Age: 8 * day, Idle: 2 * day, Next: -1, Tiers: []string{"warm"}}, by(policy.Evict, "old-goes-cold")},
		{"old and read today", policy.Facts{Age: 8 * day, Idle: time.Hour, Next: -1, Tiers: []string{"warm"}}, policy.Decision{}},
		{"old and evicted already", policy.Facts{Age: 8 * day, Idle: 2 * day, Next: -1, Tiers: []string{"cold"}}, policy.Decision{}},
		{"old and needed in a minute", policy.Facts{Age: 8 * day, Idle: 2 * day, Next: time.Minute, Tiers: []string{"warm"}}, by(policy.Pin, "needed-soon")},
		{"personal", policy.Facts{Age: 2 * day, Next: -1, Labels: []string{"residency:eu", "pii"}, Tiers: []string{"warm"}}, by(policy.Evict, "personal-data-leaves-early")},
		{"over its time", policy.Facts{Age: 366 * day, Next: -1, Tiers: []string{"cold"}}, by(policy.Expire, "ttl")},
		{"large, under pressure", policy.Facts{Age: time.Hour, Next: -1, Size: 20 << 20, Pressure: 0.85, Tiers: []string{"warm"}}, by(policy.Move, "copy-large-under-pressure")},
		{"large, under pressure, copied", policy.Facts{Age: time.Hour, Next: -1, Size: 20 << 20, Pressure: 0.85, Tiers: []string{"warm", "cold"}}, policy.Decision{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.f.Dataset = "flights/labels"
			got, err := set.Decide(t.Context(), c.f)
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
			c.f.Dataset = "weather/hourly"
			if got, err := set.Decide(t.Context(), c.f); err != nil || got != (policy.Decision{}) {
				t.Errorf("of another dataset: %+v, %v", got, err)
			}
		})
	}
	want := policy.Watermarks{Policy: "flights", High: 0.9, Low: 0.7, HotHigh: 0.95, HotLow: 0.8, Order: policy.Oldest}
	if got, ok := set.Watermarks(); !ok || got != want {
		t.Errorf("watermarks %+v, want %+v", got, want)
	}
}

func TestHoldsBeatRules(t *testing.T) {
	held := []tiers.Pin{{From: 3, To: tiers.End, Hold: true}}
	for _, a := range []policy.Action{policy.Evict, policy.Expire} {
		d := policy.Decision{Action: a, Policy: "p", Rule: "r"}
		if got := d.Allowed(held, 3); got != (policy.Decision{}) {
			t.Errorf("%s of a batch under legal hold: %+v", a, got)
		}
		if got := d.Allowed(held, 2); got != d {
			t.Errorf("%s of one that is not: %+v", a, got)
		}
	}
	copied := policy.Decision{Action: policy.Move}
	if got := copied.Allowed(held, 3); got != copied {
		t.Errorf("a copy of a batch under legal hold: %+v", got)
	}
}

// Every fault of a file is told at once, where it is.
func TestFaults(t *testing.T) {
	const bad = `apiVersion: stokehold.dev/v1
kind: TierPolicy
metadata:
  name: Bad Name
spec:
  match: {datasets: ["[x"]}
  colour: red
  rules:
    - name: a
      when: agee > 3
      action: shred
    - name: a
      when: "size + 1"
      action: move
  watermarks: {high: 0.5, low: 0.9, order: newest, hot: {high: 0.6, low: 0.6}}
---
kind: Policy
`
	_, err := policy.Parse(governance.Source{Name: "bad.yaml", Data: []byte(bad)})
	var faults *governance.LoadError
	if !errors.As(err, &faults) || !errors.Is(err, governance.ErrPolicy) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{
		"bad.yaml:4:3: metadata.name", `"Bad Name"`, "malformed pattern", "bad.yaml:7:3", "unknown field", "bad.yaml:10:13", "agee",
		"bad.yaml:11:15", `"shred"`, "another rule of the policy", "bad.yaml:13:", "low 0.9 is not below high 0.5", "low 0.6 is not below high 0.6", `"newest"`,
		"bad.yaml:17:1", "apiVersion is missing", "metadata is missing", `"Policy": want TierPolicy`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	raw, err := os.ReadFile("testdata/flights.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := policy.Parse(governance.Source{Name: "f", Data: data})
		if (set == nil) == (err == nil) {
			t.Errorf("%v, %v", set, err)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	set := golden(b)
	f := policy.Facts{Dataset: "flights/labels", Age: time.Hour, Idle: time.Hour, Next: -1, Tiers: []string{"warm"}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := set.Decide(b.Context(), f); err != nil {
			b.Fatal(err)
		}
	}
}
