package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/tiers"
)

// dataLabel only adds: taking off is another command, and another right.
func (a *app) dataLabel() *cobra.Command {
	cmd := &cobra.Command{
		Use: "label DATASET LABEL...", Short: "Add labels to a dataset",
		Long: "Add labels, such as pii:health, residency:eu or licence:cc-by-4.0. They bind what\nis made of the dataset, and what was made of it before, too. Labels can become more restrictive only.",
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
	if err != nil {
		return err
	}
	if len(h.Labels) > 0 {
		fmt.Fprintf(a.env.Out, "labels %s\n", report.Clean(strings.Join(h.Labels, ", ")))
	}
	bound, err := d.EffectiveLabels(ctx, dataset)
	if err != nil {
		return err
	}
	if !slices.Equal(bound, h.Labels) {
		fmt.Fprintf(a.env.Out, "with those of what it was made of: labels %s\n", report.Clean(strings.Join(bound, ", ")))
	}
	return nil
}

func (a *app) modelsDeclassify() *cobra.Command {
	cmd := &cobra.Command{
		Use: "declassify MODEL VERSION LABEL...", Short: "Take labels off a model version, if a policy allows",
		Long: "Take labels off a version, by its id, 6 or more of its digits, or an alias such as champion: its own,\n" +
			"and those that come from what it was made of. LABEL is a name for all labels of that name (pii,\n" +
			"residency), or one label (pii:health). Governance is asked and denies, unless a policy names\n" +
			"label.declassified among its types and its rules hold. Who and why is kept in the decision log.",
		Example: `  stokehold models declassify late champion pii --reason "only sums are left"`,
		Args:    args("MODEL", "VERSION", "LABEL..."),
	}
	config.ServerFlags(cmd.Flags())
	reason := cmd.Flags().String("reason", "", "why, in `words` (required)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		off := label.Declassification{Labels: args[2:], Reason: *reason}
		if err := off.Check(); err != nil {
			return usagef("%s: %v", cmd.CommandPath(), err)
		}
		return a.withData(cmd, func(ctx context.Context, d dataSystem) error {
			actor, err := d.Whoami(ctx)
			if err != nil {
				return err
			}
			id, removed, left, err := d.DeclassifyModel(ctx, args[0], args[1], off, actor)
			if err != nil {
				return err
			}
			if len(removed) == 0 {
				fmt.Fprintln(a.env.Out, "nothing to take off")
			}
			if len(left) == 0 {
				left = label.Set{"none"}
			}
			fmt.Fprintf(a.env.Out, "version %s labels %s\n", report.Short(id), report.Clean(strings.Join(left, ", ")))
			return nil
		})
	}
	return cmd
}

// declassifyModel takes labels off a version that a person names.
func declassifyModel(ctx context.Context, r *models.Registry, model, version string, d label.Declassification, actor string) (id string, removed, left label.Set, err error) {
	v, err := r.Get(ctx, model, version)
	if err != nil && !errors.Is(err, models.ErrAmbiguous) {
		if at, none := r.Alias(ctx, model, version); none == nil {
			v, err = at, nil
		}
	}
	if err != nil {
		return "", nil, nil, err
	}
	removed, left, err = r.Declassify(ctx, model, v.ID, d, actor)
	return v.ID, removed, left, err
}
