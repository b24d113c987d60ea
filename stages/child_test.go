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

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/worker"
)

func childStages() map[string]stages.Stage {
	set := map[string]stages.Stage{}
	for name, s := range map[string]stages.Stage{
		"double": double, "double-in-place": inPlace, "resuming": resuming, "numbers": numbers,
		"reports": reporting, "fails": failsFor, "dies": dies, "built": built,
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
		"model":     {true, "no model registry here: stages in a child process hand their results on as batches"},
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
