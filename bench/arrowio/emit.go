package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/stages/worker"
)

// From the child to its host. A child can't see when the host has read a batch, so
// this is timed one way: the child notes the time of the system-wide monotonic
// clock when the batch is ready, the host when it has touched it. For each batch
// the host asks first, so that none waits for another.

// now is the system-wide monotonic clock, in nanoseconds.
func now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0 // Linux has that clock
	}
	return t.Nano()
}

// emitParams say what a child emits.
type emitParams struct {
	Size int64 `json:"size"`
	Loan bool  `json:"loan"` // built in place (Python)
}

// stampsPerMessage bounds the messages in which a child reports its times.
const stampsPerMessage = 500

// emit is the stage, in Go.
func emit(ctx context.Context, t *worker.ChildTask) error {
	var p emitParams
	if err := json.Unmarshal(t.Params, &p); err != nil {
		return err
	}
	batch := newTable(p.Size).build(memory.DefaultAllocator)
	defer batch.Release()
	stamps := map[string]float64{}
	for b, err := range t.Batches(ctx, "asks", 0, ^uint64(0)) {
		if err != nil {
			return err
		}
		stamps[strconv.FormatUint(b.Sequence, 10)] = float64(now())
		if err := t.Write(ctx, b.Sequence, batch); err != nil {
			return err
		}
		if len(stamps) == stampsPerMessage {
			if err := t.Metrics(stamps); err != nil {
				return err
			}
			clear(stamps)
		}
	}
	return t.Metrics(stamps)
}

// emitting has a child emit batches.
type emitting struct {
	e      *env
	python bool
	mode   worker.OutputMode
	loan   bool
}

func startEmit(python bool, mode worker.OutputMode, loan bool) func(context.Context, *env) (handover, error) {
	return func(_ context.Context, e *env) (handover, error) { return &emitting{e, python, mode, loan}, nil }
}

func (*emitting) close() error { return nil }

