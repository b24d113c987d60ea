// Command latency measures what steps of a workflow cost on the embedded Temporal server, and prints medians and
// 99th percentiles in milliseconds.
//
//	go run ./cmd/internal/latency            the stack's own settings
//	go run ./cmd/internal/latency -stock     the server's defaults, for comparison
//	go run ./cmd/internal/latency -set matching.numTaskqueueReadPartitions=4 -pragma synchronous=1
//
// docs/decisions/0004-temporal-latency.md explains the numbers.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"go.temporal.io/sdk/client"
	tlog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/cmd/devstack"
)

const taskQueue = "latency"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// settings collects repeated KEY=VALUE flags.
type settings map[string]string

func (s settings) String() string { return "" }

func (s settings) Set(text string) error {
	key, value, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("want KEY=VALUE, not %q", text)
	}
	s[key] = value
	return nil
}

func run() error {
	var (
		rounds   = flag.Int("n", 100, "measured rounds of each case")
		warm     = flag.Int("warm", 10, "rounds before the measured ones")
		pause    = flag.Duration("pause", 0, "idle time between rounds")
		stock    = flag.Bool("stock", false, "run the Temporal server with its own defaults")
		conns    = flag.Int("conns", 0, "SQLite connections (0: the stack's choice)")
		shards   = flag.Int("shards", 0, "history shards (0: the stack's choice)")
		gzip     = flag.Bool("gzip", false, "compress the client's requests, as the SDK does unless told otherwise")
		pollers  = flag.Int("pollers", 0, "pollers of each kind (0: the SDK's choice)")
		only     = flag.String("only", "", "run the cases whose name contains this")
		keep     = flag.String("dir", "", "state directory (default: a temporary one)")
		full     = flag.Bool("full", false, "start NATS, S3 and the UI too, and print the memory used")
		dynamic  = settings{}
		pragmas  = settings{}
		profile  = flag.String("cpuprofile", "", "write a CPU profile of the measured rounds to this file")
		deadline = flag.Duration("timeout", 10*time.Minute, "give up after this long")
	)
	flag.Var(dynamic, "set", "dynamic configuration KEY=VALUE (repeatable)")
	flag.Var(pragmas, "pragma", "SQLite pragma KEY=VALUE (repeatable)")
	flag.Parse()

	ctx, cancel := context.WithTimeout(context.Background(), *deadline)
	defer cancel()
	dir := *keep
	if dir == "" {
		tmp, err := os.MkdirTemp("", "stokehold-latency-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(tmp) }()
		dir = filepath.Join(tmp, "state")
	}
	stack, err := devstack.Start(ctx, devstack.Options{
		Dir: dir, FreePorts: true, WithoutUI: !*full, WithoutS3: !*full,
		Tuning: devstack.Tuning{Stock: *stock, Dynamic: parse(dynamic), Pragmas: pragmas, Connections: *conns, HistoryShards: *shards},
	})
	if err != nil {
		return err
	}
	defer func() { _ = stack.Close(ctx) }()
	fmt.Printf("stack ready in %v, %s\n", stack.StartupTime().Round(time.Millisecond), memory())

	options := client.Options{
		HostPort: stack.Endpoints().TemporalAddress, Namespace: devstack.Namespace,
		Logger: tlog.NewStructuredLogger(slog.New(slog.DiscardHandler)),
	}
	if !*gzip {
		options.ConnectionOptions.GrpcCompression = &client.GrpcCompressionNone{}
	}
	c, err := client.DialContext(ctx, options)
	if err != nil {
		return err
	}
	defer c.Close()
	opts := worker.Options{}
	if *pollers > 0 {
		opts.MaxConcurrentActivityTaskPollers, opts.MaxConcurrentWorkflowTaskPollers = *pollers, max(2, *pollers)
	}
	w := worker.New(c, taskQueue, opts)
	register(w)
	if err := w.Start(); err != nil {
		return err
	}
	defer w.Stop()

	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "case\tp50 ms\tp99 ms\tcpu ms\t")
	for _, k := range cases() {
		if !strings.Contains(k.name, *only) {
			continue
		}
		times, cpu, err := measure(ctx, c, k, *warm, *rounds, *pause)
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		_, _ = fmt.Fprintf(table, "%s\t%.1f\t%.1f\t%.1f\t\n", k.name, quantile(times, 0.5), quantile(times, 0.99), cpu)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println(memory())
	return nil
}

// parse turns values into the types that the server's settings have.
func parse(s settings) map[string]any {
	out := make(map[string]any, len(s))
	for key, text := range s {
		if n, err := strconv.Atoi(text); err == nil {
			out[key] = n
		} else if b, err := strconv.ParseBool(text); err == nil {
			out[key] = b
		} else {
			out[key] = text
		}
	}
	return out
}

// memory reads this process's resident set from the kernel.
func memory() string {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "memory unknown"
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return fmt.Sprintf("resident %d MiB", kb>>10)
		}
	}
	return "memory unknown"
}

