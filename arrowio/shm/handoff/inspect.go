package handoff

import (
	"context"
	"errors"
	"fmt"
)

// statusJob is the request number of inspections; leases have those from 1 on.
const statusJob = 1<<32 - 1

// statusRequest is the one inspection that is under way.
type statusRequest struct {
	turn chan struct{} // held by who asks; made with the first
	done chan struct{} // nil: nobody asks
	buf  []byte
	next uint32
	st   Status
	err  error
}

// Status asks the server for its state. The error wraps arrowio.ErrGone if the
// connection is lost, or is ctx's.
func (c *Client) Status(ctx context.Context) (Status, error) {
	c.mu.Lock()
	if c.ask.turn == nil {
		c.ask.turn = make(chan struct{}, 1)
	}
	turn := c.ask.turn
	c.mu.Unlock()
	select {
	case turn <- struct{}{}:
	case <-c.lost:
		return Status{}, c.lostErr()
	case <-ctx.Done():
		return Status{}, ctx.Err()
	}
	done := make(chan struct{})
	c.mu.Lock()
	c.ask.done, c.ask.buf, c.ask.next = done, nil, 0
	c.mu.Unlock()
	if err := c.conn.Send(kindInspect, statusJob, nil); err != nil {
		return Status{}, goneErr("%w", err) // the turn is not given back: the connection is over
	}
	select {
	case <-done:
		c.mu.Lock()
		st, err := c.ask.st, c.ask.err
		c.mu.Unlock()
		<-turn
		return st, err
	case <-c.lost:
		return Status{}, c.lostErr()
	case <-ctx.Done():
		// The answer still comes; then the turn is free.
		go func() {
			select {
			case <-done:
				<-turn
			case <-c.lost:
			}
		}()
		return Status{}, fmt.Errorf("handoff: status of process %d: %w", c.pid, ctx.Err())
	}
}

func (c *Client) statusPiece(pkt Packet) error {
	m, err := decodePiece(pkt.Payload)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if pkt.Job != statusJob || c.ask.done == nil || m.part != c.ask.next {
		return Violation("part %d of a status that was not asked for", m.part)
	}
	c.ask.buf = append(c.ask.buf, m.json...)
	if c.ask.next++; c.ask.next < m.parts {
		return nil
	}
	st, err := decodeStatus(c.ask.buf)
	if err != nil {
		return err
	}
	c.answerStatus(st, nil)
	return nil
}

func (c *Client) refuseStatus(m notice) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ask.done == nil {
		return Violation("refused a status that was not asked for")
	}
	c.answerStatus(Status{}, errors.New("handoff: status refused: "+m.text))
	return nil
}

// answerStatus hands it to who asked. Callers hold mu.
func (c *Client) answerStatus(st Status, err error) {
	c.ask.st, c.ask.err = st, err
	close(c.ask.done)
	c.ask.done, c.ask.buf = nil, nil
}
