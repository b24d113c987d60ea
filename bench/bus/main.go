// Command bus measures the bus against watermill-nats and against plain
// nats.go/jetstream, all on one embedded server with one sync setting, and in
// turns, so that a noisy machine disturbs all alike. The bus runs with the
// governance engine and its decision log in place, as a deployment has it. It
// prints a table and writes it as JSON: a list of {case, unit, value, baseline,
// ratio}.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats-server/v2/server"

	"github.com/stokehold/stokehold/internal/benchtable"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bus:", err)
		os.Exit(1)
	}
}

// What is measured. A case is skipped unless -only is in its name.
const (
	oursPublish          = "ours publish"
	oursPublishMany      = "ours publish from 4 goroutines"
	oursSubscribe        = "ours subscribe"
	oursBusPublish       = "ours bus publish"
	oursBusSubscribe     = "ours bus subscribe"
	rawConsume           = "raw consume"
	rawBusConsume        = "raw bus consume"
	rawPublish           = "raw publish"
	theirsPublish        = "watermill-nats publish"
	theirsPublishMany    = "watermill-nats publish from 4 goroutines"
	theirsSubscribe      = "watermill-nats subscribe"
	theirsSubscribeAsync = "watermill-nats subscribe, AckAsync"
)

// comparisons are the lines of the table: a name, ours and the baseline.
func comparisons() [][3]string {
	return [][3]string{
		{"publish, judged, vs watermill-nats", oursPublish, theirsPublish},
		{"publish from 4 goroutines, judged, vs watermill-nats", oursPublishMany, theirsPublishMany},
		{"subscribe, judged, vs watermill-nats", oursSubscribe, theirsSubscribe},
		{"subscribe, judged, vs watermill-nats with AckAsync", oursSubscribe, theirsSubscribeAsync},
		{"subscribe, judged, vs jetstream Consume with explicit ack", oursSubscribe, rawConsume},
		{"bus subscribe, judged, vs jetstream Consume with explicit ack", oursBusSubscribe, rawBusConsume},
		{"publish, judged, vs jetstream async publish", oursPublish, rawPublish},
		{"bus publish, judged, vs jetstream async publish", oursBusPublish, rawPublish},
	}
}

const publishers = 4

type bench struct {
	url     string
	n       int
	payload []byte
	round   int
	only    string
	profile *os.File // of the second round of the case that is wanted
	results map[string][]result
}

// result is one round of one case, for each message.
type result struct {
	wall  float64 // seconds
	cpu   float64 // microseconds of processor time, server included
	bytes float64 // allocated, likewise
}

func run() (err error) {
	var (
		n       = flag.Int("n", 100000, "messages per case and round")
		size    = flag.Int("size", 256, "payload bytes")
		rounds  = flag.Int("rounds", 7, "rounds; their median counts")
		sync    = flag.Bool("sync", false, "sync every write to disk before it is acknowledged")
		out     = flag.String("o", ".bench/bus.json", "where the table goes as JSON")
		only    = flag.String("only", "", "run the cases whose names contain one of these, separated by ;, and make no table")
		profile = flag.String("cpuprofile", "", "write a CPU profile of the second round of -only's case")
	)
	flag.Parse()

	dir, err := os.MkdirTemp("", "stokehold-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
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
	b := &bench{url: srv.ClientURL(), n: *n, payload: []byte(strings.Repeat("x", *size)), only: *only, results: make(map[string][]result)}
	if *profile != "" {
		if *only == "" || *rounds < 2 {
			return errors.New("-cpuprofile needs -only and two rounds")
		}
		if b.profile, err = os.Create(*profile); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.profile.Close()) }()
	}
	for b.round = range *rounds {
		// Ours stands between the baselines, which it is compared with.
		if err := b.watermillNATS(); err != nil {
			return fmt.Errorf("watermill-nats: %w", err)
		}
		if err := b.ours(); err != nil {
			return fmt.Errorf("stokehold: %w", err)
		}
		if err := b.raw(); err != nil {
			return fmt.Errorf("nats.go: %w", err)
		}
	}
	fmt.Printf("%d messages of %d bytes, median of %d rounds, sync always %t, %d CPUs\n\n", b.n, len(b.payload), *rounds, *sync, runtime.NumCPU())
	if *only != "" {
		return b.list()
	}
	if err := b.table(*out); err != nil {
		return err
	}
	return b.list()
}

func median(rs []result, of func(result) float64) float64 {
	vs := make([]float64, len(rs))
	for i, r := range rs {
		vs[i] = of(r)
	}
	slices.Sort(vs)
	return (vs[(len(vs)-1)/2] + vs[len(vs)/2]) / 2
}

func rate(r result) float64 { return 1 / r.wall }
func cpu(r result) float64  { return r.cpu }
func heap(r result) float64 { return r.bytes }

// table prints and stores the comparisons. Beside the ratio of the rates stands
// that of the processor time, which depends less on what else the machine does.
func (b *bench) table(path string) error {
	var rows []benchtable.Row
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "case\tmsg/s\tbaseline\tratio\tµs CPU\tbaseline\tratio\t")
	for _, c := range comparisons() {
		ours, base := b.results[c[1]], b.results[c[2]]
		v, bv := median(ours, rate), median(base, rate)
		used, baseUsed := median(ours, cpu), median(base, cpu)
		rows = append(rows, benchtable.Row{Case: c[0], Unit: "msg/s", Value: v, Baseline: bv, Ratio: v / bv})
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.2f\t%.1f\t%.1f\t%.2f\t\n", c[0], v, bv, v/bv, used, baseUsed, baseUsed/used)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return benchtable.Write(path, rows)
}

// list prints what each case costs.
func (b *bench) list() error {
	fmt.Println("\nfor each message, client and server together:")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	var names []string
	for name := range b.results {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		rs := b.results[name]
		fmt.Fprintf(w, "%s\t%.0f msg/s\t%.1f µs CPU\t%.0f B allocated\t\n", name, median(rs, rate), median(rs, cpu), median(rs, heap))
	}
	return w.Flush()
}

// wanted reports whether any of the cases is to be measured.
func (b *bench) wanted(names ...string) bool {
	for _, name := range names {
		if b.only == "" || slices.ContainsFunc(strings.Split(b.only, ";"), func(part string) bool { return strings.Contains(name, part) }) {
			return true
		}
	}
	return false
}

// measure runs f and notes what it took for each of the n messages that it
// passes.
func (b *bench) measure(name string, n int, f func() error) error {
	runtime.GC()
	if b.profile != nil && b.round == 1 && b.only == name {
		if err := pprof.StartCPUProfile(b.profile); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	allocated := mem.TotalAlloc
	start, before := time.Now(), processorTime()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	took, used := time.Since(start), processorTime()-before
	runtime.ReadMemStats(&mem)
	b.results[name] = append(b.results[name], result{
		wall:  took.Seconds() / float64(n),
		cpu:   float64(used.Microseconds()) / float64(n),
		bytes: float64(mem.TotalAlloc-allocated) / float64(n),
	})
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
