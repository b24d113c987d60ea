package stokehold

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/tiers"
)

// What the command line explains and replays is decided by what the deployment
// knows, and it says what nobody can know any more.
func TestDeskHasFacts(t *testing.T) {
	as := permitted(t, events.RoleGate, events.RolePolicyAuthor)
	state := t.TempDir()
	cfg := Config{NATS: as[events.RoleGate], StateDir: state, HotBytes: 1 << 20, NoPeers: true, Log: slog.New(slog.DiscardHandler)}
	gate := hosting(t, cfg)
	schema := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int64}}, nil)
	w, err := gate.Store.Writer(t.Context(), "flights", schema, tiers.Fence{Run: "r", Stage: "s", Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	b.Field(0).(*array.Int64Builder).AppendValues([]int64{1, 2, 3}, nil)
	rec := b.NewRecordBatch()
	defer rec.Release()
	if _, err := w.WriteAt(t.Context(), 0, rec); err != nil {
		t.Fatal(err)
	}
	set, err := governance.Load(governance.Options{}, governance.Source{Name: "p.yaml", Data: []byte(`apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: p}
spec:
  match: {types: [batch.published]}
  variables: [{name: rows, expression: dataset.rows}]
  rules:
    - {name: rows, expression: "variables.rows > 5", message: few}
    - {name: team, expression: "actor.?team.orValue('') == '' || budget.?team.money.spent.orValue(0.0) == 0.0", message: spent}
`)})
	if err != nil {
		t.Fatal(err)
	}
	if got := set.Facts(); !slices.Equal(got, []string{"dataset", "actor", "budget"}) {
		t.Errorf("the policies read %v", got)
	}
	// Who makes policies has the rights of that alone.
	cfg.StateDir, cfg.NATS = t.TempDir(), as[events.RolePolicyAuthor]
	desk, err := ConnectPolicies(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := desk.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	facts, missing := desk.Facts(t.Context())
	for name, why := range map[string]string{"actor": "no document of actors", "worker": "only the process", "budget": "", "dataset": "", "model": ""} {
		if got := missing[name]; (why == "") != (got == "") || !strings.Contains(got, why) {
			t.Errorf("%s: %q, want %q", name, got, why)
		}
	}
	e, err := governance.NewEvaluator(set)
	if err != nil {
		t.Fatal(err)
	}
	e.Suppose(facts, nil)
	ev, err := events.New(events.TypeBatchPublished, "/test", "flights", "b-1", time.Now(), events.BatchPublished{Dataset: "flights", Rows: 3, Tier: "warm"})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := e.Decide(t.Context(), events.OnPublish, time.Now(), &ev); err != nil || d.Rule != "rows" || d.Reason != "few" {
		t.Errorf("decided %+v, %v", d, err)
	}
	// And reads what was judged, to replay it, but publishes nothing.
	bus, err := desk.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for d, err := range bus.Replay(t.Context(), events.Subscription{}) {
		if err != nil {
			t.Fatal(err)
		}
		if d.Type() == events.TypeBatchPublished {
			read++
		}
	}
	if err := bus.Publish(t.Context(), ev); read != 1 || !errors.Is(err, events.ErrConfig) {
		t.Errorf("read %d events; published: %v", read, err)
	}
	if _, err := bus.Subscribe(t.Context(), events.Subscription{}, func(context.Context, events.Delivery) error { return nil }); !errors.Is(err, events.ErrConfig) {
		t.Errorf("subscribed: %v", err)
	}
	if err := bus.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if model := facts.Champion; model == nil {
		t.Error("nobody is asked about models")
	} else if err := model(t.Context(), &ev, &governance.Model{Name: "late"}); err != nil {
		t.Errorf("the champion: %v", err)
	}
	if err := facts.Budget(t.Context(), &ev, &governance.Budget{}); err != nil {
		t.Errorf("budgets: %v", err)
	}
}

// That a bundle is refused is an event, which everybody can see.
func TestRefusedBundleIsAnEvent(t *testing.T) {
	as := permitted(t, events.RoleGate, events.RolePolicyAuthor)
	gate := hosting(t, Config{NATS: as[events.RoleGate], StateDir: t.TempDir(), HotBytes: 1 << 20, NoPeers: true, Log: slog.New(slog.DiscardHandler)})
	author := &App{cfg: Config{NATS: as[events.RolePolicyAuthor]}}
	if err := author.connectNATS(t.Context(), options{}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = author.Close(context.Background()) }()
	js, err := jetstream.New(author.nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), "stokehold_policies")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "default", bytes.Repeat([]byte("nonsense "), 10)); err != nil {
		t.Fatal(err)
	}
	seen := make(chan events.PolicyRefused, 4)
	c, err := gate.Bus.Subscribe(t.Context(), events.Subscription{Types: []string{events.TypePolicyRefused}}, func(_ context.Context, d events.Delivery) error {
		var p events.PolicyRefused
		if err := json.Unmarshal(d.Data(), &p); err != nil {
			return err
		}
		seen <- p
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	select {
	case p := <-seen:
		if p.Bundle != "default" || p.Revision != 1 || p.Reason == "" || !strings.Contains(p.Process, "/") {
			t.Errorf("%+v", p)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("no event; status %+v", gate.Policies.Status())
	}
}
