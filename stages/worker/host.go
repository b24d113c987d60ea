package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

var (
	// ErrWorkerDied means: the child ended, or had to be ended, before its job did. All
	// that it held is taken back; the next job gets a new child. Always within a
	// *DiedError.
	ErrWorkerDied = errors.New("worker process died")
	// ErrStalled means: the child gave no sign of life for Config.HeartbeatTimeout.
	ErrStalled = errors.New("worker process stalled")
	// ErrClosed means: the host is closed.
	ErrClosed = errors.New("worker host closed")
	// ErrUnknownStage means: the child has no stage of that name.
	ErrUnknownStage = errors.New("unknown stage")
)

// DiedError says how a child ended. It wraps ErrWorkerDied and the cause
// (ErrStalled, ErrProtocol, shm.ErrSeals, *GaveUpError, ...).
type DiedError struct {
	Stage       string // that was running; empty while starting
	Exit        string // "signal: killed", "exit status 2"
	Output      string // last of its stdout and stderr
	MemoryLimit int64  // Config.MemoryBytes
	MemoryPeak  int64  // most bytes resident, shared memory included; 0: not known
	Cause       error
}

func (e *DiedError) Error() string {
	s := "worker: "
	if e.Stage != "" {
		s += fmt.Sprintf("stage %q: ", e.Stage)
	}
	s += fmt.Sprintf("%v (%s): %v", ErrWorkerDied, e.Exit, e.Cause)
	if e.MemoryLimit > 0 {
		s += fmt.Sprintf("; its memory is limited to %d MiB (MemoryBytes), at most %d MiB were resident", e.MemoryLimit>>20, e.MemoryPeak>>20)
	}
	if e.Output != "" {
		s += "; its output ended:\n" + e.Output
	}
	return s
}

func (e *DiedError) Unwrap() []error { return []error{ErrWorkerDied, e.Cause} }

// GaveUpError is the child's word on why it closed the connection: something that
// the host sent, as the child sees it.
type GaveUpError struct{ Reason string }

func (e *GaveUpError) Error() string { return "it closed the connection: " + e.Reason }

// StageError is an error that stage code in the child returned. The child lives.
type StageError struct {
	Stage     string
	Message   string
	Traceback string // of the child's language, the last of it; "": none
	Unknown   bool   // no such stage; the error then wraps ErrUnknownStage
	// Permanent: the stage's error had a Permanent method that said so: running it
	// again would fail again.
	Permanent bool
}

func (e *StageError) Error() string {
	s := fmt.Sprintf("worker: stage %q: %s", e.Stage, e.Message)
	if shown := strings.TrimRight(e.Traceback, "\n"); len(shown) > maxShown {
		s += "\n..." + tailOf(shown, maxShown)
	} else if shown != "" {
		s += "\n" + shown
	}
	return s
}

// maxShown is how much of a traceback an error's text has: the end, where the
// fault is, has to fit into what orchestrators keep of an error.
const maxShown = 1400

func (e *StageError) Unwrap() error {
	if e.Unknown {
		return ErrUnknownStage
	}
	return nil
}

