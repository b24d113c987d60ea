// Package stokehold is the front door of the framework: it connects a process to
// NATS, Temporal and S3, and hosts pipelines there.
//
//	app, err := stokehold.Connect(ctx, cfg, stokehold.WithEventTypes(myTypes...))
//	defer app.Close(ctx)
//	_, err = app.Work(ctx, stokehold.WorkConfig{Pipelines: defs}) // their stages run in this process
//	run, err := app.Start(ctx, defs[0], workflows.RunInput{Run: "first"})
//
// The same code runs against one embedded process (package devstack of the cmd
// module) and against clusters: only Config differs.
package stokehold

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/arrowio/flight"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/governance/bundle"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/worker"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/policy"
	"github.com/stokehold/stokehold/workflows"
)

// connectTimeout bounds each server's first answer.
const connectTimeout = 10 * time.Second

// Files in Config.StateDir.
const (
	keyFile      = "stamp.key"         // signs the stamps on judged events
	acceptedFile = "policies.accepted" // digests of the policy sets in force so far
)

// App is this process's connection to a deployment. Its parts may be used
// directly. Safe for concurrent use.
type App struct {
	Bus       *events.Bus
	Store     *tiers.Store
	Models    *models.Registry
	Decisions *audit.JetStreamLog
	Judge     *governance.Engine
	// Policies keeps Judge on the bundle that was applied last; its Status says which.
	// nil for an observer without a list of trusted keys.
	Policies  *bundle.Manager
	Approvals *approval.Store
	Budgets   *budget.Ledger // nil for an observer
	Temporal  workflows.Client
	Types     *events.Registry
	Hot       *shm.Host
	// Flight gives this host's batches out; nil unless Config.Flight.Addr is set.
	Flight *flight.Server
	// TierPolicies say where batches belong.
	TierPolicies *policy.Files

	cold     tiers.ObjectStore // nil: there is none
	cfg      Config
	hosting  atomic.Pointer[hosted]
	asked    askedLedger // of an observer
	nc       *nats.Conn
	refusals chan bundle.Refusal // of policy bundles, to be published
	working  runtimes
	closers  []func(context.Context) error // run last to first
}

// Option extends an App.
type Option func(*options)

type options struct {
	types        []events.Type
	policies     []fs.FS
	tierPolicies []fs.FS
	observing    bool
	data         bool // although observing
}

// Observing connects without a data plane: Store and Hot stay nil, no shared
// memory is reserved, and Work fails. For programs that only look.
func Observing() Option { return func(o *options) { o.observing = true } }

// Maintaining is Observing with a Store, which has no shared memory: for programs
// that list, verify and move what is on disk and in the object store.
func Maintaining() Option { return func(o *options) { o.observing, o.data = true, true } }

// WithEventTypes registers event types of the user's own.
func WithEventTypes(types ...events.Type) Option {
	return func(o *options) { o.types = append(o.types, types...) }
}

// WithPolicies adds the *.yaml files of fsys: policies that come with the
// program, beside Config.Policies.
func WithPolicies(fsys fs.FS) Option {
	return func(o *options) { o.policies = append(o.policies, fsys) }
}

// Connect connects to the servers and opens the data plane. It starts no
// worker. Every error names the server and what to do about it.
func Connect(ctx context.Context, cfg Config, opts ...Option) (_ *App, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("stokehold: configuration: %w", err)
	}
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	a := &App{cfg: cfg}
	defer func() {
		if err != nil {
			closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
			defer cancel()
			err = errors.Join(err, a.Close(closeCtx))
		}
	}()
	for _, connect := range []func(context.Context, options) error{
		a.connectNATS, a.openBus, a.openData, a.dialTemporal,
	} {
		if err := connect(ctx, o); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// ConnectApprovals connects to what a person needs who answers requests for
// approval: Approvals and Temporal, and nothing else of the App. NATS credentials
// that allow approval.VoterSubjects suffice; the bucket must be there.
func ConnectApprovals(ctx context.Context, cfg Config) (_ *App, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("stokehold: configuration: %w", err)
	}
	a := &App{cfg: cfg}
	if err := a.connectNATS(ctx, options{}); err != nil {
		return nil, err
	}
	err = a.openApprovals(ctx)
	if err == nil {
		err = a.dialTemporal(ctx, options{})
	}
	if err != nil {
		return nil, errors.Join(err, a.Close(context.WithoutCancel(ctx)))
	}
	return a, nil
}

// Close drains and disconnects. Repeatable.
func (a *App) Close(ctx context.Context) error {
	var errs []error
	for i := len(a.closers) - 1; i >= 0; i-- {
		errs = append(errs, a.closers[i](ctx))
	}
	a.closers = nil
	return errors.Join(errs...)
}

