package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/objectdir"
)

func (moved) Whoami(context.Context) (string, error) { return "ada", nil }

func (m moved) DeclassifyModel(ctx context.Context, model, version string, d label.Declassification, actor string) (id string, removed, left label.Set, err error) {
	return declassifyModel(ctx, m.models, model, version, d, actor)
}

const personalOnly = `apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: declassification}
spec:
  match: {types: [label.declassified]}
  rules:
    - name: personal-data-only
      expression: event.actor == 'ada' && data.removed.all(l, l.startsWith('pii'))
      message: only personal data can be declassified
`

// judged is a bus that judges by a policy file, with the standard types.
func judged(t *testing.T, cfg events.Config, policy string) *events.Bus {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	types, err := events.NewRegistry()
	must(err)
	set, err := governance.Load(governance.Options{Types: types}, governance.Source{Name: "p.yaml", Data: []byte(policy)})
	must(err)
	key, err := governance.NewKey("k")
	must(err)
	ring, err := governance.NewKeyRing(key)
	must(err)
	cfg.Judge, err = governance.NewEngine(governance.Config{Policies: set, Log: &governance.MemoryLog{}, Keys: ring})
	must(err)
	bus, err := events.Open(t.Context(), cfg)
	must(err)
	t.Cleanup(func() {
		if err := bus.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return bus
}

func TestDataLabels(t *testing.T) {
	ctx := t.Context()
	nc := natstest.Start(t).Connect()
	bus := judged(t, events.Config{Conn: nc}, personalOnly)
	objects, err := objectdir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	warm := filepath.Join(t.TempDir(), "warm")
	open := func() *tiers.Store {
		s, err := tiers.Open(ctx, tiers.Config{Conn: nc, Bus: bus, Host: &shm.Host{}, Warm: warm, Cold: objects, ColdPlace: events.Place{Region: "us"}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	schema := arrow.NewSchema([]arrow.Field{{Name: "id", Type: arrow.PrimitiveTypes.Int64}}, nil)
	w, err := s.Writer(ctx, "patients", schema, tiers.Fence{Run: "r1", Stage: "ingest", Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	derived, err := s.Writer(ctx, "sums", schema, tiers.Fence{Run: "r1", Stage: "sum", Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	derived.MadeOf(label.Source{Dataset: "patients"})
	if err := derived.Finish(ctx); err != nil {
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
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(nc.ConnectedUrl(), "nats://")
	stokehold := dataCommand(t, address, func() moved { return moved{Store: open()} })
	for _, c := range []struct {
		args []string
		code int
		want string // in what is written, on success, or said
	}{
		{[]string{"label", "patients", "residency:eu", "pii:health"}, exitOK, "labels pii:health, residency:eu"},
		{[]string{"label", "patients", "PII"}, exitUsage, `invalid label "PII"`},
		{[]string{"label", "patients"}, exitUsage, "missing LABEL..."},
		{[]string{"label", "nobody", "pii"}, exitFailure, "no dataset"},
		{[]string{"show", "patients"}, exitOK, "labels pii:health, residency:eu"},
		{[]string{"ls"}, exitOK, "pii:health residency:eu"},
		{[]string{"show", "sums"}, exitOK, "with those of what it was made of: labels pii:health, residency:eu"},
		{[]string{"move", "patients"}, exitFailure, "the data may lie in eu only, not in us"},
		{[]string{"declassify", "patients", "pii"}, exitUsage, "needs a reason"},
		{[]string{"declassify", "patients", "residency:eu", "--reason", "cheaper"}, exitUsage, "as a whole"},
		{[]string{"declassify", "patients", "residency", "--reason", "cheaper"}, exitFailure, "only personal data"},
		{[]string{"declassify", "patients", "pii", "--reason", "hashed"}, exitOK, "labels residency:eu"},
		{[]string{"declassify", "patients", "pii", "--reason", "hashed"}, exitOK, "nothing to take off"},
	} {
		out, errs, code := stokehold(c.args...)
		if said := out + errs; code != c.code || !strings.Contains(said, c.want) {
			t.Errorf("data %s: exit %d, want %d and %q in:\n%s", strings.Join(c.args, " "), code, c.code, c.want, said)
		}
	}
}

func TestModelsDeclassify(t *testing.T) {
	ctx := t.Context()
	nc := natstest.Start(t).Connect()
	bus := judged(t, events.Config{Conn: nc}, personalOnly)
	reg, err := models.Open(ctx, models.Config{Conn: nc, Bus: bus, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	v, err := reg.Register(ctx, models.Version{Model: "late", Format: models.Opaque, Kind: "k/v1", Labels: label.Set{"licence:x", "pii:health"}}, []byte("weights"))
	if err != nil {
		t.Fatal(err)
	}
	if err := reg.Promote(ctx, models.Promotion{Model: "late", Alias: "staging", ID: v.ID}); err != nil {
		t.Fatal(err)
	}
	warm := t.TempDir()
	stokehold := command(t, "models", strings.TrimPrefix(nc.ConnectedUrl(), "nats://"), func() moved {
		s, err := tiers.Open(ctx, tiers.Config{Conn: nc, Bus: bus, Host: &shm.Host{}, Warm: warm})
		if err != nil {
			t.Fatal(err)
		}
		return moved{Store: s, models: reg}
	})
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"declassify", "late"}, exitUsage, "missing VERSION"},
		{[]string{"declassify", "late", "staging"}, exitUsage, "missing LABEL..."},
		{[]string{"declassify", "late", "staging", "pii"}, exitUsage, "needs a reason"},
		{[]string{"declassify", "late", "staging", "PII", "--reason", "sums"}, exitUsage, `invalid label "PII"`},
		{[]string{"declassify", "late", "nosuch", "pii", "--reason", "sums"}, exitFailure, "models: get late nosuch"},
		{[]string{"declassify", "early", "staging", "pii", "--reason", "sums"}, exitFailure, "early"},
		{[]string{"declassify", "late", v.ID[:3], "pii", "--reason", "sums"}, exitFailure, "give at least 6 digits"},
		{[]string{"declassify", "late", "staging", "licence", "--reason", "cheaper"}, exitFailure, "only personal data"},
		{[]string{"declassify", "late", "staging", "pii", "--reason", "sums"}, exitOK, "version " + v.Short()[:8]},
		{[]string{"declassify", "late", v.ID[:8], "pii", "--reason", "sums"}, exitOK, "nothing to take off"},
	} {
		out, errs, code := stokehold(c.args...)
		if said := out + errs; code != c.code || !strings.Contains(said, c.want) {
			t.Errorf("models %s: exit %d, want %d and %q in:\n%s", strings.Join(c.args, " "), code, c.code, c.want, said)
		}
	}
	if got, err := reg.Get(ctx, "late", v.ID); err != nil || len(got.Labels) != 1 || got.Labels[0] != "licence:x" {
		t.Errorf("%v, %v", got.Labels, err)
	}
}
