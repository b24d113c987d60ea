package governance_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// What fails to evaluate denies with the error as its reason, which is kept for
// months: nothing of the event's data may be in it.
func TestAFailedExpressionSaysNothingOfTheData(t *testing.T) {
	const secret = "hunter2-correct-horse"
	for _, expr := range []string{
		"int(data.secret) > 0",
		"uint(data.secret) > 0u",
		"double(data.secret) > 0.0",
		"bool(data.secret)",
		"timestamp(data.secret) < timestamp('2026-01-01T00:00:00Z')",
		"duration(data.secret) < duration('1s')",
		"data.m[data.secret] == 1.0",
		"{'a': 1}[data.secret] == 1",
		"data.secret > 5.0",
		"data[data.secret].x == 1.0",
		"data.secret.charAt(1000) == 'a'",
		"data.list[int(data.secret)] == 1.0",
		"int(data.number) > 0 && data.m.nosuch == 1",
		"'x'.substring(int(data.number)) == 'x'",
	} {
		t.Run(expr, func(t *testing.T) {
			set, err := governance.Load(governance.Options{}, governance.Source{Name: "p.yaml", Data: []byte(`
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: p}
spec:
  match: {types: ["*"]}
  rules: [{name: r, expression: "` + expr + `"}]
`)})
			if err != nil {
				t.Fatal(err)
			}
			log := &governance.MemoryLog{}
			key, err := governance.NewKey("k")
			if err != nil {
				t.Fatal(err)
			}
			ring, err := governance.NewKeyRing(key)
			if err != nil {
				t.Fatal(err)
			}
			e, err := governance.NewEngine(governance.Config{Policies: set, Log: log, Keys: ring})
			if err != nil {
				t.Fatal(err)
			}
			ev, err := events.New("t", "s", "x", "id", time.Now(), map[string]any{
				"secret": secret, "m": map[string]any{"a": 1}, "list": []int{1}, "number": 98765432123456,
			})
			if err != nil {
				t.Fatal(err)
			}
			vs, err := e.Judge(context.Background(), events.OnPublish, []*events.Event{&ev})
			if err != nil {
				t.Fatal(err)
			}
			if vs[0].Action != events.Deny {
				t.Fatalf("verdict %+v; the expression was meant to fail", vs[0])
			}
			if strings.Contains(vs[0].Reason, secret) || strings.Contains(vs[0].Reason, "98765432123456") {
				t.Errorf("the reason holds the secret: %s", vs[0].Reason)
			}
		})
	}
}
