// Package s3 is the cold tier on S3, MinIO or any gateway that speaks S3. It is
// the only package that imports minio-go.
package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

var (
	// ErrUnavailable means the endpoint could not be reached, or gave up with an error
	// of its own. Retrying later may help.
	ErrUnavailable = errors.New("S3 endpoint unavailable")
	// ErrAccess means the endpoint refused the credentials or the permission.
	ErrAccess = errors.New("S3 access denied")
	// ErrBucket means there is no such bucket.
	ErrBucket = errors.New("no such S3 bucket")
	// ErrConfig means the configuration cannot be used.
	ErrConfig = errors.New("bad S3 configuration")
)

const (
	// MaxObjectBytes is the largest object, unless Config sets another. S3 itself
	// takes 5 GiB in one request.
	MaxObjectBytes = 1 << 30

	maxSinglePut = 5 << 30
	// Four tries, with the client's backoff between, are over in a few seconds; the
	// client's default of ten takes minutes to say that nothing listens.
	maxRetries = 4
	// sumHeader keeps our own hash beside the object: an ETag is not a hash of the
	// content on every server.
	sumHeader = "Stokehold-Sha256"
)

// Config configures a Store. Its String and LogValue leave the secrets out.
type Config struct {
	Endpoint     string // http://HOST:PORT, https://HOST or HOST:PORT (https)
	Region       string // default "us-east-1"
	Bucket       string
	AccessKey    string
	SecretKey    string
	SessionToken string
	CreateBucket bool // create Bucket if it is missing
	// Syncs declares that the endpoint keeps acknowledged objects through a power
	// cut. Not the embedded gateway, nor a MinIO on a disk without sync.
	Syncs          bool
	MaxObjectBytes int64 // default MaxObjectBytes, at most 5 GiB
}

// String describes the configuration without its secrets.
func (c Config) String() string {
	return fmt.Sprintf("S3 %s bucket %s region %s", c.Endpoint, c.Bucket, c.Region)
}

// GoString is String: %#v must not print secrets either.
func (c Config) GoString() string { return c.String() }

// LogValue implements slog.LogValuer without the secrets.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Store implements tiers.ObjectStore and tiers.Syncer. Safe for concurrent use.
type Store struct {
	client   *minio.Client
	idle     func() // closes connections without a request
	endpoint string
	bucket   string
	syncs    bool
	most     int64
}

var (
	_ tiers.ObjectStore = (*Store)(nil)
	_ tiers.Syncer      = (*Store)(nil)
)

// Open checks the configuration and that the bucket is there and may be used.
// The error wraps ErrConfig, ErrUnavailable, ErrAccess or ErrBucket.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg, host, secure, err := cfg.checked()
	if err != nil {
		return nil, fmt.Errorf("s3: open: %w", err)
	}
	transport, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, fmt.Errorf("s3: open: %w: %w", ErrConfig, err)
	}
	client, err := minio.New(host, &minio.Options{
		Transport: transport, Creds: credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, cfg.SessionToken),
		Secure: secure, Region: cfg.Region, MaxRetries: maxRetries,
	})
	if err != nil {
		return nil, fmt.Errorf("s3: open: %w: %w", ErrConfig, err)
	}
	s := &Store{client: client, idle: transport.CloseIdleConnections, endpoint: cfg.Endpoint, bucket: cfg.Bucket, syncs: cfg.Syncs, most: cfg.MaxObjectBytes}
	ok, err := client.BucketExists(ctx, s.bucket)
	if err != nil {
		return nil, s.fail("open", "", err)
	}
	if !ok && !cfg.CreateBucket {
		return nil, fmt.Errorf("s3: open: %w: %s at %s (create it, or let CreateBucket do so)", ErrBucket, s.bucket, s.endpoint)
	}
	if !ok {
		err := client.MakeBucket(ctx, s.bucket, minio.MakeBucketOptions{Region: cfg.Region})
		code := minio.ToErrorResponse(err).Code
		if err != nil && code != minio.BucketAlreadyOwnedByYou && code != minio.BucketAlreadyExists {
			return nil, s.fail("create bucket", s.bucket, err)
		}
	}
	return s, nil
}

// Close closes connections that wait for further requests, which a server that
// stops would wait for. The store may still be used. Repeatable.
func (s *Store) Close() { s.idle() }

// checked returns the configuration with its defaults filled in.
func (c Config) checked() (cfg Config, host string, secure bool, err error) {
	var faults []error
	raw := c.Endpoint
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	u, parseErr := url.Parse(raw)
	switch {
	case c.Endpoint == "":
		faults = append(faults, errors.New("endpoint is missing (S3_ENDPOINT)"))
	case parseErr != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "":
		faults = append(faults, errors.New("endpoint is not http://HOST:PORT or https://HOST"))
	default:
		host, secure = u.Host, u.Scheme == "https"
	}
	if c.Bucket == "" || strings.ContainsAny(c.Bucket, "/ ") {
		faults = append(faults, fmt.Errorf("bucket %.80q is not a bucket's name", c.Bucket))
	}
	if c.AccessKey == "" || c.SecretKey == "" {
		faults = append(faults, errors.New("access key or secret key is missing"))
	}
	if c.Region == "" {
		c.Region = "us-east-1"
	}
	if c.MaxObjectBytes == 0 {
		c.MaxObjectBytes = MaxObjectBytes
	}
	if c.MaxObjectBytes < 0 || c.MaxObjectBytes > maxSinglePut {
		faults = append(faults, fmt.Errorf("MaxObjectBytes of %d: want 1 to %d", c.MaxObjectBytes, int64(maxSinglePut)))
	}
	if len(faults) > 0 {
		return c, "", false, fmt.Errorf("%w: %w", ErrConfig, errors.Join(faults...))
	}
	return c, host, secure, nil
}

