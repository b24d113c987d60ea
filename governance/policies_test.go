package governance_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/policytest"
)

func TestGoldenPolicies(t *testing.T) {
	policytest.Check(t, typed(), 0.9, "testdata/promotion.yaml", "testdata/promotion.cases.yaml")
}

// What a case permits passes on receive too, what it refuses does not, and the
// decision has what the event has.
func TestGoldenCasesOnTheirWay(t *testing.T) {
	set, err := governance.LoadPaths(typed(), "testdata/promotion.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cases, err := policytest.Read("testdata/promotion.cases.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			ev, err := c.Event()
			if err != nil {
				t.Fatal(err)
			}
			log := &governance.MemoryLog{}
			e := engine(t, set, log)
			v := judge(t, e, events.OnPublish, ev)[0]
			var d governance.Decision
			for got := range log.Read(context.Background(), time.Time{}) {
				d = got
			}
			if v.Action != c.Action || d.ID != v.DecisionID || d.EventID != ev.ID() || d.Run != "run-7" || d.Digest != set.ShortDigest() {
				t.Errorf("verdict %+v, decision %+v", v, d)
			}
			if r := judge(t, e, events.OnReceive, ev)[0]; v.Action.Permits() != r.Action.Permits() {
				t.Errorf("on receive %+v after %+v", r, v)
			}
		})
	}
}

func TestLoadReportsEveryFaultWithItsPlace(t *testing.T) {
	_, err := governance.Load(typed(), governance.Source{Name: "bad.yaml", Data: []byte(`apiVersion: stokehold.dev/v1
kind: Policy
metadata:
  name: gate
spec:
  match:
    types: [model.promotion.requestd]
  rules:
    - name: a
      expression: "true"
---
apiVersion: stokehold.dev/v1
kind: Policy
metadata:
  name: gate2
spec:
  match:
    types: [model.promotion.requested]
  mode: enforced
  rules:
    - name: a
      expresion: "true"
    - name: b
      expression: "true"
      name: c
---
apiVersion: stokehold.dev/v1
kind: Policy
metadata:
  name: gate3
spec:
  match:
    types: [model.promotion.requested]
  variables:
    - name: gain
      expression: data.champion.logloss
  rules:
    - name: field
      expression: data.challenger.loglos < 0.5
    - name: nested
      expression: |
        data.challenger.rows > 10 &&
          data.chalenger.auc > 0.5
    - name: variable
      expression: "variables.gian > 0.0"
    - name: type
      expression: data.model + 1 == 2
    - name: notbool
      expression: data.model
    - name: syntax
      expression: "data.model =="
    - name: attribute
      expression: event.pipelin == 'x'
`)})
	var got []string
	for _, f := range faults(t, err) {
		got = append(got, f.Error())
	}
	want := []string{
		`bad.yaml:7: policy gate: spec.match.types[0]: no event type "model.promotion.requestd" is registered, so that the policy could never match it (did you mean "model.promotion.requested"?)`,
		`bad.yaml:19:9: policy gate2: spec.mode: "enforced" is not one of enforce, warn, audit (did you mean "enforce"?)`,
		`bad.yaml:22:7: policy gate2: spec.rules[0].expresion: unknown field (did you mean "expression"?)`,
		`bad.yaml:21:7: policy gate2: spec.rules[0].expression: required field is missing`,
		`bad.yaml:25:7: policy gate2: spec.rules[1].name: duplicate field`,
		`bad.yaml:39:34: policy gate3: rule field: spec.rules[0].expression: undefined field 'loglos' [expression 1:16] (did you mean "logloss"?)`,
		`bad.yaml:43:15: policy gate3: rule nested: spec.rules[1].expression: undefined field 'chalenger' [expression 2:7] (did you mean "challenger"?)`,
		`bad.yaml:45:29: policy gate3: rule variable: spec.rules[2].expression: undeclared reference to 'variables.gian' (did you mean 'variables.gain'?) [expression 1:10]`,
		`bad.yaml:47:30: policy gate3: rule type: spec.rules[3].expression: found no matching overload for '_+_' applied to '(string, int)' [expression 1:12]`,
		`bad.yaml:49:19: policy gate3: rule notbool: spec.rules[4].expression: the expression gives string, not bool [expression 1:1]`,
		`bad.yaml:53:24: policy gate3: rule attribute: spec.rules[6].expression: undefined field 'pipelin' [expression 1:6] (did you mean "pipeline"?)`,
	}
	text := strings.Join(got, "\n")
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("missing fault:\n%s", w)
		}
	}
	if !strings.Contains(text, "rule syntax: spec.rules[5].expression: Syntax error") {
		t.Error("missing the syntax error")
	}
	if t.Failed() {
		t.Log(text)
	}
	if !errors.Is(err, governance.ErrPolicy) {
		t.Error("the error does not wrap ErrPolicy")
	}
}

