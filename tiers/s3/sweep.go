package s3

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/stokehold/stokehold/tiers"
)

const uploadsPerPage = 1000

// SweepPartial implements tiers.PartialSweeper. It aborts uploads in parts, and
// removes what probes have left and, in a bucket that keeps them, older versions of
// objects and marks of deletion; all if they are older than grace by the endpoint's
// clock. It needs a bucket of its own: it looks at all of it.
//
// MinIO lists only uploads begun since its start; those from before it expires
// itself, after 24 hours unless configured otherwise (api stale_uploads_expiry).
func (s *Store) SweepPartial(ctx context.Context, grace time.Duration) (int, error) {
	if grace < 0 {
		return 0, fmt.Errorf("s3: sweep: %w: grace of %s", ErrConfig, grace)
	}
	now, err := s.Now(ctx)
	if err != nil {
		return 0, err
	}
	// Times have whole seconds, and the Date may be off by half of one.
	before := now.Add(-grace).Add(time.Second)
	removed, err := s.sweepUploads(ctx, before)
	if err != nil {
		return removed, err
	}
	for o, err := range s.List(ctx, probePrefix) {
		if err != nil {
			return removed, err
		}
		// Never that of another process that probes now.
		if o.Modified.Before(before.Add(-probeTimeout)) {
			if err := s.Delete(ctx, o.Key); err != nil {
				return removed, err
			}
			removed++
		}
	}
	if !s.Guarantees().Versioned {
		return removed, nil
	}
	n, err := s.sweepVersions(ctx, before)
	return removed + n, err
}

func (s *Store) sweepUploads(ctx context.Context, before time.Time) (removed int, err error) {
	keyMarker, idMarker := "", ""
	for {
		page, err := s.client.ListMultipartUploads(ctx, s.Bucket, "", keyMarker, idMarker, "", uploadsPerPage)
		if err != nil {
			return removed, s.fail(ctx, "list uploads", "", err)
		}
		for _, u := range page.Uploads {
			if !u.Initiated.Before(before) {
				continue
			}
			if there, err := s.pending(ctx, u.Key, u.UploadID); err != nil {
				return removed, s.fail(ctx, "look at upload", u.Key, err)
			} else if !there {
				continue
			}
			err := s.client.AbortMultipartUpload(ctx, s.Bucket, u.Key, u.UploadID)
			if err != nil && minio.ToErrorResponse(err).Code != minio.NoSuchUpload { // which may be another sweeper's doing
				return removed, s.fail(ctx, "abort upload", u.Key, err)
			}
			removed++
		}
		if !page.IsTruncated || page.NextKeyMarker == keyMarker && page.NextUploadIDMarker == idMarker {
			return removed, nil
		}
		keyMarker, idMarker = page.NextKeyMarker, page.NextUploadIDMarker
	}
}

// pending reports whether an upload that is listed is there. MinIO goes on listing one that
// it has completed for a client that left before it heard of that, until it is restarted,
// and says each time that it has aborted it.
func (s *Store) pending(ctx context.Context, key, upload string) (bool, error) {
	_, err := s.client.ListObjectParts(ctx, s.Bucket, key, upload, 0, 1)
	if minio.ToErrorResponse(err).Code == minio.NoSuchUpload {
		return false, nil
	}
	return err == nil, err
}

// sweepVersions removes versions that are not the newest, and marks of deletion
// once nothing else of the key is left.
func (s *Store) sweepVersions(ctx context.Context, before time.Time) (removed int, err error) {
	remove := func(o minio.ObjectInfo) error {
		err := s.client.RemoveObject(ctx, s.Bucket, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID})
		if err = s.removed(ctx, o.Key, err); err == nil {
			removed++
		}
		return err
	}
	// Versions come by key, the newest first: one is out of use since the next came.
	var newer time.Time
	var mark *minio.ObjectInfo // the key's newest version, if that is a mark
	others := 0                // of the key, that stay
	flush := func() error {
		if mark == nil || others > 0 || !mark.LastModified.Before(before) {
			return nil
		}
		return remove(*mark)
	}
	key := ""
	for o := range s.client.ListObjectsIter(ctx, s.Bucket, minio.ListObjectsOptions{WithVersions: true, Recursive: true}) {
		if o.Err != nil {
			return removed, s.fail(ctx, "list versions", "", o.Err)
		}
		if o.Key != key {
			if err := flush(); err != nil {
				return removed, err
			}
			key, mark, others, newer = o.Key, nil, 0, o.LastModified
		}
		switch {
		case o.IsLatest && o.IsDeleteMarker:
			mark = &o
		case o.IsLatest || !newer.Before(before):
			others++
		default:
			if err := remove(o); err != nil {
				return removed, err
			}
		}
		newer = o.LastModified
	}
	if err := ctx.Err(); err != nil {
		return removed, s.fail(ctx, "list versions", "", err)
	}
	return removed, flush()
}

func (s *Store) removed(ctx context.Context, key string, err error) error {
	if err == nil {
		return nil
	}
	if err = s.fail(ctx, "remove version", key, err); errors.Is(err, tiers.ErrNotFound) {
		return nil
	}
	return err
}
