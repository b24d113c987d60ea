package handoff_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"go.uber.org/goleak"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
	"github.com/stokehold/stokehold/internal/talk"
)

// The test program is its own owner, consumer and bystander; see child_test.go.
func TestMain(m *testing.M) {
	if role := os.Getenv("HANDOFF_TEST_ROLE"); role != "" {
		childMain(role)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// patience bounds every wait; the protocol promises 5 s for what is waited for.
const patience = 5 * time.Second

// eventually polls until ok, at most for patience.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	within(t, patience, what, ok)
}

func within(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// uniform is a batch of n equal numbers, so that a torn one shows.
func uniform(n int, value int64) arrow.RecordBatch {
	schema := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int64}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	col := b.Field(0).(*array.Int64Builder)
	col.Reserve(n)
	for range n {
		col.Append(value)
	}
	return b.NewRecordBatch()
}

// value returns what a uniform batch holds, or says that it is torn.
func value(rec arrow.RecordBatch) (int64, error) {
	xs := rec.Column(0).(*array.Int64).Int64Values()
	for i, x := range xs {
		if x != xs[0] {
			return 0, fmt.Errorf("torn batch: %d at 0, %d at %d", xs[0], x, i)
		}
	}
	return xs[0], nil
}

const rows = 4096

// put publishes a uniform batch.
func put(t testing.TB, a *shm.Arena, v int64) shm.Handle {
	t.Helper()
	rec := uniform(rows, v)
	defer rec.Release()
	h, err := a.Put(context.Background(), rec, nil)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// owner is a server of this process with an arena of 1 MiB.
type owner struct {
	*handoff.Server
	host  *shm.Host
	arena *shm.Arena
	dir   string
}

func serve(t testing.TB, change func(*handoff.ServerConfig)) *owner {
	t.Helper()
	o := &owner{host: &shm.Host{}, dir: filepath.Join(t.TempDir(), "run")}
	cfg := handoff.ServerConfig{Host: o.host, Dir: o.dir}
	if change != nil {
		change(&cfg)
	}
	var err error
	if o.arena, err = shm.New(shm.Config{Bytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := o.host.Add(o.arena); err != nil {
		t.Fatal(err)
	}
	if o.Server, err = handoff.Serve(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := o.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := o.host.Close(); err != nil {
			t.Error(err)
		}
		if st := o.host.Stats(); st.Arenas != 0 {
			t.Errorf("after the end: %+v", st)
		}
	})
	return o
}

func dial(t testing.TB, path string, cfg handoff.DialConfig) *handoff.Client {
	t.Helper()
	c, err := handoff.Dial(context.Background(), path, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		select {
		case <-c.Over():
		case <-time.After(patience):
			t.Error("the connection did not end: a lease is still held")
		}
	})
	return c
}

// raw is a hand-driven end of a connection.
type raw struct {
	*handoff.Conn
	u *net.UnixConn // of the same socket
}

func dialRaw(t testing.TB, path string) *raw {
	t.Helper()
	r, err := openRaw(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

func openRaw(path string) (*raw, error) {
	dir, err := os.Open(filepath.Dir(path)) // the path may be too long for an address
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	name := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	u, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: name, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	return wrapRaw(u)
}

func wrapRaw(u *net.UnixConn) (*raw, error) {
	f, err := u.File()
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	c, err := handoff.NewConn(f, handoff.PeerCarries)
	return &raw{c, u}, err
}

func (r *raw) close() {
	r.Close()
	_ = r.u.Close()
}

// write sends bytes as one packet.
func (r *raw) write(b []byte) error {
	_, err := r.u.Write(b)
	return err
}

// await receives until a message of the kind, answering nothing.
func (r *raw) await(k handoff.Kind) (handoff.Packet, error) {
	r.SetReceiveDeadline(time.Now().Add(patience))
	for {
		p, err := r.Receive()
		if err != nil {
			return p, fmt.Errorf("waiting for kind %d: %w", k, err)
		}
		if p.Kind == k {
			return p, nil
		}
		p.CloseFDs()
	}
}

// greet says hello and takes the welcome.
func (r *raw) greet() error {
	if err := r.write(handoff.HelloPacket(handoff.Version, uint32(os.Getpid()), true)); err != nil {
		return err
	}
	_, err := r.await(handoff.KindWelcome)
	return err
}

// child is a process in one of the roles of child_test.go, spoken to in lines of
// JSON.
type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out chan string
}

func start(t testing.TB, role string, cfg any) *child {
	t.Helper()
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "HANDOFF_TEST_ROLE="+role, "HANDOFF_TEST_CONFIG="+string(b), "GOMAXPROCS=2")
	in, out := talk.Start(t, cmd)
	c := &child{t: t, cmd: cmd, in: in, out: make(chan string, 64)}
	go func() {
		defer close(c.out)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.out <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // ended already: as wanted
		_ = in.Close()
		for range c.out { // until its end
		}
		_ = cmd.Wait()
	})
	return c
}

// read takes the child's next line.
func (c *child) read(into any) {
	c.t.Helper()
	select {
	case line, ok := <-c.out:
		if !ok {
			c.t.Fatal("the child has ended")
		}
		if msg, bad := strings.CutPrefix(line, "FAIL "); bad {
			c.t.Fatal("the child: " + msg)
		}
		if into == nil {
			return
		}
		if err := json.Unmarshal([]byte(line), into); err != nil {
			c.t.Fatalf("the child said %q: %v", line, err)
		}
	case <-time.After(4 * patience):
		c.t.Fatal("the child says nothing")
	}
}

// ask sends a command and takes the answer.
func (c *child) ask(into any, words ...string) {
	c.t.Helper()
	c.tell(words...)
	c.read(into)
}

func (c *child) tell(words ...string) {
	c.t.Helper()
	if _, err := io.WriteString(c.in, strings.Join(words, " ")+"\n"); err != nil {
		c.t.Fatal(err)
	}
}

// signal sends a signal; with SIGSTOP it waits until the process has stopped.
func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
	if s != syscall.SIGSTOP {
		return
	}
	eventually(c.t, "stopped", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
		return err == nil && strings.Contains(string(b), ") T ")
	})
}

func handle(t testing.TB, uri string) shm.Handle {
	t.Helper()
	h, err := arrowio.ParseSharedURI(uri)
	if err != nil {
		t.Fatal(err)
	}
	return h
}
