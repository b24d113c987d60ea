// Package s3test proves the library's S3 driver against the embedded gateway,
// which the library itself must not depend on.
package s3test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/cmd/devstack"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/s3"
	"github.com/stokehold/stokehold/tiers/tierstest"
)

func start(t *testing.T) devstack.Endpoints {
	t.Helper()
	stack, err := devstack.Start(t.Context(), devstack.Options{Dir: t.TempDir(), FreePorts: true, WithoutTemporal: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := stack.Close(ctx); err != nil {
			t.Errorf("close the stack: %v", err)
		}
	})
	return stack.Endpoints()
}

func config(e devstack.Endpoints) s3.Config {
	return s3.Config{
		Endpoint: e.S3Endpoint, Region: e.S3Region, Bucket: devstack.Bucket,
		AccessKey: e.S3AccessKey, SecretKey: e.S3SecretKey.Reveal(),
	}
}

func TestDriver(t *testing.T) {
	e := start(t)
	s, err := s3.Open(t.Context(), config(e))
	if err != nil {
		t.Fatal(err)
	}
	g := s.Guarantees()
	t.Logf("%+v", g)
	if g.Probed.IsZero() || !g.ReadAfterWrite || !g.ListAfterWrite || g.Syncs || len(g.Notes) > 0 {
		t.Errorf("the probe found %+v", g)
	}
	tierstest.RunObjectStore(t, func(*testing.T) tiers.ObjectStore { return s })
	t.Run("in parts", func(t *testing.T) {
		cfg := config(e)
		cfg.PartBytes = 5 << 20
		parts, err := s3.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer parts.Close()
		tierstest.RunObjectStore(t, func(*testing.T) tiers.ObjectStore { return parts })
	})
	if s.Syncs() {
		t.Error("the gateway does not sync, and the driver says it does")
	}

	t.Run("bucket missing", func(t *testing.T) {
		cfg := config(e)
		cfg.Bucket = "other"
		if _, err := s3.Open(t.Context(), cfg); !errors.Is(err, s3.ErrBucket) {
			t.Errorf("got %v", err)
		}
		cfg.CreateBucket = true
		made, err := s3.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := made.Put(t.Context(), "k", []byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := s3.Open(t.Context(), cfg); err != nil {
			t.Errorf("again: %v", err)
		}
	})
	t.Run("wrong secret", func(t *testing.T) {
		cfg := config(e)
		cfg.SecretKey = "wrong"
		if _, err := s3.Open(t.Context(), cfg); !errors.Is(err, s3.ErrAccess) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a batch moves", func(t *testing.T) { moves(t, e, s) })
}

// moves takes one batch from shared memory to the gateway and back.
func moves(t *testing.T, e devstack.Endpoints, cold tiers.ObjectStore) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	nc, err := nats.Connect(e.NATSURL, nats.UserInfo(e.NATSUser, e.NATSPassword.Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	bus, err := events.Open(ctx, events.Config{Conn: nc, Judge: events.AllowAll()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := bus.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	store, err := tiers.Open(ctx, tiers.Config{Conn: nc, Bus: bus, Host: &shm.Host{}, Warm: t.TempDir(), Cold: cold})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	driver, ok := store.Driver(arrowio.Cold)
	if !ok {
		t.Fatal("no driver of the cold tier")
	}
	tierstest.RunDriver(t, func(*testing.T) tierstest.Subject {
		return tierstest.Subject{Driver: driver, Tier: arrowio.Cold} // what is on the gateway's disk is not ours to damage
	})
	schema := arrow.NewSchema([]arrow.Field{{Name: "delay", Type: arrow.PrimitiveTypes.Float64, Nullable: true}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	b.Field(0).(*array.Float64Builder).AppendValues([]float64{1.5, 0, -3}, []bool{true, false, true})
	rec := b.NewRecordBatch()
	defer rec.Release()
	w, err := store.Writer(ctx, "flights/labels", schema, tiers.Fence{Run: "r", Stage: "ingest", Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(ctx, 0, rec); err != nil {
		t.Fatal(err)
	}
	st, err := store.Move(ctx, tiers.Migration{Dataset: "flights/labels"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	far, err := store.OpenBatch(ctx, arrowio.Ref{Dataset: "flights/labels", Rows: 3, Locations: []arrowio.Location{st.Object}}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Release()
	if far.Tier != arrowio.Cold || !array.RecordEqual(rec, far.Record) {
		t.Errorf("from %s: %v", far.Tier, far.Record)
	}
	if _, err := store.Move(ctx, tiers.Migration{Dataset: "flights/labels", Evict: true}, nil); !errors.Is(err, tiers.ErrNotDurable) {
		t.Errorf("the gateway as the sole copy: %v", err)
	}
}
