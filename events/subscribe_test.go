package events_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
)

func TestDurableContinuesWhereItStopped(t *testing.T) {
	t.Parallel()
	b, _, _ := openBus(t, nil)
	ctx := testContext(t)
	if err := b.Publish(ctx, manySealed(t, 0, 100)...); err != nil {
		t.Fatal(err)
	}
	s := events.Subscription{Durable: "reader", RetryDelay: time.Millisecond}
	got := make(chan uint64, 200)
	handler := func(_ context.Context, d events.Delivery) error {
		got <- d.Sequence
		return nil
	}
	c, err := b.Subscribe(ctx, s, handler)
	if err != nil {
		t.Fatal(err)
	}
	first := receive(t, got, 100)
	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(ctx); err != nil {
		t.Fatalf("stopping again: %v", err)
	}
	if err := b.Publish(ctx, manySealed(t, 100, 10)...); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Subscribe(ctx, s, handler); err != nil {
		t.Fatal(err)
	}
	for i, seq := range append(first, receive(t, got, 10)...) {
		if seq != uint64(i+1) {
			t.Fatalf("event %d has sequence %d", i+1, seq)
		}
	}
}

func TestFailedEventComesAgainThenIsDeadLetteredOnce(t *testing.T) {
	t.Parallel()
	b, _, _ := openBus(t, nil)
	ctx := testContext(t)
	var tries atomic.Int64
	others := make(chan string, 10)
	if _, err := b.Subscribe(ctx, events.Subscription{Durable: "d", MaxDeliver: 3, RetryDelay: time.Millisecond}, func(_ context.Context, d events.Delivery) error {
		if d.ID() == "poison" {
			if n := tries.Add(1); int(n) != d.Deliveries {
				t.Errorf("try %d says it is delivery %d", n, d.Deliveries)
			}
			return errors.New("cannot digest")
		}
		others <- d.ID()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(ctx, sealed(t, "before", "x"), sealed(t, "poison", "x"), sealed(t, "after", "x")); err != nil {
		t.Fatal(err)
	}
	receive(t, others, 2)
	eventually(t, "dead letter", func() bool { return b.Stats().DeadLettered == 1 })
	ds := deadLetters(t, b)
	if len(ds) != 1 {
		t.Fatalf("%d dead letters", len(ds))
	}
	d := ds[0]
	ev, err := d.Event()
	if err != nil {
		t.Fatal(err)
	}
	if d.Kind != events.DeadFailed || d.Reason != "cannot digest" || d.Consumer != "d" || d.Sequence != 2 || d.Deliveries != 3 ||
		d.Stream != "STOKEHOLD_EVENTS" || d.Subject != "stokehold.event.dataset.sealed.x" || ev.ID() != "poison" || d.Cut {
		t.Errorf("%+v", d)
	}
	if n := tries.Load(); n != 3 {
		t.Errorf("handled %d times", n)
	}
}

func TestTerminatedEventIsDeadLetteredAtOnce(t *testing.T) {
	t.Parallel()
	b, _, _ := openBus(t, nil)
	ctx := testContext(t)
	if _, err := b.Subscribe(ctx, events.Subscription{Durable: "d"}, func(context.Context, events.Delivery) error {
		return fmt.Errorf("wrapped: %w", events.Terminate(errors.New("hopeless ü")))
	}); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(ctx, sealed(t, "1", "x")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "dead letter", func() bool { return b.Stats().DeadLettered == 1 })
	if ds := deadLetters(t, b); len(ds) != 1 || ds[0].Kind != events.DeadTerminated || ds[0].Reason != "wrapped: hopeless ü" || ds[0].Deliveries != 1 {
		t.Errorf("%+v", ds)
	}
}

// A handler that dies without a word leaves it to the server to give up.
func TestServersAdvisoryMovesTheEventExactlyOnce(t *testing.T) {
	t.Parallel()
	b, srv, nc := openBus(t, nil)
	// A second process on the same bus shares the moving.
	other, _ := openOn(t, srv, nil)
	ctx := testContext(t)
	if err := b.Publish(ctx, sealed(t, "lost", "x")); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	cons, err := js.CreateConsumer(ctx, "STOKEHOLD_EVENTS", jetstream.ConsumerConfig{
		Durable: "silent", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 50 * time.Millisecond, MaxDeliver: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	cc, err := cons.Consume(func(jetstream.Msg) {})
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Stop()
	eventually(t, "dead letter", func() bool { return b.Stats().DeadLettered+other.Stats().DeadLettered > 0 })
	// The same advisory twice more, as after a crash of the mover.
	for range 2 {
		raw, err := js.Stream(ctx, "STOKEHOLD_ADVISORIES")
		if err != nil {
			t.Fatal(err)
		}
		adv, err := raw.GetMsg(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.Publish(ctx, adv.Subject, adv.Data); err != nil {
			t.Fatal(err)
		}
	}
	mover, err := js.Consumer(ctx, "STOKEHOLD_ADVISORIES", "dead-letter-mover")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "all advisories are done", func() bool {
		info, err := mover.Info(ctx)
		return err == nil && info.AckFloor.Stream == 3
	})
	ds := deadLetters(t, b)
	if len(ds) != 1 || ds[0].Kind != events.DeadExhausted || ds[0].Consumer != "silent" || ds[0].Deliveries != 2 || ds[0].Sequence != 1 {
		t.Fatalf("%+v", ds)
	}
	if ev, err := ds[0].Event(); err != nil || ev.ID() != "lost" {
		t.Errorf("%v %v", ev, err)
	}
}

func TestMalformedMessagesAreDeadLetteredAndOthersFlow(t *testing.T) {
	t.Parallel()
	b, _, nc := openBus(t, nil)
	ctx := testContext(t)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	header := func(mod func(nats.Header)) nats.Header {
		h := nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": {"raw"}, "ce-source": {"s"}, "ce-type": {"dataset.sealed"}, "ce-subject": {"x"},
			"content-type": {"application/json"},
		}
		mod(h)
		return h
	}
	good := `{"dataset":"x","batches":1,"rows":1}`
	const subject = "stokehold.event.dataset.sealed.x"
	cases := []struct {
		name, subject, data, reason string
		mod                         func(nats.Header)
	}{
		{"no headers", subject, good, "specversion", func(h nats.Header) { clear(h) }},
		{"no id", subject, good, "id: missing", func(h nats.Header) { delete(h, "ce-id") }},
		{"id twice", subject, good, "ce-id", func(h nats.Header) { h["ce-id"] = []string{"a", "b"} }},
		{"upper-case name", subject, good, "lower case", func(h nats.Header) { h["Ce-Run"] = []string{"a"} }},
		{"bad name", subject, good, "attribute name", func(h nats.Header) { h["ce-a_b"] = []string{"a"} }},
		{"bad percent", subject, good, "percent", func(h nats.Header) { h["ce-id"] = []string{"%zz"} }},
		{"not UTF-8", subject, good, "UTF-8", func(h nats.Header) { h["ce-id"] = []string{"%ff"} }},
		{"year 0", subject, good, "year", func(h nats.Header) { h["ce-time"] = []string{"0000-06-01T00:00:00Z"} }},
		{"year before 1 in UTC", subject, good, "year", func(h nats.Header) { h["ce-time"] = []string{"0001-01-01T00:00:00+01:00"} }},
		{"year after 9999 in UTC", subject, good, "year", func(h nats.Header) { h["ce-time"] = []string{"9999-12-31T23:59:59-01:00"} }},
		{"no time at all", subject, good, "RFC 3339", func(h nats.Header) { h["ce-time"] = []string{"yesterday"} }},
		{"huge attribute", subject, good, "limit", func(h nats.Header) { h["ce-x"] = []string{strings.Repeat("v", 9<<10)} }},
		{"unknown type", "stokehold.event.no.such.x", good, "unknown event type", func(h nats.Header) { h["ce-type"] = []string{"no.such"} }},
		{"another's subject", "stokehold.event.dataset.sealed.y", good, "NATS subject", func(nats.Header) {}},
		{"deeper subject", "stokehold.event.dataset.sealed.x.y", good, "NATS subject", func(nats.Header) {}},
		{"too large", subject, `{"dataset":"` + strings.Repeat("x", events.MaxDataBytes) + `"}`, "too large", func(nats.Header) {}},
		{"duplicate keys", subject, `{"dataset":"x","dataset":"y","batches":1,"rows":1}`, "duplicate key", func(nats.Header) {}},
		{"nested too deep", subject, `{"dataset":` + strings.Repeat("[", 100000/2) + `}`, "must be a string", func(nats.Header) {}},
	}
	for _, c := range cases {
		if _, err := js.PublishMsg(ctx, &nats.Msg{Subject: c.subject, Header: header(c.mod), Data: []byte(c.data)}); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
	}
	if err := b.Publish(ctx, sealed(t, "good", "x")); err != nil {
		t.Fatal(err)
	}
	got := make(chan events.Delivery, 1)
	if _, err := b.Subscribe(ctx, events.Subscription{Durable: "d"}, func(_ context.Context, d events.Delivery) error {
		got <- d
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if d := receive(t, got, 1)[0]; d.ID() != "good" {
		t.Fatalf("handler got %s", d.ID())
	}
	eventually(t, "all are dead-lettered", func() bool { return b.Stats().DeadLettered == uint64(len(cases)) })
	for i, d := range deadLetters(t, b) {
		if c := cases[i]; d.Kind != events.DeadMalformed || !strings.Contains(d.Reason, c.reason) || d.Sequence != uint64(i+1) {
			t.Errorf("%s: %s %q of %d", c.name, d.Kind, d.Reason, d.Sequence)
		}
	}
	// Replay shows each as a typed error and goes on.
	var bad, fine int
	for _, err := range b.Replay(ctx, events.Subscription{}) {
		var e *events.Error
		switch {
		case err == nil:
			fine++
		case errors.As(err, &e):
			bad++
		default:
			t.Error(err)
		}
	}
	if bad != len(cases) || fine != 1 {
		t.Errorf("replay: %d bad, %d fine", bad, fine)
	}
}

func TestSlowHandlerKeepsItsEvents(t *testing.T) {
	t.Parallel()
	b, srv, _ := openBus(t, nil)
	other, _ := openOn(t, srv, nil)
	ctx := testContext(t)
	const ackWait = 500 * time.Millisecond // a machine under load is late with signs of life by 100 ms
	s := events.Subscription{Durable: "slow", AckWait: ackWait, MaxPending: 20}
	if err := b.Publish(ctx, manySealed(t, 0, 20)...); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	handled := make(chan events.Delivery, 100)
	started := make(chan struct{}, 100)
	handler := func(_ context.Context, d events.Delivery) error {
		started <- struct{}{}
		<-release
		handled <- d
		return nil
	}
	if _, err := b.Subscribe(ctx, s, handler); err != nil {
		t.Fatal(err)
	}
	receive(t, started, 1)
	// Another member of the group stands ready to take what expires.
	if _, err := other.Subscribe(ctx, s, handler); err != nil {
		t.Fatal(err)
	}
	// This is the passing of time itself that is tested.
	<-time.After(3 * ackWait)
	close(release)
	seen := map[string]bool{}
	for _, d := range receive(t, handled, 20) {
		if d.Deliveries != 1 || seen[d.ID()] {
			t.Errorf("%s delivered %d times", d.ID(), d.Deliveries)
		}
		seen[d.ID()] = true
	}
}

func TestCloseWaitsForTheHandlerAndItsAcknowledgement(t *testing.T) {
	t.Parallel()
	b, srv, _ := openBus(t, nil)
	ctx := testContext(t)
	if err := b.Publish(ctx, manySealed(t, 0, 10)...); err != nil {
		t.Fatal(err)
	}
	s := events.Subscription{Durable: "d"}
	started, release := make(chan struct{}), make(chan struct{})
	var handled atomic.Int64
	if _, err := b.Subscribe(ctx, s, func(context.Context, events.Delivery) error {
		if handled.Add(1) == 1 {
			close(started)
			<-release
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	<-started
	closed := make(chan error, 1)
	go func() { closed <- b.Close(ctx) }()
	eventually(t, "the bus is closing", func() bool {
		return errors.Is(b.Publish(ctx, sealed(t, "late", "x")), events.ErrClosed)
	})
	select {
	case err := <-closed:
		t.Fatalf("closed with a handler running: %v", err)
	default:
	}
	close(release)
	if err := receive(t, closed, 1)[0]; err != nil {
		t.Fatal(err)
	}
	if _, err := b.Subscribe(ctx, s, nil); !errors.Is(err, events.ErrClosed) {
		t.Errorf("subscribe after close: %v", err)
	}
	n := handled.Load()
	if n != 1 {
		t.Errorf("%d events handled after the close began", n-1)
	}
	// The rest comes to the next member at once, not when it would expire.
	next, _ := openOn(t, srv, nil)
	got := make(chan events.Delivery, 10)
	if _, err := next.Subscribe(ctx, s, func(_ context.Context, d events.Delivery) error {
		got <- d
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, d := range receive(t, got, 9) {
		if d.Sequence == 1 {
			t.Error("the acknowledged event came again")
		}
	}
}

func TestStopRunsOutOfTime(t *testing.T) {
	t.Parallel()
	b, _, _ := openBus(t, nil)
	ctx := testContext(t)
	if err := b.Publish(ctx, sealed(t, "1", "x")); err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	c, err := b.Subscribe(ctx, events.Subscription{Durable: "d"}, func(ctx context.Context, _ events.Delivery) error {
		close(started)
		<-ctx.Done() // cancelled once the soft stop has failed
		return ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	<-started
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := c.Stop(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	<-c.Done()
}

func TestSubscribersContextEndsTheConsumer(t *testing.T) {
	t.Parallel()
	b, _, _ := openBus(t, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	c, err := b.Subscribe(ctx, events.Subscription{}, func(context.Context, events.Delivery) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-c.Done()
}

func TestBatches(t *testing.T) {
	t.Parallel()
	b, _, _ := openBus(t, nil)
	ctx := testContext(t)
	if err := b.Publish(ctx, manySealed(t, 0, 250)...); err != nil {
		t.Fatal(err)
	}
	got := make(chan []uint64, 300)
	fail := true
	if _, err := b.SubscribeBatch(ctx, events.Subscription{Durable: "d", MaxBatch: 60, MaxWait: 200 * time.Millisecond, RetryDelay: time.Millisecond}, func(_ context.Context, ds []events.Delivery) error {
		var seqs []uint64
		for _, d := range ds {
			seqs = append(seqs, d.Sequence)
		}
		if fail {
			fail = false
			return errors.New("once")
		}
		got <- seqs
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]bool{}
	full := false
	for len(seen) < 250 {
		seqs := receive(t, got, 1)[0]
		if len(seqs) > 60 {
			t.Errorf("batch of %d", len(seqs))
		}
		full = full || len(seqs) == 60
		for i, s := range seqs {
			if seen[s] {
				t.Errorf("event %d acknowledged twice", s)
			}
			seen[s] = true
			if i > 0 && s <= seqs[i-1] {
				t.Errorf("batch not in stream order: %v", seqs)
			}
		}
	}
	if !full {
		t.Error("no batch was full")
	}
}

func TestSubscribeRefusesNonsense(t *testing.T) {
	t.Parallel()
	b, _, _ := openBus(t, nil)
	_, err := b.Subscribe(testContext(t), events.Subscription{Durable: "a b", Types: []string{"nope"}, AckWait: 1, Start: 4}, nil)
	if !errors.Is(err, events.ErrUnknownType) || !errors.Is(err, events.ErrConfig) {
		t.Fatal(err)
	}
	for _, want := range []string{"durable name", "nope", "AckWait", "Start"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not mention %s", err, want)
		}
	}
}
