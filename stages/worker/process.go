package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// process is one child: its process and its socket. It is dead when the channel
// dead is closed, with err set before.
type process struct {
	cfg     *Config
	cmd     *exec.Cmd
	conn    *handoff.Conn
	inbox   *handoff.Inbox
	output  *tail
	decoder arrowio.Decoder     // of outputs, each of which may come in an arena of its own
	in      chan handoff.Packet // to the running job
	taken   chan struct{}       // the job is done with the packet just received
	exited  chan struct{}       // process reaped, state set
	state   *os.ProcessState
	dead    chan struct{}
	once    sync.Once
	err     error // why

	running atomic.Pointer[run] // the job, while the child may release what it is leased
	closing bool                // the child has closed its end; of who receives
	reapMu  sync.Mutex
	reaped  bool

	granted map[string]bool // arenas that the child knows
	grantMu sync.Mutex
	peers   *peers
}

// startProcess starts the child and waits for it to be ready, or for
// cfg.StartTimeout.
func startProcess(ctx context.Context, cfg *Config) (*process, error) {
	ours, theirs, err := handoff.Pair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }() // the child has its own
	c, err := handoff.NewConn(ours, carries)
	_ = ours.Close() // c has its own descriptor
	if err != nil {
		return nil, err
	}
	c.SendTimeout = cfg.HeartbeatTimeout
	p := &process{
		cfg: cfg, conn: c, output: &tail{limit: cfg.OutputBytes},
		in: make(chan handoff.Packet), taken: make(chan struct{}), exited: make(chan struct{}), dead: make(chan struct{}),
		granted: map[string]bool{}, peers: newPeers(cfg.grantable()),
	}
	// No context: the child outlives the call that starts it, and ends by kill or
	// stop.
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), cfg.Command[0], cfg.Command[1:]...)
	p.cmd.Dir = cfg.Dir
	p.cmd.Env = environment(cfg)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.ExtraFiles = []*os.File{theirs} // becomes socketFD
	p.cmd.WaitDelay = time.Second         // for grandchildren that keep the output open
	p.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	started := make(chan error, 1)
	go func() {
		// The kernel sends the death signal when the thread that forked ends, so
		// this thread stays until the child is reaped.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := sliced(p.cmd.Start)
		started <- err
		if err == nil {
			p.reap()
		}
		close(p.exited)
	}()
	if err := <-started; err != nil {
		c.Close()
		return nil, fmt.Errorf("worker: start %s: %w", cfg.Command[0], err)
	}
	_ = theirs.Close() // so that the socket ends when the child does
	err = p.limit()
	if err == nil {
		err = p.handshake(ctx)
	}
	if err != nil {
		p.kill(err)
		<-p.exited
		return nil, p.died("", fmt.Errorf("start: %w", err))
	}
	p.inbox = handoff.NewInbox(c, cfg.HeartbeatTimeout, p.received)
	go func() { _ = p.inbox.Keep() }() // why it ended is in err
	go p.beat()
	go p.tell()
	return p, nil
}

// limit bounds the child's private memory. The child does nothing before it is
// told hello, so what it has by now is its program.
func (p *process) limit() error {
	if p.cfg.MemoryBytes == 0 {
		return nil
	}
	most := unix.Rlimit{Cur: uint64(p.cfg.MemoryBytes), Max: uint64(p.cfg.MemoryBytes)}
	err := unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_DATA, &most, nil)
	switch {
	case errors.Is(err, unix.ESRCH):
		return errEnded
	case err != nil:
		return fmt.Errorf("limit its memory to %d bytes: %w", p.cfg.MemoryBytes, err)
	}
	return nil
}

func environment(cfg *Config) []string {
	var env []string
	for _, name := range cfg.Env {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	names := make([]string, 0, len(cfg.Set))
	for name := range cfg.Set {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		env = append(env, name+"="+cfg.Set[name])
	}
	return append(env, childEnv+"=1")
}

var errEnded = errors.New("it ended before it was ready")

func (p *process) handshake(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.cfg.StartTimeout, fmt.Errorf("not ready after %v", p.cfg.StartTimeout))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { p.conn.SetReceiveDeadline(time.Unix(1, 0)) })
	defer stop()
	note := hello{
		heartbeatMillis: uint32(p.cfg.HeartbeatTimeout.Milliseconds()), arenaBytes: uint64(p.cfg.grantable()), modelBytes: uint64(p.cfg.ModelBytes),
	}
	if note.arenaBytes > 0 {
		note.flags = flagShared
	}
	if err := p.conn.Send(kindHello, 0, note.encode()); hungUp(err) {
		return errEnded
	} else if err != nil {
		return err
	}
	pkt, err := p.conn.Receive()
	if err == nil {
		err = checkJob(pkt)
	}
	switch {
	case ctx.Err() != nil:
		pkt.CloseFDs()
		return context.Cause(ctx)
	case errors.Is(err, io.EOF), hungUp(err):
		return errEnded
	case err != nil:
		return err
	case pkt.Kind == kindGaveUp:
		return gaveUp(pkt)
	case pkt.Kind != kindReady:
		pkt.CloseFDs()
		return p.sayWhy(handoff.Violation("message of kind %d, want ready", pkt.Kind))
	}
	_, err = decodeReady(pkt.Payload)
	return p.sayWhy(err)
}

