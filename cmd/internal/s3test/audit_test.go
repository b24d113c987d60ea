package s3test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/governance/audit/proof"
	"github.com/stokehold/stokehold/tiers/s3"
)

// Checkpoints go to a bucket of their own with a credential of their own, and a log
// verifies against what is there.
func TestCheckpointsInABucketOfTheirOwn(t *testing.T) {
	e, ctx := start(t), t.Context()
	bucket := config(e)
	bucket.Bucket, bucket.CreateBucket = "checkpoints", true
	made, err := s3.Open(ctx, bucket)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	cfg := stokehold.Config{
		StateDir: t.TempDir(),
		NATS:     stokehold.NATS{URL: e.NATSURL, User: e.NATSUser, Password: e.NATSPassword},
		Audit:    stokehold.Audit{S3: stokehold.S3{Endpoint: e.S3Endpoint, Region: e.S3Region, Bucket: bucket.Bucket, AccessKey: e.S3AccessKey, SecretKey: e.S3SecretKey}},
	}
	nc, err := nats.Connect(e.NATSURL, nats.UserInfo(e.NATSUser, e.NATSPassword.Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	log, err := audit.Open(ctx, audit.Config{Conn: nc})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close(ctx) }()

	auditor, err := stokehold.OpenAuditor(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer auditor.Close()
	if auditor.Keys != nil {
		t.Error("looking at a log made a key")
	}
	if rec, err := audit.Latest(ctx, auditor.Store, nil); rec != nil || err != nil {
		t.Errorf("an empty bucket: %v, %v", rec, err)
	}
	seq, err := auditor.Sequencer(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		d := governance.Decision{ID: strings.Repeat("a", 31) + string(rune('0'+i)), Time: time.Now(), Point: events.OnPublish, Action: events.Allow, EventID: "e", Type: "t", Source: "s"}
		if err := log.Append(ctx, []governance.Decision{d}); err != nil {
			t.Fatal(err)
		}
		if _, err := seq.Advance(ctx, true); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := proof.ReadKeyFile(filepath.Join(cfg.StateDir, "checkpoint.key"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := auditor.Log.Verify(ctx, audit.VerifyConfig{Store: auditor.Store, Keys: keys})
	if err != nil || res.Err() != nil || res.Checkpoints != 3 || res.Entries != 3 {
		t.Errorf("%+v, %v", res, err)
	}
	p, err := auditor.Log.Prove(ctx, strings.Repeat("a", 31)+"1", auditor.Store, keys)
	if err != nil || p.Index != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	names, err := auditor.Store.Names(ctx)
	if err != nil || len(names) != 3 {
		t.Fatalf("%v, %v", names, err)
	}
	if _, err := auditor.Store.Get(ctx, strings.Replace(names[0], "-", "-f", 1)); !errors.Is(err, audit.ErrNoRecord) {
		t.Errorf("a record that is not there: %v", err)
	}
	if err := made.Delete(ctx, "audit/checkpoints/"+names[1]); err != nil {
		t.Fatal(err)
	}
	res, err = auditor.Log.Verify(ctx, audit.VerifyConfig{Store: auditor.Store, Keys: keys})
	if err != nil || !errors.Is(res.Err(), audit.ErrTampered) || res.Findings[0].Kind != audit.Checkpoint {
		t.Errorf("with a record gone: %+v, %v", res, err)
	}

	cfg.Audit.S3.SecretKey = "wrong"
	if _, err := stokehold.OpenAuditor(ctx, cfg); !errors.Is(err, s3.ErrAccess) {
		t.Errorf("another credential: %v", err)
	}
	cfg.Audit.Dir = "too"
	if _, err := stokehold.OpenAuditor(ctx, cfg); err == nil || !strings.Contains(err.Error(), "choose one") {
		t.Errorf("two places: %v", err)
	}
	if _, err := os.Stat("too"); err == nil {
		t.Error("a refused configuration made a directory")
	}
}
