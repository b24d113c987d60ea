package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold/cmd/devstack"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/cmd/internal/view"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/models"
)

type demoFlags struct {
	data, report string
	worker       string
	python       string
	seed         uint64
	weeks        int
	keep, plain  bool
}

func (a *app) demo() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the whole loop on real data: drift, retraining, promotion",
		Long: `Demo starts the embedded stack on free ports and runs examples/flights on real US
flights of 2001: a model is trained on the first weeks, then the other weeks
arrive as live events. Each is scored, its labels follow, drift leads to
retraining, and a rule on the metrics decides whether the challenger takes over.

With --hot and --warm the tiers are so small that batches have to leave them: tier
policies move the oldest to the object store, and readers find them there.

With --state, a demo that was killed goes on where it was.`,
		Args: args(),
	}
	var f demoFlags
	cmd.Flags().StringVar(&f.data, "data", "", "your own flights, Parquet or CSV `file` of the same columns")
	cmd.Flags().StringVar(&f.report, "report", "", "write the report as JSON to this `file` (docs/REPORT.md)")
	cmd.Flags().StringVar(&f.worker, "worker", "go", "what makes the features: `go` (a child process of this program) or python")
	cmd.Flags().StringVar(&f.python, "python", "", "`interpreter` for --worker python, which needs pyarrow and numpy (default $STOKEHOLD_PYTHON, else .venv/bin/python, else python3)")
	cmd.Flags().Uint64Var(&f.seed, "seed", 1, "`number` that all randomness comes from: same seed, same models")
	cmd.Flags().IntVar(&f.weeks, "weeks", 0, "end after this `number` of live weeks (default all)")
	cmd.Flags().BoolVar(&f.keep, "keep", false, "leave the stack up at the end, until Ctrl-C")
	cmd.Flags().BoolVar(&f.plain, "plain", false, "plain lines instead of the live view")
	config.QuotaFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.weeks < 0 {
			return usagef("%s: --weeks %d: want 0 or more", cmd.CommandPath(), f.weeks)
		}
		switch f.worker {
		case "python":
			f.python = a.interpreter(f.python)
		case "go":
			if f.python != "" {
				return usagef("%s: --python without --worker python", cmd.CommandPath())
			}
		default:
			return usagef("%s: --worker %q: want go or python", cmd.CommandPath(), f.worker)
		}
		return a.runDemo(cmd, f)
	}
	return cmd
}

// interpreter is the Python to use: the one named, or where one is usually found.
func (a *app) interpreter(named string) string {
	const local = ".venv/bin/python"
	for _, v := range a.env.Environ {
		if name, ok := strings.CutPrefix(v, "STOKEHOLD_PYTHON="); ok && named == "" {
			named = name
		}
	}
	if named != "" {
		return named
	}
	if path, err := filepath.Abs(local); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return "python3"
}

