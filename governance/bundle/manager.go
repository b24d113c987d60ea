package bundle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// Engine is what a Manager keeps supplied with policies. *governance.Engine is
// one.
type Engine interface {
	events.Judge
	SetPolicies(set *governance.PolicySet)
	Policies() *governance.PolicySet
	Accepted() []string // short digests of the earlier sets whose stamps are honoured
}

// ManagerConfig configures a Manager.
type ManagerConfig struct {
	Store *Store      // required
	Trust TrustSource // required
	Types governance.TypeSource
	// Dir keeps a copy of the last good bundle, and how far the order has come.
	// Empty: nothing is kept, so that the process cannot start without the store and
	// notices a roll-back only while it runs.
	Dir string
	// ReadOnly leaves Dir as it is, which is then another process's; for programs
	// that only look.
	ReadOnly bool
	// OnSwap is told of each set before it takes effect, e.g. to remember whose
	// stamps to honour after a restart. The set takes effect whatever it returns; an
	// error is logged.
	OnSwap func(*governance.PolicySet) error
	// OnRefuse is told of each entry that is refused, once for each reason. It must not
	// block or call the Manager.
	OnRefuse func(Refusal)
	// Poll is how often the store is read beside the watch, which mends a watch that
	// the server lost; default 5 s. While there is no bucket, it is looked for ten
	// times as often.
	Poll time.Duration
	Log  *slog.Logger // default slog.Default()
}

// Manager keeps a process's engine on the newest good bundle in the store. What
// it refuses changes nothing: the policies in force stay. Safe for concurrent
// use.
type Manager struct {
	cfg   ManagerConfig
	cache cache

	mu      sync.Mutex // of the fields below: one entry is considered at a time
	engine  Engine     // nil until Start
	set     *governance.PolicySet
	bundle  *Bundle
	floor   floorFile
	status  Status
	refused string // what was logged last, so that it is logged once
	seen    uint64 // revision considered last
	retry   bool   // it was not verified: other keys may be trusted by the next poll

	current  atomic.Pointer[Status]
	unknown  misses
	stop     context.CancelFunc
	done     chan struct{}
	started  bool
	finished bool
}

// Where the policies in force come from.
const (
	FromStore = "store"
	FromDisk  = "disk" // the last good copy
)

// Status is what a Manager knows. A copy.
type Status struct {
	Name     string
	Source   string   // FromStore, FromDisk, or "" when no bundle is in force
	Position Position // of the bundle in force
	Digest   string   // of its set, as in stamps
	Author   string
	Signers  []string
	Revision uint64    // of the store, that the bundle in force came from; 0: unknown
	Since    time.Time // when it took effect here
	// Refused is why the newest entry in the store is not in force; nil: it is.
	Refused   error
	RefusedAt time.Time
	// Kept is why the copy on disk is not the bundle in force; nil: it is.
	Kept error
	// Reached is nil while the store answers.
	Reached error
}

// Refusal is an entry in the store that is not taken.
type Refusal struct {
	Name     string
	Revision uint64 // of the store; 0: it has none any more
	InForce  string // version that stays; "": no bundle is in force
	Err      error
}

