package events_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stokehold/stokehold/events"
)

func TestBusWithoutJudgeRefusesEverything(t *testing.T) {
	t.Parallel()
	b, srv, nc := openBus(t, func(c *events.Config) { c.Judge = nil })
	ctx := testContext(t)
	ev := sealed(t, "1", "x")
	if err := b.Publish(ctx, ev); !errors.Is(err, events.ErrDenied) {
		t.Errorf("publish: %v", err)
	}
	if err := b.Approve(ctx, &ev); !errors.Is(err, events.ErrDenied) {
		t.Errorf("approve: %v", err)
	}
	other, _ := openOn(t, srv, nil)
	if err := other.Publish(ctx, ev); err != nil {
		t.Fatal(err)
	}
	for _, s := range []events.Subscription{{}, {Durable: "d"}} {
		if _, err := b.Subscribe(ctx, s, nil); !errors.Is(err, events.ErrDenied) {
			t.Errorf("subscribe: %v", err)
		}
	}
	for _, err := range b.Replay(ctx, events.Subscription{}) {
		if !errors.Is(err, events.ErrDenied) {
			t.Errorf("replay: %v", err)
		}
	}
	if n := messages(t, nc, "STOKEHOLD_EVENTS"); n != 1 {
		t.Errorf("%d events", n)
	}
}

