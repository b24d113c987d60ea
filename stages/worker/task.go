package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// ChildTask is one job as stage code in the child sees it. Its methods may be
// called from several goroutines, until the Func returns.
type ChildTask struct {
	Stage  string
	Params json.RawMessage

	server   *server
	job      uint32
	cancel   context.CancelCauseFunc
	credit   int
	names    []string
	window   chan struct{}     // outputs not acknowledged
	shared   bool              // the host would have outputs in the shared arena
	saving   chan struct{}     // held while a model is handed over
	decoders []arrowio.Decoder // of the inputs: each has one schema
	written  arrowio.Copies
	copied   atomic.Uint64

	mu       sync.Mutex
	released []uint64
	over     bool
	saved    chan SavedModel // answer to the model that has none yet; nil: there is no such
	inputs   []*arrivals     // of the open ones; nil: not open
	stale    []bool          // left by a loop that ended early
}

// arrivals are the batches of an open input that were leased to this process and
// not handed to the stage yet.
type arrivals struct {
	leases chan batchLease
	ended  atomic.Bool
}

func newTask(s *server, job uint32, n taskNote, cancel context.CancelCauseFunc) *ChildTask {
	t := &ChildTask{
		Stage: n.Stage, Params: n.Params, server: s, job: job, cancel: cancel, credit: n.Credit, names: n.Inputs,
		window: make(chan struct{}, outputWindow), shared: n.Outputs == Shared, saving: make(chan struct{}, 1),
		inputs: make([]*arrivals, len(n.Inputs)), decoders: make([]arrowio.Decoder, len(n.Inputs)), stale: make([]bool, len(n.Inputs)),
	}
	return t
}

// Batch is one input batch, in memory shared with the host and read-only:
// writing to it ends the process.
type Batch struct {
	Sequence uint64
	arrow.RecordBatch
}

// Inputs are the names of the job's inputs.
func (t *ChildTask) Inputs() []string { return slices.Clone(t.names) }

// Batches yields sequences from..to-1 of an input. Each batch is valid until the
// loop body ends unless retained; while batches are retained the host may have no
// credit to send more. An input can be ranged over again once a loop has seen its
// end; one that was left early is spent, since the host goes on sending it.
func (t *ChildTask) Batches(ctx context.Context, input string, from, to uint64) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		fail := func(err error) { yield(Batch{}, fmt.Errorf("worker: input %q: %w", input, err)) }
		i, in, err := t.openInput(input, from, to)
		if err != nil {
			fail(err)
			return
		}
		defer context.AfterFunc(ctx, t.server.inbox.Wake)()
		come := func() bool { return len(in.leases) > 0 || in.ended.Load() || ctx.Err() != nil }
		for {
			m, ok, err := t.next(ctx, in, come)
			if err != nil {
				t.spend(i)
				fail(err)
				return
			}
			if !ok {
				return
			}
			rec, err := t.open(m)
			if err != nil {
				t.spend(i)
				fail(fmt.Errorf("batch %d: %w", m.sequence, err))
				return
			}
			more := yield(Batch{m.sequence, rec}, nil)
			rec.Release()
			if !more {
				t.spend(i)
				return
			}
		}
	}
}

// openInput asks the host for an input.
func (t *ChildTask) openInput(input string, from, to uint64) (int, *arrivals, error) {
	i := slices.Index(t.names, input)
	if i < 0 {
		return 0, nil, fmt.Errorf("no such input; there are %q", t.names)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.over:
		return 0, nil, fmt.Errorf("stage %q is over", t.Stage)
	case t.stale[i]:
		return 0, nil, errors.New("a loop over it was left before its end")
	case t.inputs[i] != nil:
		return 0, nil, errors.New("is being ranged over")
	}
	in := &arrivals{leases: make(chan batchLease, t.credit)}
	t.inputs[i] = in
	return i, in, t.server.conn.Send(kindOpen, t.job, openNote{uint16(i), from, to}.encode())
}

func (t *ChildTask) spend(input int) {
	t.mu.Lock()
	t.stale[input] = true
	t.mu.Unlock()
}

// next waits for a batch. Before it waits it gives back what was released: the
// host may be waiting for that.
func (t *ChildTask) next(ctx context.Context, in *arrivals, come func() bool) (batchLease, bool, error) {
	if len(in.leases) == 0 && !in.ended.Load() {
		t.flush()
		if err := t.server.inbox.Wait(false, come); err != nil {
			return batchLease{}, false, lostHost(err)
		}
	}
	ended := in.ended.Load() // before the look at what came before that
	select {
	case m := <-in.leases:
		return m, true, nil
	default:
	}
	if ended {
		return batchLease{}, false, nil
	}
	return batchLease{}, false, context.Cause(ctx)
}

