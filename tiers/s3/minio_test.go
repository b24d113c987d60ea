package s3_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/internal/minioserver"
	"github.com/stokehold/stokehold/internal/miniotest"
	"github.com/stokehold/stokehold/internal/smalldisk"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/s3"
	"github.com/stokehold/stokehold/tiers/tierstest"
)

// onMinIO is a configuration for a running server, with the smallest parts.
func onMinIO(m *minioserver.Server, bucket string) s3.Config {
	return s3.Config{
		Endpoint: m.URL, Bucket: bucket, AccessKey: m.AccessKey, SecretKey: m.SecretKey,
		CreateBucket: true, PartBytes: 5 << 20,
	}
}

func open(t *testing.T, cfg s3.Config) *s3.Store {
	t.Helper()
	s, err := s3.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestConformanceOnMinIO(t *testing.T) {
	m := miniotest.Start(t)
	for name, cfg := range map[string]s3.Config{
		"in parts": onMinIO(m, "parts"),
		"unprobed": func() s3.Config { c := onMinIO(m, "unprobed"); c.NoProbe = true; return c }(),
		"whole":    func() s3.Config { c := onMinIO(m, "whole"); c.PartBytes = 0; return c }(),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, cfg)
			t.Logf("%+v", s.Guarantees())
			tierstest.RunObjectStore(t, func(*testing.T) tiers.ObjectStore { return s })
		})
	}
}

func TestMissingBucketOnMinIO(t *testing.T) {
	cfg := onMinIO(miniotest.Start(t), "missing")
	cfg.CreateBucket = false
	if _, err := s3.Open(t.Context(), cfg); !errors.Is(err, s3.ErrBucket) || !strings.Contains(err.Error(), "CreateBucket") {
		t.Errorf("got %v, want ErrBucket", err)
	}
}

// A server whose disk is full refuses what is put, keeps what it has, and takes more
// once there is room.
func TestFullDiskOfMinIO(t *testing.T) {
	dir := t.TempDir()
	smalldisk.Mount(t, dir, 64<<20) // until after the server has stopped
	cfg := onMinIO(miniotest.Start(t, func(o *minioserver.Options) { o.Dir = dir }), "full")
	cfg.Retries = 1
	s := open(t, cfg)
	body := make([]byte, 12<<20) // three parts
	n := 0
	var err error
	for ; n < 10 && err == nil; n++ {
		body[0] = byte(n)
		err = s.Put(t.Context(), strconv.Itoa(n), body)
	}
	if n--; n == 0 || !errors.Is(err, s3.ErrUnavailable) || !strings.Contains(err.Error(), "no space left") && !strings.Contains(err.Error(), "minimum free drive threshold") {
		t.Fatalf("after %d objects: %v, want ErrUnavailable", n, err)
	}
	if got, err := s.Get(t.Context(), "0"); err != nil || len(got) != len(body) || got[0] != 0 {
		t.Errorf("the first object: %d bytes, %v", len(got), err)
	}
	if left, err := s.SweepPartial(t.Context(), 0); err != nil || left != 0 {
		t.Errorf("uploads left behind: %d, %v", left, err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=128m"); err != nil {
		t.Fatal(err)
	}
	// The server asks its drive for the room every now and then.
	for begun := time.Now(); ; {
		err := s.Put(t.Context(), "again", body)
		if err == nil {
			break
		}
		if !errors.Is(err, s3.ErrUnavailable) || time.Since(begun) > 30*time.Second {
			t.Fatalf("with room again: %v", err)
		}
	}
}
