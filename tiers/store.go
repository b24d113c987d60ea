package tiers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
)

// Store is the data plane's front door. Safe for concurrent use.
type Store struct {
	catalog   *catalog
	bus       bus
	hot       *hot
	warm      *warm
	cold      ObjectStore
	coldCodec string
	log       *slog.Logger
	closed    atomic.Bool

	peers      peers
	hedge      hedge
	promotions promotions
	// here and coldPlace are where the tiers are.
	here, coldPlace events.Place
	versions        label.Nodes // nil: models are not asked what they are labelled with
	known           knownLabels
	// advertise is the flight URI of this store's host, "" if it has none.
	advertise string
	routed    func(ctx context.Context, ref arrowio.Ref, tier arrowio.Tier) error

	opened [3]atomic.Int64 // by tierIndex
	moved  atomic.Int64
	copies arrowio.Copies
	spills spills

	decoders arrowio.Decoders // by dataset

	// announced is, by dataset, one past the newest sequence that this store knows
	// to be in the event stream; it saves publishing it again.
	announced sync.Map
	// watermarks are Head.Compacted by dataset, as far as this store has seen.
	watermarks sync.Map
	blocks     blocks
	uses       uses
	sightings  sightings
	readers    readers
	leaseTTL   time.Duration
	now        func() time.Time // time.Now, but in tests
	moves      moves
	healing    keyed
	takenOut   takenOut
	claimed    atomic.Bool // the cold tier is this catalog's
	background sync.WaitGroup
	closing    chan struct{} // closed by Close: readers take back what they have announced
	finished   bell          // rung when a stage of this process has finished with a dataset
	received   sync.Pool     // of *[]byte, for objects until they are decoded

	// fault, set by tests alone, is called at each step that a crash may follow;
	// an error ends the operation there, leaving what a crash would leave.
	fault func(point string) error
}

// bus is what a Store needs of *events.Bus.
type bus interface {
	Approve(ctx context.Context, evs ...*events.Event) error
	Publish(ctx context.Context, evs ...events.Event) error
	Subscribe(ctx context.Context, s events.Subscription, h events.Handler) (*events.Consumer, error)
}

// defaultMoveConcurrency is enough to hide an object store's latency and too few to
// take the disk from those who write.
const defaultMoveConcurrency = 4

var validPrefix = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// Open creates the catalog's bucket and the warm directory. The store uses, and
// does not close, what cfg brings.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	var faults []error
	if cfg.Conn == nil {
		faults = append(faults, errors.New("config: Conn is missing"))
	}
	if cfg.Bus == nil {
		faults = append(faults, errors.New("config: Bus is missing"))
	}
	if cfg.Host == nil {
		faults = append(faults, errors.New("config: Host is missing"))
	}
	if cfg.Warm == "" {
		faults = append(faults, errors.New("config: Warm is missing: batches need a directory on disk"))
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "stokehold"
	}
	if !validPrefix.MatchString(cfg.Prefix) {
		faults = append(faults, fmt.Errorf("config: Prefix %.80q: want letters, digits, - and _, at most 64", cfg.Prefix))
	}
	if cfg.Advertise != "" {
		if _, err := arrowio.ParseFlightURI(cfg.Advertise); err != nil {
			faults = append(faults, fmt.Errorf("config: Advertise: %w", err))
		}
	}
	if cfg.PeerTimeout < 0 {
		faults = append(faults, fmt.Errorf("config: PeerTimeout %s is negative", cfg.PeerTimeout))
	}
	if cfg.HotWait < 0 {
		faults = append(faults, fmt.Errorf("config: HotWait %s is negative", cfg.HotWait))
	}
	if cfg.MoveBytesPerSecond < 0 || cfg.MoveConcurrency < 0 {
		faults = append(faults, fmt.Errorf("config: moves of %d bytes/s, %d at once: want numbers above 0, or 0 for the defaults", cfg.MoveBytesPerSecond, cfg.MoveConcurrency))
	}
	for _, p := range []events.Place{cfg.Place, cfg.ColdPlace} {
		if err := label.CheckPlace(p); err != nil {
			faults = append(faults, fmt.Errorf("config: %w", err))
		}
	}
	if cfg.ColdCodec == "" {
		cfg.ColdCodec = CodecParquet
	}
	if _, err := objectExt(cfg.ColdCodec); err != nil {
		faults = append(faults, fmt.Errorf("config: ColdCodec: %w", err))
	}
	if cfg.Promote.WarmBytes < 0 {
		faults = append(faults, fmt.Errorf("config: Promote.WarmBytes %d is negative", cfg.Promote.WarmBytes))
	}
	if len(faults) > 0 {
		return nil, &Error{Op: "open store", Err: errors.Join(faults...)}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MoveConcurrency == 0 {
		cfg.MoveConcurrency = defaultMoveConcurrency
	}
	s := &Store{bus: cfg.Bus, cold: cfg.Cold, coldCodec: cfg.ColdCodec, log: cfg.Logger, leaseTTL: defaultLeaseTTL, now: time.Now, closing: make(chan struct{})}
	s.moves = newMoves(cfg.MoveBytesPerSecond, cfg.MoveConcurrency)
	s.peers.open(cfg)
	s.hedge.open(cfg.HedgeAfter)
	s.promotions.open(cfg.Promote, cfg.MoveConcurrency)
	s.advertise, s.routed, s.here, s.coldPlace, s.versions = cfg.Advertise, cfg.Routed, cfg.Place, cfg.ColdPlace, cfg.Versions
	var err error
	if s.hot, err = openHot(cfg, &s.copies); err != nil {
		return nil, &Error{Op: "open store", Err: err}
	}
	if s.warm, err = openWarm(cfg.Warm); err != nil {
		return nil, &Error{Op: "open store", Err: err, Hint: "the warm directory must be writable by this user"}
	}
	if s.catalog, err = openCatalog(ctx, cfg.Conn, cfg.Prefix); err != nil {
		s.warm.close()
		return nil, &Error{Op: "open store", Err: err, Hint: "is JetStream enabled on the NATS server?"}
	}
	return s, nil
}