// Config configures a Host. Zero values take the defaults.
type Config struct {
	Command []string          // program and arguments; default this program, which must call RunIfChild
	Dir     string            // working directory; default this process's
	Env     []string          // names of variables that the child inherits; default PATH, HOME, TMPDIR, TZ, LANG
	Set     map[string]string // further variables
	// Arena takes input batches that are not in shared memory yet. Without it such
	// a batch is an error.
	Arena *shm.Arena

	// Outputs says how the child may publish batches; default Sealed.
	Outputs OutputMode
	// ChildBytes bounds the arenas that the child grants for Shared outputs, all
	// together; default 64 MiB. A Go child makes one of this size.
	ChildBytes int64
	// ModelBytes bounds a model that the child hands over; default 1 GiB.
	ModelBytes int64
	// BatchBytes bounds a sealed segment that the child hands over; default 2 GiB.
	BatchBytes int64
	// MemoryBytes limits the child's private memory (RLIMIT_DATA: heap, anonymous
	// maps and what its runtime reserves writable; not shared memory, so neither
	// arenas nor segments); 0: no limit. A program that needs more fails to
	// allocate, which ends most.
	MemoryBytes int64

	// Processes is how many children a Pool may have; default 4, at most 64. A Host
	// has one.
	Processes int
	// Accelerator is what each child has, e.g. nvidia-h100, and Accelerators how many
	// (0 is 1): what a stage is charged with while it has a child. Empty: none.
	Accelerator  string
	Accelerators int

	Credit           int           // batches leased to the child at once, per input; default 4, at most 256
	StartTimeout     time.Duration // default 10 s
	HeartbeatTimeout time.Duration // silence after which the child is killed; default 10 s
	CancelGrace      time.Duration // between cancelling a job and killing the child; default 2 s
	Backoff          time.Duration // before a restart, doubled per death without a job done between, up to 50 times this; default 100 ms
	OutputBytes      int           // of stdout and stderr kept for errors; default 16 KiB
	Logger           *slog.Logger  // child starts and deaths; default none
}

// OutputMode says how a child may publish batches.
type OutputMode string

const (
	// Sealed outputs each come in a memfd of their own, which nobody can change any
	// more before it is validated.
	Sealed OutputMode = "sealed"
	// Shared outputs may also lie in an arena of the child's, which uses memory again
	// while it is warm. The child keeps its writable map of it: it can alter a batch,
	// by mistake or on purpose, after this process has validated it. For children
	// that are trusted as this process is.
	Shared OutputMode = "shared"
)

// grantable is how many bytes of arenas the child may grant.
func (c *Config) grantable() int64 {
	if c.Outputs == Shared {
		return c.ChildBytes
	}
	return 0
}

