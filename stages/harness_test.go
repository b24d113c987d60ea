package stages_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/worker"
	"github.com/stokehold/stokehold/tiers"
)

// The test program is its own child process.
func TestMain(m *testing.M) {
	stages.RunIfChild(childStages())
	goleak.VerifyTestMain(m)
}

const pipeline = "test"

// denying is a judge that refuses what deny gives a reason for.
type denying struct{ deny func(*events.Event) string }

func (j denying) Judge(_ context.Context, at events.Point, evs []*events.Event) ([]events.Verdict, error) {
	out := make([]events.Verdict, len(evs))
	for i, ev := range evs {
		out[i].Action = events.Allow
		if reason := j.deny(ev); at == events.OnPublish && reason != "" {
			out[i] = events.Verdict{Action: events.Deny, Reason: reason}
		}
	}
	return out, nil
}

// world is a deployment: a server and what is on disk. Real throughout.
type world struct {
	tb   testing.TB
	ctx  context.Context
	conn *nats.Conn
	bus  *events.Bus
	warm string
}

func newWorld(tb testing.TB, judge events.Judge) *world {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	tb.Cleanup(cancel)
	w := &world{tb: tb, ctx: ctx, conn: natstest.Start(tb).Connect(), warm: filepath.Join(tb.TempDir(), "warm")}
	var err error
	if w.bus, err = events.Open(ctx, events.Config{Conn: w.conn, Judge: judge}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := w.bus.Close(ctx); err != nil {
			tb.Errorf("close bus: %v", err)
		}
	})
	return w
}

// process is what one process of the deployment has: an arena, a store, and a
// runtime over them. At the test's end the arena must be as it was.
type process struct {
	*stages.Runtime
	w     *world
	arena *shm.Arena
}

func (w *world) process(set ...func(*tiers.Config)) *process {
	w.tb.Helper()
	host := &shm.Host{}
	arena, err := shm.New(shm.Config{Bytes: 8 << 20})
	if err != nil {
		w.tb.Fatal(err)
	}
	cfg := tiers.Config{Conn: w.conn, Bus: w.bus, Host: host, Arena: arena, Warm: w.warm}
	for _, f := range set {
		f(&cfg)
	}
	store, err := tiers.Open(w.ctx, cfg)
	if err != nil {
		w.tb.Fatal(err)
	}
	w.tb.Cleanup(func() {
		if err := store.Close(context.Background()); err != nil {
			w.tb.Errorf("close store: %v", err)
		}
		if err := host.Close(); err != nil {
			w.tb.Errorf("close host: %v", err)
		}
		if st := arena.Stats(); st.Leases != 0 || st.Loans != 0 || st.Used != 0 {
			w.tb.Errorf("arena not back to its baseline: %+v", st)
		}
		if st := host.Stats(); st.Arenas != 0 {
			w.tb.Errorf("segments left: %+v", st)
		}
	})
	return &process{Runtime: &stages.Runtime{Store: store, Bus: w.bus}, w: w, arena: arena}
}

// children starts the child process that serves childStages.
func (p *process) children() *process {
	p.Children = p.pool(worker.Config{})
	return p
}

func (p *process) pool(cfg worker.Config) *worker.Pool {
	p.w.tb.Helper()
	cfg.Backoff = time.Millisecond
	h, err := worker.StartPool(p.w.ctx, cfg)
	if err != nil {
		p.w.tb.Fatal(err)
	}
	p.w.tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := h.Close(ctx); err != nil {
			p.w.tb.Errorf("close children: %v", err)
		}
		if st := h.Stats(); st.Leases != 0 {
			p.w.tb.Errorf("leases left with the child: %+v", st)
		}
	})
	return h
}

// run executes an attempt that must succeed.
func (p *process) run(s stages.Stage, a stages.Assignment) stages.Result {
	p.w.tb.Helper()
	res, err := p.Execute(p.w.ctx, s, a, stages.Hooks{})
	if err != nil {
		p.w.tb.Fatal(err)
	}
	return res
}

// fill makes dataset with batches of rows rows, sealed.
func (p *process) fill(dataset string, batches, rows int) {
	p.w.tb.Helper()
	p.run(numbers, stages.Assignment{
		Pipeline: pipeline, Run: "fill-" + dataset, Stage: "numbers", Attempt: 1, Output: dataset, Seal: true,
		Params: params(map[string]any{"batches": batches, "rows": rows}),
	})
}

