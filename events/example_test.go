package events_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/events"
)

// exampleBus opens a bus on a server of its own, as an example has no testing.T.
func exampleBus(judge events.Judge) (*events.Bus, func()) {
	dir, err := os.MkdirTemp("", "stokehold-example-")
	if err != nil {
		log.Fatal(err)
	}
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true, JetStreamMaxStore: 4 << 30,
	})
	if err != nil {
		log.Fatal(err)
	}
	srv.Start()
	if !srv.ReadyForConnections(20 * time.Second) {
		log.Fatal("server not ready")
	}
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		log.Fatal(err)
	}
	bus, err := events.Open(context.Background(), events.Config{Conn: nc, Judge: judge, Logger: quiet()})
	if err != nil {
		log.Fatal(err)
	}
	return bus, func() {
		if err := bus.Close(context.Background()); err != nil {
			log.Fatal(err)
		}
		nc.Close()
		srv.Shutdown()
		srv.WaitForShutdown()
		if err := os.RemoveAll(dir); err != nil {
			log.Fatal(err)
		}
	}
}

func Example() {
	bus, stop := exampleBus(events.AllowAll()) // a real process gives it governance
	defer stop()
	ctx := context.Background()

	ev, err := events.New(events.TypeDatasetSealed, "example", "flights/schedule", "flights/schedule#sealed", time.Now(),
		events.DatasetSealed{Dataset: "flights/schedule", Batches: 26, Rows: 300_000})
	if err != nil {
		log.Fatal(err)
	}
	// The second is the same fact, and is stored once.
	if err := bus.Publish(ctx, ev, ev); err != nil {
		log.Fatal(err)
	}

	done := make(chan struct{})
	consumer, err := bus.Subscribe(ctx, events.Subscription{Durable: "reader", Subject: "flights/schedule"},
		func(_ context.Context, d events.Delivery) error {
			defer close(done)
			var data events.DatasetSealed
			if err := d.DataAs(&data); err != nil {
				return events.Terminate(err) // no retry helps
			}
			fmt.Printf("%d: %s, %d rows\n", d.Sequence, d.Type(), data.Rows)
			return nil
		})
	if err != nil {
		log.Fatal(err)
	}
	<-done
	if err := consumer.Stop(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: 1: dataset.sealed, 300000 rows
}

// noFriday is a Judge: governance in one rule.
type noFriday struct{}

func (noFriday) Judge(_ context.Context, _ events.Point, evs []*events.Event) ([]events.Verdict, error) {
	vs := make([]events.Verdict, len(evs))
	for i, ev := range evs {
		vs[i] = events.Verdict{Action: events.Allow}
		if ev.Type() == events.TypePromotionRequested && ev.Time().Weekday() == time.Friday {
			vs[i] = events.Verdict{Action: events.Deny, Policy: "calendar/friday", Reason: "no promotion on a Friday"}
		}
	}
	return vs, nil
}

func ExampleBus_Approve() {
	bus, stop := exampleBus(noFriday{})
	defer stop()
	ctx := context.Background()

	friday := time.Date(2001, 3, 2, 12, 0, 0, 0, time.UTC)
	ev, err := events.New(events.TypePromotionRequested, "example", "delay", "delay#2", friday, events.PromotionRequested{Model: "delay", Challenger: "2"})
	if err != nil {
		log.Fatal(err)
	}
	// The gate is passed before anything has happened.
	var denied *events.DeniedError
	if err := bus.Approve(ctx, &ev); errors.As(err, &denied) {
		fmt.Println(denied.Verdict.Action, denied.Verdict.Policy, denied.Verdict.Reason)
	}
	// Output: deny calendar/friday no promotion on a Friday
}

func ExampleBus_Replay() {
	bus, stop := exampleBus(events.AllowAll())
	defer stop()
	ctx := context.Background()
	for i, run := range []string{"a", "b"} {
		ev, err := events.New(events.TypeRunStarted, "example", run, run, time.Unix(int64(i), 0), events.RunStarted{Pipeline: "flights", Run: run})
		if err != nil {
			log.Fatal(err)
		}
		if err := bus.Publish(ctx, ev); err != nil {
			log.Fatal(err)
		}
	}
	for d, err := range bus.Replay(ctx, events.Subscription{Types: []string{events.TypeRunStarted}}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(d.Sequence, d.Subject())
	}
	// Output:
	// 1 a
	// 2 b
}

func ExampleBus_DeadLetters() {
	bus, stop := exampleBus(events.AllowAll())
	defer stop()
	ctx := context.Background()
	ev, err := events.New(events.TypeRunFailed, "example", "run", "1", time.Unix(0, 0), events.RunFailed{Pipeline: "p", Run: "run", Reason: "r"})
	if err != nil {
		log.Fatal(err)
	}
	if err := bus.Publish(ctx, ev); err != nil {
		log.Fatal(err)
	}
	tried := make(chan struct{})
	consumer, err := bus.Subscribe(ctx, events.Subscription{Durable: "pager"}, func(context.Context, events.Delivery) error {
		close(tried)
		return events.Terminate(errors.New("nobody is on call"))
	})
	if err != nil {
		log.Fatal(err)
	}
	<-tried
	if err := consumer.Stop(ctx); err != nil {
		log.Fatal(err)
	}
	for d, err := range bus.DeadLetters(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(d.Kind, d.Consumer, d.Sequence, d.Reason)
	}
	// Output: terminated pager 1 nobody is on call
}

func ExampleNewSubscriber() {
	bus, stop := exampleBus(events.AllowAll())
	defer stop()
	ctx := context.Background()
	pub, err := events.NewPublisher(ctx, bus)
	if err != nil {
		log.Fatal(err)
	}
	sub, err := events.NewSubscriber(ctx, bus, events.SubscriberConfig{Group: "mailer"})
	if err != nil {
		log.Fatal(err)
	}
	if err := pub.Publish("orders", message.NewMessage("order-1", []byte("two tons of coal"))); err != nil {
		log.Fatal(err)
	}
	orders, err := sub.Subscribe(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}
	m := <-orders
	fmt.Printf("%s: %s\n", m.UUID, m.Payload)
	m.Ack()
	if err := errors.Join(sub.Close(), pub.Close()); err != nil {
		log.Fatal(err)
	}
	// Output: order-1: two tons of coal
}