func (c *Config) fill() error {
	if len(c.Command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("worker: find this program: %w; set Config.Command", err)
		}
		c.Command = []string{self}
	}
	if c.Env == nil {
		c.Env = []string{"PATH", "HOME", "TMPDIR", "TZ", "LANG"}
	}
	if c.Processes == 0 {
		c.Processes = 4
	}
	if c.Processes < 1 || c.Processes > 64 {
		return fmt.Errorf("worker: %d processes: want 1 to 64", c.Processes)
	}
	if c.Accelerators < 0 || c.Accelerators > 0 && c.Accelerator == "" {
		return fmt.Errorf("worker: %d accelerators %q: want a kind, and a number that is not negative", c.Accelerators, c.Accelerator)
	}
	if c.Credit == 0 {
		c.Credit = 4
	}
	if c.Credit < 1 || c.Credit > 256 {
		return fmt.Errorf("worker: credit of %d batches: want 1 to 256", c.Credit)
	}
	for d, def := range map[*time.Duration]time.Duration{
		&c.StartTimeout: 10 * time.Second, &c.HeartbeatTimeout: 10 * time.Second, &c.CancelGrace: 2 * time.Second, &c.Backoff: 100 * time.Millisecond,
	} {
		if *d == 0 {
			*d = def
		}
		if *d < time.Millisecond {
			return fmt.Errorf("worker: duration %v: want at least 1 ms", *d)
		}
	}
	if c.Outputs == "" {
		c.Outputs = Sealed
	}
	if c.Outputs != Sealed && c.Outputs != Shared {
		return fmt.Errorf("worker: outputs %q: want %q or %q", c.Outputs, Sealed, Shared)
	}
	for _, n := range []struct {
		value *int64
		unset int64
		name  string
	}{{&c.ChildBytes, 64 << 20, "ChildBytes"}, {&c.ModelBytes, 1 << 30, "ModelBytes"}, {&c.BatchBytes, 2 << 30, "BatchBytes"}, {&c.MemoryBytes, 0, "MemoryBytes"}} {
		if *n.value < 0 {
			return fmt.Errorf("worker: %s of %d: want a size of at least 0", n.name, *n.value)
		}
		if *n.value == 0 {
			*n.value = n.unset
		}
	}
	if c.OutputBytes == 0 {
		c.OutputBytes = 16 << 10
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Job is one execution of a stage in the child. The functions are called one at
// a time, while Do runs; an error from one ends the job. nil: ignored.
type Job struct {
	Stage  string
	Params json.RawMessage
	Inputs []Input
	// OnStart is called when there is a child for the job.
	OnStart func()
	// OnBatch receives what the stage writes, in the order in which it does.
	OnBatch    func(ctx context.Context, out *Output) error
	OnProgress func(Progress) error
	OnLog      func(Log)
	OnMetrics  func(map[string]float64) error
	// OnModel registers a model and says under which name and version. nil: the
	// stage's attempt to hand one over ends the job.
	OnModel func(ctx context.Context, m *Model) (SavedModel, error)
	// OnCopied is told at the end how many body bytes this job's hand-overs copied,
	// see Stats.CopiedBytes.
	OnCopied func(bytes uint64)
}

// Input is one named input of a job.
type Input struct {
	Name string
	// Batches yields sequences from..to-1 of the input when the stage asks for
	// them; to may be the largest uint64, "all there will be". It is ranged over in
	// its own goroutine, and must end when ctx does.
	Batches func(ctx context.Context, from, to uint64) iter.Seq2[InputBatch, error]
	// Window is how many of its batches are leased at once at most; default and at
	// most Config.Credit.
	Window int
}

// InputBatch is one batch of an input: either leased, which passes the lease to
// the host and costs no copy, or to be leased when the child has credit for it, or
// a batch in this process's memory, which is placed in Config.Arena first (one
// copy, counted) and stays the caller's.
type InputBatch struct {
	Sequence uint64
	Lease    shm.Lease // zero: none
	// Open, if there is no lease, is called when the child has credit, so that the
	// batch takes no memory before. It passes the lease as Lease does.
	Open  func(context.Context) (shm.Lease, error)
	Batch arrow.RecordBatch
	// BodyBytes is the size of the leased batch's body, for Stats.InBytes; 0: it is
	// worked out, which reads the frame's metadata.
	BodyBytes int64
	// Released is called when the stage has given the batch back; not for what is
	// taken back at the job's end. It must be quick: nothing else is received from
	// the child meanwhile. nil: nobody wants to know.
	Released func()
}

// Output is a batch from the child, its framing and every value validated. It is
// a sealed segment of its own, adopted, that nobody can change any more, or, with
// Config.Outputs Shared, a slot of an arena that the child may still write to
// (Arena.Shared).
type Output struct {
	Sequence uint64
	Batch    arrow.RecordBatch // valid until OnBatch returns unless retained
	Arena    *shm.Arena
	Handle   shm.Handle
	kept     bool
}

// Keep passes the slot to the caller, who makes the arena known (shm.Host.Add)
// and later drops Handle, which may be after the child's end. Without Keep the
// slot ends with Batch.
func (o *Output) Keep() { o.kept = true }

// ModelDraft describes a model that a stage hands over. Zero values take the
// defaults.
type ModelDraft struct {
	Format    string             `json:"format,omitempty"` // default "safetensors"
	Kind      string             `json:"kind,omitempty"`   // which predictor can serve it; default "external"
	Metrics   map[string]float64 `json:"metrics,omitempty"`
	Precision string             `json:"precision,omitempty"` // "fp16", "int8"
	Metadata  map[string]string  `json:"metadata,omitempty"`
}

// Model is a model that the child hands over, in memory that nobody can change.
type Model struct {
	ModelDraft
	Artifact []byte // valid until OnModel returns
}

// SavedModel says what became of it.
type SavedModel struct {
	Model   string `json:"model"`
	Version string `json:"version"`
}

// Progress is what a stage reports of its progress.
type Progress struct {
	Done   int64              `json:"done"`
	Total  int64              `json:"total,omitempty"` // 0: not known
	Note   string             `json:"note,omitempty"`
	Values map[string]float64 `json:"values,omitempty"`
	// Notes are short text results, Checkpoint is where a retry may continue; both
	// stand until they are replaced.
	Notes      map[string]string `json:"notes,omitempty"`
	Checkpoint json.RawMessage   `json:"checkpoint,omitempty"`
}

// Log is one log record of a stage.
type Log struct {
	Level   slog.Level     `json:"level"`
	Message string         `json:"message"`
	Attrs   map[string]any `json:"attrs,omitempty"`
}

// Stats counts since Start. Bytes are of batch bodies.
type Stats struct {
	Jobs    uint64 `json:"jobs"`
	Started uint64 `json:"started"` // children
	Died    uint64 `json:"died"`
	Leases  int64  `json:"leases"` // held by the child now

	InBatches  uint64 `json:"in_batches"` // leased to the child
	InBytes    uint64 `json:"in_bytes"`
	OutBatches uint64 `json:"out_batches"` // adopted from it
	OutBytes   uint64 `json:"out_bytes"`
	OutShared  uint64 `json:"out_shared"` // of OutBatches, in the child's own arenas
	Models     uint64 `json:"models"`     // handed over
	Reclaimed  uint64 `json:"reclaimed"`  // leases that the child did not release itself

	// WrittenBytes were built outside shared memory and put there by their
	// producer, on either side: one copy each, before the hand-over.
	WrittenBytes uint64 `json:"written_bytes"`
	// CopiedBytes were copied in the hand-over between the processes. It is
	// measured where batches are received: buffers that do not lie in the shared
	// mapping count.
	CopiedBytes uint64 `json:"copied_bytes"`
}

func (s *Stats) add(o Stats) {
	s.Jobs += o.Jobs
	s.Started += o.Started
	s.Died += o.Died
	s.Leases += o.Leases
	s.InBatches += o.InBatches
	s.InBytes += o.InBytes
	s.OutBatches += o.OutBatches
	s.OutBytes += o.OutBytes
	s.OutShared += o.OutShared
	s.Models += o.Models
	s.Reclaimed += o.Reclaimed
	s.WrittenBytes += o.WrittenBytes
	s.CopiedBytes += o.CopiedBytes
}

type counters struct {
	jobs, started, died, inBatches, inBytes, outBatches, outBytes, outShared, models, reclaimed, childWritten, copied atomic.Uint64
	leases                                                                                                            atomic.Int64
	placed                                                                                                            arrowio.Copies
}

// Host keeps one child and gives it one job at a time. Safe for concurrent use.
type Host struct {
	cfg   Config
	busy  chan struct{} // held by the running job, or Close
	count counters

	mu      sync.Mutex
	child   *process
	closed  bool
	deaths  int // since the last job that was done
	restart time.Time
	jobs    uint32
}

// startAttempts is how often Start tries where the child ends at once: somebody
// may have killed it.
const startAttempts = 6

// Start starts the child and waits until it is ready. The error is a *DiedError
// if it started but ended at once, again and again, or was not ready in time.
func Start(ctx context.Context, cfg Config) (*Host, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	h := newHost(cfg)
	for attempt := 1; ; attempt++ {
		_, err := h.ready(ctx)
		if err == nil {
			return h, nil
		}
		if attempt == startAttempts || !errors.Is(err, errEnded) {
			return nil, err
		}
	}
}

func newHost(cfg Config) *Host { return &Host{cfg: cfg, busy: make(chan struct{}, 1)} }

// PID is the child's process id, 0 if there is none now.
func (h *Host) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.child == nil {
		return 0
	}
	return h.child.cmd.Process.Pid
}

