package s3test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold"
	"github.com/stokehold/stokehold/cmd/devstack"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/s3"
)

// A system owns its bucket from its first start; another
// is refused until it takes over, and then the first removes nothing there any more.
// While the endpoint is not declared to sync nothing leaves the disk.
func TestBucketsHaveOneOwner(t *testing.T) {
	ctx := t.Context()
	stack, err := devstack.Start(ctx, devstack.Options{Dir: t.TempDir(), FreePorts: true, WithoutUI: true})
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
	e := stack.Endpoints()
	mine := stokehold.Config{
		StateDir: t.TempDir(),
		NATS:     stokehold.NATS{URL: e.NATSURL, User: e.NATSUser, Password: e.NATSPassword},
		Temporal: stokehold.Temporal{Address: e.TemporalAddress, Namespace: e.Namespace},
		S3:       stokehold.S3{Endpoint: e.S3Endpoint, Region: e.S3Region, Bucket: e.S3Bucket, AccessKey: e.S3AccessKey, SecretKey: e.S3SecretKey, StorageClass: "STANDARD"},
	}
	connect := func(cfg stokehold.Config, opts ...stokehold.Option) (*stokehold.App, error) {
		app, err := stokehold.Connect(ctx, cfg, opts...)
		if err == nil {
			t.Cleanup(func() {
				if err := app.Close(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}
		return app, err
	}
	first, err := connect(mine)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Sweep(ctx); err != nil {
		t.Errorf("sweeping one's own bucket: %v", err)
	}

	schema := arrow.NewSchema([]arrow.Field{{Name: "id", Type: arrow.PrimitiveTypes.Int64}}, nil)
	w, err := first.Store.Writer(ctx, "d", schema, tiers.Fence{Run: "r", Stage: "s", Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	b.Field(0).(*array.Int64Builder).AppendValues([]int64{1, 2}, nil)
	rec := b.NewRecordBatch()
	defer rec.Release()
	if _, err := w.WriteAt(ctx, 0, rec); err != nil {
		t.Fatal(err)
	}
	evict := tiers.Migration{Dataset: "d", Evict: true}
	if _, err := first.Store.Move(ctx, evict, nil); !errors.Is(err, tiers.ErrNotDurable) {
		t.Errorf("evicting to an endpoint that does not sync: %v", err)
	}
	mine.S3.Syncs = true
	durable, err := connect(mine, stokehold.Maintaining())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := durable.Store.Move(ctx, evict, nil); err != nil {
		t.Errorf("evicting to one that does: %v", err)
	}

	other := mine
	other.StateDir = t.TempDir()
	other.NATS = stokehold.NATS{URL: natstest.Start(t).Connect().ConnectedUrl()}
	if _, err := connect(other); !errors.Is(err, tiers.ErrOwned) || !strings.Contains(err.Error(), "data take-over") {
		t.Errorf("another system on the bucket: %v", err)
	}
	desk, err := connect(other, stokehold.Maintaining())
	if err != nil {
		t.Fatal(err)
	}
	if err := desk.Store.TakeOverCold(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := connect(other); err != nil {
		t.Errorf("after taking over: %v", err)
	}
	if _, err := first.Sweep(ctx); !errors.Is(err, tiers.ErrOwned) {
		t.Errorf("sweeping what another has taken over: %v", err)
	}
	mine.StateDir = t.TempDir()
	if _, err := connect(mine); !errors.Is(err, tiers.ErrOwned) {
		t.Errorf("the first comes back: %v", err)
	}
	bad := other
	bad.S3.StorageClass, bad.S3.Addressing = "cold storage", "sideways"
	if _, err := connect(bad, stokehold.Maintaining()); !errors.Is(err, s3.ErrConfig) || !strings.Contains(err.Error(), "storage class") || !strings.Contains(err.Error(), "sideways") {
		t.Errorf("fields that are wrong: %v", err)
	}
}
