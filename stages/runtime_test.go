package stages_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/tiers"
)

// assignment is of a stage that writes numbers, 4 batches of 10, into a dataset
// of the run's own.
func assignment(attempt int) stages.Assignment {
	return stages.Assignment{
		Pipeline: pipeline, Run: "run-1", Stage: "numbers", Kind: "ingest", Attempt: attempt, Cause: "cause-1", Seed: 7,
		Output: "run-1/numbers", Seal: true, Params: params(map[string]any{"batches": 4, "rows": 10}),
	}
}

func TestExecute(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	var seen reports
	res, err := p.Execute(w.ctx, numbers, assignment(1), stages.Hooks{Report: seen.add})
	if err != nil {
		t.Fatal(err)
	}
	want := stages.Result{Dataset: "run-1/numbers", To: 4, Rows: 40, Data: stages.DataStats{BatchesOut: 4}}
	if fmt.Sprint(res) != fmt.Sprint(want) {
		t.Errorf("%+v", res)
	}
	if last := seen.last(); last.Done != 4 || last.Total != 4 || last.Note != "batch 3" || last.Data.BatchesOut != 4 {
		t.Errorf("last report %+v", last)
	}
	equal(t, "batches", p.firsts("run-1/numbers"), 0, 100, 200, 300)
	if head, err := p.Store.Head(w.ctx, "run-1/numbers"); err != nil || !head.Sealed {
		t.Errorf("%+v, %v", head, err)
	}
	out := p.run(double, stages.Assignment{
		Pipeline: pipeline, Run: "run-1", Stage: "double", Attempt: 1, Output: "run-1/double", Seal: true,
		Inputs: []stages.Binding{{Name: "numbers", Dataset: "run-1/numbers"}},
	})
	if out.Data.BatchesIn != 4 || out.Data.BatchesOut != 4 || out.Metrics["total"] != 4*45+10*600 {
		t.Errorf("%+v", out)
	}
	for d, err := range w.bus.Replay(w.ctx, events.Subscription{Types: []string{events.TypeStageCompleted}}) {
		if err != nil {
			t.Fatal(err)
		}
		var data events.StageCompleted
		if err := d.DataAs(&data); err != nil {
			t.Fatal(err)
		}
		if data.Run != "run-1" || data.Batches != 4 || data.Rows != 40 || d.Subject() != pipeline {
			t.Errorf("%+v", data)
		}
	}
}

func TestExecutedTwiceHappensOnce(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	var results []stages.Result
	var sums []string
	publish := stages.Func(func(ctx context.Context, task *stages.Task) error {
		if err := numbers(ctx, task); err != nil {
			return err
		}
		return task.Publish(ctx, events.TypeDriftDetected, "model", "key", time.Now(), events.DriftDetected{Pipeline: pipeline, Model: "m", Version: "v", Detector: "d", Statistic: 1, Threshold: 0.5, Window: "w"})
	})
	for attempt := range 2 {
		p := w.process() // as after a restart
		results = append(results, p.run(publish, assignment(attempt+1)))
		got := p.stored("run-1/numbers")
		if sums != nil && !slices.Equal(got, sums) {
			t.Errorf("stored %v, then %v", sums, got)
		}
		sums = got
	}
	if fmt.Sprint(results[0]) != fmt.Sprint(results[1]) {
		t.Errorf("%+v, then %+v", results[0], results[1])
	}
	equal(t, "started", w.published(events.TypeStageStarted), "run-1/numbers/started")
	equal(t, "completed", w.published(events.TypeStageCompleted), "run-1/numbers/completed")
	equal(t, "of its own", w.published(events.TypeDriftDetected), "run-1/numbers/key")
	equal(t, "sealed", w.published(events.TypeDatasetSealed), "run-1/numbers#sealed")
	equal(t, "batches", w.published(events.TypeBatchPublished), "run-1/numbers#0", "run-1/numbers#1", "run-1/numbers#2", "run-1/numbers#3")
}

