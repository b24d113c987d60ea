package budget

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
)

func documentBucketName(prefix string) string { return prefix + "_budgets" }

func documentBucket(prefix string, replicas int) jetstream.KeyValueConfig {
	return jetstream.KeyValueConfig{
		Bucket: documentBucketName(prefix), Description: "Stokehold: limits of what runs may spend; see docs/BUDGETS.md", Storage: jetstream.FileStorage,
		History: history, MaxValueSize: 2 * MaxDocumentBytes, Replicas: replicas,
	}
}

// Entry is a document as it is stored, with who set it and why.
type Entry struct {
	Revision uint64    `json:"revision"`
	Stored   time.Time `json:"stored"`
	Actor    string    `json:"actor"`
	Reason   string    `json:"reason"`
	// Change says what is different from the document before: "set team/late month".
	Change   string    `json:"change"`
	Document *Document `json:"document,omitempty"`
	Err      error     `json:"-"` // there is no Document because it cannot be read

	over uint64 // the revision that it replaced
}

type entryRecord struct {
	Actor    string          `json:"actor"`
	Reason   string          `json:"reason"`
	Change   string          `json:"change"`
	Over     uint64          `json:"over"`
	Document json.RawMessage `json:"document"`
}

func entryOf(e jetstream.KeyValueEntry) Entry {
	out := Entry{Revision: e.Revision(), Stored: e.Created().UTC()}
	if e.Operation() != jetstream.KeyValuePut {
		out.Err = fmt.Errorf("%w: the limits were deleted: set them again", ErrUnavailable)
		return out
	}
	var rec entryRecord
	if err := json.Unmarshal(e.Value(), &rec); err != nil {
		out.Err = fmt.Errorf("%w: limits of revision %d: %w", ErrCorrupt, e.Revision(), err)
		return out
	}
	out.Actor, out.Reason, out.Change, out.over = rec.Actor, rec.Reason, rec.Change, rec.Over
	d, err := ParseDocument(rec.Document)
	if err != nil {
		out.Err = fmt.Errorf("%w: limits of revision %d: %w", ErrCorrupt, e.Revision(), err)
		return out
	}
	out.Document = d
	return out
}

// readDocument returns the newest document. The error wraps ErrNotFound where none
// was ever set; one that was deleted or cannot be read is in Entry.Err.
func readDocument(ctx context.Context, js jetstream.JetStream, prefix string) (Entry, error) {
	kv, err := js.KeyValue(ctx, documentBucketName(prefix))
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return Entry{}, fmt.Errorf("%w: no limits were ever set", ErrNotFound)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("%w: bucket %s: %w", ErrUnavailable, documentBucketName(prefix), err)
	}
	e, err := kv.Get(ctx, documentKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		// What was deleted is not what never was.
		past, err := kv.History(ctx, documentKey)
		if errors.Is(err, jetstream.ErrKeyNotFound) || err == nil && len(past) == 0 {
			return Entry{}, fmt.Errorf("%w: no limits were ever set", ErrNotFound)
		}
		if err != nil {
			return Entry{}, fmt.Errorf("%w: read the limits: %w", ErrUnavailable, err)
		}
		return entryOf(past[len(past)-1]), nil
	}
	if err != nil {
		return Entry{}, fmt.Errorf("%w: read the limits: %w", ErrUnavailable, err)
	}
	return entryOf(e), nil
}

// Store keeps the document, and what is proposed in its place. Safe for concurrent use.
type Store struct {
	js     jetstream.JetStream
	prefix string
	wait   time.Duration
}

// NewStore makes a Store. It asks the server nothing. prefix is that of the
// buckets, PREFIX_budgets and PREFIX_budget_proposals; "": events.DefaultPrefix.
func NewStore(conn *nats.Conn, prefix string) (*Store, error) {
	if prefix == "" {
		prefix = events.DefaultPrefix
	}
	if conn == nil || !prefixRule.MatchString(prefix) {
		return nil, fmt.Errorf("%w: a connection, and a Prefix that is a lower-case word, not %.80q", ErrConfig, prefix)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, fmt.Errorf("budget: %w: %w", ErrUnavailable, err)
	}
	return &Store{js: js, prefix: prefix, wait: 5 * time.Second}, nil
}

// Get returns the newest document. The error wraps ErrNotFound where none was ever
// set.
func (s *Store) Get(ctx context.Context) (Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	return readDocument(ctx, s.js, s.prefix)
}

// History returns the documents that are kept, at most 64, oldest first.
func (s *Store) History(ctx context.Context) ([]Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	kv, err := s.js.KeyValue(ctx, documentBucketName(s.prefix))
	var found []jetstream.KeyValueEntry
	if err == nil {
		found, err = kv.History(ctx, documentKey)
	}
	if errors.Is(err, jetstream.ErrBucketNotFound) || errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, fmt.Errorf("%w: no limits were ever set", ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: history of the limits: %w", ErrUnavailable, err)
	}
	var out []Entry
	for _, e := range found {
		out = append(out, entryOf(e))
	}
	return out, nil
}

// put stores a document in place of the revision over; 0: of none.
func (s *Store) put(ctx context.Context, rec entryRecord, over uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	raw, err := json.Marshal(rec)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	kv, err := s.bucket(ctx, documentBucket(s.prefix, 1))
	if err != nil {
		return 0, err
	}
	revision, err := kv.Update(ctx, documentKey, raw, over)
	var api *jetstream.APIError
	if errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return 0, errOthers
	}
	if err != nil {
		return 0, fmt.Errorf("%w: write the limits: %w (may these credentials write them?)", ErrUnavailable, err)
	}
	return revision, nil
}

// bucket opens a bucket, and makes it if it is not there.
func (s *Store) bucket(ctx context.Context, cfg jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	kv, err := s.js.KeyValue(ctx, cfg.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if kv, err = s.js.CreateKeyValue(ctx, cfg); errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = s.js.KeyValue(ctx, cfg.Bucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: bucket %s: %w", ErrUnavailable, cfg.Bucket, err)
	}
	return kv, nil
}
