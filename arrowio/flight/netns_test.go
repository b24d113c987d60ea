package flight_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/flight"
	"github.com/stokehold/stokehold/internal/talk"
)

// Two hosts: network namespaces joined by a cable (veth). This program runs
// itself in each of them.
const (
	roleEnv   = "STOKEHOLD_FLIGHT_ROLE"     // set: this is not a test run, see play
	addrEnv   = "STOKEHOLD_FLIGHT_ADDR"     // of the server
	waitEnv   = "STOKEHOLD_FLIGHT_PATIENCE" // of the client
	needEnv   = "STOKEHOLD_REQUIRE_NETNS"   // makes a skip a failure
	serverIP  = "10.213.77.1"
	clientIP  = "10.213.77.2"
	netBatch  = 40
	netRows   = 500
	atStandby = 5 // the batch after which the cable is pulled
)

// play is what this program does as a host of its own.
func play(role string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	switch role {
	case "server":
		err = playServer(ctx)
	case "client":
		err = playClient(ctx)
	default:
		err = fmt.Errorf("no role %q", role)
	}
	if err != nil {
		fmt.Println("failed:", err)
		return 1
	}
	return 0
}

func playServer(ctx context.Context) error {
	s := &shelf{}
	for seq := range uint64(netBatch) {
		rec := batch(seq, netRows)
		b, err := arrowio.Encode(rec, nil)
		rec.Release()
		if err != nil {
			return err
		}
		s.frames = append(s.frames, b)
	}
	srv, err := flight.Serve(ctx, flight.ServerConfig{Addr: serverIP + ":0", Source: s, Token: secret, Insecure: true})
	if err != nil {
		return err
	}
	fmt.Println(srv.URI())
	_, err = io.Copy(io.Discard, os.Stdin) // until the test ends
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return errors.Join(err, srv.Close(ctx))
}

// playClient reads the range, says each batch, and waits for a line before it
// takes the one after batch atStandby.
func playClient(ctx context.Context) error {
	patience, err := time.ParseDuration(os.Getenv(waitEnv))
	if err != nil {
		return err
	}
	// Room for few batches, or all would be here before the cable is pulled.
	c, err := flight.Dial(flight.Config{
		Token: secret, Insecure: true, Timeout: 300 * time.Millisecond, Patience: patience, Streams: 2, MaxBytesInFlight: 32 << 10,
	})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	uri := os.Getenv(addrEnv)
	info, err := c.Describe(ctx, uri, dataset)
	for errors.Is(err, flight.ErrDown) && ctx.Err() == nil { // on a busy machine its time is short
		info, err = c.Describe(ctx, uri, dataset)
	}
	if err != nil {
		return err
	}
	in := bufio.NewReader(os.Stdin)
	told := make(chan struct{})
	go func() {
		defer close(told)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for c.Stats().Resumed == 0 && ctx.Err() == nil {
			<-tick.C
		}
		fmt.Println("resumed")
	}()
	next := uint64(0)
	for b, err := range c.Range(ctx, flight.Request{URI: uri, Dataset: dataset, To: info.Next}) {
		if errors.Is(err, flight.ErrDown) {
			<-told
			fmt.Println("down")
			return nil
		}
		if err != nil {
			return err
		}
		want := batch(next, netRows)
		same := b.Meta.Sequence == next && b.Record.NumRows() == want.NumRows() && arrowSame(want, b.Record)
		want.Release()
		if !same {
			return fmt.Errorf("batch %d where %d belongs, or with other values", b.Meta.Sequence, next)
		}
		fmt.Println("batch", next)
		if next == atStandby {
			if _, err := in.ReadString('\n'); err != nil {
				return err
			}
		}
		next++
	}
	<-told
	fmt.Println("end", next)
	return nil
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// cable makes two namespaces joined by a cable.
func cable(t *testing.T) (a, b string) {
	t.Helper()
	name := fmt.Sprintf("stokehold-%d-%d", os.Getpid(), time.Now().UnixNano())
	a, b = name+"-a", name+"-b"
	skip := t.Skipf
	if os.Getenv(needEnv) != "" {
		skip = t.Fatalf
	}
	if _, err := exec.LookPath("ip"); err != nil {
		skip("SKIPPED, this test proves nothing here: it joins two network namespaces with the program ip: %v", err)
	}
	for _, ns := range []string{a, b} {
		if out, err := exec.CommandContext(t.Context(), "ip", "netns", "add", ns).CombinedOutput(); err != nil {
			skip("SKIPPED, this test proves nothing here: it makes network namespaces, which takes root: %v: %s", err, out)
		}
		t.Cleanup(func() { _ = exec.CommandContext(context.Background(), "ip", "netns", "del", ns).Run() })
	}
	ip(t, "-n", a, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b)
	for ns, addr := range map[string]string{a: serverIP, b: clientIP} {
		ip(t, "-n", ns, "addr", "add", addr+"/24", "dev", "cable")
		ip(t, "-n", ns, "link", "set", "cable", "up")
	}
	return a, b
}

type actor struct {
	t     *testing.T
	name  string
	in    io.WriteCloser
	lines *bufio.Scanner
}

// act runs this program in a namespace.
func act(t *testing.T, ns, role string, env ...string) *actor {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "ip", "netns", "exec", ns, self)
	cmd.Env = append(append(os.Environ(), roleEnv+"="+role), env...)
	in, out := talk.Start(t, cmd)
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // killed with the test's context; what matters, it has said
	})
	return &actor{t: t, name: role, in: in, lines: bufio.NewScanner(out)}
}

func (a *actor) says() string {
	a.t.Helper()
	if !a.lines.Scan() {
		a.t.Fatalf("the %s fell silent: %v", a.name, a.lines.Err())
	}
	return a.lines.Text()
}

// upTo collects what the actor says until it says want.
func (a *actor) upTo(want string) (before []string) {
	a.t.Helper()
	for {
		s := a.says()
		if s == want {
			return before
		}
		if strings.HasPrefix(s, "failed") {
			a.t.Fatal(s)
		}
		before = append(before, s)
	}
}

func TestCablePulledAndPutBack(t *testing.T) {
	a, b := cable(t)
	uri := act(t, a, "server").says()
	client := act(t, b, "client", addrEnv+"="+uri, waitEnv+"=40s")
	said := client.upTo("batch " + strconv.Itoa(atStandby))
	ip(t, "-n", a, "link", "set", "cable", "down")
	if _, err := io.WriteString(client.in, "\n"); err != nil {
		t.Fatal(err)
	}
	said = append(said, client.upTo("resumed")...)
	ip(t, "-n", a, "link", "set", "cable", "up")
	said = append(said, client.upTo(fmt.Sprint("end ", netBatch))...)
	// The client itself has compared each batch; this is against a client that
	// compares nothing.
	if len(said) != netBatch-1 {
		t.Errorf("%d batches were read: %q", len(said)+1, said)
	}
}

func TestCablePulledForGood(t *testing.T) {
	a, b := cable(t)
	uri := act(t, a, "server").says()
	client := act(t, b, "client", addrEnv+"="+uri, waitEnv+"=500ms")
	client.upTo("batch " + strconv.Itoa(atStandby))
	ip(t, "-n", a, "link", "set", "cable", "down")
	if _, err := io.WriteString(client.in, "\n"); err != nil {
		t.Fatal(err)
	}
	client.upTo("down")
}
