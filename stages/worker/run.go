package worker

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

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
	credit []chan struct{} // per input: one element per lease

	copied  uint64 // only the serving goroutine counts
	feeders sync.WaitGroup
	abort   context.CancelCauseFunc
	feeding []atomic.Bool // per input
}

type held struct {
	lease *shm.Lease
	input int
}

func (r *run) do(ctx context.Context) error {
	names := make([]string, len(r.job.Inputs))
	r.leased = map[uint64]held{}
	r.feeding = make([]atomic.Bool, len(r.job.Inputs))
	for i, in := range r.job.Inputs {
		names[i] = in.Name
		r.credit = append(r.credit, make(chan struct{}, r.host.cfg.Credit))
	}
	note, err := json.Marshal(taskNote{Stage: r.job.Stage, Params: r.job.Params, Inputs: names, Credit: r.host.cfg.Credit})
	if err != nil {
		return fmt.Errorf("worker: stage %q: parameters: %w", r.job.Stage, err)
	}
	if len(note) > maxPayload {
		return fmt.Errorf("worker: stage %q: parameters of %d bytes: at most %d; pass large values by reference", r.job.Stage, len(note), maxPayload)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.abort = cancel
	if err := r.p.conn.Send(kindTask, r.id, note); err != nil {
		r.p.kill(err)
	}
	err = r.serve(ctx)
	cancel(errJobOver)
	r.feeders.Wait()
	r.host.count.copied.Add(r.copied)
	if r.job.OnCopied != nil {
		r.job.OnCopied(r.copied)
	}
	r.reclaim()
	return err
}

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
		if err := r.p.conn.Send(kindCancel, r.id, []byte(clipped(err.Error(), 1024))); err != nil {
			r.p.kill(err)
		}
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
				r.p.kill(err)
				return r.p.died(r.job.Stage, err)
			}
			select {
			case r.p.taken <- struct{}{}:
			case <-r.p.dead:
			}
			switch {
			case over:
				return ended(err)
			case err != nil && !r.p.isDead():
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
	case kindRelease:
		tokens, err := decodeTokens(pkt.Payload)
		if err != nil {
			return false, err
		}
		return false, r.release(tokens)
	case kindOutput:
		return false, r.output(ctx, pkt, cancelled)
	case kindProgress:
		var p Progress
		if err := decodeJSON(pkt.Payload, &p); err != nil || r.job.OnProgress == nil || cancelled {
			return false, err
		}
		return false, r.job.OnProgress(p)
	case kindLog:
		var l Log
		if err := decodeJSON(pkt.Payload, &l); err != nil || r.job.OnLog == nil {
			return false, err
		}
		r.job.OnLog(l)
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
		return true, &StageError{Stage: r.job.Stage, Message: f.Message, Unknown: f.Unknown, Permanent: f.Permanent}
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
		if err := r.feed(ctx, i, note.from, note.to); err != nil && ctx.Err() == nil && !r.p.isDead() {
			r.abort(err)
		}
	})
	return nil
}

