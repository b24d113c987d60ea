package stokehold

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/governance/audit/proof"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/s3"
)

// Files in Config.StateDir, unless Config.Audit names others.
const (
	checkpointDir = "checkpoints"
	checkpointKey = "checkpoint.key"
)

// Audit says where the checkpoints of the decision log are kept and who signs them.
// Whoever may write to the log must not be able to change what is there: give S3 a
// bucket and a credential of their own.
type Audit struct {
	S3 S3 // with an endpoint, checkpoints are objects there
	// Dir is the directory for checkpoints where there is no S3 endpoint. Default:
	// "checkpoints" in StateDir, which protects against whoever has NATS alone.
	Dir string
	// KeyFile holds the keys of the checkpoints (see proof.Keys). Default:
	// "checkpoint.key" in StateDir, made if it is missing. Without a private key in it
	// this process signs nothing.
	KeyFile string
	// Origin names the log in checkpoints, when a key is made. Default
	// "stokehold/decisions".
	Origin string
	// MaxEntries and MaxDelay say when a checkpoint is due, as in
	// audit.SequencerConfig.
	MaxEntries int
	MaxDelay   time.Duration
}

func (a Audit) validate() []error {
	var faults []error
	if a.S3.Endpoint != "" && a.Dir != "" {
		faults = append(faults, errors.New("checkpoints are to go to S3 and to a directory: choose one"))
	}
	if a.S3.Endpoint != "" && (a.S3.AccessKey == "" || a.S3.SecretKey == "" || a.S3.Bucket == "") {
		faults = append(faults, errors.New("an S3 endpoint for checkpoints needs a bucket, an access key and a secret key"))
	}
	return faults
}

func (c Config) auditDefaults() Audit {
	a := c.Audit
	if a.Dir == "" && a.S3.Endpoint == "" {
		a.Dir = filepath.Join(c.StateDir, checkpointDir)
	}
	if a.KeyFile == "" {
		a.KeyFile = filepath.Join(c.StateDir, checkpointKey)
	}
	if a.Origin == "" {
		a.Origin = "stokehold/decisions"
	}
	if a.S3.Region == "" {
		a.S3.Region = "us-east-1"
	}
	return a
}

// Auditor is access to the decision log and its checkpoints without the rest of a
// deployment. Safe for concurrent use.
type Auditor struct {
	Log   *audit.Reader
	Store audit.CheckpointStore
	Keys  *proof.Keys // as in the key file

	cfg     Config
	closers []func()
}

// OpenAuditor connects to NATS and to where checkpoints are kept. It needs neither
// Temporal nor the data plane, writes nothing, and makes no key: without a key file
// Keys is nil.
func OpenAuditor(ctx context.Context, cfg Config) (_ *Auditor, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("stokehold: configuration: %w", err)
	}
	app := &App{cfg: cfg}
	if err := app.connectNATS(ctx, options{}); err != nil {
		return nil, err
	}
	a := &Auditor{cfg: cfg, closers: []func(){app.nc.Close}}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	if err := a.open(ctx, app.nc); err != nil {
		return nil, err
	}
	a.Keys, err = proof.ReadKeyFile(cfg.auditDefaults().KeyFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return a, nil
}

func (a *Auditor) open(ctx context.Context, nc *nats.Conn) error {
	var err error
	if a.Log, err = audit.NewReader(nc, ""); err != nil {
		return err
	}
	c := a.cfg.auditDefaults()
	if c.S3.Endpoint == "" {
		a.Store = audit.NewDirStore(c.Dir)
		return nil
	}
	store, err := s3.Open(ctx, c.S3.config())
	if err != nil {
		return fmt.Errorf("checkpoints: %w", err)
	}
	a.closers = append(a.closers, store.Close)
	a.Store = objectCheckpoints{store}
	return nil
}

// Close disconnects. Repeatable.
func (a *Auditor) Close() {
	for i := len(a.closers) - 1; i >= 0; i-- {
		a.closers[i]()
	}
	a.closers = nil
}

// CheckpointKeyFile is where the keys of a deployment's checkpoints are, and the
// origin that a key made there gets.
func CheckpointKeyFile(cfg Config) (path, origin string) {
	a := cfg.auditDefaults()
	return a.KeyFile, a.Origin
}

// Sequencer makes what signs checkpoints, with a key that is made if there is none.
func (a *Auditor) Sequencer(more func(*audit.SequencerConfig)) (*audit.Sequencer, error) {
	c := a.cfg.auditDefaults()
	if err := os.MkdirAll(filepath.Dir(c.KeyFile), 0o700); err != nil {
		return nil, fmt.Errorf("checkpoint key file: %w", err)
	}
	keys, err := proof.OpenKeyFile(c.KeyFile, c.Origin)
	if err != nil {
		return nil, err
	}
	sc := audit.SequencerConfig{
		Reader: a.Log, Store: a.Store, Keys: keys, MaxEntries: c.MaxEntries, MaxDelay: c.MaxDelay, Logger: a.cfg.Log,
	}
	if more != nil {
		more(&sc)
	}
	return audit.NewSequencer(sc)
}

// startSequencer signs checkpoints of the decision log while the App is there.
func (a *App) startSequencer(ctx context.Context) error {
	auditor := &Auditor{cfg: a.cfg}
	a.onClose(func(context.Context) error { auditor.Close(); return nil })
	if err := auditor.open(ctx, a.nc); err != nil {
		return err
	}
	path, origin := CheckpointKeyFile(a.cfg)
	keys, err := proof.OpenKeyFile(path, origin)
	if err != nil {
		return err
	}
	if !keys.CanSign() {
		a.cfg.Log.InfoContext(ctx, "checkpoints of the decision log are signed elsewhere: the key file has no private key", "file", path)
		return nil
	}
	seq, err := auditor.Sequencer(nil)
	if err != nil {
		return err
	}
	seq.Start()
	a.onClose(seq.Stop)
	return nil
}

// checkpointPrefix is that of the keys of checkpoint objects.
const checkpointPrefix = "audit/checkpoints/"

// objectCheckpoints keeps checkpoint records as objects.
type objectCheckpoints struct{ store tiers.ObjectStore }

var _ audit.CheckpointStore = objectCheckpoints{}

// CheckpointsIn keeps checkpoint records as objects of a store.
func CheckpointsIn(store tiers.ObjectStore) audit.CheckpointStore { return objectCheckpoints{store} }

// Put implements audit.CheckpointStore.
func (o objectCheckpoints) Put(ctx context.Context, name string, record []byte) error {
	return o.store.Put(ctx, checkpointPrefix+name, record)
}

// Get implements audit.CheckpointStore.
func (o objectCheckpoints) Get(ctx context.Context, name string) ([]byte, error) {
	b, err := o.store.Get(ctx, checkpointPrefix+name)
	if errors.Is(err, tiers.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", audit.ErrNoRecord, err)
	}
	return b, err
}

// Names implements audit.CheckpointStore.
func (o objectCheckpoints) Names(ctx context.Context) ([]string, error) {
	var names []string
	for info, err := range o.store.List(ctx, checkpointPrefix) {
		if err != nil {
			return nil, err
		}
		if name := strings.TrimPrefix(info.Key, checkpointPrefix); audit.ValidRecordName(name) {
			names = append(names, name)
		}
	}
	return names, nil
}
