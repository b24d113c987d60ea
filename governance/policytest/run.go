package policytest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// Result is what came of one case.
type Result struct {
	Case     Case
	Decision governance.Decision
	Faults   []string // how the decision differs from what is expected; none: it passed
}

// RuleCoverage counts what came of one rule over all cases.
type RuleCoverage struct {
	Policy string `json:"policy"`
	Rule   string `json:"rule"`
	Held   int    `json:"held"`
	Failed int    `json:"failed"`
	Errors int    `json:"errors"`
}

// Missing says what no case exercises: "held", "failed", both, or nothing.
func (r RuleCoverage) Missing() []string {
	var out []string
	if r.Held == 0 {
		out = append(out, "held")
	}
	if r.Failed+r.Errors == 0 {
		out = append(out, "failed")
	}
	return out
}

// Report is what came of all cases.
type Report struct {
	Results  []Result
	Coverage []RuleCoverage // of every rule, by policy, in the rules' order
}

// Failed counts the cases that did not pass.
func (r *Report) Failed() int {
	n := 0
	for _, c := range r.Results {
		if len(c.Faults) > 0 {
			n++
		}
	}
	return n
}

// Covered is the share of the rules' two outcomes, held and not, that the cases
// exercise, from 0 to 1; 1 without rules.
func (r *Report) Covered() float64 {
	missing := 0
	for _, c := range r.Coverage {
		missing += len(c.Missing())
	}
	if len(r.Coverage) == 0 {
		return 1
	}
	return 1 - float64(missing)/float64(2*len(r.Coverage))
}

// Run decides each case.
func Run(ctx context.Context, x *governance.Explainer, cases []Case) (*Report, error) {
	out := &Report{}
	counts := map[[2]string]*RuleCoverage{}
	for _, r := range x.Set().Rules() {
		out.Coverage = append(out.Coverage, RuleCoverage{Policy: r.Policy, Rule: r.Rule})
	}
	for i := range out.Coverage {
		c := &out.Coverage[i]
		counts[[2]string{c.Policy, c.Rule}] = c
	}
	for _, c := range cases {
		ev, err := c.Event()
		if err != nil {
			return nil, err
		}
		facts, err := c.facts()
		if err != nil {
			return nil, &CaseError{File: c.File, Line: c.Line, Case: c.Name, Msg: err.Error()}
		}
		x.Suppose(facts, approvals{c.Approved, c.now(ev)})
		e, err := x.Explain(ctx, c.Point, c.now(ev), ev)
		if err != nil {
			return nil, fmt.Errorf("case %s: %w", c.Name, err)
		}
		for _, p := range e.Policies {
			for _, r := range p.Rules {
				n := counts[[2]string{p.Name, r.Name}]
				switch r.Outcome {
				case governance.Held:
					n.Held++
				case governance.Failed:
					n.Failed++
				case governance.Errors:
					n.Errors++
				}
			}
		}
		out.Results = append(out.Results, Result{Case: c, Decision: e.Decision, Faults: append(c.compare(&e.Decision), c.compareEvent(e.Event)...)})
	}
	return out, nil
}

// now is the time of judging.
func (c *Case) now(ev *events.Event) time.Time {
	if c.Now.IsZero() {
		return ev.Time()
	}
	return c.Now
}

// compare says how a decision differs from what the case expects.
func (c *Case) compare(d *governance.Decision) []string {
	var out []string
	by := d.Policy
	if d.Rule != "" {
		by += "/" + d.Rule
	}
	differ := func(what string, got, want any) { out = append(out, fmt.Sprintf("%s %q, want %q", what, got, want)) }
	if d.Action != c.Action {
		differ("action", d.Action, c.Action)
	}
	if by != c.Policy {
		differ("policy", by, c.Policy)
	}
	if c.Code != "" && d.Code != c.Code {
		differ("code", d.Code, c.Code)
	}
	if c.Reason != "" && d.Reason != c.Reason {
		differ("reason", d.Reason, c.Reason)
	}
	var notes []string
	for _, n := range d.Notes {
		notes = append(notes, n.Reason)
	}
	if got, want := strings.Join(notes, "; "), strings.Join(c.Notes, "; "); got != want && (c.Notes != nil || d.Action.Permits()) {
		differ("notes", got, want)
	}
	if len(out) > 0 && c.Reason == "" && d.Reason != "" {
		out = append(out, "the reason is: "+d.Reason)
	}
	return out
}

