package miniotest_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/internal/minioserver"
	"github.com/stokehold/stokehold/internal/miniotest"
)

func TestServerAnswersAndStops(t *testing.T) {
	s := miniotest.Start(t)
	get := func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/minio/health/live", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		return res.Body.Close()
	}
	if err := get(); err != nil {
		t.Error(err)
	}
	s.Stop()
	s.Stop()
	if get() == nil {
		t.Error("a stopped server answers")
	}
}

func TestServerThatCannotStartSaysWhy(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "minio")
	if err := os.WriteFile(bin, []byte("#!/bin/sh\necho no disk here >&2; exit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := minioserver.Start(t.Context(), bin, minioserver.Options{Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "no disk here") {
		t.Errorf("got %v", err)
	}
}

func TestServerThatHangsIsKilled(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "minio")
	if err := os.WriteFile(bin, []byte("#!/bin/sh\necho waiting; exec sleep 600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := minioserver.Start(ctx, bin, minioserver.Options{Dir: t.TempDir()}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestNothingIsBuiltUnasked(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	if _, err := minioserver.Path(); !errors.Is(err, minioserver.ErrNotBuilt) {
		t.Errorf("got %v", err)
	}
}