// stored lists the SHA-256 of a dataset's batches as they are on disk.
func (p *process) stored(dataset string) []string {
	p.w.tb.Helper()
	head, err := p.Store.Head(p.w.ctx, dataset)
	if err != nil {
		p.w.tb.Fatal(err)
	}
	var sums []string
	for seq := range head.Next {
		ref, err := p.Store.Ref(p.w.ctx, dataset, seq)
		if err != nil {
			p.w.tb.Fatal(err)
		}
		loc, ok := ref.In(arrowio.Warm)
		if !ok {
			p.w.tb.Fatalf("%s has no copy on disk", ref.ID())
		}
		sums = append(sums, loc.SHA256)
	}
	return sums
}

// firsts lists the first value of each batch of a dataset.
func (p *process) firsts(dataset string) []int64 {
	p.w.tb.Helper()
	head, err := p.Store.Head(p.w.ctx, dataset)
	if err != nil {
		p.w.tb.Fatal(err)
	}
	var out []int64
	for b, err := range p.Store.Batches(p.w.ctx, dataset, 0, head.Next, false) {
		if err != nil {
			p.w.tb.Fatal(err)
		}
		out = append(out, first(b))
	}
	return out
}

// published lists the events of a type by id, each as often as it is there.
func (w *world) published(typ string) []string {
	w.tb.Helper()
	var ids []string
	for d, err := range w.bus.Replay(w.ctx, events.Subscription{Types: []string{typ}}) {
		if err != nil {
			w.tb.Fatal(err)
		}
		ids = append(ids, d.ID())
	}
	slices.Sort(ids)
	return ids
}

func equal[T comparable](tb testing.TB, what string, got []T, want ...T) {
	tb.Helper()
	if !slices.Equal(got, want) {
		tb.Errorf("%s: %v, want %v", what, got, want)
	}
}

func params(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}

// reports collects what a stage reports.
type reports struct {
	mu  sync.Mutex
	all []stages.Progress
}

func (r *reports) add(p stages.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, p)
}

func (r *reports) last() stages.Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) == 0 {
		return stages.Progress{}
	}
	return r.all[len(r.all)-1]
}

var schema = arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)

// record makes rows numbers from start.
func record(start int64, rows int) arrow.RecordBatch {
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for i := range rows {
		b.Field(0).(*array.Int64Builder).Append(start + int64(i))
	}
	return b.NewRecordBatch()
}

func first(b *tiers.Batch) int64 { return b.Record.Column(0).(*array.Int64).Value(0) }

func write(ctx context.Context, task *stages.Task, start int64, rows int) error {
	rec := record(start, rows)
	defer rec.Release()
	_, err := task.Write(ctx, rec)
	return err
}

// numbers writes batches of rows numbers: batch i begins with 100*i.
var numbers = stages.Func(func(ctx context.Context, task *stages.Task) error {
	var p struct{ Batches, Rows int }
	if err := task.Decode(&p); err != nil {
		return err
	}
	for i := range p.Batches {
		if err := write(ctx, task, 100*int64(i), p.Rows); err != nil {
			return err
		}
		task.Progress(int64(i)+1, int64(p.Batches), fmt.Sprintf("batch %d", i))
	}
	return nil
})

// double writes each input batch with its numbers doubled.
var double = stages.Func(func(ctx context.Context, task *stages.Task) error {
	return doubled(ctx, task, func(_ *tiers.Batch, rec arrow.RecordBatch) error {
		_, err := task.Write(ctx, rec)
		return err
	})
})

// inPlace is double with each batch where its input is.
var inPlace = stages.Func(func(ctx context.Context, task *stages.Task) error {
	return doubled(ctx, task, func(b *tiers.Batch, rec arrow.RecordBatch) error {
		_, err := task.WriteAt(ctx, b.Ref.Sequence, rec)
		return err
	})
})

func doubled(ctx context.Context, task *stages.Task, write func(*tiers.Batch, arrow.RecordBatch) error) error {
	total := int64(0)
	for b, err := range task.Batches(ctx) {
		if err != nil {
			return err
		}
		build := array.NewInt64Builder(memory.DefaultAllocator)
		for _, n := range b.Record.Column(0).(*array.Int64).Int64Values() {
			build.Append(2 * n)
			total += n
		}
		col := build.NewArray()
		build.Release()
		rec := array.NewRecordBatch(schema, []arrow.Array{col}, int64(col.Len()))
		col.Release()
		err = write(b, rec)
		rec.Release()
		if err != nil {
			return err
		}
	}
	task.Metric("total", float64(total))
	return nil
}
