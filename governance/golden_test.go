package governance_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/policytest"
)

// factCase is a case of testdata/golden: that of promotion.cases.yaml, with what
// the newer actions and variables need.
type factCase struct {
	Name, Type, Subject, Actor, Pipeline, Stage          string
	Labels, Approved                                     []string
	Data, After, Facts                                   any
	Now                                                  time.Time
	Action, Policy, Code, Reason, Route, Columns, Effect string
}

func readCases(t *testing.T, path string) []factCase {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	var defaults yaml.Node
	list := doc.Content[0]
	if list.Kind == yaml.MappingNode {
		var head struct {
			Defaults, Cases yaml.Node
		}
		if err := list.Decode(&head); err != nil {
			t.Fatal(err)
		}
		defaults, list = head.Defaults, &head.Cases
	}
	var out []factCase
	for _, n := range list.Content {
		var c factCase
		if defaults.Kind != 0 {
			if err := defaults.Decode(&c); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Decode(&c); err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

// anyApproval answers every request with the same people.
type anyApproval []string

func (a anyApproval) Approved(_ context.Context, id string) (governance.Grant, error) {
	if len(a) == 0 {
		return governance.Grant{}, governance.ErrNotApproved
	}
	return governance.Grant{ID: id, By: a, At: testTime, Expires: testTime.AddDate(10, 0, 0)}, nil
}

// The policies that a deployment starts from, each with the cases that it is for.
func TestGoldenPoliciesByConcern(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.cases.yaml")
	if err != nil || len(files) < 7 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		policies := strings.TrimSuffix(file, ".cases.yaml") + ".yaml"
		set, err := governance.LoadPaths(governance.Options{Types: standardTypes(t)}, policies)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range governance.Lint(set) {
			// A rule that never holds is how "always ask" and "always route" are written.
			t.Errorf("%s", w)
		}
		decided := map[string]bool{}
		for _, c := range readCases(t, file) {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".cases.yaml")+"/"+c.Name, func(t *testing.T) {
				decided[c.Policy] = true
				goldenDecision(t, set, c)
			})
		}
		for _, id := range ruleIDs(t, policies) {
			if !decided[id] {
				t.Errorf("no case of %s is decided by %s", file, id)
			}
		}
	}
}

// They are also what 'stokehold policy test' takes.
func TestGoldenPoliciesInTheRunnersForm(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.cases.yaml")
	if err != nil || len(files) < 7 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, cases := range files {
		t.Run(filepath.Base(cases), func(t *testing.T) {
			policies := strings.TrimSuffix(cases, governance.CasesSuffix) + ".yaml"
			policytest.Check(t, governance.Options{Types: standardTypes(t)}, 0.75, policies, cases) // a rule that always asks never holds
		})
	}
}

func goldenDecision(t *testing.T, set *governance.PolicySet, c factCase) {
	t.Helper()
	ev := newEvent(t, c.Type, c.Data)
	if c.Subject != "" {
		ev.SetSubject(c.Subject)
	}
	if c.Actor != "" {
		ev.SetExtension(events.ExtActor, c.Actor)
	}
	if c.Pipeline != "" {
		ev.SetExtension(events.ExtPipeline, c.Pipeline)
		ev.SetExtension(events.ExtStage, c.Stage)
	}
	if c.Labels != nil {
		ev.SetExtension(events.ExtLabels, strings.Join(c.Labels, ","))
	}
	var known governance.Known
	raw, err := json.Marshal(c.Facts)
	if err == nil {
		err = json.Unmarshal(raw, &known)
	}
	if err != nil {
		t.Fatal(err)
	}
	now := c.Now
	if now.IsZero() {
		now = testTime
	}
	log := &governance.MemoryLog{}
	e := engineWith(t, governance.Config{Policies: set, Log: log, Facts: known.Facts(), Approvals: anyApproval(c.Approved), Clock: func() time.Time { return now }})
	v := judge(t, e, events.OnPublish, ev)[0]
	d := lastDecision(log)
	if string(v.Action) != c.Action || v.Policy != c.Policy || c.Reason != "" && v.Reason != c.Reason || c.Code != "" && d.Code != c.Code {
		t.Errorf("%+v %s, want %s by %q, code %q, reason %q", v, d.Code, c.Action, c.Policy, c.Code, c.Reason)
	}
	attribute := func(name string) string { s, _ := ev.Extensions()[name].(string); return s }
	if got := attribute(events.ExtRoute); got != c.Route {
		t.Errorf("route %q, want %q", got, c.Route)
	}
	if got := attribute(events.ExtColumns); got != c.Columns {
		t.Errorf("columns %q, want %q", got, c.Columns)
	}
	if c.After != nil {
		want, err := json.Marshal(c.After)
		if err != nil {
			t.Fatal(err)
		}
		var got any
		if err := json.Unmarshal(ev.DataEncoded, &got); err != nil {
			t.Fatal(err)
		}
		if again, err := json.Marshal(got); err != nil || string(again) != string(want) {
			t.Errorf("data %s, want %s", again, want)
		}
	}
	if r := judge(t, e, events.OnReceive, ev)[0]; r.Action.Permits() != v.Action.Permits() {
		t.Errorf("on receive %+v after %+v", r, v)
	}
}

// ruleIDs are the rules of a file, "policy/rule".
func ruleIDs(t *testing.T, path string) []string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dec := yaml.NewDecoder(strings.NewReader(string(raw)))
	var out []string
	for {
		var doc struct {
			Metadata struct{ Name string }
			Spec     struct{ Rules []struct{ Name string } }
		}
		if err := dec.Decode(&doc); err != nil {
			return out
		}
		for _, r := range doc.Spec.Rules {
			out = append(out, doc.Metadata.Name+"/"+r.Name)
		}
	}
}
