package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

const (
	// sumHeader keeps our own hash beside the object: an ETag is not a hash of the
	// content on every server.
	sumHeader = "Stokehold-Sha256"

	crcHeader       = "x-amz-checksum-crc64nvme"
	crcAlgorithm    = "x-amz-checksum-algorithm"
	crcTypeHeader   = "x-amz-checksum-type"
	crcModeHeader   = "x-amz-checksum-mode"
	contentType     = "application/octet-stream"
	abortTimeout    = 15 * time.Second
	crcAlgorithmCRC = "CRC64NVME"
	hashBytes       = 4 << 20 // between looks at the context
)

// Put implements tiers.ObjectStore. body must not change until it returns. If key
// names a SHA-256 (tiers.KeySum) and body has another, the error wraps
// arrowio.ErrCorrupt and nothing is stored.
func (s *Store) Put(ctx context.Context, key string, body []byte) error {
	return s.put(ctx, "put", key, body, false)
}

// PutIfAbsent implements tiers.AbsentPutter. That one of several concurrent calls
// wins is for the endpoint to keep, see Guarantees.
func (s *Store) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	return s.put(ctx, "put", key, body, true)
}

func (s *Store) put(ctx context.Context, op, key string, body []byte, ifAbsent bool) error {
	if err := s.check(op, key); err != nil {
		return err
	}
	if int64(len(body)) > s.MaxObjectBytes {
		return fmt.Errorf("s3: %s %s of %d bytes, at most %d: %w", op, s.URI(key), len(body), s.MaxObjectBytes, tiers.ErrTooLarge)
	}
	if err := ctx.Err(); err != nil {
		return s.fail(ctx, op, key, err)
	}
	u := upload{Store: s, key: key, body: body, ifAbsent: ifAbsent}
	u.sum, u.summed = tiers.KeySum(key)
	var err error
	if int64(len(body)) > s.PartBytes {
		err = u.parts(ctx)
	} else {
		err = u.whole(ctx)
	}
	// An endpoint that refuses before it has read the body may reset the connection,
	// and the refusal with it.
	if ifAbsent && (isExists(err) || err != nil && minio.ToErrorResponse(err).StatusCode == 0 && u.exists(ctx)) {
		return fmt.Errorf("s3: %s %s: %w", op, s.URI(key), tiers.ErrExists)
	}
	if err != nil {
		return s.fallible(ctx, op, key, err)
	}
	return nil
}

// upload is one object on its way.
type upload struct {
	*Store
	key      string
	body     []byte
	ifAbsent bool
	sum      [sha256.Size]byte
	summed   bool // sum is known
}

func (u *upload) options() minio.PutObjectOptions {
	o := minio.PutObjectOptions{
		ContentType: contentType, ServerSideEncryption: u.sse, StorageClass: u.StorageClass,
		UserMetadata:         map[string]string{},
		DisableContentSha256: true, // by the client, in pieces; ours is in the request
	}
	if u.summed {
		o.UserMetadata[sumHeader] = hex.EncodeToString(u.sum[:])
	}
	return o
}

func crcOf(b []byte) string { return minio.ChecksumCRC64NVME.ChecksumBytes(b).Encoded() }

// whole puts the object in one request, which either takes effect or does not.
func (u *upload) whole(ctx context.Context) error {
	crc := u.crc.Load()
	if !u.summed && !crc {
		u.sum, u.summed = sha256.Sum256(u.body), true
	}
	o := u.options()
	if crc {
		o.UserMetadata[crcHeader] = crcOf(u.body)
	}
	if u.ifAbsent {
		o.SetMatchETagExcept("*")
	}
	signed := ""
	if u.summed {
		signed = hex.EncodeToString(u.sum[:])
	}
	_, err := u.client.PutObject(withBody(ctx, u.body), u.Bucket, u.key, bytes.NewReader(u.body), int64(len(u.body)), "", signed, o)
	return err
}