// Stats returns the counters.
func (h *Host) Stats() Stats {
	c := &h.count
	return Stats{
		Jobs: c.jobs.Load(), Started: c.started.Load(), Died: c.died.Load(), Leases: c.leases.Load(),
		InBatches: c.inBatches.Load(), InBytes: c.inBytes.Load(), OutBatches: c.outBatches.Load(), OutBytes: c.outBytes.Load(), OutShared: c.outShared.Load(), Models: c.models.Load(),
		Reclaimed: c.reclaimed.Load(), WrittenBytes: c.childWritten.Load() + uint64(c.placed.Bytes()), CopiedBytes: c.copied.Load(),
	}
}

// Do runs a job and waits for its end; jobs wait for one another. The child is
// started if there is none, after a backoff if children died before.
//
// When ctx ends, the job is cancelled and Do returns ctx's error within
// Config.CancelGrace, by killing the child if need be. A *StageError is the
// stage's own; a *DiedError (ErrWorkerDied) means that the child is gone. In every
// case all leases are back when Do returns.
func (h *Host) Do(ctx context.Context, job Job) error {
	select {
	case h.busy <- struct{}{}:
		defer func() { <-h.busy }()
	case <-ctx.Done():
		return fmt.Errorf("worker: stage %q: %w", job.Stage, context.Cause(ctx))
	}
	p, err := h.ready(ctx)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.jobs++
	id := h.jobs
	h.mu.Unlock()
	h.count.jobs.Add(1)
	if job.OnStart != nil {
		job.OnStart()
	}
	err = (&run{host: h, p: p, id: id, job: &job}).do(ctx)
	select {
	case <-p.dead:
		h.buried(p)
	default:
		h.mu.Lock()
		h.deaths = 0
		h.mu.Unlock()
	}
	return err
}

