package governance_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// grants is a source of approvals in memory.
type grants struct {
	given map[string]governance.Grant
	err   error
	asked []string
}

func (g *grants) Approved(_ context.Context, id string) (governance.Grant, error) {
	g.asked = append(g.asked, id)
	if g.err != nil {
		return governance.Grant{}, g.err
	}
	grant, ok := g.given[id]
	if !ok {
		return grant, governance.ErrNotApproved
	}
	return grant, nil
}

func engineWith(t testing.TB, cfg governance.Config) *governance.Engine {
	t.Helper()
	cfg.Keys = ring(t, "k1")
	if cfg.Log == nil {
		cfg.Log = discard
	}
	if cfg.Clock == nil {
		cfg.Clock = func() time.Time { return testTime }
	}
	e, err := governance.NewEngine(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// effect makes a rule that never holds, with an action and what that needs.
func effect(name, action string) string {
	extra := map[string]string{
		"redact":          "      redact: {mask: [data.model]}\n",
		"route":           "      route: {region: eu}\n",
		"requireApproval": "      approval: {roles: [ml-lead], quorum: 2, expires: 24h}\n",
	}[action]
	return "    - name: " + name + "\n      expression: 'false'\n      message: " + name + " says no\n      action: " + action + "\n" + extra
}

func withMode(policy, mode string) string {
	return strings.Replace(policy, "  rules:", "  mode: "+mode+"\n  rules:", 1)
}

var actionNames = []string{"warn", "route", "redact", "requireApproval", "quarantine", "deny"}

func actionOf(name string) events.Action {
	if name == "requireApproval" {
		return events.RequireApproval
	}
	return events.Action(name)
}

// Of two rules that do not hold the one of the higher precedence decides, in
// whatever order they stand, and the other is a note.
func TestPrecedenceOfActions(t *testing.T) {
	for i, low := range actionNames {
		for _, high := range actionNames[i+1:] {
			for _, order := range [][2]string{{low, high}, {high, low}} {
				log := &governance.MemoryLog{}
				set := load(t, typed(), policyYAML("a", gate, effect("one", order[0])), policyYAML("b", gate, effect("two", order[1])))
				v := judge(t, engine(t, set, log), events.OnPublish, newEvent(t, "model.promotion.requested", promo()))[0]
				d := lastDecision(log)
				if v.Action != actionOf(high) || len(d.Notes) != 1 || d.Notes[0].Action != actionOf(low) {
					t.Errorf("%v: %+v, notes %+v", order, v, d.Notes)
				}
				if (v.Approval != nil) != (high == "requireApproval") {
					t.Errorf("%v: approval %+v", order, v.Approval)
				}
			}
		}
	}
}

func TestModesHoldForAllActions(t *testing.T) {
	for _, action := range actionNames {
		for mode, want := range map[string]events.Action{"enforce": actionOf(action), "warn": events.Warn, "audit": events.Allow} {
			log := &governance.MemoryLog{}
			set := load(t, typed(), withMode(policyYAML("a", gate, effect("one", action)), mode))
			ev := newEvent(t, "model.promotion.requested", promo())
			before := string(ev.DataEncoded)
			e := engine(t, set, log)
			v := judge(t, e, events.OnPublish, ev)[0]
			d := lastDecision(log)
			if v.Action != want {
				t.Errorf("%s in mode %s: %+v", action, mode, v)
			}
			if mode != "enforce" && (string(ev.DataEncoded) != before || ev.Extensions()[events.ExtRoute] != nil || d.Effect != "") {
				t.Errorf("%s in mode %s changes the event: %s %v", action, mode, ev.DataEncoded, ev.Extensions())
			}
			if mode == "audit" && (len(d.Notes) != 1 || d.Notes[0].Action != actionOf(action) || d.Notes[0].Reason != "one says no") {
				t.Errorf("%s in mode audit: notes %+v", action, d.Notes)
			}
			if r := judge(t, e, events.OnReceive, ev)[0]; r.Action.Permits() != want.Permits() {
				t.Errorf("%s in mode %s: on receive %+v", action, mode, r)
			}
		}
	}
}

func TestRedactionIsGoneBeforeTheStamp(t *testing.T) {
	log := &governance.MemoryLog{}
	set := load(t, governance.Options{}, policyYAML("pii", "{}", `    - name: no-email
      expression: "!has(data.email)"
      messageExpression: "'has the address ' + string(data.email)"
      message: carries an address
      action: redact
      redact: {drop: [data.email, data.users.*.email, data.list.phone], mask: [data.name, data.age], dropColumns: [ssn], maskColumns: [name]}
`), strings.Replace(policyYAML("zz-warns", "{}", `    - name: about-it
      expression: data.name == 'x'
      messageExpression: "'the name is ' + string(data.name)"
      action: warn
    - name: fails
      expression: int(data.email) > 0
      action: warn
`), "  rules:", "  failure: ignore\n  rules:", 1))
	e := engine(t, set, log)
	ev := newEvent(t, "batch.published", nil)
	ev.DataEncoded = []byte(`{ "email" : "ann@example.org", "name":"Ann Secret", "age": 41, "users":[{"email":"bob@example.org","id":1},{"id":2}],
 "list":[{"phone":"+49 30 1"}], "x": [1.50, "é"] }`)
	original := ev.DataEncoded
	v := judge(t, e, events.OnPublish, ev)[0]
	if v.Action != events.Redact || v.Policy != "pii/no-email" || v.Reason != "carries an address" {
		t.Fatalf("%+v", v)
	}
	want := `{ "name":"[redacted]", "age": null, "users":[{"id":1},{"id":2}],
 "list":[{}], "x": [1.50, "é"] }`
	if got := string(ev.DataEncoded); got != want {
		t.Errorf("data %s\nwant %s", got, want)
	}
	if !strings.Contains(string(original), "ann@example.org") {
		t.Error("the caller's bytes were written to")
	}
	d := lastDecision(log)
	if said := fmt.Sprintf("%+v", d) + fmt.Sprintf("%+v", v); strings.Contains(said, "Ann") || strings.Contains(said, "ann@") || strings.Contains(said, "bob") {
		t.Errorf("the decision shows what was redacted: %s", said)
	}
	if d.Effect != "drop=data.email&drop=data.users.%2A.email&drop=data.list.phone&drop.column=ssn&mask=data.name&mask=data.age&mask.column=name" || len(d.Notes) != 2 {
		t.Errorf("%+v", d)
	}
	if c, err := events.ColumnsOf(ev); err != nil || !slices.Equal(c.Drop, []string{"ssn"}) || !slices.Equal(c.Mask, []string{"name"}) {
		t.Errorf("columns %+v, %v", c, err)
	}
	if v := judge(t, e, events.OnReceive, ev)[0]; !v.Action.Permits() {
		t.Errorf("on receive %+v", v)
	}
	ev.SetExtension(events.ExtColumns, nil)
	if v := judge(t, e, events.OnReceive, ev)[0]; v.Action != events.Quarantine {
		t.Errorf("without its columns the event passes: %+v", v)
	}
}

// A reason of a denial does not show what a redaction would have taken out, and
// neither does that of an approval.
func TestRedactedValuesStayOutOfEveryReason(t *testing.T) {
	redact := `    - name: hide
      expression: "!has(data.secret)"
      message: carries a secret
      action: redact
      redact: {drop: [data.secret]}
`
	for _, c := range []struct{ name, rules, reason string }{
		{"a denial", "    - name: no\n      expression: 'false'\n      messageExpression: \"'it is ' + string(data.secret)\"\n      message: plainly no\n", "plainly no"},
		{"a failure", "    - name: no\n      expression: timestamp(string(data.secret)) < now\n", "an expression failed (what it says is withheld: event data are redacted)"},
		{"a variable", "    - name: no\n      expression: 'false'\n      messageExpression: variables.v\n      message: plainly no\n", "plainly no"},
		{"a quarantine", "    - name: no\n      expression: 'false'\n      action: quarantine\n      messageExpression: \"'it is ' + string(data.secret)\"\n      message: plainly no\n", "plainly no"},
		{"an approval", "    - name: no\n      expression: 'false'\n      action: requireApproval\n      messageExpression: \"'it is ' + string(data.secret)\"\n      message: plainly no\n", "plainly no"},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := &governance.MemoryLog{}
			file := strings.Replace(policyYAML("a", "{}", c.rules), "  rules:", "  variables: [{name: v, expression: \"'it is ' + string(data.secret)\"}]\n  rules:", 1)
			e := engine(t, load(t, governance.Options{}, file, policyYAML("b", "{}", redact)), log)
			ev := newEvent(t, "batch.published", map[string]any{"secret": "hunter2", "x": 1})
			v := judge(t, e, events.OnPublish, ev)[0]
			said := fmt.Sprintf("%+v %+v %+v", v, v.Approval, lastDecision(log))
			if v.Action.Permits() || v.Reason != c.reason || strings.Contains(said, "hunter2") {
				t.Errorf("%s", said)
			}
			if held := v.Action == events.Quarantine; held == strings.Contains(string(ev.DataEncoded), "hunter2") {
				t.Errorf("what is stored in the held stream is %s", ev.DataEncoded)
			}
		})
	}
}

