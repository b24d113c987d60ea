package governance_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// A real engine on a real bus: what each action makes of an event, from the
// publisher to the handler.
func TestActionsFromPublisherToHandler(t *testing.T) {
	rules := func(name, body string) string {
		return policyYAML(name, "{types: [dataset.sealed], subjects: ['"+name+"*']}", "    - name: r\n"+body)
	}
	src := &grants{given: map[string]governance.Grant{}}
	log := &governance.MemoryLog{}
	e := engineWith(t, governance.Config{Log: log, Approvals: src, Policies: load(t, governance.Options{Types: standardTypes(t)},
		rules("held", "      expression: data.rows < 10\n      message: too many rows\n      action: quarantine\n"),
		rules("masked", "      expression: \"data.dataset == '[redacted]'\"\n      action: redact\n      redact: {mask: [data.dataset]}\n"),
		rules("routed", "      expression: event.actor == 'x'\n      action: route\n      route: {pipeline: other}\n"),
		rules("asked", "      expression: 'false'\n      action: requireApproval\n      approval: {quorum: 1}\n"),
	)})
	b, js := gatedBus(t, e)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	got := make(chan events.Delivery, 16)
	if _, err := b.Subscribe(ctx, events.Subscription{Durable: "d"}, func(_ context.Context, d events.Delivery) error {
		got <- d
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	sealed := func(subject string) events.Event {
		ev := newEvent(t, events.TypeDatasetSealed, events.DatasetSealed{Dataset: "secret", Batches: 1, Rows: 20})
		ev.SetSubject(subject)
		ev.SetID(subject)
		return *ev
	}
	handled := func() events.Delivery {
		t.Helper()
		select {
		case d := <-got:
			return d
		case <-ctx.Done():
			t.Fatal("no handler saw it")
			return events.Delivery{}
		}
	}

	if err := b.Publish(ctx, sealed("held")); !errors.Is(err, events.ErrQuarantined) {
		t.Fatal(err)
	}
	for h, err := range b.Held(ctx) {
		if err != nil || h.Policy != "held/r" || h.Reason != "too many rows" {
			t.Fatalf("%+v %v", h, err)
		}
		if err := b.Release(ctx, h.ID, events.Release{By: "ann", Reason: "known to be large"}); err != nil {
			t.Fatal(err)
		}
	}
	if d := handled(); d.ID() != "held" || d.Extensions()[events.ExtReleased] != "ann" {
		t.Errorf("%+v", d)
	}
	if d := lastOf(log, events.OnRelease); d.Reason != "released by ann: known to be large" {
		t.Errorf("%+v", d)
	}

	if err := b.Publish(ctx, sealed("masked")); err != nil {
		t.Fatal(err)
	}
	if d := handled(); strings.Contains(string(d.Data()), "secret") {
		t.Errorf("the handler sees %s", d.Data())
	}
	s, err := js.Stream(ctx, "STOKEHOLD_EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := s.GetLastMsgForSubject(ctx, "stokehold.event.dataset.sealed.masked"); err != nil || strings.Contains(string(m.Data), "secret") {
		t.Errorf("stored is %s, %v", m.Data, err)
	}

	if err := b.Publish(ctx, sealed("routed")); err != nil {
		t.Fatal(err)
	}
	d := handled()
	if r, err := events.RouteOf(&d.Event); err != nil || r.Pipeline != "other" {
		t.Errorf("%+v %v", r, err)
	}

	var waiting *events.ApprovalRequiredError
	if err := b.Publish(ctx, sealed("asked")); !errors.As(err, &waiting) {
		t.Fatal(err)
	}
	src.given[waiting.Need.ID] = governance.Grant{ID: waiting.Need.ID, By: []string{"bob"}, At: testTime}
	later := sealed("asked")
	later.SetTime(testTime.Add(time.Hour)) // made anew by whoever waited
	if err := b.Publish(ctx, later); err != nil {
		t.Fatal(err)
	}
	if d := handled(); d.ID() != "asked" || d.Extensions()[events.ExtApproval] != "asked/r="+waiting.Need.ID {
		t.Errorf("%+v", d)
	}
	// Approved before it is published, as the catalog does, it is not judged again.
	again := sealed("masked-too")
	if err := b.Approve(ctx, &again); err != nil || strings.Contains(string(again.Data()), "secret") {
		t.Fatalf("%s %v", again.Data(), err)
	}
	judged := b.Stats().Judged
	if err := b.Publish(ctx, again); err != nil {
		t.Fatal(err)
	}
	handled()
	if n := lastCount(log, "masked-too", events.OnPublish); n != 1 || b.Stats().Judged-judged > 1 {
		t.Errorf("judged %d times on publish", n)
	}
}

func lastOf(log *governance.MemoryLog, at events.Point) (last governance.Decision) {
	for d := range log.Read(context.Background(), time.Time{}) {
		if d.Point == at {
			last = d
		}
	}
	return last
}

func lastCount(log *governance.MemoryLog, id string, at events.Point) (n int) {
	for d := range log.Read(context.Background(), time.Time{}) {
		if d.EventID == id && d.Point == at {
			n++
		}
	}
	return n
}
