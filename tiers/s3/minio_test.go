package s3_test

import (
	"testing"

	"github.com/stokehold/stokehold/internal/minioserver"
	"github.com/stokehold/stokehold/internal/miniotest"
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
