package workflowstest_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/cmd/internal/workflowstest"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/deploy"
	"github.com/stokehold/stokehold/stages/evaluate"
	"github.com/stokehold/stokehold/stages/train"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/workflows"
)

// The datasets of the pipeline under test. Its stages declare nothing but the first.
const (
	measured = "site/measured"
	features = "site/features"
)

var measuredSchema = arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Float32}, {Name: "y", Type: arrow.PrimitiveTypes.Int32}}, nil)

// measure writes rows of which y can be learnt from x, not perfectly.
var measure = stages.Func(func(ctx context.Context, task *stages.Task) error {
	b := array.NewRecordBuilder(memory.DefaultAllocator, measuredSchema)
	defer b.Release()
	for i := range 200 {
		y := int32(0)
		if i > 100 != (i%10 == 0) {
			y = 1
		}
		b.Field(0).(*array.Float32Builder).Append(float32(i))
		b.Field(1).(*array.Int32Builder).Append(y)
	}
	rec := b.NewRecordBatch()
	defer rec.Release()
	_, err := task.WriteAt(ctx, 0, rec)
	return err
})

// pick writes the column x.
var pick = stages.Func(func(ctx context.Context, task *stages.Task) error {
	for b, err := range task.Range(ctx, measured, 0, 1) {
		if err != nil {
			return err
		}
		rec := array.NewRecordBatch(arrow.NewSchema(measuredSchema.Fields()[:1], nil), b.Record.Columns()[:1], b.Record.NumRows())
		_, err := task.WriteAt(ctx, 0, rec)
		rec.Release()
		if err != nil {
			return err
		}
	}
	return nil
})

// learning is a pipeline from data to a deployment.
func learning(t *testing.T, first ...workflows.Option) *workflows.Definition {
	t.Helper()
	return learningThen(t, func(context.Context) error { return nil }, first...)
}