// Close gives up the hot copies and refuses further use; batches still lent out
// stay valid until they are released. Repeatable.
func (s *Store) Close(ctx context.Context) error {
	if s.closed.Swap(true) {
		return nil
	}
	close(s.closing)
	s.promotions.stop()
	s.uses.wg.Wait()
	s.background.Wait()
	if err := s.flushUses(ctx); err != nil {
		s.log.WarnContext(ctx, "when batches were last read is not written down", "error", err)
	}
	s.hot.close()
	s.warm.close()
	return nil
}

// Head returns a dataset's state, ErrNotFound if it does not exist.
func (s *Store) Head(ctx context.Context, dataset string) (Head, error) {
	rec, _, err := s.head(ctx, dataset)
	if err != nil {
		return Head{}, &Error{Op: "head", Dataset: dataset, Err: err}
	}
	return rec.Head, nil
}

func (s *Store) head(ctx context.Context, dataset string) (headRecord, uint64, error) {
	var rec headRecord
	if s.closed.Load() {
		return rec, 0, ErrClosed
	}
	name, err := token("dataset", dataset)
	if err != nil {
		return rec, 0, err
	}
	rev, err := s.catalog.get(ctx, headKey(name), &rec)
	s.learnCompacted(dataset, rec.Compacted)
	return rec, rev, err
}

// Datasets lists all heads by name.
func (s *Store) Datasets(ctx context.Context) iter.Seq2[Head, error] {
	return func(yield func(Head, error) bool) {
		if s.closed.Load() {
			yield(Head{}, &Error{Op: "list", Err: ErrClosed})
			return
		}
		var heads []Head
		err := s.catalog.list(ctx, headKey("*"), func(e jetstream.KeyValueEntry) error {
			var rec headRecord
			if err := json.Unmarshal(e.Value(), &rec); err != nil {
				return fmt.Errorf("catalog: decode %s: %w", e.Key(), err)
			}
			heads = append(heads, rec.Head)
			return nil
		})
		if err != nil {
			yield(Head{}, &Error{Op: "list", Err: err})
			return
		}
		slices.SortFunc(heads, func(a, b Head) int { return strings.Compare(a.Dataset, b.Dataset) })
		for _, h := range heads {
			if !yield(h, nil) {
				return
			}
		}
	}
}

