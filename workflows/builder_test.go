package workflows_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/golden"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

// nothing is a stage that executors of these tests do not call.
var nothing = stages.Func(func(context.Context, *stages.Task) error { return errors.New("not called") })

// loop is a pipeline that uses everything.
func loop(t *testing.T) *workflows.Definition {
	t.Helper()
	p := workflows.New("flights-train", "Trains and promotes a model of late flights.")
	history := p.Source("flights/labels")
	champion := p.Current("flights", "champion")
	weeks := p.Ingest("weeks", nothing, workflows.Into("flights/schedule"), workflows.With(map[string]any{"rows": 1000}))
	features := p.Preprocess("features", weeks, nothing, workflows.Into("flights/features"), workflows.InChildProcess(), workflows.Timeout(time.Minute))
	model := p.Train("train", features, nothing, workflows.Reads(history), workflows.Named("flights"))
	tuned := p.FineTune("tune", champion, features, nothing, workflows.Attempts(3), workflows.Named("flights"), workflows.After(model))
	score := p.Evaluate("evaluate", tuned, features, nothing)
	served := p.Deploy("deploy", tuned, score, nothing)
	p.Monitor("watch", features, nothing, workflows.After(served))
	p.On(workflows.Trigger{
		Types: []string{"drift.detected"}, When: `data.detector == "page-hinkley"`, Key: "data.model",
		Cooldown: 7 * 24 * time.Hour, EventTime: true, Debounce: 30 * time.Second,
	})
	d, err := p.Build()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestBuildReportsEveryFault(t *testing.T) {
	other := workflows.New("other", "")
	foreign := other.Ingest("rows", nothing)
	p := workflows.New("Bad Name", "")
	weeks := p.Ingest("weeks", nil)
	p.Ingest("weeks", nothing, workflows.Into("no good//"))
	p.Preprocess("features", foreign, nothing, workflows.Timeout(-time.Second), workflows.Attempts(0))
	p.Preprocess("empty", workflows.Dataset{}, stages.Func(nil))
	model := p.Train("train", weeks, nothing, workflows.With(math.NaN()), workflows.After(nil))
	p.Train("Train 2", weeks, nothing, workflows.With([]int{1}), workflows.Named("a model"))
	p.Evaluate("evaluate", model, weeks, nothing, workflows.Named("m"), workflows.Into("shared/set"), workflows.After(p.Source("labels")))
	p.Monitor("watch", weeks, nothing, workflows.Into("shared/set"))
	p.Current("a model", "")
	p.On(workflows.Trigger{})
	p.On(workflows.Trigger{Types: []string{"data.arrived"}, When: "data.week >", Key: "[data.week]", Debounce: -1, EventTime: true, MaxPending: -5})
	p.On(workflows.Trigger{Types: []string{"data.arrived"}, When: "1 + 1"})
	_, err := p.Build()
	var b *workflows.BuildError
	if !errors.As(err, &b) {
		t.Fatalf("got %v, want a *BuildError", err)
	}
	golden.Compare(t, "build_faults.txt", err.Error()+"\n")
}

// The builder's types make most of these impossible; JSON does not.
func TestValidateReportsEveryFault(t *testing.T) {
	raw := `{"name": "by-hand", "sources": [
	  {"name": "labels", "dataset": "flights/labels"}, {"name": "m@champion", "model": "m", "alias": "champion"}, {"name": "void"}],
	 "stages": [
	  {"name": "a", "kind": "preprocess", "inputs": ["c"]},
	  {"name": "b", "kind": "preprocess", "inputs": ["a"]},
	  {"name": "c", "kind": "preprocess", "inputs": ["b"], "after": ["nowhere"]},
	  {"name": "train", "kind": "train"},
	  {"name": "train", "kind": "train", "inputs": ["a", "a", "m@champion"]},
	  {"name": "deploy", "kind": "deploy", "inputs": ["a", "ghost"]},
	  {"name": "dance", "kind": "dance"},
	  {"name": "slow", "kind": "ingest", "timeout": "1000h", "attempts": 5000}],
	 "triggers": [{"types": ["data.arrived"], "max_pending": 2000000}]}`
	_, err := workflows.ParseDefinition([]byte(raw))
	var b *workflows.BuildError
	if !errors.As(err, &b) {
		t.Fatalf("got %v, want a *BuildError", err)
	}
	golden.Compare(t, "validate_faults.txt", err.Error()+"\n")
}

func TestValidateEvents(t *testing.T) {
	p := workflows.New("typed", "")
	p.Ingest("rows", nothing)
	p.On(workflows.Trigger{Types: []string{"data.arived"}})
	p.On(workflows.Trigger{Types: []string{"drift.detected"}, When: `data.detectr == "x"`})
	d, err := p.Build()
	if err != nil {
		t.Fatal(err)
	}
	types, err := events.NewRegistry(events.Type{Name: "data.arrived"})
	if err != nil {
		t.Fatal(err)
	}
	err = d.ValidateEvents(types)
	for _, want := range []string{`unknown event type "data.arived"`, "detectr"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want a fault with %s", err, want)
		}
	}
}

