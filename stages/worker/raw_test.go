package worker_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/stages/worker"
)

// The messages of docs/WORKER-PROTOCOL.md, written out by hand: what a child in
// another language, or a hostile one, would send.
const (
	rawReady   = 32
	rawRelease = 33
	rawOutput  = 34
	rawDone    = 38
	rawOpen    = 41
)

func raw(kind uint16, job uint32, payload ...byte) []byte {
	b := binary.LittleEndian.AppendUint16(nil, kind)
	b = append(b, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, job)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(append(b, 0, 0, 0, 0), payload...)
}

func u64s(v ...uint64) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "raw child:", err)
		os.Exit(9)
	}
}

func send(b []byte, fds ...int) {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	must(unix.Sendmsg(3, b, oob, nil, 0))
}

// lastJob is the job of the message that receive returned last.
var lastJob uint32

func sendReady() {
	send(raw(rawReady, 0, 0x53, 0x54, 0x4b, 0x57, 2, 0, 0, 0, 0, 0, 0, 0))
}

// receive returns the next message, and its first descriptor. It answers pings
// itself.
func receive() (kind uint16, payload []byte, fd int) {
	b, oob := make([]byte, 64<<10), make([]byte, 64)
	for {
		n, oobn, _, _, err := unix.Recvmsg(3, b, oob, 0)
		must(err)
		if n == 0 || binary.LittleEndian.Uint16(b) == 10 { // goodbye
			os.Exit(0)
		}
		fd = -1
		if oobn > 0 {
			msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
			must(err)
			fds, err := unix.ParseUnixRights(&msgs[0])
			must(err)
			fd = fds[0]
		}
		switch kind = binary.LittleEndian.Uint16(b); kind {
		case 9:
			send(raw(40, 0, b[16:n]...)) // pong
		case 13:
			fmt.Println("the host says:", string(b[16:n]))
		default:
			lastJob = binary.LittleEndian.Uint32(b[4:])
			return kind, b[16:n], fd
		}
	}
}

func sealed(size int64, content []byte, seals int) int {
	fd, err := unix.MemfdCreate("raw", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	must(err)
	must(unix.Fallocate(fd, 0, 0, size))
	_, err = unix.Pwrite(fd, content, 0)
	must(err)
	if seals != 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
		must(err)
	}
	return fd
}

const allSeals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

