package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// outputArena is the child's own arena, child side: made and granted with the
// first output that is to go there, used until the connection ends.
type outputArena struct {
	limit int64 // bytes; 0: the host allows none

	mu    sync.Mutex
	arena *shm.Arena
	none  bool // there is no memory for it
	out   map[uint64]shm.Handle
}

// pieces is how long a loan may take where there is room, but perhaps in pieces.
const pieces = time.Millisecond

// patience is a context that ends, beside for its own reasons, when it has been
// waited on for pieces. With a deadline from the start, a child that a busy machine
// does not let run for that long would not even look for memory. For one goroutine.
type patience struct {
	context.Context
	brief context.Context // made by the first wait
	stop  context.CancelFunc
}

func (p *patience) Done() <-chan struct{} {
	if p.brief == nil {
		p.brief, p.stop = context.WithTimeout(p.Context, pieces)
	}
	return p.brief.Done()
}

func (p *patience) Err() error {
	if p.brief == nil {
		return p.Context.Err()
	}
	return p.brief.Err()
}

func (p *patience) end() {
	if p.stop != nil {
		p.stop()
	}
}

// room returns the arena if it has room for bytes; nil where it has none now. It
// does not wait: slots may stay out for long, and a segment serves as well.
func (o *outputArena) room(conn *handoff.Conn, bytes int64) (*shm.Arena, error) {
	if bytes > o.limit {
		return nil, nil
	}
	a, err := o.get(conn)
	if a == nil || err != nil {
		return nil, err
	}
	if st := a.Stats(); st.Used+bytes+shm.Alignment > st.Capacity {
		return nil, nil
	}
	return a, nil
}

// loan takes memory for an output; nil where there is no room now.
func (o *outputArena) loan(ctx context.Context, conn *handoff.Conn, bytes int64) (*shm.Loan, error) {
	a, err := o.room(conn, bytes)
	if a == nil || err != nil {
		return nil, err
	}
	brief := &patience{Context: ctx}
	defer brief.end()
	l, err := a.Loan(brief, bytes)
	if err != nil && ctx.Err() == nil {
		return nil, nil
	}
	return l, err
}

// get makes and grants the arena the first time.
func (o *outputArena) get(conn *handoff.Conn) (*shm.Arena, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.arena != nil || o.none {
		return o.arena, nil
	}
	a, err := shm.New(shm.Config{Bytes: o.limit - o.limit%int64(os.Getpagesize()), Name: "stokehold-child"})
	if err != nil {
		o.none = true // segments take what there is
		return nil, nil
	}
	id, err := handoff.ArenaID(a.ID())
	if err == nil {
		err = a.WithFD(func(fd int) error {
			return conn.Send(kindGrant, 0, handoff.ArenaGrant{ID: id, Size: a.Size()}.Encode(), fd)
		})
	}
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	o.arena, o.out = a, map[uint64]shm.Handle{}
	return a, nil
}

// token gives a published slot one.
func (o *outputArena) token(h shm.Handle) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	token := newToken()
	for _, twice := o.out[token]; twice; _, twice = o.out[token] {
		token = newToken()
	}
	o.out[token] = h
	return token
}

// returned frees slots that the host names.
func (o *outputArena) returned(tokens []uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, t := range tokens {
		h, ok := o.out[t]
		if !ok {
			return handoff.Violation("return of a slot that is not out")
		}
		delete(o.out, t)
		if err := o.arena.Drop(h); err != nil {
			return err
		}
	}
	return nil
}

func (o *outputArena) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.arena != nil {
		_ = o.arena.Close() // always nil: what is mapped ends with its last user
	}
}

// writeShared publishes a frame in this process's arena. Neither sent nor an
// error: there is no room.
func (t *ChildTask) writeShared(ctx context.Context, sequence uint64, frame *arrowio.Frame) (sent bool, err error) {
	own := &t.server.own
	l, err := own.loan(ctx, t.server.conn, frame.Size())
	if l == nil || err != nil {
		return false, err
	}
	if _, err := frame.EncodeTo(l.Bytes(), &t.written); err != nil {
		l.Cancel()
		return false, err
	}
	return t.publish(sequence, l.Publish())
}

