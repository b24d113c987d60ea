package workflows_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

func TestStagesDeclareLabels(t *testing.T) {
	p := workflows.New("patients", "")
	raw := p.Ingest("raw", nothing, workflows.Labels("pii:health", "residency:eu"), workflows.Labels("licence:own"))
	hashed := p.Preprocess("hash", raw, nothing, workflows.Declassifies("names are hashed", "pii"))
	p.Train("train", hashed, nothing)
	d := build(t, p)
	doc, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	back, err := workflows.ParseDefinition(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []*workflows.Definition{d, back} {
		first, _ := d.Stage("raw")
		second, _ := d.Stage("hash")
		want := &label.Declassification{Labels: []string{"pii"}, Reason: "names are hashed"}
		if !reflect.DeepEqual(first.Labels, []string{"pii:health", "residency:eu", "licence:own"}) || !reflect.DeepEqual(second.Declassify, want) {
			t.Errorf("%+v, %+v", first, second)
		}
	}

	f := &fakes{}
	if _, err := execute(t, environment(t, f, d), d, workflows.RunInput{Run: "r1"}); err != nil {
		t.Fatal(err)
	}
	got := map[string]stages.Assignment{}
	for _, a := range f.calls {
		got[a.Stage] = a
	}
	if a := got["raw"]; len(a.Labels) != 3 || a.Declassify != nil {
		t.Errorf("raw is assigned %+v", a)
	}
	if a := got["hash"]; a.Labels != nil || a.Declassify == nil || a.Declassify.Reason != "names are hashed" {
		t.Errorf("hash is assigned %+v", a)
	}
}

func TestFaultsOfLabels(t *testing.T) {
	p := workflows.New("bad", "")
	raw := p.Ingest("raw", nothing, workflows.Labels("PII", "residency"))
	a := p.Preprocess("a", raw, nothing, workflows.Declassifies("", "pii"))
	b := p.Preprocess("b", a, nothing, workflows.Declassifies("why", "residency:eu"))
	c := p.Preprocess("c", b, nothing, workflows.Declassifies("why", "pii"), workflows.Declassifies("why", "licence"))
	p.Monitor("watch", c, nothing, workflows.Labels("pii"))
	_, err := p.Build()
	var faults *workflows.BuildError
	if !errors.As(err, &faults) {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{
		`raw: invalid label "PII"`, "a: invalid label: a declassification needs a reason", `b: invalid label "residency:eu": a residency is taken off as a whole`,
		"c: declassifies twice", "watch: declares labels or takes some off, and a stage of kind monitor makes neither data nor a model",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}
