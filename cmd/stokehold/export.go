package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold/arrowio/parquet"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/tiers"
)

const (
	asParquet = "parquet"
	asArrow   = "arrow"
)

// recordWriter writes batches of one schema to one file.
type recordWriter interface {
	Write(arrow.RecordBatch) error
	Close() error
}

func (a *app) dataExport() *cobra.Command {
	cmd := &cobra.Command{Use: "export DATASET FILE", Short: "Write batches to one Parquet or Arrow IPC file", Args: args("DATASET", "FILE")}
	s := spanFlags(cmd)
	as := cmd.Flags().String("as", "", "`format`: parquet or arrow (default: as FILE ends)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		format := *as
		if format == "" {
			format = map[string]string{".parquet": asParquet, ".arrow": asArrow, ".feather": asArrow}[filepath.Ext(args[1])]
		}
		if format != asParquet && format != asArrow {
			return usagef("%s: --as %q for %s: want parquet or arrow, or a file that ends in .parquet or .arrow", cmd.CommandPath(), *as, args[1])
		}
		if err := s.check(cmd); err != nil {
			return err
		}
		return a.withDataset(cmd, args[0], func(ctx context.Context, d dataSystem, _ tiers.Head) error {
			return a.export(ctx, d, args[0], *s.from, s.end(), format, args[1])
		})
	}
	return cmd
}

// export writes to a file beside path and renames it: path is whole or not there.
func (a *app) export(ctx context.Context, d dataSystem, dataset string, from, to uint64, format, path string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".export-*")
	if err != nil {
		var at *os.PathError // which names a file that nobody asked for
		if errors.As(err, &at) {
			err = at.Err
		}
		return fmt.Errorf("cannot write to directory %s: %w: choose one that exists and that you may write to", filepath.Dir(path), err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	batches, rows, err := exportTo(ctx, d, dataset, from, to, format, f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	fmt.Fprintf(a.env.Out, "%s, %s rows, in %s\n", plural(batches, "batch", "batches"), report.Count(rows), report.Clean(path))
	return nil
}

// exportTo has one batch in memory at a time.
func exportTo(ctx context.Context, d dataSystem, dataset string, from, to uint64, format string, f io.Writer) (batches int, rows int64, err error) {
	var out recordWriter
	for info, err := range d.Entries(ctx, dataset, from, to) {
		if err != nil {
			return 0, 0, err
		}
		b, err := d.OpenBatch(ctx, info.Ref, false)
		if err != nil {
			return 0, 0, err
		}
		if out == nil {
			out, err = recordsTo(f, format, b.Record.Schema())
		}
		if err == nil {
			err = out.Write(b.Record)
		}
		batches++
		rows += b.Record.NumRows()
		b.Release()
		if err != nil {
			return 0, 0, fmt.Errorf("write %s: %w", info.Ref.ID(), err)
		}
	}
	if out == nil {
		return 0, 0, fmt.Errorf("%s has no batches in that range: there is nothing to export", dataset)
	}
	return batches, rows, out.Close()
}

func recordsTo(w io.Writer, format string, schema *arrow.Schema) (recordWriter, error) {
	if format == asParquet {
		return parquet.NewWriter(w, schema)
	}
	return ipc.NewFileWriter(w, ipc.WithSchema(schema))
}
