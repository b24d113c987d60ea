package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/stokehold/stokehold/internal/benchtable"
)

const (
	flipTarget  = 20_000 // per second
	catalogUnit = "batches="
)

// catalogGroup measures what the catalog costs for a batch in datasets of a thousand
// to a million, each against the smallest, in one run. It changes entries of no
// bytes, which no one outside the package can; so the benchmark is the package's own.
func catalogGroup(s settings) ([]benchtable.Row, error) {
	if !s.wants("catalog") {
		return nil, nil
	}
	args := []string{
		"test", "-run", "^$", "-bench", "^BenchmarkCatalog$", "-benchtime", "1x", "-timeout", "20m",
		"github.com/stokehold/stokehold/tiers",
	}
	cmd := exec.CommandContext(context.Background(), "go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	sizes, err := catalogSizes(out)
	if err != nil {
		return nil, err
	}
	first := sizes[0]
	var rows []benchtable.Row
	for _, at := range sizes {
		rows = append(rows, benchtable.Row{
			Case: fmt.Sprintf("catalog of %d batches: flips, 256 to a compare-and-set, vs the target", at.batches),
			Unit: "flips/s", Value: at.metrics["flips/s"], Baseline: flipTarget, Ratio: at.metrics["flips/s"] / flipTarget,
		})
	}
	for _, m := range []struct{ what, metric, unit string }{
		{"list", "list-ns/batch", "ns/batch"},
		{"a flip alone", "flip-us", "us"},
		{"append, followed by a reader", "append-us/batch", "us/batch"},
		{"seal", "seal-us", "us"},
	} {
		for _, at := range sizes[1:] {
			v, base := at.metrics[m.metric], first.metrics[m.metric]
			rows = append(rows, benchtable.Row{
				Case: fmt.Sprintf("catalog of %d batches: %s, vs of %d", at.batches, m.what, first.batches),
				Unit: m.unit, Value: v, Baseline: base, Ratio: base / v,
			})
		}
	}
	return rows, nil
}

type catalogSize struct {
	batches int
	metrics map[string]float64 // by unit
}

// catalogSizes reads what `go test -bench` prints.
func catalogSizes(out []byte) ([]catalogSize, error) {
	var sizes []catalogSize
	for line := range bytes.Lines(out) {
		words := strings.Fields(string(line))
		if len(words) == 0 || !strings.HasPrefix(words[0], "BenchmarkCatalog/") {
			continue
		}
		_, n, _ := strings.Cut(words[0], catalogUnit)
		n, _, _ = strings.Cut(n, "-") // GOMAXPROCS
		batches, err := strconv.Atoi(n)
		if err != nil {
			return nil, fmt.Errorf("benchmark %s: %w", words[0], err)
		}
		at := catalogSize{batches, map[string]float64{}}
		for i := 2; i+1 < len(words); i += 2 {
			if at.metrics[words[i+1]], err = strconv.ParseFloat(words[i], 64); err != nil {
				return nil, fmt.Errorf("benchmark %s: %w", words[0], err)
			}
		}
		sizes = append(sizes, at)
	}
	if len(sizes) < 2 {
		return nil, errors.New("the benchmark printed no results")
	}
	return sizes, nil
}
