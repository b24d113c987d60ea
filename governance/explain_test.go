package governance_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

func explainer(t testing.TB, opts governance.Options, files ...string) *governance.Explainer {
	t.Helper()
	var srcs []governance.Source
	for _, f := range files {
		srcs = append(srcs, governance.Source{Name: "test.yaml", Data: []byte(f)})
	}
	x, err := governance.NewExplainer(opts, srcs...)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func explain(t testing.TB, x *governance.Explainer, ev *events.Event) *governance.Explanation {
	t.Helper()
	e, err := x.Explain(t.Context(), events.OnPublish, testTime, ev)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// values gives "expression = value" for each value of the only rule.
func values(t testing.TB, expr string, data any) []string {
	t.Helper()
	e := explain(t, explainer(t, typed(), policyYAML("p", gate, rule("r", expr))), newEvent(t, "model.promotion.requested", data))
	var out []string
	for _, v := range e.Policies[0].Rules[0].Values {
		out = append(out, v.Expression+" = "+v.Value)
	}
	return out
}

func TestExplainShowsWhatDecided(t *testing.T) {
	for expr, want := range map[string][]string{
		`data.challenger.rows >= 1000`: {"data.challenger.rows >= 1000 = true", "data.challenger.rows = 5000"},
		// Of && that fails, only what failed.
		`data.model == "late" && data.challenger.auc > 0.9`: {"data.challenger.auc > 0.9 = false", "data.challenger.auc = 0.71"},
		// Of || that holds, only what held.
		`data.challenger.auc > 0.9 || data.model == "late"`:             {`data.model == "late" = true`, `data.model = "late"`},
		`!(data.model == "early") && data.took < duration("1h")`:        {`data.model == "early" = false`, `data.model = "late"`, `data.took < duration("1h") = true`, "data.took = 90s"},
		`has(data.champion) ? data.champion.rows > 1 : false`:           {"has(data.champion) = true", "data.champion.rows > 1 = true", "data.champion.rows = 5000"},
		`data.labels.all(l, l != "pii")`:                                {`data.labels.all(l, l != "pii") = true`},
		`size(data.labels) == 2`:                                        {"size(data.labels) == 2 = false", "size(data.labels) = 1", `data.labels = ["public"]`},
		`data.champion.logloss - data.challenger.logloss > 1.0`:         {"data.champion.logloss - data.challenger.logloss > 1.0 = false", "data.champion.logloss - data.challenger.logloss = 0.04999999999999999", "data.champion.logloss = 0.45", "data.challenger.logloss = 0.4"},
		`data.?extra.orValue("none") == "x"`:                            {`data.?extra.orValue("none") == "x" = false`, `data.?extra.orValue("none") = "none"`},
		`data.tags["absent"] == "x"`:                                    {`data.tags["absent"] == "x" = no value: missing field: the event has no field "absent"; where it may be absent write .?absent.orValue(...) or has()`, `data.tags["absent"] = no value: missing field: the event has no field "absent"; where it may be absent write .?absent.orValue(...) or has()`, `data.tags = {"team": "ops"}`},
		`data.champion == data.challenger`:                              {"data.champion == data.challenger = false", "data.champion = {logloss: 0.45, auc: 0.7, rows: 5000}", "data.challenger = {logloss: 0.4, auc: 0.71, rows: 5000}"},
		`point == "publish" && now > timestamp("2026-01-01T00:00:00Z")`: {`point == "publish" = true`, `point = "publish"`, `now > timestamp("2026-01-01T00:00:00Z") = true`, "now = 2026-03-01T12:00:00Z"},
	} {
		got := values(t, expr, promo())
		if !slices.EqualFunc(got, want, func(g, w string) bool {
			long, cut := strings.CutSuffix(g, "…")
			return g == w || cut && strings.HasPrefix(w, long)
		}) {
			t.Errorf("%s:\n%s\nwant:\n%s", expr, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestExplainFollowsTheDecision(t *testing.T) {
	set, err := governance.ReadPaths("testdata/promotion.yaml")
	if err != nil {
		t.Fatal(err)
	}
	x, err := governance.NewExplainer(typed(), set...)
	if err != nil {
		t.Fatal(err)
	}
	p := promo()
	p.Challenger.LogLoss, p.Challenger.AUC = 0.449, 0.5
	ev := newEvent(t, "model.promotion.requested", p)
	e := explain(t, x, ev)
	if e.Decision.Action != events.Deny || e.Decision.Rule != "better" || e.Decision.ID == "" {
		t.Errorf("decision %+v", e.Decision)
	}
	var got []string
	for _, p := range e.Policies {
		if p.Unmatched != "" {
			got = append(got, p.Name+": "+p.Unmatched)
		}
		for _, r := range p.Rules {
			got = append(got, fmt.Sprintf("%s/%s %s %s %s", p.Name, r.Name, r.Outcome, r.Effect, r.Reason))
		}
	}
	want := []string{
		"no-pii-in-models/labels held allow ",
		"promotion-gate/enough-rows held allow ",
		"promotion-gate/better failed deny log loss improves by 0.0010; 0.0050 is needed",
		"promotion-gate/no-regression-of-auc failed warn the AUC drops by more than 0.02",
		`quiet-hours: its types (drift.detected) do not match "model.promotion.requested"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s", strings.Join(got, "\n"))
	}
	if vs := e.Policies[1].Rules[1].Values; len(vs) != 3 || vs[1].Expression != "variables.gain" || !strings.HasPrefix(vs[1].Value, "0.001") {
		t.Errorf("values %v", vs)
	}
	// Nothing of it is left on the event.
	if _, stamped := ev.Extensions()[governance.ExtStamp]; stamped {
		t.Error("the event was stamped")
	}
}

// A policy that costs as much as the limits allow costs that also when explained.
func TestExplainIsBounded(t *testing.T) {
	data := map[string]any{"l": make([]int, 4000)}
	x := explainer(t, governance.Options{}, policyYAML("p", "{}", rule("r", "data.l.all(a, data.l.all(b, data.l.all(c, a + b + c < 1.0))) || data.l.exists(a, data.l.exists(b, a > b))")))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	began := time.Now()
	e, err := x.Explain(ctx, events.OnPublish, testTime, newEvent(t, "batch.published", data))
	if err != nil {
		t.Fatal(err)
	}
	r := e.Policies[0].Rules[0]
	if r.Outcome != governance.Errors || !strings.Contains(r.Reason, "limit") || e.Decision.Action != events.Deny {
		t.Errorf("%+v", r)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestEvaluateOnReceive(t *testing.T) {
	set := load(t, governance.Options{}, policyYAML("p", "{points: [receive]}", rule("r", "event.subject == 'x'")))
	e, err := governance.NewEvaluator(set)
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[events.Point]events.Action{events.OnPublish: events.Allow, events.OnReceive: events.Deny} {
		d, err := e.Evaluate(t.Context(), at, testTime, newEvent(t, "batch.published", nil))
		if err != nil || d.Action != want || d.Point != at {
			t.Errorf("on %s: %+v, %v", at, d, err)
		}
	}
	if _, err := governance.NewEvaluator(nil); err == nil {
		t.Error("an evaluator without policies")
	}
}

func TestCanonicalIsWhatTheDigestCovers(t *testing.T) {
	a := load(t, governance.Options{}, policyYAML("a", "{}", rule("r", "true")))
	b := load(t, governance.Options{}, "# other layout\n"+policyYAML("a", "{}", rule("r", "true")))
	c := load(t, governance.Options{}, policyYAML("a", "{}", rule("r", "false || true")))
	text := func(s *governance.PolicySet) string {
		raw, err := s.Canonical()
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	if text(a) != text(b) || text(a) == text(c) {
		t.Errorf("%s\n%s\n%s", text(a), text(b), text(c))
	}
}

func TestDiff(t *testing.T) {
	base := `apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: gate}
spec:
  match: {types: [model.promotion.requested]}
  variables:
    - {name: margin, expression: "0.005"}
  rules:
    - {name: better, expression: data.challenger.auc > variables.margin, message: not better}
    - {name: rows, expression: data.challenger.rows > 10, message: few rows}
---
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: old}
spec:
  rules: [{name: r, expression: "true"}]
`
	changed := strings.NewReplacer("0.005", "0.010", "name: old", "name: new", "types: [model.promotion.requested]", "types: [model.promotion.requested], stages: [deploy]",
		"message: few rows", "message: few rows, action: warn").Replace(base)
	swapped := strings.NewReplacer("name: better,", "name: rows,", "name: rows,", "name: better,").Replace(base)
	show := func(cs []governance.Change) string {
		var out []string
		for _, c := range cs {
			out = append(out, strings.Join([]string{string(c.Kind), c.Policy, c.Part, c.Field, c.Before, c.After}, "|"))
		}
		return strings.Join(out, "\n")
	}
	a := load(t, typed(), base)
	for name, c := range map[string]struct {
		b    *governance.PolicySet
		want string
	}{
		"equal":  {load(t, typed(), "# laid out otherwise\n"+base), ""},
		"policy": {load(t, typed(), changed), "changed|gate||match.stages||[\"deploy\"]\nchanged|gate|rule rows|action|\"deny\"|\"warn\"\nchanged|gate|variable margin|expression|\"0.005\"|\"0.010\"\nremoved|old"},
		"order":  {load(t, typed(), swapped), "changed|gate||order of rules|better, rows|rows, better"},
		"set":    {load(t, governance.Options{Types: testTypes, Default: events.Deny}, base), "changed|||default|\"allow\"|\"deny\""},
		"none":   {nil, "removed|gate"},
	} {
		changes, err := governance.Diff(a, c.b)
		if err != nil {
			t.Fatal(err)
		}
		got := show(changes)
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got, c.want)
		}
		if (len(changes) == 0) != (c.b != nil && a.Digest() == c.b.Digest()) {
			t.Errorf("%s: %d changes between %s and another", name, len(changes), a.Digest())
		}
	}
	changes, err := governance.Diff(nil, a)
	if err != nil || len(changes) < 2 || !strings.Contains(show(changes), "added|gate") {
		t.Errorf("%s, %v", show(changes), err)
	}
}
