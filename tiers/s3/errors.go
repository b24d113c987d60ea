package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/minio/minio-go/v7"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

var (
	// ErrUnavailable means the endpoint could not be reached, or gave up with an error
	// of its own, after all retries. Trying again later may help.
	ErrUnavailable = errors.New("S3 endpoint unavailable")
	// ErrAccess means the endpoint refused the credentials or the permission, or there
	// are no credentials.
	ErrAccess = errors.New("S3 access denied")
	// ErrClock means this machine's clock or the endpoint's is wrong: requests are
	// signed with the time.
	ErrClock = errors.New("clock differs from the S3 endpoint's")
	// ErrBucket means there is no such bucket.
	ErrBucket = errors.New("no such S3 bucket")
	// ErrTLS means the endpoint's certificate is not trusted, or it does not trust ours.
	ErrTLS = errors.New("TLS with the S3 endpoint failed")
	// ErrConfig means the configuration cannot be used.
	ErrConfig = errors.New("bad S3 configuration")
)

var errStalled = errors.New("no progress within the stall timeout")

// fail says what happened in one line, with a sentinel for what can be done. Only
// ctx says whether the caller gave up: timeouts of the connection look alike.
func (s *Store) fail(ctx context.Context, op, key string, err error) error {
	what := s.Bucket
	if key != "" {
		what = s.URI(key)
	}
	failed := func(kind error, hint string) error {
		// Not wrapped: a timeout of the connection would pass for the caller's.
		return fmt.Errorf("s3: %s %s: %w: %s: %v (%s)", op, what, kind, s.Endpoint, err, hint) //nolint:errorlint // see above
	}
	var res minio.ErrorResponse
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("s3: %s %s: %w", op, what, ctx.Err())
	case isTLS(err):
		return failed(ErrTLS, "name the authority's certificate in CAFile, or the client's in ClientCert and ClientKey")
	case !errors.As(err, &res):
		return failed(ErrUnavailable, "is it running, and is the address right?")
	}
	said := func(kind error, hint string) error {
		return fmt.Errorf("s3: %s %s: %w: %s says %s (%s)", op, what, kind, s.Endpoint, res.Code, hint)
	}
	switch res.Code {
	case minio.NoSuchKey, minio.NoSuchVersion:
		return fmt.Errorf("s3: %s %s: %w", op, what, tiers.ErrNotFound)
	case minio.NoSuchBucket:
		return fmt.Errorf("s3: %s %s: %w: %s at %s (create it, or let CreateBucket do so)", op, what, ErrBucket, s.Bucket, s.Endpoint)
	case "RequestTimeTooSkewed", "RequestExpired":
		return said(ErrClock, "set both clocks by NTP; they may differ by 15 minutes")
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidTokenId", "InvalidToken", "ExpiredToken", "ExpiredTokenException":
		return said(ErrAccess, "check access key, secret key, region, and whether they have expired")
	case "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "BadDigest", "InvalidDigest":
		return said(arrowio.ErrCorrupt, "what arrived is not what the key or the checksum says")
	}
	switch {
	case res.StatusCode == http.StatusUnauthorized, res.StatusCode == http.StatusForbidden:
		return said(ErrAccess, "check the credentials and their policy; docs/S3.md lists the least")
	case res.StatusCode == http.StatusServiceUnavailable, res.StatusCode == http.StatusTooManyRequests:
		return said(ErrUnavailable, "it is overloaded: lower the concurrency or try later")
	case res.StatusCode >= http.StatusInternalServerError:
		return fmt.Errorf("s3: %s %s: %w: %s says %w", op, what, ErrUnavailable, s.Endpoint, err)
	}
	return fmt.Errorf("s3: %s %s: %s says %s: %w", op, what, s.Endpoint, res.Code, err)
}

func isTLS(err error) bool {
	var (
		verify  *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		record  tls.RecordHeaderError
		alert   *net.OpError
	)
	if errors.As(err, &alert) && alert.Op == "remote error" { // how crypto/tls reports what the other side refuses
		return true
	}
	return errors.As(err, &verify) || errors.As(err, &unknown) || errors.As(err, &name) || errors.As(err, &record)
}
