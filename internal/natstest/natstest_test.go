package natstest_test

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/internal/natstest"
)

func TestRestartKeepsPortAndState(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t, natstest.SyncAlways())
	url := s.URL()
	js, err := jetstream.New(s.Connect())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	if s.URL() != url {
		t.Errorf("address changed from %s to %s", url, s.URL())
	}
	js, err = jetstream.New(s.Connect())
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d messages after the restart", n)
	}
	s.Stop()
	if s.Stop(); s.Server() != nil {
		t.Error("still running after Stop")
	}
}
