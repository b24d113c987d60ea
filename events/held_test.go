package events_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
)

// releasingJudge lets held events go, unless told to refuse.
type releasingJudge struct {
	testJudge
	released []events.Release
}

func (j *releasingJudge) JudgeRelease(ctx context.Context, ev *events.Event, r events.Release) (events.Verdict, error) {
	j.mu.Lock()
	j.released = append(j.released, r)
	deny := j.deny
	j.mu.Unlock()
	if deny != nil {
		if v, denied := deny(events.OnRelease, ev); denied {
			return v, nil
		}
	}
	ev.SetExtension("stkstamp", "ok:"+ev.ID())
	ev.SetExtension(events.ExtReleased, r.By)
	return events.Verdict{Action: events.Allow, DecisionID: "r-" + ev.ID()}, nil
}

func quarantine(at ...events.Point) func(events.Point, *events.Event) (events.Verdict, bool) {
	return func(p events.Point, ev *events.Event) (events.Verdict, bool) {
		for _, a := range at {
			if p == a && ev.Extensions()[events.ExtReleased] == nil {
				return events.Verdict{Action: events.Quarantine, DecisionID: "D1", Policy: "pii/labels", Reason: "looks like personal data"}, true
			}
		}
		return events.Verdict{}, false
	}
}

func held(t testing.TB, b *events.Bus) []events.HeldEvent {
	t.Helper()
	var hs []events.HeldEvent
	for h, err := range b.Held(testContext(t)) {
		if err != nil {
			t.Fatal(err)
		}
		hs = append(hs, h)
	}
	return hs
}

