package devstack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

// s3Backend keeps objects as files through the gateway's POSIX backend, and mends two of its traits: that one
// changes the process's working directory and reads every bucket's name as a path relative to it, so it is given
// absolute paths here, and it answers before an object is on the disk, so objects are synced here.
//
// What needs a second bucket name inside a request (CopyObject, UploadPartCopy) and what a development stack has
// no use for (policies, versioning, websites, retention) is answered with NotImplemented.
type s3Backend struct {
	backend.BackendUnsupported
	posix *posix.Posix
	root  string // absolute; one directory for each bucket
	meta  string // absolute directory of sidecar metadata; empty where extended attributes are used
}

func newS3Backend(root, metaDir string) (*s3Backend, error) {
	attributes := meta.XattrMeta{}
	if attributes.Test(root) == nil {
		return newS3BackendOn(root, "", attributes)
	}
	sidecar, err := meta.NewSideCar(metaDir)
	if err != nil {
		return nil, fmt.Errorf("devstack: s3: %w", err)
	}
	return newS3BackendOn(root, metaDir, sidecar)
}

func newS3BackendOn(root, metaDir string, store meta.MetadataStorer) (*s3Backend, error) {
	opts := posix.PosixOpts{
		// The lock files only serialise several gateways on one directory; the state directory has one owner.
		ForceNoObjLockFile: true,
		Concurrency:        s3Concurrency,
		IOBufferSize:       s3BufferBytes,
	}
	opts.SetNewDirPerm(0o700)
	opts.SetNewFilePerm(0o600)
	// The backend's constructor changes to its root; giving it the directory we are in makes that no change.
	cwd, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("devstack: s3: the working directory is gone: %w", err)
	}
	files, err := posix.New(cwd, store, opts)
	if err != nil {
		return nil, fmt.Errorf("devstack: s3: %w", err)
	}
	return &s3Backend{posix: files, root: root, meta: metaDir}, nil
}

func (b *s3Backend) path(bucket *string) *string {
	if bucket == nil {
		return nil
	}
	// The gateway has refused names that are no bucket names before; this holds even if it would not.
	name := filepath.Base(*bucket)
	if strings.HasPrefix(name, ".") || name == string(filepath.Separator) {
		name = "_"
	}
	p := filepath.Join(b.root, name)
	return &p
}

func (b *s3Backend) dir(bucket string) string { return *b.path(&bucket) }

// named puts the bucket's name where an error holds its path.
func named(err error, bucket *string) error {
	var e s3err.BucketError
	if !errors.As(err, &e) {
		return err
	}
	e.BucketName = *bucket
	return e
}

// sync brings an object, its metadata and the directories above it to the disk.
func (b *s3Backend) sync(bucket, key *string) error {
	name := filepath.Join(b.dir(*bucket), *key)
	if err := syncDir(name); err != nil { // syncs files just as well
		return fmt.Errorf("sync object: %w", err)
	}
	for dir := filepath.Dir(name); len(dir) >= len(b.root); dir = filepath.Dir(dir) {
		if err := syncDir(dir); err != nil {
			return fmt.Errorf("sync directory of object: %w", err)
		}
	}
	if b.meta == "" {
		return nil
	}
	// The sidecar store keeps each attribute in a file under META/BUCKET-PATH/KEY/meta.
	top := filepath.Join(b.meta, name, "meta")
	err := filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncDir(path)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sync metadata of object: %w", err)
	}
	for dir := filepath.Dir(top); len(dir) >= len(b.meta); dir = filepath.Dir(dir) {
		if err := syncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sync metadata of object: %w", err)
		}
	}
	return nil
}

// Shutdown implements backend.Backend.
func (b *s3Backend) Shutdown() { b.posix.Shutdown() }

// String implements backend.Backend.
func (b *s3Backend) String() string { return "stokehold development stack" }

// NormalizeObjectKey implements backend.Backend.
func (b *s3Backend) NormalizeObjectKey(bucket, object string) string {
	return b.posix.NormalizeObjectKey(b.dir(bucket), object)
}

