package s3

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

const (
	// readBytes is what must arrive within StallTimeout; it is checksummed while it
	// is in the processor's cache.
	readBytes = 1 << 20

	retryUnit = 50 * time.Millisecond
	retryCap  = time.Second
)

// Get implements tiers.ObjectStore. What is returned has the checksum that the
// endpoint or, for an endpoint that keeps none, the object's metadata names;
// otherwise the error wraps arrowio.ErrCorrupt. A body that breaks off or stalls is
// continued where it stopped.
func (s *Store) Get(ctx context.Context, key string) ([]byte, error) {
	if err := s.check("get", key); err != nil {
		return nil, err
	}
	var body []byte
	var err error
	for range 2 { // what was damaged on its way is whole the second time
		d := download{Store: s, key: key}
		if body, err = d.whole(ctx); !errors.Is(err, arrowio.ErrCorrupt) {
			break
		}
	}
	if err != nil {
		return nil, s.fallible(ctx, "get", key, err)
	}
	return body, nil
}

// Fill implements tiers.Filler. A body that breaks off or stalls is continued where
// it stopped.
func (s *Store) Fill(ctx context.Context, key string, dst []byte, sum hash.Hash) (int, error) {
	if err := s.check("get", key); err != nil {
		return 0, err
	}
	d := download{Store: s, key: key}
	n, err := d.into(ctx, dst, sum)
	if err != nil {
		return n, s.fallible(ctx, "get", key, err)
	}
	return n, nil
}

// ReadRange implements tiers.RangeReader.
func (s *Store) ReadRange(ctx context.Context, key string, offset int64, dst []byte) (int, error) {
	if err := s.check("read", key); err != nil {
		return 0, err
	}
	if offset < 0 {
		return 0, fmt.Errorf("s3: read %s: %w: offset %d", s.URI(key), tiers.ErrName, offset)
	}
	if len(dst) == 0 {
		return 0, nil
	}
	d := download{Store: s, key: key, base: offset, end: offset + int64(len(dst)), part: true}
	n, err := d.fill(ctx, dst, nil)
	if errors.Is(err, io.EOF) {
		return n, io.EOF
	}
	if err != nil {
		return n, s.fallible(ctx, "read", key, err)
	}
	return n, nil
}

// fallible is fail for errors that may be of our own making.
func (s *Store) fallible(ctx context.Context, op, key string, err error) error {
	if errors.Is(err, arrowio.ErrCorrupt) || errors.Is(err, tiers.ErrTooLarge) {
		return fmt.Errorf("s3: %s %s: %w", op, s.URI(key), err)
	}
	return s.fail(ctx, op, key, err)
}

// download reads an object or a range of it, in as many requests as it takes.
type download struct {
	*Store
	key  string
	base int64 // offset of the first byte
	end  int64 // behind the last, once it is known
	part bool  // of the object, from the first request on
	etag string
}