func TestRedactionThatBreaksTheTypeDenies(t *testing.T) {
	reg, err := events.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	for redact, want := range map[string]events.Action{
		"{drop: [data.sha256]}":    events.Redact, // may be left out
		"{mask: [data.dataset]}":   events.Redact, // a text stays one
		"{mask: [data.rows]}":      events.Deny,   // null is no number
		"{maskColumns: [a, b]}":    events.Redact,
		"{drop: [data.dataset]}":   events.Redact, // Go's zero value, as of any absent field
		"{mask: ['data.*']}":       events.Deny,
		"{dropColumns: ['a b,c']}": events.Redact,
	} {
		log := &governance.MemoryLog{}
		set := load(t, governance.Options{Types: reg}, policyYAML("p", "{types: [batch.published]}",
			"    - name: r\n      expression: 'false'\n      action: redact\n      redact: "+redact+"\n"))
		ev := newEvent(t, "batch.published", events.BatchPublished{Dataset: "flights", Rows: 3, SHA256: "ab"})
		v := judge(t, engine(t, set, log), events.OnPublish, ev)[0]
		if v.Action != want || want == events.Deny && lastDecision(log).Code != governance.CodeRedaction {
			t.Errorf("%s: %+v", redact, v)
		}
		if err := reg.Check(ev); v.Action.Permits() && err != nil {
			t.Errorf("%s: the event is not valid any more: %v", redact, err)
		}
	}
}

