package worker

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
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
	c, err := handoff.NewConn(f, carries)
	_ = f.Close() // c has its own descriptor
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, c.Close)()
	s := &server{conn: c, stages: stages, views: map[string]*shm.View{}}
	defer s.end()
	err = s.loop(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	var refused *refusedError
	if err != nil && !errors.As(err, &refused) {
		lastWords(c, kindGaveUp, err)
	}
	return err
}

// refusedError is the host's word on why it closes the connection.
type refusedError struct{ reason string }

func (e *refusedError) Error() string { return "worker: the host closed the connection: " + e.reason }

// server is the child's side of the connection.
type server struct {
	conn   *handoff.Conn
	inbox  *handoff.Inbox
	stages map[string]Func

	own        outputArena
	modelBytes int64 // most that a model may have

	mu    sync.Mutex
	views map[string]*shm.View
	task  *ChildTask // running; nil between jobs
	wait  sync.WaitGroup
}

var errGoodbye = errors.New("goodbye")

func (s *server) loop(ctx context.Context) error {
	pkt, err := s.conn.Receive()
	if err != nil {
		return err
	}
	if pkt.Kind != kindHello {
		pkt.CloseFDs()
		return handoff.Violation("message of kind %d, want hello", pkt.Kind)
	}
	if err := checkJob(pkt); err != nil {
		return err
	}
	m, err := decodeHello(pkt.Payload)
	if err != nil {
		return err
	}
	s.modelBytes = int64(m.modelBytes)
	if m.flags&flagShared != 0 {
		s.own.limit = int64(m.arenaBytes)
	}
	if err := s.conn.Send(kindReady, 0, readyNote{uint32(os.Getpid())}.encode()); err != nil {
		return err
	}
	s.inbox = handoff.NewInbox(s.conn, 0, func(pkt handoff.Packet, err error) error {
		if err != nil {
			return err
		}
		return s.handle(ctx, pkt)
	})
	// A stage that waits for what the host sends receives it itself.
	if err := s.inbox.Keep(); !errors.Is(err, errGoodbye) {
		return err
	}
	return nil
}

func (s *server) handle(ctx context.Context, pkt handoff.Packet) error {
	if err := checkJob(pkt); err != nil {
		return err
	}
	switch pkt.Kind {
	case kindPing:
		return s.conn.Send(kindPong, 0, pkt.Payload)
	case kindGoodbye:
		return errGoodbye
	case kindArena:
		return s.grant(pkt)
	case kindForget:
		if len(pkt.Payload) != 16 {
			return handoff.Violation("arena id of %d bytes", len(pkt.Payload))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		id := hex.EncodeToString(pkt.Payload)
		if v := s.views[id]; v != nil {
			v.Close()
			delete(s.views, id)
		}
		return nil
	case kindReturned:
		tokens, err := decodeTokens(nil, pkt.Payload)
		if err != nil {
			return err
		}
		return s.own.returned(tokens)
	case kindRefused:
		reason, err := decodeReason(pkt.Payload)
		if err != nil {
			return err
		}
		return &refusedError{reason}
	case kindTask:
		return s.start(ctx, pkt)
	default: // of a job
	}
	s.mu.Lock()
	t := s.task
	s.mu.Unlock()
	if t == nil || t.job != pkt.Job {
		return nil // crossed the job's end on its way; the host reclaims what it leased
	}
	switch pkt.Kind {
	case kindBatch:
		m, err := decodeBatchLease(pkt.Payload)
		if err != nil {
			return err
		}
		return t.arrived(m)
	case kindEnd:
		i, err := decodeU16(pkt.Payload)
		if err != nil {
			return err
		}
		return t.ended(int(i))
	case kindAck:
		select {
		case <-t.window:
			return nil
		default:
			return handoff.Violation("acknowledgement of no output")
		}
	case kindSaved:
		var m SavedModel
		if err := decodeJSON(pkt.Payload, &m); err != nil {
			return err
		}
		return t.savedModel(m)
	case kindCancel:
		reason, err := decodeReason(pkt.Payload)
		if err != nil {
			return err
		}
		t.cancel(fmt.Errorf("cancelled by the host: %s", reason))
		return nil
	default:
		return handoff.Violation("message of kind %d from the host", pkt.Kind)
	}
}

func (s *server) grant(pkt handoff.Packet) error {
	fd := pkt.FDs[0]
	defer pkt.CloseFDs()
	m, err := handoff.DecodeArenaGrant(pkt.Payload)
	if err != nil {
		return err
	}
	id := hex.EncodeToString(m.ID[:])
	v, err := shm.OpenView(fd, id, m.Size)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.views[id] != nil {
		v.Close()
		return handoff.Violation("arena %s granted twice", id)
	}
	s.views[id] = v
	return nil
}

func (s *server) view(id string) *shm.View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.views[id]
}

func (s *server) start(ctx context.Context, pkt handoff.Packet) error {
	var note taskNote
	if err := decodeJSON(pkt.Payload, &note); err != nil {
		return err
	}
	if note.Credit < 1 || note.Credit > 256 {
		return handoff.Violation("credit %d", note.Credit)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.task != nil {
		return handoff.Violation("job %d while job %d runs", pkt.Job, s.task.job)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if note.Deadline != nil {
		ctx = deadline{ctx, time.Now().Add(time.Duration(min(*note.Deadline, maxDeadlineMillis)) * time.Millisecond)}
	}
	t := newTask(s, pkt.Job, note, cancel)
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

// deadline tells of the time at which the host will cancel a job. The host's clock
// decides, so that both sides say the same of how the job ended.
type deadline struct {
	context.Context
	at time.Time
}

func (d deadline) Deadline() (time.Time, bool) { return d.at, true }

// maxDeadlineMillis is 100 years: what is further away does not fit a Duration.
const maxDeadlineMillis = 100 * 366 * 24 * 3600 * 1000

// call turns a panic of stage code into an error: the stack is what its author
// needs, and the worker can go on.
func call(ctx context.Context, f Func, t *ChildTask) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
	}()
	return f(ctx, t)
}

type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string     { return fmt.Sprintf("panic: %v", e.value) }
func (e *panicError) Traceback() string { return string(e.stack) }

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
		err = s.conn.Send(kindDone, t.job, note.encode())
	} else {
		var p interface{ Permanent() bool }
		permanent := errors.As(err, &p) && p.Permanent()
		failed := failedNote{Message: err.Error(), Unknown: unknown, Permanent: permanent, Written: note.written, Copied: note.copied}
		var traced interface{ Traceback() string }
		if errors.As(err, &traced) {
			failed.Traceback = traced.Traceback()
		}
		var b []byte
		b, err = failed.encode()
		if err == nil {
			err = s.conn.Send(kindFailed, t.job, b)
		}
	}
	if err != nil {
		s.conn.Close() // the host is gone; the loop ends
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
	s.own.close()
}
