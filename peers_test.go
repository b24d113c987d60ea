package stokehold

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/internal/talk"
	"github.com/stokehold/stokehold/tiers"
)

// The test program is also the other process of TestHotTierIsSharedInPlace.
func TestMain(m *testing.M) {
	if url := os.Getenv("STOKEHOLD_TEST_PRODUCER"); url != "" {
		if err := produce(url); err != nil {
			fmt.Println("FAIL", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const sharedDataset = "shared/numbers"

var sharedSchema = arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int64}}, nil)

type allowAll struct{}

func (allowAll) Judge(_ context.Context, _ events.Point, evs []*events.Event) ([]events.Verdict, error) {
	out := make([]events.Verdict, len(evs))
	for i := range out {
		out[i].Action = events.Allow
	}
	return out, nil
}

// dataPlane is an App with a data plane and no orchestrator.
func dataPlane(ctx context.Context, nc *nats.Conn, runtimeDir, stateDir string) (*App, error) {
	a := &App{nc: nc, cfg: Config{RuntimeDir: runtimeDir, StateDir: stateDir, HotBytes: 4 << 20}.withDefaults()}
	bus, err := events.Open(ctx, events.Config{Conn: nc, Judge: allowAll{}})
	if err != nil {
		return nil, err
	}
	a.Bus = bus
	a.onClose(bus.Close)
	return a, a.openData(ctx, options{})
}

// produce writes a batch, says so, and waits for the end of its input.
func produce(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	dir := os.Getenv("STOKEHOLD_TEST_DIR")
	a, err := dataPlane(ctx, nc, filepath.Join(dir, "run"), filepath.Join(dir, "producer"))
	if err != nil {
		return err
	}
	w, err := a.Store.Writer(ctx, sharedDataset, sharedSchema, tiers.Fence{Run: "r", Stage: "s", Attempt: 1})
	if err != nil {
		return err
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, sharedSchema)
	defer b.Release()
	for i := range 100_000 {
		b.Field(0).(*array.Int64Builder).Append(int64(i))
	}
	rec := b.NewRecordBatch()
	defer rec.Release()
	if _, err := w.WriteAt(ctx, 0, rec); err != nil {
		return err
	}
	fmt.Println("written")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return a.Close(ctx)
}

// TestHotTierIsSharedInPlace: what one process keeps hot another reads without a
// copy of a single byte.
func TestHotTierIsSharedInPlace(t *testing.T) {
	dir := t.TempDir()
	srv := natstest.Start(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STOKEHOLD_TEST_PRODUCER="+srv.URL(), "STOKEHOLD_TEST_DIR="+dir)
	in, out := talk.Start(t, cmd)
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // ended already: as wanted
	said := bufio.NewScanner(out)
	if !said.Scan() || said.Text() != "written" {
		t.Fatalf("the producer: %q", said.Text())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a, err := dataPlane(ctx, srv.Connect(), filepath.Join(dir, "run"), filepath.Join(dir, "consumer"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	ref, err := a.Store.Ref(ctx, sharedDataset, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, hot := ref.In(arrowio.Hot); !hot {
		t.Fatalf("the batch is not hot: %+v", ref)
	}
	batch, err := a.Store.OpenBatch(ctx, ref, false)
	if err != nil {
		t.Fatal(err)
	}
	xs := batch.Record.Column(0).(*array.Int64).Int64Values()
	if len(xs) != 100_000 || xs[99_999] != 99_999 {
		t.Errorf("read %d numbers", len(xs))
	}
	if !inMemfd(t, xs) {
		t.Error("the numbers do not lie in shared memory")
	}
	st := a.Store.Stats()
	if !batch.Peer || batch.Tier != arrowio.Hot || st.CopiedBytes != 0 || st.Warm != 0 {
		t.Errorf("peer %t, tier %s, %+v", batch.Peer, batch.Tier, st)
	}
	batch.Release()
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the producer: %v", err)
	}
	// Without its process the batch comes from the disk, if this process can see it.
	if b, err := a.Store.OpenBatch(ctx, ref, false); err == nil {
		if b.Peer {
			t.Error("read from a process that has ended")
		}
		b.Release()
	}
}

// inMemfd reports whether the numbers lie in a mapping of an arena.
func inMemfd(t *testing.T, xs []int64) bool {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(xs))))
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil && from <= at && at < to {
			return strings.Contains(line, "/memfd:stokehold")
		}
	}
	return false
}

func TestUnsafeRuntimeDirIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := (&App{cfg: Config{RuntimeDir: dir}.withDefaults()}).shareHot()
	if err == nil || !strings.Contains(err.Error(), "RuntimeDir") {
		t.Error(err)
	}
	if r, err := (&App{cfg: Config{RuntimeDir: dir, NoPeers: true}}).shareHot(); r != nil || err != nil {
		t.Errorf("without peers: %v, %v", r, err)
	}
}
