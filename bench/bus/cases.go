package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmjs "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/jetstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
)

// perCall is how many messages one Publish is given, on all sides.
const perCall = 10000

func (b *bench) topic() string { return fmt.Sprintf("bench%d", b.round) }

func publishInChunks(p message.Publisher, topic string, ms []*message.Message) error {
	for chunk := range slices.Chunk(ms, perCall) {
		if err := p.Publish(topic, chunk...); err != nil {
			return err
		}
	}
	return nil
}

// publishAtOnce publishes from several goroutines.
func publishAtOnce(p message.Publisher, topic string, ms []*message.Message) error {
	var work sync.WaitGroup
	errs := make([]error, publishers)
	i := 0
	for part := range slices.Chunk(ms, (len(ms)+publishers-1)/publishers) {
		err := &errs[i]
		i++
		work.Go(func() { *err = publishInChunks(p, topic, part) })
	}
	work.Wait()
	return errors.Join(errs...)
}

func (b *bench) publishes(p message.Publisher, topic, one, many string) error {
	if b.wanted(one) {
		ms := b.messages()
		if err := b.measure(one, b.n, func() error { return publishInChunks(p, topic, ms) }); err != nil {
			return err
		}
	}
	if b.wanted(many) {
		ms := b.messages()
		return b.measure(many, b.n, func() error { return publishAtOnce(p, topic+"many", ms) })
	}
	return nil
}

func readAll(s message.Subscriber, topic string, n int) error {
	ch, err := s.Subscribe(context.Background(), topic)
	if err != nil {
		return err
	}
	late := time.NewTimer(2 * time.Minute)
	defer late.Stop()
	for range n {
		select {
		case m := <-ch:
			m.Ack()
		case <-late.C:
			return errors.New("not all messages came within two minutes")
		}
	}
	return nil
}

// ours measures the bus and its Watermill adapters, and plain Consume of the
// very messages that they stored.
func (b *bench) ours() error {
	watermills := b.wanted(oursPublish, oursPublishMany, oursSubscribe, rawConsume)
	bare := b.wanted(oursBusPublish, oursBusSubscribe, rawBusConsume)
	if !watermills && !bare {
		return nil
	}
	nc, err := nats.Connect(b.url)
	if err != nil {
		return err
	}
	defer nc.Close()
	ctx := context.Background()
	prefix := fmt.Sprintf("bench-%d", b.round)
	reg, err := events.NewRegistry(events.Type{Name: "bench.message", Data: struct {
		Text string `json:"text"`
	}{}})
	if err != nil {
		return err
	}
	gov, err := newGovernor(ctx, b.url, prefix)
	if err != nil {
		return err
	}
	bus, err := events.Open(ctx, events.Config{Conn: nc, Prefix: prefix, Judge: gov, Types: reg, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if watermills {
		if err := b.oursWatermill(ctx, bus, nc, prefix); err != nil {
			return err
		}
	}
	if bare {
		if err := b.oursBus(ctx, bus, nc, strings.ToUpper(prefix)+"_EVENTS"); err != nil {
			return err
		}
	}
	judged, denied := bus.Stats().Judged, bus.Stats().Denied
	if err := bus.Close(ctx); err != nil {
		return err
	}
	if err := gov.close(ctx, judged); err != nil {
		return err
	}
	if denied > 0 {
		return fmt.Errorf("%d events were denied", denied)
	}
	return b.drop(nc)
}

func (b *bench) oursWatermill(ctx context.Context, bus *events.Bus, nc *nats.Conn, prefix string) error {
	pub, err := events.NewPublisher(ctx, bus)
	if err != nil {
		return err
	}
	if err := b.publishes(pub, b.topic(), oursPublish, oursPublishMany); err != nil {
		return err
	}
	if !b.wanted(oursSubscribe, rawConsume) {
		return nil
	}
	if !b.wanted(oursPublish) {
		if err := publishInChunks(pub, b.topic(), b.messages()); err != nil {
			return err
		}
	}
	sub, err := events.NewSubscriber(ctx, bus, events.SubscriberConfig{})
	if err != nil {
		return err
	}
	return b.inTurns(oursSubscribe, func() error {
		return errors.Join(readAll(sub, b.topic(), b.n), sub.Close())
	}, rawConsume, func() error {
		return b.consume(nc, strings.ToUpper(prefix)+"_TOPICS", prefix+".topic."+b.topic())
	})
}

// inTurns measures two cases, each first every other round: what comes second
// finds warmer caches.
func (b *bench) inTurns(a string, fa func() error, c string, fc func() error) error {
	if b.round%2 == 1 {
		a, fa, c, fc = c, fc, a, fa
	}
	if b.wanted(a) {
		if err := b.measure(a, b.n, fa); err != nil {
			return err
		}
	}
	if b.wanted(c) {
		return b.measure(c, b.n, fc)
	}
	return nil
}

func (b *bench) oursBus(ctx context.Context, bus *events.Bus, nc *nats.Conn, stream string) error {
	evs := make([]events.Event, b.n)
	for i := range evs {
		var err error
		if evs[i], err = events.New("bench.message", "bench", "subject", watermill.NewUUID(), time.Now(), map[string]string{"text": string(b.payload)}); err != nil {
			return err
		}
	}
	publish := func() error {
		for chunk := range slices.Chunk(evs, perCall) {
			if err := bus.Publish(ctx, chunk...); err != nil {
				return err
			}
		}
		return nil
	}
	if b.wanted(oursBusPublish) {
		if err := b.measure(oursBusPublish, b.n, publish); err != nil {
			return err
		}
	} else if err := publish(); err != nil {
		return err
	}
	evs = nil // what is alive is work for the garbage collector
	return b.inTurns(oursBusSubscribe, func() error {
		done := make(chan struct{})
		got := 0
		c, err := bus.Subscribe(ctx, events.Subscription{Durable: "bench"}, func(context.Context, events.Delivery) error {
			if got++; got == b.n {
				close(done)
			}
			return nil
		})
		if err != nil {
			return err
		}
		<-done
		return c.Stop(ctx)
	}, rawBusConsume, func() error {
		return b.consume(nc, stream, "")
	})
}

// drop deletes all streams, so that no round is slowed by the one before.
func (b *bench) drop(nc *nats.Conn) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	names := js.StreamNames(context.Background())
	for name := range names.Name() {
		if err := js.DeleteStream(context.Background(), name); err != nil {
			return err
		}
	}
	return names.Err()
}

// watermillNATS measures watermill-nats as its documentation sets it up.
func (b *bench) watermillNATS() error {
	if !b.wanted(theirsPublish, theirsPublishMany, theirsSubscribe, theirsSubscribeAsync) {
		return nil
	}
	connect := func() (*nats.Conn, error) { return nats.Connect(b.url) }
	nc, err := connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx := context.Background()
	topic := "wm" + b.topic()
	for _, topic := range []string{topic, topic + "many"} {
		if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: topic, Subjects: []string{topic}}); err != nil {
			return err
		}
	}
	pnc, err := connect()
	if err != nil {
		return err
	}
	pub, err := wmjs.NewPublisher(wmjs.PublisherConfig{Conn: pnc, Logger: watermill.NopLogger{}})
	if err != nil {
		return err
	}
	defer func() { _ = pub.Close() }() // all was acknowledged or the round failed
	if err := b.publishes(pub, topic, theirsPublish, theirsPublishMany); err != nil {
		return err
	}
	if !b.wanted(theirsSubscribe, theirsSubscribeAsync) {
		return b.drop(nc)
	}
	if !b.wanted(theirsPublish) {
		if err := publishInChunks(pub, topic, b.messages()); err != nil {
			return err
		}
	}
	subscribe := func(async bool) func() error {
		return func() error {
			snc, err := connect()
			if err != nil {
				return err
			}
			sub, err := wmjs.NewSubscriber(wmjs.SubscriberConfig{Conn: snc, Logger: watermill.NopLogger{}, AckAsync: async})
			if err != nil {
				return err
			}
			return errors.Join(readAll(sub, topic, b.n), sub.Close())
		}
	}
	if err := b.inTurns(theirsSubscribe, subscribe(false), theirsSubscribeAsync, subscribe(true)); err != nil {
		return err
	}
	return b.drop(nc)
}

