package governance_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

func labelled(t *testing.T, typ, labels string, data any) *events.Event {
	t.Helper()
	ev := newEvent(t, typ, data)
	if labels != "" {
		ev.SetExtension(events.ExtLabels, labels)
	}
	return ev
}

// Without a policy that says so, what labels forbid is denied.
func TestLabelsForbidWithoutPolicies(t *testing.T) {
	none := load(t, governance.Options{Types: standardTypes(t)})
	eu := &events.Place{Region: "eu", Use: "commercial", PII: []string{"contact"}}
	move := func(p *events.Place) any {
		return events.TierMoveRequested{Dataset: "d", From: "warm", To: "cold", Place: p}
	}
	promoted := func(p *events.Place) any {
		return events.ModelPromoted{Model: "m", Version: "v", Alias: "champion", Place: p}
	}
	registered := func(p *events.Place) any { return events.ModelRegistered{Model: "m", Version: "v", Cold: p} }
	for _, c := range []struct {
		name, typ, labels string
		data              any
		code              string // of the denial; "": allowed
	}{
		{"a migration out of the region", events.TypeMigrationRequested, "residency:us", events.TierMigrationRequested{Dataset: "d", From: "warm", To: "cold", Place: eu}, governance.CodeResidency},
		{"a migration within the region", events.TypeMigrationRequested, "residency:eu", events.TierMigrationRequested{Dataset: "d", From: "warm", To: "cold", Place: eu}, ""},
		{"a move of unlabelled data", events.TypeTierMoveRequested, "", move(nil), ""},
		{"a move within the region", events.TypeTierMoveRequested, "residency:eu,pii:contact", move(eu), ""},
		{"a move out of the region", events.TypeTierMoveRequested, "residency:us", move(eu), governance.CodeResidency},
		{"a move nobody knows where", events.TypeTierMoveRequested, "residency:eu", move(nil), governance.CodeResidency},
		{"a move of what may lie nowhere", events.TypeTierMoveRequested, "residency:none", move(eu), governance.CodeResidency},
		{"a move of personal data", events.TypeTierMoveRequested, "pii:health", move(eu), governance.CodePersonalData},
		{"a move is no use", events.TypeTierMoveRequested, "licence:cc-by-nc-4.0", move(eu), ""},
		{"labels that cannot be read", events.TypeTierMoveRequested, "residency", move(eu), governance.CodeInvalid},
		{"a deployment that the licence forbids", events.TypeModelPromoted, "licence:cc-by-nc-4.0", promoted(eu), governance.CodeLicence},
		{"a deployment for nobody knows what", events.TypeModelPromoted, "licence:cc-by-nc-4.0", promoted(nil), governance.CodeLicence},
		{"a deployment for research", events.TypeModelPromoted, "licence:cc-by-nc-4.0", promoted(&events.Place{Use: "research"}), ""},
		{"a deployment elsewhere", events.TypeModelPromoted, "residency:us", promoted(eu), governance.CodeResidency},
		{"a request for it", events.TypePromotionRequested, "residency:us", events.PromotionRequested{Model: "m", Challenger: "v", Place: eu}, governance.CodeResidency},
		{"an alias that serves nobody", events.TypeModelAliased, "residency:us", promoted(nil), ""},
		{"a model kept elsewhere", events.TypeModelRegistered, "residency:us", registered(eu), governance.CodeResidency},
		{"a model kept nobody knows where", events.TypeModelRegistered, "residency:us", registered(&events.Place{}), governance.CodeResidency},
		{"a model kept on its host", events.TypeModelRegistered, "residency:us", registered(nil), ""},
		{"taking labels off", events.TypeLabelDeclassified, "pii", events.LabelDeclassified{Dataset: "d", Removed: []string{"pii"}, Reason: "why"}, governance.CodeDeclassification},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := &governance.MemoryLog{}
			v := judge(t, engine(t, none, log), events.OnPublish, labelled(t, c.typ, c.labels, c.data))[0]
			d := lastDecision(log)
			want := events.Allow
			if c.code != "" {
				want = events.Deny
			}
			if v.Action != want || c.code != "" && (d.Code != c.code || v.Reason == "" || v.Policy != "") {
				t.Errorf("%+v, code %q; want %s, code %q", v, d.Code, want, c.code)
			}
		})
	}
}

// Taking labels off needs a policy that is about just that, and is in force.
func TestDeclassificationNeedsAPolicyOfItsOwn(t *testing.T) {
	off := events.LabelDeclassified{Dataset: "patients", Removed: []string{"pii"}, Reason: "hashed"}
	for _, c := range []struct {
		name, policy string
		allowed      bool
	}{
		{"a policy for everything", `match: {types: ['*']}, rules: [{name: r, expression: 'true || now == now'}]`, false},
		{"a policy for a family", `match: {types: ['label.*']}, rules: [{name: r, expression: 'true || now == now'}]`, false},
		{"one that is tried out", `mode: audit, match: {types: [label.declassified]}, rules: [{name: r, expression: data.reason != ''}]`, false},
		{"one that warns", `mode: warn, match: {types: [label.declassified]}, rules: [{name: r, expression: data.reason != ''}]`, false},
		{"one that ignores failures", `failure: ignore, match: {types: [label.declassified]}, rules: [{name: r, expression: data.reason != ''}]`, false},
		{"one for another stage", `match: {types: [label.declassified], stages: [other]}, rules: [{name: r, expression: data.reason != ''}]`, false},
		{"one whose rule does not hold", `match: {types: [label.declassified]}, rules: [{name: r, expression: data.reason == ''}]`, false},
		{"one whose rule holds", `match: {types: [label.declassified]}, rules: [{name: r, expression: data.reason == 'hashed'}]`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			set := load(t, governance.Options{Types: standardTypes(t)},
				"apiVersion: stokehold.dev/v1\nkind: Policy\nmetadata: {name: off}\nspec: {"+c.policy+"}\n")
			log := &governance.MemoryLog{}
			ev := labelled(t, events.TypeLabelDeclassified, "pii", off)
			ev.SetExtension(events.ExtActor, "ada")
			v := judge(t, engine(t, set, log), events.OnPublish, ev)[0]
			if allowed := v.Action == events.Allow; allowed != c.allowed {
				t.Fatalf("%+v", v)
			}
			d := lastDecision(log)
			if d.Actor != "ada" || c.allowed && !strings.Contains(d.Reason, "pii taken off patients: hashed") {
				t.Errorf("the log has %+v", d)
			}
		})
	}
}

// What was allowed is not asked again by its receivers.
func TestLabelsOnReceive(t *testing.T) {
	e := engine(t, load(t, governance.Options{Types: standardTypes(t)}), &governance.MemoryLog{})
	ev := labelled(t, events.TypeTierMoveRequested, "residency:eu", events.TierMoveRequested{Dataset: "d", To: "cold", Place: &events.Place{Region: "eu"}})
	if v := judge(t, e, events.OnPublish, ev)[0]; v.Action != events.Allow {
		t.Fatalf("%+v", v)
	}
	vs, err := e.Judge(context.Background(), events.OnReceive, []*events.Event{ev})
	if err != nil || vs[0].Action != events.Allow {
		t.Errorf("%+v, %v", vs, err)
	}
	ev.SetExtension(events.ExtLabels, "residency:eu,residency:us")
	if vs, err = e.Judge(context.Background(), events.OnReceive, []*events.Event{ev}); err != nil || vs[0].Action != events.Quarantine {
		t.Errorf("with labels put on afterwards: %+v, %v", vs, err)
	}
}