func TestRouteIsUnderTheMAC(t *testing.T) {
	route := func(name, where string) string {
		return "    - name: " + name + "\n      expression: 'false'\n      action: route\n      route: " + where + "\n"
	}
	log := &governance.MemoryLog{}
	e := engine(t, load(t, governance.Options{},
		policyYAML("a", "{}", route("one", "{region: eu, workers: gpu}")), policyYAML("b", "{}", route("two", "{region: us, tier: cold}"))), log)
	ev := newEvent(t, "batch.published", nil)
	// What a publisher claims is taken off.
	for _, name := range []string{events.ExtRoute, events.ExtColumns, events.ExtApproval, events.ExtReleased} {
		ev.SetExtension(name, "pipeline=mine")
	}
	v := judge(t, e, events.OnPublish, ev)[0]
	r, err := events.RouteOf(ev)
	if v.Action != events.Route || err != nil || r != (events.Routing{Region: "eu", Workers: "gpu", Tier: "cold"}) {
		t.Fatalf("%+v %+v %v", v, r, err)
	}
	if x := ev.Extensions(); x[events.ExtColumns] != nil || x[events.ExtApproval] != nil || x[events.ExtReleased] != nil {
		t.Errorf("a publisher set what the Judge alone may: %v", x)
	}
	d := lastDecision(log)
	if d.Effect != "route.region=eu&route.tier=cold&route.workers=gpu" || len(d.Notes) != 2 || d.Notes[0].Reason != "another rule has sent the event elsewhere" {
		t.Errorf("%+v", d)
	}
	if v := judge(t, e, events.OnReceive, ev)[0]; !v.Action.Permits() {
		t.Errorf("on receive %+v", v)
	}
	for name, value := range map[string]any{events.ExtRoute: "region=us", events.ExtColumns: "drop=a", events.ExtApproval: "a/b=c", events.ExtReleased: "ann", events.ExtActor: "root", events.ExtLabels: "public"} {
		forged := ev.Clone()
		forged.SetExtension(name, value)
		if v := judge(t, e, events.OnReceive, &forged)[0]; v.Action != events.Quarantine {
			t.Errorf("%s set after the judgement passes: %+v", name, v)
		}
	}
}

