package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testTime = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

// startNATS runs a real server with JetStream synced always and connects to it.
func startNATS(t testing.TB) (*server.Server, *nats.Conn) {
	t.Helper()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), SyncAlways: true, NoLog: true, NoSigs: true,
		JetStreamMaxStore: 2 << 30, JetStreamMaxMemory: 64 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server is not ready")
	}
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return srv, nc
}

func open(t testing.TB, cfg audit.Config) *audit.JetStreamLog {
	t.Helper()
	l, err := audit.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return l
}

func decision(i int, at events.Point, a events.Action) governance.Decision {
	return governance.Decision{
		ID: fmt.Sprintf("%032x", i), Time: testTime.Add(time.Duration(i) * time.Millisecond), Point: at, Action: a,
		EventID: fmt.Sprintf("ev-%d", i), Type: "batch.published", Source: "stokehold/flights", Subject: "features",
		Pipeline: "flights-train", Run: "run-7", Digest: "0123456789abcdef0123456789abcdef",
	}
}

func readAll(t testing.TB, l *audit.JetStreamLog, from time.Time) []governance.Decision {
	t.Helper()
	var out []governance.Decision
	for d, err := range l.Read(context.Background(), from) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}

func TestAppendedDecisionsAreReadBackWhole(t *testing.T) {
	_, nc := startNATS(t)
	l := open(t, audit.Config{Conn: nc})
	want := []governance.Decision{
		decision(1, events.OnPublish, events.Allow),
		decision(2, events.OnPublish, events.Allow),
		decision(3, events.OnReceive, events.Allow),
		decision(4, events.OnPublish, events.Deny),
		decision(5, events.OnReceive, events.Quarantine),
	}
	want[1].Notes = []governance.Note{{Policy: "p", Rule: "r", Reason: "shadow", Mode: governance.Audit}}
	want[3].Policy, want[3].Rule, want[3].Code, want[3].Reason = "gate", "better", "NotBetter", "the challenger lost"
	want[4].ID, want[4].Subject = "not hex", "später" // any text survives
	if err := l.Append(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	got := readAll(t, l, time.Time{})
	slices.SortFunc(got, func(a, b governance.Decision) int { return a.Time.Compare(b.Time) })
	if len(got) != len(want) {
		t.Fatalf("read %d decisions, want %d", len(got), len(want))
	}
	for i := range want {
		if fmt.Sprintf("%+v", got[i]) != fmt.Sprintf("%+v", want[i]) {
			t.Errorf("decision %d\n got %+v\nwant %+v", i, got[i], want[i])
		}
	}
	counts, err := l.Count(context.Background(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if p, r, d := counts.Judged(events.OnPublish), counts.Judged(events.OnReceive), counts.Denied(events.OnPublish); p != 3 || r != 2 || d != 1 {
		t.Errorf("counts = %v", counts)
	}
}

func TestSubjectsNameTheAction(t *testing.T) {
	_, nc := startNATS(t)
	sub, err := nc.SubscribeSync("ship.decision.deny")
	if err != nil {
		t.Fatal(err)
	}
	l := open(t, audit.Config{Conn: nc, Prefix: "ship"})
	if err := l.Append(context.Background(), []governance.Decision{decision(1, events.OnPublish, events.Allow), decision(2, events.OnPublish, events.Deny)}); err != nil {
		t.Fatal(err)
	}
	if _, err := sub.NextMsg(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := sub.Pending(); n != 0 {
		t.Errorf("%d more messages under deny", n)
	}
}

func TestConcurrentAppendsShareMessages(t *testing.T) {
	_, nc := startNATS(t)
	l := open(t, audit.Config{Conn: nc})
	const callers, each = 64, 20
	var wg sync.WaitGroup
	errs := make(chan error, callers)
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				if err := l.Append(context.Background(), []governance.Decision{decision(c*each+i, events.OnPublish, events.Allow)}); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(context.Background(), "STOKEHOLD_DECISIONS")
	if err != nil {
		t.Fatal(err)
	}
	msgs := s.CachedInfo().State.Msgs
	t.Logf("%d decisions in %d messages", callers*each, msgs)
	if msgs > callers*each/4 {
		t.Errorf("%d messages for %d decisions: not grouped", msgs, callers*each)
	}
	seen := map[string]bool{}
	for _, d := range readAll(t, l, time.Time{}) {
		seen[d.ID] = true
	}
	if len(seen) != callers*each {
		t.Errorf("%d distinct decisions, want %d", len(seen), callers*each)
	}
}

func TestLargeAppendIsSplit(t *testing.T) {
	_, nc := startNATS(t)
	// Of several messages in flight any may be stored first.
	l := open(t, audit.Config{Conn: nc, MaxQueued: 100, InFlight: 1})
	ds := make([]governance.Decision, 20_000)
	for i := range ds {
		ds[i] = decision(i, events.OnReceive, events.Allow)
		ds[i].Reason = fmt.Sprintf("a reason that differs each time: %d", i)
	}
	if err := l.Append(context.Background(), ds); err != nil {
		t.Fatal(err)
	}
	n := 0
	for d, err := range l.Read(context.Background(), time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		if d.Reason != ds[n].Reason {
			t.Fatalf("decision %d has reason %q", n, d.Reason)
		}
		if n++; n == 15_000 {
			break // a reader may stop early
		}
	}
	if n != 15_000 {
		t.Errorf("read %d", n)
	}
}

func TestReadFromATime(t *testing.T) {
	_, nc := startNATS(t)
	l := open(t, audit.Config{Conn: nc})
	old, recent := decision(1, events.OnPublish, events.Allow), decision(2, events.OnPublish, events.Allow)
	old.Time, recent.Time = time.Now().Add(-time.Hour), time.Now()
	if err := l.Append(context.Background(), []governance.Decision{old, recent}); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, l, time.Now().Add(-time.Minute)); len(got) != 1 || got[0].ID != recent.ID {
		t.Errorf("got %v", got)
	}
	if got := readAll(t, l, time.Now().Add(time.Hour)); len(got) != 0 {
		t.Errorf("got %v from the future", got)
	}
}

func TestAppendFailsWhenTheServerIsGone(t *testing.T) {
	srv, nc := startNATS(t)
	l := open(t, audit.Config{Conn: nc, Timeout: 300 * time.Millisecond})
	srv.Shutdown()
	srv.WaitForShutdown()
	err := l.Append(context.Background(), []governance.Decision{decision(1, events.OnPublish, events.Allow)})
	if !errors.Is(err, governance.ErrLog) {
		t.Fatalf("got %v, want ErrLog", err)
	}
}

func TestFullQueueWaitsAndObeysContext(t *testing.T) {
	srv, nc := startNATS(t)
	l := open(t, audit.Config{Conn: nc, Timeout: 2 * time.Second, MaxQueued: 2, InFlight: 1})
	srv.Shutdown()
	srv.WaitForShutdown()
	first := make(chan error, 1)
	go func() {
		first <- l.Append(context.Background(), []governance.Decision{decision(1, events.OnPublish, events.Allow), decision(2, events.OnPublish, events.Allow)})
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	err := l.Append(ctx, []governance.Decision{decision(3, events.OnPublish, events.Allow)})
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, governance.ErrLog) {
		t.Errorf("got %v, want the context's end", err)
	}
	if err := <-first; !errors.Is(err, governance.ErrLog) {
		t.Errorf("got %v, want ErrLog", err)
	}
}

func TestCloseWritesWhatIsQueuedAndRefusesMore(t *testing.T) {
	_, nc := startNATS(t)
	l, err := audit.Open(context.Background(), audit.Config{Conn: nc})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(context.Background(), []governance.Decision{decision(1, events.OnPublish, events.Allow)}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Append(context.Background(), []governance.Decision{decision(2, events.OnPublish, events.Allow)}); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

func TestOpenNamesEveryFault(t *testing.T) {
	_, err := audit.Open(context.Background(), audit.Config{Prefix: "Not A Word", MaxQueued: -1, MaxBytes: 1})
	if !errors.Is(err, audit.ErrConfig) {
		t.Fatal(err)
	}
	for _, want := range []string{"Conn", "Prefix", "MaxQueued", "MaxBytes"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
}

func TestEngineOverTheRealLog(t *testing.T) {
	_, nc := startNATS(t)
	l := open(t, audit.Config{Conn: nc})
	set, err := governance.Load(governance.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := governance.NewKey("k1")
	if err != nil {
		t.Fatal(err)
	}
	ring, err := governance.NewKeyRing(key)
	if err != nil {
		t.Fatal(err)
	}
	e, err := governance.NewEngine(governance.Config{Policies: set, Log: l, Keys: ring})
	if err != nil {
		t.Fatal(err)
	}
	ev, err := events.New("batch.published", "stokehold/flights", "features", "b#1", time.Now(), map[string]int{"rows": 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []events.Point{events.OnPublish, events.OnReceive} {
		vs, err := e.Judge(context.Background(), at, []*events.Event{&ev})
		if err != nil || !vs[0].Action.Permits() {
			t.Fatalf("%s: %v %v", at, vs, err)
		}
	}
	got := readAll(t, l, time.Time{})
	if len(got) != 2 || got[0].EventID != "b#1" {
		t.Errorf("log = %+v", got)
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("Decisions%d", n), func(b *testing.B) {
			_, nc := startNATS(b)
			l := open(b, audit.Config{Conn: nc})
			ds := make([]governance.Decision, n)
			for i := range ds {
				ds[i] = decision(i, events.OnPublish, events.Allow)
			}
			b.ReportAllocs()
			b.SetParallelism(16)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := l.Append(context.Background(), ds); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)*float64(n)/b.Elapsed().Seconds(), "decisions/s")
		})
	}
}
