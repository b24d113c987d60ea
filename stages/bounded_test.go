package stages_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
)

const longLived = "flights/features"

// producer appends to the long-lived dataset; consumer reads what it appended.
func producer(run string, batches, attempt int) stages.Assignment {
	return stages.Assignment{
		Pipeline: pipeline, Run: run, Stage: "numbers", Attempt: attempt, Output: longLived,
		Params: params(map[string]any{"batches": batches, "rows": 10}),
	}
}

func consumer(run string, child bool) stages.Assignment {
	return stages.Assignment{
		Pipeline: pipeline, Run: run, Stage: "double", Attempt: 1, Output: run + "/double", Seal: true, ChildProcess: child,
		Inputs: []stages.Binding{{Name: "numbers", Dataset: longLived, Bounded: true}},
	}
}

func TestBoundedInput(t *testing.T) {
	for _, child := range []bool{false, true} {
		t.Run(fmt.Sprintf("child %v", child), func(t *testing.T) {
			w := newWorld(t, events.AllowAll())
			p := w.process()
			if child {
				p.children()
			}
			p.run(numbers, producer("run-0", 3, 1)) // there already
			steps := make(chan struct{})
			done := make(chan error, 1)
			go func() {
				_, err := p.Execute(w.ctx, double, consumer("run-1", child), stages.Hooks{Report: func(r stages.Progress) {
					steps <- struct{}{} // one for each batch written
				}})
				close(steps)
				done <- err
			}()
			// The consumer is fed as batches come: each step of the producer waits for it.
			p.run(stages.Func(func(ctx context.Context, task *stages.Task) error {
				for i := range 3 {
					if err := write(ctx, task, 100*int64(i+10), 10); err != nil {
						return err
					}
					<-steps
				}
				return nil
			}), producer("run-1", 0, 1))
			for range steps {
				t.Error("more than was written")
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			equal(t, "read", p.firsts("run-1/double"), 2000, 2200, 2400)
			equal(t, "all", p.firsts(longLived), 0, 100, 200, 1000, 1100, 1200)
		})
	}
}

func TestBoundedInputOfACompleteStage(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.run(numbers, producer("run-1", 2, 1))
	p.run(numbers, producer("run-2", 2, 1))
	for attempt := range 2 {
		p.run(numbers, producer("run-1", 2, attempt+2)) // resumed after it was done
		c := consumer("run-1", false)
		c.Attempt = attempt + 1
		if res := p.run(double, c); res.Data.BatchesIn != 2 || res.To != 2 {
			t.Errorf("%+v", res)
		}
	}
	equal(t, "all", p.firsts(longLived), 0, 100, 0, 100)

	// A stage that wrote nothing ends its readers' input as well.
	p.run(numbers, producer("run-3", 0, 1))
	if res := p.run(double, consumer("run-3", false)); res.Data.BatchesIn != 0 {
		t.Errorf("%+v", res)
	}
	if head, err := p.Store.Head(w.ctx, "run-3/double"); err != nil || !head.Sealed || head.Next != 0 {
		t.Errorf("a dataset that nothing was written to: %+v, %v", head, err)
	}

	// Range means the dataset's own sequences, whoever wrote them.
	p.run(stages.Func(func(ctx context.Context, task *stages.Task) error {
		var got []int64
		for b, err := range task.Range(ctx, "numbers", 1, 4) {
			if err != nil {
				return err
			}
			got = append(got, first(b))
		}
		equal(t, "range", got, 100, 0, 100)
		got = nil
		for b, err := range task.All(ctx, "numbers") {
			if err != nil {
				return err
			}
			got = append(got, int64(b.Ref.Sequence))
		}
		equal(t, "all of run 2", got, 2, 3)
		return nil
	}), consumer("run-2", false))
}
