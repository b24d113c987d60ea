package governance_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

func standardTypes(t testing.TB) *events.Registry {
	t.Helper()
	r, err := events.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// What the standard events carry is there without any source.
func TestFactsThatEventsCarry(t *testing.T) {
	metrics := func(l float64) map[string]float64 { return map[string]float64{"logloss": l} }
	promotion := events.PromotionRequested{
		Model: "late", Challenger: "v2", Champion: "v1", Run: "run-7", Rows: 5000,
		Metrics: events.PromotionMetrics{Challenger: metrics(0.40), Champion: metrics(0.45)},
		Place:   &events.Place{Region: "eu", PII: []string{"*"}},
	}
	first := promotion
	first.Champion, first.Metrics.Champion = "", nil
	for _, c := range []struct {
		typ  string
		data any
		expr string
		want string // of the reason; "": holds
	}{
		{events.TypeBatchPublished, events.BatchPublished{Dataset: "flights", Sequence: 4, Rows: 100, BodyBytes: 800, Fingerprint: "f", Tier: "hot", URI: "shm://a/1"},
			`batch.dataset == 'flights' && batch.sequence == 4 && batch.rows == 100 && batch.bytes == 800 && batch.tier == 'hot' && ref.tier(batch.uri) == 'hot' && dataset.name == 'flights' && dataset.fingerprint == 'f'`, ""},
		{events.TypeBatchPublished, events.BatchPublished{}, `batch.labels.any('pii') && batch.labels.values('residency') == ['eu'] && dataset.labels.any(['x', 'res*'])`, ""},
		{events.TypeBatchPublished, events.BatchPublished{}, `batch.columns.size() > 0`, `missing field: the fact batch has no field "columns"; where it may be absent write .?columns.orValue(...) or has()`},
		{events.TypeMigrationRequested, events.TierMigrationRequested{Dataset: "flights", Batches: 3, To: "cold", Place: &events.Place{Region: "eu", PII: []string{"*"}}}, `dataset.name == 'flights' && data.batches == 3`, ""},
		{events.TypeTierMoveRequested, events.TierMoveRequested{Dataset: "flights", Sequence: 4, From: "warm", To: "cold", Bytes: 7, Place: &events.Place{Region: "eu", PII: []string{"*"}}}, `batch.tier == 'warm' && batch.sequence == 4 && dataset.name == 'flights'`, ""},
		{events.TypeTierMoved, events.TierMoved{Dataset: "flights", To: "cold", Bytes: 7}, `batch.tier == 'cold' && batch.bytes == 7 && !has(batch.rows)`, ""},
		{events.TypeDatasetSealed, events.DatasetSealed{Dataset: "flights", Batches: 2, Rows: 9}, `dataset.sealed && dataset.rows == 9 && dataset.batches == 2 && dataset.name == 'flights'`, ""},
		{events.TypePromotionRequested, promotion, `model.version == 'v2' && champion.version == 'v1' && model.metrics.logloss < champion.metrics.logloss - 0.01 && model.rows == champion.rows && model.run == 'run-7'`, ""},
		{events.TypePromotionRequested, first, `!has(champion.version) && champion.name == 'late' && champion.?metrics.?logloss.orValue(9.0) == 9.0`, ""},
		{events.TypePromotionRequested, first, `champion.metrics.logloss > 0.0`, `missing field: the fact champion has no field "metrics"; where it may be absent write .?metrics.orValue(...) or has()`},
		{events.TypeModelRegistered, events.ModelRegistered{Model: "late", Version: "v2", Metrics: metrics(1)}, `model.metrics['logloss'] == 1.0 && !has(model.precision) && model.labels.any('pii')`, ""},
		{events.TypeModelPromoted, events.ModelPromoted{Model: "late", Version: "v2", Previous: "v1", Alias: "champion", Place: promotion.Place}, `model.aliases == ['champion'] && champion.version == 'v1'`, ""},
		{events.TypeModelRefused, events.ModelRefused{Model: "late", Version: "v2", Champion: "v1"}, `model.version + champion.version == 'v2v1'`, ""},
		{events.TypeDriftDetected, events.DriftDetected{Model: "late", Version: "v1"}, `model.version == 'v1' && run.pipeline == 'flights-train'`, ""},
		{events.TypeRunStarted, events.RunStarted{Pipeline: "p", Run: "r", Trigger: "drift"}, `run.id == 'r' && run.pipeline == 'p' && run.trigger == 'drift'`, ""},
		{events.TypeStageCompleted, events.StageCompleted{Pipeline: "p", Run: "r", Stage: "s", Attempt: 2}, `run.stage == 's' && run.attempt == 2`, ""},
		{events.TypeRunFailed, events.RunFailed{Pipeline: "p", Run: "r"}, `run.id == 'r'`, ""},
		{events.TypeBatchPublished, events.BatchPublished{}, `actor.name == 'ann' && event.actor == 'ann' && run.id == 'run-7' && run.stage == 'evaluate'`, ""},
		{events.TypeBatchPublished, events.BatchPublished{}, `budget.team.money.spent < budget.team.money.limit`, `missing field: the fact budget has no field "team"; where it may be absent write .?team.orValue(...) or has()`},
		{events.TypeBatchPublished, events.BatchPublished{}, `worker.region == 'eu'`, `missing field: the fact worker has no field "region"; where it may be absent write .?region.orValue(...) or has()`},
	} {
		ev := newEvent(t, c.typ, c.data)
		ev.SetExtension(events.ExtActor, "ann")
		ev.SetExtension(events.ExtLabels, "pii,residency:eu")
		e := engine(t, load(t, governance.Options{Types: standardTypes(t)}, policyYAML("p", "{}", rule("r", c.expr))), discard)
		if v := judge(t, e, events.OnPublish, ev)[0]; v.Action.Permits() != (c.want == "") || c.want != "" && v.Reason != c.want {
			t.Errorf("%s %s: %+v, want %q", c.typ, c.expr, v, c.want)
		}
	}
}

func TestMisspeltFactsAreCompileErrors(t *testing.T) {
	for expr, want := range map[string]string{
		`batch.row > 3`:                                   `test.yaml:11:14: policy p: rule r: spec.rules[0].expression: undefined field 'row' [expression 1:6] (did you mean "rows"?)`,
		`model.metric.logloss > 0.1`:                      `(did you mean "metrics"?)`,
		`budget.team.mony.spent > 1.0`:                    `(did you mean "money"?)`,
		`budget.?team.money.spnt.orValue(0.0) > 1.0`:      `(did you mean "spent"?)`,
		`worker.accelerater == 'h100'`:                    `(did you mean "accelerator"?)`,
		`batch.columns['a'].nuls > 3`:                     `(did you mean "nulls"?)`,
		`params.margn > 0.1`:                              `(did you mean "margin"?)`,
		`chmpion.version == 'x'`:                          `undeclared reference to 'chmpion'`,
		`batch.rows == 'many'`:                            `found no matching overload for '_==_' applied to '(int, string)'`,
		`params.margin == 'x'`:                            `found no matching overload for '_==_' applied to '(double, string)'`,
		`dataset.labels.any(3)`:                           `found no matching overload for 'any'`,
		`semver.compare(1, '2') > 0`:                      `found no matching overload for 'semver.compare'`,
		`stokehold.facts.Batch{rows: 3}.rows == 3`:        `cannot be made in an expression`,
		`semver.compair(model.version, '2.0.0') > 0`:      `undeclared reference`,
		`now.within('22:00', '06:00', string(data.zone))`: `the time zone of within() must be a literal string`,
	} {
		file := strings.Replace(policyYAML("p", "{}", rule("r", expr)), "  rules:", "  params: {margin: {type: double, default: 0.1}}\n  rules:", 1)
		_, err := governance.Load(governance.Options{}, governance.Source{Name: "test.yaml", Data: []byte(file)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v\nwant %q", expr, err, want)
		}
	}
}

// Only what an expression reads is asked for, once an event.
func TestFactsAreAskedForWhenRead(t *testing.T) {
	asked := map[string]int{}
	facts := governance.Facts{
		Batch: func(_ context.Context, ev *events.Event, b *governance.Batch) error {
			asked["batch"]++
			if ev.ID() != "ev-1" || b.Dataset != "flights" {
				t.Errorf("asked about %s of %+v", ev.ID(), b)
			}
			b.Columns = map[string]governance.Column{"delay": {Type: "float64", Nulls: new(int64(3)), Mean: new(4.5)}}
			return nil
		},
		Dataset: func(context.Context, *events.Event, *governance.Dataset) error { asked["dataset"]++; return nil },
		Budget: func(_ context.Context, _ *events.Event, b *governance.Budget) error {
			asked["budget"]++
			b.Team = &governance.Spending{Money: &governance.Amount{Spent: 90, Limit: new(100.0)}}
			return nil
		},
	}
	set := load(t, governance.Options{Types: standardTypes(t)}, policyYAML("a", "{}",
		rule("one", "batch.columns['delay'].nulls == 3 && batch.columns.delay.mean > 4.0")+
			rule("two", "batch.rows == 100 || dataset.rows > 3")+rule("three", "budget.team.money.spent < budget.team.money.limit * 0.95 && !has(budget.pipeline)")),
		policyYAML("b", "{subjects: [elsewhere]}", rule("never", "worker.region == 'eu'")))
	e := engineWith(t, governance.Config{Policies: set, Facts: facts})
	ev := newEvent(t, events.TypeBatchPublished, events.BatchPublished{Dataset: "flights", Rows: 100})
	if v := judge(t, e, events.OnPublish, ev)[0]; !v.Action.Permits() {
		t.Fatalf("%+v", v)
	}
	if fmt.Sprint(asked) != "map[batch:1 budget:1]" {
		t.Errorf("asked %v", asked)
	}
	// What a fact says can change: it is asked for again on receive.
	if v := judge(t, e, events.OnReceive, ev)[0]; !v.Action.Permits() || asked["budget"] != 2 {
		t.Errorf("%+v, asked %v", v, asked)
	}
}

func TestFactsFailClosed(t *testing.T) {
	for name, c := range map[string]struct {
		source func(context.Context, *governance.Model) error
		want   string
	}{
		"an error": {func(context.Context, *governance.Model) error { return errors.New("registry away") }, "unknown fact: the fact model: registry away"},
		"NaN": {func(_ context.Context, m *governance.Model) error {
			m.Metrics = map[string]float64{"auc": math.NaN()}
			return nil
		}, "unknown fact: the fact model: json: unsupported value: NaN"},
		"infinity": {func(_ context.Context, m *governance.Model) error {
			m.Metrics = map[string]float64{"auc": math.Inf(1)}
			return nil
		}, "unknown fact: the fact model: json: unsupported value: +Inf"},
		"too much": {func(_ context.Context, m *governance.Model) error {
			m.Datasets = []string{strings.Repeat("x", 2<<20)}
			return nil
		}, "unknown fact: the fact model: evaluation limit exceeded: 2097"},
		"never an answer": {func(ctx context.Context, _ *governance.Model) error { <-ctx.Done(); return context.Cause(ctx) }, "unknown fact: the fact model: the time for asking about one event ran out"},
		"nothing known":   {func(context.Context, *governance.Model) error { return nil }, `missing field: the fact model has no field "metrics"`},
	} {
		t.Run(name, func(t *testing.T) {
			log := &governance.MemoryLog{}
			e := engineWith(t, governance.Config{
				Policies: load(t, governance.Options{}, policyYAML("p", "{}", rule("r", "model.metrics.auc > 0.5"))), Log: log, FactsTimeout: 50 * time.Millisecond,
				Facts: governance.Facts{Model: func(ctx context.Context, _ *events.Event, m *governance.Model) error { return c.source(ctx, m) }},
			})
			v := judge(t, e, events.OnPublish, newEvent(t, "custom.type", nil))[0]
			if v.Action != events.Deny || !strings.HasPrefix(v.Reason, c.want) || lastDecision(log).Code != governance.CodeEvaluation {
				t.Errorf("%+v, want %q", v, c.want)
			}
		})
	}
	// Data that the fact is read from are read as strictly as data itself.
	for _, bad := range []string{`{"model":"late","model":"x","version":"v","run":"r"}`, `{"Model":"late"}`, `{"model":"late","metrics":{"auc":NaN}}`, `[]`, ``} {
		e := engine(t, load(t, governance.Options{}, policyYAML("p", "{}", rule("r", "model.name == 'late'"))), discard)
		ev := newEvent(t, events.TypeModelRegistered, nil)
		ev.DataEncoded = []byte(bad)
		if v := judge(t, e, events.OnPublish, ev)[0]; v.Action != events.Deny || !strings.HasPrefix(v.Reason, "unknown fact: the fact model: unreadable event data: ") {
			t.Errorf("%s: %+v", bad, v)
		}
	}
	ev := newEvent(t, events.TypeBatchPublished, events.BatchPublished{})
	ev.SetExtension(events.ExtLabels, "pii,,")
	e := engine(t, load(t, governance.Options{}, policyYAML("p", "{}", rule("r", "!batch.labels.any('pii')"))), discard)
	if v := judge(t, e, events.OnPublish, ev)[0]; v.Action != events.Deny || !strings.Contains(v.Reason, "stklabels: label") {
		t.Errorf("malformed labels: %+v", v)
	}
}

// A condition sees the event alone, whatever its own variables are called.
func TestConditionsSeeNoFacts(t *testing.T) {
	for _, expr := range []string{"batch.rows > 3", "params.x > 3", "actor.name == ''"} {
		if _, err := governance.CompileCondition(expr); err == nil {
			t.Errorf("%s compiles", expr)
		}
	}
	c, err := governance.CompileCondition("champion.auc > 0.5", governance.Var{Name: "champion", Zero: metrics{}})
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := c.Eval(context.Background(), newEvent(t, "x", nil), map[string]any{"champion": metrics{AUC: 0.6}}); err != nil || !ok {
		t.Errorf("%v %v", ok, err)
	}
}

func TestFunctions(t *testing.T) {
	for expr, want := range map[string]string{
		`semver.compare('1.10.0', '1.9.0') == 1 && semver.compare('v2.0.0-rc.1', '2.0.0') == -1 && semver.compare('1.2', 'v1.2.0') == 0`: "",
		`semver.compare('one', '1.0.0') == 0`: `evaluation failed: "one" is not a semantic version`,
		`cidr.contains('10.0.0.0/8', '10.1.2.3') && !cidr.contains('10.0.0.0/8', '11.0.0.1') && cidr.contains('2001:db8::/32', '2001:db8::1')`: "",
		`cidr.contains('10.0.0.0/8', '::ffff:10.1.2.3')`:                     "",
		`cidr.contains('10.0.0.0/33', '10.0.0.1')`:                           `evaluation failed: "10.0.0.0/33" is not a network such as 10.0.0.0/8`,
		`cidr.contains('10.0.0.0/8', 'localhost')`:                           `evaluation failed: "localhost" is not an IP address`,
		`'eu-west-1'.glob('eu-*') && !'us'.glob('eu*') && 'abc'.glob('a?c')`: "",
		`days(2) == hours(48) && days(-1) < duration('0s')`:                  "",
		`days(999999999) > hours(1)`:                                         `evaluation failed: duration out of range`,
		`timestamp('2026-03-01T23:30:00Z').within('22:00', '06:00') && !timestamp('2026-03-01T06:00:00Z').within('22:00', '06:00')`:                 "",
		`timestamp('2026-03-01T21:30:00Z').within('22:00', '06:00', 'Europe/Berlin') && timestamp('2026-03-01T12:00:00Z').within('09:00', '17:00')`: "",
		`now.within('25:00', '06:00')`:              `evaluation failed: "25:00" is not a time of day such as 22:00`,
		`now.within('22:00', '06:00', 'Mars/Base')`: `evaluation failed: "Mars/Base" is not a time zone`,
		`stats.mean([1, 2, 3.0, 4u]) == 2.5 && stats.stddev([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) > 2.138 && stats.stddev([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) < 2.1381 && stats.stddev([3.0]) == 0.0`: "",
		`stats.quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5 && stats.quantile([1.0, 2.0], 1.0) == 2.0 && stats.quantile([1.0], 0.3) == 1.0`:                                                                       "",
		`stats.quantile([1.0], 1.5) == 1.0`: `evaluation failed: a quantile is from 0.0 to 1.0`,
		`stats.psi([10.0, 10.0], [1.0, 1.0]) == 0.0 && stats.psi([0.5, 0.5], [0.9, 0.1]) > 0.878 && stats.psi([0.5, 0.5], [0.9, 0.1]) < 0.879`: "",
		`stats.psi([1.0, 0.0], [0.5, 0.5]) > 1.0`:  "",
		`stats.psi([1.0], [0.5, 0.5]) > 1.0`:       `evaluation failed: histograms of 1 and 2 bins`,
		`stats.psi([0.0], [1.0]) > 1.0`:            `evaluation failed: a histogram of nothing`,
		`stats.psi([-1.0, 2.0], [1.0, 1.0]) > 1.0`: `evaluation failed: a histogram with a negative bin`,
		`stats.mean([]) == 0.0`:                    `evaluation failed: statistics of an empty list`,
		`stats.mean(['a']) == 0.0`:                 `evaluation failed: statistics of a list with a string in it`,
		`stats.mean([0.0 / 0.0]) == 0.0`:           `evaluation failed: statistics of a list with NaN in it`,
		`stats.mean([1e308, -1e308, 1e308]) > 0.0`: `evaluation failed: a statistic out of range`,
		`['pii', 'residency:eu'].any('residency:*') && !['pii'].any(['phi', 'secret']) && !['pii'].any([])`:          "",
		`['residency:eu', 'residency:us', 'pii'].values('residency') == ['eu', 'us'] && ['pii'].values('pii') == []`: "",
		`ref.tier('s3://b/k') == 'cold' && ref.tier('file:///x') == 'warm'`:                                          "",
		`ref.tier('http://x') == 'cold'`: `evaluation failed: a ref of the scheme "http" is of no tier`,
	} {
		e := engine(t, load(t, governance.Options{}, policyYAML("p", "{}", rule("r", expr))), discard)
		if v := judge(t, e, events.OnPublish, newEvent(t, "batch.published", nil))[0]; v.Action.Permits() != (want == "") || want != "" && v.Reason != want {
			t.Errorf("%s: %+v, want %q", expr, v, want)
		}
	}
}