// parts puts the object in parts, several at once. If that fails, the parts are
// removed whether or not ctx has ended. minio-go's own uploader would leave them then,
// and drops the condition.
func (u *upload) parts(ctx context.Context) (err error) {
	crc := u.crc.Load()
	if !u.summed && !crc { // known before the parts are: metadata goes with the first request
		u.sum, u.summed = sha256.Sum256(u.body), true
	}
	o := u.options()
	if crc {
		o.UserMetadata[crcAlgorithm], o.UserMetadata[crcTypeHeader] = crcAlgorithmCRC, "FULL_OBJECT"
	}
	id, err := u.client.NewMultipartUpload(ctx, u.Bucket, u.key, o)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
			defer cancel()
			_ = u.client.AbortMultipartUpload(ctx, u.Bucket, u.key, id) // SweepPartial removes what stays
		}
	}()
	done := make([]minio.ObjectPart, (len(u.body)-1)/int(u.PartBytes)+1)
	both, partCtx := errgroup.WithContext(ctx)
	if _, ok := tiers.KeySum(u.key); ok {
		both.Go(func() error { return u.compare(partCtx) }) // beside the transfer, which takes longer
	}
	both.Go(func() error { return u.send(partCtx, id, done, crc) })
	if err := both.Wait(); err != nil {
		return err
	}
	return u.complete(ctx, id, done, crc)
}

// send puts the parts.
func (u *upload) send(ctx context.Context, id string, done []minio.ObjectPart, crc bool) error {
	size := int(u.PartBytes)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(u.Concurrency)
	for i := range done {
		group.Go(func() error {
			part := u.body[i*size : min((i+1)*size, len(u.body))]
			o := minio.PutObjectPartOptions{SSE: u.customer, DisableContentSha256: true}
			if crc {
				o.CustomHeader = http.Header{http.CanonicalHeaderKey(crcHeader): {crcOf(part)}}
			} else {
				sum := sha256.Sum256(part)
				o.Sha256Hex = hex.EncodeToString(sum[:])
			}
			p, err := u.client.PutObjectPart(withBody(ctx, part), u.Bucket, u.key, id, i+1, bytes.NewReader(part), int64(len(part)), o)
			if crc { // not every server repeats it
				p.ChecksumCRC64NVME = o.CustomHeader.Get(crcHeader)
			}
			p.Size = int64(len(part))
			done[i] = p
			return err
		})
	}
	return group.Wait()
}

// compare is for objects in parts, of which the endpoint sees no whole to hash.
func (u *upload) compare(ctx context.Context) error {
	h := sha256.New()
	for rest := u.body; len(rest) > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(len(rest), hashBytes)
		_, _ = h.Write(rest[:n]) // never fails
		rest = rest[n:]
	}
	if got := h.Sum(nil); !bytes.Equal(got, u.sum[:]) {
		return fmt.Errorf("%w: its SHA-256 is %x, the key names another", arrowio.ErrCorrupt, got)
	}
	return nil
}

func (u *upload) complete(ctx context.Context, id string, parts []minio.ObjectPart, crc bool) error {
	o := minio.PutObjectOptions{ServerSideEncryption: u.customer, UserMetadata: map[string]string{}}
	list := make([]minio.CompletePart, len(parts))
	for i, p := range parts {
		list[i] = minio.CompletePart{PartNumber: i + 1, ETag: p.ETag, ChecksumCRC64NVME: p.ChecksumCRC64NVME}
	}
	full := ""
	if crc {
		sum, err := minio.ChecksumCRC64NVME.FullObjectChecksum(parts)
		if err != nil {
			return err
		}
		full = sum.Encoded()
		o.UserMetadata[crcHeader], o.UserMetadata[crcTypeHeader] = full, "FULL_OBJECT"
	}
	if u.ifAbsent {
		o.SetMatchETagExcept("*")
	}
	_, err := u.client.CompleteMultipartUpload(ctx, u.Bucket, u.key, id, list, o)
	if err != nil && minio.ToErrorResponse(err).Code == minio.NoSuchUpload && u.arrived(ctx, full) {
		return nil // by a first try whose answer was lost
	}
	return err
}

// exists reports whether there is an object under the key, whoever put it.
func (u *upload) exists(ctx context.Context) bool {
	_, err := u.client.StatObject(ctx, u.Bucket, u.key, minio.StatObjectOptions{ServerSideEncryption: u.customer})
	return err == nil
}

// arrived reports whether the object is there as it was put.
func (u *upload) arrived(ctx context.Context, crc string) bool {
	o := minio.StatObjectOptions{ServerSideEncryption: u.customer}
	o.Set(crcModeHeader, "ENABLED")
	info, err := u.client.StatObject(ctx, u.Bucket, u.key, o)
	if err != nil || info.Size != int64(len(u.body)) {
		return false
	}
	if crc != "" && info.ChecksumCRC64NVME == crc {
		return true
	}
	return u.summed && info.UserMetadata[sumHeader] == hex.EncodeToString(u.sum[:])
}
