// Command bus measures the bus against watermill-nats and against plain
// nats.go/jetstream, all on one embedded server with one sync setting, and in
// turns, so that a noisy machine disturbs all alike. It prints a table and
// writes it as JSON: a list of {case, unit, value, baseline, ratio}.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmjs "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/jetstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bus:", err)
		os.Exit(1)
	}
}

// row is one line of the table. value is the best round of ours, baseline that
// of what it is compared with: whatever else the machine does only slows.
type row struct {
	Case     string  `json:"case"`
	Unit     string  `json:"unit"`
	Value    float64 `json:"value"`
	Baseline float64 `json:"baseline"`
	Ratio    float64 `json:"ratio"`
}

type bench struct {
	url     string
	n       int
	payload []byte
	judge   *stampJudge
	round   int
	rates   map[string][]float64
	profile *os.File             // of the second round of the case that is wanted
	cpu     map[string][]float64 // microseconds of processor time a message, server included
	bytes   map[string][]float64 // allocated a message, likewise
}

func run() (err error) {
	var (
		n       = flag.Int("n", 40000, "messages per case and round")
		size    = flag.Int("size", 256, "payload bytes")
		rounds  = flag.Int("rounds", 5, "rounds; the best counts")
		sync    = flag.Bool("sync", false, "sync every write to disk before it is acknowledged")
		out     = flag.String("o", ".bench/bus.json", "where the table goes as JSON")
		only    = flag.String("only", "", "run the cases whose name contains this, and make no table")
		profile = flag.String("cpuprofile", "", "write a CPU profile")
	)
	flag.Parse()

	dir, err := os.MkdirTemp("", "stokehold-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what stays is in the temporary directory
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: dir, JetStreamMaxStore: 16 << 30, SyncAlways: *sync,
	})
	if err != nil {
		return err
	}
	srv.Start()
	defer srv.Shutdown()
	if !srv.ReadyForConnections(10 * time.Second) {
		return errors.New("embedded nats-server not ready within 10 s")
	}
	b := &bench{url: srv.ClientURL(), n: *n, payload: []byte(strings.Repeat("x", *size)), judge: newJudge(), rates: make(map[string][]float64), cpu: make(map[string][]float64), bytes: make(map[string][]float64)}

	if *profile != "" {
		if *only == "" {
			return errors.New("-cpuprofile needs -only")
		}
		if b.profile, err = os.Create(*profile); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.profile.Close()) }()
	}
	for b.round = range *rounds {
		if err := b.ours(*only); err != nil {
			return fmt.Errorf("stokehold: %w", err)
		}
		if err := b.watermillNATS(*only); err != nil {
			return fmt.Errorf("watermill-nats: %w", err)
		}
		if err := b.raw(*only); err != nil {
			return fmt.Errorf("nats.go: %w", err)
		}
	}
	if r := b.judge.refused.Load(); r > 0 {
		return fmt.Errorf("the judge refused %d events", r)
	}
	if *only != "" {
		for name, rates := range b.rates {
			fmt.Printf("%s: %.0f msg/s, %.1f µs of processor a message\n", name, rates, b.cpu[name])
		}
		return nil
	}
	return b.table(*out, *sync)
}

func (b *bench) table(path string, sync bool) error {
	var rows []row
	for _, c := range [][3]string{
		{"publish, judged, vs watermill-nats", "ours publish", "watermill-nats publish"},
		{"publish, judged, vs jetstream async publish", "ours publish", "raw publish"},
		{"subscribe, judged, vs watermill-nats", "ours subscribe", "watermill-nats subscribe"},
		{"subscribe, judged, vs watermill-nats with AckAsync", "ours subscribe", "watermill-nats subscribe async"},
		{"subscribe, judged, vs jetstream Consume with explicit ack", "ours subscribe", "raw consume"},
		{"bus subscribe, judged, vs jetstream Consume with explicit ack", "ours bus subscribe", "raw bus consume"},
		{"bus publish, judged, vs jetstream async publish", "ours bus publish", "raw publish"},
	} {
		v, base := slices.Max(b.rates[c[1]]), slices.Max(b.rates[c[2]])
		rows = append(rows, row{c[0], "msg/s", v, base, v / base})
	}
	fmt.Printf("%d messages of %d bytes, best of %d rounds, sync always %t, %d CPUs\n\n", b.n, len(b.payload), b.round+1, sync, runtime.NumCPU())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "case\tmsg/s\tbaseline\tratio\t")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.2f\t\n", r.Case, r.Value, r.Baseline, r.Ratio)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Print("\nprocessor time and allocation of client and server together, best round:\n")
	for _, name := range slices.Sorted(maps.Keys(b.cpu)) {
		fmt.Fprintf(w, "%s\t%.1f µs a message\t%.0f B a message\t\n", name, slices.Min(b.cpu[name]), slices.Min(b.bytes[name]))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644)
}

