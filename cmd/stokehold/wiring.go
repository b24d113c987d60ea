package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stokehold/stokehold"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/stages/deploy"
	"github.com/stokehold/stokehold/stages/worker"
	"github.com/stokehold/stokehold/workflows"
)

// newPlatform is what the binary consists of: the embedded stack and the flights
// example.
func newPlatform() platform {
	return embedded(platform{
		Pipelines: func() ([]*workflows.Definition, error) {
			return flights.Pipelines(flights.NewStages(&flights.Data{}, nil))
		},
		Connect: func(ctx context.Context, cfg config.Config) (system, error) {
			defs, err := flights.Pipelines(flights.NewStages(&flights.Data{}, nil))
			if err != nil {
				return nil, err
			}
			app, err := connect(ctx, cfg, stokehold.Observing())
			if err != nil {
				return nil, err
			}
			return observe(app, cfg, defs), nil
		},
		Audit: func(ctx context.Context, cfg config.Config) (*stokehold.Auditor, error) {
			return stokehold.OpenAuditor(ctx, settings(cfg))
		},
		Data: func(ctx context.Context, cfg config.Config) (dataSystem, error) {
			app, err := connect(ctx, cfg, stokehold.Maintaining())
			if err != nil {
				return nil, err
			}
			return stored{app.Store, app, cfg.Actor}, nil
		},
		Approve: connectPerson,
		Host:    host,
		Feed:    feed,
		Survey: func(ctx context.Context, dir string) (handoff.Survey, error) {
			return handoff.Look(ctx, dir, handoff.DialConfig{})
		},
	})
}

func connect(ctx context.Context, cfg config.Config, more ...stokehold.Option) (*stokehold.App, error) {
	return stokehold.Connect(ctx, settings(cfg), append(brought(), more...)...)
}

// brought is what the binary's pipelines bring.
func brought() []stokehold.Option {
	return []stokehold.Option{stokehold.WithEventTypes(flights.EventTypes()...), stokehold.WithPolicies(flights.Policies()), stokehold.WithTierPolicies(flights.TierPolicies())}
}

// settings says a configuration in the framework's words.
func settings(cfg config.Config) stokehold.Config {
	return stokehold.Config{
		NATS: stokehold.NATS{
			URL: cfg.NATS.URL.Reveal(), User: cfg.NATS.User, Password: cfg.NATS.Password,
			Token: cfg.NATS.Token, CredsFile: cfg.NATS.Creds, Inbox: cfg.NATS.Inbox,
		},
		Temporal: stokehold.Temporal{
			Address: cfg.Temporal.Address, Namespace: cfg.Temporal.Namespace, TaskQueue: cfg.Temporal.TaskQueue,
			APIKey: cfg.Temporal.APIKey, TLS: cfg.Temporal.TLS,
		},
		S3: objects(cfg.S3),
		Flight: stokehold.Flight{
			Addr: cfg.Flight.Addr, Advertise: cfg.Flight.Advertise, Token: cfg.Flight.Token,
			CertFile: cfg.Flight.Cert, KeyFile: cfg.Flight.Key, CAFile: cfg.Flight.CA, Insecure: cfg.Flight.Insecure,
		},
		Audit: stokehold.Audit{
			S3: stokehold.S3{Endpoint: cfg.Audit.Endpoint.Reveal(), Region: cfg.Audit.Region, Bucket: cfg.Audit.Bucket,
				AccessKey: cfg.Audit.AccessKey.Reveal(), SecretKey: cfg.Audit.SecretKey},
			Dir: cfg.Audit.Dir, KeyFile: cfg.Audit.KeyFile, Origin: cfg.Audit.Origin,
			MaxEntries: cfg.Audit.MaxEntries, MaxDelay: cfg.Audit.MaxDelay,
		},
		Worker: stokehold.Worker{
			Name: cfg.Worker.Name, Class: cfg.Worker.Class, Region: cfg.Worker.Region,
			Accelerator: cfg.Worker.Accelerator, Accelerators: cfg.Worker.Accelerators, Address: cfg.Worker.Address,
		},
		Place: cfg.Place.Here(), ColdPlace: cfg.Place.Cold(),
		Tiers: stokehold.Tiering{
			Policies: cfg.TierPolicies, WarmBytes: int64(cfg.Warm.Bytes), Every: cfg.Tiers.Every, Grace: cfg.Tiers.Grace,
			MoveBytesPerSecond: int64(cfg.Tiers.MoveBytesPerSecond), MoveConcurrency: cfg.Tiers.MoveConcurrency,
			SweepEvery: cfg.Tiers.SweepEvery, SweepGrace: cfg.Tiers.SweepGrace, ColdCodec: cfg.Tiers.ColdCodec,
		},
		HotBytes: int64(cfg.Hot.Bytes), HotLimit: int64(cfg.Hot.Limit), HotWait: cfg.Hot.Wait,
		HotPrefault: cfg.Hot.Prefault, HotPages: shm.HugePages(cfg.Hot.HugePages),
		StateDir: cfg.StateDir, Policies: cfg.Policies, PolicyKeys: cfg.PolicyKeys, Actors: cfg.Actors, Key: cfg.StampKey,
	}
}

