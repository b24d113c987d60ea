// Command governance measures what judging an event costs: one rule by hand-written
// Go, by closures, by cel-go in several ways, by expr-lang and by OPA; sets of 20
// and 10,000 policies by the engine and by OPA; and a bus with its decision log, with
// and without signed checkpoints of it, against one without. All cases take turns in short rounds, so that a noisy
// machine disturbs all alike, and medians count. It prints a table and writes it as
// JSON: a list of {case, unit, value, baseline, ratio}.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/stokehold/stokehold/internal/benchtable"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "governance:", err)
		os.Exit(1)
	}
}

// contender is a case: f does its work n times.
type contender struct {
	name string
	f    func(n int) error
	unit float64 // events or evaluations that one time of f has; 0: one
}

// Names of cases that comparisons refer to.
const (
	byHand       = "rule: hand-written Go"
	byClosures   = "rule: closures, typed values"
	byClosureMap = "rule: closures, untyped maps"
	byCELTyped   = "rule: cel-go, typed values, concrete Activation"
	byCEL        = "rule: cel-go, untyped maps, concrete Activation"
	byCELMap     = "rule: cel-go, untyped maps, map as Activation"
	byCELBuild   = "rule: cel-go, untyped maps, map built each time"
	byCELTracked = "rule: cel-go, untyped maps, cost tracked"
	byExpr       = "rule: expr-lang, struct"
	byOPA        = "rule: OPA, parsed input"
	byOPAInput   = "rule: OPA, input as a map"
	judgeOne     = "engine: no rule reads the data"
	judge20      = "engine: 20 policies, 3 match"
	judge10k     = "engine: 10,000 policies, 3 match"
	judge10kType = "engine: 10,000 policies of one type, 3 match"
	judgeBatch   = "engine: 20 policies, 3 match, 100 events a call"
	decide20     = "decision alone: 20 policies, 3 match, from the event's JSON"
	opa20        = "OPA: 20 policies, 3 match, input as a map"
	opa20Parsed  = "OPA: 20 policies, 3 match, parsed input"
	opa20JSON    = "OPA: 20 policies, 3 match, from the event's JSON, as maps"
	opa20Value   = "OPA: 20 policies, 3 match, from the event's JSON, as OPA's values"
)

func run() error {
	rounds := flag.Int("rounds", 15, "rounds; their median counts")
	slice := flag.Duration("slice", 20*time.Millisecond, "how long a case is measured in each round")
	out := flag.String("o", ".bench/governance.json", "where the table goes as JSON")
	messages := flag.Int("messages", 40000, "events published in each round of the audit case; 0 leaves it out")
	sync := flag.Bool("sync", false, "have the server of the audit case sync each write to its disk")
	flag.Parse()
	if *rounds < 1 || *slice <= 0 {
		return errors.New("-rounds and -slice must be positive")
	}

	var cs []contender
	for _, build := range []func() ([]contender, error){ruleContenders, setContenders} {
		some, err := build()
		if err != nil {
			return err
		}
		cs = append(cs, some...)
	}
	times := map[string]float64{} // nanoseconds
	if err := takeTurns(cs, *rounds, *slice, times); err != nil {
		return err
	}
	p50, err := judgeLatency(*rounds)
	if err != nil {
		return err
	}
	fmt.Printf("median of %d rounds of %s, %d CPUs, %s\n\n", *rounds, *slice, runtime.NumCPU(), runtime.Version())
	if err := list(cs, times); err != nil {
		return err
	}
	rows := timeRows(times)
	rows = append(rows,
		benchtable.Row{Case: "allowed event, 20 policies, 3 match: p50 of one Judge call, against the target", Unit: "ns", Value: p50, Baseline: 3000, Ratio: 3000 / p50},
		benchtable.Row{Case: "decisions per second and core, one event a call, against the target", Unit: "1/s", Value: 1e9 / times[judge20], Baseline: 150_000, Ratio: 1e9 / times[judge20] / 150_000},
		benchtable.Row{Case: "decisions per second and core, 100 events a call, against the target", Unit: "1/s", Value: 1e9 / times[judgeBatch], Baseline: 150_000, Ratio: 1e9 / times[judgeBatch] / 150_000},
	)
	if *messages > 0 {
		rates, err := auditRates(context.Background(), *rounds, *messages, *sync)
		if err != nil {
			return err
		}
		for _, c := range []struct {
			name string
			rate float64
		}{{"asynchronous publish with the decision log, against without", rates[logged]},
			{"asynchronous publish with the decision log and its signed checkpoints, against without", rates[signed]},
		} {
			rows = append(rows, benchtable.Row{Case: c.name, Unit: "events/s", Value: c.rate, Baseline: rates[unaudited], Ratio: c.rate / rates[unaudited]})
		}
	}
	if err := table(rows); err != nil {
		return err
	}
	return benchtable.Write(*out, rows)
}

