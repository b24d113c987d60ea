package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/policytest"
)

func (a *app) policy() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check, test, explain and apply governance policies",
		Long: `Policies are YAML files whose rules are CEL expressions (docs/GOVERNANCE.md).
lint, test, keygen and sign need no server. apply signs a set of policies as a
bundle and puts it in force in every process of a deployment within a second.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.policyLint(), a.policyTest(), a.policyKeygen(), a.policySign())
	for _, c := range []*cobra.Command{a.policyExplain(), a.policyDiff(), a.policyApply(), a.policyHistory(), a.policyReplay()} {
		config.ServerFlags(c.Flags())
		cmd.AddCommand(c)
	}
	return cmd
}

// paths are one or more positional arguments.
func paths(cmd *cobra.Command, pos []string) error {
	if len(pos) == 0 {
		return usagef("%s: missing PATH of policy files", cmd.CommandPath())
	}
	return nil
}

// types are the options that policies are loaded with, without a server.
func (a *app) types() (governance.Options, error) {
	reg, err := a.platform.Types()
	return governance.Options{Types: reg}, err
}

// desk connects to what policies need.
func (a *app) desk(cmd *cobra.Command) (*stokehold.PolicyDesk, config.Config, error) {
	cfg, err := a.load(cmd)
	if err != nil {
		return nil, cfg, err
	}
	near := cfg // the other servers have no part in it
	near.Temporal.Address, near.S3.Endpoint = "", ""
	if err := reach(cmd.Context(), near); err != nil {
		return nil, cfg, err
	}
	d, err := a.platform.Policies(cmd.Context(), cfg)
	return d, cfg, err
}

// sayFaults prints the faults of policies or cases, one a line, and returns an
// error that counts them; any other error as it is.
func (a *app) sayFaults(err error) error {
	var lines []string
	var load *governance.LoadError
	switch {
	case errors.As(err, &load):
		for _, f := range inOrder(load.Faults) {
			lines = append(lines, f.Error())
		}
		if load.More > 0 {
			lines = append(lines, fmt.Sprintf("and %d more", load.More))
		}
	case errors.Is(err, policytest.ErrCases):
		for l := range strings.Lines(err.Error()) {
			lines = append(lines, strings.TrimSuffix(l, "\n"))
		}
	default:
		return err
	}
	for _, l := range lines {
		fmt.Fprintln(a.env.Out, report.Clean(l))
	}
	return fmt.Errorf("%s, each with its place above", plural(len(lines), "fault", "faults"))
}

// inOrder sorts faults by their places, for people who go through a file.
func inOrder(faults []*governance.PolicyError) []*governance.PolicyError {
	return slices.SortedStableFunc(slices.Values(faults), func(a, b *governance.PolicyError) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

func (a *app) policyLint() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lint PATH...",
		Short: "Check policy files: faults with line, column and what was probably meant; warnings",
		Example: `  stokehold policy lint policies/
  stokehold policy lint --strict a.yaml b.yaml`,
		Args: paths,
	}
	format := outputFlag(cmd)
	strict := cmd.Flags().Bool("strict", false, "exit 1 also for warnings")
	cmd.RunE = func(cmd *cobra.Command, pos []string) error {
		out, err := format()
		if err != nil {
			return err
		}
		opts, err := a.types()
		if err != nil {
			return err
		}
		set, err := governance.LoadPaths(opts, pos...)
		if out == asJSON {
			return a.lintJSON(set, err)
		}
		if err != nil {
			return a.sayFaults(err)
		}
		warnings := governance.Lint(set)
		for _, w := range warnings {
			fmt.Fprintln(a.env.Out, report.Clean(warning(w)))
		}
		policies, rules := set.Len()
		fmt.Fprintf(a.env.Out, "%s, %s, digest %s\n", plural(policies, "policy", "policies"), plural(rules, "rule", "rules"), set.ShortDigest())
		if len(warnings) > 0 && *strict {
			return errors.New(plural(len(warnings), "warning", "warnings"))
		}
		return nil
	}
	return cmd
}

func warning(w governance.Warning) string {
	at := w.File
	if w.Line > 0 {
		at += ":" + strconv.Itoa(w.Line)
	}
	if at != "" {
		at += ": "
	}
	return fmt.Sprintf("%swarning: policy %s: %s [%s]", at, strings.TrimSuffix(w.Policy+"/"+w.Rule, "/"), w.Msg, w.Code)
}

type lintFault struct {
	File       string `json:"file,omitempty"`
	Line       int    `json:"line,omitempty"`
	Column     int    `json:"column,omitempty"`
	Policy     string `json:"policy,omitempty"`
	Rule       string `json:"rule,omitempty"`
	Field      string `json:"field,omitempty"`
	Code       string `json:"code,omitempty"` // of a warning
	Message    string `json:"message"`
	Suggestion string `json:"suggestion,omitempty"`
}

func (a *app) lintJSON(set *governance.PolicySet, err error) error {
	res := struct {
		Faults   []lintFault `json:"faults"`
		Warnings []lintFault `json:"warnings"`
		Digest   string      `json:"digest,omitempty"`
	}{Faults: []lintFault{}, Warnings: []lintFault{}}
	var load *governance.LoadError
	switch {
	case errors.As(err, &load):
		for _, f := range inOrder(load.Faults) {
			res.Faults = append(res.Faults, lintFault{File: f.File, Line: f.Line, Column: f.Column, Policy: f.Policy, Rule: f.Rule, Field: f.Field, Message: f.Msg, Suggestion: f.Suggestion})
		}
		err = errors.New(plural(len(load.Faults)+load.More, "fault", "faults"))
	case err != nil:
		return err
	default:
		res.Digest = set.Digest()
		for _, w := range governance.Lint(set) {
			res.Warnings = append(res.Warnings, lintFault{File: w.File, Line: w.Line, Policy: w.Policy, Rule: w.Rule, Code: w.Code, Message: w.Msg})
		}
	}
	return errors.Join(writeJSON(a.env.Out, res), err)
}

func (a *app) policyTest() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "test PATH...",
		Short: "Run golden cases against policies, and show which rules no case exercises",
		Long: `Test decides the event of each case in the *` + governance.CasesSuffix + ` files and compares the
