package stokehold

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/tiers"
)

// Policies see what the registry and the catalog know, on a real server: a batch's
// columns before it is committed, a dataset, a model and the champion it would
// replace.
func TestPoliciesSeeRegistryAndCatalog(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	nc := natstest.Start(t).Connect()
	a, err := dataPlane(ctx, nc, filepath.Join(t.TempDir(), "run"), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	reg := a.Models
	types, err := events.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	key, err := governance.NewKey("k")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := governance.NewKeyRing(key)
	if err != nil {
		t.Fatal(err)
	}
	holds := func(ev events.Event, expr string) {
		t.Helper()
		file := "apiVersion: stokehold.dev/v1\nkind: Policy\nmetadata: {name: p}\nspec:\n  rules:\n    - name: r\n      expression: |\n        " + expr + "\n"
		set, err := governance.Load(governance.Options{Types: types}, governance.Source{Name: "p.yaml", Data: []byte(file)})
		if err != nil {
			t.Fatal(err)
		}
		e, err := governance.NewEngine(governance.Config{Policies: set, Log: &governance.MemoryLog{}, Keys: keys, Facts: a.facts()})
		if err != nil {
			t.Fatal(err)
		}
		vs, err := e.Judge(ctx, events.OnPublish, []*events.Event{&ev})
		if err != nil || !vs[0].Action.Permits() {
			t.Errorf("%s: %+v, %v", expr, vs, err)
		}
	}
	event := func(typ, id string, data any) events.Event {
		ev, err := events.New(typ, "test", "s", id, time.Now(), data)
		if err != nil {
			t.Fatal(err)
		}
		return ev
	}

	schema := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int64, Nullable: true}, {Name: "name", Type: arrow.BinaryTypes.String}}, nil)
	w, err := a.Store.Writer(ctx, "flights", schema, tiers.Fence{Run: "r", Stage: "s", Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	rb := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer rb.Release()
	for _, x := range []int64{1, 2, 3, 0} {
		if x == 0 {
			rb.Field(0).AppendNull()
		} else {
			rb.Field(0).(*array.Int64Builder).Append(x)
		}
		rb.Field(1).(*array.StringBuilder).Append("a")
	}
	rec := rb.NewRecordBatch()
	defer rec.Release()
	ref, err := w.WriteAt(ctx, 0, rec)
	if err != nil {
		t.Fatal(err)
	}
	published := events.BatchPublished{Dataset: "flights", Rows: 4, BodyBytes: ref.BodyBytes, Fingerprint: ref.Fingerprint, Tier: string(ref.Locations[0].Tier), URI: ref.Locations[0].URI}
	holds(event(events.TypeBatchPublished, "b", published), `batch.columns['x'].type == 'int64' && batch.columns.x.nulls == 1 && batch.columns.x.mean == 2.0 && batch.columns.x.stddev == 1.0 && batch.columns.x.max == 3.0 && !has(batch.columns.name.mean) && batch.columns.size() == 2`)
	holds(event(events.TypeBatchPublished, "b2", published), `dataset.batches == 1 && dataset.rows == 4 && !dataset.sealed && dataset.fingerprint != ''`)
	gone := published
	gone.Sequence, gone.URI = 7, "shm://gone/0+1.1"
	holds(event(events.TypeBatchPublished, "b3", gone), `!has(batch.columns)`)

	base, err := reg.Register(ctx, models.Version{Model: "base", Format: models.Opaque, Kind: "k/v1", Labels: label.Set{"licence:cc0-1.0"}}, []byte("base"))
	if err != nil {
		t.Fatal(err)
	}
	version := func(artifact string, auc float64) models.Version {
		v, err := reg.Register(ctx, models.Version{
			Model: "late", Format: models.Opaque, Kind: "k/v1", Metrics: map[string]float64{"auc": auc}, Metadata: map[string]string{"precision": "int4", "labels": "pii,residency:eu"},
			Lineage: models.Lineage{Run: "r1", Parent: base.ID, Datasets: []models.DatasetUse{{Dataset: "flights"}}},
		}, []byte(artifact))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	champion, challenger := version("one", 0.7), version("two", 0.8)
	if err := reg.Promote(ctx, models.Promotion{Model: "late", ID: champion.ID, Alias: models.Champion, Run: "r1"}); err != nil {
		t.Fatal(err)
	}
	registered := events.ModelRegistered{Model: "late", Version: challenger.ID, Run: "r1"}
	holds(event(events.TypeModelRegistered, "m", registered), `model.precision == 'int4' && model.format == 'opaque' && model.metrics.auc == 0.8 && model.datasets == ['flights'] && model.parents.size() == 1 && model.labels.any('pii') && model.labels.values('residency') == ['eu']`)
	holds(event(events.TypeModelRegistered, "m1", registered), `model.labels == ['licence:cc0-1.0', 'pii', 'residency:eu']`)
	holds(event(events.TypeModelRegistered, "m2", registered), `champion.version != model.version && champion.metrics.auc == 0.7 && champion.aliases == ['champion']`)
	holds(event(events.TypeModelRegistered, "m3", events.ModelRegistered{Model: "new", Version: strings.Repeat("b", 64), Run: "r"}), `!has(model.precision) && !has(champion.version)`)
}
