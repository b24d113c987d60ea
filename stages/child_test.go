package stages_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/models/safetensors"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/worker"
	"github.com/stokehold/stokehold/tiers"
)

func childStages() map[string]stages.Stage {
	set := map[string]stages.Stage{}
	for name, s := range map[string]stages.Stage{
		"double": double, "double-in-place": inPlace, "resuming": resuming, "numbers": numbers,
		"reports": reporting, "fails": failsFor, "dies": dies, "trains": trains, "built": built, "stops": stops,
		"epochs": stages.Func(epochs), "zips": zips,
	} {
		set[stages.ChildName(pipeline, name)] = s
	}
	return set
}

// reporting uses every way to report.
var reporting = stages.Func(func(ctx context.Context, task *stages.Task) error {
	task.Log.Warn("careful", "seed", task.Seed)
	task.Progress(3, 9, "a third")
	task.Metric("auc", 0.75)
	task.Note("who", fmt.Sprint(task.Run, " ", task.Attempt, " ", task.Cause))
	return task.Checkpoint(ctx, map[string]int{"at": 3})
})

// failsFor fails in the way that its parameters name.
var failsFor = stages.Func(func(ctx context.Context, task *stages.Task) error {
	var p struct{ How string }
	if err := task.Decode(&p); err != nil {
		return err
	}
	switch p.How {
	case "passing":
		return errors.New("try again")
	case "permanent":
		return stages.Permanent(errors.New("will never do"))
	case "panic":
		panicking()
	case "publish":
		return task.Publish(ctx, "test.event", "s", "k", time.Now(), struct{}{})
	case "model":
		_, err := task.SaveModel(ctx, models.Version{Model: "m"}, []byte("x"))
		return err
	case "gap":
		rec := record(0, 1)
		defer rec.Release()
		_, err := task.WriteAt(ctx, 5, rec)
		if err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	return write(ctx, task, 0, 1)
})

// dies ends its process on the first attempt, between two batches and while it
// holds an input.
var dies = stages.Func(func(ctx context.Context, task *stages.Task) error {
	n := 0
	for b, err := range task.Batches(ctx) {
		if err != nil {
			return err
		}
		if task.Attempt == 1 && n == 2 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			<-ctx.Done()
		}
		if _, err := task.Write(ctx, b.Record); err != nil {
			return err
		}
		n++
	}
	return nil
})

func childAssignment(stage string, child bool) stages.Assignment {
	return stages.Assignment{
		Pipeline: pipeline, Run: fmt.Sprintf("run-%v", child), Stage: stage, Attempt: 1, Cause: "c", Seed: 7,
		Output: fmt.Sprintf("out-%v/%s", child, stage), Seal: true, ChildProcess: child,
		Inputs: []stages.Binding{{Name: "in", Dataset: "in"}},
	}
}

func TestChildGivesTheSameBytes(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process().children()
	const batches, rows = 20, 500
	p.fill("in", batches, rows)
	for name, s := range map[string]stages.Stage{"double": double, "double-in-place": inPlace} {
		here := p.run(s, childAssignment(name, false))
		there := p.run(s, childAssignment(name, true))
		equal(t, name, p.stored("out-true/"+name), p.stored("out-false/"+name)...)
		body := int64(batches * rows * 8)
		if d := there.Data; d.BatchesIn != batches || d.BatchesOut != batches || d.CopiedBytes != 0 ||
			d.Leased != 2*batches || d.BodyBytes < 2*body {
			t.Errorf("%s: %+v", name, d)
		}
		here.Data, there.Data, here.Dataset, there.Dataset = stages.DataStats{}, stages.DataStats{}, "", ""
		if fmt.Sprint(here) != fmt.Sprint(there) {
			t.Errorf("%s: %+v here, %+v in the child", name, here, there)
		}
	}
	if st := p.Children.Stats(); st.CopiedBytes != 0 || st.Died != 0 || st.Leases != 0 {
		t.Errorf("%+v", st)
	}
}

