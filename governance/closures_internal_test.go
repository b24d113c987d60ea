package governance

import (
	"context"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/stokehold/stokehold/events"
)

type closureMetrics struct {
	LogLoss float64 `json:"logloss"`
	AUC     float64 `json:"auc"`
	Rows    int     `json:"rows"`
	Calls   uint    `json:"calls"`
}

type closureData struct {
	Model      string             `json:"model"`
	Challenger closureMetrics     `json:"challenger"`
	Champion   *closureMetrics    `json:"champion,omitempty"`
	Labels     []string           `json:"labels,omitempty"`
	Tags       map[string]string  `json:"tags,omitempty"`
	Scores     map[string]float64 `json:"scores,omitempty"`
	Evaluated  time.Time          `json:"evaluated"`
	Took       time.Duration      `json:"took"`
	Final      bool               `json:"final"`
	Extra      any                `json:"extra,omitempty"`
}

// failer is what the helpers need of a testing.TB or a rapid.T.
type failer interface {
	Helper()
	Fatal(args ...any)
}

// closureCompiler compiles as Load does for a policy whose data have the type of
// zero; nil: untyped.
func closureCompiler(t failer, zero any) *compiler {
	t.Helper()
	table, data := newTypeTable(), untypedData
	if zero != nil {
		data = table.of(reflect.TypeOf(zero))
	}
	env, err := newEnv(table)
	if err != nil {
		t.Fatal(err)
	}
	l := &loader{table: table, env: env, compilers: map[*dataType]*compiler{}, opts: Options{Limits: Limits{}.withDefaults()}}
	c, err := l.compilerFor(data)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// closureState prepares the evaluation of expressions on an event with the data.
func closureState(t testing.TB, c *compiler, data any) *evalState {
	t.Helper()
	raw, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	return rawState(t, c, raw)
}

var closureTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func rawState(t failer, c *compiler, raw []byte) *evalState {
	t.Helper()
	ev, err := events.New("model.promotion.requested", "stokehold/flights", "late", "ev-1", closureTime, nil)
	if err != nil {
		t.Fatal(err)
	}
	ev.SetExtension(events.ExtPipeline, "flights-train")
	ectx := ev.Context.(*event.EventContextV1)
	s := &evalState{}
	ext := readAttributes(ectx)
	s.reset(context.Background(), ectx, sourceString(&ectx.Source.URL), &ext, raw, c.limits)
	s.json, s.point, s.now = true, "publish", types.Timestamp{Time: closureTime.Add(time.Hour)}
	s.use(c.data, nil)
	return s
}

func promotionData() closureData {
	return closureData{
		Model: "late", Challenger: closureMetrics{0.40, 0.71, 5000, 3}, Champion: &closureMetrics{0.45, 0.70, 5000, 4},
		Labels: []string{"public", "eu"}, Tags: map[string]string{"team": "ops"}, Scores: map[string]float64{"a": 1.5},
		Evaluated: closureTime, Took: 90 * time.Second, Final: true,
		Extra: map[string]any{"n": 1.5, "s": "x", "b": true, "null": nil, "list": []any{1.0, "two", nil}, "deep": map[string]any{"n": -2.0}},
	}
}

const fiveClauses = `data.challenger.logloss < data.champion.logloss - 0.001 && data.challenger.rows >= 1000 && ` +
	`data.challenger.auc > 0.6 && event.pipeline.startsWith('flights') && data.model in ['late', 'early']`

func compileOK(t testing.TB, c *compiler, src string, want *types.Type) *program {
	t.Helper()
	p, faults := c.compile(src, want)
	if len(faults) > 0 {
		t.Fatalf("%s: %+v", src, faults)
	}
	return p
}

func BenchmarkFiveClauses(b *testing.B) {
	c := closureCompiler(b, closureData{})
	p := compileOK(b, c, fiveClauses, cel.BoolType)
	s := closureState(b, c, promotionData())
	b.Run("closures", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if v, ok := p.fast.Bool(s); !ok || !v {
				b.Fatal(v, ok)
			}
		}
	})
	b.Run("cel-go", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if v, _, err := p.prg.Eval(s); err != nil || v != types.True {
				b.Fatal(v, err)
			}
		}
	})
}

// Evaluating a compiled expression allocates nothing.
func TestClosuresDoNotAllocate(t *testing.T) {
	c := closureCompiler(t, closureData{})
	for _, src := range []string{
		fiveClauses,
		"has(data.champion) ? data.champion.rows > 1 : data.challenger.rows > 2",
		"data.?champion.?auc.orValue(0.0) >= 0.7 && data.extra.deep.n < 0 && data.tags.team == 'ops' && 'eu' in data.labels",
		"now - event.time < duration('2h') && data.took + duration('1s') > duration('1m') && event.time < timestamp('2026-04-01T00:00:00Z')",
		"size(data.labels) == 2 && int(data.challenger.auc * 100.0) % 7 == 1 || point == 'receive'",
	} {
		p := compileOK(t, c, src, cel.BoolType)
		if p.fast == nil {
			t.Fatalf("%s is not compiled", src)
		}
		s := closureState(t, c, promotionData())
		if n := testing.AllocsPerRun(100, func() {
			if v, ok := p.fast.Bool(s); !ok || !v {
				t.Fatal(src, v, ok)
			}
		}); n != 0 {
			t.Errorf("%s: %.0f allocations", src, n)
		}
	}
}
