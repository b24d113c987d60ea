package bundle_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/bundle"
	"github.com/stokehold/stokehold/internal/natstest"
)

func store(t testing.TB, nc *nats.Conn) *bundle.Store {
	t.Helper()
	s, err := bundle.NewStore(bundle.StoreConfig{Conn: nc})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// office applies bundles as one person does.
type office struct {
	store *bundle.Store
	key   *bundle.SigningKey
	trust *bundle.Trust
	log   *governance.MemoryLog
}

func newOffice(t testing.TB, nc *nats.Conn) *office {
	k := key(t, "alice")
	return &office{store: store(t, nc), key: k, trust: trust(t, k), log: &governance.MemoryLog{}}
}

func (o *office) apply(ctx context.Context, b *bundle.Bundle, force bool) (uint64, error) {
	_, over, err := bundle.Current(ctx, o.store, o.trust)
	if err != nil && !errors.Is(err, bundle.ErrNotFound) && over == 0 {
		return 0, err
	}
	return bundle.Apply(ctx, bundle.Applying{Store: o.store, Trust: o.trust, Log: o.log, Force: force, Over: over}, b)
}

func (o *office) must(t testing.TB, d bundle.Draft, force bool) *bundle.Bundle {
	t.Helper()
	b := create(t, d, o.key)
	if _, err := o.apply(t.Context(), b, force); err != nil {
		t.Fatal(err)
	}
	return b
}

// raw writes to the bucket what Apply would not.
func (o *office) raw(t testing.TB, nc *nats.Conn, value []byte) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), "stokehold_policies")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), bundle.DefaultName, value); err != nil {
		t.Fatal(err)
	}
}

func TestApplyKeepsTheOrder(t *testing.T) {
	o := newOffice(t, natstest.Start(t).Connect())
	ctx := t.Context()
	if _, _, err := bundle.Current(ctx, o.store, o.trust); !errors.Is(err, bundle.ErrNotFound) {
		t.Fatalf("before any: %v", err)
	}
	o.must(t, draft(3), false)
	o.must(t, draft(5), false)
	for name, d := range map[string]bundle.Draft{
		"an earlier version":    draft(4),
		"another of that one":   draft(5, policy("other", "batch.published", "b")),
		"two epochs on":         {Position: bundle.Position{Epoch: 2, Version: 9}, Created: created, Author: "alice", Reason: "why not", Sources: draft(1).Sources},
		"the next, not forced":  {Position: bundle.Position{Epoch: 1, Version: 3}, Created: created, Author: "alice", Reason: "a mistake", Sources: draft(1).Sources},
		"an earlier one forced": draft(4),
	} {
		var re *bundle.RollbackError
		if _, err := o.apply(ctx, create(t, d, o.key), name == "an earlier one forced"); !errors.As(err, &re) || !errors.Is(err, bundle.ErrRollback) || re.Have.Version != 5 {
			t.Errorf("%s: %v", name, err)
		}
	}
	back := o.must(t, bundle.Draft{Position: bundle.Position{Epoch: 1, Version: 3}, Created: created, Author: "alice", Reason: "version 5 denies too much", Sources: draft(1).Sources}, true)
	cur, rev, err := bundle.Current(ctx, o.store, o.trust)
	if err != nil || cur.Digest != back.Digest || rev != 3 {
		t.Errorf("revision %d, %v", rev, err)
	}
	// What was forced away does not come back by itself.
	if _, err := o.apply(ctx, create(t, draft(6), o.key), false); !errors.Is(err, bundle.ErrRollback) {
		t.Errorf("an earlier epoch: %v", err)
	}
	var codes []string
	for d := range o.log.Read(ctx, time.Time{}) {
		codes = append(codes, d.Code+" "+d.EventID+" "+d.Reason)
	}
	want := []string{
		"PolicyApplied default/0/3 version 3 by alice applied",
		"PolicyApplied default/0/5 version 5 by alice replaces version 3",
		"PolicyRolledBack default/1/3 version 3 (epoch 1) by alice replaces version 5: version 5 denies too much",
	}
	if fmt.Sprint(codes) != fmt.Sprint(want) {
		t.Errorf("on record:\n%s", strings.Join(codes, "\n"))
	}
	entries, err := o.store.History(ctx)
	if err != nil || len(entries) != 3 || entries[2].Revision != 3 {
		t.Fatalf("history %v, %v", entries, err)
	}
	if first, err := bundle.Open(entries[0].Data, o.trust); err != nil || first.Position.Version != 3 {
		t.Errorf("the first: %v", err)
	}
}

