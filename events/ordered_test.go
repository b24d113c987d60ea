package events_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
)

func TestOrderedSubscriptionsRetryInPlace(t *testing.T) {
	t.Parallel()
	b, _, _ := openBus(t, nil)
	ctx := testContext(t)
	if err := b.Publish(ctx, manySealed(t, 0, 5)...); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 20)
	if _, err := b.Subscribe(ctx, events.Subscription{Start: 2, MaxDeliver: 2, RetryDelay: time.Millisecond}, func(_ context.Context, d events.Delivery) error {
		got <- fmt.Sprintf("%d/%d", d.Sequence, d.Deliveries)
		if d.Sequence == 3 {
			return errors.New("no")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(receive(t, got, 5), " "); s != "2/1 3/1 3/2 4/1 5/1" {
		t.Errorf("got %s", s)
	}
	if ds := deadLetters(t, b); len(ds) != 1 || ds[0].Consumer != "-" || ds[0].Sequence != 3 {
		t.Errorf("%+v", ds)
	}
}

func TestFromNowSeesOnlyWhatComes(t *testing.T) {
	t.Parallel()
	b, _, _ := openBus(t, nil)
	ctx := testContext(t)
	if err := b.Publish(ctx, sealed(t, "old", "x")); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 5)
	if _, err := b.Subscribe(ctx, events.Subscription{Start: events.FromNow}, func(_ context.Context, d events.Delivery) error {
		got <- d.ID()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(ctx, sealed(t, "new", "x")); err != nil {
		t.Fatal(err)
	}
	if id := receive(t, got, 1)[0]; id != "new" {
		t.Errorf("got %s", id)
	}
}

func TestSubscriptionsOutliveTheServer(t *testing.T) {
	t.Parallel()
	b, srv, _ := openBus(t, nil)
	ctx := testContext(t)
	ordered, durable := make(chan uint64, 1000), make(chan uint64, 1000)
	for ch, s := range map[chan uint64]events.Subscription{ordered: {}, durable: {Durable: "d", AckWait: time.Second}} {
		if _, err := b.Subscribe(ctx, s, func(_ context.Context, d events.Delivery) error {
			ch <- d.Sequence
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Publish(ctx, manySealed(t, 0, 10)...); err != nil {
		t.Fatal(err)
	}
	receive(t, durable, 10)
	for i, s := range receive(t, ordered, 10) {
		if s != uint64(i+1) {
			t.Fatalf("event %d has sequence %d", i+1, s)
		}
	}
	srv.Restart()
	if err := b.Publish(ctx, manySealed(t, 10, 10)...); err != nil {
		t.Fatal(err)
	}
	receive(t, durable, 10)
	for i, s := range receive(t, ordered, 10) {
		if s != uint64(i+11) {
			t.Fatalf("event %d has sequence %d", i+11, s)
		}
	}
}

// What the client library drops, or anything else takes, leaves a gap in the
// consumer's numbers; an ordered subscription closes it.
func TestOrderedSubscriptionClosesGaps(t *testing.T) {
	t.Parallel()
	b, _, nc := openBus(t, nil)
	ctx := testContext(t)
	const n = 8000 // more than the subscription takes in advance
	got := make(chan uint64, 2*n)
	gate := make(chan struct{})
	if _, err := b.Subscribe(ctx, events.Subscription{}, func(_ context.Context, d events.Delivery) error {
		if d.Sequence == 10 {
			<-gate
		}
		got <- d.Sequence
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(ctx, manySealed(t, 0, n)...); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(ctx, "STOKEHOLD_EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	lister := stream.ConsumerNames(ctx)
	for name := range lister.Name() {
		cons, err := js.Consumer(ctx, "STOKEHOLD_EVENTS", name)
		if err != nil {
			t.Fatal(err)
		}
		stolen, err := cons.Fetch(50, jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for range stolen.Messages() {
			count++
		}
		if count == 0 {
			t.Fatal("nothing was stolen: the test shows nothing")
		}
	}
	close(gate)
	for i, seq := range receive(t, got, n) {
		if seq != uint64(i+1) {
			t.Fatalf("event %d has sequence %d", i+1, seq)
		}
	}
}

func TestConsumersThatAreDeletedAreMadeAnew(t *testing.T) {
	t.Parallel()
	b, _, nc := openBus(t, nil)
	ctx := testContext(t)
	got := make(chan uint64, 100)
	for _, s := range []events.Subscription{{}, {Durable: "d"}} {
		if _, err := b.Subscribe(ctx, s, func(_ context.Context, d events.Delivery) error {
			got <- d.Sequence
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Publish(ctx, sealed(t, "1", "x")); err != nil {
		t.Fatal(err)
	}
	receive(t, got, 2)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(ctx, "STOKEHOLD_EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	names := stream.ConsumerNames(ctx)
	for name := range names.Name() {
		if err := js.DeleteConsumer(ctx, "STOKEHOLD_EVENTS", name); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Publish(ctx, sealed(t, "2", "x")); err != nil {
		t.Fatal(err)
	}
	// The durable begins anew, as it must: its position is gone.
	seen := map[uint64]int{}
	for _, seq := range receive(t, got, 3) {
		seen[seq]++
	}
	if seen[1] != 1 || seen[2] != 2 {
		t.Errorf("%v", seen)
	}
}
