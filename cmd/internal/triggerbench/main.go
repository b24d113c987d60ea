// Command triggerbench measures how triggers start runs, on the embedded servers: how long it takes from an
// event's publication to the first stage of the run at work, and what a burst of events costs in time and history
// against one signal for each event, in the same run of the program.
//
//	go run ./cmd/internal/triggerbench [-rounds 200] [-burst 10000] [-out .bench/triggers.json]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/cmd/internal/workflowstest"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/benchtable"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "triggerbench:", err)
		os.Exit(1)
	}
}

func run() error {
	rounds := flag.Int("rounds", 200, "events for the latency")
	burst := flag.Int("burst", 10_000, "events of the burst")
	signals := flag.Int("signals", 2_000, "events of the baseline, which is scaled up to the burst")
	out := flag.String("out", filepath.Join(".bench", "triggers.json"), "file to write; empty: none")
	timeout := flag.Duration("timeout", 5*time.Minute, "give up after this long")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "stokehold-triggerbench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	env, err := workflowstest.Open(ctx, filepath.Join(dir, "state"), events.Type{Name: "data.arrived"}, events.Type{Name: "burst.arrived"})
	if err != nil {
		return err
	}
	b := &bench{env: env, light: &workflowstest.Light{}, started: make(chan arrival, 1024)}
	err = b.all(ctx, *rounds, *burst, *signals)
	err = errors.Join(err, b.report(*out))
	stop, done := context.WithTimeout(context.Background(), workflowstest.StopTimeout)
	defer done()
	return errors.Join(err, env.Close(stop))
}

type bench struct {
	env     *workflowstest.Env
	light   *workflowstest.Light
	started chan arrival
	rows    []benchtable.Row
}

type arrival struct {
	assignment stages.Assignment
	at         time.Time
}

func (b *bench) all(ctx context.Context, rounds, burst, signals int) error {
	fast, slow, err := pipelines()
	if err != nil {
		return err
	}
	arrive := func(_ context.Context, a stages.Assignment, _ stages.Hooks) (stages.Result, error) {
		b.started <- arrival{a, time.Now()}
		return stages.Result{}, nil
	}
	b.light.Set("retrain", arrive)
	w, err := workflows.NewWorker(workflows.WorkerConfig{
		Client: b.env.Client, Bus: b.env.Bus, Types: b.env.Types, Pipelines: []*workflows.Definition{fast, slow},
		Executor: b.light, Aliases: workflowstest.NoAliases{},
	})
	if err != nil {
		return err
	}
	if err := w.Start(ctx); err != nil {
		return err
	}
	err = b.latency(ctx, rounds)
	if err == nil {
		err = b.burst(ctx, burst, signals)
	}
	stop, done := context.WithTimeout(context.Background(), workflowstest.StopTimeout)
	defer done()
	return errors.Join(err, w.Stop(stop))
}

func pipelines() (fast, slow *workflows.Definition, err error) {
	build := func(name string, t workflows.Trigger) *workflows.Definition {
		p := workflows.New(name, "")
		p.Ingest("retrain", workflowstest.Nothing)
		p.On(t)
		d, e := p.Build()
		err = errors.Join(err, e)
		return d
	}
	fast = build("fast", workflows.Trigger{Types: []string{"data.arrived"}})
	slow = build("slow", workflows.Trigger{Types: []string{"burst.arrived"}, Debounce: 2 * time.Second})
	return fast, slow, err
}

func (b *bench) event(typ string, i int) (events.Event, error) {
	return events.New(typ, "/bench", "airport", fmt.Sprintf("%s-%06d", typ, i), time.Now(),
		map[string]any{"week": i, "airport": "JFK", "object": "s3://bucket/landing/2001/week.parquet"})
}

// latency publishes one event after another, each once the run before is over.
func (b *bench) latency(ctx context.Context, rounds int) error {
	const warm = 20
	var starts, stagesAt []time.Duration
	for i := range rounds + warm {
		e, err := b.event("data.arrived", i)
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := b.env.Bus.Publish(ctx, e); err != nil {
			return err
		}
		var a arrival
		select {
		case a = <-b.started:
		case <-ctx.Done():
			return fmt.Errorf("event %d started no run: %w", i, ctx.Err())
		}
		run := workflows.Handle(b.env.Client, a.assignment.Run)
		if _, err := run.Result(ctx); err != nil {
			return err
		}
		info, err := run.Describe(ctx)
		if err != nil {
			return err
		}
		if i >= warm {
			starts = append(starts, info.Started.Sub(begin))
			stagesAt = append(stagesAt, a.at.Sub(begin))
		}
		if err := b.idle(ctx, "fast"); err != nil {
			return err
		}
	}
	for _, q := range []struct {
		name string
		at   float64
	}{{"p50", 0.5}, {"p99", 0.99}} {
		b.less("event to started run, "+q.name, "ms", ms(quantile(starts, q.at)), 30)
		b.less("event to stage at work, "+q.name, "ms", ms(quantile(stagesAt, q.at)), 30)
	}
	return nil
}