// Appended sequences of a child are counted from where its stage began.
func TestChildAppendsToALongLivedDataset(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process().children()
	p.run(numbers, producer("run-0", 2, 1))
	for attempt := range 2 {
		a := producer("run-1", 3, attempt+1)
		a.ChildProcess = true
		if res := p.run(numbers, a); res.From != 2 || res.To != 5 || res.Rows != 30 {
			t.Errorf("attempt %d: %+v", attempt+1, res)
		}
	}
	equal(t, "batches", p.firsts(longLived), 0, 100, 0, 100, 200)
}

func TestChildReports(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process().children()
	var log bytes.Buffer
	p.Log = slog.New(slog.NewTextHandler(&log, nil))
	a := childAssignment("reports", true)
	a.Output, a.Seal = "", false
	var seen reports
	res, err := p.Execute(w.ctx, reporting, a, stages.Hooks{Report: seen.add})
	if err != nil {
		t.Fatal(err)
	}
	if res.Metrics["auc"] != 0.75 || res.Notes["who"] != "run-true 1 c" {
		t.Errorf("%+v", res)
	}
	if last := seen.last(); last.Done != 3 || last.Total != 9 || last.Note != "a third" || string(last.Checkpoint) != `{"at":3}` {
		t.Errorf("%+v", last)
	}
	for _, part := range []string{"careful", "level=WARN", "run=run-true", "seed:7"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("%s is not in the log %s", part, log.String())
		}
	}
}

func TestChildErrors(t *testing.T) {
	w := newWorld(t, denying{func(e *events.Event) string {
		if e.Type() == events.TypeBatchPublished {
			return "no batches today"
		}
		return ""
	}})
	p := w.process().children()
	for how, want := range map[string]struct {
		permanent bool
		text      string
	}{
		"passing":   {false, "try again"},
		"permanent": {true, "will never do"},
		"panic":     {true, "stages_test.panicking"},
		"publish":   {true, "has no bus: publish from a stage of the worker process"},
		"model":     {true, "makes versions of the pipeline's model, which is"},
		"denied":    {true, "no batches today"},
		"gap":       {false, "leaves a gap"},
	} {
		a := childAssignment("fails", true)
		a.Run, a.Output, a.Params = how, "out/"+how, params(map[string]any{"how": how})
		_, err := p.Execute(w.ctx, failsFor, a, stages.Hooks{})
		if err == nil || stages.IsPermanent(err) != want.permanent || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: permanent %v, %v", how, stages.IsPermanent(err), err)
		}
		if how == "denied" && !errors.Is(err, events.ErrDenied) {
			t.Errorf("%v", err)
		}
	}
	if st := p.Children.Stats(); st.Died != 0 {
		t.Errorf("a stage's error ended the child: %+v", st)
	}
	a := childAssignment("nowhere", true)
	if _, err := p.Execute(w.ctx, double, a, stages.Hooks{}); !errors.Is(err, worker.ErrUnknownStage) {
		t.Errorf("%v", err)
	}
	p.Children = nil
	if _, err := p.Execute(w.ctx, double, a, stages.Hooks{}); !stages.IsPermanent(err) || !strings.Contains(err.Error(), "give Runtime its Children") {
		t.Errorf("%v", err)
	}
}

// trains makes a model of its input: the artifact is in the parameters.
var trains = stages.Func(func(ctx context.Context, task *stages.Task) error {
	var p struct {
		Artifact []byte
		Reads    bool
	}
	if err := task.Decode(&p); err != nil {
		return err
	}
	if p.Reads {
		for range 2 { // epochs
			for _, err := range task.Batches(ctx) {
				if err != nil {
					return err
				}
			}
		}
	}
	v, err := task.SaveModel(ctx, models.Version{Format: models.Safetensors, Kind: "test/v1", Metrics: map[string]float64{"auc": 0.8}, Metadata: map[string]string{"a": "b"}}, p.Artifact)
	if err != nil {
		return err
	}
	task.Note("saved", v.Model+"@"+v.Short())
	return nil
})

