package policytest_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/policytest"
)

const rows = `apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: rows}
spec:
  match: {types: [batch.published]}
  rules:
    - name: some
      expression: data.rows > 0.0
      messageExpression: "'%d rows'.format([int(data.rows)])"
      reason: NoRows
    - name: few
      expression: data.rows < 1000.0
      message: many rows
      action: warn
`

func run(t testing.TB, cases string) (*policytest.Report, error) {
	t.Helper()
	x, err := governance.NewExplainer(governance.Options{}, governance.Source{Name: "rows.yaml", Data: []byte(rows)})
	if err != nil {
		t.Fatal(err)
	}
	cs, err := policytest.Parse("rows.cases.yaml", []byte(cases))
	if err != nil {
		return nil, err
	}
	return policytest.Run(t.Context(), x, cs)
}

func TestRunSaysWhatDiffersAndWhatNoCaseExercises(t *testing.T) {
	r, err := run(t, `defaults: {type: batch.published}
cases:
- {name: good, data: {rows: 5}, action: allow}
- {name: none, data: {rows: 0}, action: deny, policy: rows/some, code: NoRows, reason: 0 rows}
- {name: wrong action, data: {rows: 0}, action: allow}
- {name: wrong rule, data: {rows: 0}, action: deny, policy: rows/few}
- {name: wrong reason, data: {rows: 0}, action: deny, policy: rows/some, reason: no rows, code: Other}
- {name: missing, data: {}, action: deny, policy: rows/some, code: Evaluation}
`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range r.Results {
		got = append(got, c.Case.Name+": "+strings.Join(c.Faults, "; "))
	}
	want := []string{
		"good: ", "none: ",
		`wrong action: action "deny", want "allow"; policy "rows/some", want ""; the reason is: 0 rows`,
		`wrong rule: policy "rows/some", want "rows/few"; the reason is: 0 rows`,
		`wrong reason: code "NoRows", want "Other"; reason "0 rows", want "no rows"`,
		"missing: ",
	}
	if !slices.Equal(got, want) || r.Failed() != 3 {
		t.Errorf("%d failed:\n%s", r.Failed(), strings.Join(got, "\n"))
	}
	if len(r.Coverage) != 2 || r.Coverage[0] != (policytest.RuleCoverage{Policy: "rows", Rule: "some", Held: 1, Failed: 4, Errors: 1}) ||
		!slices.Equal(r.Coverage[1].Missing(), []string{"failed"}) && r.Coverage[1].Errors == 0 {
		t.Errorf("coverage %+v", r.Coverage)
	}
	if r.Covered() != 1 { // an error of the second rule is an outcome, too
		t.Errorf("covered %v", r.Covered())
	}
	if r, err = run(t, "- {name: good, type: batch.published, data: {rows: 5}, action: allow}\n"); err != nil || r.Covered() != 0.5 {
		t.Errorf("covered %v, %v", r.Covered(), err)
	}
}

func TestFilesOfCasesAreReadStrictly(t *testing.T) {
	good := "- {name: a, type: t.x, action: allow}\n"
	for name, c := range map[string]struct{ text, want string }{
		"nothing":          {"", "rows.cases.yaml: no cases"},
		"no list":          {"hello", "want a list of cases"},
		"broken YAML":      {"- [", "rows.cases.yaml: line 1"},
		"an unknown field": {"- name: a\n  type: t.x\n  acton: allow\n", `rows.cases.yaml:3:3: case a: unknown field "acton"`},
		"an unknown head":  {"default: {}\ncases: []\n", `1:1: unknown field "default"`},
		"no name":          {"- {type: t.x, action: allow}\n", "needs a name"},
		"no type":          {"- {name: a, action: allow}\n", "needs a type"},
		"no action":        {"- {name: a, type: t.x}\n", "needs the action"},
		"a name twice":     {good + good, "rows.cases.yaml:2:3: case a: there is another"},
		"a bad point":      {"- {name: a, type: t.x, action: allow, point: send}\n", `point "send"`},
		"a bad time":       {"- {name: a, type: t.x, action: allow, time: noon}\n", "cannot parse"},
		"an unknown fact":  {"- {name: a, type: t.x, action: allow, facts: {wheather: {}}}\n", `case a: facts: json: unknown field "wheather"`},
		"a misspelt fact":  {"- {name: a, type: t.x, action: allow, facts: {worker: {acelerator: x}}}\n", `facts: json: unknown field "acelerator"`},
		"data twice":       {"- {name: a, type: t.x, action: allow, data: {}, json: '{}'}\n", "give one of them"},
		"an alias bomb":    {"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n", "unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := run(t, c.text)
			if !errors.Is(err, policytest.ErrCases) || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("got %v\nwant %q", err, c.want)
			}
		})
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"rows.yaml": rows, "rows.cases.yaml": "- {name: good, type: batch.published, data: {rows: 5}, action: allow}\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	policies, cases, err := policytest.Find(dir, filepath.Join(dir, "rows.cases.yaml"))
	if err != nil || len(policies) != 1 || len(cases) != 2 {
		t.Errorf("%v, %v, %v", policies, cases, err)
	}
	policytest.Check(t, governance.Options{}, 0.5, dir)
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"- {name: a, type: t.x, action: allow, data: {a: [1, x]}, json: '{}'}\n", "defaults: {type: x}\ncases:\n- name: b\n", "&a [*a]", "- ? {a: b}\n  : c"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		cases, err := policytest.Parse("fuzz", raw)
		if err != nil {
			if !errors.Is(err, policytest.ErrCases) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		for i := range cases {
			if _, err := cases[i].Event(); err != nil && !errors.Is(err, policytest.ErrCases) {
				t.Fatalf("an error of no kind: %v", err)
			}
		}
	})
}

func TestCasesGiveFactsAndApprovals(t *testing.T) {
	x, err := governance.NewExplainer(governance.Options{}, governance.Source{Name: "p.yaml", Data: []byte(`apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: p}
spec:
  match: {types: [model.promoted]}
  rules:
    - {name: region, expression: "worker.region == 'eu'", message: not in the EU}
    - {name: eyes, expression: "false", message: two must agree, action: requireApproval, approval: {roles: [owner], quorum: 2}}
`)})
	if err != nil {
		t.Fatal(err)
	}
	cases, err := policytest.Parse("p.cases.yaml", []byte(`defaults: {type: model.promoted, actor: carol, data: {}}
cases:
- {name: waits, facts: {worker: {region: eu}}, action: require_approval, policy: p/eyes, reason: two must agree (not approved yet)}
- {name: one is not enough, facts: {worker: {region: eu}}, approved: [alice], action: require_approval, policy: p/eyes}
- {name: approved, facts: {worker: {region: eu}}, approved: [alice, bob], action: allow}
- {name: her own does not count, facts: {worker: {region: eu}}, approved: [alice, carol], action: require_approval, policy: p/eyes}
- {name: elsewhere, facts: {worker: {region: us}}, approved: [alice, bob], action: deny, policy: p/region}
- {name: nobody knows, action: deny, policy: p/region, code: Evaluation}
`))
	if err != nil {
		t.Fatal(err)
	}
	r, err := policytest.Run(t.Context(), x, cases)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Results {
		if len(c.Faults) > 0 {
			t.Errorf("%s: %s: %+v", c.Case.Name, strings.Join(c.Faults, "; "), c.Decision)
		}
	}
}
