package handoff_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// childConfig configures a child of any role.
type childConfig struct {
	Dir         string // of an owner
	ArenaBytes  int64
	BatchRows   int
	Slots       int // published; default 4
	StallMS     int
	KeepStopped bool
	Park        string // an owner's step at which it says so and stops serving
	Path        string // of the server, for consumers
	Handle      string
	Step        string // a raw consumer's last
}

func childMain(role string) {
	var cfg childConfig
	if err := json.Unmarshal([]byte(os.Getenv("HANDOFF_TEST_CONFIG")), &cfg); err != nil {
		fail(err)
	}
	switch role {
	case "owner":
		ownerChild(cfg)
	case "consumer":
		consumerChild(cfg)
	case "raw":
		rawChild(cfg)
	default:
		fail(fmt.Errorf("no role %q", role))
	}
}

var sayMu sync.Mutex

func say(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		fail(err)
	}
	sayMu.Lock()
	defer sayMu.Unlock()
	fmt.Println(string(b))
}

func fail(err error) {
	sayMu.Lock()
	fmt.Println("FAIL " + strings.ReplaceAll(err.Error(), "\n", "; "))
	os.Exit(1)
}

func must[T any](v T, err error) T {
	if err != nil {
		fail(err)
	}
	return v
}

func forever() { select {} }

// commands calls do for every line of standard input and ends the process at its
// end.
func commands(do func(words []string)) {
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		do(strings.Fields(s.Text()))
	}
	os.Exit(0)
}

// footprint counts what a process has of the protocol: sockets, process
// descriptors and memfds, open or mapped.
type footprint struct {
	FDs  int
	Maps int
}

func ownFootprint() footprint {
	var f footprint
	entries := must(os.ReadDir("/proc/self/fd"))
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, "/memfd:stokehold") || target == "anon_inode:[pidfd]" || strings.HasPrefix(target, "pidfd")) {
			f.FDs++
		}
	}
	f.Maps = strings.Count(string(must(os.ReadFile("/proc/self/maps"))), "/memfd:stokehold")
	return f
}

// limitFDs lets this process open no more descriptors, or as many as before.
func limitFDs(on bool) {
	lim := unix.Rlimit{Cur: 1024, Max: 1024}
	if on {
		// Descriptors are numbered from below: one that is free now tells the limit.
		fd := must(unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0))
		_ = unix.Close(fd)
		lim.Cur = uint64(fd)
	}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &lim, nil); err != nil {
		fail(err)
	}
}

// ownerReport is an owner's answer to "report".
type ownerReport struct {
	Leases int
	Used   int64
	Peers  int
	PIDs   []int // of the peers
	Killed uint64
	footprint
	Path    string
	Handles []string
}

func ownerChild(cfg childConfig) {
	host := &shm.Host{}
	arena := must(shm.New(shm.Config{Bytes: cfg.ArenaBytes}))
	if err := host.Add(arena); err != nil {
		fail(err)
	}
	n := max(cfg.BatchRows, 1)
	publish := func(v int64) shm.Handle {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		rec := uniform(n, v)
		defer rec.Release()
		return must(arena.Put(ctx, rec, nil))
	}
	var parked atomic.Bool
	sc := handoff.ServerConfig{Host: host, Dir: cfg.Dir, KeepStopped: cfg.KeepStopped}
	if cfg.StallMS > 0 {
		sc.StallTimeout = time.Duration(cfg.StallMS) * time.Millisecond
		sc.Heartbeat = sc.StallTimeout / 5
	}
	if cfg.Park != "" {
		sc = sc.WithStep(func(point string) {
			if point == cfg.Park && parked.CompareAndSwap(false, true) {
				say(map[string]string{"at": point})
				forever()
			}
		})
	}
	s := must(handoff.Serve(sc))
	var handles []shm.Handle
	for i := range max(cfg.Slots, 4) {
		handles = append(handles, publish(int64(i+1)))
	}
	report := func() {
		st := arena.Stats()
		r := ownerReport{Leases: st.Leases, Used: st.Used, Peers: len(s.Status().Peers), Killed: s.Status().Served.Killed, footprint: ownFootprint(), Path: s.Path()}
		for _, p := range s.Status().Peers {
			r.PIDs = append(r.PIDs, p.PID)
		}
		for _, h := range handles {
			r.Handles = append(r.Handles, h.String())
		}
		say(r)
	}
	report()
	commands(func(words []string) {
		switch words[0] {
		case "report":
			report()
		case "drop": // the slot's publisher lets go
			h := must(arrowio.ParseSharedURI(words[1]))
			if err := arena.Drop(h); err != nil {
				fail(err)
			}
			say("dropped")
		case "fill": // writes over all memory that is free
			var loans []*shm.Loan
			for {
				ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
				l, err := arena.Loan(ctx, 4096)
				cancel()
				if err != nil {
					break
				}
				for i := range l.Bytes() {
					l.Bytes()[i] = 0xEE
				}
				loans = append(loans, l)
			}
			for _, l := range loans {
				l.Cancel()
			}
			say(len(loans))
		case "limit":
			limitFDs(words[1] == "on")
			say("done")
		case "loan": // half-written, never published
			l := must(arena.Loan(context.Background(), 4096))
			copy(l.Bytes(), "half")
			say("loaned")
		default:
			fail(fmt.Errorf("no command %q", words[0]))
		}
	})
}