func TestChildSavesAModel(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process().children()
	var err error
	if p.Registry, err = models.Open(w.ctx, models.Config{Conn: w.conn, Bus: w.bus, Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	p.fill("in", 3, 10)
	artifact, err := safetensors.Encode(safetensors.File{Tensors: []safetensors.Tensor{safetensors.Float32s("w", []int64{2}, []float32{1, 2})}})
	if err != nil {
		t.Fatal(err)
	}
	parent, err := p.Registry.Register(w.ctx, models.Version{Model: "m", Format: models.Opaque, Kind: "test/v1", Labels: label.Set{"licence:cc0-1.0"}}, []byte("parent"))
	if err != nil {
		t.Fatal(err)
	}
	a := childAssignment("trains", true)
	a.Output, a.Seal, a.Model, a.Kind = "", false, "m", "train"
	a.Inputs = append(a.Inputs, stages.Binding{Name: "m@champion", Model: "m", Version: parent.ID})
	a.Params = params(map[string]any{"artifact": artifact, "reads": true})
	res := p.run(trains, a)
	v, err := p.Registry.Get(w.ctx, "m", res.Version)
	if err != nil {
		t.Fatal(err)
	}
	if res.Model != "m" || v.Kind != "test/v1" || v.Format != models.Safetensors || v.Metrics["auc"] != 0.8 || v.Metadata["a"] != "b" || res.Notes["saved"] != "m@"+v.Short() {
		t.Errorf("%+v %+v", res, v)
	}
	l := v.Lineage
	if l.Pipeline != pipeline || l.Run != a.Run || l.Stage != "trains" || l.Cause != "c" || l.Seed != 7 || l.Parent != parent.ID ||
		len(l.Datasets) != 1 || l.Datasets[0].Dataset != "in" || l.Datasets[0].To != 3 {
		t.Errorf("%+v", l)
	}
	equal(t, "labels", v.Labels, "licence:cc0-1.0")
	equal(t, "checksums", l.Datasets[0].SHA256, p.stored("in")...)
	if got, err := p.Registry.Artifact(w.ctx, v); err != nil || !bytes.Equal(got, artifact) {
		t.Error(err)
	}

	// What is no safetensors file is refused for good, and says what is wrong.
	a.Attempt, a.Params = 2, params(map[string]any{"artifact": []byte("PK a pickle, renamed")})
	if _, err := p.Execute(w.ctx, trains, a, stages.Hooks{}); !stages.IsPermanent(err) || !errors.Is(err, models.ErrArtifact) || !errors.Is(err, safetensors.ErrFormat) {
		t.Error(err)
	}
	a.Model = ""
	if _, err := p.Execute(w.ctx, trains, a, stages.Hooks{}); !stages.IsPermanent(err) || !strings.Contains(err.Error(), "makes no model") {
		t.Error(err)
	}
	a.Model, p.Registry = "m", nil
	if _, err := p.Execute(w.ctx, trains, a, stages.Hooks{}); !stages.IsPermanent(err) || !strings.Contains(err.Error(), "no model registry") {
		t.Error(err)
	}
	if st := p.Children.Stats(); st.Died != 0 || st.Models != 1 {
		t.Errorf("%+v", st)
	}
}

// TestRemoteStage runs a stage that is declared here and implemented by another
// program, here this one started again under another name.
func TestRemoteStage(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	pool := p.pool(worker.Config{Outputs: worker.Shared, Processes: 2})
	p.Workers = map[string]*worker.Pool{"other": pool}
	p.fill("in", 30, 500)
	a := childAssignment("double", true)
	a.Worker = "other"
	if res := p.run(stages.Remote{Output: schema}, a); res.To != 30 || res.Data.CopiedBytes != 0 {
		t.Errorf("%+v", res)
	}
	equal(t, "sums", p.stored("out-true/double"), p.stored(doubledHere(p))...)
	if st := pool.Stats(); st.OutShared != 30 {
		t.Errorf("%+v", st)
	}

	// A schema other than the declared one is refused for good.
	a.Run, a.Output = "other", "other"
	wrong := arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Float64}}, nil)
	if _, err := p.Execute(w.ctx, stages.Remote{Output: wrong}, a, stages.Hooks{}); !stages.IsPermanent(err) || !errors.Is(err, tiers.ErrSchema) || !strings.Contains(err.Error(), "declares") {
		t.Error(err)
	}
	if _, err := p.Store.Head(w.ctx, "other"); !errors.Is(err, tiers.ErrNotFound) {
		t.Error("the dataset was made:", err)
	}
	a.Worker = "nowhere"
	if _, err := p.Execute(w.ctx, stages.Remote{}, a, stages.Hooks{}); !stages.IsPermanent(err) || !strings.Contains(err.Error(), `worker "nowhere"`) {
		t.Error(err)
	}
	a.ChildProcess, a.Worker = false, ""
	if _, err := p.Execute(w.ctx, stages.Remote{}, a, stages.Hooks{}); !stages.IsPermanent(err) {
		t.Error(err)
	}
}