func (a *App) onClose(f func(context.Context) error) { a.closers = append(a.closers, f) }

func (a *App) connectNATS(_ context.Context, _ options) error {
	n := a.cfg.NATS
	o := []nats.Option{nats.Name("stokehold"), nats.Timeout(connectTimeout), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond)}
	nc, err := nats.Connect(n.URL, append(o, n.connectOptions()...)...)
	if err != nil {
		return fmt.Errorf("connect to NATS at %s: %w: start it (`stokehold dev`) or set NATS_URL and its credentials", n.URL, err)
	}
	a.nc = nc
	a.onClose(func(context.Context) error { nc.Close(); return nil })
	return nil
}

func (a *App) openBus(ctx context.Context, o options) error {
	var err error
	if a.Types, err = events.NewRegistry(o.types...); err != nil {
		return err
	}
	if !o.observing {
		if err := os.MkdirAll(a.cfg.StateDir, 0o700); err != nil {
			return fmt.Errorf("state directory: %w: choose one that you may write to", err)
		}
	}
	keys, err := a.keys(o.observing)
	if err != nil {
		return err
	}
	policies, err := a.openPolicies(ctx, o)
	if err != nil {
		return err
	}
	a.Decisions, err = audit.Open(ctx, audit.Config{Conn: a.nc})
	if err != nil {
		return err
	}
	a.onClose(a.Decisions.Close)
	if !o.observing {
		if err := a.startSequencer(ctx); err != nil {
			return err
		}
	}
	accept, err := a.acceptedPolicies(policies, o.observing)
	if err != nil {
		return err
	}
	accept = a.earlierPolicies(ctx, accept)
	if err := a.openApprovals(ctx); err != nil {
		return err
	}
	if err := a.openBudgets(ctx, o); err != nil {
		return err
	}
	a.Judge, err = governance.NewEngine(governance.Config{
		Policies: policies, Log: a.Decisions, Keys: keys, Accept: accept, Facts: a.facts(), Approvals: a.Approvals,
	})
	if err != nil {
		return err
	}
	judge, err := a.startPolicies(ctx)
	if err != nil {
		return err
	}
	a.Bus, err = events.Open(ctx, events.Config{Conn: a.nc, Types: a.Types, Judge: judge, Logger: a.cfg.Log})
	if err != nil {
		return err
	}
	a.onClose(a.Bus.Close)
	if a.refusals != nil {
		a.tellRefusals()
	}
	return nil
}

// directory reads the document of actors; without one nobody has a role.
func (c Config) directory() (*approval.Directory, error) {
	if c.Actors == "" {
		return &approval.Directory{}, nil
	}
	return approval.ReadDirectory(c.Actors)
}

func (a *App) openApprovals(ctx context.Context) error {
	actors, err := a.cfg.directory()
	if err != nil {
		return err
	}
	a.Approvals, err = approval.Open(ctx, approval.Config{Conn: a.nc, Directory: actors})
	return err
}

// Whoami is the actor that this process's NATS credentials stand for; claimed is
// the name that the person gives, see approval.Whoami.
func (a *App) Whoami(ctx context.Context, claimed string) (string, error) {
	return approval.Whoami(ctx, a.nc, a.Approvals.Directory(), claimed)
}

func (a *App) loadPolicies(o options) (*governance.PolicySet, error) {
	sources, err := a.policySources(o)
	if err != nil {
		return nil, err
	}
	return governance.Load(governance.Options{Types: a.Types}, sources...)
}

// acceptedPolicies returns the digests of the policy sets that this state
// directory ran under before: events that they allowed are still in the stream
// and must not be held for stale after a restart with other policies. A process
// that only observes reads the list and leaves it alone.
func (a *App) acceptedPolicies(current *governance.PolicySet, observing bool) ([]string, error) {
	path := filepath.Join(a.cfg.StateDir, acceptedFile)
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("earlier policies: %w", err)
	}
	digests := strings.Fields(string(raw))
	digests = slices.DeleteFunc(digests, func(d string) bool { return d == current.ShortDigest() })
	digests = digests[max(0, len(digests)-governance.MaxAccepted+1):]
	if observing {
		return digests, nil
	}
	text := strings.Join(append(slices.Clone(digests), current.ShortDigest()), "\n") + "\n"
	next := path + ".next"
	if err := errors.Join(os.WriteFile(next, []byte(text), 0o600), os.Rename(next, path)); err != nil {
		return nil, fmt.Errorf("note the policies in force: %w", err)
	}
	return digests, nil
}

