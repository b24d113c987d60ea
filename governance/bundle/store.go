package bundle

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
)

const (
	// History is how many bundles of a name a store keeps, the most that a
	// JetStream bucket can.
	History = 64
	// maxStored bounds a compressed bundle: a server's default limit of a message,
	// with room for the protocol.
	maxStored = 1<<20 - 8<<10
	// storeWait bounds a call whose context has no deadline.
	storeWait = 5 * time.Second
)

// StoreConfig configures a Store.
type StoreConfig struct {
	Conn     *nats.Conn // required; stays the caller's
	Prefix   string     // of the bucket, PREFIX_policies; default events.DefaultPrefix
	Name     string     // of the bundle; default DefaultName
	Replicas int        // of a bucket that this store creates; default 1
}

// Store keeps the bundles of one name in a JetStream key-value bucket. Values are
// compressed; every replacement names the revision it replaces. Safe for
// concurrent use.
type Store struct {
	cfg StoreConfig
	js  jetstream.JetStream
}

// NewStore checks the configuration. It asks the server nothing.
func NewStore(cfg StoreConfig) (*Store, error) {
	cfg.Prefix, cfg.Name, cfg.Replicas = cmp.Or(cfg.Prefix, events.DefaultPrefix), cmp.Or(cfg.Name, DefaultName), cmp.Or(cfg.Replicas, 1)
	var faults []error
	if cfg.Conn == nil {
		faults = append(faults, fmt.Errorf("%w: Conn is nil", ErrConfig))
	}
	if !nameRule.MatchString(cfg.Name) {
		faults = append(faults, fmt.Errorf("%w: Name %.80q: use 1 to 63 of a-z, 0-9 and -", ErrConfig, cfg.Name))
	}
	if cfg.Replicas < 1 || cfg.Replicas > 5 {
		faults = append(faults, fmt.Errorf("%w: %d Replicas; want 1 to 5", ErrConfig, cfg.Replicas))
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	js, err := jetstream.New(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return &Store{cfg: cfg, js: js}, nil
}

// Name returns the name of the bundles.
func (s *Store) Name() string { return s.cfg.Name }

func (s *Store) bucketName() string { return s.cfg.Prefix + "_policies" }

// Entry is a bundle as it is stored; nothing of it has been verified.
type Entry struct {
	Revision uint64 // of the bucket; rises with every write
	Stored   time.Time
	Data     []byte // the bundle's text; nil if Err
	Err      error  // the value cannot be decompressed within the limits
}

// Create makes the bucket unless it is there.
func (s *Store) Create(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	_, err := s.bucket(ctx)
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	_, err = s.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket:       s.bucketName(),
		Description:  "Stokehold: signed policy bundles; see docs/POLICIES.md",
		History:      History,
		Storage:      jetstream.FileStorage,
		Replicas:     s.cfg.Replicas,
		MaxValueSize: maxStored,
	})
	if err != nil && !errors.Is(err, jetstream.ErrBucketExists) {
		return s.unavailable("create", err)
	}
	return nil
}

// bucket opens the bucket; the error wraps ErrNotFound when there is none.
func (s *Store) bucket(ctx context.Context) (jetstream.KeyValue, error) {
	kv, err := s.js.KeyValue(ctx, s.bucketName())
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, fmt.Errorf("%w: there is no bucket %s: 'stokehold policy apply' makes it", ErrNotFound, s.bucketName())
	}
	if err != nil {
		return nil, s.unavailable("open", err)
	}
	return kv, nil
}

func (s *Store) unavailable(op string, err error) error {
	return fmt.Errorf("%w: %s bucket %s: %w", ErrUnavailable, op, s.bucketName(), err)
}

// Get returns the newest entry. The error wraps ErrNotFound or ErrUnavailable.
func (s *Store) Get(ctx context.Context) (Entry, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	kv, err := s.bucket(ctx)
	if err != nil {
		return Entry{}, err
	}
	e, err := kv.Get(ctx, s.cfg.Name)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrKeyDeleted) {
		return Entry{}, fmt.Errorf("%w named %s in bucket %s", ErrNotFound, s.cfg.Name, s.bucketName())
	}
	if err != nil {
		return Entry{}, s.unavailable("read", err)
	}
	return entry(e), nil
}

// History returns the entries that are kept, oldest first. The error wraps
// ErrNotFound or ErrUnavailable.
func (s *Store) History(ctx context.Context) ([]Entry, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	kv, err := s.bucket(ctx)
	if err != nil {
		return nil, err
	}
	kept, err := kv.History(ctx, s.cfg.Name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, fmt.Errorf("%w named %s in bucket %s", ErrNotFound, s.cfg.Name, s.bucketName())
	}
	if err != nil {
		return nil, s.unavailable("read", err)
	}
	var out []Entry
	for _, e := range kept {
		if e.Operation() == jetstream.KeyValuePut {
			out = append(out, entry(e))
		}
	}
	return out, nil
}

// Put stores a bundle in place of the entry of the given revision; 0: of none.
// The error wraps ErrConflict when another entry is there.
func (s *Store) Put(ctx context.Context, b *Bundle, revision uint64) (uint64, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if b.Name != s.cfg.Name {
		return 0, fmt.Errorf("%w: bundle %s in a store of %s", ErrConfig, b.Name, s.cfg.Name)
	}
	value, err := pack(b.raw)
	if err != nil {
		return 0, err
	}
	kv, err := s.bucket(ctx)
	if err != nil {
		return 0, err
	}
	if revision == 0 {
		revision, err = kv.Create(ctx, s.cfg.Name, value)
	} else {
		revision, err = kv.Update(ctx, s.cfg.Name, value, revision)
	}
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrKeyExists), errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence:
		return 0, fmt.Errorf("%w: bundle %s: look at what is there now and apply again", ErrConflict, s.cfg.Name)
	case err != nil:
		return 0, s.unavailable("write", err)
	}
	return revision, nil
}

func entry(e jetstream.KeyValueEntry) Entry {
	out := Entry{Revision: e.Revision(), Stored: e.Created()}
	out.Data, out.Err = unpack(e.Value())
	return out
}

// pack compresses a bundle for the store.
func pack(raw []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(raw)
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	if b.Len() > maxStored {
		return nil, fmt.Errorf("%w: %d bytes when compressed; a message holds %d: split the policies over several bundles", ErrTooLarge, b.Len(), maxStored)
	}
	return b.Bytes(), nil
}

// unpack is the inverse of pack, for what anybody may have written.
func unpack(value []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(value))
	if err != nil {
		return nil, &FormatError{Msg: "the stored value is not compressed as bundles are: " + err.Error()}
	}
	r.Multistream(false)
	raw, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, &FormatError{Msg: "the stored value cannot be decompressed: " + err.Error()}
	}
	if len(raw) > MaxBytes {
		return nil, fmt.Errorf("%w: more than %d bytes when decompressed", ErrTooLarge, MaxBytes)
	}
	return raw, nil
}

func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, storeWait)
}