// NewManager checks the configuration, and loads the policies to begin with:
// those of the bundle in the store, or of the copy on disk when the store does
// not answer or has what must be refused. When no bundle was ever applied, it
// returns a Manager without policies. It fails closed: an error means that a
// bundle was applied and that none can be put in force.
func NewManager(ctx context.Context, cfg ManagerConfig) (*Manager, error) {
	var faults []error
	if cfg.Store == nil {
		faults = append(faults, fmt.Errorf("%w: Store is nil", ErrConfig))
	}
	if cfg.Trust == nil {
		faults = append(faults, fmt.Errorf("%w: Trust is nil", ErrConfig))
	}
	if cfg.Poll = cmp.Or(cfg.Poll, 5*time.Second); cfg.Poll < 0 {
		faults = append(faults, fmt.Errorf("%w: Poll is %s", ErrConfig, cfg.Poll))
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	m := &Manager{cfg: cfg, cache: cache{cfg.Dir, cfg.Store.Name()}, done: make(chan struct{})}
	m.status.Name = cfg.Store.Name()
	m.publish()
	return m, m.begin(ctx)
}

// begin loads what there is to begin with.
func (m *Manager) begin(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	if m.floor, err = m.cache.floor(); err != nil {
		return fmt.Errorf("policies: %w", err)
	}
	e, err := m.cfg.Store.Get(ctx)
	m.consider(ctx, e, err)
	if m.bundle != nil {
		return nil
	}
	if m.status.Refused == nil && m.status.Reached == nil {
		return nil // none was ever applied
	}
	failed := errors.Join(m.status.Reached, m.status.Refused)
	// The context may have ended with the wait for the store.
	if err := m.fromDisk(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("policies: no bundle can be put in force, so that nothing may pass: %w; and the last good copy: %w", failed, err)
	}
	m.cfg.Log.WarnContext(ctx, "policies: the last good copy on disk is in force", "bundle", m.bundle.Name, "version", m.bundle.Position.String(), "reason", failed)
	return nil
}

// fromDisk puts the last good copy in force. It must not be behind the floor,
// which a copy put there by hand could be.
func (m *Manager) fromDisk(ctx context.Context) error {
	trust, err := m.cfg.Trust()
	if err != nil {
		return err
	}
	b, err := m.cache.bundle(trust)
	if err != nil {
		return err
	}
	if err := m.after(b); err != nil {
		return err
	}
	set, err := b.Load(ctx, m.cfg.Types)
	if err != nil {
		return err
	}
	m.install(ctx, b, set, FromDisk, 0)
	return nil
}

// after holds a bundle to the floor.
func (m *Manager) after(b *Bundle) error {
	have := Position{m.floor.Epoch, m.floor.Version}
	switch c := b.Position.Compare(have); {
	case c > 0, c == 0 && m.floor.Manifest == b.fingerprint():
		return nil
	default:
		return &RollbackError{Name: b.Name, Have: have, Got: b.Position}
	}
}

// consider takes over the newest entry of the store, or notes why not.
func (m *Manager) consider(ctx context.Context, e Entry, err error) {
	defer m.publish()
	switch {
	case errors.Is(err, ErrNotFound):
		m.status.Reached = nil
		if m.floor != (floorFile{}) {
			m.refuse(ctx, 0, fmt.Errorf("%w: this process has seen version %s: apply it again, or restore the stream", ErrMissing, Position{m.floor.Epoch, m.floor.Version}))
		}
		return
	case err != nil:
		m.status.Reached = err
		return
	}
	m.status.Reached = nil
	m.seen = e.Revision
	b, err := m.verify(e)
	m.retry = err != nil
	var set *governance.PolicySet
	if err == nil && (m.bundle == nil || !sameContent(m.bundle, b)) {
		set, err = b.Load(ctx, m.cfg.Types)
	}
	switch {
	case err != nil && ctx.Err() != nil: // says nothing about the entry
		m.seen = 0
	case err != nil:
		m.refuse(ctx, e.Revision, err)
	default:
		m.status.Refused, m.status.RefusedAt, m.refused = nil, time.Time{}, ""
		if set == nil { // it is in force
			m.status.Source, m.status.Revision = FromStore, e.Revision
			return
		}
		m.install(ctx, b, set, FromStore, e.Revision)
	}
}

// verify opens an entry and holds it to the order.
func (m *Manager) verify(e Entry) (*Bundle, error) {
	if e.Err != nil {
		return nil, e.Err
	}
	trust, err := m.cfg.Trust()
	if err != nil {
		return nil, err
	}
	b, err := Open(e.Data, trust)
	if err != nil {
		return nil, err
	}
	if b.Name != m.cfg.Store.Name() {
		return nil, &FormatError{Msg: fmt.Sprintf("a bundle named %s under the key %s", b.Name, m.cfg.Store.Name())}
	}
	return b, m.after(b)
}

// refuse notes why an entry is not taken, and logs it once.
func (m *Manager) refuse(ctx context.Context, revision uint64, err error) {
	what := fmt.Sprintf("%d %v", revision, err)
	if m.refused == what {
		return
	}
	m.refused, m.status.Refused, m.status.RefusedAt = what, err, time.Now().UTC()
	args := []any{"bundle", m.status.Name, "revision", revision, "error", err}
	r := Refusal{Name: m.status.Name, Revision: revision, Err: err}
	if m.bundle != nil {
		r.InForce = m.bundle.Position.String()
		args = append(args, "in_force", r.InForce)
	}
	if m.cfg.OnRefuse != nil {
		m.cfg.OnRefuse(r)
	}
	m.cfg.Log.ErrorContext(ctx, "policies: the bundle in the store is refused", args...)
}

// install puts a bundle in force. What must survive the process is stored first;
// a disk that refuses does not keep new policies from taking effect, since the
// old ones may be the reason for them: it is told in Status.Kept, and tried again
// with each poll.
func (m *Manager) install(ctx context.Context, b *Bundle, set *governance.PolicySet, from string, revision uint64) {
	m.floor = floorFile{b.Position.Epoch, b.Position.Version, b.fingerprint()}
	m.bundle, m.set = b, set
	if from == FromStore && !m.cfg.ReadOnly {
		m.keep(ctx)
	}
	if m.cfg.OnSwap != nil {
		if err := m.cfg.OnSwap(set); err != nil {
			m.cfg.Log.ErrorContext(ctx, "policies: note the set that takes effect", "bundle", b.Name, "error", err)
		}
	}
	if m.engine != nil {
		m.engine.SetPolicies(set)
	}
	m.status.Source, m.status.Position, m.status.Digest = from, b.Position, set.ShortDigest()
	m.status.Author, m.status.Signers, m.status.Revision, m.status.Since = b.Author, b.Signers, revision, time.Now().UTC()
	m.publish()
	policies, rules := set.Len()
	m.cfg.Log.InfoContext(ctx, "policies in force", "bundle", b.Name, "version", b.Position.String(), "digest", set.ShortDigest(),
		"policies", policies, "rules", rules, "author", b.Author, "from", from)
}

func (m *Manager) keep(ctx context.Context) {
	err := m.cache.keep(m.bundle)
	if err != nil && m.status.Kept == nil {
		m.cfg.Log.ErrorContext(ctx, "policies: no copy is kept for a start without the store", "error", err)
	}
	m.status.Kept = err
}

// publish makes the status readable without the lock.
func (m *Manager) publish() {
	s := m.status
	m.current.Store(&s)
}

// Status returns what the Manager knows at the moment.
func (m *Manager) Status() Status { return *m.current.Load() }

// Policies returns the set of the bundle in force; nil if there is none.
func (m *Manager) Policies() *governance.PolicySet {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.set
}

// Earlier returns the short digests of the sets before the one in force, the
// newest last and at most governance.MaxAccepted, from the bundles that the store
// keeps and that trusted keys signed: a process that is new to a deployment
// honours the stamps on what is still in the stream.
func (m *Manager) Earlier(ctx context.Context) ([]string, error) {
	trust, err := m.cfg.Trust()
	if err != nil {
		return nil, err
	}
	kept, err := Verified(ctx, m.cfg.Store, trust)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, k := range kept {
		if k.Bundle != nil { // what no process took has stamped nothing
			out = append(out, short(k.Bundle.Digest))
		}
	}
	if set := m.Policies(); set != nil {
		out = without(out, set.ShortDigest())
	}
	return out[max(0, len(out)-governance.MaxAccepted):], nil
}

// without returns the strings that are not s, each once: where it was last.
func without(list []string, s string) []string {
	var out []string
	for i, d := range list {
		last := true
		for _, later := range list[i+1:] {
			last = last && later != d
		}
		if d != s && last {
			out = append(out, d)
		}
	}
	return out
}

// Start gives the engine the policies of each bundle from now on, beginning with
// the one in force, if any. The Manager stops with Close.
func (m *Manager) Start(ctx context.Context, engine Engine) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.started || m.finished {
		return fmt.Errorf("%w: a Manager is started once", ErrConfig)
	}
	m.started, m.engine = true, engine
	if set := engine.Policies(); m.set != nil && (set == nil || set.Digest() != m.set.Digest()) {
		engine.SetPolicies(m.set)
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	m.stop = stop
	go m.run(run)
	return nil
}

// Close stops watching; the policies in force stay. Repeatable.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	running := m.started
	m.finished = true
	m.mu.Unlock()
	if !running {
		return nil
	}
	m.stop()
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("policies: close: %w", ctx.Err())
	}
}

