package workflows

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
)

// WorkerConfig configures a Worker.
type WorkerConfig struct {
	// Client reaches Temporal. Runs started through this same client start eagerly
	// on the worker, without a trip through the server's queues. Required.
	Client client.Client
	// Runtime runs the stages. Required, unless Executor and Aliases stand in.
	Runtime *stages.Runtime
	// Bus carries the runs' events and feeds the triggers. Required, unless
	// Publisher stands in, in which case no trigger consumes events.
	Bus *events.Bus
	// Pipelines are what this worker runs: its stages, and its triggers.
	Pipelines []*Definition
	// Stages are further stages, by name, for ExecuteStage without a pipeline.
	Stages map[string]stages.Stage
	// Types are the bus's event types; the triggers' types are checked against
	// them. nil: not checked.
	Types *events.Registry
	// Migrator moves batches for the migration workflow; nil: there is none. To evict
	// and to bring batches back it must be a Mover, to have migrations judged as a whole a
	// Requester.
	Migrator Migrator
	// Tiers plans by tier policies; nil: this worker carries none out. What is planned
	// is done once some worker calls StartTierPolicies.
	Tiers TierPlanner
	// Approvals asks people where a policy requires it; nil: what needs an approval
	// fails.
	Approvals Approvals
	// Budgets counts what stages use and pauses those that have nothing left; nil:
	// nobody counts.
	Budgets Budgets
	// Limits makes the changes of limits that are proposed (BudgetGate); nil: this worker
	// makes none.
	Limits    Limits
	TaskQueue string // default DefaultTaskQueue
	// Class and Region say what kind of worker this is and where, for what governance
	// routes: it serves stages that are sent to either or both, besides those that are
	// sent nowhere. "" is none.
	Class, Region string
	Seed          uint64 // of the runs that triggers start
	// WithoutSearchAttributes is for a server that lacks SearchAttributes.
	WithoutSearchAttributes bool
	// WithoutTriggers leaves consuming events to other workers.
	WithoutTriggers bool
	// MaxStages bounds stages at work at once, each of those that are sent nowhere, to
	// the class, to the region and to both; default 64. A consumer holds its
	// place while it waits for its producer, so it must exceed the stages of the
	// widest run.
	MaxStages int
	Logger    *slog.Logger // nil: nothing is logged

	Executor  Executor  // instead of Runtime
	Publisher Publisher // instead of Bus
	Aliases   Aliases   // instead of Runtime.Registry
}

// Registrar is what workflows and activities are registered with: a Temporal
// worker or test environment.
type Registrar interface {
	RegisterWorkflowWithOptions(w any, options workflow.RegisterOptions)
	RegisterActivityWithOptions(a any, options activity.RegisterOptions)
}

// Register registers the interpreter, the trigger and migration workflows and
// their activities, for those who run a Temporal worker of their own.
func Register(r Registrar, cfg WorkerConfig) error {
	a, err := newActivities(cfg)
	if err != nil {
		return err
	}
	a.register(r)
	return nil
}

func (a *activities) register(r Registrar) {
	RegisterWorkflows(r)
	a.registerStages(r)
	for name, fn := range map[string]any{
		publishActivity: a.publish, aliasActivity: a.alias, notifyActivity: a.notify, fireActivity: a.fire, lookActivity: a.look,
		permitActivity: a.permit, migrateActivity: a.migrate, dropActivity: a.drop, askActivity: a.ask, settleActivity: a.settle, budgetActivity: a.lookAtBudget,
		placeActivity: a.place, draftBudgetActivity: a.draftBudget, enactBudgetActivity: a.enactBudget,
		planTiersActivity: a.planTiers, expireTierActivity: a.expireTier, migrationEndActivity: a.migrationEnd,
	} {
		r.RegisterActivityWithOptions(fn, activity.RegisterOptions{Name: name})
	}
}

func (a *activities) registerStages(r Registrar) {
	for _, kind := range allKinds() {
		r.RegisterActivityWithOptions(a.runStage, activity.RegisterOptions{Name: activityName(kind)})
	}
}

// RegisterWorkflows registers the workflows alone, which is what a replayer
// needs.
func RegisterWorkflows(r interface {
	RegisterWorkflowWithOptions(w any, options workflow.RegisterOptions)
}) {
	r.RegisterWorkflowWithOptions(runPipeline, workflow.RegisterOptions{Name: PipelineWorkflow})
	r.RegisterWorkflowWithOptions(runTrigger, workflow.RegisterOptions{Name: TriggerWorkflow})
	r.RegisterWorkflowWithOptions(runMigrate, workflow.RegisterOptions{Name: MigrateWorkflow})
	r.RegisterWorkflowWithOptions(runBudgetChange, workflow.RegisterOptions{Name: BudgetChangeWorkflow})
	r.RegisterWorkflowWithOptions(runTierPolicies, workflow.RegisterOptions{Name: TierPolicyWorkflow})
}

