package workflows

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
)

func TestTriggersTakeWhatIsRoutedToTheirPipeline(t *testing.T) {
	when, err := compileCondition("event.subject == 'late'")
	if err != nil {
		t.Fatal(err)
	}
	key, err := compileKey("event.subject")
	if err != nil {
		t.Fatal(err)
	}
	b := &bridge{pipeline: "retrain", when: when, key: key, log: slog.New(slog.DiscardHandler)}
	for route, want := range map[string]bool{
		"": true, "pipeline=retrain": true, "region=eu": true, "pipeline=retrain-eu": false, "pipeline=&": false, "where=there": false,
	} {
		ev, err := events.New("drift.detected", "test", "late", "1", time.Now(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if route != "" {
			ev.SetExtension(events.ExtRoute, route)
		}
		_, ok, err := b.concerns(context.Background(), &ev)
		if ok != want {
			t.Errorf("route %q concerns the trigger: %v, want %v", route, ok, want)
		}
		if unreadable := route == "pipeline=&" || route == "where=there"; unreadable != (err != nil) {
			t.Errorf("route %q: %v", route, err)
		}
	}
}
