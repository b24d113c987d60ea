package stokehold

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/governance/bundle"
)

// Files in Config.StateDir that policies are signed and trusted by, unless
// Config.PolicyKeys names others.
const (
	PolicyKeyFile   = "policy.key"     // signs bundles; made at the first start
	PolicyTrustFile = "policy.trusted" // whose bundles are taken; made with that key in it
)

// localSigner names the key that a state directory begins with.
const localSigner = "local"

// trustFile is the list of the keys whose bundles this process takes.
func (c Config) trustFile() string {
	if c.PolicyKeys != "" {
		return c.PolicyKeys
	}
	return filepath.Join(c.StateDir, PolicyTrustFile)
}

// openPolicies returns the policies to begin with: those of the bundle in the
// deployment's store, or, when none was ever applied, those of the configured
// files. It also begins to follow the store. An observer without a list of trusted
// keys, which cannot tell whose a bundle is, has the files alone.
func (a *App) openPolicies(ctx context.Context, o options) (*governance.PolicySet, error) {
	if _, err := os.Stat(a.cfg.trustFile()); o.observing && errors.Is(err, fs.ErrNotExist) {
		return a.loadPolicies(o)
	}
	if !o.observing && a.cfg.PolicyKeys == "" {
		if err := makePolicyKeys(a.cfg.StateDir); err != nil {
			return nil, err
		}
	}
	store, err := bundle.NewStore(bundle.StoreConfig{Conn: a.nc})
	if err != nil {
		return nil, err
	}
	cfg := bundle.ManagerConfig{
		Store: store, Trust: bundle.TrustFile(a.cfg.trustFile()), Types: a.Types, Log: a.cfg.Log,
		Dir: a.cfg.StateDir, ReadOnly: o.observing,
	}
	if !o.observing {
		a.refusals = make(chan bundle.Refusal, maxRefusals)
		cfg.OnRefuse = a.refused
		cfg.OnSwap = func(set *governance.PolicySet) error {
			_, err := a.acceptedPolicies(set, false)
			return err
		}
		// With the bucket there, the first bundle is heard of as soon as any other.
		if err := store.Create(ctx); err != nil {
			a.cfg.Log.WarnContext(ctx, "policies: the store cannot be made; it is looked for until somebody has", "error", err)
		}
	}
	if a.Policies, err = bundle.NewManager(ctx, cfg); err != nil {
		return nil, err
	}
	if set := a.Policies.Policies(); set != nil {
		return set, nil
	}
	return a.loadPolicies(o)
}