// measure runs f if it is wanted and notes how many messages it passed a second.
func (b *bench) measure(only, name string, f func() error) error {
	runtime.GC()
	if b.profile != nil && b.round == 1 && only == name {
		if err := pprof.StartCPUProfile(b.profile); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	var heap runtime.MemStats
	runtime.ReadMemStats(&heap)
	allocated := heap.TotalAlloc
	start, before := time.Now(), processorTime()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	took, used := time.Since(start), processorTime()-before
	if only == "" || strings.Contains(name, only) {
		b.rates[name] = append(b.rates[name], float64(b.n)/took.Seconds())
		runtime.ReadMemStats(&heap)
		b.bytes[name] = append(b.bytes[name], float64(heap.TotalAlloc-allocated)/float64(b.n))
		b.cpu[name] = append(b.cpu[name], float64(used.Microseconds())/float64(b.n))
	}
	return nil
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (b *bench) messages() []*message.Message {
	ms := make([]*message.Message, b.n)
	for i := range ms {
		ms[i] = message.NewMessage(watermill.NewUUID(), b.payload)
		ms[i].Metadata.Set("correlation_id", "c-17")
	}
	return ms
}

func (b *bench) topic() string { return fmt.Sprintf("bench%d", b.round) }

func publishInChunks(p message.Publisher, topic string, ms []*message.Message) error {
	for chunk := range slices.Chunk(ms, 10000) {
		if err := p.Publish(topic, chunk...); err != nil {
			return err
		}
	}
	return nil
}

func readAll(s message.Subscriber, topic string, n int) error {
	ch, err := s.Subscribe(context.Background(), topic)
	if err != nil {
		return err
	}
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	for range n {
		select {
		case m := <-ch:
			m.Ack()
		case <-late.C:
			return errors.New("not all messages came within a minute")
		}
	}
	return nil
}

// ours measures the bus and its Watermill adapters, and plain Consume of the
// very messages that they stored.
func (b *bench) ours(only string) error {
	if only != "" && !strings.Contains("ours publish ours subscribe ours bus publish ours bus subscribe raw consume raw bus consume", only) {
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
	bus, err := events.Open(ctx, events.Config{Conn: nc, Prefix: prefix, Judge: b.judge, Types: reg, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { _ = bus.Close(ctx) }() // everything has been acknowledged by then
	pub, err := events.NewPublisher(ctx, bus)
	if err != nil {
		return err
	}
	ms := b.messages()
	if err := b.measure(only, "ours publish", func() error { return publishInChunks(pub, b.topic(), ms) }); err != nil {
		return err
	}
	ms = nil // what is alive is work for the garbage collector
	sub, err := events.NewSubscriber(ctx, bus, events.SubscriberConfig{})
	if err != nil {
		return err
	}
	if err := b.measure(only, "ours subscribe", func() error { return readAll(sub, b.topic(), b.n) }); err != nil {
		return err
	}
	if err := sub.Close(); err != nil {
		return err
	}
	upper := strings.ToUpper(prefix)
	if err := b.consume(only, "raw consume", nc, upper+"_TOPICS"); err != nil {
		return err
	}
	evs := make([]events.Event, b.n)
	for i := range evs {
		if evs[i], err = events.New("bench.message", "bench", "subject", watermill.NewUUID(), time.Now(), map[string]string{"text": string(b.payload)}); err != nil {
			return err
		}
	}
	if err := b.measure(only, "ours bus publish", func() error {
		for chunk := range slices.Chunk(evs, 10000) {
			if err := bus.Publish(ctx, chunk...); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	evs = nil
	if err := b.measure(only, "ours bus subscribe", func() error {
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
	}); err != nil {
		return err
	}
	if err := b.consume(only, "raw bus consume", nc, upper+"_EVENTS"); err != nil {
		return err
	}
	return b.drop(nc)
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

func (b *bench) watermillNATS(only string) error {
	if only != "" && !strings.Contains("watermill-nats publish watermill-nats subscribe async", only) {
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
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: topic, Subjects: []string{topic}}); err != nil {
		return err
	}
	pnc, err := connect()
	if err != nil {
		return err
	}
	pub, err := wmjs.NewPublisher(wmjs.PublisherConfig{Conn: pnc, Logger: watermill.NopLogger{}})
	if err != nil {
		return err
	}
	defer func() { _ = pub.Close() }() // everything has been acknowledged by then
	ms := b.messages()
	if err := b.measure(only, "watermill-nats publish", func() error { return publishInChunks(pub, topic, ms) }); err != nil {
		return err
	}
	ms = nil
	for name, async := range map[string]bool{"watermill-nats subscribe": false, "watermill-nats subscribe async": true} {
		snc, err := connect()
		if err != nil {
			return err
		}
		sub, err := wmjs.NewSubscriber(wmjs.SubscriberConfig{Conn: snc, Logger: watermill.NopLogger{}, AckAsync: async})
		if err != nil {
			return err
		}
		if err := b.measure(only, name, func() error { return readAll(sub, topic, b.n) }); err != nil {
			return err
		}
		if err := sub.Close(); err != nil {
			return err
		}
	}
	return b.drop(nc)
}

func (b *bench) raw(only string) error {
	if only != "" && !strings.Contains("raw publish", only) {
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
	if err := b.measure(only, "raw publish", func() error {
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

// consume measures jetstream's Consume with explicit acknowledgement of all
// messages of a stream.
func (b *bench) consume(only, name string, nc *nats.Conn, stream string) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	return b.measure(only, name, func() error {
		cons, err := js.CreateConsumer(context.Background(), stream, jetstream.ConsumerConfig{
			Durable: "raw", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 1000,
		})
		if err != nil {
			return err
		}
		done := make(chan struct{})
		got := 0
		cc, err := cons.Consume(func(m jetstream.Msg) {
			if err := m.Ack(); err != nil {
				return
			}
			if got++; got == b.n {
				close(done)
			}
		})
		if err != nil {
			return err
		}
		defer cc.Stop()
		<-done
		return nc.Flush()
	})
}