func TestApplyIsACompareAndSet(t *testing.T) {
	o := newOffice(t, natstest.Start(t).Connect())
	ctx := t.Context()
	o.must(t, draft(1), false)
	applying := bundle.Applying{Store: o.store, Trust: o.trust, Log: o.log, Over: 1}
	if _, err := bundle.Apply(ctx, applying, create(t, draft(2), o.key)); err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Apply(ctx, applying, create(t, draft(3), o.key)); !errors.Is(err, bundle.ErrConflict) {
		t.Errorf("over a revision that is gone: %v", err)
	}
	// And between looking and writing.
	if _, err := o.store.Put(ctx, create(t, draft(3), o.key), 1); !errors.Is(err, bundle.ErrConflict) {
		t.Errorf("%v", err)
	}
	if _, err := o.store.Put(ctx, create(t, draft(3), o.key), 0); !errors.Is(err, bundle.ErrConflict) {
		t.Errorf("%v", err)
	}
}

func TestApplyFailsWithoutARecord(t *testing.T) {
	o := newOffice(t, natstest.Start(t).Connect())
	b := create(t, draft(1), o.key)
	refusing := bundle.Applying{Store: o.store, Trust: o.trust, Log: fullLog{}}
	if _, err := bundle.Apply(t.Context(), refusing, b); !errors.Is(err, governance.ErrLog) {
		t.Fatalf("got %v", err)
	}
	if _, _, err := bundle.Current(t.Context(), o.store, o.trust); !errors.Is(err, bundle.ErrNotFound) {
		t.Errorf("applied all the same: %v", err)
	}
}

type fullLog struct{}

func (fullLog) Append(context.Context, []governance.Decision) error { return governance.ErrLog }

func TestApplyOverWhatCannotBeVerified(t *testing.T) {
	nc := natstest.Start(t).Connect()
	o := newOffice(t, nc)
	o.must(t, draft(1), false)
	o.raw(t, nc, []byte("garbage"))
	next := draft(2)
	if _, err := o.apply(t.Context(), create(t, next, o.key), false); !errors.Is(err, bundle.ErrFormat) || !strings.Contains(err.Error(), "force it") {
		t.Errorf("got %v", err)
	}
	if _, err := o.apply(t.Context(), create(t, next, o.key), true); !errors.Is(err, bundle.ErrConfig) {
		t.Errorf("without a reason: %v", err)
	}
	next.Reason = "somebody wrote garbage"
	if _, err := o.apply(t.Context(), create(t, next, o.key), true); err != nil {
		t.Error(err)
	}
	stranger := key(t, "mallory")
	if _, err := o.apply(t.Context(), create(t, draft(3), stranger), false); !errors.Is(err, bundle.ErrUntrusted) {
		t.Errorf("a stranger's: %v", err)
	}
}

// A hundred thousand lines of policies fit, since they are compressed; what
// decompresses without end does not.
func TestTheStoreIsBounded(t *testing.T) {
	nc := natstest.Start(t).Connect()
	o := newOffice(t, nc)
	var srcs []governance.Source
	for i := range 400 {
		srcs = append(srcs, policy(fmt.Sprintf("p%04d", i), "batch.published", strings.Repeat("late", 900)))
	}
	b := o.must(t, draft(1, srcs...), false)
	if len(b.Bytes()) < 1<<20 {
		t.Fatalf("a bundle of %d bytes proves nothing", len(b.Bytes()))
	}
	if got, _, err := bundle.Current(t.Context(), o.store, o.trust); err != nil || !bytes.Equal(got.Bytes(), b.Bytes()) {
		t.Errorf("%v", err)
	}
	o.raw(t, nc, bundle.Bomb())
	if _, _, err := bundle.Current(t.Context(), o.store, o.trust); !errors.Is(err, bundle.ErrTooLarge) {
		t.Errorf("a bomb: %v", err)
	}
}

func TestNewStoreTellsAllFaults(t *testing.T) {
	_, err := bundle.NewStore(bundle.StoreConfig{Name: "A.B", Replicas: 9})
	for _, want := range []string{"Conn", "Name", "Replicas"} {
		if !errors.Is(err, bundle.ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %s", err, want)
		}
	}
}