func rawChild(mode string) {
	if spec, ok := strings.CutPrefix(mode, "step "); ok {
		stepChild(spec)
	}
	ready := binary.LittleEndian.AppendUint32(nil, 0x574B5453)
	version := uint32(2)
	switch mode {
	case "sleep": // neither ready nor gone
		<-time.After(time.Minute)
		return
	case "gone":
		fmt.Println("changed my mind")
		os.Exit(7)
	case "version":
		version = 99
	case "noise":
		fmt.Println(strings.Repeat("garbage ", 100_000))
	case "slow second":
		f, err := os.OpenFile(os.Getenv("WORKER_TEST_ONCE"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			must(f.Close())
			break
		}
		f, err = os.Create(os.Getenv("WORKER_TEST_ONCE") + ".second")
		must(err)
		must(f.Close())
		<-time.After(500 * time.Millisecond) // the test closes the pool meanwhile
	case "garbage":
		send([]byte("garbage"))
	case "refuses":
		send(raw(rawGaveUp, 0, []byte("not today")...))
		os.Exit(3)
	}
	ready = binary.LittleEndian.AppendUint32(ready, version)
	ready = binary.LittleEndian.AppendUint32(ready, 0)
	send(raw(rawReady, 0, ready...))
	var tokens []uint64
	for {
		kind, payload, fd := receive()
		switch kind {
		case 4: // task: ask for its input
			if needsBatch[mode] {
				send(raw(rawOpen, 1, append(make([]byte, 8), u64s(0, 10)...)...))
			}
		case 5: // batch
			tokens = append(tokens, binary.LittleEndian.Uint64(payload[16:]))
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		if kind != 5 && (kind != 4 || needsBatch[mode]) {
			continue
		}
		misbehave(mode, tokens)
	}
}

var needsBatch = map[string]bool{"double release": true, "keeps all": true, "fails and ends": true}

func misbehave(mode string, tokens []uint64) {
	frame, err := arrowio.Encode(numbers(1), nil)
	must(err)
	const page = 4096
	note := u64s(0, page, uint64(len(frame)))
	output := func(fds ...int) { send(raw(rawOutput, 1, note...), fds...) }
	switch mode {
	case "honest output":
		output(sealed(page, frame, allSeals))
		send(raw(rawDone, 1, u64s(0, 0)...))
	case "unsealed":
		output(sealed(page, frame, 0))
	case "sealed later":
		output(sealed(page, frame, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_FUTURE_WRITE))
	case "wrong size":
		output(sealed(2*page, frame, allSeals))
	case "pipe":
		var p [2]int
		must(unix.Pipe(p[:]))
		output(p[0])
	case "directory":
		fd, err := unix.Open("/", unix.O_RDONLY, 0)
		must(err)
		output(fd)
	case "device":
		fd, err := unix.Open("/dev/zero", unix.O_RDONLY, 0)
		must(err)
		output(fd)
	case "no descriptor":
		output()
	case "two descriptors":
		fd := sealed(page, frame, allSeals)
		output(fd, fd)
	case "many descriptors":
		fd := sealed(page, frame, allSeals)
		output(fd, fd, fd, fd, fd, fd, fd, fd, fd, fd)
	case "descriptor with done":
		send(raw(rawDone, 1, u64s(0, 0)...), sealed(page, frame, allSeals))
	case "not a frame":
		output(sealed(page, []byte("no frame at all"), allSeals))
	case "bad values":
		frame[4] ^= 0xff
		output(sealed(page, frame, allSeals))
	case "overflow":
		note = u64s(0, 1<<63, 1<<63)
		output(sealed(page, frame, allSeals))
	case "forged token":
		send(raw(rawRelease, 1, append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, u64s(42)...)...))
	case "double release":
		one := append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, u64s(tokens[0])...)
		send(raw(rawRelease, 1, one...))
		send(raw(rawRelease, 1, one...))
	case "open of no input":
		send(raw(rawOpen, 1, append([]byte{9, 0, 0, 0, 0, 0, 0, 0}, u64s(0, 10)...)...))
	case "release of 2^32-1":
		send(raw(rawRelease, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0))
	case "other job":
		send(raw(rawDone, 77, u64s(0, 0)...))
	case "unknown kind":
		send(raw(1000, 1))
	case "short packet":
		send([]byte("hi"))
	case "false length":
		b := raw(rawDone, 1, u64s(0, 0)...)
		b[8] = 200
		send(b)
	case "huge packet":
		send(raw(35, 1, make([]byte, 100<<10)...))
	case "bad JSON":
		send(raw(35, 1, []byte(`{"done":`)...))
	case "job on pong":
		send(raw(40, 1, u64s(1)...))
	case "the host's kind":
		send(raw(11, 0, append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, u64s(1)...)...))
	case "too large":
		note = u64s(0, 2<<20, uint64(len(frame)))
		output(sealed(2<<20, frame, allSeals))
	case "model pipe":
		var p [2]int
		must(unix.Pipe(p[:]))
		send(modelOf(1, page, 10, `{}`), p[0])
	case "model unsealed":
		send(modelOf(1, page, 10, `{}`), sealed(page, frame, 0))
	case "model without descriptor":
		send(modelOf(1, page, 10, `{}`))
	case "model bad JSON":
		send(modelOf(1, page, 10, `{"format":`), sealed(page, frame, allSeals))
	case "model short":
		send(raw(rawModel, 1, 1, 2, 3), sealed(page, frame, allSeals))
	case "gives up":
		send(raw(rawGaveUp, 0, []byte("I have seen \xff enough")...))
		os.Exit(4)
	case "fails and ends": // with three batches and the end of the input unread
		unread := func() int {
			n, err := unix.IoctlGetInt(3, unix.TIOCINQ)
			must(err)
			return n
		}
		for unread() == 0 {
			<-time.After(time.Millisecond)
		}
		send(raw(rawProgress, 1, []byte(`{"done": 1}`)...))
		send(raw(39, 1, []byte(`{"message": "enough"}`)...))
		os.Exit(5)
	case "keeps all": // and says it is done, which is allowed: the host takes them back
		send(raw(rawDone, 1, u64s(0, 0)...))
	case "noise":
		send(raw(rawDone, 1, u64s(0, 0)...))
	default:
		misshare(mode, frame)
	}
	if !needsBatch[mode] {
		for {
			receive()
		}
	}
}

func TestHostileChildren(t *testing.T) {
	hostile(t, worker.Config{}, map[string]error{
		"unsealed": shm.ErrSeals, "sealed later": shm.ErrSeals, "wrong size": shm.ErrSeals, "pipe": shm.ErrSeals, "directory": shm.ErrSeals, "device": shm.ErrSeals,
		"not a frame": arrowio.ErrCorrupt, "bad values": arrowio.ErrCorrupt,
		"no descriptor": worker.ErrProtocol, "two descriptors": worker.ErrProtocol, "many descriptors": worker.ErrProtocol, "descriptor with done": worker.ErrProtocol,
		"overflow": worker.ErrProtocol, "forged token": worker.ErrProtocol, "double release": worker.ErrProtocol, "release of 2^32-1": worker.ErrProtocol, "open of no input": worker.ErrProtocol,
		"other job": worker.ErrProtocol, "unknown kind": worker.ErrProtocol, "short packet": worker.ErrProtocol, "false length": worker.ErrProtocol,
		"huge packet": worker.ErrProtocol, "bad JSON": worker.ErrProtocol, "job on pong": worker.ErrProtocol, "the host's kind": worker.ErrProtocol,
		"grant": worker.ErrProtocol, "model pipe": shm.ErrSeals, "model unsealed": shm.ErrSeals, "model without descriptor": worker.ErrProtocol,
		"model bad JSON": worker.ErrProtocol, "model short": worker.ErrProtocol, "too large": worker.ErrProtocol,
	})
}