// compareEvent says how the event differs from what the case expects it to become.
func (c *Case) compareEvent(ev *events.Event) []string {
	if ev == nil {
		return nil
	}
	var out []string
	for _, a := range []struct{ what, name, want string }{{"route", events.ExtRoute, c.Route}, {"columns", events.ExtColumns, c.Columns}} {
		if got, _ := ev.Extensions()[a.name].(string); got != a.want {
			out = append(out, fmt.Sprintf("%s %q, want %q", a.what, got, a.want))
		}
	}
	if c.After == nil {
		return out
	}
	var data any
	if err := json.Unmarshal(ev.DataEncoded, &data); err != nil {
		return append(out, "the data are no JSON: "+err.Error())
	}
	got, errGot := json.Marshal(data)
	want, errWant := json.Marshal(c.After)
	if err := errors.Join(errGot, errWant); err != nil {
		return append(out, "after: "+err.Error())
	}
	if !bytes.Equal(got, want) {
		out = append(out, fmt.Sprintf("data %s, want %s", got, want))
	}
	return out
}

// Find returns the policies and the files of cases among paths: of directories,
// those directly in them.
func Find(paths ...string) (policies, cases []string, err error) {
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, nil, fmt.Errorf("policies: %w", err)
		}
		if !info.IsDir() {
			if isCases(p) {
				cases = append(cases, p)
			} else {
				policies = append(policies, p)
			}
			continue
		}
		found, err := fs.Glob(os.DirFS(p), "*"+governance.CasesSuffix)
		if err != nil {
			return nil, nil, err
		}
		for _, f := range found {
			cases = append(cases, filepath.Join(p, f))
		}
		policies = append(policies, p)
	}
	return policies, cases, nil
}

// Check runs the cases of files against policies, each as a subtest, for the
// user's own Go tests:
//
//	func TestPolicies(t *testing.T) {
//		policytest.Check(t, governance.Options{Types: registry}, 1, "policies")
//	}
//
// paths are policies, files of cases, and directories of both. It fails if the
// cases cover less than minCoverage (see Report.Covered) of the rules.
func Check(t *testing.T, opts governance.Options, minCoverage float64, paths ...string) {
	t.Helper()
	policies, files, err := Find(paths...)
	if err != nil {
		t.Fatal(err)
	}
	srcs, err := governance.ReadPaths(policies...)
	if err != nil {
		t.Fatal(err)
	}
	x, err := governance.NewExplainer(opts, srcs...)
	if err != nil {
		t.Fatal(err)
	}
	cases, err := Read(files...)
	if err != nil {
		t.Fatal(err)
	}
	report, err := Run(t.Context(), x, cases)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range report.Results {
		t.Run(r.Case.Name, func(t *testing.T) {
			for _, f := range r.Faults {
				t.Errorf("%s:%d: %s", r.Case.File, r.Case.Line, f)
			}
		})
	}
	if report.Covered() >= minCoverage {
		return
	}
	t.Errorf("the cases cover %.0f%% of the rules' outcomes; want %.0f%%", 100*report.Covered(), 100*minCoverage)
	for _, c := range report.Coverage {
		if m := c.Missing(); len(m) > 0 {
			t.Errorf("no case in which %s/%s has %s", c.Policy, c.Rule, strings.Join(m, ", or in which it has "))
		}
	}
}