func approvalSet(t testing.TB, more ...string) *governance.PolicySet {
	return load(t, governance.Options{}, append([]string{policyYAML("gate", "{}", "    - name: four-eyes\n      expression: \"event.subject == 'test'\"\n      message: goes to production\n      action: requireApproval\n      approval: {roles: [ml-lead], quorum: 2, expires: 24h}\n")}, more...)...)
}

func TestApprovals(t *testing.T) {
	ev := func() *events.Event {
		ev := newEvent(t, "batch.published", map[string]int{"rows": 3})
		ev.SetExtension(events.ExtActor, "ann")
		return ev
	}
	first := judge(t, engineWith(t, governance.Config{Policies: approvalSet(t)}), events.OnPublish, ev())[0]
	need := first.Approval
	if first.Action != events.RequireApproval || need == nil || len(need.ID) != 40 || need.Quorum != 2 || need.Expires != 24*time.Hour ||
		!slices.Equal(need.Roles, []string{"ml-lead"}) || need.Requester != "ann" || need.Policy != "gate/four-eyes" || need.EventID != "ev-1" ||
		!strings.HasPrefix(need.Reason, "goes to production (nobody can approve here") {
		t.Fatalf("%+v %+v", first, need)
	}
	grant := func(mod func(*governance.Grant)) governance.Grant {
		g := governance.Grant{ID: need.ID, By: []string{"bob", "cem"}, At: testTime.Add(-time.Hour)}
		if mod != nil {
			mod(&g)
		}
		return g
	}
	for name, c := range map[string]struct {
		src    grants
		action events.Action
		reason string
	}{
		"granted":                 {grants{given: map[string]governance.Grant{need.ID: grant(nil)}}, events.Allow, ""},
		"nobody yet":              {grants{}, events.RequireApproval, "goes to production (not approved yet)"},
		"rejected":                {grants{err: fmt.Errorf("by cem: %w", governance.ErrRejected)}, events.Deny, "goes to production (by cem: approval rejected)"},
		"the source is away":      {grants{err: errors.New("connection refused")}, events.RequireApproval, "goes to production (the approvals could not be asked for: connection refused)"},
		"the grant has expired":   {grants{given: map[string]governance.Grant{need.ID: grant(func(g *governance.Grant) { g.Expires = testTime })}}, events.RequireApproval, "goes to production (the approval has expired)"},
		"the rule's expiry":       {grants{given: map[string]governance.Grant{need.ID: grant(func(g *governance.Grant) { g.At = testTime.Add(-24 * time.Hour) })}}, events.RequireApproval, "goes to production (the approval has expired)"},
		"too few":                 {grants{given: map[string]governance.Grant{need.ID: grant(func(g *governance.Grant) { g.By = []string{"bob"} })}}, events.RequireApproval, "goes to production (too few have approved, the requester apart)"},
		"one twice":               {grants{given: map[string]governance.Grant{need.ID: grant(func(g *governance.Grant) { g.By = []string{"bob", "bob"} })}}, events.RequireApproval, "goes to production (too few have approved, the requester apart)"},
		"the requester":           {grants{given: map[string]governance.Grant{need.ID: grant(func(g *governance.Grant) { g.By = []string{"ann", "bob"} })}}, events.RequireApproval, "goes to production (too few have approved, the requester apart)"},
		"the grant of another id": {grants{given: map[string]governance.Grant{need.ID: grant(func(g *governance.Grant) { g.ID = "other" })}}, events.RequireApproval, "goes to production (the source answered with another approval)"},
	} {
		t.Run(name, func(t *testing.T) {
			log := &governance.MemoryLog{}
			e := engineWith(t, governance.Config{Policies: approvalSet(t), Log: log, Approvals: &c.src})
			got := ev()
			v := judge(t, e, events.OnPublish, got)[0]
			d := lastDecision(log)
			if v.Action != c.action || v.Reason != c.reason || (v.Approval != nil) != (c.action == events.RequireApproval) {
				t.Fatalf("%+v", v)
			}
			if c.action != events.Deny && d.Approval != need.ID {
				t.Errorf("the decision names the approval %q", d.Approval)
			}
			if c.action == events.Deny && d.Code != governance.CodeRejected {
				t.Errorf("code %s", d.Code)
			}
			if !slices.Equal(c.src.asked, []string{need.ID}) {
				t.Errorf("asked for %q", c.src.asked)
			}
			if c.action.Permits() {
				if got.Extensions()[events.ExtApproval] != "gate/four-eyes="+need.ID {
					t.Errorf("attributes %v", got.Extensions())
				}
				if r := judge(t, e, events.OnReceive, got)[0]; !r.Action.Permits() || len(c.src.asked) != 1 {
					t.Errorf("on receive %+v, asked %q", r, c.src.asked)
				}
			}
		})
	}
}