// ListBuckets implements backend.Backend.
func (b *s3Backend) ListBuckets(_ context.Context, in s3response.ListBucketsInput) (s3response.ListAllMyBucketsResult, error) {
	entries, err := os.ReadDir(b.root)
	if err != nil {
		return s3response.ListAllMyBucketsResult{}, fmt.Errorf("list buckets: %w", err)
	}
	out := s3response.ListAllMyBucketsResult{Owner: s3response.CanonicalUser{ID: in.Owner}, Prefix: in.Prefix}
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") || !strings.HasPrefix(e.Name(), in.Prefix) || e.Name() <= in.ContinuationToken {
			continue
		}
		if n := len(out.Buckets.Bucket); in.MaxBuckets > 0 && n == int(in.MaxBuckets) {
			out.ContinuationToken = out.Buckets.Bucket[n-1].Name
			break
		}
		info, err := e.Info()
		if err != nil {
			continue // removed meanwhile
		}
		out.Buckets.Bucket = append(out.Buckets.Bucket, s3response.ListAllMyBucketsEntry{Name: e.Name(), CreationDate: info.ModTime()})
	}
	return out, nil
}

// HeadBucket implements backend.Backend.
func (b *s3Backend) HeadBucket(ctx context.Context, in *s3.HeadBucketInput) (*s3.HeadBucketOutput, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	out, err := b.posix.HeadBucket(ctx, &c)
	return out, named(err, in.Bucket)
}

// GetBucketAcl implements backend.Backend.
func (b *s3Backend) GetBucketAcl(ctx context.Context, in *s3.GetBucketAclInput) ([]byte, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	acl, err := b.posix.GetBucketAcl(ctx, &c)
	return acl, named(err, in.Bucket)
}

// CreateBucket implements backend.Backend.
func (b *s3Backend) CreateBucket(ctx context.Context, in *s3.CreateBucketInput, acl []byte) error {
	c := *in
	c.Bucket = b.path(in.Bucket)
	if err := b.posix.CreateBucket(ctx, &c, acl); err != nil {
		return err
	}
	return errors.Join(syncDir(*c.Bucket), syncDir(b.root))
}

// DeleteBucket implements backend.Backend.
func (b *s3Backend) DeleteBucket(ctx context.Context, bucket string) error {
	return b.posix.DeleteBucket(ctx, b.dir(bucket))
}

// GetBucketVersioning implements backend.Backend.
func (b *s3Backend) GetBucketVersioning(ctx context.Context, bucket string) (s3response.GetBucketVersioningOutput, error) {
	return b.posix.GetBucketVersioning(ctx, b.dir(bucket))
}

// GetBucketPolicy implements backend.Backend.
func (b *s3Backend) GetBucketPolicy(ctx context.Context, bucket string) ([]byte, error) {
	return b.posix.GetBucketPolicy(ctx, b.dir(bucket))
}

// GetBucketCors implements backend.Backend.
func (b *s3Backend) GetBucketCors(ctx context.Context, bucket string) ([]byte, error) {
	return b.posix.GetBucketCors(ctx, b.dir(bucket))
}

// GetObjectLockConfiguration implements backend.Backend.
func (b *s3Backend) GetObjectLockConfiguration(ctx context.Context, bucket string) ([]byte, error) {
	return b.posix.GetObjectLockConfiguration(ctx, b.dir(bucket))
}

// GetObjectRetention implements backend.Backend.
func (b *s3Backend) GetObjectRetention(ctx context.Context, bucket, object, version string) ([]byte, error) {
	return b.posix.GetObjectRetention(ctx, b.dir(bucket), object, version)
}

// GetObjectLegalHold implements backend.Backend.
func (b *s3Backend) GetObjectLegalHold(ctx context.Context, bucket, object, version string) (*bool, error) {
	return b.posix.GetObjectLegalHold(ctx, b.dir(bucket), object, version)
}

// CreateMultipartUpload implements backend.Backend.
func (b *s3Backend) CreateMultipartUpload(ctx context.Context, in s3response.CreateMultipartUploadInput) (s3response.InitiateMultipartUploadResult, error) {
	bucket := in.Bucket
	in.Bucket = b.path(bucket)
	out, err := b.posix.CreateMultipartUpload(ctx, in)
	out.Bucket = *bucket
	return out, err
}

// CompleteMultipartUpload implements backend.Backend.
func (b *s3Backend) CompleteMultipartUpload(ctx context.Context, in *s3.CompleteMultipartUploadInput) (s3response.CompleteMultipartUploadResult, string, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	out, version, err := b.posix.CompleteMultipartUpload(ctx, &c)
	if err == nil {
		err = b.sync(in.Bucket, in.Key)
	}
	out.Bucket = in.Bucket
	return out, version, err
}

