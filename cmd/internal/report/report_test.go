package report_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/internal/golden"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages/drift"
)

type log struct {
	t   *testing.T
	all []events.Delivery
}

func (l *log) add(typ, id string, at time.Time, data any) {
	l.t.Helper()
	e, err := events.New(typ, "/stokehold/test", "flights", id, at, data)
	if err != nil {
		l.t.Fatal(err)
	}
	l.all = append(l.all, events.Delivery{Event: e, Sequence: uint64(len(l.all) + 1), Deliveries: 1})
}

// week is a week as the monitor and the loop would tell of it.
func (l *log) week(n int, at time.Time, w report.Week) {
	l.t.Helper()
	run, drifted := fmt.Sprint("flights-train/", n), fmt.Sprint("drift/", n)
	auc := func(f report.Float) float64 {
		if !f.Finite() {
			return 0
		}
		return float64(f)
	}
	r := drift.Report{Key: uint64(n), Rows: w.Rows, LogLoss: float64(w.Loop.LogLoss), AUC: auc(w.Loop.AUC),
		FrozenLogLoss: float64(w.Frozen.LogLoss), FrozenAUC: auc(w.Frozen.AUC), Drift: w.Drift}
	if w.Drift {
		r.Event = drifted
		l.add(events.TypeDriftDetected, drifted, at, events.DriftDetected{Model: "flights"})
	}
	if w.Retrained {
		l.add(events.TypeTriggerFired, run+"/fired", at, events.TriggerFired{Run: run, Events: []string{drifted}})
		l.add(events.TypeRunStarted, run+"/started", at, events.RunStarted{Run: run, Cause: drifted})
	}
	l.add(flights.TypeWeekClosed, fmt.Sprint("week/", n), at, r)
	challenger := strings.Repeat("c3", 32)
	switch {
	case w.Promoted:
		l.add(events.TypePromotionRequested, run+"/request", at, events.PromotionRequested{Challenger: challenger, Run: run,
			Metrics: events.PromotionMetrics{Challenger: map[string]float64{"logloss": 0.4512}, Champion: map[string]float64{"logloss": 0.4873}}})
		l.add(events.TypeModelPromoted, run+"/promoted", at, events.ModelPromoted{Alias: models.Champion, Version: challenger, Run: run})
	case w.Retrained:
		l.add(events.TypeModelRefused, run+"/refused", at, events.ModelRefused{Version: challenger, Run: run, Reason: w.Reason})
	case w.Drift:
		l.add(events.TypeTriggerSuppressed, run+"/suppressed", at, events.TriggerSuppressed{Events: []string{drifted}, Reason: w.Reason})
	}
	if w.Retrained {
		l.add(events.TypeRunCompleted, run+"/completed", at, events.RunCompleted{Run: run})
	}
}

func seq[T any](xs []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, x := range xs {
			if !yield(x, nil) {
				return
			}
		}
	}
}

