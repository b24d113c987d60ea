package events_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
)

// Of a batch some events may be refused for good, while the others are done.
func TestSomeOfABatchAreRefused(t *testing.T) {
	srv := natstest.Start(t)
	bus, err := events.Open(t.Context(), events.Config{Conn: srv.Connect(), Judge: events.AllowAll()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bus.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	var evs []events.Event
	for i := range 4 {
		e, err := events.New(events.TypeRunStarted, "/test", "r", fmt.Sprint("e", i), time.Now(), events.RunStarted{Pipeline: "p", Run: "r"})
		if err != nil {
			t.Fatal(err)
		}
		evs = append(evs, e)
	}
	if err := bus.Publish(t.Context(), evs...); err != nil {
		t.Fatal(err)
	}
	handled := make(chan string, 16)
	_, err = bus.SubscribeBatch(t.Context(), events.Subscription{Durable: "some", Types: []string{events.TypeRunStarted}, MaxBatch: 4}, func(_ context.Context, ds []events.Delivery) error {
		refused := events.RefusedError{}
		for i := range ds {
			handled <- ds[i].ID()
			if ds[i].ID() == "e1" || ds[i].ID() == "e3" {
				refused[i] = errors.New("nobody does " + ds[i].ID())
			}
		}
		if len(refused) > 0 {
			return refused
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var dead []string
	deadline := time.Now().Add(20 * time.Second)
	for len(dead) < 2 && time.Now().Before(deadline) {
		dead = nil
		for l, err := range bus.DeadLetters(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if l.Kind != events.DeadTerminated || !strings.Contains(l.Reason, "nobody does "+l.Header.Get("ce-id")) {
				t.Errorf("%s: %s", l.Kind, l.Reason)
			}
			dead = append(dead, l.Header.Get("ce-id"))
		}
		<-time.After(5 * time.Millisecond)
	}
	slices.Sort(dead)
	if !slices.Equal(dead, []string{"e1", "e3"}) || len(handled) != 4 {
		t.Errorf("dead letters %v, %d handled, want each once", dead, len(handled))
	}
	if got := (events.RefusedError{2: errors.New("why")}).Error(); !strings.Contains(got, "why") {
		t.Error(got)
	}
}
