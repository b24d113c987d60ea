package budget_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/governance/budget"
)

var update = flag.Bool("update", false, "write docs/budget.schema.json")

const schemaFile = "../../docs/budget.schema.json"

// The published schema is what the code gives. To write it anew:
//
//	go test ./governance/budget -run TestPublishedSchema -update
func TestPublishedSchema(t *testing.T) {
	want, err := budget.Schema()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(schemaFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what Schema gives (%v): run this test with -update", schemaFile, err)
	}
}

// The schema names the fields that the parser knows, and no others.
func TestSchemaNamesTheFields(t *testing.T) {
	raw, err := budget.Schema()
	if err != nil {
		t.Fatal(err)
	}
	type object struct {
		Properties map[string]struct {
			Items struct{ Properties map[string]any }
		}
	}
	var s object
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	doc, err := budget.ParseDocument([]byte(limits))
	if err != nil {
		t.Fatal(err)
	}
	doc.Budgets = []budget.Budget{{Scope: "run/*", Window: budget.PerRun, Limits: budget.Limits{
		Money: new(budget.Micro(1)), AcceleratorSeconds: new(budget.Micro(1)), Seconds: map[string]budget.Micro{budget.CPU: 1},
	}}}
	full, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	var fields struct {
		Budgets []map[string]any `json:"budgets"`
	}
	var top map[string]any
	if err := json.Unmarshal(full, &fields); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(full, &top); err != nil {
		t.Fatal(err)
	}
	same := func(what string, got, want []string) {
		t.Helper()
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: the schema has %s, the parser %s", what, strings.Join(got, " "), strings.Join(want, " "))
		}
	}
	same("document", keys(s.Properties), keys(top))
	same("budget", keys(s.Properties["budgets"].Items.Properties), keys(fields.Budgets[0]))
}

func keys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	return out
}