// publish tells the host of a slot of this process's arena.
func (t *ChildTask) publish(sequence uint64, h shm.Handle) (sent bool, err error) {
	own := &t.server.own
	token := own.token(h)
	note, err := publishNote{sequence: sequence, token: token, handle: h}.encode()
	if err == nil {
		err = t.send(kindPublish, note)
	}
	if err != nil { // the host has not heard of it
		return false, errors.Join(err, own.returned([]uint64{token}))
	}
	return true, nil
}

// OutputBuild is memory in which Arrow builders make an output where the host
// will read it, so that writing it copies no body. It ends with Write or Cancel.
// Not safe for concurrent use.
type OutputBuild struct {
	task  *ChildTask
	build *shm.Build // nil: there was no room, or the host allows no shared outputs
	done  bool
}

// Build starts an output of that schema whose buffers need bytes at most, see
// shm.Arena.Build. Where the host allows no shared outputs, or there is no room
// now, its allocator is the Go heap's and Write copies as ChildTask.Write does.
func (t *ChildTask) Build(ctx context.Context, schema *arrow.Schema, bytes int64) (*OutputBuild, error) {
	b := &OutputBuild{task: t}
	if !t.shared {
		return b, nil
	}
	head, err := arrowio.HeadBytes(schema, bytes)
	if err != nil {
		return nil, err
	}
	a, err := t.server.own.room(t.server.conn, head+bytes+shm.Alignment)
	if a == nil || err != nil {
		return b, err
	}
	brief := &patience{Context: ctx}
	defer brief.end()
	b.build, err = a.Build(brief, schema, bytes)
	if err != nil && ctx.Err() == nil {
		return b, nil
	}
	return b, err
}

// Allocator is for the builders of the batch.
func (b *OutputBuild) Allocator() memory.Allocator {
	if b.build == nil {
		return memory.DefaultAllocator
	}
	return b.build.Allocator()
}

// InPlace reports whether the memory is the host's to read.
func (b *OutputBuild) InPlace() bool { return b.build != nil }

// Write publishes a batch that was made in the build's memory, waiting as
// ChildTask.Write does; what lies elsewhere is copied. The caller keeps its
// reference and releases it soon: the memory is used again when the host has
// returned the slot and the batch is gone. Nothing may be written through the
// memory any more.
func (b *OutputBuild) Write(ctx context.Context, sequence uint64, batch arrow.RecordBatch) error {
	switch {
	case b.done:
		return fmt.Errorf("worker: write batch %d: %w", sequence, shm.ErrEnded)
	case b.build == nil:
		b.done = true
		return b.task.Write(ctx, sequence, batch)
	}
	b.done = true
	t := b.task
	if err := t.admit(ctx); err != nil {
		b.build.Cancel()
		return fmt.Errorf("worker: write batch %d: %w", sequence, err)
	}
	sent, err := b.publish(ctx, sequence, batch)
	if !sent {
		<-t.window
	}
	return err
}

func (b *OutputBuild) publish(ctx context.Context, sequence uint64, batch arrow.RecordBatch) (sent bool, err error) {
	brief := &patience{Context: ctx}
	defer brief.end()
	h, _, err := b.build.Publish(brief, batch, &b.task.written)
	if err == nil {
		return b.task.publish(sequence, h)
	}
	if ctx.Err() != nil || brief.Err() == nil {
		return false, err
	}
	return b.task.write(ctx, sequence, batch) // it did not fit where it was made
}

// Cancel ends the build without an output. Does nothing once it has ended.
func (b *OutputBuild) Cancel() {
	if b.build != nil && !b.done {
		b.build.Cancel()
	}
	b.done = true
}