func TestApprovalIDFollowsFromWhatIsApproved(t *testing.T) {
	id := func(set *governance.PolicySet, mod func(*events.Event)) string {
		ev := newEvent(t, "batch.published", map[string]int{"rows": 3})
		if mod != nil {
			mod(ev)
		}
		v := judge(t, engineWith(t, governance.Config{Policies: set}), events.OnPublish, ev)[0]
		if v.Approval == nil {
			t.Fatalf("%+v", v)
		}
		return v.Approval.ID
	}
	set := approvalSet(t)
	base := id(set, nil)
	for name, same := range map[string]string{
		"another time":         id(set, func(ev *events.Event) { ev.SetTime(testTime.Add(time.Hour)) }),
		"another cause":        id(set, func(ev *events.Event) { ev.SetExtension(events.ExtCause, "c") }),
		"a trace":              id(set, func(ev *events.Event) { ev.SetExtension("traceparent", "00-1") }),
		"an unrelated policy":  id(approvalSet(t, policyYAML("other", "{types: [x]}", rule("r", "true"))), nil),
		"a claimed route":      id(set, func(ev *events.Event) { ev.SetExtension(events.ExtRoute, "tier=hot") }),
		"a stamp not accepted": id(set, func(ev *events.Event) { ev.SetExtension(governance.ExtStamp, "x") }),
	} {
		if same != base {
			t.Errorf("%s changes the approval", name)
		}
	}
	for name, other := range map[string]string{
		"data":    id(set, func(ev *events.Event) { ev.DataEncoded = []byte(`{"rows":4}`) }),
		"id":      id(set, func(ev *events.Event) { ev.SetID("ev-2") }),
		"subject": id(set, func(ev *events.Event) { ev.SetSubject("early") }),
		"actor":   id(set, func(ev *events.Event) { ev.SetExtension(events.ExtActor, "mallory") }),
		"labels":  id(set, func(ev *events.Event) { ev.SetExtension(events.ExtLabels, "public") }),
		"rule":    id(load(t, governance.Options{}, policyYAML("gate", "{}", "    - name: four-eyes\n      expression: 'false'\n      action: requireApproval\n")), nil),
	} {
		if other == base {
			t.Errorf("another %s has the same approval", name)
		}
	}
}

