package events_test

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
)

func newPubSub(t testing.TB, b *events.Bus, cfg events.SubscriberConfig) (message.Publisher, message.Subscriber) {
	t.Helper()
	pub, err := events.NewPublisher(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	cfg.CloseWait = 500 * time.Millisecond
	cfg.NackDelay = time.Millisecond
	// How soon comes again what a restarted server had sent into nowhere.
	cfg.AckWait = 2 * time.Second
	sub, err := events.NewSubscriber(t.Context(), b, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return pub, sub
}

// The suite of Watermill itself, against a real server.
func TestWatermillSuite(t *testing.T) {
	for name, c := range map[string]struct {
		cfg      events.SubscriberConfig
		features tests.Features
	}{
		"concurrent": {events.SubscriberConfig{}, tests.Features{ConsumerGroups: true, Persistent: true}},
		"ordered": {events.SubscriberConfig{Ordered: true}, tests.Features{
			ConsumerGroups: true, Persistent: true, GuaranteedOrder: true, GuaranteedOrderWithSingleSubscriber: true, ForceShort: true,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := natstest.Start(t)
			b, _ := openOn(t, srv, nil)
			// The suite's reconnect test has a data race of its own.
			if !c.cfg.Ordered && !testing.Short() && !raceEnabled {
				c.features.RestartServiceCommand = restartOnSignal(t, srv)
			}
			tests.TestPubSub(t, c.features,
				func(t *testing.T) (message.Publisher, message.Subscriber) { return newPubSub(t, b, c.cfg) },
				func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
					cfg := c.cfg
					cfg.Group = group
					return newPubSub(t, b, cfg)
				},
			)
		})
	}
}

// restartOnSignal returns a command that restarts the server, which runs in this
// very process.
func restartOnSignal(t *testing.T, srv *natstest.Server) []string {
	t.Helper()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGUSR1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range signals {
			srv.Restart()
		}
	}()
	t.Cleanup(func() {
		signal.Stop(signals)
		close(signals)
		<-ended
	})
	return []string{"/bin/sh", "-c", fmt.Sprintf("kill -USR1 %d", os.Getpid())}
}

func TestWatermillMessagesArriveUnchanged(t *testing.T) {
	t.Parallel()
	j := &testJudge{}
	b, _, nc := openBus(t, func(c *events.Config) { c.Judge = j })
	pub, sub := newPubSub(t, b, events.SubscriberConfig{})
	const topic = "Orders *.> / ü"
	m := message.NewMessage("id Ü", []byte{0, 1, 0xff})
	m.Metadata = message.Metadata{"Correlation_ID": "a&b=c%", "ce-id": "not ours", "": "empty key", "empty": "", "ü": "é\n"}
	bare := message.NewMessage("", nil)
	// The same UUID is stored once in a topic, and again in another.
	for range 2 {
		if err := pub.Publish(topic, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := pub.Publish("other", m); err != nil {
		t.Fatal(err)
	}
	if err := pub.Publish(topic, bare); err != nil {
		t.Fatal(err)
	}
	if n := messages(t, nc, "STOKEHOLD_TOPICS"); n != 3 {
		t.Errorf("%d messages stored, want 3", n)
	}
	ch, err := sub.Subscribe(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	got := receive(t, ch, 2)
	if !got[0].Equals(m) {
		t.Errorf("got %q %q %q", got[0].UUID, got[0].Metadata, got[0].Payload)
	}
	if got[1].UUID == "" || len(got[1].Metadata) != 0 || len(got[1].Payload) != 0 {
		t.Errorf("got %q %q %q", got[1].UUID, got[1].Metadata, got[1].Payload)
	}
	for _, m := range got {
		m.Ack()
	}
	if j.onPublish.Load() != 4 || j.onReceive.Load() != 2 {
		t.Errorf("judged %d on publish, %d on receive", j.onPublish.Load(), j.onReceive.Load())
	}
	if err := sub.Close(); err != nil {
		t.Fatal(err)
	}
	if _, open := <-ch; open {
		t.Error("channel still open after Close")
	}
}

func TestWatermillDeniedMessages(t *testing.T) {
	t.Parallel()
	j := &testJudge{deny: func(at events.Point, ev *events.Event) (events.Verdict, bool) {
		return events.Verdict{Action: events.Deny, DecisionID: "D", Reason: "no"}, strings.HasPrefix(ev.ID(), string(at))
	}}
	b, _, _ := openBus(t, func(c *events.Config) { c.Judge = j })
	pub, sub := newPubSub(t, b, events.SubscriberConfig{})
	err := pub.Publish("t", message.NewMessage("publish", nil), message.NewMessage("receive", nil), message.NewMessage("fine", nil),
		message.NewMessage("big", make([]byte, events.MaxDataBytes+1)))
	if errs := eachError(err); len(errs) != 2 || !errors.Is(errs[0], events.ErrDenied) || !errors.Is(errs[1], events.ErrTooLarge) {
		t.Fatal(err)
	}
	ch, err := sub.Subscribe(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	m := receive(t, ch, 1)[0]
	if m.UUID != "fine" {
		t.Errorf("got %s", m.UUID)
	}
	m.Ack()
	if ds := deadLetters(t, b); len(ds) != 1 || ds[0].Kind != events.DeadDenied || ds[0].DecisionID != "D" || ds[0].Stream != "STOKEHOLD_TOPICS" {
		t.Errorf("%+v", ds)
	}
	if err := errors.Join(pub.Close(), pub.Close(), sub.Close(), sub.Close()); err != nil {
		t.Error(err)
	}
	if err := pub.Publish("t", m); !errors.Is(err, events.ErrClosed) {
		t.Errorf("publish after close: %v", err)
	}
	if _, err := sub.Subscribe(t.Context(), "t"); !errors.Is(err, events.ErrClosed) {
		t.Errorf("subscribe after close: %v", err)
	}
}

func TestWatermillNacksEndInTheDeadLetterStream(t *testing.T) {
	t.Parallel()
	b, _, _ := openBus(t, nil)
	pub, sub := newPubSub(t, b, events.SubscriberConfig{MaxDeliver: 3})
	if err := pub.Publish("t", message.NewMessage("poison", []byte("x"))); err != nil {
		t.Fatal(err)
	}
	ch, err := sub.Subscribe(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		receive(t, ch, 1)[0].Nack()
	}
	eventually(t, "dead letter", func() bool { return b.Stats().DeadLettered == 1 })
	if ds := deadLetters(t, b); len(ds) != 1 || ds[0].Kind != events.DeadFailed || ds[0].Deliveries != 3 {
		t.Errorf("%+v", ds)
	}
}
