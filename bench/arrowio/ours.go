package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
	"github.com/stokehold/stokehold/stages/worker"
)

// filling says where a batch is when the clock starts.
type filling int

const (
	inPlace filling = iota // in the arena since before, not published yet
	fresh                  // just built in the arena, so not in the consumer's caches; not published yet
	copied                 // on the Go heap
	builtIn                // nowhere: the arena is to be reserved and the batch built there
)

// source makes one batch after another in an arena that has room for one.
type source struct {
	arena *shm.Arena
	fill  filling
	room  int64 // bytes of a build that takes the whole arena
	table table
	heap  arrow.RecordBatch
	frame []byte
	there bool   // the frame is in the arena's memory
	sum   uint64 // what touching it gives
	owner string
}

func newSource(size int64, fill filling, owner string) (*source, error) {
	head, err := arrowio.HeadBytes(newSchema(), size)
	if err != nil {
		return nil, err
	}
	// Builders make validity bitmaps, which take a 64th and are left out in the end.
	arena, err := shm.New(shm.Config{Bytes: head + size + size/32 + 16<<10, Name: "stokehold-bench", Prefault: true})
	if err != nil {
		return nil, err
	}
	s := &source{arena: arena, fill: fill, table: newTable(size), owner: owner}
	s.room = arena.Size() - head - 2*shm.Alignment
	plain := s.table.build(memory.DefaultAllocator)
	s.sum = touch(plain)
	switch fill {
	case copied:
		s.heap, s.table.values = plain, nil
	case inPlace:
		s.frame, err = arrowio.Encode(plain, nil)
		s.table.values = nil
		plain.Release()
	default:
		plain.Release()
	}
	return s, err
}

func (s *source) close() error {
	if s.heap != nil {
		s.heap.Release()
	}
	return s.arena.Close()
}

// idle waits until the arena's only slot is free: the consumer has given the
// batch before back, and nobody holds it.
func (s *source) idle(ctx context.Context) error {
	l, err := s.arena.Loan(ctx, s.arena.Size())
	if err != nil {
		return err
	}
	l.Cancel()
	return nil
}

// next publishes a batch and returns when the clock started.
func (s *source) next(ctx context.Context) (shm.Handle, time.Time, error) {
	begun := time.Now()
	switch s.fill {
	case copied:
		h, err := s.arena.Put(ctx, s.heap, nil)
		return h, begun, err
	case inPlace:
		l, err := s.arena.Loan(ctx, int64(len(s.frame)))
		if err != nil {
			return shm.Handle{}, begun, err
		}
		if !s.there { // the arena's only slot, so the same memory from now on
			copy(l.Bytes(), s.frame)
			s.there = true
		}
		begun = time.Now()
		return l.Publish(), begun, nil
	case fresh, builtIn:
	}
	b, err := s.arena.Build(ctx, s.table.schema, s.room)
	if err != nil {
		return shm.Handle{}, begun, err
	}
	batch := s.table.build(b.Allocator())
	defer batch.Release()
	if s.fill == fresh {
		begun = time.Now()
	}
	h, moved, err := b.Publish(ctx, batch, nil)
	if err == nil && moved != 0 {
		err = fmt.Errorf("%d bytes were copied in publishing a batch built in place", moved)
	}
	return h, begun, err
}

// lease publishes a batch and passes on the only hold on it.
func (s *source) lease(ctx context.Context) (shm.Lease, time.Time, error) {
	h, begun, err := s.next(ctx)
	if err != nil {
		return shm.Lease{}, begun, err
	}
	l, err := s.arena.Hold(h, s.owner)
	if err != nil {
		return shm.Lease{}, begun, err
	}
	if err := s.arena.Drop(h); err != nil {
		l.Release()
		return shm.Lease{}, begun, err
	}
	return l, begun, nil
}

// working is a worker host that leases batches to a stage of its child, by the
// worker protocol. The clock stops when the child's release has freed the memory.
type working struct {
	host  *worker.Host
	stage string
	fill  filling
}

func startWorker(python bool, stage string, fill filling) func(context.Context, *env) (handover, error) {
	return func(ctx context.Context, e *env) (handover, error) {
		host, err := worker.Start(ctx, e.workerConfig(python))
		if err != nil {
			return nil, err
		}
		return &working{host, stage, fill}, nil
	}
}

// workerConfig is the default one, but for what to run and time to start it.
func (e *env) workerConfig(python bool) worker.Config {
	cfg := worker.Config{StartTimeout: startLimit}
	if python {
		cfg.Command = []string{e.python, e.peer("stages.py")}
		cfg.Set = map[string]string{"PYTHONPATH": filepath.Join(e.root, "python/src"), "PYTHONDONTWRITEBYTECODE": "1"}
	}
	return cfg
}

func (w *working) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	return w.host.Close(ctx)
}

