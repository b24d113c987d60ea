package worker

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// run is one job on one child, host side.
type run struct {
	host *Host
	p    *process
	id   uint32
	job  *Job

	mu     sync.Mutex
	leased map[uint64]held
	over   bool
	out    []atomic.Int32 // leases per input, at most Config.Credit

	copied  uint64   // only the serving goroutine counts, as logs
	logs    uint64   // records
	dropped bool     // an output or a model, since it came after the cancellation
	tokens  []uint64 // of the release just received
	feeders sync.WaitGroup
	abort   context.CancelCauseFunc
	feeding []atomic.Bool // per input
}

type held struct {
	lease    shm.Lease
	input    int
	released func()
}

func (r *run) do(ctx context.Context) error {
	names := make([]string, len(r.job.Inputs))
	r.leased = map[uint64]held{}
	r.feeding = make([]atomic.Bool, len(r.job.Inputs))
	r.out = make([]atomic.Int32, len(r.job.Inputs))
	for i, in := range r.job.Inputs {
		names[i] = in.Name
	}
	task := taskNote{Stage: r.job.Stage, Params: r.job.Params, Inputs: names, Credit: r.host.cfg.Credit, Outputs: r.host.cfg.Outputs}
	if at, ok := ctx.Deadline(); ok {
		ms := max(0, time.Until(at).Milliseconds())
		task.Deadline = &ms
	}
	note, err := json.Marshal(task)
	if err != nil {
		return fmt.Errorf("worker: stage %q: parameters: %w", r.job.Stage, err)
	}
	if len(note) > maxPayload {
		return fmt.Errorf("worker: stage %q: parameters of %d bytes: at most %d; pass large values by reference", r.job.Stage, len(note), maxPayload)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.abort = cancel
	r.p.running.Store(r)
	_ = r.p.send(kindTask, r.id, note) // serve learns of the child's end
	err = r.serve(ctx)
	r.p.running.Store(nil)
	cancel(errJobOver)
	r.feeders.Wait()
	if r.logs > maxLogs && r.job.OnLog != nil {
		r.job.OnLog(Log{Level: slog.LevelWarn, Message: fmt.Sprintf("%d further log records of this job were dropped: at most %d are kept", r.logs-maxLogs, maxLogs)})
	}
	r.host.count.copied.Add(r.copied)
	if r.job.OnCopied != nil {
		r.job.OnCopied(r.copied)
	}
	r.reclaim()
	return err
}

// maxLogs bounds the log records of one job.
const maxLogs = 10_000

var errJobOver = errors.New("job over")

// serve handles what the child sends until the job ends or the child does.
func (r *run) serve(ctx context.Context) error {
	done := ctx.Done()
	var (
		cause error // why the job was cancelled
		grace <-chan time.Time
	)
	stop := func(err error) {
		if cause != nil {
			return
		}
		cause, done = err, nil
		grace = time.After(r.host.cfg.CancelGrace)
		_ = r.p.send(kindCancel, r.id, []byte(clipped(err.Error(), maxReason))) // the loop learns of the child's end
	}
	ended := func(err error) error {
		if cause != nil {
			return fmt.Errorf("worker: stage %q: %w", r.job.Stage, cause)
		}
		return err
	}
	for {
		select {
		case <-done:
			stop(context.Cause(ctx))
		case <-grace:
			r.p.kill(fmt.Errorf("it did not end within %v of being cancelled", r.host.cfg.CancelGrace))
			<-r.p.exited
			return ended(nil)
		case <-r.p.dead:
			err := r.p.died(r.job.Stage, r.p.err)
			return ended(err)
		case pkt := <-r.p.in:
			over, err := r.handle(ctx, pkt, cause != nil)
			if errors.Is(err, ErrProtocol) || errors.Is(err, shm.ErrSeals) {
				r.p.kill(r.p.sayWhy(err))
				return r.p.died(r.job.Stage, err)
			}
			select {
			case r.p.taken <- struct{}{}:
			case <-r.p.dead:
			}
			switch {
			case over:
				return ended(err)
			case err != nil && !errors.Is(err, errLost) && !r.p.isDead():
				stop(err)
			}
		}
	}
}

// handle deals with one message. over: the child says that the job ended.
func (r *run) handle(ctx context.Context, pkt handoff.Packet, cancelled bool) (over bool, err error) {
	if pkt.Job != r.id {
		pkt.CloseFDs()
		switch pkt.Kind {
		case kindProgress, kindLog, kindMetrics: // late words of an earlier job
			return false, nil
		default:
			return false, handoff.Violation("message of kind %d for job %d while job %d runs", pkt.Kind, pkt.Job, r.id)
		}
	}
	switch pkt.Kind {
	case kindOpen:
		return false, r.open(ctx, pkt.Payload)
	case kindOutput:
		return false, r.output(ctx, pkt, cancelled)
	case kindPublish:
		return false, r.publish(ctx, pkt, cancelled)
	case kindModel:
		return false, r.model(ctx, pkt, cancelled)
	case kindProgress:
		var p Progress
		// A stage that was told to stop may still say from where a retry may continue; but
		// not after something that it wrote was thrown away, which that would count in.
		if err := decodeJSON(pkt.Payload, &p); err != nil || r.job.OnProgress == nil || cancelled && r.dropped {
			return false, err
		}
		return false, r.job.OnProgress(p)
	case kindLog:
		var l Log
		if err := decodeJSON(pkt.Payload, &l); err != nil || r.job.OnLog == nil {
			return false, err
		}
		if r.logs++; r.logs <= maxLogs {
			r.job.OnLog(l)
		}
		return false, nil
	case kindMetrics:
		var m map[string]float64
		if err := decodeJSON(pkt.Payload, &m); err != nil || r.job.OnMetrics == nil || cancelled {
			return false, err
		}
		return false, r.job.OnMetrics(m)
	case kindDone:
		d, err := decodeDoneNote(pkt.Payload)
		r.host.count.childWritten.Add(d.written)
		r.copied += d.copied
		return true, err
	case kindFailed:
		var f failedNote
		if err := decodeJSON(pkt.Payload, &f); err != nil {
			return true, err
		}
		r.host.count.childWritten.Add(f.Written)
		r.copied += f.Copied
		return true, &StageError{
			Stage: r.job.Stage, Message: clipped(f.Message, maxText), Traceback: tailOf(f.Traceback, maxTraceback), Unknown: f.Unknown, Permanent: f.Permanent,
		}
	default:
		return false, handoff.Violation("message of kind %d from the child", pkt.Kind)
	}
}

// open starts to feed an input that the child asks for.
func (r *run) open(ctx context.Context, payload []byte) error {
	note, err := decodeOpenNote(payload)
	if err != nil {
		return err
	}
	i := int(note.input)
	if i >= len(r.job.Inputs) {
		return handoff.Violation("open of input %d of %d", i, len(r.job.Inputs))
	}
	if r.feeding[i].Swap(true) {
		return handoff.Violation("open of input %d, which is open", i)
	}
	r.feeders.Go(func() {
		// Where the child is gone, that is what ended the job, not what a message to it
		// then failed with.
		if err := r.feed(ctx, i, note.from, note.to); err != nil && ctx.Err() == nil && !errors.Is(err, errLost) && !r.p.isDead() {
			r.abort(err)
		}
	})
	return nil
}

// feed leases one input's batches to the child, as fast as it releases them.
func (r *run) feed(ctx context.Context, input int, from, to uint64) error {
	name := r.job.Inputs[input].Name
	// Who waits for credit receives the release that gives it.
	defer context.AfterFunc(ctx, r.p.inbox.Wake)()
	window := r.host.cfg.Credit
	if w := r.job.Inputs[input].Window; w > 0 {
		window = min(window, w)
	}
	credit := func() bool { return int(r.out[input].Load()) < window || ctx.Err() != nil || r.p.isDead() }
	for in, err := range r.job.Inputs[input].Batches(ctx, from, to) {
		if err != nil {
			return fmt.Errorf("input %q: %w", name, err)
		}
		lease := in.Lease
		if lease.Arena() == nil && in.Open == nil {
			if lease, err = r.place(ctx, in.Batch); err != nil {
				return fmt.Errorf("input %q, batch %d: %w", name, in.Sequence, err)
			}
		}
		if err := r.p.inbox.Wait(false, credit); err != nil || ctx.Err() != nil || r.p.isDead() {
			lease.Release()
			return cmp.Or(context.Cause(ctx), err, errLost)
		}
		if lease.Arena() == nil {
			lease, err = in.Open(ctx)
		}
		if err == nil {
			err = r.lease(input, lease, in)
		}
		if err != nil {
			return fmt.Errorf("input %q, batch %d: %w", name, in.Sequence, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r.feeding[input].Store(false) // the child may ask again once it has read the end
	return r.p.send(kindEnd, r.id, binary.LittleEndian.AppendUint16(nil, uint16(input)))
}

// place puts a batch in shared memory.
func (r *run) place(ctx context.Context, batch arrow.RecordBatch) (shm.Lease, error) {
	if batch == nil {
		return shm.Lease{}, errors.New("neither lease nor batch")
	}
	a := r.host.cfg.Arena
	if a == nil {
		return shm.Lease{}, errors.New("the batch is not in shared memory and the host has no arena to put it in: set Config.Arena")
	}
	h, err := a.Put(ctx, batch, &r.host.count.placed)
	if err != nil {
		return shm.Lease{}, err
	}
	lease, err := a.Hold(h, "worker")
	if err != nil {
		return shm.Lease{}, err
	}
	if err := a.Drop(h); err != nil {
		lease.Release()
		return shm.Lease{}, err
	}
	return lease, nil
}

// lease sends one batch by reference. It owns the lease from here on.
func (r *run) lease(input int, lease shm.Lease, in InputBatch) error {
	body := in.BodyBytes
	if body == 0 {
		var err error
		if body, err = arrowio.FrameBodyBytes(lease.Bytes()); err != nil {
			lease.Release()
			return err
		}
	}
	token := newToken()
	var room [batchBytes]byte
	payload, err := batchLease{input: uint16(input), sequence: in.Sequence, token: token, handle: lease.Handle()}.append(room[:0])
	if err != nil {
		lease.Release()
		return err
	}
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		lease.Release()
		return errJobOver
	}
	r.leased[token] = held{lease, input, in.Released}
	r.out[input].Add(1)
	r.mu.Unlock()
	r.host.count.leases.Add(1)
	// Noted first, granted then: forget, which looks in the other order, can't
	// take away an arena that is about to be used.
	if err := r.p.grant(lease.Arena()); err != nil {
		return err // reclaim releases the lease
	}
	r.host.count.inBatches.Add(1)
	r.host.count.inBytes.Add(uint64(body))
	return r.p.send(kindBatch, r.id, payload)
}

// release takes back leases that the child names, in the goroutine that reads
// from it. Unknown tokens, and so double releases, end the connection: after one
// the books can't be trusted.
func (r *run) release(payload []byte) (err error) {
	if r.tokens, err = decodeTokens(r.tokens[:0], payload); err != nil {
		return err
	}
	for _, t := range r.tokens {
		r.mu.Lock()
		l, ok := r.leased[t]
		delete(r.leased, t)
		r.mu.Unlock()
		if !ok {
			return handoff.Violation("release of a lease that the child does not hold")
		}
		r.drop(l)
		if l.released != nil {
			l.released()
		}
		r.out[l.input].Add(-1)
	}
	return nil
}

func (r *run) drop(l held) {
	a := l.lease.Arena()
	l.lease.Release()
	r.host.count.leases.Add(-1)
	if a.Adopted() {
		r.forget(a)
	}
}

// forget tells the child to unmap an adopted segment that it no longer holds:
// unlike pooled arenas there is one per batch.
func (r *run) forget(a *shm.Arena) {
	r.p.revoke(a, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, l := range r.leased {
			if l.lease.Arena() == a {
				return false
			}
		}
		return true
	})
}

// reclaim takes back what the child still holds at the job's end.
func (r *run) reclaim() {
	r.mu.Lock()
	r.over = true
	left := r.leased
	r.leased = map[uint64]held{}
	r.mu.Unlock()
	for _, l := range left {
		r.host.count.reclaimed.Add(1)
		r.drop(l)
	}
}

// grant makes an arena known to the child.
func (p *process) grant(a *shm.Arena) error {
	p.grantMu.Lock()
	defer p.grantMu.Unlock()
	if p.granted[a.ID()] {
		return nil
	}
	id, err := handoff.ArenaID(a.ID())
	if err != nil {
		return err
	}
	err = a.WithFD(func(fd int) error {
		return p.send(kindArena, 0, handoff.ArenaGrant{ID: id, Size: a.Size()}.Encode(), fd)
	})
	if err != nil {
		return err
	}
	p.granted[a.ID()] = true
	if a.Shared() { // it ends with the child that granted it, not with this process
		a.OnEnd(func() { p.peers.ended(id) })
	}
	return nil
}

func (p *process) revoke(a *shm.Arena, unused func() bool) {
	id, err := handoff.ArenaID(a.ID())
	if err != nil {
		return
	}
	p.grantMu.Lock()
	defer p.grantMu.Unlock()
	if unused() {
		_ = p.forget(id) // the job learns of the child's end
	}
}

// withdraw has the child unmap an arena that has ended.
func (p *process) withdraw(id [16]byte) error {
	p.grantMu.Lock()
	defer p.grantMu.Unlock()
	return p.forget(id)
}

// forget has the child unmap an arena if it knows it. Callers hold grantMu.
func (p *process) forget(id [16]byte) error {
	name := hex.EncodeToString(id[:])
	if !p.granted[name] {
		return nil
	}
	delete(p.granted, name)
	return p.send(kindForget, 0, id[:])
}

func newToken() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails since Go 1.24
	return binary.LittleEndian.Uint64(b[:])
}
