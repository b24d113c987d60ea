package worker

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

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

// loan takes memory for an output; nil where there is no room now. It does not
// wait: slots may stay out for long, and a segment of its own serves as well.
func (o *outputArena) loan(ctx context.Context, conn *handoff.Conn, bytes int64) (*shm.Loan, error) {
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
	brief, cancel := context.WithTimeout(ctx, pieces)
	defer cancel()
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

// publish gives the loan a token.
func (o *outputArena) publish(l *shm.Loan) (uint64, shm.Handle) {
	h := l.Publish()
	o.mu.Lock()
	defer o.mu.Unlock()
	token := newToken()
	for _, twice := o.out[token]; twice; _, twice = o.out[token] {
		token = newToken()
	}
	o.out[token] = h
	return token, h
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
	token, h := own.publish(l)
	note, err := publishNote{sequence: sequence, token: token, handle: h}.encode()
	if err == nil {
		err = t.send(kindPublish, note)
	}
	if err != nil { // the host has not heard of it
		return false, errors.Join(err, own.returned([]uint64{token}))
	}
	return true, nil
}