// failing is numbers, but its first attempt ends after some batches.
func failing(after int, err error) stages.Stage {
	return stages.Func(func(ctx context.Context, task *stages.Task) error {
		for i := range 4 {
			if task.Attempt == 1 && i == after {
				return err
			}
			if err := write(ctx, task, 100*int64(i), 10); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestSecondAttemptContinues(t *testing.T) {
	for _, c := range []struct {
		name    string
		dataset string
		seal    bool
		before  []int64
	}{{"the run's own dataset", "run-1/numbers", true, nil}, {"a long-lived dataset", "long/lived", false, []int64{0, 100, 200}}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, events.AllowAll())
			a := assignment(1)
			a.Output, a.Seal = c.dataset, c.seal
			p := w.process()
			if n := len(c.before); n > 0 {
				old := a
				old.Run, old.Params = "run-0", params(map[string]any{"batches": n, "rows": 10})
				p.run(numbers, old)
			}
			_, err := p.Execute(w.ctx, failing(2, io.ErrUnexpectedEOF), a, stages.Hooks{})
			if !errors.Is(err, io.ErrUnexpectedEOF) || stages.IsPermanent(err) {
				t.Fatalf("%v", err)
			}
			if n := len(w.published(events.TypeStageCompleted)); n > 1 {
				t.Error("the failed attempt was announced as completed")
			}
			if !c.seal { // another run appends before the second attempt
				other := a
				other.Run, other.Params = "run-2", params(map[string]any{"batches": 1, "rows": 10})
				p.run(numbers, other)
			}
			a.Attempt = 2
			res := w.process().run(failing(2, io.ErrUnexpectedEOF), a)
			from := uint64(len(c.before))
			if res.From != from || res.Rows != 40 || res.Data.BatchesOut != 4 {
				t.Errorf("%+v", res)
			}
			want := append(slices.Clone(c.before), 0, 100)
			if !c.seal {
				want = append(want, 0)
			}
			equal(t, "batches", p.firsts(c.dataset), append(want, 200, 300)...)
		})
	}
}

func TestStaleAttemptIsFenced(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	a := assignment(1)
	a.Output, a.Seal = "long/lived", false
	at, resume := make(chan struct{}), make(chan struct{})
	stale := make(chan error, 1)
	go func() {
		_, err := w.process().Execute(w.ctx, stages.Func(func(ctx context.Context, task *stages.Task) error {
			if err := write(ctx, task, 0, 10); err != nil {
				return err
			}
			close(at)
			<-resume
			return write(ctx, task, 666, 10)
		}), a, stages.Hooks{})
		stale <- err
	}()
	<-at
	p := w.process()
	_, err := p.Execute(w.ctx, stages.Func(func(ctx context.Context, task *stages.Task) error {
		if err := write(ctx, task, 0, 10); err != nil {
			return err
		}
		close(resume)
		if err := <-stale; !errors.Is(err, tiers.ErrFenced) {
			t.Errorf("stale attempt: %v", err)
		}
		if g, err := p.Store.Segment(ctx, "long/lived", "run-1", "numbers"); err != nil || g.Done || g.Batches != 1 {
			t.Errorf("%+v, %v", g, err)
		}
		return write(ctx, task, 100, 10)
	}), func() stages.Assignment { a := a; a.Attempt = 2; return a }(), stages.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	// One that finds all its batches there still may not say that the stage is done,
	// and one that comes later still cannot open.
	for range 2 {
		if _, err := p.Execute(w.ctx, numbers, a, stages.Hooks{}); !errors.Is(err, tiers.ErrFenced) {
			t.Errorf("attempt 1 after attempt 2: %v", err)
		}
	}
	equal(t, "batches", p.firsts("long/lived"), 0, 100)
	equal(t, "completed", w.published(events.TypeStageCompleted), "run-1/numbers/completed")
}

func TestDeniedBatchIsPermanent(t *testing.T) {
	w := newWorld(t, denying{func(e *events.Event) string {
		if e.Type() == events.TypeBatchPublished && strings.HasSuffix(e.ID(), "#2") {
			return "two is not allowed"
		}
		return ""
	}})
	p := w.process()
	_, err := p.Execute(w.ctx, numbers, assignment(1), stages.Hooks{})
	if !errors.Is(err, events.ErrDenied) || !stages.IsPermanent(err) || !strings.Contains(err.Error(), "two is not allowed") {
		t.Errorf("%v", err)
	}
	for _, part := range []string{"stage numbers of test", "run-1/numbers#2"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not name %s", err, part)
		}
	}
	equal(t, "batches", p.firsts("run-1/numbers"), 0, 100)
	if head, err := p.Store.Head(w.ctx, "run-1/numbers"); err != nil || head.Sealed {
		t.Errorf("%+v, %v", head, err)
	}
	if got := w.published(events.TypeStageCompleted); len(got) > 0 {
		t.Errorf("completed: %v", got)
	}
}

func TestDeniedStartRunsNothing(t *testing.T) {
	w := newWorld(t, denying{func(e *events.Event) string {
		if e.Type() == events.TypeStageStarted {
			return "not today"
		}
		return ""
	}})
	called := false
	_, err := w.process().Execute(w.ctx, stages.Func(func(context.Context, *stages.Task) error {
		called = true
		return nil
	}), assignment(1), stages.Hooks{})
	if called || !errors.Is(err, events.ErrDenied) || !strings.Contains(err.Error(), "not today") {
		t.Errorf("called %v, %v", called, err)
	}
}

func TestPanicIsPermanent(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.fill("in", 2, 10)
	_, err := p.Execute(w.ctx, stages.Func(func(ctx context.Context, task *stages.Task) error {
		for range task.Batches(ctx) { // the batch must be given back all the same
			panicking()
		}
		return nil
	}), stages.Assignment{
		Pipeline: pipeline, Run: "run-1", Stage: "panics", Attempt: 1, Inputs: []stages.Binding{{Name: "in", Dataset: "in"}},
	}, stages.Hooks{})
	if !stages.IsPermanent(err) || !strings.Contains(err.Error(), "panic: ouch") || !strings.Contains(err.Error(), "stages_test.panicking") {
		t.Errorf("%v", err)
	}
}

func panicking() { panic("ouch") }

// resuming counts to 6, noting where it is after every second batch; its first
// attempt breaks off after batch 4, one after the checkpoint.
var resuming = stages.Func(func(ctx context.Context, task *stages.Task) error {
	var at struct{ Next int }
	found, err := task.Restore(ctx, &at)
	if err != nil {
		return err
	}
	task.Note("restored", fmt.Sprint(found, at.Next))
	for i := at.Next; i < 6; i++ {
		if task.Attempt == 1 && i == 5 {
			return io.ErrUnexpectedEOF
		}
		if err := write(ctx, task, 100*int64(i), 10); err != nil {
			return err
		}
		if i%2 == 1 {
			at.Next = i + 1
			if err := task.Checkpoint(ctx, at); err != nil {
				return err
			}
		}
	}
	return nil
})

func TestCheckpoint(t *testing.T) {
	for _, child := range []bool{false, true} {
		t.Run(fmt.Sprintf("child %v", child), func(t *testing.T) {
			w := newWorld(t, events.AllowAll())
			p := w.process()
			if child {
				p.children()
			}
			a := assignment(1)
			a.Stage, a.Output, a.ChildProcess = "resuming", "run-1/resuming", child
			var seen reports
			res, err := p.Execute(w.ctx, resuming, a, stages.Hooks{Report: seen.add})
			if err == nil {
				t.Fatalf("%+v", res)
			}
			prev := seen.last()
			if string(prev.Checkpoint) != `{"Next":4}` || prev.Written != (stages.Written{Batches: 4, Rows: 40, To: 4}) {
				t.Fatalf("%s %+v, %v", prev.Checkpoint, prev.Written, err)
			}
			a.Attempt = 2
			seen = reports{}
			res, err = p.Execute(w.ctx, resuming, a, stages.Hooks{Report: seen.add, Previous: prev})
			if err != nil {
				t.Fatal(err)
			}
			if res.Notes["restored"] != "true 4" || res.To != 6 || res.Rows != 60 || res.Data.BatchesOut != 6 {
				t.Errorf("%+v", res)
			}
			equal(t, "batches", p.firsts("run-1/resuming"), 0, 100, 200, 300, 400, 500)
			// A third finds that there is nothing left to do, and ends the output as well.
			a.Attempt = 3
			res, err = p.Execute(w.ctx, resuming, a, stages.Hooks{Previous: seen.last()})
			if err != nil || res.Rows != 60 {
				t.Errorf("%+v, %v", res, err)
			}
		})
	}
	w := newWorld(t, events.AllowAll())
	_, err := w.process().Execute(w.ctx, stages.Func(func(ctx context.Context, task *stages.Task) error {
		return task.Checkpoint(ctx, strings.Repeat("x", 40_000))
	}), assignment(1), stages.Hooks{})
	if !stages.IsPermanent(err) || !strings.Contains(err.Error(), "dataset or a model") {
		t.Errorf("large checkpoint: %v", err)
	}
}

func TestTaskErrors(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	a := stages.Assignment{
		Pipeline: pipeline, Run: "run-1", Stage: "asks", Attempt: 1,
		Params: params(map[string]any{"a": 1, "b": 2}), RunParams: params(map[string]any{"b": 3, "unknown": true}),
		Inputs: []stages.Binding{{Name: "weeks", Dataset: "flights/weeks"}, {Name: "m@champion", Model: "m", Version: "v1"}},
	}
	p.run(stages.Func(func(ctx context.Context, task *stages.Task) error {
		var v struct{ A, B, C int }
		v.C = 9
		if err := task.Decode(&v); err != nil || v.A != 1 || v.B != 3 || v.C != 9 {
			t.Errorf("%+v, %v", v, err)
		}
		var wrong struct{ A string }
		if err := task.Decode(&wrong); !stages.IsPermanent(err) || !strings.Contains(err.Error(), "stage asks: parameters") {
			t.Errorf("%v", err)
		}
		for _, name := range []string{"weeks", "flights/weeks"} {
			if b, err := task.Input(name); err != nil || b.Dataset != "flights/weeks" {
				t.Errorf("%s: %+v, %v", name, b, err)
			}
		}
		if b, err := task.Input("m"); err != nil || b.Version != "v1" || len(task.Inputs()) != 2 {
			t.Errorf("%+v, %v", b, err)
		}
		for _, err := range []error{
			func() error { _, err := task.Input("days"); return err }(),
			failure(task.Range(ctx, "days", 0, 1)), failure(task.All(ctx, "days")),
		} {
			if !stages.IsPermanent(err) || !strings.Contains(err.Error(), `no input "days", only ["weeks" "m@champion"]`) {
				t.Errorf("%v", err)
			}
		}
		if err := failure(task.All(ctx, "m")); !stages.IsPermanent(err) || !strings.Contains(err.Error(), "is a model") {
			t.Errorf("%v", err)
		}
		if err := write(ctx, task, 0, 1); !stages.IsPermanent(err) || !strings.Contains(err.Error(), "no output dataset") {
			t.Errorf("%v", err)
		}
		return nil
	}), a)
	a.Inputs = a.Inputs[1:]
	p.run(stages.Func(func(ctx context.Context, task *stages.Task) error {
		if err := failure(task.Batches(ctx)); !stages.IsPermanent(err) || !strings.Contains(err.Error(), "no dataset input") {
			t.Errorf("%v", err)
		}
		return nil
	}), a)
	// A schema that is not the dataset's.
	a.Output = "other"
	p.fill("other", 1, 10)
	a.Run = "fill-other" // whose dataset it is
	_, err := p.Execute(w.ctx, stages.Func(func(ctx context.Context, task *stages.Task) error {
		rec := otherRecord()
		defer rec.Release()
		_, err := task.Write(ctx, rec)
		return err
	}), a, stages.Hooks{})
	if !errors.Is(err, tiers.ErrSchema) || !stages.IsPermanent(err) {
		t.Errorf("%v", err)
	}
	if stages.Permanent(nil) != nil || stages.IsPermanent(io.EOF) || !errors.Is(stages.Permanent(io.EOF), io.EOF) {
		t.Error("Permanent changes what an error is")
	}
}

func TestCancelEndsPromptly(t *testing.T) {
	for _, child := range []bool{false, true} {
		t.Run(fmt.Sprintf("child %v", child), func(t *testing.T) {
			w := newWorld(t, events.AllowAll())
			p := w.process().children()
			a := stages.Assignment{
				Pipeline: pipeline, Run: "run-1", Stage: "double", Attempt: 1, Output: "out", ChildProcess: child,
				Inputs: []stages.Binding{{Name: "in", Dataset: "long/lived"}}, // never sealed
			}
			filler := assignment(1)
			filler.Output, filler.Seal = "long/lived", false
			p.run(numbers, filler)
			ctx, cancel := context.WithCancel(w.ctx)
			defer cancel()
			var began time.Time
			_, err := p.Execute(ctx, double, a, stages.Hooks{Report: func(p stages.Progress) {
				if p.Data.BatchesOut == 4 && began.IsZero() {
					began = time.Now()
					cancel()
				}
			}})
			if took := time.Since(began); !errors.Is(err, context.Canceled) || took > 5*time.Second {
				t.Errorf("%v after %v", err, took)
			}
		})
	}
}

// failure is the error that a loop over batches ends with.
func failure(seq iter.Seq2[*tiers.Batch, error]) error {
	for _, err := range seq {
		if err != nil {
			return err
		}
	}
	return nil
}

func otherRecord() arrow.RecordBatch {
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{{Name: "s", Type: arrow.BinaryTypes.String}}, nil))
	defer b.Release()
	b.Field(0).(*array.StringBuilder).Append("x")
	return b.NewRecordBatch()
}
