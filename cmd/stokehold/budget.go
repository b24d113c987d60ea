package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/governance/budget"
)

func (a *app) budget() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "budget",
		Short: "Show what may be spent and what was, set it, raise it",
		Long: `Budgets limit the accelerator-seconds and the money of runs, pipelines and teams
(docs/BUDGETS.md). A run that reaches a limit waits, and goes on where it was
after a raise or when the next window begins.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, c := range []*cobra.Command{a.budgetList(), a.budgetApply(), a.budgetSet(false), a.budgetSet(true), a.budgetHistory()} {
		config.ServerFlags(c.Flags())
		cmd.AddCommand(c)
	}
	return cmd
}

// budgetDesk connects to what budgets need.
func (a *app) budgetDesk(cmd *cobra.Command) (*stokehold.BudgetDesk, config.Config, error) {
	cfg, err := a.load(cmd)
	if err != nil {
		return nil, cfg, err
	}
	near := cfg // who looks needs no other server
	near.Temporal.Address, near.S3.Endpoint = "", ""
	if err := reach(cmd.Context(), near); err != nil {
		return nil, cfg, err
	}
	d, err := a.platform.Budgets(cmd.Context(), cfg)
	return d, cfg, err
}

func (a *app) budgetList() *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Short: "List what each budget has in the current window", Args: args()}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		out, err := format()
		if err != nil {
			return err
		}
		desk, _, err := a.budgetDesk(cmd)
		if err != nil {
			return err
		}
		defer closing(cmd.Context(), &err, desk.Close)
		list, err := desk.Ledger.Balances(cmd.Context())
		if err != nil {
			return err
		}
		if out == asJSON {
			return writeJSON(a.env.Out, append([]budget.Balance{}, list...))
		}
		if d, _ := desk.Ledger.Document(); d == nil {
			fmt.Fprintln(a.env.Err, "no limits were ever set: 'stokehold budget apply FILE' does")
		}
		th := a.env.theme()
		g := grid{head: []string{"SCOPE", "WINDOW", "RESOURCE", "SPENT", "LIMIT", "LEFT", "USED", "UNTIL"}, right: []int{3, 4, 5, 6}}
		for _, b := range list {
			used, until := share(b), ""
			switch {
			case b.Left() == 0:
				used = th.Bad.Render(used)
			case b.Spent*10 >= b.Limit*9:
				used = th.Warn.Render(used)
			}
			if !b.Renews.IsZero() {
				until = b.Renews.Local().Format("2006-01-02 15:04")
			}
			resource := b.Resource
			if b.Resource == budget.Money && b.Currency != "" {
				resource = b.Currency
			}
			g.add(report.Clean(b.Scope), string(b.Window), report.Clean(resource), b.Spent.String(), b.Limit.String(), b.Left().String(), used, until)
		}
		return g.write(a.env)
	}
	return cmd
}

// share is how much of a limit is spent.
func share(b budget.Balance) string {
	if b.Limit == 0 {
		return "100%"
	}
	return fmt.Sprintf("%.0f%%", 100*b.Spent.Float()/b.Limit.Float())
}

func (a *app) budgetHistory() *cobra.Command {
	cmd := &cobra.Command{Use: "history", Short: "List the changes of limits that are kept: when, who, what and why", Args: args()}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		out, err := format()
		if err != nil {
			return err
		}
		desk, _, err := a.budgetDesk(cmd)
		if err != nil {
			return err
		}
		defer closing(cmd.Context(), &err, desk.Close)
		list, err := desk.Store.History(cmd.Context())
		if errors.Is(err, budget.ErrNotFound) {
			list, err = nil, nil
		}
		if err != nil {
			return err
		}
		if out == asJSON {
			return writeJSON(a.env.Out, append([]budget.Entry{}, list...))
		}
		g := grid{head: []string{"REVISION", "SET", "BY", "WHAT", "WHY"}}
		for _, e := range slices.Backward(list) {
			g.add(strconv.FormatUint(e.Revision, 10), when(e.Stored, a.env.Now()), report.Clean(e.Actor), report.Clean(e.Change), report.Clean(e.Reason))
		}
		return g.write(a.env)
	}
	return cmd
}

func (a *app) budgetApply() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "apply FILE",
		Short:   "Put a document of limits in place of what there is; - reads standard input",
		Example: `  stokehold budget apply budgets.yaml --reason "the second quarter"`,
		Args:    args("FILE"),
	}
	reason := reasonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, pos []string) error {
		raw, err := a.readLimits(pos[0])
		if err != nil {
			return err
		}
		if _, err := budget.ParseDocument(raw); err != nil {
			return fmt.Errorf("%s: %w", pos[0], err)
		}
		return a.changeBudgets(cmd, *reason, func(ctx context.Context, c budget.Changing) (budget.Entry, error) {
			have, err := c.Store.Get(ctx)
			if err != nil && !errors.Is(err, budget.ErrNotFound) {
				return budget.Entry{}, err
			}
			return budget.Apply(ctx, c, raw, have.Revision)
		})
	}
	return cmd
}

func (a *app) readLimits(path string) ([]byte, error) {
	in := a.env.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	return io.ReadAll(io.LimitReader(in, budget.MaxDocumentBytes+1))
}

// budgetSet is set or raise.
func (a *app) budgetSet(raise bool) *cobra.Command {
	name, short, by := "set", "Give a scope's budget new limits; those that are not named stay", "is"
	change := budget.Set
	if raise {
		name, short, by = "raise", "Add to the limits of a scope's budget; runs that wait for it go on", "is more by"
		change = budget.Raise
	}
	cmd := &cobra.Command{
		Use:   name + " SCOPE",
		Short: short,
		Long:  short + ".\nSCOPE is team/NAME, pipeline/NAME, run/PIPELINE/KEY, run/PIPELINE/* or run/*.",
		Args:  args("SCOPE"),
	}
	reason := reasonFlag(cmd)
	money := cmd.Flags().String("money", "", "the limit of money "+by+" this `amount`")
	accelerator := cmd.Flags().String("accelerator-seconds", "", "the limit of time on accelerators "+by+" this many `seconds`")
	kinds := cmd.Flags().StringArray("seconds", nil, "the limit of time on one kind "+by+" `KIND=SECONDS`, e.g. nvidia-h100=3600; repeatable")
	window := cmd.Flags().String("window", "", "of which `window`: day or month, where the scope has several or none")
	cmd.RunE = func(cmd *cobra.Command, pos []string) error {
		var l budget.Limits
		for flag, limit := range map[string]struct {
			text string
			to   **budget.Micro
		}{"money": {*money, &l.Money}, "accelerator-seconds": {*accelerator, &l.AcceleratorSeconds}} {
			if limit.text == "" {
				continue
			}
			v, err := budget.ParseMicro(limit.text)
			if err != nil {
				return usagef("%s: --%s: %w", cmd.CommandPath(), flag, err)
			}
			*limit.to = &v
		}
		for _, k := range *kinds {
			kind, text, ok := strings.Cut(k, "=")
			v, err := budget.ParseMicro(text)
			if !ok || err != nil {
				return usagef("%s: --seconds %q: want KIND=SECONDS, e.g. cpu=3600", cmd.CommandPath(), k)
			}
			if l.Seconds == nil {
				l.Seconds = map[string]budget.Micro{}
			}
			l.Seconds[kind] = v
		}
		if l.Money == nil && l.AcceleratorSeconds == nil && l.Seconds == nil {
			return usagef("%s: no limit is given: --money, --accelerator-seconds or --seconds", cmd.CommandPath())
		}
		return a.changeBudgets(cmd, *reason, func(ctx context.Context, c budget.Changing) (budget.Entry, error) {
			return change(ctx, c, pos[0], budget.Window(*window), l)
		})
	}
	return cmd
}

func reasonFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("reason", "", "why, one `line` for the record; required")
}

// changeBudgets changes limits on behalf of whoever this is.
func (a *app) changeBudgets(cmd *cobra.Command, reason string, change func(context.Context, budget.Changing) (budget.Entry, error)) (err error) {
	if strings.TrimSpace(reason) == "" {
		return usagef("%s: --reason is missing: it goes on the record", cmd.CommandPath())
	}
	desk, cfg, err := a.budgetDesk(cmd)
	if err != nil {
		return err
	}
	defer closing(cmd.Context(), &err, desk.Close)
	actor, err := desk.Whoami(cmd.Context(), cfg.Actor)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
	defer cancel()
	e, told, err := desk.Change(ctx, a.author(actor), reason, change)
	if e.Revision != 0 && e.Change != "" {
		fmt.Fprintf(a.env.Out, "%s\n", report.Clean(e.Change))
	}
	if told > 0 {
		fmt.Fprintf(a.env.Out, "told %s that waited\n", plural(told, "run", "runs"))
	}
	return err
}
