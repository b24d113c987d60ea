// Package tiers keeps datasets: a catalog in JetStream KV says where each batch
// is, and hot (shared memory), warm (local disk) and cold (S3) stores hold the
// bytes. The catalog's compare-and-set is the only arbiter.
package tiers

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
)

// Sentinels for the decisions a caller makes.
var (
	ErrNotFound  = errors.New("not in the catalog")
	ErrFenced    = errors.New("fenced by a newer writer") // stop: another attempt or run took over
	ErrSealed    = errors.New("dataset is sealed")
	ErrSchema    = errors.New("schema differs from the dataset's")
	ErrGap       = errors.New("sequence leaves a gap")
	ErrNoTierHas = errors.New("no tier could serve the batch")
)

// Config configures a Store.
type Config struct {
	Conn   *nats.Conn  // catalog
	Bus    *events.Bus // batch.published, dataset.sealed, tier.moved
	Host   *shm.Host   // arenas of this process
	Arena  *shm.Arena  // where batches written here stay hot; nil: never hot
	Warm   string      // directory of the warm tier, created 0700
	Cold   ObjectStore // nil: no cold tier
	Prefix string      // of KV bucket names; default "stokehold"
	Logger *slog.Logger
}

// ObjectStore is the small driver interface of the cold tier. Objects are
// immutable and content-addressed.
type ObjectStore interface {
	// Put stores size bytes under key and returns when the store acknowledged them.
	Put(ctx context.Context, key string, body []byte) error
	// Get returns the whole object; ErrNotFound if there is none.
	Get(ctx context.Context, key string) ([]byte, error)
	Delete(ctx context.Context, key string) error
	List(ctx context.Context, prefix string) iter.Seq2[ObjectInfo, error]
	// URI is the s3://BUCKET/KEY form of key.
	URI(key string) string
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
}

// Store is the data plane's front door. Safe for concurrent use.
type Store struct{}

// Open creates the catalog's buckets and the warm directory.
func Open(ctx context.Context, cfg Config) (*Store, error) { panic("contract") }

// Close releases what the store holds; batches still lent out stay valid.
func (s *Store) Close(ctx context.Context) error { panic("contract") }

// Writer opens dataset for appending, fencing every earlier writer. schema
// must match the dataset's if it has one.
func (s *Store) Writer(ctx context.Context, dataset string, schema *arrow.Schema, f Fence) (*Writer, error) {
	panic("contract")
}

// Writer appends batches to one dataset. Not safe for concurrent use.
type Writer struct{}

// Base is the first sequence that this run's stage wrote, the same on every
// attempt; Next is where the next batch goes.
func (w *Writer) Base() uint64 { panic("contract") }

// Next is the sequence of the next append.
func (w *Writer) Next() uint64 { panic("contract") }

// WriteAt stores batch as sequence seq: written through to disk, judged,
// committed, announced. A sequence that exists already is returned as it is and
// nothing is stored (a retried stage repeats nothing); one past Next is ErrGap.
// The caller keeps its reference to batch.
func (w *Writer) WriteAt(ctx context.Context, seq uint64, batch arrow.RecordBatch) (arrowio.Ref, error) {
	panic("contract")
}

// AdoptAt is WriteAt for a sealed segment that another process wrote: its bytes
// become the hot copy as they are, without being copied. The store owns seg from
// here on, errors included.
func (w *Writer) AdoptAt(ctx context.Context, seq uint64, seg *shm.Arena) (arrowio.Ref, error) {
	panic("contract")
}

// Seal says that no more batches will come.
func (w *Writer) Seal(ctx context.Context) error { panic("contract") }

// Head returns a dataset's state, ErrNotFound if it does not exist.
func (s *Store) Head(ctx context.Context, dataset string) (Head, error) { panic("contract") }

// Datasets lists all heads by name.
func (s *Store) Datasets(ctx context.Context) iter.Seq2[Head, error] { panic("contract") }

// Ref returns the committed batch of that sequence, ErrNotFound otherwise.
func (s *Store) Ref(ctx context.Context, dataset string, seq uint64) (arrowio.Ref, error) {
	panic("contract")
}

// Batch is one opened batch. Release it exactly once; Record is valid until then
// unless retained.
type Batch struct {
	Ref    arrowio.Ref
	Record arrow.RecordBatch
	Tier   arrowio.Tier // where it was read from
	// Lease is the hot slot behind Record, for handing it on to another process;
	// nil when the batch came from another tier.
	Lease *shm.Lease
}

// Release gives the batch back.
func (b *Batch) Release() { panic("contract") }

// OpenBatch resolves ref: hot, then warm, then cold, checksum verified.
// warm=true brings it into the arena first, so that Lease is set.
func (s *Store) OpenBatch(ctx context.Context, ref arrowio.Ref, toArena bool) (*Batch, error) {
	panic("contract")
}

// End is the "to" of an open-ended read: until the dataset is sealed.
const End = ^uint64(0)

// Batches yields batches from..to-1 in sequence, waiting for those that are not
// committed yet (woken by judged events), until to, the seal, or ctx. The batch
// is released when the loop body ends: retain Record to keep it.
func (s *Store) Batches(ctx context.Context, dataset string, from, to uint64, toArena bool) iter.Seq2[*Batch, error] {
	panic("contract")
}

// Stats counts batches and bytes by tier, and copies made.
type Stats struct {
	Hot, Warm, Cold int64 // batches opened from each tier
	Moved           int64 // verified migrations
	CopiedBytes     int64 // body bytes copied into an arena from the Go heap or another tier
}

// Stats returns the counters since Open.
func (s *Store) Stats() Stats { panic("contract") }
