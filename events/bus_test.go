package events_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
)

func TestBusCarriesEventsUnchanged(t *testing.T) {
	t.Parallel()
	j := &testJudge{}
	b, _, _ := openBus(t, func(c *events.Config) { c.Judge = j })
	ev := newEvent(t, events.TypeDriftDetected, "Ünï cödé \"id\" 100%", "a.b *>/c d_é", events.DriftDetected{
		Pipeline: "p", Model: "m", Version: "v", Detector: "ks", Statistic: 0.5, Threshold: 0.25, Window: "week 7", Rows: 12,
		Metrics: map[string]float64{"auc": 0.7}, Params: map[string]any{"x": []any{1.0, "y", nil}},
	})
	ev.SetExtension(events.ExtRun, "run/1")
	ev.SetExtension("count", 7)
	if err := b.Publish(testContext(t), ev); err != nil {
		t.Fatal(err)
	}
	if _, stamped := ev.Extensions()["stkstamp"]; stamped {
		t.Error("Publish changed the caller's event")
	}
	got := make(chan events.Delivery, 1)
	if _, err := b.Subscribe(testContext(t), events.Subscription{Durable: "d", Subject: ev.Subject()}, func(_ context.Context, d events.Delivery) error {
		got <- d
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	d := receive(t, got, 1)[0]
	if d.Sequence != 1 || d.Deliveries != 1 {
		t.Errorf("sequence %d, deliveries %d", d.Sequence, d.Deliveries)
	}
	if d.ID() != ev.ID() || d.Source() != ev.Source() || d.Type() != ev.Type() || d.Subject() != ev.Subject() || !d.Time().Equal(ev.Time()) ||
		d.DataContentType() != "application/json" || string(d.Data()) != string(ev.Data()) {
		t.Errorf("got %v\nwant %v", d.Event, ev)
	}
	if x := d.Extensions(); x[events.ExtRun] != "run/1" || x["count"] != "7" || x["stkstamp"] != "ok:"+ev.ID() || len(x) != 3 {
		t.Errorf("extensions: %v", x)
	}
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
}

func TestOpenReportsAllFaults(t *testing.T) {
	t.Parallel()
	_, err := events.Open(testContext(t), events.Config{Prefix: "No Good", Replicas: 9, MaxAge: time.Minute, Dedupe: time.Hour})
	if !errors.Is(err, events.ErrConfig) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"Conn", "prefix", "Replicas", "Dedupe"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not mention %s", err, want)
		}
	}
}