// feed leases one input's batches to the child, as fast as it releases them.
func (r *run) feed(ctx context.Context, input int, from, to uint64) error {
	name := r.job.Inputs[input].Name
	for in, err := range r.job.Inputs[input].Batches(ctx, from, to) {
		if err != nil {
			return fmt.Errorf("input %q: %w", name, err)
		}
		lease, err := r.place(ctx, in)
		if err != nil {
			return fmt.Errorf("input %q, batch %d: %w", name, in.Sequence, err)
		}
		select {
		case r.credit[input] <- struct{}{}:
		case <-ctx.Done():
			lease.Release()
			return context.Cause(ctx)
		}
		if err := r.lease(input, in.Sequence, lease); err != nil {
			return fmt.Errorf("input %q, batch %d: %w", name, in.Sequence, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r.feeding[input].Store(false) // the child may ask again once it has read the end
	return r.sent(r.p.conn.Send(kindEnd, r.id, binary.LittleEndian.AppendUint16(nil, uint16(input))))
}

// place makes sure that a batch is in shared memory.
func (r *run) place(ctx context.Context, in InputBatch) (*shm.Lease, error) {
	if in.Lease != nil {
		return in.Lease, nil
	}
	if in.Batch == nil {
		return nil, errors.New("neither lease nor batch")
	}
	a := r.host.cfg.Arena
	if a == nil {
		return nil, errors.New("the batch is not in shared memory and the host has no arena to put it in: set Config.Arena")
	}
	h, err := a.Put(ctx, in.Batch, &r.host.count.placed)
	if err != nil {
		return nil, err
	}
	lease, err := a.Lease(h, "worker")
	if err != nil {
		return nil, err
	}
	if err := a.Drop(h); err != nil {
		lease.Release()
		return nil, err
	}
	return lease, nil
}

// lease sends one batch by reference. It owns the lease from here on.
func (r *run) lease(input int, sequence uint64, lease *shm.Lease) error {
	body, err := arrowio.FrameBodyBytes(lease.Bytes())
	if err != nil {
		lease.Release()
		return err
	}
	token := newToken()
	payload, err := batchLease{input: uint16(input), sequence: sequence, token: token, handle: lease.Handle()}.encode()
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
	r.leased[token] = held{lease, input}
	r.mu.Unlock()
	r.host.count.leases.Add(1)
	// Noted first, granted then: forget, which looks in the other order, can't
	// take away an arena that is about to be used.
	if err := r.p.grant(lease.Arena()); err != nil {
		return err // reclaim releases the lease
	}
	r.host.count.inBatches.Add(1)
	r.host.count.inBytes.Add(uint64(body))
	return r.sent(r.p.conn.Send(kindBatch, r.id, payload))
}

func (r *run) sent(err error) error {
	if err != nil {
		r.p.kill(err)
	}
	return err
}

// release takes back leases that the child names. Unknown tokens, and so double
// releases, end the connection: after one the books can't be trusted.
func (r *run) release(tokens []uint64) error {
	for _, t := range tokens {
		r.mu.Lock()
		l, ok := r.leased[t]
		delete(r.leased, t)
		r.mu.Unlock()
		if !ok {
			return handoff.Violation("release of a lease that the child does not hold")
		}
		r.drop(l)
		<-r.credit[l.input]
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

// output adopts what the child published, validates it and hands it on.
func (r *run) output(ctx context.Context, pkt handoff.Packet, cancelled bool) error {
	fd := pkt.FDs[0]
	note, err := decodeOutputNote(pkt.Payload)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	arena, handle, err := shm.Adopt(fd, note.size, note.length)
	if err != nil {
		_ = unix.Close(fd)
		if !errors.Is(err, shm.ErrSeals) {
			return err // this process could not map it: not the child's fault
		}
		return fmt.Errorf("%w: output %d: %w", ErrProtocol, note.sequence, err)
	}
	out := &Output{Sequence: note.sequence, Arena: arena, Handle: handle}
	defer func() {
		if !out.kept {
			// It was published above and nobody else could drop it.
			_ = arena.Drop(handle)
		}
	}()
	lease, err := arena.Lease(handle, "worker-output")
	if err != nil {
		return err
	}
	frame := lease.Bytes()
	if out.Batch, err = lease.Batch(); err != nil {
		return fmt.Errorf("%w: output %d: %w", ErrProtocol, note.sequence, err)
	}
	defer out.Batch.Release()
	body, err := arrowio.FrameBodyBytes(frame)
	if err != nil {
		return fmt.Errorf("%w: output %d: %w", ErrProtocol, note.sequence, err)
	}
	r.host.count.outBatches.Add(1)
	r.host.count.outBytes.Add(uint64(body))
	r.copied += uint64(arrowio.BytesOutside(out.Batch, frame))
	if r.job.OnBatch != nil && !cancelled {
		if err := r.job.OnBatch(ctx, out); err != nil {
			return fmt.Errorf("take output %d: %w", note.sequence, err)
		}
	}
	return r.sent(r.p.conn.Send(kindAck, r.id, encodeU64(note.sequence)))
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
		err := p.conn.Send(kindArena, 0, handoff.ArenaGrant{ID: id, Size: a.Size()}.Encode(), fd)
		if err != nil {
			p.kill(err)
		}
		return err
	})
	if err != nil {
		return err
	}
	p.granted[a.ID()] = true
	return nil
}

func (p *process) revoke(a *shm.Arena, unused func() bool) {
	p.grantMu.Lock()
	defer p.grantMu.Unlock()
	if !unused() {
		return
	}
	if id, err := handoff.ArenaID(a.ID()); err == nil && p.granted[a.ID()] {
		delete(p.granted, a.ID())
		if err := p.conn.Send(kindForget, 0, id[:]); err != nil {
			p.kill(err)
		}
	}
}

func newToken() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails since Go 1.24
	return binary.LittleEndian.Uint64(b[:])
}

func clipped(s string, most int) string { return s[:min(len(s), most)] }