func objects(c config.S3) stokehold.S3 {
	return stokehold.S3{
		Endpoint: c.Endpoint.Reveal(), Region: c.Region, Bucket: c.Bucket, Addressing: c.Addressing,
		AccessKey: c.AccessKey.Reveal(), SecretKey: c.SecretKey, SessionToken: c.SessionToken, Profile: c.Profile, STSEndpoint: c.STSEndpoint.Reveal(),
		CAFile: c.CA, ClientCert: c.ClientCert, ClientKey: c.ClientKey, Proxy: c.Proxy.Reveal(),
		Encryption: c.Encryption, KMSKeyID: c.KMSKeyID, CustomerKey: c.CustomerKey, StorageClass: c.StorageClass,
		Syncs: c.Syncs, MaxObjectBytes: int64(c.MaxObjectBytes), PartBytes: int64(c.PartBytes),
		Concurrency: c.Concurrency, Retries: c.Retries, StallTimeout: c.StallTimeout,
	}
}

func observe(app *stokehold.App, cfg config.Config, defs []*workflows.Definition) *deployment {
	return &deployment{
		Bus: app.Bus, Registry: app.Models, Log: app.Decisions, Temporal: app.Temporal,
		TaskQueue: cfg.Temporal.TaskQueue, Definitions: defs, Closer: app.Close,
		Whoami: func(ctx context.Context) (string, error) { return app.Whoami(ctx, cfg.Actor) },
	}
}

// hosted is a deployment whose pipelines run in this process.
type hosted struct {
	*deployment
	app  *stokehold.App
	data *flights.Data
	dir  string // of its state
}

// liveWeeks is how many weeks arrive live, at most most if that is not 0.
func (h *hosted) liveWeeks(most int) int {
	n := int(h.data.Weeks - flights.FirstLive)
	if most > 0 {
		n = min(n, most)
	}
	return n
}

// reads are what this process has opened, by the tier where it was.
func (h *hosted) reads() report.Reads {
	s := h.app.Store.Stats()
	return report.Reads{Hot: s.Hot, Warm: s.Warm, Cold: s.Cold, Peer: s.Peer, Spilled: s.Spilled}
}

// Of tier policies where the quotas are small, as in a demo: the loop makes a week's
// batches in seconds.
const (
	quotaEvery = time.Second
	quotaGrace = 2 * time.Second
)

