package worker_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/stages/worker"
)

// misshare breaks the rules of shared outputs, as a raw child.
func misshare(mode string, frame []byte) {
	const page = 4096
	grant := func() []byte {
		fd, memory := arenaFD(page, arenaSeals)
		copy(memory, frame)
		send(grantOf(page), fd)
		unix.Close(fd)
		return memory
	}
	length := uint64(len(frame))
	switch mode {
	case "grant":
		grant()
	case "grant of a pipe":
		var p [2]int
		must(unix.Pipe(p[:]))
		send(grantOf(page), p[0])
	case "grant unsealed":
		fd, _ := arenaFD(page, 0)
		send(grantOf(page), fd)
	case "grant read-only": // sealed for good: nothing could be written to it
		send(grantOf(page), sealed(page, frame, allSeals))
	case "grant of wrong size":
		fd, _ := arenaFD(page, arenaSeals)
		send(grantOf(2*page), fd)
	case "grant with holes":
		fd, err := unix.MemfdCreate("raw", unix.MFD_ALLOW_SEALING)
		must(err)
		must(unix.Ftruncate(fd, 16*page))
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, arenaSeals)
		must(err)
		send(grantOf(16*page), fd)
	case "grant of too much":
		fd, _ := arenaFD(1<<17, arenaSeals)
		send(grantOf(1<<17), fd)
	case "grant twice":
		grant()
		grant()
	case "nine grants":
		for range 9 {
			grant()
			arenaID[0]++
		}
	case "grant without descriptor":
		send(grantOf(page))
	case "publish without grant":
		send(publishOf(1, 0, 1, 0, length, 1))
	case "publish outside":
		grant()
		send(publishOf(1, 0, 1, page-64, length, 1))
	case "publish overflow":
		grant()
		send(publishOf(1, 0, 1, 1<<63, 1<<63, 1))
	case "publish unaligned":
		grant()
		send(publishOf(1, 0, 1, 8, length, 1))
	case "publish nothing":
		grant()
		send(publishOf(1, 0, 1, 0, 0, 1))
	case "publish garbage":
		memory := grant()
		copy(memory, "this is no frame at all")
		send(publishOf(1, 0, 1, 0, length, 1))
	case "publish with descriptor":
		grant()
		send(publishOf(1, 0, 1, 0, length, 1), 1)
	case "publish same token", "publish same slot", "alters":
		memory := grant()
		copy(memory[2048:], frame)
		send(publishOf(1, 0, 1, 0, length, 1))
		receive() // ack
		switch mode {
		case "publish same token":
			send(publishOf(1, 1, 1, 2048, length, 2))
		case "publish same slot":
			send(publishOf(1, 1, 2, 0, length, 2))
		case "alters":
			clear(memory)
			send(raw(rawDone, 1, u64s(0, 0)...))
		}
	case "deaf": // sends and reads nothing, not even pings
		fd := sealed(page, frame, allSeals)
		for i := uint64(0); ; i++ {
			send(raw(rawOutput, 1, u64s(i, page, length)...), fd)
		}
	case "model of nothing":
		send(modelOf(1, page, 0, `{}`), sealed(page, frame, allSeals))
	case "model too large":
		send(modelOf(1, 4<<20, 4<<20, `{}`), sealed(4<<20, frame, allSeals))
		receive() // cancel
		send(raw(rawDone, 1, u64s(0, 0)...))
	}
}