// Refresh reads the store now. The error wraps ErrUnavailable; what it thinks of
// what it read is in the Status.
func (m *Manager) Refresh(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := m.cfg.Store.Get(ctx)
	if err == nil && e.Revision == m.seen && !m.retry {
		m.status.Reached = nil
		m.publish()
		return nil
	}
	m.consider(ctx, e, err)
	return m.status.Reached
}

// askWait bounds a request of the background: one that a starting server lost
// must not hold up the next.
const askWait = time.Second

// run watches until Close. A watch tells of a write within milliseconds; reading
// the store, when the connection is back and from time to time, mends what a
// watch missed.
func (m *Manager) run(ctx context.Context) {
	defer close(m.done)
	nc := m.cfg.Store.cfg.Conn
	back := nc.StatusChanged(nats.CONNECTED)
	defer nc.RemoveStatusListener(back)
	tick := time.NewTicker(max(m.cfg.Poll/10, time.Millisecond))
	defer tick.Stop()
	var watch jetstream.KeyWatcher
	var updates <-chan jetstream.KeyValueEntry
	drop := func() {
		if watch != nil {
			_ = watch.Stop() // it may be gone with the server's state
		}
		watch, updates = nil, nil
	}
	defer drop()
	for n := 0; ; n++ {
		if watch == nil && nc.IsConnected() {
			if watch = m.watch(ctx); watch != nil {
				updates = watch.Updates()
			}
		}
		select {
		case e, ok := <-updates:
			switch {
			case !ok:
				drop()
			case e != nil:
				m.update(ctx, e)
			}
			continue
		case <-back:
			drop()
		case <-tick.C:
			if n%10 != 0 && watch != nil {
				continue
			}
		case <-ctx.Done():
			return
		}
		asking, cancel := context.WithTimeout(ctx, askWait)
		_ = m.Refresh(asking) // told in the status
		cancel()
		m.keepAgain(ctx)
	}
}