// TestStagesOfOtherPrograms has a stage that is declared here and runs in another
// program.
func TestStagesOfOtherPrograms(t *testing.T) {
	p := workflows.New("python", "")
	p.Train("train", p.Ingest("rows", nothing), stages.Remote{}, workflows.InWorker("torch"))
	d, err := p.Build()
	if err != nil {
		t.Fatal(err)
	}
	if text := d.Text(); !strings.Contains(text, "=> model python  [worker torch]") {
		t.Error(text)
	}
	if text := d.Mermaid(); !strings.Contains(text, "train, worker torch") {
		t.Error(text)
	}
	raw, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	back, err := workflows.ParseDefinition(raw)
	if s, _ := back.Stage("train"); err != nil || s.Worker != "torch" {
		t.Errorf("%s: %+v, %v", raw, s, err)
	}
	err = workflows.Register(nil, workflows.WorkerConfig{Runtime: &stages.Runtime{}, Pipelines: []*workflows.Definition{d}})
	if err == nil || !strings.Contains(err.Error(), `train: runs in worker "torch", which this process does not have`) {
		t.Error(err)
	}

	p = workflows.New("python", "")
	rows := p.Ingest("rows", stages.Remote{})
	p.Preprocess("features", rows, &stages.Remote{}, workflows.InWorker("No Name"))
	p.Preprocess("more", rows, stages.Remote{}, workflows.InWorker(""), workflows.InChildProcess())
	_, err = p.Build()
	for _, want := range []string{
		"rows: its code is in another program, but no worker is named (add the option InWorker)", `features: worker name "No Name" is not usable`,
		"more: InWorker without a name", "more: its code is in another program",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want a fault with %s", err, want)
		}
	}
}

func TestLimits(t *testing.T) {
	big := workflows.New("big", "")
	big.Ingest("rows", nothing, workflows.With(map[string]string{"x": strings.Repeat("y", workflows.MaxDefinitionBytes)}))
	many := workflows.New("many", "")
	for i := range workflows.MaxStages + 1 {
		many.Ingest("s"+strings.Repeat("x", i), nothing)
	}
	for want, p := range map[string]*workflows.Pipeline{"the definition is": big, "stages, at most 64": many, "there is no stage": workflows.New("none", "")} {
		if _, err := p.Build(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestDefinitionJSON(t *testing.T) {
	d := loop(t)
	raw, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "flights-train.json", string(raw)+"\n")
	back, err := workflows.ParseDefinition(raw)
	if err != nil {
		t.Fatal(err)
	}
	again, err := json.MarshalIndent(back, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if string(again) != string(raw) {
		t.Errorf("changed on the way through JSON:\n%s", again)
	}
	if d.Fingerprint() != back.Fingerprint() || len(d.Fingerprint()) != 64 {
		t.Errorf("fingerprints %s and %s", d.Fingerprint(), back.Fingerprint())
	}
	if len(d.Stages()) != 7 || len(back.Stages()) != 0 {
		t.Errorf("implementations: %d and %d", len(d.Stages()), len(back.Stages()))
	}
	if _, err := workflows.ParseDefinition([]byte(`{"name":"x","stages":[{"name":"a","kind":"ingest","input":["b"]}]}`)); err == nil || !strings.Contains(err.Error(), "input") {
		t.Errorf("unknown field: %v", err)
	}
	if _, err := workflows.ParseDefinition([]byte(`{"name":"x","stages":[{"name":"a","kind":"ingest","timeout":"soon"}]}`)); err == nil || !strings.Contains(err.Error(), "soon") {
		t.Errorf("bad duration: %v", err)
	}
}

func TestDrawings(t *testing.T) {
	d := loop(t)
	golden.Compare(t, "flights-train.mmd", d.Mermaid())
	golden.Compare(t, "flights-train.txt", d.Text())
}

func FuzzParseDefinition(f *testing.F) {
	raw, err := os.ReadFile(filepath.Join("testdata", "flights-train.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"name":"x","stages":[{"name":"a","kind":"preprocess","inputs":["a"]}]}`))
	f.Add([]byte(`{"name":"x","stages":[{"name":"a","kind":"ingest","params":1}],"triggers":[{"types":["a.b"],"key":"data."}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := workflows.ParseDefinition(raw)
		if err != nil {
			return
		}
		out, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		back, err := workflows.ParseDefinition(out)
		if err != nil {
			t.Fatalf("a valid definition does not come back: %v", err)
		}
		if back.Fingerprint() != d.Fingerprint() || !reflect.DeepEqual(back.Text(), d.Text()) {
			t.Fatal("changed on the way through JSON")
		}
	})
}