func (a *App) keys(observing bool) (*governance.KeyRing, error) {
	if a.cfg.Key != "" {
		return governance.ParseKeyRing([]byte(a.cfg.Key.Reveal()))
	}
	if observing {
		if _, err := os.Stat(filepath.Join(a.cfg.StateDir, keyFile)); errors.Is(err, fs.ErrNotExist) {
			// Nothing can be verified without the deployment's key, and an observer leaves
			// none behind.
			key, err := governance.NewKey("observer")
			if err != nil {
				return nil, err
			}
			return governance.NewKeyRing(key)
		}
	}
	return governance.OpenKeyFile(filepath.Join(a.cfg.StateDir, keyFile))
}

func (a *App) openData(ctx context.Context, o options) error {
	if err := a.openTierPolicies(o); err != nil {
		return err
	}
	cold, err := a.openCold(ctx, o)
	if err != nil {
		return err
	}
	a.cold = cold
	a.Models, err = models.Open(ctx, models.Config{
		Conn: a.nc, Bus: a.Bus, Cold: cold, Dir: filepath.Join(a.cfg.StateDir, "models"),
		Labels: datasetLabels{a}, Datasets: datasetLabels{a}, Serving: a.cfg.Place, ColdPlace: a.cfg.ColdPlace,
	})
	if err == nil && o.data {
		return a.openStored(ctx, cold)
	}
	if err != nil || o.observing {
		return err
	}
	a.Hot = &shm.Host{Limit: a.cfg.HotLimit}
	a.onClose(func(context.Context) error { return a.Hot.Close() })
	arena, err := a.Hot.New(shm.Config{Bytes: a.cfg.HotBytes, Prefault: a.cfg.HotPrefault, HugePages: a.cfg.HotPages})
	if err != nil {
		return fmt.Errorf("reserve %d bytes of shared memory for the hot tier: %w: make HotBytes smaller", a.cfg.HotBytes, err)
	}
	if pages := arena.Stats().HugePages; pages != "" {
		a.cfg.Log.InfoContext(ctx, "huge pages of the hot tier", "pages", pages)
	}
	local, err := a.shareHot()
	if err != nil {
		return err
	}
	remote, err := a.openFlight(ctx)
	if err != nil {
		return err
	}
	a.Store, err = tiers.Open(ctx, tiers.Config{
		Conn: a.nc, Bus: a.Bus, Host: a.Hot, Arena: arena, HotWait: a.cfg.HotWait, Cold: cold,
		Warm: filepath.Join(a.cfg.StateDir, "warm"), Logger: a.cfg.Log,
		Peers: local, Far: remote.resolver, Advertise: remote.advertise, Promote: tiers.Promotion{WarmBytes: a.cfg.PromoteBytes},
		Place: a.cfg.Place, ColdPlace: a.cfg.ColdPlace, Versions: a.Models, Routed: a.sendTo,
		MoveBytesPerSecond: a.cfg.Tiers.MoveBytesPerSecond, MoveConcurrency: a.cfg.Tiers.MoveConcurrency,
		ColdCodec: a.cfg.Tiers.ColdCodec,
	})
	if err != nil {
		return errors.Join(err, remote.close())
	}
	a.onClose(a.Store.Close)
	// A process that only maintains may be there to take the bucket over.
	if err := a.Store.ClaimCold(ctx); err != nil {
		return errors.Join(err, remote.close())
	}
	return a.serveFlight(remote)
}

// openStored opens the data plane without its hot tier.
func (a *App) openStored(ctx context.Context, cold tiers.ObjectStore) error {
	host := &shm.Host{}
	a.onClose(func(context.Context) error { return host.Close() })
	var err error
	a.Store, err = tiers.Open(ctx, tiers.Config{
		Conn: a.nc, Bus: a.Bus, Host: host, Cold: cold, Warm: filepath.Join(a.cfg.StateDir, "warm"), Logger: a.cfg.Log,
		Place: a.cfg.Place, ColdPlace: a.cfg.ColdPlace, Versions: a.Models,
	})
	if err != nil {
		return err
	}
	a.onClose(a.Store.Close)
	return nil
}

func (a *App) dialTemporal(ctx context.Context, _ options) error {
	t := a.cfg.Temporal
	c, err := workflows.Dial(ctx, workflows.DialConfig{
		Address: t.Address, Namespace: t.Namespace, APIKey: t.APIKey.Reveal(), TLS: t.TLS, Logger: a.cfg.Log,
	})
	if err != nil {
		return err
	}
	a.Temporal = c
	a.onClose(func(context.Context) error { c.Close(); return nil })
	return nil
}

// WorkConfig says what a worker hosts and how.
type WorkConfig struct {
	Pipelines []*workflows.Definition
	// Children starts the child processes of stages marked InChildProcess. Its
	// program must call stages.RunIfChild first. nil: this program itself.
	Children *worker.Config
	// Workers are other programs, by the name that workflows.InWorker gives: how to
	// start them. Those that no pipeline names are not started.
	Workers map[string]worker.Config
	Seed    uint64 // of the runs that triggers start
	// Ahead bounds how far ahead of the stages their inputs are read.
	Ahead stages.Ahead
}