func (a *app) runDemo(cmd *cobra.Command, f demoFlags) (err error) {
	cfg, err := config.Load(config.Options{Flags: cmd.Flags(), Environ: a.env.Environ})
	if err != nil {
		return err
	}
	// What would fail at the end fails at the beginning.
	save, discard, err := prepare(f.report)
	if err != nil {
		return err
	}
	defer discard()
	h := hosting{Seed: f.seed, Weeks: f.weeks, Python: f.python}
	if h.Python != "" {
		if err := flights.CheckPython(cmd.Context(), h.Python); err != nil {
			return err
		}
	}
	if f.data != "" {
		if h.Data, err = flights.Open(cmd.Context(), f.data); err != nil {
			return err
		}
	}
	dir := cfg.StateDir
	if state := cmd.Flags().Lookup("state"); !state.Changed {
		if dir, err = os.MkdirTemp("", "stokehold-demo-"); err != nil {
			return fmt.Errorf("state directory: %w: set TMPDIR or --state", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	return a.demoIn(cmd.Context(), cfg, dir, f, h, save)
}

func (a *app) demoIn(outer context.Context, cfg config.Config, dir string, f demoFlags, h hosting, save func(report.Report) error) (err error) {
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	began := a.env.Now()
	screen := a.openView(ctx, cancel, f.plain)
	// The view stays until the shutdown is over, to show that one is going on.
	defer func() { err = errors.Join(err, screen.close()) }()

	screen.tell(view.Note{Text: "starting NATS, Temporal and S3"})
	stack, err := starting(ctx, func() (*devstack.Stack, error) {
		return a.platform.Stack(ctx, devstack.Options{Dir: dir, FreePorts: true})
	})
	if err != nil {
		return err
	}
	defer closing(ctx, &err, stack.Close)
	go func() {
		select {
		case <-stack.Failed():
			cancel(fmt.Errorf("the embedded stack failed: %w: start again with --state to look into DIR/logs", stack.Err()))
		case <-ctx.Done():
		}
	}()
	h.Tell = screen.tell
	sys, err := starting(ctx, func() (system, error) {
		return a.platform.Host(ctx, within(cfg, stack.Endpoints(), stack.Dir()), h)
	})
	if err != nil {
		return err
	}
	defer closing(ctx, &err, sys.Close)
	weeks := f.weeks
	if live, ok := sys.(interface{ liveWeeks(most int) int }); ok {
		weeks = live.liveWeeks(f.weeks)
	}
	started, err := a.started(stack.Endpoints().UIURL, weeks)
	if err != nil {
		return err
	}
	screen.tell(started)
	stopWatching := watch(ctx, sys, screen.tell)
	data, err := starting(ctx, func() (report.Data, error) { return a.platform.Feed(ctx, sys, h) })
	stopWatching()
	if err != nil {
		return err
	}
	info := report.Info{
		Stokehold: binaryVersion(), Seed: f.seed, Data: data, Took: a.env.Now().Sub(began), PeakMemoryBytes: peakMemory(),
	}
	if r, ok := sys.(interface{ reads() report.Reads }); ok {
		info.Reads = r.reads()
	}
	rep, err := a.summarise(ctx, sys, info)
	if err != nil {
		return err
	}
	screen.tell(view.Done{})
	if err := screen.close(); err != nil {
		return err
	}
	fmt.Fprintf(a.env.Out, "\n%s", rep.Render(a.env.width(), a.env.theme()))
	if err := save(rep); err != nil {
		return err
	}
	if f.keep {
		fmt.Fprintln(a.env.Out, "\nThe stack stays up until Ctrl-C:")
		a.sayAddresses(stack.Endpoints())
		fmt.Fprintf(a.env.Out, "  Look with: stokehold runs --state %s\n", stack.Dir())
		<-ctx.Done()
		if cause := context.Cause(ctx); !errors.Is(cause, errInterrupted) {
			return cause
		}
	}
	return nil
}

// started tells the view which pipelines there are.
func (a *app) started(ui string, weeks int) (view.Started, error) {
	defs, err := a.platform.Pipelines()
	if err != nil {
		return view.Started{}, err
	}
	s := view.Started{UI: ui, Weeks: weeks, Pipelines: map[string][]string{}}
	for _, d := range defs {
		s.Pipelines[d.Name] = stageNames(d)
	}
	return s, nil
}

// screen is the view at work.
type screen struct {
	msgs   chan view.Msg
	closed chan struct{} // no more sends
	ended  chan struct{} // the view returned
	err    error         // valid after ended
	done   bool
}

func (a *app) openView(ctx context.Context, cancel context.CancelCauseFunc, plain bool) *screen {
	s := &screen{msgs: make(chan view.Msg, 1024), closed: make(chan struct{}), ended: make(chan struct{})}
	pressed := 0
	o := view.Options{
		In: a.env.Keys, Out: a.env.Out, Environ: a.env.Environ, Colour: a.env.colour(), Clock: a.env.Now,
		Plain: plain || !a.env.Terminal,
		Interrupt: func() {
			if pressed++; pressed > 1 {
				a.env.Exit(exitKilled)
			}
			cancel(errInterrupted)
		},
	}
	state := view.State{Title: "demo · US flights, January to June 2001", Began: a.env.Now(), Now: a.env.Now()}
	go func() {
		defer close(s.ended)
		s.err = view.Show(context.WithoutCancel(ctx), o, state, s.msgs)
	}()
	go func() {
		select {
		case <-ctx.Done():
			s.tell(view.Stopping{})
		case <-s.closed:
		}
	}()
	return s
}

// tell sends m unless the view has ended. The last messages, sent while it
// closes, may be lost.
func (s *screen) tell(m view.Msg) {
	select {
	case <-s.closed:
	case <-s.ended:
	case s.msgs <- m:
	}
}

// close lets the view draw what it was told and waits for it. Repeatable; not
// safe for concurrent use.
func (s *screen) close() error {
	if !s.done {
		s.done = true
		close(s.closed)
		// The channel itself is never closed under a sender: nil ends the view.
		select {
		case s.msgs <- nil:
		case <-s.ended:
		}
		<-s.ended
	}
	return s.err
}

const pollEvery = 500 * time.Millisecond

// watch tells of every event, of running stages' progress, and of denials, until
// the returned function is called.
func watch(ctx context.Context, sys system, tell func(view.Msg)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	active := newActiveRuns()
	follow, poll := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(follow)
		// A failure shows as a view that stands still; the feed reports its cause.
		_ = sys.Follow(ctx, events.Subscription{}, func(_ context.Context, d events.Delivery) error {
			active.see(d)
			tell(view.Event{Delivery: d})
			return nil
		})
	}()
	go func() {
		defer close(poll)
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		told := int64(0)
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for _, id := range active.list() {
				d, err := sys.Describe(ctx, id)
				if err != nil {
					continue // the run may be starting or gone
				}
				for _, st := range d.Active {
					tell(view.Progress{Run: id, Stage: st.Stage, Done: st.Progress.Done, Total: st.Progress.Total, Note: st.Progress.Note})
				}
			}
			judged, denied := sys.Counters()
			tell(view.Counters{Judged: judged, Denied: denied})
			if denied > told {
				told = tellDenials(ctx, sys, told, denied, tell)
			}
		}
	}()
	return func() {
		cancel()
		<-follow
		<-poll
	}
}

// tellDenials tells of the newest denials that were not told of; it returns how
// many are told now.
func tellDenials(ctx context.Context, sys system, told, denied int64, tell func(view.Msg)) int64 {
	log, err := sys.Decisions(ctx)
	if err != nil {
		return told
	}
	for _, d := range log.Denials[max(0, len(log.Denials)-int(min(denied-told, 8))):] {
		tell(view.Denied{Denial: d})
	}
	return denied
}

func (a *app) summarise(ctx context.Context, sys system, info report.Info) (report.Report, error) {
	decisions, err := sys.Decisions(ctx)
	if err != nil {
		return report.Report{}, err
	}
	champions := map[string]string{}
	for name, err := range sys.Models(ctx) {
		if err != nil {
			return report.Report{}, err
		}
		v, err := sys.Alias(ctx, name, models.Champion)
		if err != nil && !errors.Is(err, models.ErrNotFound) {
			return report.Report{}, err
		}
		champions[name] = v.ID
	}
	return report.Build(report.Source{
		History: readable(sys.History(ctx, events.Subscription{})), Decisions: decisions,
		Models: versions(ctx, sys), Champions: champions, Info: info,
	})
}

// readable leaves out events that governance keeps from this reader or that are
// malformed: they had no effect, and the decision log counts them.
func readable(all iter.Seq2[events.Delivery, error]) iter.Seq2[events.Delivery, error] {
	return func(yield func(events.Delivery, error) bool) {
		for d, err := range all {
			if err != nil && d.Sequence > 0 && !errors.Is(err, events.ErrUnavailable) {
				continue
			}
			if !yield(d, err) {
				return
			}
		}
	}
}

func versions(ctx context.Context, sys system) iter.Seq2[models.Version, error] {
	return func(yield func(models.Version, error) bool) {
		for name, err := range sys.Models(ctx) {
			if err != nil {
				yield(models.Version{}, err)
				return
			}
			for v, err := range sys.Versions(ctx, name) {
				if !yield(v, err) {
					return
				}
			}
		}
	}
}

// prepare makes sure that path can be written. save puts a report there
// atomically; discard removes what an unfinished one left.
func prepare(path string) (save func(report.Report) error, discard func(), err error) {
	if path == "" {
		return func(report.Report) error { return nil }, func() {}, nil
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return nil, nil, fmt.Errorf("report: %s is a directory: name a file", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".report-*")
	if err != nil {
		return nil, nil, fmt.Errorf("report: cannot write %s: %s: choose another --report", path, strings.TrimPrefix(reason(err), "open "))
	}
	save = func(r report.Report) error {
		err := errors.Join(r.WriteJSON(f), f.Chmod(0o644), f.Close())
		if err == nil {
			err = os.Rename(f.Name(), path)
		}
		if err != nil {
			return fmt.Errorf("report: %w", err)
		}
		return nil
	}
	return save, func() { _ = os.Remove(f.Name()) }, nil
}

func reason(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// peakMemory is the greatest resident set of this process plus that of its
// largest child so far, in bytes.
func peakMemory() int64 {
	sum := int64(0)
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			sum += u.Maxrss << 10 // Linux gives KiB
		}
	}
	return sum
}
