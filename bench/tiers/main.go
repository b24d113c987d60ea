// Command tiers measures what keeps and moves batches against what else there is,
// in one run. Each group has its cases; -only picks some. It prints a table and
// writes it as JSON: a list of {case, unit, value, baseline, ratio}.
package main

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/stokehold/stokehold/internal/benchtable"
	"github.com/stokehold/stokehold/stages/worker"
)

func main() {
	worker.RunIfChild(stages())
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "tiers:", err)
		os.Exit(1)
	}
}

// settings are what the groups share.
type settings struct {
	rounds     int
	only       string
	python     string
	cpuprofile string
	group      string
}

func (s settings) wants(name string) bool { return strings.Contains(name, s.only) }

// groups are the parts of the benchmark, each with its rows of the table.
func groups() map[string]func(settings) ([]benchtable.Row, error) {
	return map[string]func(settings) ([]benchtable.Row, error){
		"catalog": catalogGroup, "parquet": parquetGroup, "prefetch": prefetchGroup, "s3": s3Group, "warm": warmGroup,
	}
}

func run() error {
	var s settings
	flag.IntVar(&s.rounds, "rounds", 5, "rounds; their median counts")
	flag.StringVar(&s.only, "only", "", "run the cases whose names contain this")
	flag.StringVar(&s.python, "python", ".venv/bin/python", "a Python with pyarrow")
	flag.StringVar(&s.cpuprofile, "cpuprofile", "", "write a CPU profile of our side")
	flag.StringVar(&s.group, "group", "", "run this group alone: catalog, parquet, prefetch, s3 or warm")
	out := flag.String("o", ".bench/tiers.json", "where the table goes as JSON")
	flag.Parse()
	var rows []benchtable.Row
	all := groups()
	if _, ok := all[s.group]; s.group != "" && !ok {
		return fmt.Errorf("no group %q", s.group)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if s.group != "" && s.group != name {
			continue
		}
		more, err := all[name](s)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		rows = append(rows, more...)
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "case\tunit\tours\tbaseline\tratio\t")
	for _, r := range rows {
		fmt.Fprintf(table, "%s\t%s\t%.4g\t%.4g\t%.2f\t\n", r.Case, r.Unit, r.Value, r.Baseline, r.Ratio)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if s.only != "" || s.group != "" { // a part of the table is not the table
		return nil
	}
	return benchtable.Write(*out, rows)
}
