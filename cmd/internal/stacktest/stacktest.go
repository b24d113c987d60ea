// Package stacktest starts development stacks for tests.
package stacktest

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stokehold/stokehold/cmd/devstack"
)

// closeTimeout bounds the stop of a stack at the end of its test.
const closeTimeout = 20 * time.Second

// Option changes the options of a stack before it starts.
type Option func(*devstack.Options)

// WithoutTemporal leaves Temporal and its UI out.
func WithoutTemporal(o *devstack.Options) { o.WithoutTemporal = true }

// WithoutUI leaves the Temporal UI out.
func WithoutUI(o *devstack.Options) { o.WithoutUI = true }

// WithoutS3 leaves the S3 gateway out. Only one stack of a process may have it.
func WithoutS3(o *devstack.Options) { o.WithoutS3 = true }

// In uses a state directory other than one of the test's own.
func In(dir string) Option { return func(o *devstack.Options) { o.Dir = dir } }

// Start starts a stack on free ports in a directory of the test and closes it when the test ends. The test fails
// at once where the stack does not start, and fails where a server stops on its own or does not stop cleanly.
func Start(t testing.TB, options ...Option) *devstack.Stack {
	t.Helper()
	o := devstack.Options{FreePorts: true}
	for _, apply := range options {
		apply(&o)
	}
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "state")
	}
	s, err := devstack.Start(t.Context(), o)
	if err != nil {
		t.Fatalf("start development stack: %v", err)
	}
	t.Cleanup(func() { Close(t, s) })
	return s
}

// Close stops the stack before the end of its test.
func Close(t testing.TB, s *devstack.Stack) {
	t.Helper()
	select {
	case <-s.Failed():
		t.Errorf("development stack: %v", s.Err())
	default:
	}
	// The test's own context has ended by the time its cleanup runs.
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Errorf("close development stack: %v", err)
	}
}
