package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// row is one line of the JSON: a case at a size against another. Ratio is above 1
// where the case is the faster one.
type row struct {
	Case        string  `json:"case"`
	SizeBytes   int64   `json:"size_bytes"`
	P50         float64 `json:"p50_us"` // 0: not measured, see Note
	P99         float64 `json:"p99_us"`
	BytesPerSec float64 `json:"bytes_per_s"` // size by p50
	Against     string  `json:"against"`     // the case that Baseline is of
	Baseline    float64 `json:"baseline"`    // its p50, microseconds
	Ratio       float64 `json:"ratio"`       // Baseline by P50; 0 if one was not measured
	Target      float64 `json:"target,omitempty"`
	Met         *bool   `json:"met,omitempty"`
	Note        string  `json:"note,omitempty"`
	compared    bool    // in the second table
}

// rows are every case against the Unix socket of its direction, and then the
// comparisons, of which those against the same have their target in the first.
func (b *bench) rows(all []benchCase) []row {
	var rows []row
	named := map[string]benchCase{}
	for _, c := range all {
		named[c.name] = c
		for _, size := range c.sizes(b.set.sizes) {
			rows = append(rows, b.row(c.name, size, c.baseline, size, 0))
		}
	}
	for _, c := range comparisons() {
		ours, ok := named[c.ours]
		if _, known := named[c.theirs]; !ok || !known {
			continue
		}
		for _, size := range ours.sizes(b.set.sizes) {
			if c.sizes != nil && !slices.Contains(c.sizes, size) {
				continue
			}
			r := b.row(c.ours, size, c.theirs, cmp.Or(c.theirSize, size), c.target)
			r.compared = true
			rows = append(rows, r)
		}
	}
	return rows
}

func (b *bench) row(ours string, size int64, theirs string, theirSize int64, target float64) row {
	r := row{Case: ours, SizeBytes: size, Against: theirs, Target: target}
	if theirSize != size {
		r.Against += " of " + sizeName(theirSize)
	}
	our, their := b.result(ours, size), b.result(theirs, theirSize)
	r.P50, r.P99, r.Baseline = our.p50(), our.p99(), their.p50()
	if r.P50 > 0 {
		r.BytesPerSec = float64(size) / r.P50 * 1e6
		r.Ratio = r.Baseline / r.P50
	}
	if target > 0 && r.Ratio > 0 {
		met := r.Ratio >= target
		r.Met = &met
	}
	switch {
	case r.P50 == 0:
		r.Note = cmp.Or(b.missing[ours], our.note, "not measured")
	case r.Baseline == 0:
		r.Note = "no baseline: " + cmp.Or(b.missing[theirs], their.note, "not measured")
	}
	return r
}

func (b *bench) print(out io.Writer, rows []row, all []benchCase, took time.Duration) error {
	fmt.Fprintf(out, "\nOne batch handed over: p50 (median of %d rounds) and p99 in microseconds, %d CPUs, %s, %.0f s in all\n",
		b.set.rounds, runtime.NumCPU(), runtime.Version(), took.Seconds())
	var versions []string
	for _, name := range slices.Sorted(maps.Keys(b.versions)) {
		versions = append(versions, name+" "+b.versions[name])
	}
	if len(versions) > 0 {
		fmt.Fprintln(out, strings.Join(versions, ", "))
	}
	fmt.Fprintln(out, "\nEach case; x: how many times faster than the baseline of its direction")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "case\tsize\tp50 µs\tp99 µs\tMB/s\tx\t")
	for _, r := range rows {
		switch {
		case r.compared:
		case r.P50 == 0:
			fmt.Fprintf(w, "%s\t%s\t-\t-\t-\t-\t\n", r.Case, sizeName(r.SizeBytes))
		default:
			fmt.Fprintf(w, "%s\t%s\t%.1f\t%.1f\t%.0f\t%s\t\n", r.Case, sizeName(r.SizeBytes), r.P50, r.P99, r.BytesPerSec/1e6, ratio(r.Ratio))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nAgainst each other; x: theirs by ours")
	fmt.Fprintln(w, "ours\tsize\tµs\ttheirs\tµs\tx\ttarget\t\t")
	for _, r := range rows {
		if !r.compared {
			continue
		}
		target, met := "", ""
		if r.Target > 0 {
			target = fmt.Sprintf("%.2f", r.Target)
		}
		if r.Met != nil {
			met = map[bool]string{true: "met", false: "not met"}[*r.Met]
		}
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%s\t%.1f\t%s\t%s\t%s\t\n", r.Case, sizeName(r.SizeBytes), r.P50, r.Against, r.Baseline, ratio(r.Ratio), target, met)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, c := range all {
		if why := b.missing[c.name]; why != "" {
			fmt.Fprintf(out, "\nnot measured: %s: %s\n", c.name, why)
		}
		for _, size := range c.sizes(b.set.sizes) {
			if note := b.result(c.name, size).note; note != "" {
				fmt.Fprintf(out, "\nnot measured: %s, %s: %s\n", c.name, sizeName(size), note)
			}
		}
	}
	return nil
}

func ratio(x float64) string {
	switch {
	case x == 0:
		return "-"
	case x < 10:
		return fmt.Sprintf("%.2f", x)
	default:
		return fmt.Sprintf("%.0f", x)
	}
}
