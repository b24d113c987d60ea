package governance_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// hugeData is as much data as an event may carry.
func hugeData() map[string]any {
	return map[string]any{"xs": make([]int, 15_000), "s": strings.Repeat("x", 30_000)}
}

// Nothing a policy says about the largest event may hold the bus: each of these
// would run for minutes or fill the memory if nothing stopped it.
func TestHostileExpressionsAreStopped(t *testing.T) {
	for name, expr := range map[string]string{
		"nested all":          "data.xs.all(a, data.xs.all(b, data.xs.all(c, a == b && b == c)))",
		"nested exists":       "data.xs.exists(a, data.xs.exists(b, a != b))",
		"nested map":          "data.xs.map(a, data.xs.map(b, [a, b])).size() == 0",
		"filter of filters":   "data.xs.filter(a, data.xs.filter(b, b == a).size() > 0).size() == 0",
		"growing strings":     "data.xs.map(a, data.s + data.s + string(a)).size() == 0",
		"growing lists":       "data.xs.map(a, data.xs + data.xs + data.xs).map(l, l.map(x, x)).size() == 0",
		"formatted lists":     "data.xs.map(a, '%s%s%s'.format([data.xs, data.xs, data.s])).size() == 0",
		"replacements":        "data.xs.map(a, data.s.replace('x', '" + strings.Repeat("y", 200) + "')).size() == 0",
		"membership":          "data.xs.all(a, !(7 in data.xs))",
		"regular expressions": "data.xs.all(a, !data.s.matches('(x+x+)+y'))",
		"deep comparison":     "data.xs.all(a, [data.xs] == [data.xs])",
		"repeated comparison": "data.xs.all(a, data.xs == data.xs)",
	} {
		t.Run(name, func(t *testing.T) {
			log := &governance.MemoryLog{}
			e := engine(t, load(t, governance.Options{}, policyYAML("p", "{}", rule("r", expr))), log)
			start := time.Now()
			v := judge(t, e, events.OnPublish, newEvent(t, "batch.published", hugeData()))[0]
			if v.Action != events.Deny || lastDecision(log).Code != governance.CodeEvaluation || !strings.Contains(v.Reason, "limit exceeded") {
				t.Errorf("%+v", v)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestVariablesThatDoubleAreStopped(t *testing.T) {
	var vars strings.Builder
	vars.WriteString("  variables:\n    - {name: v0, expression: \"data.s + data.s\"}\n")
	for i := range 40 {
		fmt.Fprintf(&vars, "    - {name: v%d, expression: \"variables.v%d + variables.v%d\"}\n", i+1, i, i)
	}
	file := strings.Replace(policyYAML("p", "{}", rule("r", "size(variables.v40) == 0")), "  rules:", vars.String()+"  rules:", 1)
	e := engine(t, load(t, governance.Options{}, file), discard)
	v := judge(t, e, events.OnPublish, newEvent(t, "batch.published", map[string]string{"s": strings.Repeat("x", 30_000)}))[0]
	if v.Action != events.Deny || !strings.Contains(v.Reason, "limit exceeded") {
		t.Errorf("%+v", v)
	}
}

func TestEventCostBoundsManyRules(t *testing.T) {
	var rules strings.Builder
	for i := range 100 {
		rules.WriteString(rule(fmt.Sprintf("r%d", i), fmt.Sprintf("data.xs.all(a, a != %d)", i+1)))
	}
	opts := governance.Options{Limits: governance.Limits{EventCost: 300_000}}
	e, err := governance.NewEngine(governance.Config{
		Policies: load(t, opts, policyYAML("p", "{}", rules.String())), Log: discard, Keys: ring(t, "k1"), Deadline: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	v := judge(t, e, events.OnPublish, newEvent(t, "batch.published", hugeData()))[0]
	if v.Action != events.Deny || !strings.Contains(v.Reason, "cost more than 300000") {
		t.Errorf("%+v", v)
	}
}

func TestDeadlineStopsAnEvaluation(t *testing.T) {
	opts := governance.Options{Limits: governance.Limits{ExpressionCost: 1 << 50, EventCost: 1 << 50}}
	e, err := governance.NewEngine(governance.Config{
		Policies: load(t, opts, policyYAML("p", "{}", rule("r", "data.xs.all(a, data.xs.all(b, a == b))"))),
		Log:      discard, Keys: ring(t, "k1"), Deadline: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	v := judge(t, e, events.OnPublish, newEvent(t, "batch.published", hugeData()))[0]
	if v.Action != events.Deny || !strings.Contains(v.Reason, "limit exceeded") {
		t.Errorf("%+v", v)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}

// The end of the caller's context is an error and not a denial, which no one
// would retry.
func TestEndedContextDecidesNothing(t *testing.T) {
	log := &governance.MemoryLog{}
	ctx, cancel := context.WithCancel(context.Background())
	e, err := governance.NewEngine(governance.Config{
		Policies: load(t, governance.Options{}, policyYAML("p", "{}", rule("r", "data.xs.all(a, data.xs.all(b, a == b))"))),
		Log:      log, Keys: ring(t, "k1"), Clock: func() time.Time { cancel(); return testTime },
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Judge(ctx, events.OnPublish, []*events.Event{newEvent(t, "batch.published", hugeData())}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if c, err := log.Count(context.Background(), time.Time{}); err != nil || c.Judged(events.OnPublish) != 0 {
		t.Errorf("%v %v", c, err)
	}
}

// What cel-go would account for only after the work is done is refused when the
// policy is loaded.
func TestUnboundedCallsAreRefused(t *testing.T) {
	for expr, want := range map[string]string{
		"data.s.matches(string(data.p))":                                                       "must be a literal",
		"data.s.matches('" + strings.Repeat("a", 2000) + "')":                                  "regex program size 2002 exceeds",
		"data.s.matches('((a{100}){100}){9}')":                                                 "invalid matches argument",
		"data.s.matches('(')":                                                                  "invalid matches argument",
		"string(data.s).replace('a', string(data.p)) == ''":                                    "must be a literal",
		"['a'].join(string(data.p)) == ''":                                                     "must be a literal",
		"string(data.p).format([1]) == ''":                                                     "must be a literal",
		"'" + strings.Repeat("%s", 20) + "'.format([1" + strings.Repeat(",1", 19) + "]) == ''": "at most 16 clauses",
		"sets.contains(data.xs, data.ys)":                                                      "literal list of at most 64",
		"event.time.getHours(string(data.tz)) == 1":                                            "must be a literal",
		"[1].all(a, [1].all(b, [1].all(c, [1].all(d, a == d))))":                               "nesting limit",
		"duration('nonsense') == duration('1s')":                                               "duration",
	} {
		_, err := governance.Load(governance.Options{}, governance.Source{Name: "test.yaml", Data: []byte(policyYAML("p", "{}", rule("r", expr)))})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: got %v, want %q", expr, err, want)
		}
	}
}

// cel-go ignores the cost limit when it tracks state or evaluates exhaustively,
// so that these options must not come into the package.
func TestCostLimitIsNotSwitchedOff(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for n, line := range strings.Split(string(src), "\n") {
			code, _, _ := strings.Cut(line, "//")
			for _, bad := range []string{"OptTrackState", "OptExhaustiveEval", "ExhaustiveEval(", "EvalStateObserver"} {
				if strings.Contains(code, bad) {
					t.Errorf("%s:%d uses %s", f, n+1, bad)
				}
			}
		}
	}
}

func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Log("the race detector changes what escapes; counts are checked without it")
	}
	set := load(t, typed(), policyYAML("p", "{}", rule("r", "event.pipeline == 'flights-train'")))
	e := engine(t, set, discard)
	ev := newEvent(t, "batch.published", promo())
	evs := []*events.Event{ev}
	measure := func(at events.Point, prepare func()) float64 {
		return testing.AllocsPerRun(200, func() {
			prepare()
			if vs, err := e.Judge(context.Background(), at, evs); err != nil || !vs[0].Action.Permits() {
				t.Fatal(vs, err)
			}
		})
	}
	publish := measure(events.OnPublish, func() { strip(ev) })
	receive := measure(events.OnReceive, func() {})
	t.Logf("publish %.0f, receive %.0f", publish, receive)
	if !raceEnabled && (publish > 7 || receive > 3) {
		t.Errorf("publish allocates %.0f times (limit 7), receive %.0f (limit 3)", publish, receive)
	}
}
