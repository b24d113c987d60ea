package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/stages/worker"
	"github.com/stokehold/stokehold/tiers"
)

// Names that the two processes agree on.
const (
	accelerate  = "accelerate" // the stage, and its input
	busyShare   = "busy"
	stallShare  = "stalled"
	queuedAhead = 4 // batches leased to the accelerator's process at once
)

// stages are what a child of this program is for.
func stages() map[string]worker.Func { return map[string]worker.Func{accelerate: consume} }

// consume is the accelerator's process: it takes the accelerator's time for each batch,
// and reports shares of the time, the first batches' left out. busy is the compute, as
// long as it ought to take; stalled is waiting for a batch. What is neither is by how
// much the thread that waits for the accelerator was late.
func consume(ctx context.Context, task *worker.ChildTask) error {
	runtime.LockOSThread() // for the accelerator, which would interrupt: no timer's slack for it
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return err
	}
	var begun, done time.Time
	var stalled time.Duration
	n := 0
	for b, err := range task.Batches(ctx, accelerate, 0, math.MaxUint64) {
		if err != nil {
			return err
		}
		if n++; n == settling+1 {
			begun = time.Now()
		} else if n > settling {
			stalled += time.Since(done)
		}
		if b.NumRows() != coldBytes/8 {
			return fmt.Errorf("a batch of %d rows", b.NumRows())
		}
		if err := wait(compute); err != nil {
			return err
		}
		done = time.Now()
	}
	if n != coldBatches {
		return fmt.Errorf("%d of %d batches", n, coldBatches)
	}
	wall := float64(done.Sub(begun))
	return task.Metrics(map[string]float64{
		busyShare:  float64((coldBatches-settling)*compute) / wall,
		stallShare: float64(stalled) / wall,
	})
}

// wait stands for the accelerator's work on a batch, or the link's: it leaves the
// processors alone, and a thread that waits for it in the kernel is woken. Go's own
// timers would be late by up to a millisecond on an idle machine, since the runtime
// waits for them in whole ones.
func wait(d time.Duration) error {
	left := unix.NsecToTimespec(int64(max(d, 0)))
	for {
		err := unix.Nanosleep(&left, &left)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// accelerator is a child process that has one, fed by the worker protocol as any stage
// that runs in another process is.
type accelerator struct{ host *worker.Host }

func startAccelerator(ctx context.Context) (*accelerator, error) {
	h, err := worker.Start(ctx, worker.Config{Credit: queuedAhead})
	if err != nil {
		return nil, err
	}
	return &accelerator{h}, nil
}

func (a *accelerator) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return a.host.Close(ctx)
}

// fed is how an accelerator was fed, in each round: shares of the time.
type fed struct{ busy, stalled []float64 }

func (f *fed) by(ctx context.Context, a *accelerator, in worker.Input) error {
	in.Name = accelerate
	return a.host.Do(ctx, worker.Job{
		Stage: accelerate, Inputs: []worker.Input{in},
		OnMetrics: func(m map[string]float64) error {
			f.busy = append(f.busy, m[busyShare])
			f.stalled = append(f.stalled, m[stallShare])
			return nil
		},
	})
}

// lend leases the batches of a loop to a worker, as they come.
func lend(batches iter.Seq2[*tiers.Batch, error]) func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
	return func(context.Context, uint64, uint64) iter.Seq2[worker.InputBatch, error] {
		return func(yield func(worker.InputBatch, error) bool) {
			for b, err := range batches {
				if err != nil {
					yield(worker.InputBatch{}, err)
					return
				}
				lease, err := hold(b)
				if !yield(worker.InputBatch{Sequence: b.Ref.Sequence, Lease: lease, BodyBytes: b.Ref.BodyBytes}, err) {
					return
				}
			}
		}
	}
}

// hold leases a batch beyond the loop body that it is lent to.
func hold(b *tiers.Batch) (shm.Lease, error) {
	return b.Lease.Arena().Hold(b.Lease.Handle(), "accelerator")
}
