package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/workflows"
)

// pageRows is how many rows of a table are laid out at once: a listing of a million
// batches is in memory one page at a time.
const pageRows = 256

func (a *app) data() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "data",
		Short: "Look at datasets and their copies, verify, move and clean them up",
		Args:  args(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	config.ServerFlags(cmd.PersistentFlags())
	cmd.AddCommand(a.dataList(), a.dataShow(), a.dataVerify(), a.dataCollect(), a.dataPin(), a.dataUnpin(), a.dataMove(), a.dataExport(),
		a.dataLabel(), a.dataDeclassify(), a.dataTakeOver())
	return cmd
}

// withData runs f on the data plane of the deployment that the flags name.
func (a *app) withData(cmd *cobra.Command, f func(context.Context, dataSystem) error) (err error) {
	cfg, err := a.load(cmd)
	if err != nil {
		return err
	}
	if err := reach(cmd.Context(), cfg); err != nil {
		return err
	}
	d, err := a.platform.Data(cmd.Context(), cfg)
	if err != nil {
		return err
	}
	defer closing(cmd.Context(), &err, d.Close)
	return f(cmd.Context(), d)
}

// withDataset is withData for commands about one dataset, which must exist.
func (a *app) withDataset(cmd *cobra.Command, name string, f func(context.Context, dataSystem, tiers.Head) error) error {
	return a.withData(cmd, func(ctx context.Context, d dataSystem) error {
		head, err := d.Head(ctx, name)
		if errors.Is(err, tiers.ErrNotFound) {
			return fmt.Errorf("no dataset %q: 'stokehold data ls' lists them", name)
		}
		if err != nil {
			return err
		}
		return f(ctx, d, head)
	})
}

// span is the range of batches that a command is about.
type span struct{ from, to *uint64 }

func spanFlags(cmd *cobra.Command) span {
	return span{
		cmd.Flags().Uint64("from", 0, "first `batch`"),
		cmd.Flags().Uint64("to", 0, "`batch` before which to end (default: the dataset's end)"),
	}
}

// check refuses a range without batches.
func (s span) check(cmd *cobra.Command) error {
	if *s.from >= s.end() {
		return usagef("%s: --from %d --to %d: want a range with batches in it; --to is the one before which to end", cmd.CommandPath(), *s.from, *s.to)
	}
	return nil
}

func (s span) end() uint64 {
	if *s.to == 0 {
		return tiers.End
	}
	return *s.to
}

func (a *app) dataList() *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Short: "List datasets", Args: args()}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		out, err := format()
		if err != nil {
			return err
		}
		return a.withData(cmd, func(ctx context.Context, d dataSystem) error {
			return printAll(a, out, d.Datasets(ctx), grid{head: []string{"DATASET", "BATCHES", "ROWS", "SEALED", "WRITER", "LABELS"}, right: []int{1, 2}},
				func(h tiers.Head) []string {
					return []string{report.Clean(h.Dataset), report.Count(int64(h.Next)), report.Count(h.Rows), yes(h.Sealed),
						report.Clean(h.Fence.Run + "/" + h.Fence.Stage), report.Clean(strings.Join(h.Labels, " "))}
				})
		})
	}
	return cmd
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// printAll writes rows as they come: a page of a table, or a JSON value a line.
func printAll[T any](a *app, format string, all iter.Seq2[T, error], g grid, row func(T) []string) error {
	enc := json.NewEncoder(a.env.Out)
	written := false
	for v, err := range all {
		if err != nil {
			return err
		}
		if format == asJSON {
			if err := enc.Encode(v); err != nil {
				return fmt.Errorf("write JSON: %w", err)
			}
			continue
		}
		g.add(row(v)...)
		if len(g.rows) == pageRows {
			if err := g.write(a.env); err != nil {
				return err
			}
			g.rows, written = g.rows[:0], true
		}
	}
	if format == asJSON || written && len(g.rows) == 0 {
		return nil
	}
	return g.write(a.env)
}

func (a *app) dataShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show DATASET", Short: "List the batches of a dataset and where their copies are", Args: args("DATASET")}
	format, s := outputFlag(cmd), spanFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		out, err := format()
		if err != nil {
			return err
		}
		if err := s.check(cmd); err != nil {
			return err
		}
		return a.withDataset(cmd, args[0], func(ctx context.Context, d dataSystem, _ tiers.Head) error {
			pins, err := d.Pins(ctx, args[0])
			if err != nil {
				return err
			}
			g := grid{head: []string{"BATCH", "ROWS", "BODY", "TIERS", "SHA-256", "COMMITTED", "READ"}, right: []int{0, 1, 2}}
			err = printAll(a, out, d.Entries(ctx, args[0], *s.from, s.end()), g, func(b tiers.BatchInfo) []string { return a.batchRow(b) })
			if err != nil || out == asJSON {
				return err
			}
			for _, p := range pins {
				fmt.Fprintf(a.env.Out, "%s\n", report.Clean(p.String()))
			}
			return a.printLabels(ctx, d, args[0])
		})
	}
	return cmd
}