// host serves the models, and runs the example's pipelines against the server.
func host(ctx context.Context, cfg config.Config, h hosting) (_ system, err error) {
	data := h.Data
	if data == nil {
		if data, err = flights.Open(ctx, ""); err != nil {
			return nil, err
		}
	}
	if cfg.Warm.Bytes > 0 {
		cfg.Tiers.Every, cfg.Tiers.Grace = cmp.Or(cfg.Tiers.Every, quotaEvery), cmp.Or(cfg.Tiers.Grace, quotaGrace)
	}
	app, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	sys := &hosted{deployment: observe(app, cfg, nil), app: app, data: data, dir: cfg.StateDir}
	defer func() {
		if err != nil {
			closing(ctx, &err, sys.Close)
		}
	}()
	server, err := deploy.NewServer(deploy.ServerConfig{Models: app.Models})
	if err != nil {
		return nil, err
	}
	if err := server.Start(); err != nil {
		return nil, err
	}
	sys.Closer = func(ctx context.Context) error { return errors.Join(app.Close(ctx), server.Shutdown(ctx)) }
	work := stokehold.WorkConfig{Seed: h.Seed}
	set := flights.NewStages(data, &deploy.Client{URL: server.URL()})
	if h.Python != "" {
		set.FeaturesWorker = flights.PythonWorker
		c, err := flights.NewPythonWorker(h.Python, cfg.StateDir)
		if err != nil {
			return nil, err
		}
		work.Workers = map[string]worker.Config{flights.PythonWorker: c}
	}
	sys.Definitions, err = flights.Pipelines(set)
	if err != nil {
		return nil, err
	}
	work.Pipelines = sys.Definitions
	_, err = app.Work(ctx, work)
	return sys, err
}

// firstRun is the key of the run that makes the first model.
const firstRun = "first"

// feed starts the first training, then plays the weeks that arrive live. What
// was done by a demo that was killed is not done again.
func feed(ctx context.Context, sys system, h hosting) (report.Data, error) {
	s := sys.(*hosted)
	info, err := describe(ctx, s.data)
	if err != nil {
		return report.Data{}, err
	}
	if err := claim(s.dir, info, h.Seed); err != nil {
		return report.Data{}, err
	}
	train, err := find(s.Definitions, flights.TrainPipeline)
	if err != nil {
		return report.Data{}, err
	}
	params := fmt.Appendf(nil, `{"week": %d}`, flights.FirstWeek)
	_, err = s.app.Start(ctx, train, workflows.RunInput{Run: firstRun, Params: params, Seed: h.Seed})
	if err != nil && !errors.Is(err, workflows.ErrRunExists) {
		return report.Data{}, err
	}
	to := flights.FirstLive + uint64(s.liveWeeks(h.Weeks))
	cold := &archive{app: s.app}
	feeder := flights.Feeder{
		Bus: s.Bus, Data: s.data, To: to,
		OnWeek: func(o flights.Outcome) { cold.move(ctx, o.Key) },
	}
	if _, err := feeder.Run(ctx); err != nil {
		return report.Data{}, err
	}
	return info, cold.wait(ctx)
}

func describe(ctx context.Context, d *flights.Data) (report.Data, error) {
	rows, err := d.Source.Rows(ctx)
	if err != nil {
		return report.Data{}, err
	}
	sum, err := d.Source.SHA256(ctx)
	return report.Data{Source: d.Source.Name(), SHA256: sum, Rows: rows}, err
}

// archive moves what arrived to the cold tier, week by week behind the loop.
type archive struct {
	app  *stokehold.App
	next uint64 // first week not moved
	ids  []string
	err  error
}

// archiveReason is told with each of these moves.
const archiveReason = "stokehold demo"

// archiveTimeout bounds the wait for the last moves.
const archiveTimeout = 30 * time.Second

func (a *archive) move(ctx context.Context, week uint64) {
	for _, dataset := range []string{flights.Schedule, flights.Labels, flights.Features} {
		id, err := a.app.Migrate(ctx, workflows.Migration{Dataset: dataset, From: a.next, To: week + 1, Reason: archiveReason})
		a.ids, a.err = append(a.ids, id), errors.Join(a.err, err)
	}
	a.next = week + 1
}

func (a *archive) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, archiveTimeout)
	defer cancel()
	errs := []error{a.err}
	for _, id := range a.ids {
		if id == "" {
			continue
		}
		_, err := workflows.MigrationOutcome(ctx, a.app.Temporal, id)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
