package governance_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/internal/natstest"
)

// gatedBus is a bus on a real server whose Judge is a real engine.
func gatedBus(t *testing.T, e *governance.Engine) (*events.Bus, jetstream.JetStream) {
	t.Helper()
	nc := natstest.Start(t).Connect()
	b, err := events.Open(t.Context(), events.Config{Conn: nc, Judge: e, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := b.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return b, js
}

// Hostile events are refused with what is wrong with them, and nothing of them is
// stored; strange ones that CloudEvents allows pass and arrive as they were.
func TestBadEvents(t *testing.T) {
	e := engineWith(t, governance.Config{Policies: load(t, governance.Options{Types: standardTypes(t)}, policyYAML("p", "{types: [model.promotion.requested]}",
		rule("metrics", "model.metrics.auc > champion.metrics.auc")))})
	b, js := gatedBus(t, e)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	sealed := func(mod func(*events.Event)) events.Event {
		ev := newEvent(t, events.TypeDatasetSealed, events.DatasetSealed{Dataset: "flights", Batches: 1, Rows: 2})
		mod(ev)
		return *ev
	}
	promotion := func(json string) events.Event {
		ev := newEvent(t, events.TypePromotionRequested, nil)
		ev.SetDataContentType(event.ApplicationJSON)
		ev.DataEncoded = []byte(json)
		return *ev
	}
	refused := []struct {
		name string
		ev   events.Event
		want error
		msg  string
	}{
		{"no id", sealed(func(ev *events.Event) { ev.Context.(*event.EventContextV1).ID = "" }), events.ErrInvalid, "id: missing"},
		{"duplicate keys", sealed(func(ev *events.Event) { ev.DataEncoded = []byte(`{"dataset":"a","dataset":"b","batches":1,"rows":2}`) }), events.ErrInvalid, `duplicate key`},
		{"a header of 10 MB", sealed(func(ev *events.Event) { ev.SetExtension("x", strings.Repeat("v", 10<<20)) }), events.ErrInvalid, "x: 10485760 bytes, the limit is 8192"},
		{"headers of 60 KiB", sealed(func(ev *events.Event) {
			for i := range 10 {
				ev.SetExtension(fmt.Sprintf("x%d", i), strings.Repeat("v", 6<<10))
			}
		}), events.ErrInvalid, "the limit is 49152"},
		{"the year 10000", sealed(func(ev *events.Event) { ev.SetTime(time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -3600))) }), events.ErrInvalid, "time: year 10000 is outside 1 to 9999"},
		{"a line break in the subject", sealed(func(ev *events.Event) { ev.Context.(*event.EventContextV1).Subject = new("a\r\nb") }), events.ErrInvalid, "subject: control character U+000D"},
		{"NaN", promotion(`{"model":"late","challenger":"v2","run":"r","rows":1,"metrics":{"challenger":{"auc":NaN}}}`), events.ErrInvalid, "data"},
		{"infinity", promotion(`{"model":"late","challenger":"v2","run":"r","rows":1,"metrics":{"challenger":{"auc":1e999}}}`), events.ErrInvalid, "auc"},
		{"NaN as text", promotion(`{"model":"late","challenger":"v2","run":"r","rows":1,"metrics":{"challenger":{"auc":"NaN"}}}`), events.ErrInvalid, "auc"},
		{"a metric that is not there", promotion(`{"model":"late","challenger":"v2","run":"r","rows":1,"metrics":{"challenger":{"auc":0.7}}}`), events.ErrDenied, `the fact champion has no field "metrics"`},
	}
	for _, c := range refused {
		if err := b.Publish(ctx, c.ev); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.msg) {
			t.Errorf("%s: %.300v, want %v with %q", c.name, err, c.want, c.msg)
		}
	}
	if s, err := js.Stream(ctx, "STOKEHOLD_EVENTS"); err != nil || s.CachedInfo().State.Msgs != 0 {
		t.Fatalf("refused events are stored: %v", err)
	}
	strange := []string{"*.>", ">", "a b", "a.b.*", "ünï", "$JS.API.>"}
	for i, subject := range strange {
		ev := sealed(func(ev *events.Event) {
			ev.SetSubject(subject)
			ev.SetID(strconv.Itoa(i))
			ev.SetTime(time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC))
		})
		if err := b.Publish(ctx, ev); err != nil {
			t.Errorf("subject %q: %v", subject, err)
		}
		n := 0
		for d, err := range b.Replay(ctx, events.Subscription{Subject: subject}) {
			if err != nil || d.Subject() != subject || d.Time().Year() != 9999 {
				t.Errorf("subject %q: %v %v", subject, d, err)
			}
			n++
		}
		if n != 1 {
			t.Errorf("subject %q selects %d events", subject, n)
		}
	}
}