func quantile(ms []float64, q float64) float64 {
	slices.Sort(ms)
	return ms[int(q*float64(len(ms)-1)+0.5)]
}

// measured is one kind of step; round performs it once and returns when its caller would know of its end.
type measured struct {
	name  string
	setup func(ctx context.Context, c client.Client) (end func(), err error)
	round func(ctx context.Context, c client.Client, i int) error
}

// measure gives the milliseconds of each round, and the processor time of one: client, worker and servers
// together, which says more than the clock does while other programs keep the processors busy.
func measure(ctx context.Context, c client.Client, k measured, warm, rounds int, pause time.Duration) (ms []float64, cpu float64, err error) {
	if k.setup != nil {
		end, err := k.setup(ctx, c)
		if err != nil {
			return nil, 0, err
		}
		defer end()
	}
	var before float64
	for i := range warm + rounds {
		if i == warm {
			before = processor()
		}
		if pause > 0 {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return nil, 0, ctx.Err()
			}
		}
		begin := time.Now()
		if err := k.round(ctx, c, i); err != nil {
			return nil, 0, err
		}
		if i >= warm {
			ms = append(ms, float64(time.Since(begin).Microseconds())/1000)
		}
	}
	return ms, (processor() - before) / float64(rounds), nil
}

// processor is this process's processor time so far, in milliseconds.
func processor() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e6
}

func execute(wf any, eager bool) func(context.Context, client.Client, int) error {
	return func(ctx context.Context, c client.Client, _ int) error {
		r, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{TaskQueue: taskQueue, EnableEagerStart: eager}, wf)
		if err != nil {
			return err
		}
		return r.Get(ctx, nil)
	}
}

func cases() []measured {
	const id = "latency-long"
	end := func(c client.Client) func() {
		return func() { _ = c.TerminateWorkflow(context.Background(), id, "", "measured") }
	}
	long := client.StartWorkflowOptions{ID: id, TaskQueue: taskQueue}
	start := func(ctx context.Context, c client.Client) (func(), error) {
		_, err := c.ExecuteWorkflow(ctx, long, longWorkflow)
		return end(c), err
	}
	return []measured{
		{name: "empty workflow", round: execute(emptyWorkflow, false)},
		{name: "empty workflow, eager start", round: execute(emptyWorkflow, true)},
		{name: "1 activity", round: execute(oneActivity, false)},
		{name: "1 activity, eager start", round: execute(oneActivity, true)},
		{name: "3 activities", round: execute(threeActivities, false)},
		{name: "3 activities, eager start", round: execute(threeActivities, true)},
		{name: "3 activities, eager off", round: execute(threeRemote, false)},
		{name: "3 local activities", round: execute(threeLocal, false)},
		{name: "3 local activities, eager start", round: execute(threeLocal, true)},
		{name: "signal-with-start to handled", setup: start, round: func(ctx context.Context, c client.Client, i int) error {
			// The signal carries its number; the workflow hands it to the waiting round once it has handled it.
			if _, err := c.SignalWithStartWorkflow(ctx, id, signalName, i, long, longWorkflow); err != nil {
				return err
			}
			select {
			case got := <-handled:
				if got != i {
					return fmt.Errorf("signal %d handled instead of %d", got, i)
				}
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}},
		{name: "signal-with-start call", setup: start, round: func(ctx context.Context, c client.Client, i int) error {
			_, err := c.SignalWithStartWorkflow(ctx, id, "ignored", i, long, longWorkflow)
			return err
		}},
		{name: "update-with-start, running", setup: start, round: func(ctx context.Context, c client.Client, i int) error {
			opts := long
			opts.WorkflowIDConflictPolicy = conflictUseExisting
			h, err := c.UpdateWithStartWorkflow(ctx, client.UpdateWithStartWorkflowOptions{
				StartWorkflowOperation: c.NewWithStartWorkflowOperation(opts, longWorkflow),
				UpdateOptions: client.UpdateWorkflowOptions{
					UpdateName: updateName, WaitForStage: client.WorkflowUpdateStageCompleted, Args: []any{i},
				},
			})
			if err != nil {
				return err
			}
			return h.Get(ctx, nil)
		}},
		{name: "signal to end of a child workflow", setup: start, round: func(ctx context.Context, c client.Client, i int) error {
			if err := c.SignalWorkflow(ctx, id, "", childSignal, i); err != nil {
				return err
			}
			select {
			case <-handled:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}},
	}
}