func (w *working) measure(ctx context.Context, o order) (took []time.Duration, err error) {
	s, err := newSource(o.Size, w.fill, "bench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	p := pacer{o: o}
	var handed, seen, sum float64
	feed := func(ctx context.Context, _, _ uint64) iter.Seq2[worker.InputBatch, error] {
		return func(yield func(worker.InputBatch, error) bool) {
			var begun time.Time
			more := true
			in := worker.InputBatch{
				// Asked for when the one before is back.
				Open: func(ctx context.Context) (l shm.Lease, err error) {
					handed++
					l, begun, err = s.lease(ctx)
					return l, err
				},
				Released: func() { more = p.add(time.Since(begun)) },
			}
			for ; more; in.Sequence++ {
				if !yield(in, nil) {
					return
				}
			}
		}
	}
	err = w.host.Do(ctx, worker.Job{
		Stage: w.stage, Inputs: []worker.Input{{Name: "batches", Batches: feed, Window: 1}},
		OnMetrics: func(m map[string]float64) error { seen, sum = m["batches"], m["sum"]; return nil },
	})
	if err == nil && seen != handed {
		err = fmt.Errorf("the stage saw %g of %g batches", seen, handed)
	}
	if err == nil && w.stage == "touch" {
		err = checkSum(uint64(sum), uint64(handed)*s.sum)
	}
	if n := w.host.Stats().CopiedBytes; err == nil && n != 0 {
		err = fmt.Errorf("%d bytes were copied in the hand-over", n)
	}
	return p.took, err
}

// goStages are what a Go child runs, as peers/stages.py does.
func goStages() map[string]worker.Func {
	consume := func(use func(arrow.RecordBatch) uint64) worker.Func {
		return func(ctx context.Context, t *worker.ChildTask) error {
			n, sum := 0, uint64(0)
			for b, err := range t.Batches(ctx, "batches", 0, ^uint64(0)) {
				if err != nil {
					return err
				}
				sum += use(b.RecordBatch)
				n++
			}
			return t.Metrics(map[string]float64{"batches": float64(n), "sum": float64(sum)})
		}
	}
	return map[string]worker.Func{
		"touch": consume(touch),
		"look":  consume(untouched),
		"emit":  emit,
	}
}

// goRoles are what children of this program do that are no workers.
func goRoles() map[string]func(*net.UnixConn) error {
	return map[string]func(*net.UnixConn) error{
		"stream": readStreams, "flight": serveFlight, "emit": emitStreams, "bare": readBare,
		"peer":      func(c *net.UnixConn) error { return leaseFromPeer(c, touch) },
		"peer-look": func(c *net.UnixConn) error { return leaseFromPeer(c, untouched) },
	}
}

func untouched(arrow.RecordBatch) uint64 { return 0 }

// peering leases batches to an independent process by the peers protocol. That a
// batch is there is said on a socket, as an event would, and the clock stops when
// the consumer has answered there: it gives leases back when that suits it.
type peering struct {
	*process
	server *handoff.Server
	shared *shm.Host
	fill   filling
	look   bool
}

func startPeers(role string, fill filling) func(context.Context, *env) (handover, error) {
	return func(ctx context.Context, e *env) (_ handover, err error) {
		dir := filepath.Join(e.dir, "peers")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		p := &peering{shared: &shm.Host{}, fill: fill, look: role == "peer-look"}
		if p.server, err = handoff.Serve(handoff.ServerConfig{Host: p.shared, Dir: dir}); err != nil {
			return nil, err
		}
		if p.process, err = e.child(ctx, role); err != nil {
			return nil, errors.Join(err, p.close())
		}
		if _, err := fmt.Fprintln(p.conn, p.server.Path()); err != nil {
			return nil, errors.Join(err, p.close())
		}
		if _, err := p.line(); err != nil {
			return nil, errors.Join(err, p.close())
		}
		return p, nil
	}
}

func (p *peering) close() error {
	var err error
	if p.process != nil {
		err = p.process.close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	return errors.Join(err, p.server.Close(ctx), p.shared.Close())
}

func (p *peering) measure(ctx context.Context, o order) (took []time.Duration, err error) {
	s, err := newSource(o.Size, p.fill, "bench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := p.shared.Add(s.arena); err != nil {
		return nil, err
	}
	line := make([]byte, 0, 128)
	return o.repeat(ctx, func() (time.Duration, error) {
		h, begun, err := s.next(ctx)
		if err != nil {
			return 0, err
		}
		line = append(append(line[:0], h.String()...), '\n')
		if _, err := p.conn.Write(line); err != nil {
			return 0, err
		}
		got, err := readSum(p.lines)
		took := time.Since(begun)
		if err != nil {
			return 0, p.why(err)
		}
		if !p.look {
			err = checkSum(got, s.sum)
		}
		return took, errors.Join(err, s.arena.Drop(h), s.idle(ctx))
	})
}

// leaseFromPeer is the consumer.
func leaseFromPeer(c *net.UnixConn, use func(arrow.RecordBatch) uint64) error {
	ctx := context.Background()
	in := newLines(c)
	path, err := in()
	if err != nil {
		return err
	}
	client, err := handoff.Dial(ctx, path, handoff.DialConfig{})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }() // the process ends
	if _, err := fmt.Fprintln(c, "ready"); err != nil {
		return err
	}
	for {
		uri, err := in()
		if err != nil {
			return ended(err)
		}
		h, err := arrowio.ParseSharedURI(strings.TrimSpace(uri))
		if err != nil {
			return err
		}
		l, err := client.Lease(ctx, h)
		if err != nil {
			return err
		}
		batch, err := l.Batch()
		if err != nil {
			return err
		}
		sum := use(batch)
		batch.Release()
		if err := writeSum(c, sum); err != nil {
			return err
		}
	}
}
