package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/stages/worker"
)

const (
	childEnv   = "STOKEHOLD_BENCH_CHILD"
	controlEnv = "STOKEHOLD_BENCH_CONTROL"
	childFD    = 3
	startLimit = 60 * time.Second // Ray takes its time
	stopLimit  = 10 * time.Second
)

// runIfChild does what a child of this program is for, and exits, in a process
// that is one.
func runIfChild() {
	worker.RunIfChild(goStages())
	role := os.Getenv(childEnv)
	if role == "" {
		return
	}
	err := fmt.Errorf("no such role: %q", role)
	if f := goRoles()[role]; f != nil {
		f0 := os.NewFile(childFD, "bench-socket")
		var c net.Conn
		if c, err = net.FileConn(f0); err == nil {
			_ = f0.Close() // c has its own descriptor
			err = f(c.(*net.UnixConn))
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// process is a child and the other end of its descriptor 3, or of its control
// socket.
type process struct {
	cmd    *exec.Cmd
	conn   *net.UnixConn
	lines  *bufio.Reader
	output *tail
	exited chan struct{}
	ready  map[string]string
}

// tail keeps the end of what a child printed.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailBytes = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-tailBytes):]
	return len(p), nil
}

func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(t.b)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// spawn starts a child in a process group of its own.
func (e *env) spawn(ctx context.Context, extra *os.File, vars []string, command ...string) (*process, error) {
	p := &process{output: &tail{}, exited: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, command[0], command[1:]...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Cancel = func() error { return syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }
	p.cmd.WaitDelay = time.Second // for grandchildren that have its output open
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.Env = append(os.Environ(), append(vars, "TMPDIR="+e.dir, "PYTHONDONTWRITEBYTECODE=1")...)
	p.cmd.Dir = e.dir
	if extra != nil {
		p.cmd.ExtraFiles = []*os.File{extra}
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // how it ended shows in what could not be read from it
		close(p.exited)
	}()
	return p, nil
}

// child starts this program in a role, with a socket between them.
func (e *env) child(ctx context.Context, role string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return e.paired(ctx, []string{childEnv + "=" + role}, self)
}

// script starts a script of peers/ with a socket as its descriptor 3.
func (e *env) script(ctx context.Context, name string, args ...string) (*process, error) {
	return e.paired(ctx, nil, append([]string{e.python, e.peer(name)}, args...)...)
}

func (e *env) peer(name string) string { return filepath.Join(e.root, "bench/arrowio/peers", name) }

func (e *env) paired(ctx context.Context, vars []string, command ...string) (*process, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "bench-socket"), os.NewFile(uintptr(fds[1]), "bench-socket")
	// Both are duplicated where they are used.
	defer func() { _, _ = ours.Close(), theirs.Close() }()
	c, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	p, err := e.spawn(ctx, theirs, vars, command...)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	p.use(c.(*net.UnixConn))
	return p, nil
}

func (p *process) use(c *net.UnixConn) {
	p.conn, p.lines = c, bufio.NewReaderSize(c, 64<<10)
}

// line reads what the child says when it is ready.
func (p *process) line() (string, error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(startLimit)) // fails on closed connections alone, as the read then does
	s, err := p.lines.ReadString('\n')
	_ = p.conn.SetReadDeadline(time.Time{})
	return strings.TrimSpace(s), p.why(err)
}

// hurry ends reading and writing at a time.
func (p *process) hurry(at time.Time) { _ = p.conn.SetDeadline(at) }

// why adds what the child printed to an error that may be its end.
func (p *process) why(err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-p.exited:
	case <-time.After(time.Second):
	}
	if s := p.output.last(); s != "" {
		return fmt.Errorf("%w: %s", err, s)
	}
	return err
}

// close lets the child end, and kills it and its group if it does not.
func (p *process) close() error {
	if p.conn != nil {
		_ = p.conn.Close()
	}
	var err error
	select {
	case <-p.exited:
	case <-time.After(stopLimit):
		err = fmt.Errorf("%s did not end within %v of its socket and was killed", filepath.Base(p.cmd.Path), stopLimit)
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // what it left behind, if anything
	<-p.exited
	return err
}

// scripted is a case that a script measures by itself, since there is no Go side.
type scripted struct{ *process }

// orders starts a script that is told what to measure. See peers/common.py.
func (e *env) orders(ctx context.Context, name string, args ...string) (_ handover, err error) {
	path := filepath.Join(e.dir, "control")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }() // one connection is all
	p, err := e.spawn(ctx, nil, []string{controlEnv + "=" + path}, append([]string{e.python, e.peer(name)}, args...)...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	over := make(chan struct{})
	defer close(over)
	go func() { // ends the wait when the script does
		select {
		case <-p.exited:
			_ = l.SetDeadline(time.Now())
		case <-over:
		}
	}()
	if err := l.SetDeadline(time.Now().Add(startLimit)); err != nil {
		return nil, err
	}
	c, err := l.AcceptUnix()
	if err != nil {
		if s := p.output.last(); s != "" {
			return nil, errors.New(s)
		}
		return nil, err
	}
	p.use(c)
	line, err := p.line()
	if err != nil {
		return nil, err
	}
	var hello struct{ Ready map[string]string }
	if err := json.Unmarshal([]byte(line), &hello); err != nil {
		return nil, fmt.Errorf("%q: %w", line, err)
	}
	p.ready = hello.Ready
	return scripted{p}, nil
}

func (s scripted) versions() map[string]string { return s.ready }

func (s scripted) measure(_ context.Context, o order) ([]time.Duration, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	if _, err := s.conn.Write(append(b, '\n')); err != nil {
		return nil, s.why(err)
	}
	line, err := s.lines.ReadBytes('\n')
	if err != nil {
		return nil, s.why(err)
	}
	var answer struct {
		Us    []float64
		Error string
	}
	if err := json.Unmarshal(bytes.TrimSpace(line), &answer); err != nil {
		return nil, err
	}
	if answer.Error != "" {
		first, _, _ := strings.Cut(answer.Error, "\n")
		return nil, errors.New(first)
	}
	took := make([]time.Duration, len(answer.Us))
	for i, us := range answer.Us {
		took[i] = time.Duration(us * 1e3)
	}
	return took, nil
}