// gaveUp reads the child's own word on why it closes the connection.
func gaveUp(pkt handoff.Packet) error {
	reason, err := decodeReason(pkt.Payload)
	if err != nil {
		return err
	}
	return &GaveUpError{Reason: reason}
}

func hungUp(err error) bool { return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) }

// errLost means: the child has closed its end. What it said before is still being
// read, and will be the reason.
var errLost = errors.New("the child has closed its socket")

// lostWait is how long the reader has to find out why.
const lostWait = time.Second

// send sends a message. On an error the child is dead, or will be soon.
func (p *process) send(k handoff.Kind, job uint32, payload []byte, fds ...int) error {
	err := p.conn.Send(k, job, payload, fds...)
	switch {
	case err == nil:
		return nil
	case hungUp(err):
		time.AfterFunc(lostWait, func() { p.kill(errLost) })
		return errLost
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("%w: it read nothing for %v: %w", ErrStalled, p.conn.SendTimeout, err)
	}
	p.kill(err)
	return err
}

// sayWhy tells the child of a violation before the connection ends, if it reads.
func (p *process) sayWhy(err error) error {
	if errors.Is(err, ErrProtocol) {
		lastWords(p.conn, kindRefused, err)
	}
	return err
}

// received deals with one message from the child, or with why none came. What is
// for the running job is handed to it and done with before the next is received.
func (p *process) received(pkt handoff.Packet, err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("%w: silent for %v", ErrStalled, p.cfg.HeartbeatTimeout)
	case errors.Is(err, io.EOF) && !p.closing:
		// A child that ends with messages unread resets the connection. That is told
		// once, and before what it said last.
		p.closing = true
		return nil
	case errors.Is(err, io.EOF):
		err = errLost
	}
	if err == nil {
		err = checkJob(pkt)
	}
	if err == nil {
		switch pkt.Kind {
		case kindPong:
			return nil
		case kindGaveUp:
			err = gaveUp(pkt)
		case kindGrant: // also while no job runs
			if err = p.peers.add(pkt); err == nil {
				return nil
			}
		case kindRelease: // here, since each hand-over waits for it
			if r := p.running.Load(); r != nil && r.id == pkt.Job {
				if err = r.release(pkt.Payload); err == nil {
					return nil
				}
			}
		}
	}
	if err != nil {
		p.kill(p.sayWhy(err))
		return err
	}
	select {
	case p.in <- pkt:
		select {
		case <-p.taken:
			return nil
		case <-p.dead:
		}
	case <-p.dead:
		pkt.CloseFDs()
	}
	return errLost
}

// beat asks for a sign of life while one is waited for; whatever the child sends
// is one. A stopped child is killed after three questions, a child that a slow
// job keeps waiting is asked none, so its socket never fills with them.
func (p *process) beat() {
	t := time.NewTicker(p.cfg.HeartbeatTimeout / 3)
	defer t.Stop()
	for n := uint64(1); ; n++ {
		select {
		case <-t.C:
			if !p.inbox.Listening() {
				continue
			}
			if p.send(kindPing, 0, encodeU64(n)) != nil {
				return
			}
		case <-p.dead:
			return
		}
	}
}

// kill ends the child and its process group and notes the first reason.
func (p *process) kill(why error) {
	p.once.Do(func() {
		p.err = why
		p.reapMu.Lock()
		if !p.reaped {
			p.killGroup()
		}
		p.reapMu.Unlock()
		p.conn.Close()
		close(p.dead)
		p.peers.retire()
	})
}

func (p *process) isDead() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

// reap waits for the child's end. What is left of its group goes with it, while
// the unreaped child still keeps the group's number from being reused.
func (p *process) reap() {
	for {
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.reapMu.Lock()
	p.killGroup()
	p.reaped = true
	p.reapMu.Unlock()
	_ = p.cmd.Wait() // how it ended is in ProcessState
	p.state = p.cmd.ProcessState
}

func (p *process) killGroup() {
	_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL) // ESRCH: it is empty already
}

// stop asks the child to end, and kills it when ctx ends first. The group is
// killed in any case: grandchildren do not outlive the worker.
func (p *process) stop(ctx context.Context) {
	if p.conn.Send(kindGoodbye, 0, nil) == nil {
		select {
		case <-p.exited:
		case <-p.dead:
		case <-ctx.Done():
		}
	}
	p.kill(ErrClosed)
	<-p.exited
}

// died builds the error of a job, or start, that the child's end interrupted.
func (p *process) died(stage string, cause error) error {
	<-p.exited
	e := &DiedError{Stage: stage, Cause: cause, Output: p.output.String()}
	if p.state != nil {
		e.Exit = p.state.String()
		e.MemoryLimit = p.cfg.MemoryBytes
		if u, ok := p.state.SysUsage().(*syscall.Rusage); ok {
			e.MemoryPeak = u.Maxrss << 10
		}
	}
	return e
}

// tail keeps the last bytes written to it.
type tail struct {
	mu    sync.Mutex
	limit int
	b     []byte
	lost  bool
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.b = append(t.b, b...); len(t.b) > 2*t.limit {
		t.b = append(t.b[:0], t.b[len(t.b)-t.limit:]...)
		t.lost = true
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.b[max(0, len(t.b)-t.limit):]
	if t.lost || len(b) < len(t.b) {
		return "..." + string(b)
	}
	return string(b)
}