func TestPublishStoresADuplicateOnce(t *testing.T) {
	t.Parallel()
	b, _, nc := openBus(t, nil)
	for range 3 {
		if err := b.Publish(testContext(t), sealed(t, "same", "x"), sealed(t, "same", "x")); err != nil {
			t.Fatal(err)
		}
	}
	other, err := events.New(events.TypeDatasetSealed, "another/source", "x", "same", testTime, events.DatasetSealed{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(testContext(t), other); err != nil {
		t.Fatal(err)
	}
	if n := messages(t, nc, "STOKEHOLD_EVENTS"); n != 2 {
		t.Errorf("%d messages stored, want one for each source", n)
	}
}

func TestPublishRefusesEachBadEventAndStoresTheOthers(t *testing.T) {
	t.Parallel()
	b, _, nc := openBus(t, nil)
	raw := func(id, data string) events.Event {
		ev := sealed(t, id, "x")
		ev.DataEncoded = []byte(data)
		return ev
	}
	noID := sealed(t, "", "x")
	badName := sealed(t, "bad-name", "x")
	badName.Context.AsV1().Extensions = map[string]any{"Not_OK": "v"}
	cases := []struct {
		name string
		ev   events.Event
		want error
	}{
		{"missing id", noID, events.ErrInvalid},
		{"no context", events.Event{}, events.ErrInvalid},
		{"duplicate keys", raw("dup", `{"dataset":"a","dataset":"b","batches":1,"rows":1}`), events.ErrInvalid},
		{"keys in other case", raw("case", `{"Dataset":"a","batches":1,"rows":1}`), events.ErrInvalid},
		{"unknown field", raw("field", `{"dataset":"a","batches":1,"rows":1,"x":2}`), events.ErrInvalid},
		{"wrong kind", raw("kind", `{"dataset":1,"batches":1,"rows":1}`), events.ErrInvalid},
		{"out of range", raw("range", `{"dataset":"a","batches":99999999999999999999,"rows":1}`), events.ErrInvalid},
		{"not JSON", raw("json", `{"dataset":`), events.ErrInvalid},
		{"something behind", raw("tail", `{"dataset":"a","batches":1,"rows":1}{}`), events.ErrInvalid},
		{"no data", raw("none", ``), events.ErrInvalid},
		{"too large", raw("large", `{"dataset":"`+strings.Repeat("a", events.MaxDataBytes)+`"}`), events.ErrTooLarge},
		{"unknown type", newEvent(t, "no.such.type", "type", "x", struct{}{}), events.ErrUnknownType},
		{"long attribute", newEvent(t, events.TypeDatasetSealed, strings.Repeat("i", 9<<10), "x", events.DatasetSealed{}), events.ErrInvalid},
		{"control character", newEvent(t, events.TypeDatasetSealed, "a\x00b", "x", events.DatasetSealed{}), events.ErrInvalid},
		{"year 10000", func() events.Event {
			ev := sealed(t, "year", "x")
			ev.SetTime(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC))
			return ev
		}(), events.ErrInvalid},
	}
	evs := []events.Event{sealed(t, "first", "x")}
	for _, c := range cases {
		evs = append(evs, c.ev)
	}
	evs = append(evs, sealed(t, "last", "x"))
	errs := eachError(b.Publish(testContext(t), evs...))
	if len(errs) != len(cases) {
		t.Fatalf("%d errors, want %d: %v", len(errs), len(cases), errs)
	}
	for i, c := range cases {
		if !errors.Is(errs[i], c.want) || errs[i].Op != "publish" {
			t.Errorf("%s: got %v, want %v", c.name, errs[i], c.want)
		}
	}
	if n := messages(t, nc, "STOKEHOLD_EVENTS"); n != 2 {
		t.Errorf("%d messages stored, want the two good ones", n)
	}
}

func TestSyncedEventsSurviveARestart(t *testing.T) {
	t.Parallel()
	b, srv, _ := openBus(t, nil, natstest.SyncAlways())
	if err := b.Publish(testContext(t), manySealed(t, 0, 300)...); err != nil {
		t.Fatal(err)
	}
	srv.Restart()
	eventually(t, "the bus is well again", func() bool { return b.Probe(testContext(t)) == nil })
	// The same again, and more: the duplicate window survives, too.
	if err := b.Publish(testContext(t), manySealed(t, 200, 200)...); err != nil {
		t.Fatal(err)
	}
	n := 0
	for d, err := range b.Replay(testContext(t), events.Subscription{}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; d.Sequence != uint64(n) {
			t.Fatalf("event %d has sequence %d", n, d.Sequence)
		}
	}
	if n != 400 {
		t.Errorf("%d events, want 400", n)
	}
}

func TestReplaySelects(t *testing.T) {
	t.Parallel()
	b, _, _ := openBus(t, nil)
	if err := b.Publish(testContext(t),
		sealed(t, "1", "flights/schedule"), sealed(t, "2", "flights/labels"),
		newEvent(t, events.TypeRunStarted, "3", "run", events.RunStarted{Pipeline: "p", Run: "run"}), sealed(t, "4", "flights/schedule"),
		sealed(t, "5", ""),
	); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		s    events.Subscription
		want string
	}{
		"all":          {events.Subscription{}, "1 2 3 4 5"},
		"from":         {events.Subscription{Start: 3}, "3 4 5"},
		"type":         {events.Subscription{Types: []string{events.TypeRunStarted}}, "3"},
		"types":        {events.Subscription{Types: []string{events.TypeRunStarted, events.TypeDatasetSealed}}, "1 2 3 4 5"},
		"subject":      {events.Subscription{Subject: "flights/schedule"}, "1 4"},
		"type+subject": {events.Subscription{Types: []string{events.TypeDatasetSealed}, Subject: "flights/labels"}, "2"},
		"nothing":      {events.Subscription{Subject: "flights"}, ""},
		"behind":       {events.Subscription{Start: 6}, ""},
		"now":          {events.Subscription{Start: events.FromNow}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var ds []events.Delivery
			for d, err := range b.Replay(testContext(t), c.s) {
				if err != nil {
					t.Fatal(err)
				}
				ds = append(ds, d)
			}
			if got := ids(ds); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestProbeTellsWhenTheServerDoesNotPersist(t *testing.T) {
	t.Parallel()
	b, srv, _ := openBus(t, nil)
	if err := b.Probe(testContext(t)); err != nil {
		t.Fatal(err)
	}
	srv.Stop()
	ctx, cancel := context.WithTimeout(testContext(t), 100*time.Millisecond)
	defer cancel()
	if err := b.Probe(ctx); !errors.Is(err, events.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("probe of a stopped server: %v", err)
	}
	if err := b.Publish(ctx, sealed(t, "1", "x")); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("publish to a stopped server: %v", err)
	}
	srv.Restart()
	eventually(t, "the bus is well again", func() bool { return b.Probe(testContext(t)) == nil })
}

func TestPublishObeysItsContextAndALimitOfTheStream(t *testing.T) {
	t.Parallel()
	b, _, nc := openBus(t, nil)
	done, cancel := context.WithCancel(testContext(t))
	cancel()
	if err := b.Publish(done, sealed(t, "1", "x")); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// A stream that takes no more answers with an error, not with silence.
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(testContext(t), "STOKEHOLD_EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	cfg.MaxMsgs, cfg.Discard = 2, jetstream.DiscardNew
	if _, err := js.UpdateStream(testContext(t), cfg); err != nil {
		t.Fatal(err)
	}
	errs := eachError(b.Publish(testContext(t), manySealed(t, 0, 5)...))
	if len(errs) < 3 {
		t.Fatalf("%d errors", len(errs))
	}
	for _, e := range errs {
		var api *jetstream.APIError
		if !errors.Is(e, events.ErrUnavailable) || !errors.As(e, &api) {
			t.Errorf("%v", e)
		}
	}
}