func fixture(t *testing.T) report.Source {
	t.Helper()
	l := &log{t: t}
	day := time.Date(2001, 2, 19, 0, 0, 0, 0, time.UTC)
	for i := range 6 {
		l.add(events.TypeBatchPublished, fmt.Sprint("flights/schedule#", i), day,
			events.BatchPublished{Dataset: "flights/schedule", Sequence: int64(i), Rows: 11000, BodyBytes: 440000, Tier: "hot"})
		if i < 2 {
			l.add(events.TypeTierMoved, fmt.Sprint("moved#", i), day, events.TierMoved{Dataset: "flights/schedule", From: "warm", To: "cold", Bytes: 1000, Reason: "flights/watermarks"})
		}
	}
	l.add(events.TypeBatchExpired, "expired", day, events.BatchExpired{Dataset: "flights/schedule", From: 0, To: 3, Reason: "flights/ttl"})
	l.add(events.TypeStageCompleted, "features-done", day, events.StageCompleted{Stage: "features", Leased: 6, BodyBytes: 2640000,
		Ahead: events.ReadAhead{Hits: 4, Misses: 1, Fresh: 1, BytesEarly: 1760000, BytesLate: 440000, StallSeconds: 0.25}})
	l.add(events.TypeStageCompleted, "score-done", day, events.StageCompleted{Stage: "score", Ahead: events.ReadAhead{Hits: 2, BytesEarly: 10, StallSeconds: 0.125}})
	why := "challenger's log loss 0.4898 on week 10 is not below the champion's 0.4871: the newest weeks have no snow, those it was trained on had"
	for i, w := range []report.Week{
		{Rows: 11234, Frozen: report.Score{LogLoss: 0.4213, AUC: 0.7012}, Loop: report.Score{LogLoss: 0.4213, AUC: 0.7012}},
		{Rows: 11890, Frozen: report.Score{LogLoss: 0.4873, AUC: 0.6612}, Loop: report.Score{LogLoss: 0.4873, AUC: 0.6612}, Drift: true, Retrained: true, Promoted: true, Reason: "log loss 0.4512 < 0.4873"},
		{Rows: 11790, Frozen: report.Score{LogLoss: 0.4901, AUC: 0.6598}, Loop: report.Score{LogLoss: 0.4711, AUC: 0.6790}},
		{Rows: 12011, Frozen: report.Score{LogLoss: 0.4860, AUC: 0.6650}, Loop: report.Score{LogLoss: 0.4871, AUC: 0.6644}, Drift: true, Retrained: true, Reason: why},
		{Rows: 9, Frozen: report.Score{LogLoss: 0.3, AUC: report.Float(math.NaN())}, Loop: report.Score{LogLoss: 0.3, AUC: report.Float(math.NaN())}},
		{Rows: 11500, Frozen: report.Score{LogLoss: 0.4400, AUC: 0.6900}, Loop: report.Score{LogLoss: 0.4391, AUC: 0.6911}, Drift: true, Reason: "the last retraining was less than two weeks ago (cooldown)"},
	} {
		l.week(7+i, day.AddDate(0, 0, 7*i+7), w)
	}
	// Published again after the deduplication window had passed.
	l.all = append(l.all, l.all[0], l.all[len(l.all)-1])
	return report.Source{
		History: seq(l.all),
		Decisions: report.Decisions{Judged: 31, Denied: 1, Rules: []report.Rule{
			{Code: "Unmatched", Actions: map[string]int64{"allow": 29}},
			{Policy: "promotion", Rule: "better", Actions: map[string]int64{"deny": 1, "warn": 1}, Noted: 2},
		}, Denials: []report.Denial{{
			Type: events.TypePromotionRequested, Subject: "flights", ID: "r2/deploy/request", At: day, Policy: "promotion/better", Reason: why}}},
		Models: seq([]models.Version{
			{Model: "flights", ID: strings.Repeat("a1", 32), Status: models.Promoted, Bytes: 900, Lineage: models.Lineage{Run: "r0"}, Metrics: map[string]float64{"logloss": 0.42}},
			{Model: "flights", ID: strings.Repeat("b2", 32), Status: models.Promoted, Bytes: 900, Lineage: models.Lineage{Run: "r1", Parent: strings.Repeat("a1", 32)}},
			{Model: "flights", ID: strings.Repeat("c3", 32), Status: models.Refused, Reason: why, Bytes: 900, Lineage: models.Lineage{Run: "r2"}},
		}),
		Champions: map[string]string{"flights": strings.Repeat("b2", 32)},
		Info: report.Info{Stokehold: "v0.1.0", Seed: 7, Took: 41234567 * time.Microsecond, Reads: report.Reads{Hot: 14, Warm: 2, Cold: 4}, PeakMemoryBytes: 612 << 20,
			Data: report.Data{Source: "flights-2001.parquet", SHA256: strings.Repeat("0f", 32), Rows: 300000}},
	}
}