// A policy that reads the time is judged again on receive; the approval that the
// event passed by is in its stamp and need not be asked for again.
func TestApprovedEventIsNotAskedForOnReceive(t *testing.T) {
	set := load(t, governance.Options{}, policyYAML("gate", "{}", `    - name: four-eyes
      expression: now < timestamp('2020-01-01T00:00:00Z')
      action: requireApproval
    - name: hide
      expression: "!has(data.email)"
      action: redact
      redact: {drop: [data.email]}
`))
	src := &grants{given: map[string]governance.Grant{}}
	e := engineWith(t, governance.Config{Policies: set, Approvals: src})
	ev := func() *events.Event { return newEvent(t, "batch.published", map[string]string{"email": "a@b"}) }
	need := judge(t, e, events.OnPublish, ev())[0].Approval
	src.given[need.ID] = governance.Grant{ID: need.ID, By: []string{"bob"}, At: testTime}
	got := ev()
	if v := judge(t, e, events.OnPublish, got)[0]; v.Action != events.Redact {
		t.Fatalf("%+v", v)
	}
	src.given = nil
	if v := judge(t, e, events.OnReceive, got)[0]; !v.Action.Permits() {
		t.Errorf("on receive %+v", v)
	}
	// Under other policies it is asked for, and held.
	e.SetPolicies(load(t, governance.Options{}, policyYAML("gate", "{}", effect("other", "requireApproval"))))
	if v := judge(t, e, events.OnReceive, got)[0]; v.Action != events.RequireApproval {
		t.Errorf("on receive under other policies %+v", v)
	}
}

