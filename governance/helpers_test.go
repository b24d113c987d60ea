package governance_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

var testTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type metrics struct {
	LogLoss float64 `json:"logloss"`
	AUC     float64 `json:"auc"`
	Rows    int     `json:"rows"`
}

type promotion struct {
	Model      string            `json:"model"`
	Challenger metrics           `json:"challenger"`
	Champion   *metrics          `json:"champion,omitempty"`
	Labels     []string          `json:"labels,omitempty"`
	Tags       map[string]string `json:"tags,omitempty"`
	Evaluated  time.Time         `json:"evaluated"`
	Took       time.Duration     `json:"took"`
	Extra      any               `json:"extra,omitempty"`
}

// registry is a TypeSource of a few types.
type registry map[string]events.Type

func (r registry) Lookup(name string) (events.Type, bool) { t, ok := r[name]; return t, ok }

func (r registry) All() []events.Type {
	var out []events.Type
	for _, t := range r {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b events.Type) int { return strings.Compare(a.Name, b.Name) })
	return out
}

var testTypes = registry{
	"model.promotion.requested": {Name: "model.promotion.requested", Data: promotion{}},
	"batch.published":           {Name: "batch.published"},
	"drift.detected":            {Name: "drift.detected"},
	"model.promoted":            {Name: "model.promoted"},
}

func promo() promotion {
	return promotion{
		Model: "late", Challenger: metrics{0.40, 0.71, 5000}, Champion: &metrics{0.45, 0.70, 5000},
		Labels: []string{"public"}, Tags: map[string]string{"team": "ops"}, Evaluated: testTime, Took: 90 * time.Second,
	}
}

func newEvent(t testing.TB, typ string, data any) *events.Event {
	t.Helper()
	ev, err := events.New(typ, "stokehold/flights", "late", "ev-1", testTime, data)
	if err != nil {
		t.Fatal(err)
	}
	ev.SetExtension(events.ExtPipeline, "flights-train")
	ev.SetExtension(events.ExtRun, "run-7")
	ev.SetExtension(events.ExtStage, "evaluate")
	return &ev
}

// rules makes a policy file of rules in YAML.
func policyYAML(name, match, rules string) string {
	return "apiVersion: stokehold.dev/v1\nkind: Policy\nmetadata:\n  name: " + name + "\nspec:\n  match: " + match + "\n  rules:\n" + rules
}

func rule(name, expr string) string {
	return "    - name: " + name + "\n      expression: |\n        " + expr + "\n      message: " + name + " does not hold\n"
}

func load(t testing.TB, opts governance.Options, files ...string) *governance.PolicySet {
	t.Helper()
	var srcs []governance.Source
	for _, f := range files {
		srcs = append(srcs, governance.Source{Name: "test.yaml", Data: []byte(f)})
	}
	set, err := governance.Load(opts, srcs...)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func typed() governance.Options { return governance.Options{Types: testTypes} }

type logFunc func(context.Context, []governance.Decision) error

func (f logFunc) Append(ctx context.Context, ds []governance.Decision) error { return f(ctx, ds) }

var discard = logFunc(func(context.Context, []governance.Decision) error { return nil })

func ring(t testing.TB, ids ...string) *governance.KeyRing {
	t.Helper()
	var keys []governance.Key
	for _, id := range ids {
		keys = append(keys, governance.Key{ID: id, Secret: []byte(strings.Repeat(id, 40))[:40]})
	}
	r, err := governance.NewKeyRing(keys[0], keys[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func engine(t testing.TB, set *governance.PolicySet, log governance.DecisionLog) *governance.Engine {
	t.Helper()
	e, err := governance.NewEngine(governance.Config{Policies: set, Log: log, Keys: ring(t, "k1"), Clock: func() time.Time { return testTime }})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func judge(t testing.TB, e *governance.Engine, at events.Point, evs ...*events.Event) []events.Verdict {
	t.Helper()
	vs, err := e.Judge(context.Background(), at, evs)
	if err != nil {
		t.Fatal(err)
	}
	return vs
}

func faults(t testing.TB, err error) []*governance.PolicyError {
	t.Helper()
	var le *governance.LoadError
	if !errors.As(err, &le) {
		t.Fatalf("error is %T, want *LoadError: %v", err, err)
	}
	return le.Faults
}