func newActivities(cfg WorkerConfig) (*activities, error) {
	a := &activities{
		now:    time.Now,
		client: cfg.Client, executor: cfg.Executor, publisher: cfg.Publisher, aliases: cfg.Aliases, migrator: cfg.Migrator, tiers: cfg.Tiers, approvals: cfg.Approvals, budgets: cfg.Budgets, limits: cfg.Limits,
		log: cfg.Logger, queue: queueOr(cfg.TaskQueue), pipelines: make(map[string]*Definition), stages: maps.Clone(cfg.Stages),
		attributes: !cfg.WithoutSearchAttributes, seed: cfg.Seed, here: Place{cfg.Class, cfg.Region},
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	faults := a.here.faults()
	if a.limits == nil {
		a.limits = noLimits{}
	}
	if a.executor == nil && cfg.Runtime != nil {
		a.executor = cfg.Runtime
	}
	if a.aliases == nil && cfg.Runtime != nil && cfg.Runtime.Registry != nil {
		a.aliases = cfg.Runtime.Registry
	}
	if a.publisher == nil && cfg.Bus != nil {
		a.publisher = cfg.Bus
	}
	if a.executor == nil {
		faults = append(faults, errors.New("workflows: WorkerConfig.Runtime is missing: stages need one"))
	}
	if a.publisher == nil {
		faults = append(faults, errors.New("workflows: WorkerConfig.Bus is missing: runs publish events"))
	}
	for _, d := range cfg.Pipelines {
		if d == nil {
			faults = append(faults, errors.New("workflows: WorkerConfig.Pipelines holds nil: pass what Build returned"))
			continue
		}
		if _, ok := a.pipelines[d.Name]; ok {
			faults = append(faults, fmt.Errorf("workflows: two pipelines are called %q: rename one", d.Name))
		}
		a.pipelines[d.Name] = d
		found := d.faults()
		for _, s := range d.Graph {
			if d.impl[s.Name] == nil {
				found = append(found, Fault{s.Name, "has no implementation", "a worker hosts pipelines made with New and Build"})
			}
			if s.Worker != "" && cfg.Runtime != nil && cfg.Runtime.Workers[s.Worker] == nil {
				found = append(found, Fault{s.Name, fmt.Sprintf("runs in worker %q, which this process does not have", s.Worker), "give the Runtime a pool of that name in Workers"})
			}
		}
		if cfg.Types != nil {
			var b *BuildError
			if errors.As(d.ValidateEvents(cfg.Types), &b) {
				found = append(found, b.Faults...)
			}
		}
		if err := buildError(d.Name, found); err != nil {
			faults = append(faults, err)
		}
	}
	return a, errors.Join(faults...)
}

// Worker hosts pipelines: it runs their stages and the workflows that call them,
// and feeds their triggers. Safe for concurrent use.
type Worker struct {
	cfg        WorkerConfig
	activities *activities
	bridges    []*bridge

	mu       sync.Mutex
	state    workerState
	workers  []worker.Worker // of the base queue, then those of the worker's places
	stopDone chan struct{}
}

type workerState int

const (
	fresh workerState = iota
	started
	stopping
)

// ErrStopped means that the worker was stopped and cannot be started again; make another.
var ErrStopped = errors.New("worker is stopped")

// NewWorker checks the configuration and returns every fault at once.
func NewWorker(cfg WorkerConfig) (*Worker, error) {
	a, err := newActivities(cfg)
	if cfg.Client == nil {
		err = errors.Join(errors.New("workflows: WorkerConfig.Client is missing"), err)
	}
	if cfg.MaxStages < 0 {
		err = errors.Join(fmt.Errorf("workflows: WorkerConfig.MaxStages %d is negative: leave it 0 for 64", cfg.MaxStages), err)
	}
	if err != nil {
		return nil, err
	}
	if cfg.MaxStages == 0 {
		cfg.MaxStages = 64
	}
	w := &Worker{cfg: cfg, activities: a}
	if cfg.Bus == nil || cfg.WithoutTriggers {
		return w, nil
	}
	for _, d := range cfg.Pipelines {
		for _, t := range d.Triggers {
			b, err := newBridge(a, d, t)
			if err != nil {
				return nil, err
			}
			w.bridges = append(w.bridges, b)
		}
	}
	return w, nil
}

// Start begins polling, then consuming events. It returns once the server
// answers. Starting a started worker does nothing; a stopped one gives
// ErrStopped.
func (w *Worker) Start(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch w.state {
	case started:
		return nil
	case stopping:
		return fmt.Errorf("workflows: start: %w", ErrStopped)
	case fresh:
	}
	base := worker.New(w.cfg.Client, w.activities.queue, w.options())
	w.activities.register(base)
	sdks := []worker.Worker{base}
	for _, p := range w.activities.here.places() {
		o := w.options()
		o.DisableWorkflowWorker = true
		sdk := worker.New(w.cfg.Client, p.queue(w.activities.queue), o)
		w.activities.registerStages(sdk)
		sdks = append(sdks, sdk)
	}
	for i, sdk := range sdks {
		if err := sdk.Start(); err != nil {
			for _, running := range sdks[:i] {
				running.Stop()
			}
			return fmt.Errorf("workflows: start worker: %w", explain(err))
		}
	}
	w.workers, w.state = sdks, started
	for _, b := range w.bridges {
		if err := b.start(ctx, w.cfg.Bus); err != nil {
			w.stopLocked()
			return err
		}
	}
	return nil
}

func (w *Worker) options() worker.Options {
	eager := 16
	return worker.Options{
		MaxConcurrentActivityExecutionSize:          w.cfg.MaxStages,
		MaxConcurrentLocalActivityExecutionSize:     64,
		MaxConcurrentWorkflowTaskExecutionSize:      64,
		MaxEagerActivityReservationsPerWorkflowTask: &eager,
		// Few pollers: each holds a connection's stream and costs the server a
		// waiting request; eager starts bypass them.
		MaxConcurrentWorkflowTaskPollers: 4,
		MaxConcurrentActivityTaskPollers: 2,
		// The heart beats each second; the SDK must not hold beats back for most of
		// the timeout, since the answer to a beat tells of cancellation.
		MaxHeartbeatThrottleInterval:     heartbeatEvery / 2,
		DefaultHeartbeatThrottleInterval: heartbeatEvery / 2,
		// How long a task waits for a worker that died before any other may have it.
		StickyScheduleToStartTimeout: time.Second,
		WorkerStopTimeout:            stopGrace + heartbeatEvery,
		OnFatalError:                 func(err error) { w.activities.log.Error("the Temporal worker failed", "error", err) },
	}
}

// Stop stops consuming events, tells the stages at work to stop, and waits until
// they have or ctx ends. Runs are not ended: they go on when a worker is there
// again. Safe on a worker that was never started; repeatable.
func (w *Worker) Stop(ctx context.Context) error {
	w.mu.Lock()
	if len(w.workers) == 0 {
		w.state = stopping
		w.mu.Unlock()
		return nil
	}
	done := w.stopLocked()
	w.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("workflows: stages are still stopping: %w", context.Cause(ctx))
	}
}