// collect subscribes and returns the ids of what a handler gets.
func collect(t testing.TB, b *events.Bus, durable string) <-chan string {
	t.Helper()
	got := make(chan string, 16)
	if _, err := b.Subscribe(testContext(t), events.Subscription{Durable: durable}, func(_ context.Context, d events.Delivery) error {
		got <- d.ID()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestQuarantinedOnPublishIsHeldUntilReleased(t *testing.T) {
	t.Parallel()
	j := &releasingJudge{testJudge: testJudge{deny: quarantine(events.OnPublish)}}
	b, _, nc := openBus(t, func(c *events.Config) { c.Judge = j })
	ctx := testContext(t)
	for range 2 { // the second time it is there already
		err := b.Publish(ctx, sealed(t, "odd", "flights/schedule"))
		var denied *events.DeniedError
		if !errors.Is(err, events.ErrQuarantined) || !errors.Is(err, events.ErrDenied) || !errors.As(err, &denied) || denied.Verdict.Policy != "pii/labels" {
			t.Fatalf("publish: %v", err)
		}
	}
	hs := held(t, b)
	if len(hs) != 1 || messages(t, nc, "STOKEHOLD_EVENTS") != 0 {
		t.Fatalf("held %+v", hs)
	}
	h := hs[0]
	ev, err := h.Event()
	if err != nil || ev.ID() != "odd" || h.Point != events.OnPublish || h.DecisionID != "D1" || h.Reason != "looks like personal data" ||
		h.Action != events.Quarantine || h.Subject != "stokehold.event.dataset.sealed.flights_schedule" || time.Since(h.At) > time.Minute {
		t.Fatalf("%+v, %v", h, err)
	}

	got := collect(t, b, "d")
	if err := b.Release(ctx, h.ID, events.Release{By: "ann", Reason: "checked by hand"}); err != nil {
		t.Fatal(err)
	}
	if id := receive(t, got, 1)[0]; id != "odd" {
		t.Errorf("handler got %s", id)
	}
	if len(held(t, b)) != 0 || len(j.released) != 1 || j.released[0] != (events.Release{By: "ann", Reason: "checked by hand"}) {
		t.Errorf("still held, or judged with %+v", j.released)
	}
	if err := b.Release(ctx, h.ID, events.Release{By: "bob", Reason: "again"}); !errors.Is(err, events.ErrNotHeld) || !strings.Contains(err.Error(), "was let go") {
		t.Errorf("second release: %v", err)
	}
	// Published once more it is held once more.
	if err := b.Publish(ctx, sealed(t, "odd", "flights/schedule")); !errors.Is(err, events.ErrQuarantined) {
		t.Errorf("publish after the release: %v", err)
	}
	if hs := held(t, b); len(hs) != 1 || hs[0].ID != h.ID {
		t.Errorf("held %+v", hs)
	}
	if s := b.Stats(); s.Held != 2 {
		t.Errorf("%+v", s)
	}
}

func TestQuarantinedOnReceiveIsHeldOnceForAllConsumers(t *testing.T) {
	t.Parallel()
	j := &releasingJudge{testJudge: testJudge{deny: quarantine(events.OnReceive)}}
	b, _, _ := openBus(t, func(c *events.Config) { c.Judge = j })
	ctx := testContext(t)
	if err := b.Publish(ctx, sealed(t, "late", "x")); err != nil {
		t.Fatal(err)
	}
	one, two, ordered := collect(t, b, "one"), collect(t, b, "two"), collect(t, b, "")
	eventually(t, "three consumers have met it", func() bool { return b.Stats().Denied == 3 })
	eventually(t, "it is held", func() bool { return len(held(t, b)) == 1 })
	h := held(t, b)[0]
	if h.Point != events.OnReceive || h.Sequence != 1 || h.Consumer == "" {
		t.Errorf("%+v", h)
	}
	if err := b.Release(ctx, h.ID, events.Release{By: "ann", Reason: "fine"}); err != nil {
		t.Fatal(err)
	}
	for _, got := range []<-chan string{one, two, ordered} {
		if id := receive(t, got, 1)[0]; id != "late" {
			t.Errorf("handler got %s", id)
		}
	}
	// Who reads the stream from the beginning meets the original again: it is dealt
	// with, and only the release reaches the handler.
	again := collect(t, b, "")
	if id := receive(t, again, 1)[0]; id != "late" {
		t.Errorf("handler got %s", id)
	}
	if hs := held(t, b); len(hs) != 0 {
		t.Errorf("held again: %+v", hs)
	}
	if ds := deadLetters(t, b); len(ds) != 0 {
		t.Errorf("dead letters: %+v", ds)
	}
}

func TestReleaseIsJudged(t *testing.T) {
	t.Parallel()
	j := &releasingJudge{testJudge: testJudge{deny: quarantine(events.OnPublish)}}
	b, srv, _ := openBus(t, func(c *events.Config) { c.Judge = j })
	ctx := testContext(t)
	if err := b.Publish(ctx, sealed(t, "odd", "x")); !errors.Is(err, events.ErrQuarantined) {
		t.Fatal(err)
	}
	id := held(t, b)[0].ID
	j.set(func(j *testJudge) {
		j.deny = func(at events.Point, _ *events.Event) (events.Verdict, bool) {
			return events.Verdict{Action: events.Deny, Reason: "never"}, at == events.OnRelease
		}
	})
	if err := b.Release(ctx, id, events.Release{By: "ann", Reason: "please"}); !errors.Is(err, events.ErrDenied) || !strings.Contains(err.Error(), "never") {
		t.Errorf("release: %v", err)
	}
	if len(held(t, b)) != 1 {
		t.Error("a refused release took the event away")
	}
	for _, c := range []struct {
		id   string
		r    events.Release
		want error
	}{
		{id, events.Release{By: "ann"}, events.ErrConfig},
		{id, events.Release{Reason: "why not"}, events.ErrConfig},
		{strings.Repeat("0", 32), events.Release{By: "ann", Reason: "x"}, events.ErrNotHeld},
		{"*", events.Release{By: "ann", Reason: "x"}, events.ErrNotHeld},
		{"", events.Release{By: "ann", Reason: "x"}, events.ErrNotHeld},
	} {
		if err := b.Release(ctx, c.id, c.r); !errors.Is(err, c.want) {
			t.Errorf("release %q %+v: %v", c.id, c.r, err)
		}
	}
	other, _ := openOn(t, srv, nil) // AllowAll lets nothing go
	if err := other.Release(ctx, id, events.Release{By: "ann", Reason: "x"}); !errors.Is(err, events.ErrConfig) {
		t.Errorf("release without a Releaser: %v", err)
	}
}

// What an event's effect must precede is not announced later either.
func TestApproveHoldsNothing(t *testing.T) {
	t.Parallel()
	j := &releasingJudge{testJudge: testJudge{deny: quarantine(events.OnPublish)}}
	b, _, _ := openBus(t, func(c *events.Config) { c.Judge = j })
	ev := sealed(t, "odd", "x")
	if err := b.Approve(testContext(t), &ev); !errors.Is(err, events.ErrQuarantined) {
		t.Fatal(err)
	}
	if hs := held(t, b); len(hs) != 0 {
		t.Errorf("held %+v", hs)
	}
}

func TestApprovalRequiredIsNeitherDeniedNorStored(t *testing.T) {
	t.Parallel()
	need := events.ApprovalNeed{ID: strings.Repeat("a", 40), Policy: "gate/four-eyes", Roles: []string{"ml-lead"}, Quorum: 2, Reason: "goes to production"}
	approved := false
	j := &testJudge{deny: func(at events.Point, _ *events.Event) (events.Verdict, bool) {
		return events.Verdict{Action: events.RequireApproval, Policy: need.Policy, Approval: &need}, at == events.OnPublish && !approved
	}}
	b, _, nc := openBus(t, func(c *events.Config) { c.Judge = j })
	ctx := testContext(t)
	ev := sealed(t, "1", "x")
	err := b.Publish(ctx, ev)
	var waiting *events.ApprovalRequiredError
	if !errors.Is(err, events.ErrApprovalRequired) || errors.Is(err, events.ErrDenied) || !errors.As(err, &waiting) || waiting.Need.ID != need.ID {
		t.Fatalf("publish: %v", err)
	}
	if want := "event needs approval by 2 of ml-lead, says gate/four-eyes: goes to production [approval " + need.ID + "]"; !strings.Contains(err.Error(), want) {
		t.Errorf("message %q", err)
	}
	if len(held(t, b)) != 0 || messages(t, nc, "STOKEHOLD_EVENTS") != 0 {
		t.Error("an event that waits for approval is stored")
	}
	j.set(func(*testJudge) { approved = true })
	if err := b.Publish(ctx, ev); err != nil {
		t.Errorf("publish when approved: %v", err)
	}
}

// A Judge that takes out what the type needs does not get an invalid event past
// the bus.
func TestRedactedEventIsHeldToItsType(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]error{
		`{"dataset":"x","batches":3,"rows":7}`:  nil,
		`{"dataset":null,"batches":3,"rows":7}`: events.ErrInvalid,
	} {
		j := &testJudge{deny: func(at events.Point, ev *events.Event) (events.Verdict, bool) {
			ev.DataEncoded = []byte(data)
			return events.Verdict{Action: events.Redact}, at == events.OnPublish
		}}
		b, _, _ := openBus(t, func(c *events.Config) { c.Judge = j })
		if err := b.Publish(testContext(t), sealed(t, "1", "x")); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", data, err, want)
		}
	}
}

func TestRouteAndColumnsTravel(t *testing.T) {
	t.Parallel()
	route := events.Routing{Pipeline: "retrain eu", Tier: "cold", Workers: "gpu&co", Region: "eu"}
	columns := events.Columns{Drop: []string{"ssn", "e=mail"}, Mask: []string{"name, first"}}
	ev := sealed(t, "1", "x")
	if r, err := events.RouteOf(&ev); err != nil || !r.IsZero() {
		t.Errorf("no route: %+v, %v", r, err)
	}
	ev.SetExtension(events.ExtRoute, route.String())
	ev.SetExtension(events.ExtColumns, columns.String())
	if got, err := events.RouteOf(&ev); err != nil || got != route {
		t.Errorf("%q: %+v, %v", route.String(), got, err)
	}
	got, err := events.ColumnsOf(&ev)
	if err != nil || strings.Join(got.Drop, "|") != "e=mail|ssn" || strings.Join(got.Mask, "|") != "name, first" {
		t.Errorf("%q: %+v, %v", columns.String(), got, err)
	}
	for _, bad := range []string{"", "pipeline", "pipeline=a&pipeline=b", "where=x", "%zz", "tier="} {
		ev.SetExtension(events.ExtRoute, bad)
		if _, err := events.RouteOf(&ev); !errors.Is(err, events.ErrInvalid) {
			t.Errorf("route %q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "drop=", "keep=a", "%"} {
		ev.SetExtension(events.ExtColumns, bad)
		if _, err := events.ColumnsOf(&ev); !errors.Is(err, events.ErrInvalid) {
			t.Errorf("columns %q: %v", bad, err)
		}
	}
}

func TestLabels(t *testing.T) {
	t.Parallel()
	for label, ok := range map[string]bool{
		"pii": true, "residency:eu": true, "licence:cc-by-4.0": true, "a_b": true,
		"": false, ":": false, "a:": false, ":a": false, "a:b:c": false, "A": false, "a b": false, "a,b": false, strings.Repeat("a", 65): false,
	} {
		if err := events.CheckLabel(label); (err == nil) != ok {
			t.Errorf("%q: %v", label, err)
		}
	}
	ev := sealed(t, "1", "x")
	ev.SetExtension(events.ExtLabels, "pii,residency:eu")
	if ls, err := events.LabelsOf(&ev); err != nil || len(ls) != 2 {
		t.Errorf("%q, %v", ls, err)
	}
	ev.SetExtension(events.ExtLabels, "pii,")
	if _, err := events.LabelsOf(&ev); !errors.Is(err, events.ErrInvalid) {
		t.Errorf("%v", err)
	}
}