// takeTurns measures each contender once a round, in an order that turns by one
// from round to round, and notes the median time for one of its units.
func takeTurns(cs []contender, rounds int, slice time.Duration, times map[string]float64) error {
	all := make([][]float64, len(cs))
	sizes := make([]int, len(cs))
	for round := range rounds + 1 { // the first finds how much fits a slice
		for k := range cs {
			i := (k + round) % len(cs)
			c := &cs[i]
			n := max(1, sizes[i])
			runtime.GC()
			start := time.Now()
			if err := c.f(n); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			took := time.Since(start)
			if round == 0 {
				for took < slice/4 && n < 1<<24 {
					n *= 4
					start = time.Now()
					if err := c.f(n); err != nil {
						return fmt.Errorf("%s: %w", c.name, err)
					}
					took = time.Since(start)
				}
				sizes[i] = max(1, int(float64(n)*float64(slice)/float64(max(took, 1))))
				continue
			}
			all[i] = append(all[i], float64(took.Nanoseconds())/float64(n)/max(1, c.unit))
		}
	}
	for i := range cs {
		times[cs[i].name] = median(all[i])
	}
	return nil
}

func median(vs []float64) float64 {
	slices.Sort(vs)
	return (vs[(len(vs)-1)/2] + vs[len(vs)/2]) / 2
}

// timeRows are the comparisons of times. The ratio is above 1 where the first named
// is faster.
func timeRows(times map[string]float64) (rows []benchtable.Row) {
	opaFromJSON := opa20JSON // the faster of its two ways
	if times[opa20Value] < times[opa20JSON] {
		opaFromJSON = opa20Value
	}
	for _, c := range [][3]string{
		{"five-clause rule, closures vs cel-go with a concrete Activation, typed values", byClosures, byCELTyped},
		{"five-clause rule, closures vs cel-go with a concrete Activation, untyped maps", byClosureMap, byCEL},
		{"five-clause rule, closures vs cel-go with a map", byClosureMap, byCELMap},
		{"five-clause rule, closures vs cel-go with a map built each time", byClosureMap, byCELBuild},
		{"five-clause rule, closures vs cel-go with cost tracking", byClosureMap, byCELTracked},
		{"five-clause rule, closures vs expr-lang", byClosures, byExpr},
		{"five-clause rule, closures vs OPA with parsed input", byClosures, byOPA},
		{"five-clause rule, closures vs hand-written Go", byClosures, byHand},
		{"20 policies of which 3 match, decision alone vs OPA, from the event's JSON", decide20, opaFromJSON},
		{"20 policies of which 3 match, decision alone vs OPA with parsed input", decide20, opa20Parsed},
		{"20 policies of which 3 match, whole engine vs OPA, from the event's JSON", judge20, opaFromJSON},
		{"20 policies of which 3 match, whole engine vs OPA with parsed input", judge20, opa20Parsed},
		{"10,000 policies of which 3 match vs 20, whole engine", judge10k, judge20},
		{"10,000 policies of one event type of which 3 match vs 20, whole engine", judge10kType, judge20},
		{"20 policies of which 3 match vs a policy that reads no data, whole engine", judge20, judgeOne},
	} {
		v, b := times[c[1]], times[c[2]]
		rows = append(rows, benchtable.Row{Case: c[0], Unit: "ns", Value: v, Baseline: b, Ratio: b / v})
	}
	return rows
}

func list(cs []contender, times map[string]float64) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, c := range cs {
		kind, name, _ := strings.Cut(c.name, ": ")
		fmt.Fprintf(w, "%s\t%s\t%9.1f ns\n", kind, name, times[c.name])
	}
	return w.Flush()
}

func table(rows []benchtable.Row) error {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "case\tvalue\tbaseline\tunit\tratio\t")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%s\t%.2f\t\n", r.Case, r.Value, r.Baseline, r.Unit, r.Ratio)
	}
	return w.Flush()
}