// TestSharedArenaStaysWarm has a child publish far more than its arena holds,
// while the store keeps what it can as hot copies: old ones make room, so that the
// child goes on in the same memory.
func TestSharedArenaStaysWarm(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	pool := p.pool(worker.Config{Outputs: worker.Shared, ChildBytes: 128 << 10, Processes: 1})
	p.Workers = map[string]*worker.Pool{"other": pool}
	const batches = 100 // of about 4 KiB
	p.fill("in", batches, 500)
	a := childAssignment("double", true)
	a.Worker = "other"
	p.run(stages.Remote{}, a)
	if st := pool.Stats(); st.OutBatches != batches || st.OutShared < 60 {
		t.Errorf("%+v", st)
	}
	equal(t, "sums", p.stored("out-true/double"), p.stored(doubledHere(p))...)
}

func doubledHere(p *process) string {
	a := childAssignment("double", false)
	p.run(double, a)
	return a.Output
}

// TestStagesOfOneWorkerOverlap runs a consumer and its producer in children of one
// pool, the consumer first: one child would wait for ever.
func TestStagesOfOneWorkerOverlap(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process().children()
	consumer := childAssignment("double", true)
	consumer.Inputs = []stages.Binding{{Name: "numbers", Dataset: "between"}}
	done := make(chan error, 1)
	go func() {
		_, err := p.Execute(w.ctx, double, consumer, stages.Hooks{})
		done <- err
	}()
	for p.Children.Stats().Jobs == 0 {
		select {
		case err := <-done:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	producer := childAssignment("numbers", true)
	producer.Inputs, producer.Output, producer.Params = nil, "between", params(map[string]any{"batches": 3, "rows": 2})
	p.run(numbers, producer)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	equal(t, "batches", p.firsts(consumer.Output), 0, 200, 400)
}

func TestKilledChild(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process().children()
	p.fill("in", 6, 100)
	a := childAssignment("dies", true)
	_, err := p.Execute(w.ctx, dies, a, stages.Hooks{})
	if !errors.Is(err, worker.ErrWorkerDied) || stages.IsPermanent(err) {
		t.Fatalf("%v", err)
	}
	a.Attempt = 2
	if res := p.run(dies, a); res.To != 6 || res.Rows != 600 || res.Data.CopiedBytes != 0 {
		t.Errorf("%+v", res)
	}
	equal(t, "batches", p.firsts("out-true/dies"), 0, 100, 200, 300, 400, 500)
	var want []string
	for i := range 6 {
		want = append(want, fmt.Sprintf("out-true/dies#%d", i))
	}
	var got []string
	for _, id := range w.published(events.TypeBatchPublished) {
		if strings.HasPrefix(id, "out-true/") {
			got = append(got, id)
		}
	}
	equal(t, "announced", got, want...)
}