func (a *app) batchRow(b tiers.BatchInfo) []string {
	var at, sums []string
	for _, l := range b.Ref.Locations {
		at = append(at, fmt.Sprintf("%s %s", l.Tier, report.Bytes(l.Bytes)))
		if l.SHA256 != "" {
			sums = append(sums, report.Short(l.SHA256))
		}
	}
	if b.State != "" {
		at = append(at, string(b.State))
	}
	now := a.env.Now()
	return []string{strconv.FormatUint(b.Ref.Sequence, 10), report.Count(b.Ref.Rows), report.Bytes(b.Ref.BodyBytes),
		strings.Join(at, ", "), strings.Join(sums, " "), when(b.Committed, now), when(b.Read, now)}
}

var errDamaged = errors.New("copies are damaged or missing")

func (a *app) dataVerify() *cobra.Command {
	cmd := &cobra.Command{Use: "verify DATASET", Short: "Read every copy and compare its SHA-256 with the catalog", Args: args("DATASET")}
	format, s := outputFlag(cmd), spanFlags(cmd)
	repair := cmd.Flags().Bool("repair", false, "write damaged and missing copies again from a good one")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		out, err := format()
		if err != nil {
			return err
		}
		if err := s.check(cmd); err != nil {
			return err
		}
		return a.withDataset(cmd, args[0], func(ctx context.Context, d dataSystem, _ tiers.Head) error {
			left := 0
			v, err := d.Verify(ctx, args[0], *s.from, s.end(), *repair, func(f tiers.CopyFault) {
				state := "healed"
				if !f.Healed {
					state = "damaged"
					left++
				}
				if out == asTable {
					fmt.Fprintf(a.env.Out, "%s  batch %d  %s  %s\n", state, f.Sequence, f.Tier, report.Clean(f.Error))
				}
			})
			if err != nil {
				return err
			}
			if out == asJSON {
				err = writeJSON(a.env.Out, v)
			} else {
				fmt.Fprintf(a.env.Out, "%s of %s read, %s; %d damaged, %d of them healed\n", plural(int(v.Copies), "copy", "copies"),
					plural(int(v.Batches), "batch", "batches"), report.Bytes(v.Bytes), uint64(len(v.Faults))+v.More, len(v.Faults)+int(v.More)-left)
			}
			if err == nil && left > 0 {
				err = fmt.Errorf("%s: %d %w", args[0], left, errDamaged)
			}
			return err
		})
	}
	return cmd
}

// collectGrace is how old what nothing names must be: longer than any write takes.
const collectGrace = 24 * time.Hour

func (a *app) dataCollect() *cobra.Command {
	cmd := &cobra.Command{
		Use: "gc", Short: "Find files and objects that no catalog entry names", Args: args(),
		Long: "Find batch files of this host's warm directory and batch objects that no catalog entry\nnames. Nothing is removed without --delete. Two hours are added to --grace.",
	}
	format := outputFlag(cmd)
	grace := cmd.Flags().Duration("grace", collectGrace, "`age` that they must have")
	remove := cmd.Flags().Bool("delete", false, "remove them")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		out, err := format()
		if err != nil {
			return err
		}
		if *grace < 0 {
			return usagef("%s: --grace %v: want an age", cmd.CommandPath(), *grace)
		}
		return a.withData(cmd, func(ctx context.Context, d dataSystem) error {
			n, bytes := 0, int64(0)
			enc := json.NewEncoder(a.env.Out)
			err := d.Collect(ctx, *grace, *remove, func(o tiers.Orphan) error {
				n++
				bytes += o.Bytes
				if out == asJSON {
					return enc.Encode(o)
				}
				_, err := fmt.Fprintf(a.env.Out, "%s  %s  %s\n", o.Tier, report.Bytes(o.Bytes), report.Clean(o.Name))
				return err
			})
			if err != nil || out == asJSON {
				return err
			}
			done := "found; --delete removes them"
			if *remove {
				done = "removed"
			}
			fmt.Fprintf(a.env.Out, "%s, %s, %s\n", plural(n, "copy", "copies"), report.Bytes(bytes), done)
			return nil
		})
	}
	return cmd
}