// watch begins to watch; nil if the server does not answer or has no bucket.
func (m *Manager) watch(ctx context.Context) jetstream.KeyWatcher {
	asking, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	kv, err := m.cfg.Store.bucket(asking)
	if err != nil {
		return nil
	}
	// The context of a watch is its life, so that the wait for its beginning needs
	// another end.
	life, end := context.WithCancel(ctx)
	late := time.AfterFunc(askWait, end)
	w, err := kv.Watch(life, m.cfg.Store.Name())
	if err != nil || !late.Stop() {
		end()
		return nil
	}
	return &endedWatch{w, end}
}

// endedWatch ends its context with the watch.
type endedWatch struct {
	jetstream.KeyWatcher
	end context.CancelFunc
}

func (w *endedWatch) Stop() error {
	err := w.KeyWatcher.Stop()
	w.end()
	return err
}

func (m *Manager) update(ctx context.Context, e jetstream.KeyValueEntry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.Operation() != jetstream.KeyValuePut {
		m.consider(ctx, Entry{}, ErrNotFound)
		m.seen = 0
		return
	}
	// What the watch brings late was read already. A stream that was restored, and
	// counts anew, is for reading to notice.
	if e.Revision() > m.seen {
		m.consider(ctx, entry(e), nil)
	}
}

// keepAgain tries once more to keep a copy.
func (m *Manager) keepAgain(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.status.Kept != nil {
		m.keep(ctx)
		m.publish()
	}
}