// open maps nothing and copies nothing: the arena was mapped when it was
// granted. The batch is the host's, which has validated it or made it.
func (t *ChildTask) open(m batchLease) (arrow.RecordBatch, error) {
	v := t.server.view(m.handle.Arena)
	if v == nil {
		return nil, fmt.Errorf("arena %s: %w", m.handle.Arena, arrowio.ErrGone)
	}
	b, err := v.Bytes(m.handle)
	if err != nil {
		return nil, err
	}
	rec, err := t.decoders[m.input].Decode(b, func() { t.release(m.token) }, arrowio.Trusted())
	if err != nil {
		return nil, err
	}
	t.copied.Add(uint64(arrowio.BytesOutside(rec, b)))
	return rec, nil
}

// release gives leases back in batches of half the credit, so that a message
// pays for several and the host never runs dry.
func (t *ChildTask) release(token uint64) {
	t.mu.Lock()
	t.released = append(t.released, token)
	full := len(t.released) >= max(1, t.credit/2)
	t.mu.Unlock()
	if full {
		t.flush()
	}
}

func (t *ChildTask) flush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.released) > 0 && !t.over {
		n := min(len(t.released), maxTokens)
		if err := t.server.conn.Send(kindRelease, t.job, appendTokens(nil, t.released[:n])); err != nil {
			t.cancel(err)
			return
		}
		t.released = t.released[n:]
	}
}

// close ends the task: the host has taken everything back.
func (t *ChildTask) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
}

func (t *ChildTask) arrived(m batchLease) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if int(m.input) >= len(t.inputs) {
		return handoff.Violation("batch for input %d of %d", m.input, len(t.inputs))
	}
	if t.inputs[m.input] == nil {
		return handoff.Violation("batch for input %d, which is not open", m.input)
	}
	select {
	case t.inputs[m.input].leases <- m:
		return nil
	default:
		return handoff.Violation("more batches than the credit of %d", t.credit)
	}
}

func (t *ChildTask) ended(input int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if input >= len(t.inputs) {
		return handoff.Violation("end of input %d of %d", input, len(t.inputs))
	}
	if t.inputs[input] == nil {
		return handoff.Violation("end of input %d, which is not open", input)
	}
	t.inputs[input].ended.Store(true)
	t.inputs[input] = nil
	return nil
}

// Write publishes a batch: its body is copied once, into a memfd that is then
// sealed and passed to the host or, where the host allows shared outputs and there
// is room, into this process's arena, whose memory is used again. It waits while
// too many outputs are not yet taken. The batch stays the caller's.
func (t *ChildTask) Write(ctx context.Context, sequence uint64, batch arrow.RecordBatch) error {
	if err := t.admit(ctx); err != nil {
		return fmt.Errorf("worker: write batch %d: %w", sequence, err)
	}
	sent, err := t.write(ctx, sequence, batch)
	if !sent {
		<-t.window
	}
	return err
}

// admit waits until the host has taken enough of what was written before.
func (t *ChildTask) admit(ctx context.Context) error {
	for {
		select {
		case t.window <- struct{}{}:
			return nil
		default:
		}
		err := t.await(ctx, func() bool { return len(t.window) < outputWindow })
		if err != nil {
			return err
		}
	}
}

// await waits for what a message from the host will bring.
func (t *ChildTask) await(ctx context.Context, come func() bool) error {
	defer context.AfterFunc(ctx, t.server.inbox.Wake)()
	err := t.server.inbox.Wait(false, func() bool { return come() || ctx.Err() != nil })
	if err != nil {
		return lostHost(err)
	}
	if !come() {
		return context.Cause(ctx)
	}
	return nil
}

func lostHost(err error) error { return fmt.Errorf("the connection to the host has ended: %w", err) }

func (t *ChildTask) write(ctx context.Context, sequence uint64, batch arrow.RecordBatch) (sent bool, err error) {
	frame, err := arrowio.Prepare(batch)
	if err != nil {
		return false, err
	}
	if t.shared {
		if sent, err := t.writeShared(ctx, sequence, frame); sent || err != nil {
			return sent, err
		}
	}
	seg, err := shm.NewSegment(frame.Size())
	if err != nil {
		return false, err
	}
	defer seg.Close()
	if _, err := frame.EncodeTo(seg.Bytes(), &t.written); err != nil {
		return false, err
	}
	fd, err := seg.Seal()
	if err != nil {
		return false, err
	}
	return true, t.send(kindOutput, outputNote{sequence, seg.Size(), frame.Size()}.encode(), fd)
}

