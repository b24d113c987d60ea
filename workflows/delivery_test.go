package workflows_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/workflows"
)

// decode reads the arguments of a workflow that continues as new.
func decode(t *testing.T, e *workflow.ContinueAsNewError, into ...any) {
	t.Helper()
	if err := converter.GetDefaultDataConverter().FromPayloads(e.Input, into...); err != nil {
		t.Fatal(err)
	}
}

func event(t testing.TB, id string, data any) *events.Event {
	t.Helper()
	e, err := events.New("data.arrived", "/test", "flights", id, epoch, data)
	if err != nil {
		t.Fatal(err)
	}
	return &e
}

func TestRunParamsAreTheNewestEventsData(t *testing.T) {
	raw, err := workflows.DeliveredParams(workflows.NewDelivery(workflows.Trigger{}, []*events.Event{
		event(t, "a", map[string]any{"week": 1, "only": true}), event(t, "b", map[string]any{"week": 2}),
	}))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"event_count":2,"event_ids":["a","b"],"events":[` +
		`{"id":"a","type":"data.arrived","subject":"flights","time":"2001-01-01T00:00:00Z","data":{"only":true,"week":1}},` +
		`{"id":"b","type":"data.arrived","subject":"flights","time":"2001-01-01T00:00:00Z","data":{"week":2}}],"week":2}`
	if string(raw) != want {
		t.Errorf("got  %s\nwant %s", raw, want)
	}
}

func TestDeliveriesAndParamsStaySmall(t *testing.T) {
	for _, c := range []struct {
		events, bytes, most int // most: bytes of the delivery
	}{{100, 10, 3000}, {100, 60_000, 3000}, {100, 30_000, 35_000}, {20, 30_000, 35_000}, {1, 60_000, 1000}} {
		t.Run(fmt.Sprintf("%d events of %d bytes", c.events, c.bytes), func(t *testing.T) {
			var evs []*events.Event
			for i := range c.events {
				evs = append(evs, event(t, fmt.Sprint("e", i), map[string]string{"x": strings.Repeat("y", c.bytes)}))
			}
			d := workflows.NewDelivery(workflows.Trigger{}, evs)
			raw, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			if len(raw) > c.most {
				t.Errorf("the delivery is %d bytes, want at most %d", len(raw), c.most)
			}
			params, err := workflows.DeliveredParams(d)
			if err != nil {
				t.Fatal(err)
			}
			var p workflows.RunParams
			if err := json.Unmarshal(params, &p); err != nil {
				t.Fatal(err)
			}
			if len(params) > workflows.MaxPayloadBytes || p.EventCount != c.events || p.EventIDs[len(p.EventIDs)-1] != fmt.Sprint("e", c.events-1) {
				t.Errorf("%d bytes of parameters for %d events ending in %v", len(params), p.EventCount, p.EventIDs)
			}
		})
	}
}

func TestParamsOfDataThatIsNoObject(t *testing.T) {
	for _, data := range []any{[]int{1}, "text", nil} {
		raw, err := workflows.DeliveredParams(workflows.NewDelivery(workflows.Trigger{}, []*events.Event{event(t, "a", data)}))
		var top map[string]json.RawMessage
		if err != nil || json.Unmarshal(raw, &top) != nil || len(top) != 3 {
			t.Errorf("%v gives %s, %v", data, raw, err)
		}
	}
}

func TestSeenSetForgetsTheOldest(t *testing.T) {
	s := workflows.NewSeenSet(nil)
	for i := range workflows.MaxSeen + 10 {
		if !s.Add(strconv.Itoa(i)) {
			t.Fatalf("%d is taken for seen", i)
		}
	}
	if len(s.Bytes()) != 8*workflows.MaxSeen || len(s.Bytes()) > workflows.MaxPayloadBytes {
		t.Errorf("remembers %d bytes", len(s.Bytes()))
	}
	back := workflows.NewSeenSet(s.Bytes())
	for i, want := range map[int]bool{10: false, workflows.MaxSeen + 9: false} {
		if back.Add(strconv.Itoa(i)) != want {
			t.Errorf("%d is forgotten", i)
		}
	}
	if !back.Add("5") {
		t.Error("5 ought to be forgotten")
	}
	// 10 is the oldest now, since the memory keeps its order on the way.
	if !back.Add("10") {
		t.Error("10 ought to be forgotten")
	}
}

func TestKeysMakeSafeIDs(t *testing.T) {
	seen := map[string]string{}
	for _, key := range []string{"", "~", "JFK", "a/b", "a b", "a-b", "Zürich", strings.Repeat("x", 300), "x*y>z", "*", "\x00"} {
		token := workflows.KeyToken(key)
		if other, ok := seen[token]; ok {
			t.Errorf("%q and %q are both %q", key, other, token)
		}
		seen[token] = key
		if len(token) > 80 || strings.ContainsAny(token, "/ *>\x00") {
			t.Errorf("%q gives %q", key, token)
		}
	}
}

func FuzzDelivery(f *testing.F) {
	f.Add([]byte(`{"settings":{"max_pending":1},"hashes":"AAAAAAAAAAE=","newest":[{"id":"a","time":"2001-01-01T00:00:00Z"}]}`))
	f.Add([]byte(`{"hashes":"AAAA","times":"AAAA","newest":[{"id":"a"},{"id":"b"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var d workflows.Delivery
		if json.Unmarshal(raw, &d) != nil {
			return
		}
		params, err := workflows.DeliveredParams(d)
		if err == nil && !json.Valid(params) {
			t.Errorf("parameters are no JSON: %s", params)
		}
	})
}

func BenchmarkNewDelivery(b *testing.B) {
	var evs []*events.Event
	for i := range 100 {
		evs = append(evs, event(b, fmt.Sprint("event-", i), map[string]any{"week": i}))
	}
	b.ReportAllocs()
	for b.Loop() {
		workflows.NewDelivery(workflows.Trigger{Cooldown: time.Hour, EventTime: true}, evs)
	}
}
