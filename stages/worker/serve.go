package worker

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio/shm"
)

// Func is stage code that runs in a child. It returns when its work is done or
// ctx ends, and keeps nothing of the task after that.
type Func func(ctx context.Context, task *ChildTask) error

// Child reports whether this process was started as a worker.
func Child() bool { return os.Getenv(childEnv) != "" }

// RunIfChild serves the stages and exits, if this process was started as a
// worker; otherwise it returns at once. Call it first thing in main, before
// flags are read.
func RunIfChild(stages map[string]Func) {
	if !Child() {
		return
	}
	if err := Serve(context.Background(), stages); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Serve speaks the worker protocol on descriptor 3 until the host says goodbye
// or is gone, or ctx ends. Stages run one at a time.
func Serve(ctx context.Context, stages map[string]Func) error {
	// Programs that a stage starts are not workers.
	if err := os.Unsetenv(childEnv); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	unix.CloseOnExec(socketFD)
	f := os.NewFile(socketFD, "worker-socket")
	c, err := newConn(f)
	_ = f.Close() // c has its own descriptor
	if err != nil {
		return err
	}
	defer c.close()
	defer context.AfterFunc(ctx, c.close)()
	s := &server{conn: c, stages: stages, views: map[string]*shm.View{}}
	defer s.end()
	err = s.loop(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// server is the child's side of the connection.
type server struct {
	conn   *conn
	stages map[string]Func

	mu    sync.Mutex
	views map[string]*shm.View
	task  *ChildTask // running; nil between jobs
	wait  sync.WaitGroup
}

var errGoodbye = errors.New("goodbye")

func (s *server) loop(ctx context.Context) error {
	pkt, err := s.conn.receive()
	if err != nil {
		return err
	}
	if pkt.kind != kindHello {
		closeAll(pkt.fds)
		return violation("message of kind %d, want hello", pkt.kind)
	}
	if _, err := decodeHello(pkt.payload); err != nil {
		return err
	}
	if err := s.conn.send(kindReady, 0, hello{uint32(os.Getpid())}.encode()); err != nil {
		return err
	}
	for {
		pkt, err := s.conn.receive()
		if err != nil {
			return err
		}
		if err := s.handle(ctx, pkt); errors.Is(err, errGoodbye) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (s *server) handle(ctx context.Context, pkt packet) error {
	switch pkt.kind {
	case kindPing:
		return s.conn.send(kindPong, 0, pkt.payload)
	case kindGoodbye:
		return errGoodbye
	case kindArena:
		return s.grant(pkt)
	case kindForget:
		if len(pkt.payload) != 16 {
			return violation("arena id of %d bytes", len(pkt.payload))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		id := hex.EncodeToString(pkt.payload)
		if v := s.views[id]; v != nil {
			v.Close()
			delete(s.views, id)
		}
		return nil
	case kindTask:
		return s.start(ctx, pkt)
	default: // of a job
	}
	s.mu.Lock()
	t := s.task
	s.mu.Unlock()
	if t == nil || t.job != pkt.job {
		return nil // crossed the job's end on its way; the host reclaims what it leased
	}
	switch pkt.kind {
	case kindBatch:
		m, err := decodeBatchLease(pkt.payload)
		if err != nil {
			return err
		}
		return t.arrived(m)
	case kindEnd:
		i, err := decodeU16(pkt.payload)
		if err != nil {
			return err
		}
		return t.ended(int(i))
	case kindAck:
		select {
		case <-t.window:
			return nil
		default:
			return violation("acknowledgement of no output")
		}
	case kindCancel:
		t.cancel(fmt.Errorf("cancelled by the host: %s", pkt.payload))
		return nil
	default:
		return violation("message of kind %d from the host", pkt.kind)
	}
}

func (s *server) grant(pkt packet) error {
	fd := pkt.fds[0]
	defer closeAll(pkt.fds)
	m, err := decodeArenaGrant(pkt.payload)
	if err != nil {
		return err
	}
	id := hex.EncodeToString(m.id[:])
	v, err := shm.OpenView(fd, id, m.size)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.views[id] != nil {
		v.Close()
		return violation("arena %s granted twice", id)
	}
	s.views[id] = v
	return nil
}

func (s *server) view(id string) *shm.View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.views[id]
}

func (s *server) start(ctx context.Context, pkt packet) error {
	var note taskNote
	if err := decodeJSON(pkt.payload, &note); err != nil {
		return err
	}
	if note.Credit < 1 || note.Credit > 256 {
		return violation("credit %d", note.Credit)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.task != nil {
		return violation("job %d while job %d runs", pkt.job, s.task.job)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	t := newTask(s, pkt.job, note, cancel)
	s.task = t
	s.wait.Go(func() {
		defer cancel(nil)
		f, known := s.stages[note.Stage]
		err := fmt.Errorf("this worker has no stage %q", note.Stage)
		if known {
			err = call(ctx, f, t)
		}
		s.finish(t, err, !known)
	})
	return nil
}

// call turns a panic of stage code into an error: the stack is what its author
// needs, and the worker can go on.
func call(ctx context.Context, f Func, t *ChildTask) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f(ctx, t)
}

// finish reports the job's end. Releases that wait go first, so that the host
// sees what the stage kept.
func (s *server) finish(t *ChildTask, err error, unknown bool) {
	t.flush()
	t.close()
	s.mu.Lock()
	s.task = nil
	s.mu.Unlock()
	note := doneNote{written: uint64(t.written.Bytes()), copied: t.copied.Load()}
	if err == nil {
		err = s.conn.send(kindDone, t.job, note.encode())
	} else {
		var p interface{ Permanent() bool }
		permanent := errors.As(err, &p) && p.Permanent()
		var b []byte
		b, err = json.Marshal(failedNote{
			Message: clipped(err.Error(), maxText), Unknown: unknown, Permanent: permanent, Written: note.written, Copied: note.copied,
		})
		if err == nil {
			err = s.conn.send(kindFailed, t.job, b)
		}
	}
	if err != nil {
		s.conn.close() // the host is gone; the loop ends
	}
}

// end waits for a stage that still runs, so that nothing reads memory that is
// being unmapped.
func (s *server) end() {
	s.mu.Lock()
	if s.task != nil {
		s.task.cancel(errors.New("the host is gone"))
	}
	s.mu.Unlock()
	s.wait.Wait()
	for _, v := range s.views {
		v.Close()
	}
}
