package governance

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/policy.schema.json")

const schemaFile = "../docs/policy.schema.json"

// When this fails run
//
//	go test ./governance -run TestPublishedSchema -update
func TestPublishedSchema(t *testing.T) {
	want, err := Schema()
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

// everything has each field that a policy file can have.
const everything = `apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: p, description: d}
spec:
  match: {types: [a.b], subjects: [s], pipelines: [p], stages: [s], points: [publish]}
  params: {x: {type: int, default: 1, description: d}}
  variables: [{name: v, expression: "1"}]
  rules:
    - {name: a, expression: "true", message: m, messageExpression: "'m'", reason: R, action: redact, redact: {drop: [data.a], mask: [data.b], dropColumns: [c], maskColumns: [d]}}
    - {name: b, expression: "true", action: route, route: {pipeline: p, tier: hot, workers: w, region: r}}
    - {name: c, expression: "true", action: requireApproval, approval: {roles: [r], quorum: 1, expires: 24h}}
  failure: deny
  mode: enforce
---
apiVersion: stokehold.dev/v1
kind: Binding
metadata: {name: b, description: d}
spec: {policy: p, params: {x: 2}}
`

var index = regexp.MustCompile(`\[\d+\]`)

// The schema knows the fields and words that the parser knows, at every place, and
// no others.
func TestSchemaIsWhatTheParserReads(t *testing.T) {
	read := map[string]map[string][]string{} // by kind and path
	kind := ""
	watch := func(path string, known []string) {
		if path == "" {
			kind = map[bool]string{true: Kind, false: KindBinding}[len(read) == 0]
			read[kind] = map[string][]string{}
		}
		// A parameter's name is its own.
		path = strings.ReplaceAll(index.ReplaceAllString(path, "[]"), "spec.params.x", "spec.params.*")
		known = slices.Sorted(slices.Values(known))
		if prev, ok := read[kind][path]; ok && !slices.Equal(prev, known) {
			t.Errorf("%s is read in two ways: %q and %q", path, prev, known)
		}
		read[kind][path] = known
	}
	l := &loader{seen: map[string]*policySpec{}, bindings: map[string]*bindingSpec{}, watch: watch}
	l.parse(Source{Name: "all.yaml", Data: []byte(everything)})
	if l.faults != nil {
		t.Fatal(l.faults)
	}
	raw, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct{ OneOf []map[string]any }
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	for i, kind := range []string{Kind, KindBinding} {
		published := map[string][]string{}
		walkSchema(doc.OneOf[i], "", published)
		for _, path := range slices.Sorted(maps.Keys(published)) {
			if !slices.Equal(published[path], read[kind][path]) {
				t.Errorf("%s %q: the schema has %q, the parser reads %q", kind, path, published[path], read[kind][path])
			}
		}
		for path := range read[kind] {
			if published[path] == nil {
				t.Errorf("%s %q: the parser reads %q, the schema has nothing", kind, path, read[kind][path])
			}
		}
	}
}

// walkSchema collects the fields of objects and the words of choices.
func walkSchema(n map[string]any, path string, out map[string][]string) {
	join := func(name string) string { return strings.TrimPrefix(path+"."+name, ".") }
	if props, ok := n["properties"].(map[string]any); ok && n["type"] == "object" {
		out[path] = slices.Sorted(maps.Keys(props))
		for name, p := range props {
			walkSchema(p.(map[string]any), join(name), out)
		}
	}
	if more, ok := n["additionalProperties"].(map[string]any); ok {
		walkSchema(more, join("*"), out)
	}
	if items, ok := n["items"].(map[string]any); ok {
		walkSchema(items, path+"[]", out)
	}
	if words, ok := n["enum"].([]any); ok {
		for _, w := range words {
			out[path] = append(out[path], w.(string))
		}
		slices.Sort(out[path])
	}
}