func (w *Worker) stopLocked() <-chan struct{} {
	if w.state == stopping && w.stopDone != nil {
		return w.stopDone
	}
	w.state = stopping
	done := make(chan struct{})
	w.stopDone = done
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
		defer cancel()
		for _, b := range w.bridges {
			b.stop(ctx)
		}
		var stops sync.WaitGroup
		for _, sdk := range w.workers {
			stops.Go(sdk.Stop)
		}
		stops.Wait()
	}()
	return done
}

// Logger adapts a slog.Logger for client.Options.Logger, so that the SDK's few
// messages go where the others do.
func Logger(l *slog.Logger) log.Logger { return log.NewStructuredLogger(l) }

// Client is a connection to Temporal.
type Client = client.Client

// DialConfig says how to reach Temporal.
type DialConfig struct {
	Address   string // host:port
	Namespace string // default "default"
	APIKey    string // implies TLS
	TLS       bool
	Logger    *slog.Logger // nil: nothing is logged
}

// Dial connects to a Temporal server and proves it by asking about the namespace.
// Callers that need more (client certificates, a data converter) use
// client.DialContext themselves.
func Dial(ctx context.Context, cfg DialConfig) (Client, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	o := client.Options{HostPort: cfg.Address, Namespace: cfg.Namespace, Logger: Logger(cfg.Logger)}
	if cfg.APIKey != "" {
		o.Credentials = client.NewAPIKeyStaticCredentials(cfg.APIKey)
	}
	if cfg.TLS || cfg.APIKey != "" {
		o.ConnectionOptions.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := client.DialContext(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("workflows: connect to Temporal at %s: %w: %w: check the address and that the server runs", cfg.Address, ErrUnavailable, err)
	}
	return c, nil
}