decision with what the case expects. PATHs are policy files, files of cases, and
directories of both. Each rule is to be seen to hold and to fail.`,
		Example: `  stokehold policy test policies/
  stokehold policy test --min-coverage 1 promotion.yaml promotion.cases.yaml`,
		Args: paths,
	}
	format := outputFlag(cmd)
	least := cmd.Flags().Float64("min-coverage", 0, "exit 1 if the cases cover a smaller `share` of the rules' outcomes, 0 to 1")
	cmd.RunE = func(cmd *cobra.Command, pos []string) error {
		out, err := format()
		if err != nil {
			return err
		}
		if *least < 0 || *least > 1 {
			return usagef("%s: --min-coverage %v: want 0 to 1", cmd.CommandPath(), *least)
		}
		res, err := a.runCases(cmd.Context(), pos)
		if err != nil {
			return a.sayFaults(err)
		}
		if out == asJSON {
			err = writeJSON(a.env.Out, tested(res))
		} else {
			err = a.sayCases(res)
		}
		switch {
		case err != nil:
			return err
		case res.Failed() > 0:
			return fmt.Errorf("%d of %s failed", res.Failed(), plural(len(res.Results), "case", "cases"))
		case res.Covered() < *least:
			return fmt.Errorf("the cases cover %.0f%% of the rules' outcomes; want %.0f%%", 100*res.Covered(), 100**least)
		}
		return nil
	}
	return cmd
}

func (a *app) runCases(ctx context.Context, pos []string) (*policytest.Report, error) {
	policies, files, err := policytest.Find(pos...)
	if err != nil {
		return nil, err
	}
	switch {
	case len(policies) == 0:
		return nil, errors.New("no policies among the paths: name their files or their directory")
	case len(files) == 0:
		return nil, fmt.Errorf("no files of cases (*%s) among the paths", governance.CasesSuffix)
	}
	opts, err := a.types()
	if err != nil {
		return nil, err
	}
	srcs, err := governance.ReadPaths(policies...)
	if err != nil {
		return nil, err
	}
	x, err := governance.NewExplainer(opts, srcs...)
	if err != nil {
		return nil, err
	}
	cases, err := policytest.Read(files...)
	if err != nil {
		return nil, err
	}
	return policytest.Run(ctx, x, cases)
}

// tested is the outcome of cases in JSON.
func tested(res *policytest.Report) any {
	type failure struct {
		File   string   `json:"file"`
		Line   int      `json:"line"`
		Case   string   `json:"case"`
		Faults []string `json:"faults"`
	}
	out := struct {
		Cases    int                       `json:"cases"`
		Failed   []failure                 `json:"failed"`
		Covered  float64                   `json:"covered"`
		Coverage []policytest.RuleCoverage `json:"coverage"`
	}{len(res.Results), []failure{}, res.Covered(), res.Coverage}
	for _, r := range res.Results {
		if len(r.Faults) > 0 {
			out.Failed = append(out.Failed, failure{r.Case.File, r.Case.Line, r.Case.Name, r.Faults})
		}
	}
	return out
}

func (a *app) sayCases(res *policytest.Report) error {
	th := a.env.theme()
	for _, r := range res.Results {
		if len(r.Faults) == 0 {
			continue
		}
		fmt.Fprintf(a.env.Out, "%s %s:%d: %s\n", th.Bad.Render("FAIL"), r.Case.File, r.Case.Line, report.Clean(r.Case.Name))
		for _, f := range r.Faults {
			fmt.Fprintf(a.env.Out, "     %s\n", report.Clean(f))
		}
	}
	g := grid{head: []string{"POLICY", "RULE", "HELD", "FAILED", "ERRORS", "NO CASE IN WHICH IT"}, right: []int{2, 3, 4}}
	for _, c := range res.Coverage {
		missing := strings.Join(c.Missing(), ", ")
		g.add(c.Policy, c.Rule, strconv.Itoa(c.Held), strconv.Itoa(c.Failed), strconv.Itoa(c.Errors), th.Warn.Render(missing))
	}
	if err := g.write(a.env); err != nil {
		return err
	}
	fmt.Fprintf(a.env.Out, "\n%s, %d failed; %.0f%% of the outcomes of %s covered\n",
		plural(len(res.Results), "case", "cases"), res.Failed(), 100*res.Covered(), plural(len(res.Coverage), "rule", "rules"))
	return nil
}

// action colours what governance decided.
func action(th report.Theme, a events.Action) string {
	switch {
	case a == events.Allow:
		return th.Good.Render(string(a))
	case a.Permits():
		return th.Warn.Render(string(a))
	}
	return th.Bad.Render(string(a))
}

// by names the policy and rule that decided.
func by(d *governance.Decision) string {
	s := d.Policy
	if d.Rule != "" {
		s += "/" + d.Rule
	}
	if d.Code != "" {
		s = strings.TrimSpace(s + " (" + d.Code + ")")
	}
	return s
}
