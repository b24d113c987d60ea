package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/tiers"
)

// dataLabel only adds: taking off is another command, and another right.
func (a *app) dataLabel() *cobra.Command {
	cmd := &cobra.Command{
		Use: "label DATASET LABEL...", Short: "Add labels to a dataset",
		Long: "Add labels, such as pii:health, residency:eu or licence:cc-by-4.0. What is made of the\ndataset from then on has them too. Labels can become more restrictive only.",
		Args: args("DATASET", "LABEL..."),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		set, err := label.Parse(args[1:])
		if err != nil {
			return usagef("%s: %v", cmd.CommandPath(), err)
		}
		return a.withDataset(cmd, args[0], func(ctx context.Context, d dataSystem, _ tiers.Head) error {
			if err := d.AddLabels(ctx, args[0], set); err != nil {
				return err
			}
			return a.printLabels(ctx, d, args[0])
		})
	}
	return cmd
}

func (a *app) dataDeclassify() *cobra.Command {
	cmd := &cobra.Command{
		Use: "declassify DATASET LABEL...", Short: "Take labels off a dataset, if a policy allows",
		Long: "Take labels off: a name for all labels of that name (pii, residency), or one label\n(pii:health). Governance is asked and denies, unless a policy names label.declassified\namong its types and its rules hold. Who and why is kept in the decision log.",
		Args: args("DATASET", "LABEL..."),
	}
	reason := cmd.Flags().String("reason", "", "why, in `words` (required)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		off := label.Declassification{Labels: args[1:], Reason: *reason}
		if err := off.Check(); err != nil {
			return usagef("%s: %v", cmd.CommandPath(), err)
		}
		return a.withDataset(cmd, args[0], func(ctx context.Context, d dataSystem, _ tiers.Head) error {
			actor, err := d.Whoami(ctx)
			if err != nil {
				return err
			}
			removed, err := d.Declassify(ctx, args[0], off, actor)
			if err != nil {
				return err
			}
			if len(removed) == 0 {
				fmt.Fprintln(a.env.Out, "nothing to take off")
			}
			return a.printLabels(ctx, d, args[0])
		})
	}
	return cmd
}

// printLabels writes what a dataset is labelled with, if it is.
func (a *app) printLabels(ctx context.Context, d dataSystem, dataset string) error {
	h, err := d.Head(ctx, dataset)
	if err != nil || len(h.Labels) == 0 {
		return err
	}
	fmt.Fprintf(a.env.Out, "labels %s\n", report.Clean(strings.Join(h.Labels, ", ")))
	return nil
}