// idle waits until the trigger knows that its run is over.
func (b *bench) idle(ctx context.Context, pipeline string) error {
	for {
		s, err := workflows.TriggerStateOf(ctx, b.env.Client, pipeline, triggerOf(pipeline), "")
		if err == nil && s.Active == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func triggerOf(pipeline string) string {
	return map[string]string{"fast": "data.arrived", "slow": "burst.arrived"}[pipeline]
}

func (b *bench) burst(ctx context.Context, n, signals int) error {
	evs := make([]events.Event, n)
	for i := range evs {
		var err error
		if evs[i], err = b.event("burst.arrived", i); err != nil {
			return err
		}
	}
	begin := time.Now()
	for chunk := range slices.Chunk(evs, 500) {
		if err := b.env.Bus.Publish(ctx, chunk...); err != nil {
			return err
		}
	}
	published := time.Since(begin)
	var a arrival
	select {
	case a = <-b.started:
	case <-ctx.Done():
		return fmt.Errorf("the burst started no run: %w", ctx.Err())
	}
	took := a.at.Sub(begin)
	var p workflows.RunParams
	if err := json.Unmarshal(a.assignment.RunParams, &p); err != nil {
		return err
	}
	if err := b.idle(ctx, "slow"); err != nil {
		return err
	}
	s, err := workflows.TriggerStateOf(ctx, b.env.Client, "slow", "burst.arrived", "")
	if err != nil {
		return err
	}
	if p.EventCount != n || s.Fired != 1 || s.Received-s.Duplicates != int64(n) {
		return fmt.Errorf("the burst of %d made %d runs, the first of %d events; the trigger saw %d, %d of them twice", n, s.Fired, p.EventCount, s.Received, s.Duplicates)
	}
	historyEvents, historyBytes, err := b.history(ctx, workflows.TriggerID("slow", "burst.arrived", ""))
	if err != nil {
		return err
	}
	base, err := b.oneByOne(ctx, evs[:min(signals, n)])
	if err != nil {
		return err
	}
	scale := float64(n) / float64(min(signals, n))
	b.more("events into runs", "events/s", float64(n)/took.Seconds(), base.perSecond)
	b.more("same, with publication as the baseline", "events/s", float64(n)/took.Seconds(), float64(n)/published.Seconds())
	b.less(fmt.Sprintf("history of %d events", n), "history events", float64(historyEvents), float64(base.events)*scale)
	b.less(fmt.Sprintf("history of %d events", n), "bytes", float64(historyBytes), float64(base.bytes)*scale)
	b.rows = append(b.rows, benchtable.Row{Case: fmt.Sprintf("runs started by %d events", n), Unit: "runs", Value: float64(s.Fired), Baseline: 1, Ratio: 1},
		benchtable.Row{Case: "events lost", Unit: "events", Value: float64(n - p.EventCount), Baseline: 0, Ratio: 1})
	return nil
}

// history sums events and bytes over the executions that continued as new.
func (b *bench) history(ctx context.Context, id string) (events, bytes int64, err error) {
	run := ""
	for {
		resp, err := b.env.Client.DescribeWorkflowExecution(ctx, id, run)
		if err != nil {
			return 0, 0, err
		}
		info := resp.GetWorkflowExecutionInfo()
		events += info.GetHistoryLength()
		bytes += info.GetHistorySizeBytes()
		first := info.GetExecution().GetRunId() == info.GetFirstRunId()
		if first {
			return events, bytes, nil
		}
		it := b.env.Client.GetWorkflowHistory(ctx, id, info.GetExecution().GetRunId(), false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
		if !it.HasNext() {
			return events, bytes, nil
		}
		e, err := it.Next()
		if err != nil {
			return 0, 0, err
		}
		if run = e.GetWorkflowExecutionStartedEventAttributes().GetContinuedExecutionRunId(); run == "" {
			return events, bytes, nil
		}
	}
}

type baseline struct {
	perSecond     float64
	events, bytes int64
}

// oneByOne is the plain way: each event is one signal to a workflow, which
// counts them.
func (b *bench) oneByOne(ctx context.Context, evs []events.Event) (baseline, error) {
	const queue, name = "baseline", "events"
	var seen atomic.Int64
	w := worker.New(b.env.Client, queue, worker.Options{})
	w.RegisterWorkflowWithOptions(func(ctx workflow.Context, n int) error {
		signals := workflow.GetSignalChannel(ctx, name)
		for range n {
			var e json.RawMessage
			signals.Receive(ctx, &e)
			if !workflow.IsReplaying(ctx) {
				seen.Add(1)
			}
		}
		return nil
	}, workflow.RegisterOptions{Name: "baseline"})
	if err := w.Start(); err != nil {
		return baseline{}, err
	}
	defer w.Stop()
	begin := time.Now()
	for i := range evs {
		_, err := b.env.Client.SignalWithStartWorkflow(ctx, "baseline", name, &evs[i],
			client.StartWorkflowOptions{ID: "baseline", TaskQueue: queue}, "baseline", len(evs))
		if err != nil {
			return baseline{}, err
		}
	}
	if err := b.env.Client.GetWorkflow(ctx, "baseline", "").Get(ctx, nil); err != nil {
		return baseline{}, err
	}
	took := time.Since(begin)
	n, size, err := b.history(ctx, "baseline")
	return baseline{float64(len(evs)) / took.Seconds(), n, size}, err
}

func (b *bench) less(name, unit string, value, base float64) {
	b.rows = append(b.rows, benchtable.Row{Case: name, Unit: unit, Value: value, Baseline: base, Ratio: ratio(base, value)})
}

func (b *bench) more(name, unit string, value, base float64) {
	b.rows = append(b.rows, benchtable.Row{Case: name, Unit: unit, Value: value, Baseline: base, Ratio: ratio(value, base)})
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func (b *bench) report(path string) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "case\tunit\tvalue\tbaseline\tratio")
	for _, r := range b.rows {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%.1f\t%.1f\t%.1f\n", r.Case, r.Unit, r.Value, r.Baseline, r.Ratio)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if path == "" {
		return nil
	}
	return benchtable.Write(path, b.rows)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func quantile(ds []time.Duration, q float64) time.Duration {
	slices.Sort(ds)
	return ds[min(int(q*float64(len(ds))), len(ds)-1)]
}
