package governance_test

import (
	"bytes"
	"maps"
	"reflect"
	"testing"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// Decide says what Evaluate does, but for the id, and leaves the event alone.
func TestDecideAgreesWithEvaluate(t *testing.T) {
	set := load(t, governance.Options{Types: testTypes},
		policyYAML("denies", "{subjects: [deny]}", rule("r", "data.requester == ''")),
		policyYAML("fails", "{subjects: [fail]}", rule("r", "data.labels[7] == 'x'")),
		policyYAML("routes", "{subjects: [route]}", "  - {name: r, expression: 'false', message: m, action: route, route: {region: eu}}\n"),
		policyYAML("redacts", "{subjects: [redact]}", "  - {name: r, expression: 'false', message: m, action: redact, redact: {drop: [data.labels]}}\n"),
		policyYAML("asks", "{subjects: [ask]}", "  - {name: r, expression: 'false', message: m, action: requireApproval, approval: {roles: [lead]}}\n"),
		policyYAML("receives", "{subjects: [receive], points: [receive]}", rule("r", "false")),
		policyYAML("times", "{points: [publish, receive]}", rule("r", "now == event.time && point != 'release'")),
	)
	e, err := governance.NewEvaluator(set)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[events.Action]bool{}
	for typ, change := range map[string]func(*events.Event){
		"tier.move.requested": func(ev *events.Event) { ev.SetExtension(events.ExtLabels, "pii,residency:eu") },
		"label.declassified":  func(ev *events.Event) { ev.DataEncoded = []byte(`{"labels":["pii"],"reason":"counted"}`) },
	} {
		ev := newEvent(t, typ, map[string]any{"dataset": "d"})
		change(ev)
		want, err := e.Evaluate(t.Context(), events.OnPublish, testTime, ev)
		if err != nil {
			t.Fatal(err)
		}
		got, err := e.Decide(t.Context(), events.OnPublish, testTime, ev)
		want.ID = ""
		if err != nil || !reflect.DeepEqual(got, want) || typ == "tier.move.requested" && got.Action != events.Deny {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", typ, got, err, want)
		}
	}
	for _, subject := range []string{"allow", "deny", "fail", "route", "redact", "ask", "receive"} {
		for _, at := range []events.Point{events.OnPublish, events.OnReceive} {
			for name, change := range map[string]func(*events.Event){
				"as it is":   func(*events.Event) {},
				"without id": func(ev *events.Event) { ev.Context = ev.Context.Clone(); ev.SetID("") },
				"stamped":    func(ev *events.Event) { ev.SetExtension(governance.ExtStamp, "nonsense") },
				"routed":     func(ev *events.Event) { ev.SetExtension(events.ExtRoute, "tier=hot") },
				"large":      func(ev *events.Event) { ev.DataEncoded = bytes.Repeat([]byte(" "), events.MaxDataBytes+1) },
			} {
				ev := newEvent(t, "model.promotion.requested", promo())
				ev.SetSubject(subject)
				change(ev)
				before := maps.Clone(ev.Extensions())
				want, err := e.Evaluate(t.Context(), at, testTime, ev)
				if err != nil {
					t.Fatal(err)
				}
				got, err := e.Decide(t.Context(), at, testTime, ev)
				if err != nil {
					t.Fatal(err)
				}
				seen[got.Action] = true
				if want.ID == "" || got.ID != "" {
					t.Errorf("%s on %s, %s: ids %q and %q", subject, at, name, want.ID, got.ID)
				}
				want.ID = ""
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%s on %s, %s:\n got %+v\nwant %+v", subject, at, name, got, want)
				}
				if !maps.Equal(ev.Extensions(), before) {
					t.Errorf("%s on %s, %s: the event's attributes became %v", subject, at, name, ev.Extensions())
				}
			}
		}
	}
	for _, a := range []events.Action{events.Allow, events.Deny, events.Route, events.Redact, events.RequireApproval} {
		if !seen[a] {
			t.Errorf("no event came to %s", a)
		}
	}
	if _, err := e.Decide(t.Context(), events.OnPublish, testTime, nil); err == nil {
		t.Error("no event was decided on")
	}
	if _, err := e.Decide(t.Context(), "elsewhere", testTime, newEvent(t, "batch.published", nil)); err == nil {
		t.Error("a point that is none was decided at")
	}
	if d, err := e.Decide(t.Context(), events.OnPublish, testTime, &events.Event{}); err != nil || d.Code != governance.CodeInvalid {
		t.Errorf("an event without attributes: %+v, %v", d, err)
	}
}