// whole reads the object and verifies it.
func (d *download) whole(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	res, err := d.open(ctx, 0)
	if err != nil {
		return nil, err
	}
	size, err := res.size(d.MaxObjectBytes)
	if err != nil {
		return nil, err
	}
	var sum hash.Hash
	want, name := "", ""
	encode := func(h hash.Hash) string { return base64.StdEncoding.EncodeToString(h.Sum(nil)) }
	switch {
	// One of a composite type is of the parts, not of the object.
	case res.info.ChecksumCRC64NVME != "" && res.info.ChecksumMode != "COMPOSITE":
		sum, want, name = minio.ChecksumCRC64NVME.Hasher(), res.info.ChecksumCRC64NVME, crcAlgorithmCRC
	case res.info.UserMetadata[sumHeader] != "":
		sum, want, name = sha256.New(), res.info.UserMetadata[sumHeader], "SHA-256"
		encode = func(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
	}
	d.end = size
	body := make([]byte, size)
	if _, err := d.continued(ctx, res, body, sum); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if sum != nil {
		if got := encode(sum); got != want {
			return nil, fmt.Errorf("%w: %s is %s, %s was put", arrowio.ErrCorrupt, name, got, want)
		}
	}
	return body, nil
}

// into reads the object to the front of dst.
func (d *download) into(ctx context.Context, dst []byte, sum hash.Hash) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	res, err := d.open(ctx, 0)
	if err != nil {
		return 0, err
	}
	size, err := res.size(int64(len(dst)))
	if err != nil {
		return 0, err
	}
	d.end = size
	n, err := d.continued(ctx, res, dst[:size], sum)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (d *download) fill(ctx context.Context, dst []byte, sum hash.Hash) (int, error) {
	res, err := d.open(ctx, 0)
	if err != nil {
		if isStatus(err, http.StatusRequestedRangeNotSatisfiable) {
			return 0, io.EOF
		}
		return 0, err
	}
	short := false
	if n := res.info.Size; n >= 0 && n < int64(len(dst)) { // the object ends before
		dst, short, d.end = dst[:n], true, d.base+n
	}
	n, err := d.continued(ctx, res, dst, sum)
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// response is an open answer. Reading it does not outlast the stall timeout.
type response struct {
	body  io.ReadCloser
	info  minio.ObjectInfo
	ctx   context.Context //nolint:containedctx // of this one answer
	stop  context.CancelCauseFunc
	timer *time.Timer
}

// size is the object's; a response without one, or with one above most, is closed.
func (r *response) size(most int64) (int64, error) {
	n := r.info.Size
	switch {
	case n < 0:
		r.close()
		return 0, errors.New("endpoint does not say how large the object is")
	case n > most:
		r.close()
		return 0, fmt.Errorf("%d bytes, at most %d: %w", n, most, tiers.ErrTooLarge)
	}
	return n, nil
}

func (r *response) close() {
	r.timer.Stop()
	r.stop(nil)
	_ = r.body.Close() // only read
}

// open asks for what is left after done bytes.
func (d *download) open(ctx context.Context, done int64) (*response, error) {
	var o minio.GetObjectOptions
	o.ServerSideEncryption = d.customer
	o.Set(crcModeHeader, "ENABLED")
	ranged := d.part || done > 0
	if ranged {
		o.Set("Range", fmt.Sprintf("bytes=%d-%d", d.base+done, d.end-1))
	}
	if done > 0 && d.etag != "" {
		if err := o.SetMatchETag(d.etag); err != nil {
			return nil, err
		}
	}
	ctx, stop := context.WithCancelCause(ctx)
	body, info, header, err := d.client.GetObject(ctx, d.Bucket, d.key, o)
	if err != nil {
		stop(nil)
		return nil, err
	}
	if ranged && header.Get("Content-Range") == "" {
		stop(nil)
		return nil, errors.Join(errors.New("endpoint does not serve ranges"), body.Close())
	}
	d.etag = info.ETag
	timer := time.AfterFunc(d.StallTimeout, func() { stop(errStalled) })
	return &response{body: body, info: info, ctx: ctx, stop: stop, timer: timer}, nil
}

// continued reads dst from res, and from further requests where it breaks off.
func (d *download) continued(ctx context.Context, res *response, dst []byte, sum hash.Hash) (int, error) {
	done := 0
	for try := 1; ; try++ {
		n, err := d.read(res, dst[done:], sum)
		res.close()
		done += n
		if err == nil {
			return done, nil
		}
		if ctx.Err() != nil {
			return done, ctx.Err()
		}
		if n >= readBytes {
			try = 1 // it moves
		}
		if try >= d.Retries {
			return done, fmt.Errorf("body broke off after %d of %d bytes: %w", done, len(dst), err)
		}
		if err := backoff(ctx, try); err != nil {
			return done, err
		}
		if res, err = d.open(ctx, int64(done)); err != nil {
			return done, err
		}
	}
}

// read fills dst. What need not be summed is taken in pieces as large as the kernel
// has them, the rest in pieces that stay in the processor's cache until they are.
func (d *download) read(res *response, dst []byte, sum hash.Hash) (int, error) {
	done, since := 0, 0 // since the timer was set
	for done < len(dst) {
		end := len(dst)
		if sum != nil {
			end = min(done+readBytes, end)
		}
		n, err := res.body.Read(dst[done:end])
		if sum != nil {
			_, _ = sum.Write(dst[done : done+n]) // never fails
		}
		done += n
		if err != nil && done < len(dst) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if cause := context.Cause(res.ctx); errors.Is(cause, errStalled) {
				err = fmt.Errorf("%w of %s", errStalled, d.StallTimeout)
			}
			return done, err
		}
		if since += n; since >= readBytes {
			res.timer.Reset(d.StallTimeout)
			since = 0
		}
	}
	return done, nil
}

// backoff waits up to a doubling time, all of it random: clients that failed
// together do not come back together.
func backoff(ctx context.Context, try int) error {
	most := min(retryUnit<<min(try-1, 10), retryCap)
	t := time.NewTimer(time.Duration(rand.Int64N(int64(most))))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