// Work hosts pipelines: their stages, the interpreter of their runs, their
// triggers, migrations and tier policies. The worker stops with the App, or earlier by its own
// Stop.
func (a *App) Work(ctx context.Context, cfg WorkConfig) (*workflows.Worker, error) {
	if a.Hot == nil {
		return nil, errors.New("stokehold: this App only observes: connect without Observing to host pipelines")
	}
	children, err := a.startChildren(ctx, cfg)
	if err != nil {
		return nil, err
	}
	workers, err := a.startWorkers(ctx, cfg)
	if err != nil {
		return nil, err
	}
	runtime := &stages.Runtime{
		Store: a.Store, Registry: a.Models, Bus: a.Bus, Children: children, Workers: workers, Ahead: cfg.Ahead, Log: a.cfg.Log,
		Local: stages.Device{Accelerator: a.cfg.Worker.Accelerator, Count: a.cfg.Worker.Accelerators},
	}
	limits, err := budget.NewStore(a.nc, "")
	if err != nil {
		return nil, err
	}
	a.hosting.Store(&hosted{cfg.Pipelines, runtime})
	a.working.add(runtime)
	w, err := workflows.NewWorker(workflows.WorkerConfig{
		Client: a.Temporal, Runtime: runtime, Budgets: a.Budgets, Limits: budget.Gate{Store: limits, Log: a.Decisions},
		Bus: a.Bus, Pipelines: cfg.Pipelines, Types: a.Types, Migrator: a.Store, Tiers: a.planner(),
		Approvals: &approval.Coordinator{Store: a.Approvals, Bus: a.Bus},
		TaskQueue: a.cfg.Temporal.TaskQueue, Class: a.cfg.Worker.Class, Region: a.cfg.Worker.Region, Seed: cfg.Seed, Logger: a.cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	if err := w.Start(ctx); err != nil {
		return nil, err
	}
	a.onClose(w.Stop)
	if err := a.tend(ctx); err != nil {
		return nil, err
	}
	return w, nil
}

// startChildren starts the worker's child process if a stage needs one.
func (a *App) startChildren(ctx context.Context, cfg WorkConfig) (*worker.Pool, error) {
	needed := slices.ContainsFunc(cfg.Pipelines, func(d *workflows.Definition) bool {
		return slices.ContainsFunc(d.Graph, func(s workflows.StageDef) bool { return s.ChildProcess && s.Worker == "" })
	})
	if !needed {
		return nil, nil
	}
	var c worker.Config
	if cfg.Children != nil {
		c = *cfg.Children
	}
	return a.startPool(ctx, c, "the worker's child process")
}

// startWorkers starts the other programs that the pipelines name.
func (a *App) startWorkers(ctx context.Context, cfg WorkConfig) (map[string]*worker.Pool, error) {
	pools := map[string]*worker.Pool{}
	for _, d := range cfg.Pipelines {
		for _, s := range d.Graph {
			if s.Worker == "" || pools[s.Worker] != nil {
				continue
			}
			c, ok := cfg.Workers[s.Worker]
			if !ok {
				return nil, fmt.Errorf("stokehold: stage %s of pipeline %s runs in worker %q, which is not configured: say in WorkConfig.Workers how to start it", s.Name, d.Name, s.Worker)
			}
			if len(c.Command) == 0 {
				return nil, fmt.Errorf("stokehold: worker %q has no Command: say which program it is, e.g. python3 -m mystages", s.Worker)
			}
			p, err := a.startPool(ctx, c, fmt.Sprintf("worker %q", s.Worker))
			if err != nil {
				return nil, err
			}
			pools[s.Worker] = p
		}
	}
	return pools, nil
}

func (a *App) startPool(ctx context.Context, c worker.Config, what string) (*worker.Pool, error) {
	if c.Logger == nil {
		c.Logger = a.cfg.Log
	}
	p, err := worker.StartPool(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", what, err)
	}
	a.onClose(p.Close)
	return p, nil
}

// Start starts a run of a pipeline that some worker hosts.
func (a *App) Start(ctx context.Context, d *workflows.Definition, in workflows.RunInput) (*workflows.Run, error) {
	return workflows.Start(ctx, a.Temporal, d, in, workflows.StartOptions{TaskQueue: a.cfg.Temporal.TaskQueue})
}

// Migrate starts giving the batches of a range a verified copy in the cold tier,
// or joins the migration that does, and returns its id for
// workflows.MigrationOutcome.
func (a *App) Migrate(ctx context.Context, m workflows.Migration) (string, error) {
	return workflows.StartMigration(ctx, a.Temporal, m, workflows.StartOptions{TaskQueue: a.cfg.Temporal.TaskQueue})
}
