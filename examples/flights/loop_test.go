package flights_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/deploy"
	"github.com/stokehold/stokehold/stages/drift"
	"github.com/stokehold/stokehold/stages/stagetest"
)

// loop runs the example's stages as its pipelines do, in memory, scored through
// the real server and judged by the real policies.
type loop struct {
	t        *testing.T
	lake     *stagetest.Lake
	registry *stagetest.Registry
	stages   *flights.Stages
	data     *flights.Data
	seed     uint64
}

func openData(t *testing.T) *flights.Data {
	t.Helper()
	d, err := flights.Open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func newLoop(t *testing.T, seed uint64) *loop {
	t.Helper()
	l := &loop{t: t, lake: stagetest.NewLake(), registry: stagetest.NewRegistry(), data: openData(t), seed: seed}
	l.lake.OnPublish = judge(t)
	server, err := deploy.NewServer(deploy.ServerConfig{Models: l.registry})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	l.stages = flights.NewStages(l.data, &deploy.Client{URL: server.URL()})
	l.stages.Train.Registry = l.registry
	l.stages.Evaluate.Registry = l.registry
	l.stages.Deploy.Registry = l.registry
	l.stages.Score.Registry = l.registry
	l.stages.Monitor.Registry = l.registry
	return l
}

// judge is the gate: the example's own policies.
func judge(t *testing.T) func(context.Context, events.Event) error {
	t.Helper()
	types, err := events.NewRegistry(flights.EventTypes()...)
	if err != nil {
		t.Fatal(err)
	}
	set, err := governance.LoadFS(governance.Options{Types: types}, flights.Policies(), "*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	key, err := governance.NewKey("test")
	if err != nil {
		t.Fatal(err)
	}
	ring, err := governance.NewKeyRing(key)
	if err != nil {
		t.Fatal(err)
	}
	engine, err := governance.NewEngine(governance.Config{Policies: set, Log: &governance.MemoryLog{}, Keys: ring})
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, e events.Event) error {
		vs, err := engine.Judge(ctx, events.OnPublish, []*events.Event{&e})
		if err != nil {
			return err
		}
		if !vs[0].Action.Permits() {
			return &events.DeniedError{Verdict: vs[0]}
		}
		return nil
	}
}

func (l *loop) run(s stages.Stage, run, name, output string, week uint64, more ...stages.Binding) stages.Result {
	l.t.Helper()
	inputs := append(more,
		stages.Binding{Name: "schedule", Dataset: flights.Schedule}, stages.Binding{Name: "labels", Dataset: flights.Labels},
		stages.Binding{Name: "features", Dataset: flights.Features}, stages.Binding{Name: "predictions", Dataset: flights.Predictions},
		stages.Binding{Name: "history", Dataset: flights.Monitor})
	params := json.RawMessage(fmt.Sprintf(`{"week":%d}`, week))
	r, err := l.lake.Execute(l.t.Context(), s, stages.Assignment{
		Pipeline: "flights", Run: run, Stage: name, Inputs: inputs, Output: output, Seed: l.seed, RunParams: params,
	})
	if err != nil {
		l.t.Fatalf("%s %s: %v", run, name, err)
	}
	return r
}

// retrain is flights-train.
func (l *loop) retrain(week uint64) stages.Result {
	run := fmt.Sprintf("train-%d", week)
	l.run(l.stages.Schedule, run, "schedule", flights.Schedule, week)
	l.run(l.stages.Labels, run, "labels", flights.Labels, week)
	l.run(flights.ChildStages()[flights.TrainPipeline+"/"+flights.FeatureStage], run, "features", flights.Features, week)
	made := l.run(l.stages.Train, run, "train", "", week)
	version := stages.Binding{Name: "train", Model: made.Notes["model"], Version: made.Notes["version"]}
	l.run(l.stages.Evaluate, run, "evaluate", "", week, version)
	return l.run(l.stages.Deploy, run, "deploy", "", week, version)
}

// live is flights-score and flights-monitor.
func (l *loop) live(week uint64) drift.Report {
	run := fmt.Sprintf("live-%d", week)
	l.run(l.stages.Schedule, run, "schedule", flights.Schedule, week)
	l.run(flights.ChildStages()[flights.ScorePipeline+"/"+flights.FeatureStage], run, "features", flights.Features, week)
	l.run(l.stages.Score, run, "score", flights.Predictions, week)
	l.run(l.stages.Labels, run, "labels", flights.Labels, week)
	l.run(l.stages.Monitor, run, "monitor", flights.Monitor, week)
	rec, err := l.lake.Batch(flights.Monitor, week-flights.FirstLive)
	if err != nil {
		l.t.Fatal(err)
	}
	defer rec.Release()
	r, err := drift.DecodeReport(rec)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

type row struct {
	drift.Report
	Outcome, Reason string
}

func (l *loop) all(to uint64) []row {
	first := l.retrain(flights.FirstWeek)
	if first.Notes["outcome"] != deploy.Promoted {
		l.t.Fatalf("first model: %v", first.Notes)
	}
	var rows []row
	for week := flights.FirstLive; week < to; week++ {
		r := row{Report: l.live(week)}
		if r.Drift && r.Denied == "" {
			d := l.retrain(week)
			r.Outcome, r.Reason = d.Notes["outcome"], d.Notes["reason"]
		}
		rows = append(rows, r)
	}
	return rows
}

func TestLoop(t *testing.T) {
	l := newLoop(t, 1)
	begun := time.Now()
	weeks := l.data.Weeks
	if raceDetector {
		weeks = 11
	}
	rows := l.all(weeks)
	took := time.Since(begun)

	var frozen, served, frozenAUC, servedAUC float64
	count := map[string]int{}
	for _, r := range rows {
		t.Logf("%2d rate %.3f frozen %.4f %.4f loop %.4f %.4f ph %.2f labels %.3f scores %.3f psi %.3f %s %s: %s",
			r.Key, r.PositiveRate, r.FrozenLogLoss, r.FrozenAUC, r.LogLoss, r.AUC, r.PageHinkley, r.LabelKS, r.ScoreKS, r.ScorePSI, r.Detectors, r.Outcome, r.Reason)
		frozen += r.FrozenLogLoss
		served += r.LogLoss
		frozenAUC += r.FrozenAUC
		servedAUC += r.AUC
		count[r.Outcome]++
		if math.IsNaN(r.LogLoss) || r.LogLoss <= 0 || r.AUC < 0.55 || r.AUC > 0.9 {
			t.Errorf("week %d: log loss %v, AUC %v", r.Key, r.LogLoss, r.AUC)
		}
		if r.Outcome == deploy.Refused && r.Reason == "" {
			t.Errorf("week %d: refused without a reason", r.Key)
		}
	}
	n := float64(len(rows))
	t.Logf("mean: frozen %.4f %.4f loop %.4f %.4f, %v, %v", frozen/n, frozenAUC/n, served/n, servedAUC/n, count, took)
	if len(rows) != int(weeks-flights.FirstLive) {
		t.Errorf("%d live weeks of %d", len(rows), weeks)
	}
	if served >= frozen || servedAUC <= frozenAUC {
		t.Errorf("the loop is no better than the frozen model: log loss %.4f against %.4f, AUC %.4f against %.4f", served/n, frozen/n, servedAUC/n, frozenAUC/n)
	}
	if count[deploy.Promoted] == 0 || count[deploy.Refused] == 0 {
		t.Errorf("outcomes %v: want promotions and refusals, or the example shows nothing", count)
	}
	for v, err := range l.registry.Versions(t.Context(), flights.Model) {
		if err != nil {
			t.Fatal(err)
		}
		if v.Status == models.Registered {
			t.Errorf("version %s was neither promoted nor refused", v.Short())
		}
		if v.Status == models.Refused && v.Reason == "" {
			t.Errorf("version %s was refused without a reason", v.Short())
		}
	}
}

func TestLoopIsDeterministic(t *testing.T) {
	const to = flights.FirstLive + 2
	a, b := newLoop(t, 7), newLoop(t, 7)
	ra, rb := a.all(to), b.all(to)
	for i := range ra {
		if ra[i] != rb[i] {
			t.Errorf("week %d differs:\n%+v\n%+v", ra[i].Key, ra[i], rb[i])
		}
	}
	if va, vb := a.ids(), b.ids(); va != vb || va == "" {
		t.Errorf("model versions differ:\n%s\n%s", va, vb)
	}
	for seq := range a.lake.Len(flights.Predictions) {
		if string(a.lake.Bytes(flights.Predictions, seq)) != string(b.lake.Bytes(flights.Predictions, seq)) {
			t.Errorf("predictions %d differ", seq)
		}
	}
	// A retried stage publishes nothing again and keeps what is there.
	before := len(a.lake.Events())
	r := a.live(to - 1)
	if r != ra[len(ra)-1].Report {
		t.Errorf("a repeated week reports\n%+v, at first\n%+v", r, ra[len(ra)-1].Report)
	}
	if after := len(a.lake.Events()); after != before {
		t.Errorf("a repeated week published %d more events", after-before)
	}
}

func (l *loop) ids() string {
	var ids []string
	for v, err := range l.registry.Versions(l.t.Context(), flights.Model) {
		if err != nil {
			l.t.Fatal(err)
		}
		ids = append(ids, v.ID)
	}
	return strings.Join(ids, "\n")
}

func TestPipelinesBuild(t *testing.T) {
	d := openData(t)
	defs, err := flights.Pipelines(flights.NewStages(d, &deploy.Client{}))
	if err != nil {
		t.Fatal(err)
	}
	types, err := events.NewRegistry(flights.EventTypes()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, def := range defs {
		if err := def.ValidateEvents(types); err != nil {
			t.Error(err)
		}
	}
}

func TestPromotionWithoutEnoughRowsIsRefused(t *testing.T) {
	publish := judge(t)
	request := func(rows int64, challenger, champion map[string]float64) error {
		r := events.PromotionRequested{Model: "flights", Challenger: "c", Run: "r", Rows: rows, Metrics: events.PromotionMetrics{Challenger: challenger}}
		if champion != nil {
			r.Champion, r.Metrics.Champion = "o", champion
		}
		e, err := events.New(events.TypePromotionRequested, "/t", "flights", "id", time.Now(), r)
		if err != nil {
			t.Fatal(err)
		}
		return publish(t.Context(), e)
	}
	m := func(logloss, auc float64) map[string]float64 {
		return map[string]float64{"logloss": logloss, "auc": auc}
	}
	for name, c := range map[string]struct {
		err  error
		deny bool
	}{
		"first model":          {request(5000, m(0.5, 0.66), nil), false},
		"first model, chance":  {request(5000, m(0.5, 0.5), nil), true},
		"better":               {request(5000, m(0.45, 0.66), m(0.46, 0.66)), false},
		"better by too little": {request(5000, m(0.459, 0.66), m(0.46, 0.66)), true},
		"ranks worse":          {request(5000, m(0.45, 0.64), m(0.46, 0.66)), true},
		"few rows":             {request(100, m(0.45, 0.66), m(0.46, 0.66)), true},
		"no AUC":               {request(5000, map[string]float64{"logloss": 0.3}, m(0.46, 0.66)), true},
	} {
		if got := errors.Is(c.err, events.ErrDenied); got != c.deny {
			t.Errorf("%s: denied %t, want %t: %v", name, got, c.deny, c.err)
		}
	}
}