// consumerReport is a consumer's answer to "report".
type consumerReport struct {
	Lost string
	Held int
	Torn string
	N    int // leases of the loop so far
	Err  string
	footprint
}

func consumerChild(childConfig) {
	var client *handoff.Client
	var held []arrow.RecordBatch
	var n atomic.Int64
	var loopErr atomic.Value
	once := func(h shm.Handle) error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
		defer cancel()
		l, err := client.Lease(ctx, h)
		if err != nil {
			return err
		}
		rec, err := l.Batch()
		if err != nil {
			return err
		}
		defer rec.Release()
		_, err = value(rec)
		return err
	}
	commands(func(words []string) {
		switch words[0] {
		case "dial":
			client = must(handoff.Dial(context.Background(), words[1], handoff.DialConfig{KeepStopped: len(words) > 2}))
			say("connected")
		case "lease": // the answer may never come
			h := must(arrowio.ParseSharedURI(words[1]))
			ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
			l, err := client.Lease(ctx, h)
			cancel()
			if err != nil {
				say(err.Error())
				return
			}
			held = append(held, must(l.Batch()))
			say("")
		case "asklease": // in the background
			h := must(arrowio.ParseSharedURI(words[1]))
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
				defer cancel()
				l, err := client.Lease(ctx, h)
				if err == nil {
					l.Release()
				}
				loopErr.Store(fmt.Sprint(err))
			}()
			say("asked")
		case "release":
			for _, rec := range held {
				rec.Release()
			}
			held = nil
			say("released")
		case "status":
			go func() { _, _ = client.Status(context.Background()) }()
			say("asked")
		case "limit":
			limitFDs(words[1] == "on")
			say("done")
		case "close":
			_ = client.Close()
			say("closed")
		case "loop":
			h := must(arrowio.ParseSharedURI(words[1]))
			go func() {
				for range time.Tick(2 * time.Millisecond) { // there may be many such
					if err := once(h); err != nil {
						loopErr.Store(err.Error())
						return
					}
					n.Add(1)
				}
			}()
			say("looping")
		case "report":
			r := consumerReport{Held: len(held), N: int(n.Load()), footprint: ownFootprint()}
			if client != nil && client.Err() != nil {
				r.Lost = client.Err().Error()
			}
			if s, ok := loopErr.Load().(string); ok {
				r.Err = s
			}
			for _, rec := range held {
				if _, err := value(rec); err != nil {
					r.Torn = err.Error()
				}
			}
			say(r)
		default:
			fail(fmt.Errorf("no command %q", words[0]))
		}
	})
}

// rawChild is a consumer that goes to one step of the protocol and stays there.
func rawChild(cfg childConfig) {
	say("ready")
	commands(func([]string) {
		go func() {
			rawSteps(cfg)
			say("there")
		}()
	})
}

// rawSteps are the steps of a consumer, in order.
var rawStepNames = []string{
	"connected", "hello sent", "welcomed", "lease asked, answer unread", "arena received, answer unread", "one lease held", "two leases held",
	"a child that has the socket", "release half done", "all asked for, nothing read", "inspection unread", "all released", "goodbye said",
}

func rawSteps(cfg childConfig) {
	h := must(arrowio.ParseSharedURI(cfg.Handle))
	r := must(openRaw(filepath.Clean(cfg.Path)))
	check := func(err error) {
		if err != nil {
			fail(err)
		}
	}
	if cfg.Step == "connected" {
		return
	}
	check(r.write(handoff.HelloPacket(handoff.Version, uint32(os.Getpid()), true)))
	if cfg.Step == "hello sent" {
		return
	}
	must(r.await(handoff.KindWelcome))
	switch cfg.Step {
	case "welcomed":
		return
	case "inspection unread":
		check(r.write(must(handoff.Append(nil, handoff.KindInspect, 7, nil))))
		return
	case "all asked for, nothing read":
		for i := range uint32(64) {
			check(r.write(handoff.LeasePacket(i+1, h)))
		}
		return
	}
	check(r.write(handoff.LeasePacket(1, h)))
	if cfg.Step == "lease asked, answer unread" {
		return
	}
	p := must(r.await(handoff.KindArena))
	g := must(handoff.DecodeArenaGrant(p.Payload))
	v := must(shm.OpenView(p.FDs[0], h.Arena, g.Size))
	p.CloseFDs()
	if cfg.Step == "arena received, answer unread" {
		return
	}
	one := must(handoff.Token(must(r.await(handoff.KindLeased))))
	must(v.Bytes(h))
	if cfg.Step == "one lease held" {
		return
	}
	check(r.write(handoff.LeasePacket(2, h)))
	two := must(handoff.Token(must(r.await(handoff.KindLeased))))
	if cfg.Step == "two leases held" {
		return
	}
	if cfg.Step == "a child that has the socket" {
		socket := must(r.u.File())
		cat := exec.Command("cat")
		cat.Stdin, cat.ExtraFiles = os.Stdin, []*os.File{socket} // ends with the input
		check(cat.Start())
		return
	}
	check(r.write(handoff.ReleasePacket(one)))
	if cfg.Step == "release half done" {
		return
	}
	check(r.write(handoff.ReleasePacket(two)))
	if cfg.Step == "all released" {
		return
	}
	check(r.write(must(handoff.Append(nil, handoff.KindGoodbye, 0, nil))))
	if cfg.Step == "goodbye said" {
		return
	}
	fail(fmt.Errorf("no step %s", strconv.Quote(cfg.Step)))
}