// Syncs is what the configuration declares.
func (s *Store) Syncs() bool { return s.syncs }

// URI is s3://BUCKET/KEY.
func (s *Store) URI(key string) string { return arrowio.S3URI(s.bucket, key) }

// Put implements tiers.ObjectStore. The object goes in one request, which either
// takes effect or does not: an upload in parts that is cut off leaves parts
// behind that only a later abort removes.
func (s *Store) Put(ctx context.Context, key string, body []byte) error {
	if err := s.check("put", key); err != nil {
		return err
	}
	if int64(len(body)) > s.most {
		return fmt.Errorf("s3: put %s of %d bytes, at most %d: %w", s.URI(key), len(body), s.most, tiers.ErrTooLarge)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("s3: put %s: %w", s.URI(key), err)
	}
	sum := sha256.Sum256(body)
	_, err := s.client.PutObject(ctx, s.bucket, key, bytes.NewReader(body), int64(len(body)), minio.PutObjectOptions{
		UserMetadata:     map[string]string{sumHeader: hex.EncodeToString(sum[:])},
		ContentType:      "application/octet-stream",
		DisableMultipart: true,
		SendContentMd5:   true, // checked by every server; a signed body hash is not, over https
	})
	if err != nil {
		return s.fail("put", key, err)
	}
	return nil
}

// Get implements tiers.ObjectStore. If the object was put by this driver, what is
// returned has the SHA-256 that was put; otherwise the error wraps
// arrowio.ErrCorrupt.
func (s *Store) Get(ctx context.Context, key string) ([]byte, error) {
	if err := s.check("get", key); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("s3: get %s: %w", s.URI(key), err)
	}
	obj, err := s.client.GetObject(ctx, s.bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, s.fail("get", key, err)
	}
	defer func() { _ = obj.Close() }() // only read
	info, err := obj.Stat()
	if err != nil {
		return nil, s.fail("get", key, err)
	}
	if info.Size > s.most {
		return nil, fmt.Errorf("s3: get %s of %d bytes, at most %d: %w", s.URI(key), info.Size, s.most, tiers.ErrTooLarge)
	}
	body := make([]byte, max(info.Size, 0))
	if _, err := io.ReadFull(obj, body); err != nil {
		return nil, s.fail("get", key, err)
	}
	if want := info.UserMetadata[sumHeader]; want != "" {
		sum := sha256.Sum256(body)
		if got := hex.EncodeToString(sum[:]); got != want {
			return nil, fmt.Errorf("s3: get %s: %w: SHA-256 is %s, %s was put", s.URI(key), arrowio.ErrCorrupt, got, want)
		}
	}
	return body, nil
}

// Delete implements tiers.ObjectStore.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := s.check("delete", key); err != nil {
		return err
	}
	err := s.client.RemoveObject(ctx, s.bucket, key, minio.RemoveObjectOptions{})
	if err != nil && minio.ToErrorResponse(err).Code != minio.NoSuchKey {
		return s.fail("delete", key, err)
	}
	return nil
}

// List implements tiers.ObjectStore.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[tiers.ObjectInfo, error] {
	return func(yield func(tiers.ObjectInfo, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for o := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
			if o.Err != nil {
				yield(tiers.ObjectInfo{}, s.fail("list", prefix, o.Err))
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
			yield(tiers.ObjectInfo{}, fmt.Errorf("s3: list %s: %w", s.URI(prefix), err))
		}
	}
}

func (s *Store) check(op, key string) error {
	if err := tiers.CheckKey(key); err != nil {
		return fmt.Errorf("s3: %s: %w", op, err)
	}
	return nil
}

// fail says what happened in one line, with a sentinel for what can be done.
func (s *Store) fail(op, key string, err error) error {
	what := s.bucket
	if key != "" {
		what = s.URI(key)
	}
	var res minio.ErrorResponse
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("s3: %s %s: %w", op, what, err)
	case !errors.As(err, &res):
		return fmt.Errorf("s3: %s %s: %w: %s: %w (is it running, and is the address right?)", op, what, ErrUnavailable, s.endpoint, err)
	case res.Code == minio.NoSuchKey:
		return fmt.Errorf("s3: %s %s: %w", op, what, tiers.ErrNotFound)
	case res.Code == minio.NoSuchBucket:
		return fmt.Errorf("s3: %s %s: %w: %s at %s", op, what, ErrBucket, s.bucket, s.endpoint)
	case res.StatusCode == http.StatusUnauthorized, res.StatusCode == http.StatusForbidden, res.Code == "InvalidAccessKeyId", res.Code == "SignatureDoesNotMatch":
		return fmt.Errorf("s3: %s %s: %w: %s says %s (check the credentials)", op, what, ErrAccess, s.endpoint, res.Code)
	case res.StatusCode >= http.StatusInternalServerError:
		return fmt.Errorf("s3: %s %s: %w: %s says %w", op, what, ErrUnavailable, s.endpoint, err)
	}
	return fmt.Errorf("s3: %s %s: %s says %s: %w", op, what, s.endpoint, res.Code, err)
}