// measure starts a host for each size, since a child makes its arena as large as
// the host allows, at once.
func (m *emitting) measure(ctx context.Context, o order) (took []time.Duration, err error) {
	cfg := m.e.workerConfig(m.python)
	cfg.Outputs = m.mode
	if m.mode == worker.Shared {
		cfg.ChildBytes = 3*o.Size + 1<<20 // some on their way back while the next is made
	}
	host, err := worker.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		defer cancel()
		err = errors.Join(err, host.Close(ctx))
	}()
	asks, err := newSource(1<<10, copied, "bench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, asks.close()) }()

	p := pacer{o: o}
	var read []int64 // when
	begun := map[uint64]int64{}
	fresh := map[int]bool{} // in a segment of their own
	got := make(chan struct{}, 1)
	feed := func(ctx context.Context, _, _ uint64) iter.Seq2[worker.InputBatch, error] {
		return func(yield func(worker.InputBatch, error) bool) {
			for n, more := uint64(0), true; more; n++ {
				l, at, err := asks.lease(ctx)
				if !yield(worker.InputBatch{Sequence: n, Lease: l}, err) || err != nil {
					return
				}
				select {
				case <-got:
				case <-ctx.Done():
					return
				}
				more = p.add(time.Since(at)) // of use for the pace alone
			}
		}
	}
	params, err := json.Marshal(emitParams{Size: o.Size, Loan: m.loan})
	if err != nil {
		return nil, err
	}
	err = host.Do(ctx, worker.Job{
		Stage: "emit", Params: params, Inputs: []worker.Input{{Name: "asks", Batches: feed}},
		OnBatch: func(_ context.Context, out *worker.Output) error {
			touch(out.Batch)
			read = append(read, now())
			if out.Sequence != uint64(len(read)-1) {
				return fmt.Errorf("batch %d is the %dth", out.Sequence, len(read))
			}
			if !out.Arena.Shared() {
				fresh[len(read)-1] = true
			}
			got <- struct{}{}
			return nil
		},
		OnMetrics: func(stamps map[string]float64) error {
			for s, at := range stamps {
				n, err := strconv.ParseUint(s, 10, 32)
				if err != nil {
					return err
				}
				begun[n] = int64(at)
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	for n := range read {
		if n < o.Warm || m.mode == worker.Shared && fresh[n] {
			continue // the child's arena was full: what it got back was still on its way
		}
		at, ok := begun[uint64(n)]
		if !ok || at > read[n] {
			return nil, fmt.Errorf("batch %d was made at %d and read at %d", n, at, read[n])
		}
		took = append(took, time.Duration(read[n]-at))
	}
	if 2*len(took) < len(p.took) {
		return nil, fmt.Errorf("%d of %d batches did not go through the child's arena", len(fresh), len(read))
	}
	return took, nil
}

// streamIn is the same over a Unix socket: the child is asked by a line, and
// answers with its time and an Arrow IPC stream.
type streamIn struct{ *process }

func startStreamIn(child func(e *env, ctx context.Context) (*process, error)) func(context.Context, *env) (handover, error) {
	return started(child, func(p *process) handover { return streamIn{p} })
}

func (s streamIn) measure(ctx context.Context, o order) ([]time.Duration, error) {
	var r *ipc.Reader
	defer func() {
		if r != nil {
			r.Release()
		}
	}()
	var before int64
	ask := func() (took time.Duration, err error) {
		if _, err := fmt.Fprintln(s.conn, o.Size); err != nil {
			return 0, err
		}
		if r == nil {
			if r, err = ipc.NewReader(s.lines); err != nil {
				return 0, err
			}
		}
		if !r.Next() {
			return 0, fmt.Errorf("no batch: %w", r.Err())
		}
		touch(r.RecordBatch())
		at := now()
		stamp, err := readSum(s.lines)
		before = int64(stamp)
		return time.Duration(at - before), err
	}
	took, err := o.repeat(ctx, ask)
	if err != nil {
		return nil, s.why(err)
	}
	if _, err := fmt.Fprintln(s.conn, 0); err != nil { // ends the stream
		return nil, err
	}
	if r.Next() {
		return nil, errors.New("a batch nobody asked for")
	}
	return took, s.why(r.Err())
}

// emitStreams is the child. The time follows its batch, which is out by then.
func emitStreams(c *net.UnixConn) error {
	if _, err := fmt.Fprintln(c, "ready"); err != nil {
		return err
	}
	in, out := newLines(c), bufio.NewWriterSize(c, streamBuffer)
	var (
		batch arrow.RecordBatch
		w     *ipc.Writer
	)
	for {
		line, err := in()
		if err != nil {
			return ended(err)
		}
		size, err := strconv.ParseInt(line, 10, 64)
		if err != nil {
			return err
		}
		if size == 0 {
			batch.Release()
			batch = nil
			if err := errors.Join(w.Close(), out.Flush()); err != nil {
				return err
			}
			continue
		}
		if batch == nil {
			batch, w = newTable(size).build(memory.DefaultAllocator), ipc.NewWriter(out, ipc.WithSchema(newSchema()))
		}
		at := now()
		if err := errors.Join(w.Write(batch), out.Flush(), writeSum(c, uint64(at))); err != nil {
			return err
		}
	}
}

// newLines reads lines.
func newLines(f interface{ Read([]byte) (int, error) }) func() (string, error) {
	r := bufio.NewReader(f)
	return func() (string, error) {
		s, err := r.ReadString('\n')
		return strings.TrimSpace(s), err
	}
}

// building times making a batch of values: on the Go heap, or in an arena and
// published there.
type building struct{ arena bool }

func startBuilding(arena bool) func(context.Context, *env) (handover, error) {
	return func(context.Context, *env) (handover, error) { return building{arena}, nil }
}

func (building) close() error { return nil }

func (b building) measure(ctx context.Context, o order) (took []time.Duration, err error) {
	if !b.arena {
		t := newTable(o.Size)
		return o.repeat(ctx, func() (time.Duration, error) {
			begun := time.Now()
			t.build(memory.DefaultAllocator).Release()
			return time.Since(begun), nil
		})
	}
	s, err := newSource(o.Size, builtIn, "bench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return o.repeat(ctx, func() (time.Duration, error) {
		h, begun, err := s.next(ctx)
		took := time.Since(begun)
		if err != nil {
			return 0, err
		}
		return took, s.arena.Drop(h)
	})
}
