package events_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		// Watermill's reconnect test never ends the goroutine that collects its
		// messages; whatever else is left running is ours.
		if err := goleak.Find(goleak.IgnoreTopFunction("github.com/ThreeDotsLabs/watermill/pubsub/tests.TestReconnect.func2")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

const testWait = 20 * time.Second

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// testContext ends before the test's own deadline does.
func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	t.Cleanup(cancel)
	return ctx
}

// openBus starts a server and a bus on it.
func openBus(t testing.TB, mod func(*events.Config), opts ...natstest.Option) (*events.Bus, *natstest.Server, *nats.Conn) {
	t.Helper()
	srv := natstest.Start(t, opts...)
	b, nc := openOn(t, srv, mod)
	return b, srv, nc
}

func openOn(t testing.TB, srv *natstest.Server, mod func(*events.Config)) (*events.Bus, *nats.Conn) {
	t.Helper()
	nc := srv.Connect()
	cfg := events.Config{Conn: nc, Judge: events.AllowAll(), Logger: quiet()}
	if mod != nil {
		mod(&cfg)
	}
	b, err := events.Open(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := b.Close(ctx); err != nil {
			t.Errorf("close bus: %v", err)
		}
	})
	return b, nc
}

var testTime = time.Date(2001, 3, 4, 5, 6, 7, 89, time.UTC)

func sealed(t testing.TB, id, dataset string) events.Event {
	t.Helper()
	return newEvent(t, events.TypeDatasetSealed, id, dataset, events.DatasetSealed{Dataset: dataset, Batches: 3, Rows: 7})
}

func newEvent(t testing.TB, typ, id, subject string, data any) events.Event {
	t.Helper()
	ev, err := events.New(typ, "stokehold/test", subject, id, testTime, data)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func manySealed(t testing.TB, from, n int) []events.Event {
	t.Helper()
	evs := make([]events.Event, n)
	for i := range evs {
		evs[i] = sealed(t, fmt.Sprintf("e%06d", from+i), "flights/schedule")
	}
	return evs
}

// eventually polls until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(testWait)
	defer deadline.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %s: %s", testWait, what)
		}
	}
}

// receive takes n values.
func receive[T any](t testing.TB, ch <-chan T, n int) []T {
	t.Helper()
	deadline := time.NewTimer(testWait)
	defer deadline.Stop()
	got := make([]T, 0, n)
	for len(got) < n {
		select {
		case v := <-ch:
			got = append(got, v)
		case <-deadline.C:
			t.Fatalf("got %d of %d within %s", len(got), n, testWait)
		}
	}
	return got
}

func deadLetters(t testing.TB, b *events.Bus) []events.DeadLetter {
	t.Helper()
	var ds []events.DeadLetter
	for d, err := range b.DeadLetters(testContext(t)) {
		if err != nil {
			t.Fatal(err)
		}
		ds = append(ds, d)
	}
	return ds
}

func messages(t testing.TB, nc *nats.Conn, stream string) uint64 {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(testContext(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// testJudge stamps what it lets pass, refuses what it is told to, and counts.
type testJudge struct {
	calls, onPublish, onReceive atomic.Int64

	mu   sync.Mutex
	deny func(at events.Point, ev *events.Event) (events.Verdict, bool)
	fail error
}

func (j *testJudge) Judge(_ context.Context, at events.Point, evs []*events.Event) ([]events.Verdict, error) {
	j.calls.Add(1)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fail != nil {
		return nil, j.fail
	}
	vs := make([]events.Verdict, len(evs))
	for i, ev := range evs {
		vs[i] = events.Verdict{Action: events.Allow, DecisionID: "d-" + ev.ID()}
		if j.deny != nil {
			if v, denied := j.deny(at, ev); denied {
				vs[i] = v
				continue
			}
		}
		if at == events.OnPublish {
			j.onPublish.Add(1)
			ev.SetExtension("stkstamp", "ok:"+ev.ID())
		} else {
			j.onReceive.Add(1)
			if ev.Extensions()["stkstamp"] != "ok:"+ev.ID() {
				vs[i] = events.Verdict{Action: events.Deny, DecisionID: "d-" + ev.ID(), Policy: "stamp/missing", Reason: "never judged"}
			}
		}
	}
	return vs, nil
}

func (j *testJudge) set(f func(*testJudge)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f(j)
}

// eachError splits a joined error.
func eachError(err error) []*events.Error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var es []*events.Error
		for _, e := range joined.Unwrap() {
			es = append(es, eachError(e)...)
		}
		return es
	}
	var e *events.Error
	if errors.As(err, &e) {
		return []*events.Error{e}
	}
	return []*events.Error{{Err: err}}
}

func ids(ds []events.Delivery) string {
	var s []string
	for _, d := range ds {
		s = append(s, d.ID())
	}
	return strings.Join(s, " ")
}