// learningThen does something between the evaluation of the model and its deployment.
func learningThen(t *testing.T, then func(context.Context) error, first ...workflows.Option) *workflows.Definition {
	t.Helper()
	window := func(*stages.Task) (from, to uint64, err error) { return 0, 1, nil }
	target := train.Target{Column: "y"}
	p := workflows.New("learning", "")
	rows := p.Ingest("measure", measure, append(first, workflows.Into(measured))...)
	picked := p.Preprocess("pick", rows, pick, workflows.Into(features))
	model := p.Train("train", picked, &train.Stage{Model: "m", Features: features, Labels: measured, Target: target, Window: window},
		workflows.Reads(rows), workflows.Named("m"))
	evaluation := &evaluate.Stage{Features: features, Labels: measured, Target: target, Window: window}
	scores := p.Evaluate("evaluate", model, picked, stages.Func(func(ctx context.Context, task *stages.Task) error {
		return errors.Join(evaluation.Run(ctx, task), then(ctx))
	}), workflows.Reads(rows))
	p.Deploy("deploy", model, scores, &deploy.Stage{Features: features, Labels: measured, Target: target, Window: window}, workflows.Reads(picked, rows))
	d, err := p.Build()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// plane is a data plane and a worker on the stack, of names of their own.
type plane struct {
	bus    *events.Bus
	store  *tiers.Store
	models *models.Registry
	log    *governance.MemoryLog
}

// nodes is a function that says what things are labelled with.
type nodes func(context.Context, label.Source) (label.Node, error)

func (f nodes) LabelNode(ctx context.Context, of label.Source) (label.Node, error) { return f(ctx, of) }

func openPlane(t *testing.T, env *workflowstest.Env, prefix string, place events.Place, d *workflows.Definition) plane {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := env.Stack.Endpoints()
	conn, err := nats.Connect(at.NATSURL, nats.UserInfo(at.NATSUser, string(at.NATSPassword)))
	must(err)
	t.Cleanup(conn.Close)
	p := plane{log: &governance.MemoryLog{}}
	none, err := governance.Load(governance.Options{Types: env.Types}) // no policy at all
	must(err)
	key, err := governance.NewKey("k")
	must(err)
	ring, err := governance.NewKeyRing(key)
	must(err)
	judge, err := governance.NewEngine(governance.Config{Policies: none, Log: p.log, Keys: ring})
	must(err)
	p.bus, err = events.Open(t.Context(), events.Config{Conn: conn, Types: env.Types, Judge: judge, Prefix: prefix, MaxBytes: 64 << 20})
	must(err)
	host := &shm.Host{}
	arena, err := host.New(shm.Config{Bytes: 4 << 20})
	must(err)
	datasets := nodes(func(ctx context.Context, of label.Source) (label.Node, error) { return p.store.LabelNode(ctx, of) })
	p.models, err = models.Open(t.Context(), models.Config{Conn: conn, Bus: p.bus, Dir: t.TempDir(), Prefix: prefix, Serving: place, Datasets: datasets})
	must(err)
	p.store, err = tiers.Open(t.Context(), tiers.Config{Conn: conn, Bus: p.bus, Host: host, Arena: arena, Warm: t.TempDir(), Prefix: prefix, Versions: p.models})
	must(err)
	w, err := workflows.NewWorker(workflows.WorkerConfig{
		Client: env.Client, Bus: p.bus, Types: env.Types, Pipelines: []*workflows.Definition{d}, TaskQueue: prefix,
		Runtime: &stages.Runtime{Store: p.store, Registry: p.models, Bus: p.bus},
	})
	must(err)
	must(w.Start(t.Context()))
	t.Cleanup(func() {
		stop(t, w)
		ctx, cancel := context.WithTimeout(context.Background(), workflowstest.StopTimeout)
		defer cancel()
		if err := errors.Join(p.store.Close(ctx), p.bus.Close(ctx), host.Close()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// From a dataset that says what it is, over features and a model that say nothing, to a
// deployment that is denied for it.
func TestLabelsReachTheDeployment(t *testing.T) {
	env := open(t)
	for _, c := range []struct {
		name    string
		labels  []string
		place   events.Place
		refused string // part of the reason; "": promoted
	}{
		{"free", []string{"licence:cc0-1.0"}, events.Place{}, ""},
		{"licence", []string{"licence:cc-by-nc-4.0"}, events.Place{Use: "commercial"}, "data under cc-by-nc-4.0 allow no commercial use"},
		{"research", []string{"licence:cc-by-nc-4.0"}, events.Place{Use: "research"}, ""},
		{"residency", []string{"residency:eu"}, events.Place{Region: "us"}, "the data may lie in eu only, not in us"},
		{"unknown", []string{"residency:eu"}, events.Place{}, "the region of the place is not known"},
		{"at-home", []string{"residency:eu"}, events.Place{Region: "eu"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := learning(t, workflows.Labels(c.labels...))
			p := openPlane(t, env, c.name, c.place, d)
			run, err := workflows.Start(t.Context(), env.Client, d, workflows.RunInput{Run: c.name}, workflows.StartOptions{TaskQueue: c.name})
			if err != nil {
				t.Fatal(err)
			}
			res, err := run.Result(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, dataset := range []string{measured, features} {
				if h, err := p.store.Head(t.Context(), dataset); err != nil || !slices.Equal(h.Labels, c.labels) {
					t.Errorf("%s has %v, %v", dataset, h.Labels, err)
				}
			}
			trained, _ := res.Stage("train")
			v, err := p.models.Get(t.Context(), "m", trained.Version)
			if err != nil || !slices.Equal(v.Labels, c.labels) {
				t.Errorf("the model has %v, %v", v.Labels, err)
			}
			deployed, _ := res.Stage("deploy")
			champion, err := p.models.Alias(t.Context(), "m", models.Champion)
			if c.refused == "" {
				if err != nil || champion.ID != v.ID || deployed.Notes["outcome"] != deploy.Promoted {
					t.Errorf("champion %s, %v: %v", champion.Short(), err, deployed.Notes)
				}
				return
			}
			if !errors.Is(err, models.ErrNotFound) || deployed.Notes["outcome"] != deploy.Refused || !strings.Contains(deployed.Notes["reason"], c.refused) {
				t.Errorf("champion %s, %v: %v", champion.Short(), err, deployed.Notes)
			}
			// Nor can the model be put into service past the stage.
			err = p.models.Promote(t.Context(), models.Promotion{Model: "m", Alias: models.Champion, ID: v.ID, Run: "by-hand"})
			if _, none := p.models.Alias(t.Context(), "m", models.Champion); !errors.Is(err, events.ErrDenied) || !errors.Is(none, models.ErrNotFound) {
				t.Errorf("promoted by hand: %v, %v", err, none)
			}
			denied := map[string]int{}
			for d, err := range p.log.Read(t.Context(), time.Time{}) {
				if err != nil {
					t.Fatal(err)
				}
				if d.Action == events.Deny {
					denied[d.Type]++
				}
			}
			if denied[events.TypePromotionRequested] != 1 || denied[events.TypeModelPromoted] != 1 || len(denied) != 2 {
				t.Errorf("the log has the denials %v", denied)
			}
		})
	}
}

// A label that somebody puts on the first dataset once the model has been made of what was
// made of it keeps the model out of service, by the stage and by hand.
func TestLabelAddedAfterTrainingDeniesTheDeployment(t *testing.T) {
	env := open(t)
	var p plane
	d := learningThen(t, func(ctx context.Context) error {
		return p.store.AddLabels(ctx, measured, label.Set{"licence:cc-by-nc-4.0"})
	})
	p = openPlane(t, env, "later", events.Place{Use: "commercial"}, d)
	run, err := workflows.Start(t.Context(), env.Client, d, workflows.RunInput{Run: "later"}, workflows.StartOptions{TaskQueue: "later"})
	if err != nil {
		t.Fatal(err)
	}
	res, err := run.Result(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	trained, _ := res.Stage("train")
	v, err := p.models.Get(t.Context(), "m", trained.Version)
	if err != nil || len(v.Labels) != 0 {
		t.Errorf("the model was made with %v, %v", v.Labels, err)
	}
	if h, err := p.store.Head(t.Context(), features); err != nil || len(h.Labels) != 0 {
		t.Errorf("the features were made with %v, %v", h.Labels, err)
	}
	deployed, _ := res.Stage("deploy")
	if deployed.Notes["outcome"] != deploy.Refused || !strings.Contains(deployed.Notes["reason"], "data under cc-by-nc-4.0 allow no commercial use") {
		t.Errorf("%v", deployed.Notes)
	}
	err = p.models.Promote(t.Context(), models.Promotion{Model: "m", Alias: models.Champion, ID: v.ID, Run: "by-hand"})
	if _, none := p.models.Alias(t.Context(), "m", models.Champion); !errors.Is(err, events.ErrDenied) || !errors.Is(none, models.ErrNotFound) {
		t.Errorf("promoted by hand: %v, %v", err, none)
	}
}