// SaveModel hands a model over to the host, which registers it, and waits for the
// answer; models wait for one another. Where the host refuses it, ctx ends with
// the reason. The artifact stays the caller's.
func (t *ChildTask) SaveModel(ctx context.Context, draft ModelDraft, artifact []byte) (SavedModel, error) {
	fail := func(err error) (SavedModel, error) {
		return SavedModel{}, fmt.Errorf("worker: save a model of %d bytes: %w", len(artifact), err)
	}
	if int64(len(artifact)) > t.server.modelBytes {
		return fail(fmt.Errorf("%w: the host takes at most %d bytes (its Config.ModelBytes)", ErrModel, t.server.modelBytes))
	}
	select {
	case t.saving <- struct{}{}:
		defer func() { <-t.saving }()
	case <-ctx.Done():
		return fail(context.Cause(ctx))
	}
	seg, err := shm.NewSegment(int64(len(artifact)))
	if err != nil {
		return fail(err)
	}
	defer seg.Close()
	copy(seg.Bytes(), artifact)
	fd, err := seg.Seal()
	if err != nil {
		return fail(err)
	}
	note, err := modelNote{size: seg.Size(), length: int64(len(artifact)), draft: draft}.encode()
	if err != nil {
		return fail(err)
	}
	saved := make(chan SavedModel, 1)
	t.mu.Lock()
	unanswered := t.saved != nil // of a call whose ctx ended
	if !unanswered {
		t.saved = saved
	}
	t.mu.Unlock()
	if unanswered {
		return fail(errors.New("an earlier one is not answered yet"))
	}
	if err := t.send(kindModel, note, fd); err != nil {
		return fail(err)
	}
	if err := t.await(ctx, func() bool { return len(saved) > 0 }); err != nil {
		return fail(err)
	}
	return <-saved, nil
}

func (t *ChildTask) savedModel(m SavedModel) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved == nil {
		return handoff.Violation("answer to no model")
	}
	t.saved <- m
	t.saved = nil
	return nil
}

// Progress reports how far the stage is.
func (t *ChildTask) Progress(p Progress) error { return t.sendJSON(kindProgress, p) }

// Metrics reports named numbers, such as a model's metrics.
func (t *ChildTask) Metrics(m map[string]float64) error { return t.sendJSON(kindMetrics, m) }

// Logger returns a logger whose records go to the host's Job.OnLog.
func (t *ChildTask) Logger() *slog.Logger { return slog.New(logHandler{task: t}) }

func (t *ChildTask) sendJSON(k handoff.Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("worker: stage %q: %w", t.Stage, err)
	}
	return t.send(k, b)
}

// send sends unless the job is over: the host would not know what to do with it.
func (t *ChildTask) send(k handoff.Kind, payload []byte, fds ...int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return fmt.Errorf("worker: stage %q is over", t.Stage)
	}
	return t.server.conn.Send(k, t.job, payload, fds...)
}

// logHandler sends records as they are; a record too large for a message loses
// its attributes.
type logHandler struct {
	task  *ChildTask
	attrs []slog.Attr
	group string
}

func (h logHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = slices.Clone(h.attrs)
	for _, a := range attrs {
		h.attrs = append(h.attrs, slog.Attr{Key: h.group + a.Key, Value: a.Value})
	}
	return h
}

func (h logHandler) WithGroup(name string) slog.Handler {
	if name != "" {
		h.group += name + "."
	}
	return h
}

func (h logHandler) Handle(_ context.Context, r slog.Record) error {
	l := Log{Level: r.Level, Message: clipped(r.Message, maxText)}
	add := func(key string, v slog.Value) {
		if l.Attrs == nil {
			l.Attrs = map[string]any{}
		}
		switch x := v.Resolve().Any().(type) {
		case error:
			l.Attrs[key] = x.Error()
		case fmt.Stringer:
			l.Attrs[key] = x.String()
		default:
			l.Attrs[key] = x
		}
	}
	for _, a := range h.attrs {
		add(a.Key, a.Value)
	}
	r.Attrs(func(a slog.Attr) bool {
		add(h.group+a.Key, a.Value)
		return true
	})
	b, err := json.Marshal(l)
	if err != nil || len(b) > maxPayload {
		l.Attrs = map[string]any{"dropped": fmt.Sprintf("attributes: too large or not JSON (%v)", err)}
		return h.task.sendJSON(kindLog, l)
	}
	return h.task.send(kindLog, b)
}
