package audit_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/internal/natstest"
)

func TestRetentionHasAFloor(t *testing.T) {
	ctx := context.Background()
	srv := natstest.Start(t)
	nc := srv.Connect()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	age := func() time.Duration {
		t.Helper()
		s, err := js.Stream(ctx, stream)
		if err != nil {
			t.Fatal(err)
		}
		return s.CachedInfo().Config.MaxAge
	}
	if _, err := audit.Open(ctx, audit.Config{Conn: nc, MaxAge: audit.RetentionFloor - time.Second}); !errors.Is(err, audit.ErrRetention) {
		t.Fatalf("below the floor: %v", err)
	}
	if _, err := js.Stream(ctx, stream); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Fatalf("a refused configuration made a stream: %v", err)
	}
	// What an earlier version made is raised, and no longer drops the oldest when full.
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{
		Name: stream, Subjects: []string{"stokehold.decision.*"}, MaxAge: 180 * 24 * time.Hour, MaxBytes: 1 << 30, DenyDelete: true, DenyPurge: true,
	}); err != nil {
		t.Fatal(err)
	}
	open(t, audit.Config{Conn: nc})
	if got := age(); got != audit.RetentionFloor {
		t.Errorf("MaxAge is %s", got)
	}
	if s, err := js.Stream(ctx, stream); err != nil || s.CachedInfo().Config.Discard != jetstream.DiscardNew || s.CachedInfo().Config.MaxBytes != -1 {
		t.Errorf("config %+v, %v", s.CachedInfo().Config, err)
	}
	open(t, audit.Config{Conn: nc, MaxAge: 2 * audit.RetentionFloor})
	open(t, audit.Config{Conn: nc}) // another process, that says nothing of it
	if got := age(); got != 2*audit.RetentionFloor {
		t.Errorf("MaxAge is %s", got)
	}
	_, err = audit.Open(ctx, audit.Config{Conn: nc, MaxAge: audit.RetentionFloor})
	if !errors.Is(err, audit.ErrRetention) || !strings.Contains(err.Error(), "not lowered") {
		t.Errorf("lowered: %v", err)
	}
}
