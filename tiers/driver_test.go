package tiers_test

import (
	"net/url"
	"os"
	"testing"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/internal/miniotest"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/s3"
	"github.com/stokehold/stokehold/tiers/tierstest"
)

// flipFile changes a byte in the middle of the file that a location names.
func flipFile(t *testing.T, loc arrowio.Location) {
	t.Helper()
	u, err := url.Parse(loc.URI)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(u.Path)
	if err == nil {
		raw[len(raw)/2] ^= 1
		err = os.WriteFile(u.Path, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestDrivers: all tiers pass one suite, the cold one with both codecs and on both
// kinds of object store. The embedded gateway's run is in cmd/internal/s3test.
func TestDrivers(t *testing.T) {
	for _, c := range []struct {
		name, codec string
		tier        arrowio.Tier
		damage      func(*testing.T, arrowio.Location)
	}{
		{"hot", "", arrowio.Hot, nil}, // sealed: nobody else can write there
		{"warm", "", arrowio.Warm, flipFile},
		{"cold, Parquet", tiers.CodecParquet, arrowio.Cold, flipFile},
		{"cold, Arrow", tiers.CodecArrow, arrowio.Cold, flipFile},
	} {
		t.Run(c.name, func(t *testing.T) {
			tierstest.RunDriver(t, func(t *testing.T) tierstest.Subject {
				t.Helper()
				w := newWorld(t)
				w.set = func(cfg *tiers.Config) { cfg.ColdCodec = c.codec }
				s, _ := w.store(8 << 20)
				d, ok := s.Driver(c.tier)
				if !ok {
					t.Fatalf("no driver of the %s tier", c.tier)
				}
				return tierstest.Subject{Driver: d, Tier: c.tier, Damage: c.damage}
			})
		})
	}
}

func TestColdDriverOnMinIO(t *testing.T) {
	m := miniotest.Start(t)
	objects, err := s3.Open(t.Context(), s3.Config{
		Endpoint: m.URL, Bucket: "driver", AccessKey: m.AccessKey, SecretKey: m.SecretKey, CreateBucket: true, PartBytes: 5 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(objects.Close)
	w := newWorld(t) // one catalog, which the bucket belongs to
	for _, codec := range []string{tiers.CodecParquet, tiers.CodecArrow} {
		t.Run(codec, func(t *testing.T) {
			w.wrap = func(tiers.ObjectStore) tiers.ObjectStore { return objects }
			w.set = func(cfg *tiers.Config) { cfg.ColdCodec = codec }
			s, _ := w.store(0)
			d, ok := s.Driver(arrowio.Cold)
			if !ok {
				t.Fatal("no driver of the cold tier")
			}
			tierstest.RunDriver(t, func(*testing.T) tierstest.Subject {
				// Damage: the bytes of a server's disk are not ours to change.
				return tierstest.Subject{Driver: d, Tier: arrowio.Cold}
			})
		})
	}
}

func TestStoresHaveTheirTiers(t *testing.T) {
	w := newWorld(t)
	w.wrap = func(tiers.ObjectStore) tiers.ObjectStore { return nil }
	s, _ := w.store(0)
	for _, tier := range []arrowio.Tier{arrowio.Hot, arrowio.Cold, "lukewarm"} {
		if _, ok := s.Driver(tier); ok {
			t.Errorf("there is a driver of the tier %s", tier)
		}
	}
	if _, ok := s.Driver(arrowio.Warm); !ok {
		t.Error("there is no driver of the warm tier")
	}
}
