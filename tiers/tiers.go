package tiers

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
)

// Sentinels for the decisions a caller makes.
var (
	ErrNotFound  = errors.New("not found")
	ErrFenced    = errors.New("fenced by a newer writer") // stop: another attempt or run took over
	ErrSealed    = errors.New("dataset is sealed")
	ErrSchema    = errors.New("schema differs from the dataset's")
	ErrGap       = errors.New("sequence leaves a gap")
	ErrNoTierHas = errors.New("no tier could serve the batch")
	// ErrName means a dataset, run or stage name that cannot be stored.
	ErrName = errors.New("unusable name")
	// ErrTooLarge means a batch over MaxBatchBytes, or an object over a driver's limit.
	ErrTooLarge = errors.New("too large")
	// ErrClosed means the store is closed.
	ErrClosed = errors.New("store is closed")
	// ErrFormat means the catalog is encoded in a way that this version does not know.
	ErrFormat = errors.New("unknown catalog format")
	// ErrExpired means the batch existed and was removed when its time was over.
	ErrExpired = errors.New("batch has expired")
	// ErrNoArena means a batch was wanted in shared memory and the store has no arena.
	ErrNoArena = errors.New("store has no arena")
	// ErrRoute means that governance sends a batch where it cannot be put. Nothing was
	// written.
	ErrRoute = errors.New("batch cannot be put where governance routes it")
)

// MaxBatchBytes is the largest batch, as framed for the warm tier.
const MaxBatchBytes = 1 << 31

// Error says which operation on what failed. Err wraps a sentinel of this
// package, of events, or of arrowio where a caller has a decision to make.
type Error struct {
	Op      string // "write", "seal", "open", "read", "move", ...
	Dataset string
	Batch   string // DATASET#SEQUENCE, "" when the whole dataset is meant
	Hint    string // what to do
	Err     error
}

func (e *Error) Error() string {
	what := e.Batch
	if what == "" {
		what = e.Dataset
	}
	s := "tiers: " + e.Op
	if what != "" {
		s += " " + what
	}
	s += ": " + e.Err.Error()
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Config configures a Store.
type Config struct {
	Conn  *nats.Conn  // catalog
	Bus   *events.Bus // batch.published, dataset.sealed, tier.moved
	Host  *shm.Host   // arenas of this process
	Arena *shm.Arena  // where batches written here stay hot; nil: never hot
	// HotWait is how long a write waits for room when the arena is full of batches
	// that are being read. Then, or at once if the batch is larger than the arena, it
	// spills: the batch is written to the warm tier alone, which Stats counts and the
	// log reports. Default 20 ms.
	HotWait time.Duration
	Warm    string      // directory of the warm tier, created 0700
	Cold    ObjectStore // nil: no cold tier
	Prefix  string      // of KV bucket names; default "stokehold"
	// ColdCodec is how batches are written to the cold tier: CodecParquet, the default,
	// or CodecArrow. A batch that Parquet cannot hold is written as Arrow whatever it
	// says. Each is read as it was written.
	ColdCodec string
	// Place is where this host is, and ColdPlace where the cold tier is. Both are told
	// in tier.move.requested, so that data are kept where their labels allow them.
	Place, ColdPlace events.Place
	// MoveBytesPerSecond bounds what all migrations of this process copy together, in
	// bytes of Arrow data; 0: no bound. MoveConcurrency is how many copy at once;
	// default 4.
	MoveBytesPerSecond int64
	MoveConcurrency    int
	Logger             *slog.Logger
	// Peers opens batches that other processes of this host hold in shared memory. It
	// is asked for what is not in an arena of this process, before the warm tier. Its batches must be valid (see arrowio.Resolver); the
	// store compares them with their refs. Its errors never fail a read that another
	// tier can serve; they are logged, and counted in Stats. Of arrowio.Resolvers the
	// members are asked one by one. nil: nobody is asked.
	Peers arrowio.Resolver
	// Far is likewise what other hosts hold. It is asked after the warm tier and before
	// the cold one.
	Far arrowio.Resolver
	// PeerTimeout bounds each answer of a peer. Default 5 s.
	PeerTimeout time.Duration
	// HedgeAfter is the least time after which a read from a peer, a disk or the object
	// store counts as late. It is late when it has taken longer than 95 in 100 of
	// the newest like it; then the next source is asked as well, or the object store once more,
	// and the first valid answer counts. At most one read in 20 is. Default 25 ms;
	// negative: none is.
	HedgeAfter time.Duration
	// Promote says what a read from the cold tier leaves in the warm one.
	Promote Promotion
	// Advertise is the flight URI (arrowio.FlightURI) at which other hosts are given
	// what Local has. Refs of batches written here name it as a hot location.
	// "": they do not.
	Advertise string
	// Routed is told of each committed batch whose event governance routes to the cold
	// tier, again where a process died, so that it must be idempotent; the write waits
	// for it. It sees to it that the batch gets there. nil: such a batch is refused.
	Routed func(ctx context.Context, ref arrowio.Ref, tier arrowio.Tier) error
	// Versions says what the versions of models that datasets were made with are labelled
	// with. nil: they are not asked, and a label that comes to one later binds nothing here.
	Versions label.Nodes
}

// ObjectStore is the small driver interface of the cold tier. Objects are
// immutable and content-addressed.
type ObjectStore interface {
	// Put stores body under key and returns when the store acknowledged it.
	// Putting the same bytes again is a success.
	Put(ctx context.Context, key string, body []byte) error
	// Get returns the whole object; ErrNotFound if there is none.
	Get(ctx context.Context, key string) ([]byte, error)
	// Delete removes the object; removing one that is not there is a success.
	Delete(ctx context.Context, key string) error
	// List yields the objects whose key begins with prefix, in no certain order.
	List(ctx context.Context, prefix string) iter.Seq2[ObjectInfo, error]
	// URI is the s3://BUCKET/KEY form of key.
	URI(key string) string
}

// Syncer is an optional power of an ObjectStore: one whose Syncs reports true
// keeps acknowledged objects through a power cut. Only then may a batch's warm
// copy be removed: an endpoint that does not sync is never the sole copy.
type Syncer interface {
	Syncs() bool
}

// ObjectInfo describes one stored object.
type ObjectInfo struct {
	Key      string
	Bytes    int64
	Modified time.Time
}

// Fence identifies a writer. Of one run and stage the higher attempt wins;
// between runs the one that opened last.
type Fence struct {
	Run     string `json:"run"`
	Stage   string `json:"stage"`
	Attempt int    `json:"attempt"`
}

// Head is a dataset's state; its compare-and-set commits a batch.
type Head struct {
	Dataset     string `json:"dataset"`
	Fingerprint string `json:"fingerprint"`
	Next        uint64 `json:"next"` // batches 0..Next-1 exist
	Rows        int64  `json:"rows"`
	Sealed      bool   `json:"sealed"`
	Epoch       uint64 `json:"epoch"` // grows with each writer
	Fence       Fence  `json:"fence"`
	// Labels say what the data are (package governance/label): the join of those of all
	// its batches and of what was declared. Writers carry them from commit to commit.
	Labels label.Set `json:"labels,omitempty"`
}