// Ref returns the committed batch of that sequence, ErrNotFound otherwise.
func (s *Store) Ref(ctx context.Context, dataset string, seq uint64) (arrowio.Ref, error) {
	rec, _, err := s.head(ctx, dataset)
	if err == nil && seq >= rec.Next {
		err = fmt.Errorf("%w: dataset has batches 0 to %d", ErrNotFound, int64(rec.Next)-1)
	}
	if err != nil {
		return arrowio.Ref{}, &Error{Op: "ref", Dataset: dataset, Batch: batchID(dataset, seq), Err: err}
	}
	e, err := s.entry(ctx, dataset, seq, false)
	if err != nil {
		return arrowio.Ref{}, &Error{Op: "ref", Dataset: dataset, Batch: batchID(dataset, seq), Err: err}
	}
	if e.State == Expired {
		return arrowio.Ref{}, &Error{Op: "ref", Dataset: dataset, Batch: batchID(dataset, seq), Err: ErrExpired}
	}
	return e.Ref, nil
}

// setHead changes what is not a writer's own of a dataset's head.
func (s *Store) setHead(ctx context.Context, dataset string, change func(*headRecord) bool) (headRecord, error) {
	name, err := token("dataset", dataset)
	if err != nil {
		return headRecord{}, err
	}
	return update(ctx, s.catalog, headKey(name), func(r *headRecord, exists bool) (bool, error) {
		if !exists {
			return false, ErrNotFound
		}
		return change(r), nil
	})
}

// Stats counts batches and bytes by tier, and copies made.
type Stats struct {
	Hot, Warm, Cold int64 // batches opened from each tier of this store
	Peer            int64 // batches opened from another process, see Config.Peers and Far
	PeerErrors      int64 // failures of peers, batches that they do not have (any more) left out
	Hedges          int64 // reads that were late and got a second source
	HedgesWon       int64 // of them the second was first
	Promoted        int64 // batches that a read from the cold tier left in the warm one
	PromotedBytes   int64 // their files
	NotPromoted     int64 // batches that it did not, for want of room or because it may not
	Moved           int64 // verified migrations that this store flipped
	CopiedBytes     int64 // body bytes copied into an arena from the Go heap or another tier
	Spilled         int64 // batches written to the warm tier alone for want of room in the arena
	SpilledBytes    int64 // their bodies
}

// Stats returns the counters since Open.
func (s *Store) Stats() Stats {
	return Stats{
		Hot: s.opened[0].Load(), Warm: s.opened[1].Load(), Cold: s.opened[2].Load(),
		Peer: s.peers.opened.Load(), PeerErrors: s.peers.errors.Load(),
		Hedges: s.hedge.started.Load(), HedgesWon: s.hedge.won.Load(),
		Promoted: s.promotions.done.Load(), PromotedBytes: s.promotions.bytes.Load(), NotPromoted: s.promotions.refused.Load(),
		Moved: s.moved.Load(), CopiedBytes: s.copies.Bytes(),
		Spilled: s.spills.batches.Load(), SpilledBytes: s.spills.bytes.Load(),
	}
}

// flushTimeout bounds writing down when batches were read.
const flushTimeout = 5 * time.Second

func (s *Store) flushUses(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	return s.uses.flush(ctx, s.catalog)
}

func (s *Store) count(b *Batch) {
	if s.uses.touch(b.Ref.Dataset, b.Ref.Sequence, s.now()) {
		go func() {
			defer s.uses.done()
			if err := s.flushUses(context.Background()); err != nil {
				s.log.Warn("when batches were last read is not written down", "error", err)
			}
		}()
	}
	switch {
	case b.Peer:
		s.peers.opened.Add(1)
	case b.Tier == arrowio.Hot:
		s.opened[0].Add(1)
	case b.Tier == arrowio.Warm:
		s.opened[1].Add(1)
	case b.Tier == arrowio.Cold:
		s.opened[2].Add(1)
	}
}

func (s *Store) crash(point string) error {
	if s.fault == nil {
		return nil
	}
	return s.fault(point)
}

func batchID(dataset string, seq uint64) string {
	return arrowio.Ref{Dataset: dataset, Sequence: seq}.ID()
}

// keyed hands out one mutex per key while somebody wants it.
type keyed struct {
	mu   sync.Mutex
	held map[string]*keyedLock
}

type keyedLock struct {
	ch   chan struct{} // holds one token while unlocked
	want int
}

// lock waits for key's lock or ctx; unlock is nil on error.
func (k *keyed) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyedLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyedLock{ch: make(chan struct{}, 1)}
		l.ch <- struct{}{}
		k.held[key] = l
	}
	l.want++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.want--; l.want == 0 {
			delete(k.held, key)
		}
	}
	select {
	case <-l.ch:
		return func() { l.ch <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