func TestDeniedOnPublishIsNotStored(t *testing.T) {
	t.Parallel()
	for _, action := range []events.Action{events.Deny, events.Quarantine, events.RequireApproval, "", "who knows"} {
		t.Run(string(action), func(t *testing.T) {
			t.Parallel()
			want := events.Verdict{Action: action, DecisionID: "D1", Policy: "gate/auc", Reason: "AUC fell"}
			j := &testJudge{deny: func(_ events.Point, ev *events.Event) (events.Verdict, bool) { return want, ev.ID() == "bad" }}
			b, _, nc := openBus(t, func(c *events.Config) { c.Judge = j })
			err := b.Publish(testContext(t), sealed(t, "good", "x"), sealed(t, "bad", "x"), sealed(t, "fine", "x"))
			errs := eachError(err)
			var denied *events.DeniedError
			if len(errs) != 1 || errs[0].ID != "bad" || !errors.Is(err, events.ErrDenied) || !errors.As(err, &denied) || denied.Verdict != want {
				t.Fatalf("%+v", err)
			}
			if n := messages(t, nc, "STOKEHOLD_EVENTS"); n != 2 {
				t.Errorf("%d stored", n)
			}
			if s := b.Stats(); s.Published != 2 || s.Judged != 3 || s.Denied != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestDeniedOnReceiveNeverReachesAHandler(t *testing.T) {
	t.Parallel()
	j := &testJudge{}
	b, srv, _ := openBus(t, func(c *events.Config) { c.Judge = j })
	// A publisher that judges nothing stamps nothing.
	forger, _ := openOn(t, srv, nil)
	ctx := testContext(t)
	if err := forger.Publish(ctx, sealed(t, "forged", "x")); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(ctx, sealed(t, "true", "x")); err != nil {
		t.Fatal(err)
	}
	for _, durable := range []string{"", "d"} {
		got := make(chan string, 2)
		if _, err := b.Subscribe(ctx, events.Subscription{Durable: durable}, func(_ context.Context, d events.Delivery) error {
			got <- d.ID()
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if id := receive(t, got, 1)[0]; id != "true" {
			t.Errorf("handler got %s", id)
		}
	}
	ds := deadLetters(t, b)
	if len(ds) != 2 {
		t.Fatalf("%d dead letters", len(ds))
	}
	for i, consumer := range []string{"-", "d"} {
		if d := ds[i]; d.Kind != events.DeadDenied || d.DecisionID != "d-forged" || d.Policy != "stamp/missing" || d.Consumer != consumer {
			t.Errorf("%+v", d)
		}
	}
	if s := b.Stats(); s.Denied != 2 || s.DeadLettered != 2 {
		t.Errorf("%+v", s)
	}
	var refused, passed int
	for d, err := range b.Replay(ctx, events.Subscription{}) {
		switch {
		case errors.Is(err, events.ErrDenied) && d.Sequence == 1:
			refused++
		case err == nil && d.ID() == "true":
			passed++
		}
	}
	if refused != 1 || passed != 1 {
		t.Errorf("replay: %d refused, %d passed", refused, passed)
	}
}

func TestApprovedEventIsNotJudgedTwiceUnlessChanged(t *testing.T) {
	t.Parallel()
	j := &testJudge{}
	b, _, nc := openBus(t, func(c *events.Config) { c.Judge = j })
	ctx := testContext(t)
	same, changed, data := sealed(t, "same", "x"), sealed(t, "changed", "x"), sealed(t, "data", "x")
	shared := same // shares its attributes with same
	if err := b.Approve(ctx, &same, &changed, &data); err != nil {
		t.Fatal(err)
	}
	if n := messages(t, nc, "STOKEHOLD_EVENTS"); n != 0 {
		t.Fatalf("Approve published %d", n)
	}
	if same.Extensions()["stkstamp"] != "ok:same" {
		t.Error("Approve left no stamp")
	}
	if shared.Extensions()["stkstamp"] != nil {
		t.Error("Approve wrote to a copy of the event")
	}
	judged := j.onPublish.Load()
	if err := b.Publish(ctx, same); err != nil {
		t.Fatal(err)
	}
	if n := j.onPublish.Load(); n != judged {
		t.Error("the approved event was judged again")
	}
	changed.SetExtension("late", "change")
	data.DataEncoded = []byte(`{"dataset":"y","batches":1,"rows":1}`)
	if err := b.Publish(ctx, changed, data); err != nil {
		t.Fatal(err)
	}
	if n := j.onPublish.Load(); n != judged+2 {
		t.Errorf("%d of 2 changed events judged again", n-judged)
	}
	j.set(func(j *testJudge) {
		j.deny = func(events.Point, *events.Event) (events.Verdict, bool) {
			return events.Verdict{Action: events.Deny}, true
		}
	})
	refused := sealed(t, "refused", "x")
	if err := b.Approve(ctx, &refused); !errors.Is(err, events.ErrDenied) {
		t.Errorf("approve: %v", err)
	}
	if err := b.Publish(ctx, refused); !errors.Is(err, events.ErrDenied) {
		t.Errorf("publish of a refused event: %v", err)
	}
}

func TestJudgeThatFailsLetsNothingPass(t *testing.T) {
	t.Parallel()
	j := &testJudge{}
	b, _, nc := openBus(t, func(c *events.Config) { c.Judge = j })
	ctx := testContext(t)
	if err := b.Publish(ctx, sealed(t, "1", "x")); err != nil {
		t.Fatal(err)
	}
	down := errors.New("decision log is away")
	j.set(func(j *testJudge) { j.fail = down })
	if err := b.Publish(ctx, sealed(t, "2", "x")); !errors.Is(err, events.ErrUnavailable) || !errors.Is(err, down) || errors.Is(err, events.ErrDenied) {
		t.Errorf("publish: %v", err)
	}
	got := make(chan events.Delivery, 1)
	if _, err := b.Subscribe(ctx, events.Subscription{Durable: "d"}, func(_ context.Context, d events.Delivery) error {
		got <- d
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	calls := j.calls.Load()
	eventually(t, "it is tried again", func() bool { return j.calls.Load() > calls+2 })
	select {
	case <-got:
		t.Fatal("an event passed that nobody judged")
	default:
	}
	j.set(func(j *testJudge) { j.fail = nil })
	// The outage is no fault of the event: it comes on its first delivery.
	if d := receive(t, got, 1)[0]; d.Deliveries != 1 {
		t.Errorf("delivery %d", d.Deliveries)
	}
	if n := messages(t, nc, "STOKEHOLD_EVENTS"); n != 1 {
		t.Errorf("%d stored", n)
	}
}

type shortJudge struct{}

func (shortJudge) Judge(context.Context, events.Point, []*events.Event) ([]events.Verdict, error) {
	return nil, nil
}

func TestJudgeThatBreaksItsContractLetsNothingPass(t *testing.T) {
	t.Parallel()
	b, _, nc := openBus(t, func(c *events.Config) { c.Judge = shortJudge{} })
	if err := b.Publish(testContext(t), sealed(t, "1", "x")); !errors.Is(err, events.ErrUnavailable) {
		t.Error(err)
	}
	if n := messages(t, nc, "STOKEHOLD_EVENTS"); n != 0 {
		t.Errorf("%d stored", n)
	}
}
