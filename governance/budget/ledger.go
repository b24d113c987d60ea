package budget

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
)

// Config configures a Ledger.
type Config struct {
	Conn   *nats.Conn // required; the ledger does not close it
	Prefix string     // of the buckets, PREFIX_budgets and PREFIX_usage; default events.DefaultPrefix
	// ReadOnly makes no buckets: those that are missing count as empty.
	ReadOnly bool
	Clock    func() time.Time // default time.Now
	Logger   *slog.Logger     // nil: nothing is logged
	Replicas int              // of a bucket that is made here; default 1
	// MaxBytes is the size of the bucket of usage, when it is made here; default 512
	// MiB. When it is full, nothing that is metered runs.
	MaxBytes int64
	// MaxAge is how long a run is remembered that spends no more, likewise; default
	// 400 days, at least 100.
	MaxAge time.Duration
	// Wait bounds one request, and how long the ledger may be behind; default 5 s.
	Wait time.Duration
}

const (
	maxRecordBytes = 512 << 10
	usagePrefix    = "use."
	documentKey    = "document"
	history        = 64 // documents that are kept, the most that a bucket can
	// trust is how long a document that could not be read again since is believed.
	trust = 30 * time.Second
	poll  = 5 * time.Second
)

var prefixRule = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,30}$`)

func (c *Config) fill() error {
	c.Prefix, c.Replicas = cmp.Or(c.Prefix, events.DefaultPrefix), cmp.Or(c.Replicas, 1)
	c.MaxBytes, c.MaxAge, c.Wait = cmp.Or(c.MaxBytes, 512<<20), cmp.Or(c.MaxAge, 4*rememberFor), cmp.Or(c.Wait, 5*time.Second)
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	var faults []error
	if c.Conn == nil {
		faults = append(faults, fmt.Errorf("%w: Conn is nil", ErrConfig))
	}
	if !prefixRule.MatchString(c.Prefix) {
		faults = append(faults, fmt.Errorf("%w: Prefix %.80q is not a lower-case word", ErrConfig, c.Prefix))
	}
	if c.Replicas < 1 || c.Replicas > 5 || c.MaxBytes < maxRecordBytes || c.MaxAge < rememberFor || c.Wait < 0 {
		faults = append(faults, fmt.Errorf("%w: Replicas %d, MaxBytes %d, MaxAge %v, Wait %v: want 1 to 5 replicas, at least %d bytes and %v, and a wait above 0",
			ErrConfig, c.Replicas, c.MaxBytes, c.MaxAge, c.Wait, maxRecordBytes, rememberFor))
	}
	return errors.Join(faults...)
}

// Ledger keeps what was spent and knows what is left. Safe for concurrent use.
type Ledger struct {
	cfg   Config
	js    jetstream.JetStream
	usage jetstream.KeyValue // nil: there is none, and nothing was spent

	stop   context.CancelFunc
	done   chan struct{}
	kick   chan struct{} // follow anew: the watch is behind
	mu     sync.Mutex    // guards what follows
	totals *totals
	// damaged are records that cannot be read, by key.
	damaged map[string]error
	seen    uint64        // revision of the bucket of usage that the totals hold
	moved   chan struct{} // closed and replaced when seen or the document changes
	doc     documentState
	closed  bool
}

// documentState is what is known of the document.
type documentState struct {
	revision uint64
	document *Document // nil: none was ever set
	entry    Entry
	err      error // it cannot be read: nothing is known
	at       time.Time
}

// Open opens the buckets, or makes them, and reads them. The ledger follows them
// until Close.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	js, err := jetstream.New(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("budget: %w: %w", ErrUnavailable, err)
	}
	l := &Ledger{cfg: cfg, js: js, done: make(chan struct{}), kick: make(chan struct{}, 1), moved: make(chan struct{}), totals: newTotals(), damaged: map[string]error{}}
	if l.usage, err = l.bucket(ctx, jetstream.KeyValueConfig{
		Bucket: cfg.Prefix + "_usage", Description: "Stokehold: what runs used; see docs/BUDGETS.md", Storage: jetstream.FileStorage,
		History: 1, MaxValueSize: maxRecordBytes, MaxBytes: cfg.MaxBytes, TTL: cfg.MaxAge, Replicas: cfg.Replicas,
	}); err != nil {
		return nil, err
	}
	if _, err = l.bucket(ctx, documentBucket(cfg.Prefix, cfg.Replicas)); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	ready := make(chan error, 1)
	go l.follow(run, ready)
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		stop()
		<-l.done
		if !errors.Is(err, ErrUnavailable) {
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return nil, fmt.Errorf("budget: %w", err)
	}
	return l, nil
}

func (l *Ledger) bucket(ctx context.Context, want jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Wait)
	defer cancel()
	kv, err := l.js.KeyValue(ctx, want.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if l.cfg.ReadOnly {
			return nil, nil
		}
		if kv, err = l.js.CreateKeyValue(ctx, want); errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = l.js.KeyValue(ctx, want.Bucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("budget: %w: bucket %s: %w (is JetStream enabled on the NATS server?)", ErrUnavailable, want.Bucket, err)
	}
	return kv, nil
}

// Close stops following. Repeatable.
func (l *Ledger) Close(ctx context.Context) error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.stop()
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("budget: close: %w", ctx.Err())
	}
}

// Document returns the document that counts; nil if there is none. The error
// wraps ErrUnavailable or ErrCorrupt.
func (l *Ledger) Document() (*Document, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.document()
}

func (l *Ledger) document() (*Document, error) {
	switch {
	case l.closed:
		return nil, ErrClosed
	case l.doc.err != nil:
		return nil, l.doc.err
	case time.Since(l.doc.at) > trust:
		return nil, fmt.Errorf("%w: the limits were last read %v ago", ErrUnavailable, time.Since(l.doc.at).Round(time.Second))
	}
	for _, err := range l.damaged {
		return nil, err
	}
	return l.doc.document, nil
}

// Record puts a report on the books and returns what the run may still spend, by
// all that was on them then. Reporting again what was reported is a success. The
// error wraps ErrUnavailable, and then the report may have been taken or not:
// report again; or ErrConflict or ErrInvalid, which no retry mends.
func (l *Ledger) Record(ctx context.Context, r Report) (Standing, error) {
	if err := r.check(); err != nil {
		return Standing{}, err
	}
	revision, err := l.write(ctx, &r)
	if err != nil {
		return Standing{}, fmt.Errorf("report %d of attempt %d at stage %s of run %s: %w", r.Number, r.Attempt, r.Stage, r.Run, err)
	}
	if err := l.reach(ctx, revision); err != nil {
		return Standing{}, err
	}
	return l.standing(r.Pipeline, r.Run)
}

// maxRaces bounds how often a write is tried again because another came first. A
// run's stages are the only writers of its record.
const maxRaces = 1000

func (l *Ledger) write(ctx context.Context, r *Report) (uint64, error) {
	if l.usage == nil {
		return 0, fmt.Errorf("%w: this ledger only reads", ErrConfig)
	}
	key := keyOf(r.Run, r.Call)
	for range maxRaces {
		rec, revision, err := l.read(ctx, key)
		if err != nil {
			return 0, err
		}
		if rec.Run == "" {
			rec.Run, rec.Pipeline, rec.Call = r.Run, r.Pipeline, r.Call
		}
		if rec.Run != r.Run || rec.Call != r.Call {
			return 0, fmt.Errorf("%w: key %s is of run %.80q", ErrCorrupt, key, rec.Run)
		}
		changed, err := rec.take(r)
		if err != nil || !changed {
			return revision, err
		}
		rec.forget(l.cfg.Clock())
		raw, err := json.Marshal(rec)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if len(raw) > maxRecordBytes {
			return 0, fmt.Errorf("%w: the record would have %d bytes, at most %d are allowed", ErrInvalid, len(raw), maxRecordBytes)
		}
		revision, err = l.put(ctx, key, raw, revision)
		if !errors.Is(err, ErrConflict) {
			return revision, err
		}
	}
	return 0, fmt.Errorf("%w: others wrote %d times in between", ErrUnavailable, maxRaces)
}

// read returns a record; an empty one of revision 0 if there is none.
func (l *Ledger) read(ctx context.Context, key string) (record, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Wait)
	defer cancel()
	var rec record
	e, err := l.usage.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return rec, 0, nil
	}
	if err != nil {
		return rec, 0, fmt.Errorf("%w: read %s: %w", ErrUnavailable, key, err)
	}
	if err := json.Unmarshal(e.Value(), &rec); err != nil {
		return rec, 0, fmt.Errorf("%w: %s: %w", ErrCorrupt, key, err)
	}
	return rec, e.Revision(), nil
}

// put replaces a revision; ErrConflict if it is not the last. That a write failed
// of which the answer was lost shows in the next read, which every retry begins
// with.
func (l *Ledger) put(ctx context.Context, key string, raw []byte, over uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Wait)
	defer cancel()
	revision, err := l.usage.Update(ctx, key, raw, over)
	var api *jetstream.APIError
	if errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return 0, ErrConflict
	}
	if err != nil {
		return 0, fmt.Errorf("%w: write %s: %w", ErrUnavailable, key, err)
	}
	return revision, nil
}

func keyOf(run, call string) string {
	sum := sha256.Sum256([]byte(run + "\x00" + call))
	return usagePrefix + hex.EncodeToString(sum[:20])
}

// Standing is what a run may still spend, by all that was on the books when it was
// asked. run may be empty, for the pipeline and its team alone. The error wraps
// ErrUnavailable or ErrCorrupt.
func (l *Ledger) Standing(ctx context.Context, pipeline, run string) (Standing, error) {
	if err := l.Sync(ctx); err != nil {
		return Standing{}, err
	}
	return l.standing(pipeline, run)
}

func (l *Ledger) standing(pipeline, run string) (Standing, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := l.document()
	if err != nil || d == nil {
		return Standing{}, err
	}
	now := l.cfg.Clock()
	s := Standing{document: d}
	for _, b := range d.concern(pipeline, run) {
		s.Balances = append(s.Balances, d.balances(b, l.totals.in(b.Scope, b.Window, d.day(now)), now)...)
	}
	return s, nil
}

// Balances is what every budget has: in the document's order, those of patterns
// for each run that spent something.
func (l *Ledger) Balances(ctx context.Context) ([]Balance, error) {
	if err := l.Sync(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := l.document()
	if err != nil || d == nil {
		return nil, err
	}
	now := l.cfg.Clock()
	var out []Balance
	var runs bool
	for _, b := range d.Budgets {
		if b.Window == PerRun {
			runs = true
			continue
		}
		out = append(out, d.balances(b, l.totals.in(b.Scope, b.Window, d.day(now)), now)...)
	}
	if !runs {
		return out, nil
	}
	pipelines := map[string]string{}
	for _, k := range l.totals.records {
		pipelines[k.run] = k.pipeline
	}
	for _, run := range l.totals.runs() {
		for _, b := range d.concern(pipelines[run], run) {
			if b.Window == PerRun {
				out = append(out, d.balances(b, l.totals.in(b.Scope, b.Window, d.day(now)), now)...)
			}
		}
	}
	return out, nil
}

// Spent returns what a scope used in the window that is now, by accelerator,
// whether or not a budget limits it. The totals are those of the last Sync, or
// newer.
func (l *Ledger) Spent(scope string, w Window) ([]Use, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := l.document()
	if err != nil || d == nil {
		return nil, err
	}
	var out []Use
	for _, u := range l.totals.in(scope, w, d.day(l.cfg.Clock())) {
		out = add(out, []Use{u})
	}
	return out, nil
}