func (a *app) dataPin() *cobra.Command {
	cmd := &cobra.Command{Use: "pin DATASET", Short: "Keep batches in the warm tier", Args: args("DATASET")}
	s := spanFlags(cmd)
	hold := cmd.Flags().Bool("hold", false, "a legal hold: they do not expire either, whatever a policy says")
	reason := cmd.Flags().String("reason", "", "why, in `words`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := s.check(cmd); err != nil {
			return err
		}
		return a.withDataset(cmd, args[0], func(ctx context.Context, d dataSystem, _ tiers.Head) error {
			p := tiers.Pin{From: *s.from, To: s.end(), Hold: *hold, Reason: *reason, At: a.env.Now().UTC()}
			if err := d.Pin(ctx, args[0], p); err != nil {
				return err
			}
			fmt.Fprintf(a.env.Out, "%s\n", report.Clean(p.String()))
			return nil
		})
	}
	return cmd
}

func (a *app) dataUnpin() *cobra.Command {
	cmd := &cobra.Command{Use: "unpin DATASET", Short: "Remove pins that lie within a range", Args: args("DATASET")}
	s := spanFlags(cmd)
	hold := cmd.Flags().Bool("hold", false, "remove legal holds instead")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := s.check(cmd); err != nil {
			return err
		}
		return a.withDataset(cmd, args[0], func(ctx context.Context, d dataSystem, _ tiers.Head) error {
			n, err := d.Unpin(ctx, args[0], *s.from, s.end(), *hold)
			if err == nil {
				fmt.Fprintf(a.env.Out, "%s removed\n", plural(n, "pin", "pins"))
			}
			return err
		})
	}
	return cmd
}

func (a *app) dataTakeOver() *cobra.Command {
	cmd := &cobra.Command{
		Use: "take-over", Short: "Make the cold tier this system's, though another has claimed it",
		Long: "Makes the object store's bucket this system's cold tier although another system has claimed it. Only when that one is gone: " +
			"it moves nothing there any more, and data gc takes what it has stored for what nothing names.",
		Args: args(),
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.withData(cmd, func(ctx context.Context, d dataSystem) error {
			if err := d.TakeOverCold(ctx); err != nil {
				return err
			}
			fmt.Fprintln(a.env.Out, "the cold tier is this system's")
			return nil
		})
	}
	return cmd
}

func (a *app) dataMove() *cobra.Command {
	cmd := &cobra.Command{Use: "move DATASET", Short: "Start the migration of batches to another tier", Args: args("DATASET")}
	s := spanFlags(cmd)
	to := cmd.Flags().String("tier", string(arrowio.Cold), "`tier` to copy them to: cold or warm")
	evict := cmd.Flags().Bool("evict", false, "with cold: remove the warm copies after the grace")
	grace := cmd.Flags().Duration("grace", time.Minute, "`time` before anything is removed")
	wait := cmd.Flags().Bool("wait", false, "wait for the end")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		tier := arrowio.Tier(*to)
		if tier != arrowio.Cold && tier != arrowio.Warm || tier == arrowio.Warm && *evict || *grace < 0 {
			return usagef("%s: --tier %q, --evict=%t, --grace %v: want cold, which may evict, or warm, and a grace that is not negative", cmd.CommandPath(), *to, *evict, *grace)
		}
		if err := s.check(cmd); err != nil {
			return err
		}
		return a.withDataset(cmd, args[0], func(ctx context.Context, d dataSystem, head tiers.Head) error {
			if *s.from >= head.Next {
				return fmt.Errorf("%s has %s: there is none from %d on", args[0], plural(int(head.Next), "batch", "batches"), *s.from) //nolint:gosec // a count of batches
			}
			m := workflows.Migration{Dataset: args[0], From: *s.from, To: min(s.end(), head.Next), Evict: *evict, Reason: "stokehold data move"}
			actor, err := d.Whoami(ctx)
			if err != nil {
				return err
			}
			m.Actor = actor
			if tier == arrowio.Warm {
				m.Tier = tier
			}
			if *evict {
				m.Grace = max(*grace, 1) // 0 there is the default
			}
			id, err := d.Migrate(ctx, m)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.env.Out, report.Clean(id))
			if !*wait {
				return nil
			}
			r, err := d.Migrated(ctx, id, func(approval string) {
				fmt.Fprintf(a.env.Err, "it waits until people have approved it: stokehold approve %s --reason ...\n", report.Clean(approval))
			})
			if err == nil {
				fmt.Fprintf(a.env.Out, "%s in the %s tier\n", plural(int(r.Moved), "batch", "batches"), tier)
			}
			return err
		})
	}
	return cmd
}