// An engine that no bus shields says what is wrong just so.
func TestBadEventsWithoutABus(t *testing.T) {
	e := engine(t, load(t, typed(), policyYAML("p", gate, rule("r", "data.challenger.auc > 0.5")), policyYAML("late", "{}", rule("r", "event.time < timestamp('2100-01-01T00:00:00Z')"))), discard)
	for name, c := range map[string]struct {
		mod  func(*events.Event)
		want string
	}{
		"no id":              {func(ev *events.Event) { ev.Context.(*event.EventContextV1).ID = "" }, "id, type and source are required"},
		"a 10 MB attribute":  {func(ev *events.Event) { ev.SetExtension(events.ExtActor, strings.Repeat("v", 10<<20)) }, "an attribute exceeds the limit of 8 KiB"},
		"10 MB of labels":    {func(ev *events.Event) { ev.SetExtension(events.ExtLabels, strings.Repeat("v,", 5<<20)) }, "an attribute exceeds the limit of 8 KiB"},
		"10 MB of data":      {func(ev *events.Event) { ev.DataEncoded = make([]byte, 10<<20) }, "the data exceed 64 KiB; send them by reference (dataref)"},
		"duplicate keys":     {func(ev *events.Event) { ev.DataEncoded = []byte(`{"challenger":{"auc":0.9,"auc":0.1}}`) }, `unreadable event data: at byte 31: duplicate key "auc"`},
		"NaN":                {func(ev *events.Event) { ev.DataEncoded = []byte(`{"challenger":{"auc":NaN}}`) }, "unreadable event data: at byte 21: invalid JSON"},
		"a number too great": {func(ev *events.Event) { ev.DataEncoded = []byte(`{"challenger":{"auc":1e999}}`) }, "unreadable event data: at byte 26: 1e999 does not fit a double"},
		"deep nesting":       {func(ev *events.Event) { ev.DataEncoded = []byte(`{"extra":` + strings.Repeat("[", 30_000) + `}`) }, "unreadable event data: at byte 73: nested deeper than 64"},
		"the year 9999":      {func(ev *events.Event) { ev.SetTime(time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)) }, "r does not hold"},
	} {
		ev := newEvent(t, "model.promotion.requested", promo())
		c.mod(ev)
		if v := judge(t, e, events.OnPublish, ev)[0]; v.Action != events.Deny || !strings.HasPrefix(v.Reason, c.want) {
			t.Errorf("%s: %+v, want %q", name, v, c.want)
		}
	}
}

func TestBadExpressionsDenyAndSayWhy(t *testing.T) {
	for expr, want := range map[string]string{
		"1 / int(data.zero) == 1":                            "evaluation failed: division by zero",
		"1 % int(data.zero) == 1":                            "evaluation failed: modulus by zero",
		"9223372036854775807 + int(data.one) > 0":            "evaluation failed: integer overflow",
		"timestamp('9999-12-31T23:59:59Z') + days(1) > now":  "evaluation failed: timestamp overflow",
		"int(data.huge) > 0":                                 "evaluation failed: integer overflow",
		"data.list[7] == 1":                                  "evaluation failed: index out of bounds: 7",
		"data.list.all(a, data.list.all(b, data.none == b))": `missing field: the event has no field "none"`,
		"duration('1h') * int(data.one) == duration('1h')":   "",
		"bool(data.word)":                                    "evaluation failed: ",
		"data.word":                                          "",
		"params.x == 1":                                      "",
		"data.word.glob(data.pattern)":                       "evaluation limit exceeded: a pattern of glob() of 300; the limit is 256",
		"stats.mean(data.xs) > 0.0":                          "evaluation limit exceeded: a list for statistics of 20000; the limit is 16384",
		"data.labels.any('pii')":                             "evaluation limit exceeded: a list of labels of 200; the limit is 128",
		"semver.compare(data.pattern, '1.0.0') > 0":          "evaluation limit exceeded: a version of 300; the limit is 256",
	} {
		file := policyYAML("p", "{}", rule("r", expr))
		set, err := governance.Load(governance.Options{}, governance.Source{Name: "test.yaml", Data: []byte(file)})
		if want == "" { // refused at load: not a bool, no such operator, no such variable
			if err == nil {
				t.Errorf("%s is loaded", expr)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		ev := newEvent(t, "batch.published", map[string]any{
			"zero": 0, "one": 1, "huge": 1e300, "list": []int{1}, "word": "maybe", "pattern": strings.Repeat("*a", 150), "xs": make([]int, 20_000), "labels": make([]string, 200),
		})
		if v := judge(t, engine(t, set, discard), events.OnPublish, ev)[0]; v.Action != events.Deny || !strings.HasPrefix(v.Reason, want) {
			t.Errorf("%s: %+v, want %q", expr, v, want)
		}
	}
}
