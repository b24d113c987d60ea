package governance_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

func TestLint(t *testing.T) {
	set, err := governance.Load(typed(), governance.Source{Name: "a.yaml", Data: []byte(`apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: a}
spec:
  match: {types: ["model.*"]}
  params:
    margin: {type: double}
    spare: {type: int, default: 1}
    used: {type: int, default: 1}
  variables:
    - {name: gain, expression: "data.x - params.margin"}
    - {name: idle, expression: "data.y"}
    - {name: base, expression: "double(params.?used.orValue(0))"}
    - {name: top, expression: "variables.base + 1.0"}
  rules:
    - {name: good, expression: "variables.gain > variables.top"}
    - {name: again, expression: "variables.gain  >  variables.top"}
    - {name: quieter, expression: "variables.gain > variables.top", action: warn}
    - {name: holds, expression: "1 + 1 == 2"}
    - {name: hides, expression: "false", action: redact, redact: {drop: [data.z]}}
`)}, governance.Source{Name: "b.yaml", Data: []byte(`apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: b}
spec:
  match: {types: ["datset.*"]}
  rules:
    - {name: none, expression: "false"}
    - {name: broken, expression: "1 / 0 == 1", action: warn}
    - {name: late, expression: "event.subject != 'x'", action: warn}
    - {name: kept, expression: "event.subject != 'y'"}
---
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: c}
spec:
  match: {types: [drift.detected]}
  rules: [{name: one, expression: "event.subject != 'x'"}]
---
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: d}
spec:
  match: {types: [drift.detected]}
  mode: audit
  rules: [{name: two, expression: "event.subject != 'x'"}, {name: nothing, expression: "false"}]
`)})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range governance.Lint(set) {
		got = append(got, w.String())
	}
	want := []string{
		`a.yaml:7: policy a: params.margin has no value: what reads it fails; give it a default, or a value in a Binding document [unbound]`,
		`a.yaml:8: policy a: nothing reads params.spare [unused]`,
		`a.yaml:12: policy a: nothing reads variables.idle [unused]`,
		`a.yaml:17: policy a: rule again: rule a/good says the same [duplicate]`,
		`a.yaml:19: policy a: rule holds: the rule always holds: 1 + 1 == 2 reads nothing [unreachable]`,
		`b.yaml:1: policy b: no registered event type matches "datset.*" [unreachable]`,
		`b.yaml:1: policy b: the policy matches no event [unreachable]`,
		`b.yaml:7: policy b: rule none: no event that the policy matches can pass [always]`,
		`b.yaml:8: policy b: rule broken: the expression fails for every event: 1 / 0 == 1 [always]`,
		`b.yaml:9: policy b: rule late: the rule never decides: rule none denies every event [unreachable]`,
		`b.yaml:25: policy d: rule two: rule c/one says the same [duplicate]`,
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
	if ws := governance.Lint(nil); ws != nil {
		t.Errorf("no set: %v", ws)
	}
}

// Routes that nothing follows, or that are refused, are told before they are in force.
func TestLintRoutes(t *testing.T) {
	route := func(name, types, to string) string {
		return policyYAML(name, "{types: ["+types+"]}", "    - {name: r, expression: \"event.subject == ''\", message: "+name+", action: route, route: {"+to+"}}\n")
	}
	set := load(t, governance.Options{},
		route("a", "batch.published", "tier: cold"), route("b", "drift.detected", "tier: cold"), route("c", "'*'", "tier: warm"),
		route("d", "batch.published", "region: eu"), route("e", "stage.started", "workers: gpu"), route("f", "stage.started", "pipeline: other"),
	)
	var got []string
	for _, w := range governance.Lint(set) {
		if w.Code == governance.LintRoute {
			got = append(got, w.Policy)
		}
	}
	if want := "b d f"; strings.Join(got, " ") != want {
		t.Errorf("warned of %v, want %s", got, want)
	}
}

func ExampleLint() {
	set, err := governance.Load(governance.Options{}, governance.Source{Name: "gate.yaml", Data: []byte(`apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: gate}
spec:
  rules:
    - {name: better, expression: "data.auc > 0.7"}
    - {name: good, expression: "data.auc > 0.7"}
`)})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, w := range governance.Lint(set) {
		fmt.Println(w)
	}
	// Output: gate.yaml:7: policy gate: rule good: rule gate/better says the same [duplicate]
}

// An approval of each batch's move is one that nobody could give.
func TestLintApprovals(t *testing.T) {
	types, err := events.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	for match, warned := range map[string]bool{
		"tier.move.requested": true, "tier.*": true, "tier.moved": true, "tier.migration.requested": false, "tier.migration.*": false, "*": false,
	} {
		set, err := governance.Load(governance.Options{Types: types}, governance.Source{Name: "a.yaml", Data: []byte(`apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: a}
spec:
  match: {types: ["` + match + `"]}
  rules: [{name: ask, expression: "event.subject != 'z'", action: requireApproval}]
`)})
		if err != nil {
			t.Fatal(err)
		}
		got := governance.Lint(set)
		if (len(got) == 1 && got[0].Code == governance.LintApproval && strings.Contains(got[0].Msg, "match tier.migration.requested")) != warned || len(got) > 1 {
			t.Errorf("%s: %v", match, got)
		}
	}
}