// raw measures asynchronous publishing with plain nats.go/jetstream.
func (b *bench) raw() error {
	if !b.wanted(rawPublish) {
		return nil
	}
	nc, err := nats.Connect(b.url)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(2048))
	if err != nil {
		return err
	}
	ctx := context.Background()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "RAW", Subjects: []string{"raw.>"}}); err != nil {
		return err
	}
	uuids := make([]string, b.n)
	for i := range uuids {
		uuids[i] = watermill.NewUUID()
	}
	if err := b.measure(rawPublish, b.n, func() error {
		for _, id := range uuids {
			m := &nats.Msg{Subject: "raw.x", Data: b.payload, Header: nats.Header{"Nats-Msg-Id": {id}, "correlation_id": {"c-17"}}}
			if _, err := js.PublishMsgAsync(m, jetstream.WithStallWait(10*time.Second)); err != nil {
				return err
			}
		}
		<-js.PublishAsyncComplete()
		return nil
	}); err != nil {
		return err
	}
	return b.drop(nc)
}

// consume consumes all messages of a stream with jetstream's Consume, looks at
// headers and data as any handler does, and acknowledges each.
func (b *bench) consume(nc *nats.Conn, stream, filter string) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	cons, err := js.CreateConsumer(context.Background(), stream, jetstream.ConsumerConfig{
		Durable: "raw", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: filter,
	})
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	got := 0
	cc, err := cons.Consume(func(m jetstream.Msg) {
		id := m.Headers().Get("ce-id")
		if id == "" || len(m.Data()) == 0 {
			done <- errors.New("a message without id or data")
			return
		}
		if err := m.Ack(); err != nil {
			return
		}
		if got++; got == b.n {
			done <- nil
		}
	})
	if err != nil {
		return err
	}
	defer cc.Stop()
	if err := <-done; err != nil {
		return err
	}
	return nc.Flush()
}
