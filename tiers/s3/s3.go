// Package s3 is the cold tier on S3, MinIO or any gateway that speaks S3. It is
// the only package that imports minio-go.
//
// # What protects an object
//
// A batch's key names the SHA-256 of its content, which its writer has computed
// already (tiers.KeySum). That one hash is also the request's signed payload hash:
// the endpoint refuses content that is not what the key says, and the client hashes
// nothing twice. Objects of other keys are protected on their way by a CRC-64/NVME
// in a signed header. Endpoints that keep the CRC give it back on reading, where it
// is compared; with those that do not, a SHA-256 in the object's metadata takes its place.
//
// # What is not trusted
//
// Open probes the endpoint and records what it really keeps (Store.Guarantees).
// Nothing here needs a conditional write to be exclusive: the catalog decides. An
// upload in parts that fails is aborted even if its context has ended, and what
// that misses SweepPartial removes.
package s3

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

// Store is a bucket. It implements tiers.ObjectStore and each of its optional
// powers. Safe for concurrent use.
type Store struct {
	settings
	client     minio.Core
	wire       *wire
	crc        atomic.Bool // the endpoint compares and keeps CRC-64/NVME
	guarantees atomic.Pointer[tiers.Guarantees]
}

var (
	_ tiers.ObjectStore    = (*Store)(nil)
	_ tiers.Syncer         = (*Store)(nil)
	_ tiers.RangeReader    = (*Store)(nil)
	_ tiers.AbsentPutter   = (*Store)(nil)
	_ tiers.PartialSweeper = (*Store)(nil)
	_ tiers.Clock          = (*Store)(nil)
	_ tiers.Guarantor      = (*Store)(nil)
)

// Open checks the configuration, that the bucket is there and may be used, and
// what the endpoint guarantees (see Probe). The error wraps ErrConfig,
// ErrUnavailable, ErrAccess, ErrClock or ErrBucket.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	set, err := cfg.check()
	if err != nil {
		return nil, fmt.Errorf("s3: open: %w", err)
	}
	s := &Store{settings: set, wire: &wire{next: set.transport}}
	s.guarantees.Store(&tiers.Guarantees{Syncs: set.Syncs})
	creds := set.provider()
	if err := usable(ctx, creds); err != nil {
		return nil, fmt.Errorf("s3: open: %w", err)
	}
	core, err := minio.NewCore(set.host, &minio.Options{
		Transport: s.wire, Creds: creds, Secure: set.secure, Region: set.Region,
		BucketLookup: set.lookup, MaxRetries: set.Retries,
	})
	if err != nil {
		return nil, fmt.Errorf("s3: open: %w: %w", ErrConfig, err)
	}
	s.client = *core
	if err := s.findBucket(ctx); err != nil {
		s.Close()
		return nil, err
	}
	if !cfg.NoProbe {
		if _, err := s.Probe(ctx); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

func (s *Store) findBucket(ctx context.Context) error {
	ok, err := s.client.BucketExists(ctx, s.Bucket)
	if err != nil {
		return s.fail(ctx, "open", "", err)
	}
	if !ok && !s.CreateBucket {
		return fmt.Errorf("s3: open: %w: %s at %s (create it, or let CreateBucket do so)", ErrBucket, s.Bucket, s.Endpoint)
	}
	if !ok {
		err := s.client.MakeBucket(ctx, s.Bucket, minio.MakeBucketOptions{Region: s.Region})
		code := minio.ToErrorResponse(err).Code
		if err != nil && code != minio.BucketAlreadyOwnedByYou && code != minio.BucketAlreadyExists {
			return s.fail(ctx, "create bucket", "", err)
		}
	}
	return nil
}

// Close closes connections that wait for further requests, which a server that
// stops would wait for. The store may still be used. Repeatable.
func (s *Store) Close() { s.transport.CloseIdleConnections() }

// Syncs is what the configuration declares.
func (s *Store) Syncs() bool { return s.settings.Syncs }

// URI is s3://BUCKET/KEY.
func (s *Store) URI(key string) string { return arrowio.S3URI(s.Bucket, key) }

// Now implements tiers.Clock: it asks the endpoint.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	s.wire.seen.Store(false)
	if _, err := s.client.BucketExists(ctx, s.Bucket); err != nil {
		return time.Time{}, s.fail(ctx, "ask for the time", "", err)
	}
	if !s.wire.seen.Load() {
		return time.Time{}, fmt.Errorf("s3: ask for the time: %w: %s answers without a Date", ErrUnavailable, s.Endpoint)
	}
	return time.Now().Add(time.Duration(s.wire.skew.Load())), nil
}

// Delete implements tiers.ObjectStore. In a bucket that keeps versions the object
// becomes an older version, which SweepPartial removes after its grace.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := s.check("delete", key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return s.fail(ctx, "delete", key, err)
	}
	err := s.client.RemoveObject(ctx, s.Bucket, key, minio.RemoveObjectOptions{})
	if err != nil && minio.ToErrorResponse(err).Code != minio.NoSuchKey {
		return s.fail(ctx, "delete", key, err)
	}
	return nil
}

// List implements tiers.ObjectStore.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[tiers.ObjectInfo, error] {
	return func(yield func(tiers.ObjectInfo, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for o := range s.client.ListObjectsIter(ctx, s.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
			if o.Err != nil {
				yield(tiers.ObjectInfo{}, s.fail(ctx, "list", prefix, o.Err))
				return
			}
			if strings.HasSuffix(o.Key, "/") { // a directory, as gateways over file systems list them
				continue
			}
			if !yield(tiers.ObjectInfo{Key: o.Key, Bytes: o.Size, Modified: o.LastModified}, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(tiers.ObjectInfo{}, s.fail(ctx, "list", prefix, err))
		}
	}
}

func (s *Store) check(op, key string) error {
	if err := tiers.CheckKey(key); err != nil {
		return fmt.Errorf("s3: %s: %w", op, err)
	}
	return nil
}

// isStatus reports whether the endpoint answered with this HTTP status.
func isStatus(err error, status int) bool {
	var res minio.ErrorResponse
	return errors.As(err, &res) && res.StatusCode == status
}

// isExists reports whether a conditional write found an object.
func isExists(err error) bool {
	return isStatus(err, http.StatusPreconditionFailed) || minio.ToErrorResponse(err).Code == minio.PreconditionFailed
}