// ready returns the living child, or starts one.
func (h *Host) ready(ctx context.Context) (*process, error) {
	h.mu.Lock()
	p, closed := h.child, h.closed
	h.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	if p != nil {
		select {
		case <-p.dead:
			h.buried(p)
		default:
			return p, nil
		}
	}
	h.mu.Lock()
	wait := time.Until(h.restart)
	h.mu.Unlock()
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("worker: waiting to start the process again: %w", context.Cause(ctx))
		}
	}
	h.count.started.Add(1)
	p, err := startProcess(ctx, &h.cfg)
	if err != nil {
		h.failed()
		h.cfg.Logger.WarnContext(ctx, "worker process did not start", "error", err)
		return nil, err
	}
	h.mu.Lock()
	closed = h.closed // meanwhile
	if !closed {
		h.child = p
	}
	h.mu.Unlock()
	if closed {
		p.kill(ErrClosed)
		<-p.exited
		return nil, ErrClosed
	}
	h.cfg.Logger.InfoContext(ctx, "worker process started", "pid", p.cmd.Process.Pid)
	return p, nil
}

func (h *Host) buried(p *process) {
	h.mu.Lock()
	known := h.child == p
	if known {
		h.child = nil
	}
	h.mu.Unlock()
	if known {
		h.failed()
		h.cfg.Logger.Warn("worker process died", "pid", p.cmd.Process.Pid, "error", p.err)
	}
}

func (h *Host) failed() {
	h.count.died.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	delay := h.cfg.Backoff << min(h.deaths, 6)
	h.restart = time.Now().Add(min(delay, 50*h.cfg.Backoff))
	h.deaths++
}

// Close waits for the running job, asks the child to end, and kills it and its
// process group when ctx ends first. Repeatable.
func (h *Host) Close(ctx context.Context) error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	select {
	case h.busy <- struct{}{}:
	case <-ctx.Done():
		h.mu.Lock()
		p := h.child
		h.mu.Unlock()
		if p != nil { // else it is being started, and ended then
			p.kill(ErrClosed) // ends the job
		}
		h.busy <- struct{}{}
	}
	defer func() { <-h.busy }()
	h.mu.Lock()
	p := h.child
	h.child = nil
	h.mu.Unlock()
	if p != nil {
		p.stop(ctx)
	}
	return nil
}