func build(t *testing.T) report.Report {
	t.Helper()
	r, err := report.Build(fixture(t))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestBuild(t *testing.T) {
	r := build(t)
	if want := (report.Events{Published: 30, Judged: 31, Denied: 1}); r.Events != want {
		t.Errorf("events %+v, want %+v", r.Events, want)
	}
	if want := (report.Batches{Published: 6, Leased: 6, BodyBytes: 2640000}); r.Batches != want {
		t.Errorf("batches %+v, want %+v", r.Batches, want)
	}
	moves := []report.Move{{To: "cold", Reason: "flights/watermarks", Count: 2, Bytes: 2000}, {To: "expired", Reason: "flights/ttl", Count: 3}}
	reads := report.Reads{Hot: 14, Warm: 2, Cold: 4}
	ahead := events.ReadAhead{Hits: 6, Misses: 1, Fresh: 1, BytesEarly: 1760010, BytesLate: 440000, StallSeconds: 0.375}
	if want := (report.Tiers{Hot: 6, Cold: 2, Moved: 2, Moves: moves, Reads: reads, Ahead: ahead}); !reflect.DeepEqual(r.Tiers, want) {
		t.Errorf("tiers %+v, want %+v", r.Tiers, want)
	}
	if len(r.Weeks) != 6 || r.Weeks[0].Week != 7 || r.Weeks[5].From != "2001-03-26" {
		t.Errorf("weeks %+v", r.Weeks)
	}
	if !r.Models[1].Champion || r.Models[0].Champion {
		t.Error("the champion is not marked")
	}
	frozen, loop, rows := r.Means()
	if rows != 58434 || loop.LogLoss >= frozen.LogLoss || !loop.AUC.Finite() {
		t.Errorf("means %v %v %d", frozen, loop, rows)
	}
}

func TestWeeksSayWhatBecameOfDrift(t *testing.T) {
	l := &log{t: t}
	at := time.Date(2001, 3, 5, 0, 0, 0, 0, time.UTC)
	for _, w := range []uint64{3, 1, 2, 4, 5, 0} { // weeks may close out of order
		l.add(events.TypeDriftDetected, fmt.Sprint("drift/", w), at, events.DriftDetected{})
		l.add(flights.TypeWeekClosed, fmt.Sprint("week/", w), at, drift.Report{Key: w, Drift: true, Event: fmt.Sprint("drift/", w)})
	}
	l.add(events.TypeTriggerSuppressed, "s", at, events.TriggerSuppressed{Events: []string{"drift/1"}, Reason: "cooldown"})
	for _, w := range []int{2, 3, 4} {
		l.add(events.TypeRunStarted, fmt.Sprint("r", w), at, events.RunStarted{Run: fmt.Sprint("r/", w), Cause: fmt.Sprint("drift/", w)})
	}
	l.add(events.TypeRunFailed, "f", at, events.RunFailed{Run: "r/2", Reason: "no rows"})
	l.add(events.TypeRunCompleted, "c", at, events.RunCompleted{Run: "r/3"})
	l.add(flights.TypeWeekClosed, "week/5", at, drift.Report{Key: 5, Drift: true, Denied: "the monitor is on leave"})
	var f report.Fold
	for _, d := range l.all {
		f = f.Add(d)
	}
	var got []string
	for _, w := range f.Weeks {
		got = append(got, fmt.Sprintf("%d %s %v %v %q", w.Week, w.From, w.Retrained, w.Promoted, w.Reason))
	}
	want := []string{
		`0 2001-02-26 false false ""`,
		`1 2001-02-26 false false "not retrained: cooldown"`,
		`2 2001-02-26 false false "the retraining failed: no rows"`,
		`3 2001-02-26 true false "the retrained model is the champion already"`,
		`4 2001-02-26 false false ""`, // still at it
		`5 2001-02-26 false false "drift was not acted upon: the monitor is on leave"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestBuildPassesErrorsOn(t *testing.T) {
	src, broken := fixture(t), errors.New("stream gone")
	src.History = func(yield func(events.Delivery, error) bool) { yield(events.Delivery{}, broken) }
	if _, err := report.Build(src); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestJSONFollowsTheSchema(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile("../../../docs/report.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]report.Report{"full": build(t), "empty": func() report.Report {
		r, err := report.Build(report.Source{History: seq[events.Delivery](nil)})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}()} {
		t.Run(name, func(t *testing.T) {
			var buf bytes.Buffer
			if err := r.WriteJSON(&buf); err != nil {
				t.Fatal(err)
			}
			doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(buf.Bytes()))
			if err != nil {
				t.Fatal(err)
			}
			if err := schema.Validate(doc); err != nil {
				t.Errorf("%v\n%s", err, buf.String())
			}
			var back report.Report
			dec := json.NewDecoder(&buf)
			dec.DisallowUnknownFields()
			if err := dec.Decode(&back); err != nil {
				t.Errorf("decode: %v", err)
			}
		})
	}
	// The schema must also refuse: a key that nobody documented is a fault.
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(`{"schema": 1, "surprise": true}`))
	if err != nil {
		t.Fatal(err)
	}
	if schema.Validate(doc) == nil {
		t.Error("the schema lets anything pass")
	}
}

func TestRender(t *testing.T) {
	r := build(t)
	for _, width := range []int{80, 120} {
		golden.Compare(t, fmt.Sprintf("table%d.txt", width), r.Render(width, report.Theme{}))
	}
	for _, width := range []int{1, 20, 79, 80, 81, 120, 300} {
		for _, dark := range []bool{true, false} {
			for l := range strings.Lines(r.Render(width, report.NewTheme(dark))) {
				if n := lipgloss.Width(strings.TrimRight(l, "\n")); n > width {
					t.Errorf("width %d: a line of %d cells: %q", width, n, l)
				}
			}
		}
	}
	if got, want := ansi.Strip(r.Render(100, report.NewTheme(true))), r.Render(100, report.Theme{}); got != want {
		t.Errorf("colours change the text:\n%s\n%s", got, want)
	}
}

func TestRenderKeepsControlCharactersOut(t *testing.T) {
	r := report.Report{Weeks: []report.Week{{Week: 1, Drift: true, Reason: "a\x1b]0;pwned\x07b\r\n\x9b31mc\u202e"}}}
	if s := r.Render(80, report.Theme{}); strings.ContainsAny(s, "\x1b\x07\r\u009b\u202e") {
		t.Errorf("control characters in %q", s)
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -100: "-100"} {
		if got := report.Count(n); got != want {
			t.Errorf("Count(%d) = %s, want %s", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 612 << 20: "612.0 MiB", 3 << 30: "3.0 GiB"} {
		if got := report.Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %s, want %s", n, got, want)
		}
	}
}

func ExampleReport_Render() {
	r := report.Report{Weeks: []report.Week{{
		Week: 9, From: "2001-03-05", Rows: 11790, Drift: true, Retrained: true, Promoted: true,
		Frozen: report.Score{LogLoss: 0.4901, AUC: 0.6598}, Loop: report.Score{LogLoss: 0.4711, AUC: 0.6790},
	}}}
	t := report.Table{Width: 100}
	fmt.Println(t.Head(0)[1])
	fmt.Println(t.Row(r.Weeks[0]))
	// Output:
	// week from      rows  frozen   loop       Δ  frozen   loop       Δ  outcome
	//    9 Mar  5  11,790  0.4901 0.4711 ▼0.0190  0.6598 0.6790 ▲0.0192  ● ✓ promoted
}
