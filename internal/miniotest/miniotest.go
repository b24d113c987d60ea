// Package miniotest runs a real MinIO server inside a test. Where none is built
// those tests are skipped and say so, unless $STOKEHOLD_REQUIRE_MINIO is set, which
// has one built and turns the skip into a failure.
package miniotest

import (
	"os"
	"testing"

	"github.com/stokehold/stokehold/internal/minioserver"
)

// RequireEnv is the variable that, if not empty, has a missing server built, which
// takes minutes, and makes it a failure if that cannot be done.
const RequireEnv = "STOKEHOLD_REQUIRE_MINIO"

// Option changes how a server runs.
type Option func(*minioserver.Options)

// Env sets KEY=VALUE in the server's environment.
func Env(pairs ...string) Option {
	return func(o *minioserver.Options) { o.Env = append(o.Env, pairs...) }
}

// Certs has the server speak TLS with what the directory holds.
func Certs(dir string) Option {
	return func(o *minioserver.Options) { o.Certs = dir }
}

// Start runs a server until the test ends; if the test failed, its output ends
// with the server's.
func Start(tb testing.TB, options ...Option) *minioserver.Server {
	tb.Helper()
	opts := minioserver.Options{Dir: tb.TempDir()}
	for _, o := range options {
		o(&opts)
	}
	s, err := minioserver.Start(tb.Context(), binary(tb), opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		s.Stop()
		if tb.Failed() {
			tb.Logf("MinIO printed:\n%s", s.Log())
		}
	})
	return s
}

func binary(tb testing.TB) string {
	tb.Helper()
	if os.Getenv(RequireEnv) != "" {
		bin, err := minioserver.Build(tb.Context())
		if err != nil {
			tb.Fatalf("miniotest: $%s is set: %v", RequireEnv, err)
		}
		return bin
	}
	bin, err := minioserver.Path()
	if err != nil {
		tb.Skipf("miniotest: SKIPPED, this test proves nothing here: %v", err)
	}
	return bin
}