// TestKeptSlots breaks rules about slots that are out: the host keeps the first.
func TestKeptSlots(t *testing.T) {
	for mode, want := range map[string]error{"publish same token": worker.ErrProtocol, "publish same slot": shm.ErrSlot, "alters": nil} {
		t.Run(mode, func(t *testing.T) {
			h := host(t, worker.Config{Outputs: worker.Shared, Set: map[string]string{"WORKER_TEST_RAW": mode}})
			var out worker.Output
			err := h.Do(t.Context(), worker.Job{Stage: "x", OnBatch: func(_ context.Context, o *worker.Output) error {
				o.Keep()
				out = *o
				return nil
			}})
			if !errors.Is(err, want) || want != nil && !errors.Is(err, worker.ErrWorkerDied) {
				t.Fatal(err)
			}
			// What the documentation says of shared outputs: the child can alter them.
			lease, err := out.Arena.Lease(out.Handle, "test")
			if err != nil {
				t.Fatal(err)
			}
			if altered := bytes.Count(lease.Bytes(), []byte{0}) == len(lease.Bytes()); altered != (mode == "alters") {
				t.Error("altered:", altered)
			}
			lease.Release()
			if err := out.Arena.Drop(out.Handle); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestChildThatReadsNothing(t *testing.T) {
	h := host(t, worker.Config{Set: map[string]string{"WORKER_TEST_RAW": "deaf"}, HeartbeatTimeout: time.Second})
	err := h.Do(t.Context(), worker.Job{Stage: "x"})
	if !errors.Is(err, worker.ErrStalled) || !errors.Is(err, worker.ErrWorkerDied) || !strings.Contains(err.Error(), "read nothing") {
		t.Error(err)
	}
}

func TestChildThatGivesUp(t *testing.T) {
	h := host(t, worker.Config{Set: map[string]string{"WORKER_TEST_RAW": "gives up"}})
	err := h.Do(t.Context(), worker.Job{Stage: "x"})
	var gaveUp *worker.GaveUpError
	if !errors.As(err, &gaveUp) || gaveUp.Reason != "I have seen \uFFFD enough" || !errors.Is(err, worker.ErrWorkerDied) {
		t.Error(err)
	}
}

// TestChildThatFailsAndEnds has a child fail a job and end without having read
// all: the failure is the job's error all the same.
func TestChildThatFailsAndEnds(t *testing.T) {
	a := newArena(t, 1<<16)
	h := host(t, worker.Config{Set: map[string]string{"WORKER_TEST_RAW": "fails and ends"}})
	pid := h.PID()
	err := h.Do(t.Context(), worker.Job{Stage: "x", Inputs: one(a, 4), OnProgress: func(worker.Progress) error {
		until(t, "the child has ended", func() bool { return gone(pid) })
		return nil
	}})
	var failed *worker.StageError
	if !errors.As(err, &failed) || failed.Message != "enough" {
		t.Error(err)
	}
	if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
		t.Errorf("%+v", s)
	}
}

func TestModelsThatAreNotTaken(t *testing.T) {
	for mode, want := range map[string]error{"model of nothing": shm.ErrSeals, "model too large": worker.ErrModel} {
		h := host(t, worker.Config{Set: map[string]string{"WORKER_TEST_RAW": mode}, ModelBytes: 1 << 20})
		err := h.Do(t.Context(), worker.Job{Stage: "x", OnModel: func(context.Context, *worker.Model) (worker.SavedModel, error) {
			t.Error("a model came through")
			return worker.SavedModel{}, nil
		}})
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// TestFloodOfLogs has a child log more than is kept.
func TestFloodOfLogs(t *testing.T) {
	h := host(t, worker.Config{})
	n, last := 0, worker.Log{}
	if err := h.Do(t.Context(), worker.Job{Stage: "flood", OnLog: func(l worker.Log) { n++; last = l }}); err != nil {
		t.Fatal(err)
	}
	if n != 10_001 || !strings.Contains(last.Message, "2000 further log records") {
		t.Error(n, last)
	}
}

// TestHostsThatBreakTheProtocol has Go's own child say why it hangs up.
func TestHostsThatBreakTheProtocol(t *testing.T) {
	token := append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, u64s(9)...)
	task := raw(4, 1, []byte(`{"stage": "obey", "inputs": ["in"], "credit": 1}`)...)
	for mode, c := range map[string]struct {
		send [][]byte
		want string
	}{
		"returned twice":      {[][]byte{raw(11, 0, token...)}, "slot that is not out"},
		"returned none":       {[][]byte{raw(11, 0, make([]byte, 8)...)}, "0 tokens"},
		"ack of nothing":      {[][]byte{task, raw(7, 1, u64s(1)...)}, "no output"},
		"saved nothing":       {[][]byte{task, raw(12, 1, []byte(`{}`)...)}, "no model"},
		"batch not asked for": {[][]byte{task, raw(5, 1, make([]byte, 64)...)}, "not open"},
		"end not asked for":   {[][]byte{task, raw(6, 1, 0, 0)}, "not open"},
		"job on ping":         {[][]byte{raw(9, 3, u64s(1)...)}, "belongs to none"},
		"the child's kind":    {[][]byte{task, raw(38, 1, u64s(0, 0)...)}, "kind 38 from the host"},
		"arena of a file":     {[][]byte{raw(2, 0, make([]byte, 24)...)}, "descriptors"},
		"long reason":         {[][]byte{task, raw(8, 1, make([]byte, 2000)...)}, "2000 bytes"},
		"two tasks":           {[][]byte{task, raw(4, 2, []byte(`{"stage": "obey", "credit": 1}`)...)}, "while job 1 runs"},
		"no credit":           {[][]byte{raw(4, 1, []byte(`{"stage": "obey"}`)...)}, "credit 0"},
	} {
		t.Run(mode, func(t *testing.T) {
			got := answers(t, c.send)
			if !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	if got := answers(t, [][]byte{raw(13, 0, []byte("no more")...)}); got != "" {
		t.Errorf("an answer to error: %q", got)
	}
}

// answers starts a Go child, sends it hello and msgs and returns the text of the
// error message that it sends before it hangs up.
func answers(t *testing.T, msgs [][]byte) string {
	t.Helper()
	socket := startGoChild(t)
	hello := append([]byte{0x53, 0x54, 0x4b, 0x57, 2, 0, 0, 0, 0x10, 0x27, 0, 0, 0, 0, 0, 0}, u64s(0, 1<<30)...)
	for _, m := range append([][]byte{raw(1, 0, hello...)}, msgs...) {
		if err := unix.Sendmsg(socket, m, nil, nil, unix.MSG_NOSIGNAL); err != nil && !errors.Is(err, unix.EPIPE) {
			t.Fatal(err)
		}
	}
	b := make([]byte, 64<<10)
	for {
		n, err := unix.Read(socket, b)
		switch {
		case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			t.Fatal(err)
		case n == 0:
			return ""
		case b[0] == rawGaveUp:
			return string(b[16:n])
		}
	}
}

// startGoChild starts this program as a child and returns the host's end of its
// socket. The child is gone at the test's end.
func startGoChild(t *testing.T) int {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "child")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"STOKEHOLD_WORKER=1"}
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(func() {
		unix.Close(fds[0])
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("the child ended with %v, want exit status 1", err)
		}
	})
	timeout := unix.Timeval{Sec: 20}
	if err := unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	return fds[0]
}
