package governance_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

const gate = `{types: [model.promotion.requested], points: [publish, receive]}`

func benchSet(tb testing.TB, n int, rules string) *governance.PolicySet {
	files := []string{policyYAML("gate", gate, rules)}
	for i := range n {
		files = append(files, policyYAML(fmt.Sprintf("other-%d", i), fmt.Sprintf(`{types: ["other.%d"]}`, i), rule("r", "event.id != ''")))
	}
	types := registry{}
	for k, v := range testTypes {
		types[k] = v
	}
	for i := range n {
		name := fmt.Sprintf("other.%d", i)
		types[name] = events.Type{Name: name}
	}
	return load(tb, governance.Options{Types: types}, files...)
}

// BenchmarkPublish judges and stamps one event a call, stripped of the stamp in
// between.
func BenchmarkPublish(b *testing.B) {
	for _, c := range []struct {
		name, typ, rules string
		others           int
	}{
		{"NoMatch", "drift.detected", rule("r", "event.pipeline != ''"), 0},
		{"EventRule", "model.promotion.requested", rule("r", "event.pipeline == 'flights-train'"), 0},
		{"DataRule", "model.promotion.requested", rule("r", "data.challenger.logloss < data.champion.logloss"), 0},
		{"FiveClauses", "model.promotion.requested", rule("r", "data.challenger.logloss < data.champion.logloss - 0.001 && data.challenger.rows >= 1000 && data.challenger.auc > 0.6 && event.pipeline.startsWith('flights') && data.model in ['late', 'early']"), 0},
		{"EventRuleAmong10k", "model.promotion.requested", rule("r", "event.pipeline == 'flights-train'"), 9_999},
		{"Loop", "model.promotion.requested", rule("r", "data.labels.all(l, l != 'pii')"), 0},
	} {
		b.Run(c.name, func(b *testing.B) {
			e := engine(b, benchSet(b, c.others, c.rules), discard)
			ev := newEvent(b, c.typ, promo())
			evs := []*events.Event{ev}
			ctx := context.Background()
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				vs, err := e.Judge(ctx, events.OnPublish, evs)
				if err != nil || !vs[0].Action.Permits() {
					b.Fatal(vs, err)
				}
				strip(ev)
			}
		})
	}
}

// BenchmarkReceive verifies and judges one event a call, and 100 a call.
func BenchmarkReceive(b *testing.B) {
	for _, c := range []struct {
		name, rules string
		batch       int
	}{
		{"EventRule", rule("r", "event.pipeline == 'flights-train'"), 1},
		{"EventRuleBatch100", rule("r", "event.pipeline == 'flights-train'"), 100},
		{"TimeRule", rule("r", "now - event.time < duration('1h')"), 1},
	} {
		b.Run(c.name, func(b *testing.B) {
			e := engine(b, benchSet(b, 20, c.rules), discard)
			var evs []*events.Event
			for range c.batch {
				evs = append(evs, newEvent(b, "model.promotion.requested", promo()))
			}
			judge(b, e, events.OnPublish, evs...)
			ctx := context.Background()
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				vs, err := e.Judge(ctx, events.OnReceive, evs)
				if err != nil || !vs[0].Action.Permits() {
					b.Fatal(vs, err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*c.batch), "ns/event")
		})
	}
}

func strip(ev *events.Event) { ev.SetExtension(governance.ExtStamp, nil) }

func stampOf(ev *events.Event) string {
	s, _ := ev.Extensions()[governance.ExtStamp].(string)
	return s
}

// restamp returns a function that puts another text in one part of a stamp:
// policy, decision, MAC, key.
func restamp(part int, text string) func(*events.Event) {
	return func(ev *events.Event) {
		parts := strings.Split(stampOf(ev), ".")
		parts[part] = text
		ev.SetExtension(governance.ExtStamp, strings.Join(parts, "."))
	}
}
