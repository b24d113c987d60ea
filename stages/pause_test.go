package stages_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/worker"
)

// stops waits until it is told to stop, and then says from where to go on; with
// "write", after it has written one batch more.
var stops = stages.Func(func(ctx context.Context, task *stages.Task) error {
	var p struct{ Write bool }
	if err := task.Decode(&p); err != nil {
		return err
	}
	if err := task.Checkpoint(ctx, "working"); err != nil {
		return err
	}
	<-ctx.Done()
	after := context.WithoutCancel(ctx)
	if p.Write {
		if err := write(after, task, 0, 1); err != nil {
			return err
		}
	}
	if err := task.Checkpoint(after, "stopped"); err != nil {
		return err
	}
	return ctx.Err()
})

// A stage that is told to stop leaves a last checkpoint, here and in a child, but
// none that counts in a batch which was thrown away.
func TestStoppedStageLeavesACheckpoint(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process().children()
	why := errors.New("nothing left")
	for _, c := range []struct {
		name  string
		child bool
		write bool
		want  string
	}{{"here", false, false, `"stopped"`}, {"child", true, false, `"stopped"`}, {"child that writes", true, true, `"working"`}} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(w.ctx)
			defer cancel(nil)
			a := childAssignment("stops", c.child)
			a.Run, a.Output, a.Params = a.Run+c.name, a.Output+c.name, params(map[string]bool{"write": c.write})
			var seen reports
			_, err := p.Execute(ctx, stops, a, stages.Hooks{Report: func(p stages.Progress) {
				seen.add(p)
				if string(p.Checkpoint) == `"working"` {
					cancel(why)
				}
			}})
			if !errors.Is(err, why) && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if got := seen.last(); string(got.Checkpoint) != c.want || got.Written.Batches != 0 {
				t.Errorf("left %s, written %+v", got.Checkpoint, got.Written)
			}
		})
	}
}

// While an attempt waits for a child it is idle, and what it holds is the child's.
func TestWaitingForAChildIsIdle(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.Children = p.pool(worker.Config{Processes: 1, Accelerator: "nvidia-h100", Accelerators: 4})
	p.Local = stages.Device{Accelerator: "nvidia-l4"}
	a := childAssignment("stops", true)
	if here, there := p.Device(stages.Assignment{}), p.Device(a); here.Accelerator != "nvidia-l4" || there != (stages.Device{Accelerator: "nvidia-h100", Count: 4}) {
		t.Errorf("here %+v, in the child %+v", here, there)
	}
	ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
	defer cancel()
	said := make(chan string, 8)
	hooks := func(who string) stages.Hooks {
		return stages.Hooks{Idle: func() func() {
			said <- who + " waits"
			return func() { said <- who + " works" }
		}}
	}
	ended := make(chan error, 2)
	begin := func(who string) context.CancelFunc {
		ctx, stop := context.WithCancel(ctx)
		a := a
		a.Run, a.Output = who, "out-"+who
		go func() {
			_, err := p.Execute(ctx, stops, a, hooks(who))
			ended <- err
		}()
		return stop
	}
	next := func(want string) {
		t.Helper()
		select {
		case got := <-said:
			if got != want {
				t.Errorf("%s; want %s", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("waited in vain for %q", want)
		}
	}
	stopFirst := begin("first")
	next("first waits")
	next("first works")
	stopSecond := begin("second")
	next("second waits")
	stopFirst()
	<-ended
	next("first works") // once more, at its end: does nothing
	next("second works")
	stopSecond()
	<-ended
}
