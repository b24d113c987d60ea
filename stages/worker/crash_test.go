package worker_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"
	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/stages/worker"
)

// steps are the points of the protocol at which a child may end.
var steps = []string{
	"before ready", "after ready", "after task", "after open", "holding a batch", "after release", "output sent",
	"grant sent", "publish sent", "model sent", "between jobs", "mid-cancel",
}

const (
	rawProgress = 35
	rawGrant    = 42
	rawPublish  = 43
	rawModel    = 44
	rawGaveUp   = 45
)

// arenaID is the id that raw children give their arena.
var arenaID = bytes.Repeat([]byte{7}, 16)

// arenaFD makes an arena as a child would: sealed after it was mapped writable.
func arenaFD(size int64, seals int) (fd int, memory []byte) {
	fd = sealed(size, nil, 0)
	memory, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(err)
	if seals != 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
		must(err)
	}
	return fd, memory
}

const arenaSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_FUTURE_WRITE

func grantOf(size uint64) []byte {
	return raw(rawGrant, 0, append(bytes.Clone(arenaID), u64s(size)...)...)
}

func publishOf(job uint32, sequence, token, offset, length, generation uint64) []byte {
	b := append(u64s(sequence, token), arenaID...)
	return raw(rawPublish, job, append(b, u64s(offset, length, generation)...)...)
}

func modelOf(job uint32, size, length uint64, draft string) []byte {
	return raw(rawModel, job, append(u64s(size, length), draft...)...)
}

// stepChild does a job of every kind of message, and ends itself at the step that
// spec names ("kill after open"), the first time that any child gets there.
func stepChild(spec string) {
	action, step, _ := strings.Cut(spec, " ")
	at := func(here string) {
		if here != step {
			return
		}
		f, err := os.OpenFile(os.Getenv("WORKER_TEST_ONCE"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return // another was here
		}
		must(f.Close())
		sig := unix.SIGKILL
		if action == "stop" {
			sig = unix.SIGSTOP
		}
		must(unix.Kill(os.Getpid(), sig))
		// Another thread may be the one to take the signal: this one goes no further.
		for {
			_ = unix.Pause()
		}
	}
	kind, _, _ := receive()
	at("before ready")
	sendReady()
	at("after ready")
	const page = 4096
	frame, err := arrowio.Encode(numbers(1), nil)
	must(err)
	var memory []byte
	generation := uint64(0)
	expect := func(want uint16) {
		for kind != want {
			kind, _, _ = receive()
		}
	}
	for {
		expect(4) // task
		job := lastJob
		at("after task")
		if _, err := os.Stat(os.Getenv("WORKER_TEST_ONCE")); step == "mid-cancel" && err != nil {
			send(raw(rawProgress, job, []byte(`{"done": 1}`)...))
			expect(8) // cancel
			at("mid-cancel")
		}
		send(raw(rawOpen, job, append(make([]byte, 8), u64s(0, math.MaxUint64)...)...))
		at("after open")
		for kind != 6 { // end
			var payload []byte
			var fd int
			if kind, payload, fd = receive(); fd >= 0 {
				unix.Close(fd)
			}
			if kind == 5 {
				token := binary.LittleEndian.Uint64(payload[16:])
				at("holding a batch")
				send(raw(rawRelease, job, append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, u64s(token)...)...))
				at("after release")
			}
		}
		fd := sealed(page, frame, allSeals)
		send(raw(rawOutput, job, u64s(0, page, uint64(len(frame)))...), fd)
		at("output sent")
		expect(7) // ack
		if memory == nil {
			var own int
			own, memory = arenaFD(16*page, arenaSeals)
			send(grantOf(16*page), own)
			unix.Close(own)
			at("grant sent")
		}
		generation++
		copy(memory[generation*page:], frame)
		send(publishOf(job, 1, generation, generation*page, uint64(len(frame)), generation))
		at("publish sent")
		for kind = 0; kind != 7; kind, _, _ = receive() {
		}
		send(modelOf(job, page, uint64(len(frame)), `{}`), fd)
		unix.Close(fd)
		at("model sent")
		expect(12) // saved
		send(raw(rawDone, job, u64s(0, 0)...))
		at("between jobs")
	}
}