// AbortMultipartUpload implements backend.Backend.
func (b *s3Backend) AbortMultipartUpload(ctx context.Context, in *s3.AbortMultipartUploadInput) error {
	c := *in
	c.Bucket = b.path(in.Bucket)
	return b.posix.AbortMultipartUpload(ctx, &c)
}

// ListMultipartUploads implements backend.Backend.
func (b *s3Backend) ListMultipartUploads(ctx context.Context, in *s3.ListMultipartUploadsInput) (s3response.ListMultipartUploadsResult, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	out, err := b.posix.ListMultipartUploads(ctx, &c)
	out.Bucket = *in.Bucket
	return out, err
}

// ListParts implements backend.Backend.
func (b *s3Backend) ListParts(ctx context.Context, in *s3.ListPartsInput) (s3response.ListPartsResult, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	out, err := b.posix.ListParts(ctx, &c)
	out.Bucket = *in.Bucket
	return out, err
}

// UploadPart implements backend.Backend.
func (b *s3Backend) UploadPart(ctx context.Context, in *s3.UploadPartInput) (*s3.UploadPartOutput, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	return b.posix.UploadPart(ctx, &c)
}

// PutObject implements backend.Backend.
func (b *s3Backend) PutObject(ctx context.Context, in s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	bucket := in.Bucket
	in.Bucket = b.path(bucket)
	out, err := b.posix.PutObject(ctx, in)
	if err == nil {
		err = b.sync(bucket, in.Key)
	}
	return out, err
}

// HeadObject implements backend.Backend.
func (b *s3Backend) HeadObject(ctx context.Context, in *s3.HeadObjectInput) (*s3.HeadObjectOutput, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	return b.posix.HeadObject(ctx, &c)
}

// GetObject implements backend.Backend.
func (b *s3Backend) GetObject(ctx context.Context, in *s3.GetObjectInput) (*s3.GetObjectOutput, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	return b.posix.GetObject(ctx, &c)
}

// GetObjectAttributes implements backend.Backend.
func (b *s3Backend) GetObjectAttributes(ctx context.Context, in *s3.GetObjectAttributesInput) (s3response.GetObjectAttributesResponse, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	return b.posix.GetObjectAttributes(ctx, &c)
}

// ListObjects implements backend.Backend.
func (b *s3Backend) ListObjects(ctx context.Context, in *s3.ListObjectsInput) (s3response.ListObjectsResult, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	out, err := b.posix.ListObjects(ctx, &c)
	out.Name = in.Bucket
	return out, err
}

// ListObjectsV2 implements backend.Backend.
func (b *s3Backend) ListObjectsV2(ctx context.Context, in *s3.ListObjectsV2Input) (s3response.ListObjectsV2Result, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	out, err := b.posix.ListObjectsV2(ctx, &c)
	out.Name = in.Bucket
	return out, err
}

// DeleteObject implements backend.Backend.
func (b *s3Backend) DeleteObject(ctx context.Context, in *s3.DeleteObjectInput) (*s3.DeleteObjectOutput, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	return b.posix.DeleteObject(ctx, &c)
}

// DeleteObjects implements backend.Backend.
func (b *s3Backend) DeleteObjects(ctx context.Context, in *s3.DeleteObjectsInput) (s3response.DeleteResult, error) {
	c := *in
	c.Bucket = b.path(in.Bucket)
	return b.posix.DeleteObjects(ctx, &c)
}

// GetObjectTagging implements backend.Backend.
func (b *s3Backend) GetObjectTagging(ctx context.Context, bucket, object, version string) (map[string]string, error) {
	return b.posix.GetObjectTagging(ctx, b.dir(bucket), object, version)
}

// PutObjectTagging implements backend.Backend.
func (b *s3Backend) PutObjectTagging(ctx context.Context, bucket, object, version string, tags map[string]string) error {
	return b.posix.PutObjectTagging(ctx, b.dir(bucket), object, version, tags)
}

// DeleteObjectTagging implements backend.Backend.
func (b *s3Backend) DeleteObjectTagging(ctx context.Context, bucket, object, version string) error {
	return b.posix.DeleteObjectTagging(ctx, b.dir(bucket), object, version)
}