// TestHostileSharers break the rules of shared outputs.
func TestHostileSharers(t *testing.T) {
	hostile(t, worker.Config{Outputs: worker.Shared, ChildBytes: 1 << 16}, map[string]error{
		"grant of a pipe": shm.ErrSeals, "grant unsealed": shm.ErrSeals, "grant read-only": shm.ErrSeals, "grant of wrong size": shm.ErrSeals, "grant with holes": shm.ErrSeals,
		"grant of too much": worker.ErrProtocol, "grant twice": worker.ErrProtocol, "nine grants": worker.ErrProtocol, "grant without descriptor": worker.ErrProtocol,
		"publish without grant": worker.ErrProtocol, "publish outside": shm.ErrSlot, "publish overflow": worker.ErrProtocol, "publish unaligned": shm.ErrSlot, "publish nothing": shm.ErrSlot,
		"publish garbage": arrowio.ErrCorrupt, "publish with descriptor": worker.ErrProtocol,
	})
}

func hostile(t *testing.T, cfg worker.Config, modes map[string]error) {
	for mode, want := range modes {
		t.Run(mode, func(t *testing.T) {
			a := newArena(t, 1<<16)
			before := descriptors(t)
			cfg.Set, cfg.Backoff, cfg.BatchBytes = map[string]string{"WORKER_TEST_RAW": mode}, time.Millisecond, 1<<20
			h, err := worker.Start(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			pid := h.PID()
			err = h.Do(t.Context(), worker.Job{Stage: "x", Inputs: one(a, 1), OnBatch: func(context.Context, *worker.Output) error {
				t.Error("an output came through")
				return nil
			}, OnModel: func(context.Context, *worker.Model) (worker.SavedModel, error) {
				t.Error("a model came through")
				return worker.SavedModel{}, nil
			}})
			if !errors.Is(err, want) || !errors.Is(err, worker.ErrProtocol) || !errors.Is(err, worker.ErrWorkerDied) {
				t.Errorf("want %v, got %v", want, err)
			}
			if !gone(pid) {
				t.Error("the child lives on")
			}
			if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
				t.Errorf("%+v", s)
			}
			if err := h.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if n := descriptors(t); n != before {
				t.Errorf("%d descriptors, %d before", n, before)
			}
		})
	}
}

// TestNoRoomForDescriptors has an honest output arrive when this process has
// reached its limit of open files.
func TestNoRoomForDescriptors(t *testing.T) {
	h := host(t, worker.Config{Set: map[string]string{"WORKER_TEST_RAW": "honest output"}})
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	probe, err := unix.Dup(0) // the lowest free number
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(probe)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(probe), Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	err = h.Do(t.Context(), worker.Job{Stage: "x"})
	if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, worker.ErrProtocol) || !strings.Contains(err.Error(), "RLIMIT_NOFILE") {
		t.Error(err)
	}
	n := 0
	if err := h.Do(t.Context(), worker.Job{Stage: "x", OnBatch: func(context.Context, *worker.Output) error { n++; return nil }}); !errors.Is(err, worker.ErrProtocol) || n != 0 {
		t.Error(n, err) // the new child says job 1 again, which is job 2 here
	}
}

func TestChildThatKeepsItsLeases(t *testing.T) {
	a := newArena(t, 1<<16)
	h := host(t, worker.Config{Set: map[string]string{"WORKER_TEST_RAW": "keeps all"}})
	if err := h.Do(t.Context(), worker.Job{Stage: "x", Inputs: one(a, 1)}); err != nil {
		t.Fatal(err)
	}
	if s := h.Stats(); s.Reclaimed != 1 || s.Leases != 0 || a.Stats().Leases != 0 {
		t.Errorf("%+v", s)
	}
}

func TestNoiseIsKeptWithinBounds(t *testing.T) {
	h := host(t, worker.Config{Set: map[string]string{"WORKER_TEST_RAW": "noise"}})
	if err := h.Do(t.Context(), worker.Job{Stage: "x"}); err != nil {
		t.Fatal(err)
	}
}

func TestChildrenThatDoNotStart(t *testing.T) {
	for mode, want := range map[string]string{
		"sleep": "not ready after", "gone": "changed my mind", "version": "version 99", "garbage": "packet of 7 bytes", "refuses": "it closed the connection: not today",
	} {
		t.Run(mode, func(t *testing.T) {
			_, err := worker.Start(t.Context(), worker.Config{Set: map[string]string{"WORKER_TEST_RAW": mode}, StartTimeout: 2 * time.Second, Backoff: time.Millisecond})
			if !errors.Is(err, worker.ErrWorkerDied) || !strings.Contains(err.Error(), want) {
				t.Error(err)
			}
		})
	}
}