// TestCrashAtEveryStep ends children at each step, by SIGKILL and by SIGSTOP. Each
// is one failed job at most, everything comes back, and the next job works. All
// run at once: a stopped child costs the heartbeat timeout.
func TestCrashAtEveryStep(t *testing.T) {
	before := descriptors(t)
	var all sync.WaitGroup
	for _, action := range []string{"kill", "stop"} {
		for _, step := range steps {
			all.Go(func() { crash(t, action, step) })
		}
	}
	all.Wait()
	until(t, "descriptors are back", func() bool { return descriptors(t) == before })
}

func crash(t *testing.T, action, step string) {
	fail := func(format string, args ...any) { t.Errorf(action+" "+step+": "+format, args...) }
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a, err := shm.New(shm.Config{Bytes: 1 << 16})
	if err != nil {
		fail("%v", err)
		return
	}
	defer a.Close()
	cfg := worker.Config{
		Set:     map[string]string{"WORKER_TEST_RAW": "step " + action + " " + step, "WORKER_TEST_ONCE": filepath.Join(t.TempDir(), "once")},
		Outputs: worker.Shared, HeartbeatTimeout: 2 * time.Second, StartTimeout: 8 * time.Second, CancelGrace: 100 * time.Millisecond, Backoff: time.Millisecond,
	}
	if action == "stop" && step == "before ready" {
		cfg.StartTimeout = 2 * time.Second
	}
	h, err := worker.Start(ctx, cfg)
	if action == "stop" && step == "before ready" {
		if !errors.Is(err, worker.ErrWorkerDied) || !strings.Contains(err.Error(), "not ready after") {
			fail("start: %v", err)
		}
		cfg.StartTimeout = 8 * time.Second
		h, err = worker.Start(ctx, cfg)
	}
	if err != nil {
		fail("start: %v", err)
		return
	}
	pid := h.PID()
	type kept struct {
		arena  *shm.Arena
		handle shm.Handle
	}
	var outputs []kept
	jobCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	changed := errors.New("changed my mind")
	job := worker.Job{
		Stage: "x", Inputs: one(a, 3),
		OnBatch: func(_ context.Context, out *worker.Output) error {
			out.Keep()
			outputs = append(outputs, kept{out.Arena, out.Handle})
			return nil
		},
		OnModel: func(context.Context, *worker.Model) (worker.SavedModel, error) {
			return worker.SavedModel{Model: "m", Version: "v"}, nil
		},
		OnProgress: func(worker.Progress) error { stop(changed); return nil },
	}
	err = h.Do(jobCtx, job)
	switch died := errors.Is(err, worker.ErrWorkerDied); {
	case step == "mid-cancel":
		if !errors.Is(err, changed) {
			fail("%v", err)
		}
	case step == "before ready" || step == "between jobs":
		if err != nil {
			fail("%v", err)
		}
	case step == "after ready": // it may be noticed before the job starts
		if err != nil && !died {
			fail("%v", err)
		}
	case !died:
		fail("%v", err)
	case action == "stop" && !errors.Is(err, worker.ErrStalled):
		fail("%v", err)
	}
	if s := a.Stats(); s.Leases != 0 || s.Used != 0 {
		fail("arena %+v", s)
	}
	if s := h.Stats(); s.Leases != 0 || s.Started > 2 && step != "before ready" {
		fail("host %+v", s)
	}
	// The next job works. After one that was done, the child may be found dead only
	// by it.
	job.OnProgress = nil
	err = h.Do(ctx, job)
	if errors.Is(err, worker.ErrWorkerDied) && step == "between jobs" {
		err = h.Do(ctx, job)
	}
	if err != nil {
		fail("next job: %v", err)
	}
	if step != "before ready" && !gone(pid) {
		fail("process %d lives on", pid)
	}
	if err := h.Close(ctx); err != nil {
		fail("%v", err)
	}
	// What was published outlives its children, until it is dropped.
	for _, out := range outputs {
		lease, err := out.arena.Lease(out.handle, "test")
		if err != nil {
			fail("%v", err)
			continue
		}
		rec, err := lease.Batch()
		if err != nil || rec.Column(0).(*array.Float64).Value(0) != 1 {
			fail("%v", err)
			continue
		}
		rec.Release()
		if err := out.arena.Drop(out.handle); err != nil {
			fail("%v", err)
		}
	}
	for _, out := range outputs {
		if s := out.arena.Stats(); s.Arenas != 0 {
			fail("an arena is left: %+v", s)
		}
	}
	if len(outputs) < 2 {
		fail("%d outputs", len(outputs))
	}
}