func TestLoadRefuses(t *testing.T) {
	good := policyYAML("p", "{}", rule("r", "true"))
	for name, c := range map[string]struct{ file, want string }{
		"anchors":              {strings.Replace(good, "name: p", "name: &a p", 1), "anchors, aliases"},
		"an alias bomb":        {"spec: &a [x]\nkind: [*a, *a]\n", "anchors, aliases"},
		"tags":                 {strings.Replace(good, "name: p", "name: !!str p", 1), "tags are not supported"},
		"broken YAML":          {"apiVersion: [", "did not find"},
		"a list as a document": {"- a\n- b\n", "must be a mapping"},
		"two of one name":      {good + "---\n" + good, `policy "p" is already defined at test.yaml:1`},
		"another kind":         {strings.Replace(good, "kind: Policy", "kind: Poem", 1), `"Poem" is not supported`},
		"another version":      {strings.Replace(good, "v1", "v9", 1), "must be stokehold.dev/v1"},
		"no rules":             {strings.Replace(good, rule("r", "true"), "    []\n", 1), "at least one rule"},
		"two rules of a name":  {good + rule("r", "true"), `rule "r" is already defined`},
		"a number as a name":   {strings.Replace(good, "name: p", "name: 7", 1), "put quotes around 7"},
		"a bad point":          {policyYAML("p", "{points: [send]}", rule("r", "true")), `"send" is not one of publish, receive`},
		"missing parts":        {"kind: Policy\n", "apiVersion: required field is missing"},
		"an empty expression":  {policyYAML("p", "{}", "    - {name: r, expression: ''}\n"), "the expression is empty"},
		"a huge expression":    {policyYAML("p", "{}", rule("r", "event.id != '"+strings.Repeat("x", 5000)+"'")), "size"},
		"deep nesting":         {policyYAML("p", "{}", rule("r", strings.Repeat("(", 300)+"true"+strings.Repeat(")", 300))), "recursion"},
		"self reference":       {strings.Replace(good, "  rules:", "  variables:\n    - {name: a, expression: variables.a}\n  rules:", 1), "undeclared reference"},
		"a forward reference":  {strings.Replace(good, "  rules:", "  variables:\n    - {name: a, expression: variables.b}\n    - {name: b, expression: '1'}\n  rules:", 1), "undeclared reference"},
		"a made event":         {policyYAML("p", "{}", rule("r", "stokehold.Event{id: 'x'}.id == 'x'")), "cannot be made"},
		"a dyn result":         {policyYAML("p", "{}", rule("r", "data.ok")), "the type of the expression is not known"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := governance.Load(governance.Options{}, governance.Source{Name: "test.yaml", Data: []byte(c.file)})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant it to contain %q", err, c.want)
			}
			if err != nil {
				faults(t, err)
			}
		})
	}
}

func TestDigestCoversContentAndNotLayout(t *testing.T) {
	a, b := policyYAML("a", "{}", rule("r", "event.id != ''")), policyYAML("b", "{}", rule("r", "event.id != ''"))
	base := load(t, governance.Options{}, a, b).Digest()
	if got := load(t, governance.Options{}, "# a comment\n"+b+"---\n"+a).Digest(); got != base {
		t.Error("layout changes the digest")
	}
	for name, set := range map[string]*governance.PolicySet{
		"rule":    load(t, governance.Options{}, a, strings.Replace(b, "!= ''", "!= 'x'", 1)),
		"default": load(t, governance.Options{Default: events.Deny}, a, b),
		"mode":    load(t, governance.Options{}, a, strings.Replace(b, "  rules:", "  mode: audit\n  rules:", 1)),
		"fewer":   load(t, governance.Options{}, a),
	} {
		if set.Digest() == base {
			t.Errorf("a changed %s leaves the digest", name)
		}
	}
	if !strings.HasPrefix(base, "sha256:") || len(base) != 71 {
		t.Errorf("digest %q", base)
	}
}

