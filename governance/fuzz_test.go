package governance_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// FuzzLoad: no file panics; a file is refused with a *LoadError or its set can
// judge.
func FuzzLoad(f *testing.F) {
	if raw, err := os.ReadFile("testdata/promotion.yaml"); err == nil {
		f.Add(raw)
	}
	f.Add([]byte(policyYAML("p", "{types: ['*']}", rule("r", "data.x == 1"))))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("spec: {rules: [{expression: |\n x}]}"))
	f.Add([]byte("--- \n---\n? a\n: b"))
	f.Add([]byte("kind: \"\xff\""))
	golden, err := filepath.Glob("testdata/golden/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range golden {
		if raw, err := os.ReadFile(name); err == nil {
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		set, err := governance.Load(typed(), governance.Source{Name: "fuzz.yaml", Data: raw})
		if err != nil {
			var le *governance.LoadError
			if !errors.As(err, &le) || len(le.Faults) == 0 || le.Error() == "" {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		e := engine(t, set, discard)
		ev := newEvent(t, "model.promotion.requested", promo())
		v := judge(t, e, events.OnPublish, ev)[0]
		if (v.Action == events.RequireApproval) != (v.Approval != nil) || v.DecisionID == "" {
			t.Fatalf("%+v", v)
		}
		if governance.Lint(set); v.Action.Permits() && stampOf(ev) == "" {
			t.Fatalf("permitted without a stamp: %+v", v)
		}
	})
}

// FuzzEvaluate: no expression on no data panics, holds the bus or lets an event
// pass that it cannot be evaluated for.
func FuzzEvaluate(f *testing.F) {
	for _, expr := range []string{
		"data.a.all(x, x > 1)", "stats.psi(data.a, data.b) < 0.2", "data.s.glob('a*b')", "batch.rows > 3 && batch.labels.any(['pii', 'r:*'])",
		"semver.compare(string(data.s), '1.0.0') > 0", "now.within('22:00', '06:00', 'Europe/Berlin')", "data.?a.orValue([1.0]).map(x, x * 2.0).size() == 3",
		"cidr.contains('10.0.0.0/8', data.s)", "stats.quantile(data.a, 0.5) > days(3).getHours()", "ref.tier(data.s) == 'hot'", "params.x > data.n", "'%s'.format([data]) == ''",
	} {
		f.Add(expr, []byte(`{"a":[1,2.5,3],"b":[1,1,1],"s":"10.0.0.1","n":3}`), events.TypeBatchPublished)
		f.Add(expr, []byte(`{"dataset":"d","sequence":1,"rows":4,"body_bytes":1,"fingerprint":"f","tier":"hot","uri":"shm://x"}`), "custom.type")
	}
	f.Fuzz(func(t *testing.T, expr string, data []byte, typ string) {
		if strings.ContainsAny(expr, "\r\n\x00") || !utf8.ValidString(expr) {
			return
		}
		file := strings.Replace(policyYAML("p", "{}", rule("r", expr)), "  rules:", "  params: {x: {type: int, default: 1}}\n  rules:", 1)
		set, err := governance.Load(governance.Options{}, governance.Source{Name: "fuzz.yaml", Data: []byte(file)})
		if err != nil {
			return
		}
		log := &governance.MemoryLog{}
		ev := newEvent(t, "a.b", nil)
		ev.Context.(*event.EventContextV1).Type = typ
		ev.DataEncoded = data
		start := time.Now()
		v := judge(t, engine(t, set, log), events.OnPublish, ev)[0]
		if took := time.Since(start); took > 4*time.Second { // the deadline is one
			t.Fatalf("%q took %s", expr, took)
		}
		if d := lastDecision(log); d.Code == governance.CodeEvaluation && v.Action != events.Deny {
			t.Fatalf("%+v", v)
		}
	})
}

// FuzzStamp: no extension values panic, and none but the engine's own pass.
func FuzzStamp(f *testing.F) {
	set := load(f, governance.Options{})
	e := engine(f, set, discard)
	good := newEvent(f, "batch.published", nil)
	judge(f, e, events.OnPublish, good)
	stamp := stampOf(good)
	f.Add(stamp)
	f.Add(stamp[:len(stamp)-1])
	f.Add(strings.Replace(stamp, ".", "-", 1))
	f.Add("")
	f.Add("...")
	f.Fuzz(func(t *testing.T, text string) {
		ev := newEvent(t, "batch.published", nil)
		ev.Context.(*event.EventContextV1).Extensions[governance.ExtStamp] = text
		v := judge(t, e, events.OnReceive, ev)[0]
		genuine := text == stamp
		if v.Action.Permits() != genuine {
			t.Fatalf("%+v for %q", v, text)
		}
	})
}