func TestReleaseLetsGoWhatWasHeld(t *testing.T) {
	set := load(t, governance.Options{}, policyYAML("p", "{}", effect("hold", "quarantine")), policyYAML("q", "{}", rule("small", "data.rows < 10 && now > event.time - duration('1h')")))
	log := &governance.MemoryLog{}
	e := engineWith(t, governance.Config{Policies: set, Log: log})
	ctx := context.Background()
	ev := newEvent(t, "batch.published", map[string]int{"rows": 3})
	if v := judge(t, e, events.OnPublish, ev)[0]; v.Action != events.Quarantine {
		t.Fatalf("%+v", v)
	}
	for _, r := range []events.Release{{}, {By: "ann"}, {Reason: "x"}} {
		if _, err := e.JudgeRelease(ctx, ev, r); !errors.Is(err, governance.ErrConfig) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	v, err := e.JudgeRelease(ctx, ev, events.Release{By: "ann", Reason: "checked by hand"})
	d := lastDecision(log)
	if err != nil || !v.Action.Permits() || d.Point != events.OnRelease || d.Reason != "released by ann: checked by hand" || len(d.Notes) != 2 ||
		d.Notes[1].Action != events.Quarantine || d.ID != v.DecisionID {
		t.Fatalf("%+v %v %+v", v, err, d)
	}
	if v := judge(t, e, events.OnReceive, ev)[0]; !v.Action.Permits() {
		t.Errorf("on receive %+v", v)
	}
	if again := judge(t, e, events.OnPublish, ev)[0]; again.DecisionID != v.DecisionID {
		t.Errorf("published with its stamp: %+v", again)
	}
	// Its attribute alone makes no release.
	forged := newEvent(t, "batch.published", map[string]int{"rows": 3})
	forged.SetExtension(events.ExtReleased, "ann")
	if v := judge(t, e, events.OnPublish, forged)[0]; v.Action != events.Quarantine {
		t.Errorf("%+v", v)
	}
	// Under other policies it is judged like any event of an earlier set.
	e.SetPolicies(load(t, governance.Options{}, policyYAML("p", "{}", effect("hold2", "quarantine"))))
	if v := judge(t, e, events.OnReceive, ev)[0]; v.Action != events.Quarantine {
		t.Errorf("on receive under other policies %+v", v)
	}
	// What denies still denies.
	e.SetPolicies(set)
	big := newEvent(t, "batch.published", map[string]int{"rows": 30})
	if v, err := e.JudgeRelease(ctx, big, events.Release{By: "ann", Reason: "please"}); err != nil || v.Action != events.Deny || v.Policy != "q/small" {
		t.Errorf("%+v %v", v, err)
	}
}

func TestEffectFaults(t *testing.T) {
	r := func(body string) string {
		return policyYAML("p", gate, "    - name: r\n      expression: 'false'\n"+body)
	}
	for name, c := range map[string]struct{ file, want string }{
		"redact without what":     {r("      action: redact\n"), `spec.rules[0].redact: required with the action redact`},
		"route without where":     {r("      action: route\n"), `spec.rules[0].route: required with the action route`},
		"a redact that denies":    {r("      redact: {drop: [data.model]}\n"), `is of no use with the action deny; did you mean action: redact?`},
		"approval that warns":     {r("      action: warn\n      approval: {quorum: 1}\n"), `did you mean action: requireApproval?`},
		"an empty redact":         {r("      action: redact\n      redact: {}\n"), `must say what to drop or mask`},
		"a misspelt action":       {r("      action: quarantin\n"), `(did you mean "quarantine"?)`},
		"a misspelt path":         {r("      action: redact\n      redact: {drop: [data.modek]}\n"), `test.yaml:8: policy p: rule r: redact.drop[0]: "data.modek": undefined field "modek" (did you mean "model"?)`},
		"a path into a number":    {r("      action: redact\n      redact: {mask: [data.challenger.auc.x]}\n"), `"x" is a step into double, which has no fields`},
		"a path by an index":      {r("      action: redact\n      redact: {mask: [data.labels.0]}\n"), `only * is`},
		"a path elsewhere":        {r("      action: redact\n      redact: {mask: [event.subject]}\n"), `"event.subject" is not a path`},
		"a path with a hole":      {r("      action: redact\n      redact: {mask: [data..x]}\n"), `is not a path`},
		"a path twice":            {r("      action: redact\n      redact: {mask: [data.model, data.model]}\n"), `is there twice`},
		"quorum of none":          {r("      action: requireApproval\n      approval: {quorum: 0}\n"), `must be a number of people, 1 to 16`},
		"quorum of text":          {r("      action: requireApproval\n      approval: {quorum: two}\n"), `must be a number of people`},
		"an expiry without unit":  {r("      action: requireApproval\n      approval: {expires: '24'}\n"), `must be a duration of 1m to 2160h0m0s`},
		"an expiry for ever":      {r("      action: requireApproval\n      approval: {expires: 99999h}\n"), `must be a duration`},
		"a role of spaces":        {r("      action: requireApproval\n      approval: {roles: ['ML lead']}\n"), `"ML lead" is not a role`},
		"an unknown tier":         {r("      action: route\n      route: {tier: cool}\n"), `"cool" is not one of hot, warm, cold (did you mean "cold"?)`},
		"an empty route":          {r("      action: route\n      route: {}\n"), `must say where to`},
		"an unknown route field":  {r("      action: route\n      route: {reigon: eu}\n"), `unknown field (did you mean "region"?)`},
		"an unknown redact field": {r("      action: redact\n      redact: {dropColumn: [a]}\n"), `unknown field (did you mean "dropColumns"?)`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := governance.Load(typed(), governance.Source{Name: "test.yaml", Data: []byte(c.file)})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant it to contain %q", err, c.want)
			}
		})
	}
}