func TestLoadFSAndPaths(t *testing.T) {
	fsys := fstest.MapFS{
		"policies/b.yaml":                     {Data: []byte(policyYAML("b", "{}", rule("r", "true")))},
		"policies/a.yaml":                     {Data: []byte(policyYAML("a", "{}", rule("r", "true")))},
		"policies/a" + governance.CasesSuffix: {Data: []byte("[]")},
	}
	set, err := governance.LoadFS(governance.Options{}, fsys, "policies/*.yaml", "policies/a.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if names := set.Names(); len(names) != 2 || names[0] != "a" {
		t.Errorf("names %q", names)
	}
	if _, err := governance.LoadFS(governance.Options{}, fsys, "nothing/*"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := governance.LoadPaths(governance.Options{}, t.TempDir()+"/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestMatching(t *testing.T) {
	for _, c := range []struct {
		match string
		hits  bool
	}{
		{"{}", true},
		{"{types: [batch.published]}", true},
		{"{types: [batch.*]}", true},
		{"{types: ['*']}", true},
		{"{types: [batch]}", false},
		{"{types: ['?atch.published']}", true},
		{"{subjects: [late]}", true},
		{"{subjects: [early, 'la*']}", true},
		{"{subjects: [lat]}", false},
		{"{pipelines: ['flights-*'], stages: [evaluate]}", true},
		{"{pipelines: ['flights-*'], stages: [train]}", false},
		{"{points: [publish]}", true},
		{"{points: [receive]}", false},
	} {
		e := engine(t, load(t, governance.Options{}, policyYAML("p", c.match, rule("never", "false"))), &governance.MemoryLog{})
		v := judge(t, e, events.OnPublish, newEvent(t, "batch.published", nil))[0]
		if hit := v.Action == events.Deny; hit != c.hits {
			t.Errorf("%s: %+v, want hit=%v", c.match, v, c.hits)
		}
	}
}

func TestDataTypes(t *testing.T) {
	for expr, want := range map[string]bool{
		`data.model == 'late'`:                                         true,
		`data.challenger.logloss < data.champion.logloss`:              true,
		`data.challenger.rows > 4999.5`:                                true,
		`data.challenger.rows * 2 == 10000`:                            true,
		`data.tags.team == 'ops'`:                                      true,
		`data.tags['team'].startsWith('o')`:                            true,
		`'public' in data.labels && size(data.labels) == 1`:            true,
		`data.evaluated == event.time && data.took == duration('90s')`: true,
		`has(data.extra)`:                                              false,
		`data.?extra.orValue('none') == 'none'`:                        true,
		`data.champion == data.champion`:                               true,
		`data.champion == data.challenger`:                             false,
		`[data.champion, data.challenger].exists(m, m.auc > 0.705)`:    true,
		`event.pipeline == 'flights-train' && event.run == 'run-7' && event.stage == 'evaluate' && event.cause == '' && !has(event.cause)`: true,
		`event.id + event.type + event.source + event.subject == 'ev-1model.promotion.requestedstokehold/flightslate'`:                     true,
		`point == 'publish' && now == timestamp('2026-03-01T12:00:00Z')`:                                                                   true,
		`math.greatest(data.challenger.auc, data.champion.auc) > 0.7 && sets.contains(['public', 'pii'], data.labels)`:                     true,
		`data.model.matches('^la[a-z]+$')`: true,
	} {
		e := engine(t, load(t, typed(), policyYAML("p", gate, rule("r", expr))), &governance.MemoryLog{})
		v := judge(t, e, events.OnPublish, newEvent(t, "model.promotion.requested", promo()))[0]
		if v.Action.Permits() != want {
			t.Errorf("%s: %+v, want %v", expr, v, want)
		}
	}
}

func TestUntypedDataAreMaps(t *testing.T) {
	for expr, want := range map[string]string{
		`data.a == 1 && data.b.c == 'x' && data.l[1] == 2.5`: "",
		`data.missing == 1`:                `missing field: the event has no field "missing"`,
		`data.b.missing == 1`:              `missing field: the event has no field "missing"`,
		`data.?b.?missing.orValue(1) == 1`: "",
		`has(data.b) && !has(data.z)`:      "",
		`data.n == null`:                   "",
		`1 / int(data.zero) == 0`:          "evaluation failed: division by zero",
		`data.a + 'x' == 'x'`:              "evaluation failed: no such overload",
	} {
		e := engine(t, load(t, governance.Options{}, policyYAML("p", "{}", rule("r", expr))), &governance.MemoryLog{})
		ev := newEvent(t, "batch.published", map[string]any{"a": 1, "b": map[string]any{"c": "x"}, "l": []any{1, 2.5}, "n": nil, "zero": 0})
		v := judge(t, e, events.OnPublish, ev)[0]
		if v.Action.Permits() != (want == "") || !strings.HasPrefix(v.Reason, want) {
			t.Errorf("%s: %+v, want reason %q", expr, v, want)
		}
	}
}

func TestFailureModesAndActions(t *testing.T) {
	broken, fails := `data.missing == 1`, `event.id == 'other'`
	for _, c := range []struct {
		name, expr, spec, action string
		want                     events.Action
		notes                    int
	}{
		{"an error denies", broken, "", "deny", events.Deny, 0},
		{"an error denies even a rule that warns", broken, "", "warn", events.Deny, 0},
		{"an ignored error is noted", broken, "failure: ignore", "deny", events.Allow, 1},
		{"deny", fails, "", "deny", events.Deny, 0},
		{"warn", fails, "", "warn", events.Warn, 0},
		{"deny in mode warn", fails, "mode: warn", "deny", events.Warn, 0},
		{"an error in mode warn", broken, "mode: warn", "deny", events.Warn, 0},
		{"deny in mode audit", fails, "mode: audit", "deny", events.Allow, 1},
		{"an error in mode audit", broken, "mode: audit", "deny", events.Allow, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := "apiVersion: stokehold.dev/v1\nkind: Policy\nmetadata: {name: p}\nspec:\n"
			if c.spec != "" {
				file += "  " + c.spec + "\n"
			}
			file += "  rules:\n    - {name: r, expression: \"" + c.expr + "\", action: " + c.action + "}\n"
			log := &governance.MemoryLog{}
			e := engine(t, load(t, governance.Options{}, file), log)
			v := judge(t, e, events.OnPublish, newEvent(t, "batch.published", map[string]int{"a": 1}))[0]
			if v.Action != c.want {
				t.Fatalf("%+v, want %s", v, c.want)
			}
			for d := range log.Read(context.Background(), time.Time{}) {
				if len(d.Notes) != c.notes {
					t.Errorf("notes %+v", d.Notes)
				}
			}
		})
	}
}

func TestDenialWinsOverWarningAndKeepsItAsNote(t *testing.T) {
	log := &governance.MemoryLog{}
	e := engine(t, load(t, governance.Options{},
		policyYAML("a", "{}", rule("soft", "false")+"      action: warn\n"),
		policyYAML("b", "{}", rule("hard", "false")),
		policyYAML("c", "{}", rule("later", "false"))), log)
	v := judge(t, e, events.OnPublish, newEvent(t, "batch.published", nil))[0]
	if v.Action != events.Deny || v.Policy != "b/hard" {
		t.Fatalf("%+v", v)
	}
	for d := range log.Read(context.Background(), time.Time{}) {
		if len(d.Notes) != 2 || d.Notes[0].Policy != "a" || d.Notes[1].Policy != "c" {
			t.Errorf("notes %+v", d.Notes)
		}
	}
}

func TestDataAreNotDecodedUnlessRead(t *testing.T) {
	e := engine(t, load(t, governance.Options{}, policyYAML("p", "{}", rule("r", "event.id != '' || data.x == 1"))), &governance.MemoryLog{})
	ev := newEvent(t, "batch.published", nil)
	ev.DataEncoded = json.RawMessage("not JSON at all")
	if v := judge(t, e, events.OnPublish, ev)[0]; v.Action != events.Allow {
		t.Errorf("%+v", v)
	}
}