// makePolicyKeys makes a key and a list that trusts it, unless they are there.
func makePolicyKeys(dir string) error {
	key, err := bundle.OpenSigningKey(filepath.Join(dir, PolicyKeyFile), localSigner)
	if err != nil {
		return err
	}
	if err := bundle.WriteTrust(filepath.Join(dir, PolicyTrustFile), key.Public()); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// earlierPolicies adds the sets of the bundles in the store to those that this
// state directory knows of, the newest last.
func (a *App) earlierPolicies(ctx context.Context, accept []string) []string {
	if a.Policies == nil {
		return accept
	}
	earlier, err := a.Policies.Earlier(ctx)
	if err != nil { // this process's own are enough for what it has seen
		a.cfg.Log.WarnContext(ctx, "policies: earlier bundles cannot be read", "error", err)
		return accept
	}
	for _, d := range accept {
		if !slices.Contains(earlier, d) {
			earlier = append(earlier, d)
		}
	}
	return earlier[max(0, len(earlier)-governance.MaxAccepted):]
}

// startPolicies follows the store from now on and returns the Judge for the bus.
func (a *App) startPolicies(ctx context.Context) (events.Judge, error) {
	if a.Policies == nil {
		return a.Judge, nil
	}
	if err := a.Policies.Start(ctx, a.Judge); err != nil {
		return nil, err
	}
	a.onClose(a.Policies.Close)
	return a.Policies.Judge(a.Judge), nil
}

// PolicyDesk is a connection for those who make policies: to NATS alone, without
// a judge. Close it.
type PolicyDesk struct {
	Store *bundle.Store
	Types *events.Registry
	Trust bundle.TrustSource

	app *App
	o   options
}

// ConnectPolicies connects a PolicyDesk. Of the configuration it needs NATS and
// where the keys are; of the options, those that say what the deployment's
// programs bring.
func ConnectPolicies(ctx context.Context, cfg Config, opts ...Option) (*PolicyDesk, error) {
	d := &PolicyDesk{app: &App{cfg: cfg.withDefaults()}}
	for _, opt := range opts {
		opt(&d.o)
	}
	d.Trust = bundle.TrustFile(d.app.cfg.trustFile())
	var err error
	if d.Types, err = events.NewRegistry(d.o.types...); err != nil {
		return nil, err
	}
	d.app.Types = d.Types
	if err := d.app.connectNATS(ctx, d.o); err != nil {
		return nil, err
	}
	if d.Store, err = bundle.NewStore(bundle.StoreConfig{Conn: d.app.nc}); err != nil {
		return nil, errors.Join(err, d.Close(ctx))
	}
	return d, nil
}

// Close disconnects. Repeatable.
func (d *PolicyDesk) Close(ctx context.Context) error { return d.app.Close(ctx) }

// InForce is what a deployment's processes decide by.
type InForce struct {
	Bundle   *bundle.Bundle // nil: none was ever applied, and the configured files count
	Revision uint64         // of the store
	Sources  []governance.Source
	Options  governance.Options
}

// InForce returns the newest bundle in the store, or else the configured files
// and those that come with the program.
func (d *PolicyDesk) InForce(ctx context.Context) (InForce, error) {
	trust, err := d.trust()
	if err != nil {
		return InForce{}, err
	}
	b, revision, err := bundle.Current(ctx, d.Store, trust)
	if err == nil {
		return InForce{Bundle: b, Revision: revision, Sources: b.Sources(), Options: b.Options(d.Types)}, nil
	}
	f := InForce{Revision: revision, Options: governance.Options{Types: d.Types}}
	if !errors.Is(err, bundle.ErrNotFound) {
		return f, err
	}
	f.Sources, err = d.app.policySources(d.o)
	return f, err
}

// trust reads the trusted keys. Without a list, nobody is trusted, which matters
// only once there is a bundle.
func (d *PolicyDesk) trust() (*bundle.Trust, error) {
	t, err := d.Trust()
	if errors.Is(err, fs.ErrNotExist) {
		return &bundle.Trust{}, nil
	}
	return t, err
}

// History returns the bundles that the store keeps, oldest first.
func (d *PolicyDesk) History(ctx context.Context) ([]bundle.Kept, error) {
	trust, err := d.trust()
	if err != nil {
		return nil, err
	}
	return bundle.Verified(ctx, d.Store, trust)
}

// Apply puts a bundle in force: see bundle.Apply. over is the revision it was
// compared with.
func (d *PolicyDesk) Apply(ctx context.Context, b *bundle.Bundle, over uint64, force bool) (revision uint64, err error) {
	trust, err := d.trust()
	if err != nil {
		return 0, err
	}
	log, err := audit.Open(ctx, audit.Config{Conn: d.app.nc})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, log.Close(context.WithoutCancel(ctx))) }()
	return bundle.Apply(ctx, bundle.Applying{Store: d.Store, Trust: trust, Log: log, Over: over, Force: force}, b)
}

// Read opens a bus that only reads: its judge lets everything pass, since what is
// read is asked about and acted on by nobody. Close it.
func (d *PolicyDesk) Read(ctx context.Context) (*events.Bus, error) {
	return events.Open(ctx, events.Config{Conn: d.app.nc, Types: d.Types, Judge: events.AllowAll(), Logger: d.app.cfg.Log, ReadOnly: true})
}

// connectOptions are the credentials and the inboxes of a connection.
func (n NATS) connectOptions() []nats.Option {
	var o []nats.Option
	switch {
	case n.CredsFile != "":
		o = append(o, nats.UserCredentials(n.CredsFile))
	case n.Token != "":
		o = append(o, nats.Token(n.Token.Reveal()))
	case n.User != "":
		o = append(o, nats.UserInfo(n.User, n.Password.Reveal()))
	}
	if n.Inbox != "" {
		o = append(o, nats.CustomInboxPrefix(n.Inbox))
	}
	return o
}

// policySources reads the configured files and those that come with the program.
func (a *App) policySources(o options) ([]governance.Source, error) {
	sources, err := governance.ReadPaths(a.cfg.Policies...)
	if err != nil {
		return nil, err
	}
	for _, fsys := range o.policies {
		more, err := governance.ReadFS(fsys, "*.yaml")
		if err != nil {
			return nil, fmt.Errorf("policies of the program: %w", err)
		}
		sources = append(sources, more...)
	}
	return sources, nil
}
