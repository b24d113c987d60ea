package audit_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/governance/audit/proof"
	"github.com/stokehold/stokehold/internal/natstest"
)

// discard is a log that keeps nothing: what is left is the cost of judging.
type discard struct{}

func (discard) Append(context.Context, []governance.Decision) error { return nil }

// BenchmarkAuditedPublish publishes events asynchronously, judged, without a log,
// with the log, and with the log and its sequencer, in turns on one server, and
// reports the rates and their ratios (medians over the rounds). The target is 0.8.
func BenchmarkAuditedPublish(b *testing.B) {
	const perRound, perCall = 50_000, 10_000
	rounds := 5
	if testing.Short() {
		rounds = 1
	}
	types, err := events.NewRegistry(events.Type{Name: "bench.message", Data: struct {
		Text string `json:"text"`
	}{}})
	if err != nil {
		b.Fatal(err)
	}
	srv := natstest.Start(b, natstest.MaxStore(1<<40)) // each stream reserves its limit
	key, err := governance.NewKey("k1")
	if err != nil {
		b.Fatal(err)
	}
	ring, err := governance.NewKeyRing(key)
	if err != nil {
		b.Fatal(err)
	}
	set, err := governance.Load(governance.Options{}, governance.Source{Name: "p.yaml", Data: []byte(`
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: bench}
spec:
  match: {points: [publish, receive]}
  rules: [{name: sized, expression: event.id.size() < 200}]
`)})
	if err != nil {
		b.Fatal(err)
	}
	keys, err := proof.NewKeys("bench/decisions")
	if err != nil {
		b.Fatal(err)
	}
	nothing, logged, signed := "without a log", "with the log", "with the log and its sequencer"
	rates, allocs := map[string][]float64{}, map[string][]float64{}
	one := func(name string, round int) {
		ctx := context.Background()
		nc := srv.Connect()
		defer nc.Close()
		prefix := fmt.Sprintf("b%d-%d", round, len(name))
		var log governance.DecisionLog = discard{}
		if name != nothing {
			l, err := audit.Open(ctx, audit.Config{Conn: nc, Prefix: prefix})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = l.Close(ctx) }()
			log = l
			if name == signed {
				seq, err := audit.NewSequencer(audit.SequencerConfig{Reader: l.Reader, Store: audit.NewDirStore(b.TempDir()), Keys: keys, Poll: 100 * time.Millisecond})
				if err != nil {
					b.Fatal(err)
				}
				seq.Start()
				defer func() { _ = seq.Stop(ctx) }()
			}
		}
		engine, err := governance.NewEngine(governance.Config{Policies: set, Log: log, Keys: ring})
		if err != nil {
			b.Fatal(err)
		}
		bus, err := events.Open(ctx, events.Config{Conn: nc, Prefix: prefix, Judge: engine, Types: types, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = bus.Close(ctx) }()
		evs := make([]events.Event, perRound)
		for i := range evs {
			if evs[i], err = events.New("bench.message", "bench", "s", fmt.Sprintf("%s-%d", prefix, i), testTime, map[string]string{"text": "0123456789012345678901234567890123456789012345678901234567890123456789"}); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		begun := time.Now()
		for chunk := range slices.Chunk(evs, perCall) {
			if err := bus.Publish(ctx, chunk...); err != nil {
				b.Fatal(err)
			}
		}
		took := time.Since(begun)
		runtime.ReadMemStats(&after)
		if round > 0 { // the first warms up
			rates[name] = append(rates[name], perRound/took.Seconds())
			allocs[name] = append(allocs[name], float64(after.Mallocs-before.Mallocs)/perRound)
		}
	}
	for b.Loop() {
		for round := range rounds + 1 {
			for _, name := range []string{nothing, logged, signed} {
				one(name, round)
			}
		}
	}
	median := func(xs []float64) float64 { slices.Sort(xs); return xs[len(xs)/2] }
	base := median(rates[nothing])
	b.ReportMetric(base, "unaudited/s")
	b.ReportMetric(median(rates[logged])/base, "logged-ratio")
	b.ReportMetric(median(rates[signed])/base, "signed-ratio")
	b.ReportMetric(median(allocs[logged])-median(allocs[nothing]), "log-allocs/decision")
	b.ReportMetric(median(allocs[signed])-median(allocs[logged]), "sequencer-allocs/decision")
	if os.Getenv("BENCH_VERBOSE") != "" {
		b.Logf("rates %v", rates)
	}
}

// BenchmarkSequencer is what a decision costs between the stream and the tree.
func BenchmarkSequencer(b *testing.B) {
	s := natstest.Start(b)
	l := open(b, audit.Config{Conn: s.Connect()})
	ds := make([]governance.Decision, 1000)
	for i := range ds {
		ds[i] = decision(i, events.OnPublish, events.Allow)
	}
	const messages = 100
	for range messages {
		if err := l.Append(context.Background(), ds); err != nil {
			b.Fatal(err)
		}
	}
	keys, err := proof.NewKeys("bench/decisions")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		seq, err := audit.NewSequencer(audit.SequencerConfig{Reader: l.Reader, Store: audit.NewDirStore(b.TempDir()), Keys: keys})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := seq.Advance(context.Background(), true); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*messages*float64(len(ds))/b.Elapsed().Seconds(), "decisions/s")
}
