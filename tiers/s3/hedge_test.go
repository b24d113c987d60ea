package s3_test

import (
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"go.uber.org/goleak"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/miniotest"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/internal/tcpfault"
	"github.com/stokehold/stokehold/tiers"
)

const hedgeRows = 20_000

// numbers are rows that Parquet cannot make small.
func numbers(seed uint64) arrow.RecordBatch {
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Uint64}}, nil))
	defer b.Release()
	x := seed + 1
	for range hedgeRows {
		x ^= x << 13 // xorshift
		x ^= x >> 7
		x ^= x << 17
		b.Field(0).(*array.Uint64Builder).Append(x)
	}
	return b.NewRecordBatch()
}

// TestReadsOvertakeFaultyConnections: an answer of a real server that stalls, drips or
// ends in the middle of its body is overtaken by a second one, or asked for anew; what
// is read is what was written, and nothing is left of the connection.
func TestReadsOvertakeFaultyConnections(t *testing.T) {
	m := miniotest.Start(t)
	target, err := url.Parse(m.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := tcpfault.Start(t, target.Host)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	conn := natstest.Start(t).Connect()
	bus, err := events.Open(ctx, events.Config{Conn: conn, Judge: events.AllowAll()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := bus.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	warm := filepath.Join(t.TempDir(), "warm")

	// Through the server itself: what is there.
	const batches = 16
	writing := open(t, onMinIO(m, "hedged"))
	full := tiersOn(ctx, t, tiers.Config{Conn: conn, Bus: bus, Warm: warm, Cold: writing})
	var refs []arrowio.Ref
	for seq := range uint64(batches) {
		rec := numbers(seq)
		w, err := full.Writer(ctx, "d", rec.Schema(), tiers.Fence{Run: "r", Stage: "s", Attempt: 1})
		if err == nil {
			_, err = w.WriteAt(ctx, seq, rec)
		}
		rec.Release()
		if err == nil {
			err = full.MigrateBatch(ctx, "d", seq)
		}
		if err != nil {
			t.Fatal(err)
		}
		ref, err := full.Ref(ctx, "d", seq)
		if err != nil {
			t.Fatal(err)
		}
		cold, _ := ref.In(arrowio.Cold)
		ref.Locations = []arrowio.Location{cold}
		refs = append(refs, ref)
	}

	ignore := goleak.IgnoreCurrent()
	cfg := onMinIO(m, "hedged")
	cfg.Endpoint, cfg.StallTimeout, cfg.NoProbe = "http://"+proxy.Addr(), time.Minute, true // nothing but the second source ends a stall
	reading := open(t, cfg)
	reader := tiersOn(ctx, t, tiers.Config{Conn: conn, Bus: bus, Warm: warm, Cold: reading, HedgeAfter: 20 * time.Millisecond})
	read := func(ref arrowio.Ref) {
		t.Helper()
		b, err := reader.OpenBatch(ctx, ref, false)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Release()
		want := numbers(ref.Sequence)
		defer want.Release()
		if b.Tier != arrowio.Cold || !array.RecordEqual(want, b.Record) {
			t.Errorf("batch %d from the %s tier differs", ref.Sequence, b.Tier)
		}
	}
	learn := func() { // how long reads take, and a share of second sources
		for range 2 {
			for _, ref := range refs {
				read(ref)
			}
		}
	}
	hurt := 0
	for _, fault := range []struct {
		name      string
		kind      tcpfault.Kind
		overtaken bool
	}{{"stalled", tcpfault.Stall, true}, {"dripping", tcpfault.Drip, true}, {"reset", tcpfault.Reset, false}} {
		for place, after := range map[string]int64{"before its header": 0, "in its body": 64 << 10} {
			learn()
			before := reader.Stats()
			proxy.Next(fault.kind, after)
			read(refs[5])
			hurt++
			if n, _ := proxy.Hurt(); n != hurt {
				t.Fatalf("%s %s: %d connections were hurt, want %d", fault.name, place, n, hurt)
			}
			now := reader.Stats()
			if fault.overtaken && now.HedgesWon == before.HedgesWon {
				t.Errorf("%s %s: no second source won: %+v, before %+v", fault.name, place, now, before)
			}
			if now.Cold != before.Cold+1 {
				t.Errorf("%s %s: %d reads are counted", fault.name, place, now.Cold-before.Cold)
			}
		}
	}
	if err := reader.Close(ctx); err != nil { // waits for whoever was overtaken
		t.Error(err)
	}
	reading.Close()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(10 * time.Millisecond) // until the kernel has told the proxy
	defer tick.Stop()
	for waiting := true; waiting; {
		_, ended := proxy.Hurt()
		if waiting = ended != hurt || proxy.Open() != 0; !waiting {
			break
		}
		select {
		case <-tick.C:
		case <-limit.C:
			t.Errorf("%d of %d hurt connections have ended, %d connections are open", ended, hurt, proxy.Open())
			waiting = false
		}
	}
	if err := goleak.Find(ignore); err != nil {
		t.Error(err)
	}
}

// tiersOn opens a store that the test's end closes.
func tiersOn(ctx context.Context, t *testing.T, cfg tiers.Config) *tiers.Store {
	t.Helper()
	cfg.Host = &shm.Host{}
	s, err := tiers.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(context.WithoutCancel(ctx)), cfg.Host.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}
