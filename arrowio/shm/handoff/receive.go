package handoff

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

// received deals with one message from the server, or with why none came.
func (c *Client) received(pkt Packet, err error) error {
	if err == nil {
		c.hear()
		err = c.handle(pkt)
	}
	switch {
	case err == nil:
		return nil
	case isEOF(err):
		err = goneErr("process %d has closed the connection or ended", c.pid)
	case errors.Is(err, net.ErrClosed):
		err = goneErr("closed")
	case !errors.Is(err, arrowio.ErrGone):
		err = goneErr("%w", err)
	}
	c.lose(err)
	return err
}

func (c *Client) handle(pkt Packet) error {
	switch pkt.Kind {
	case kindLeased:
		token, err := decodeU64(pkt.Payload)
		if err != nil {
			return err
		}
		return c.answer(pkt.Job, token, nil)
	case kindRefused:
		m, err := decodeNotice(pkt.Payload)
		if err != nil {
			return err
		}
		if pkt.Job == statusJob {
			return c.refuseStatus(m)
		}
		return c.answer(pkt.Job, 0, m.err())
	case kindStatus:
		return c.statusPiece(pkt)
	default:
		if pkt.Job != 0 {
			pkt.CloseFDs()
			return Violation("message of kind %d with request number %d", pkt.Kind, pkt.Job)
		}
		return c.handleOwn(pkt)
	}
}

// handleOwn handles the messages that answer no request.
func (c *Client) handleOwn(pkt Packet) error {
	switch pkt.Kind {
	case kindPing:
		if _, err := decodeU64(pkt.Payload); err != nil {
			return err
		}
		// Without room the server has other messages to read, which say as much.
		if _, err := c.conn.TrySend(kindPong, 0, pkt.Payload); err != nil {
			return goneErr("%w", err)
		}
		return nil
	case kindArena:
		return c.open(pkt)
	case kindForget:
		id, err := decodeID(pkt.Payload)
		if err != nil {
			return err
		}
		return c.forget(id)
	case kindLeave:
		if len(pkt.Payload) != 0 {
			return Violation("leave with a payload")
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.why == nil {
			c.ending = true
			c.why = goneErr("process %d is closing", c.pid)
			close(c.lost)
		}
		c.finish()
		return nil
	case kindError:
		return errorFrom(pkt.Payload)
	default:
		return Violation("message of kind %d from a server", pkt.Kind)
	}
}

// answer hands the answer to a request to who asked.
func (c *Client) answer(job uint32, token uint64, refused error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if job == 0 || int(job) > len(c.entries) || !c.entries[job-1].waiting.Load() {
		return Violation("answer to a request %d that was not made", job)
	}
	h := &c.entries[job-1]
	h.err = refused
	if refused == nil {
		v := c.views[h.arena]
		if v == nil {
			return Violation("lease in an arena that was not granted")
		}
		b, err := v.v.Bytes(h.handle)
		if err != nil {
			return Violation("lease of %s, which is not in its arena", h.handle)
		}
		h.token, h.view, h.bytes = token, v, b
		v.users++
	}
	h.waiting.Store(false)
	switch {
	case !h.left: // who asked sees it
	case refused == nil:
		c.drop(h)
	default:
		c.idle(h)
		c.free <- h
	}
	return nil
}

// open verifies and maps an arena; its descriptor is closed in any case.
func (c *Client) open(pkt Packet) error {
	defer pkt.CloseFDs()
	m, err := DecodeArenaGrant(pkt.Payload)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return errBye
	}
	if old := c.views[m.ID]; old != nil && !old.forgotten {
		return Violation("arena %x granted twice", m.ID)
	}
	if len(c.views) >= maxViews {
		return Violation("more than %d arenas granted", maxViews)
	}
	v, err := shm.OpenView(pkt.FDs[0], hex.EncodeToString(m.ID[:]), m.Size)
	if errors.Is(err, shm.ErrSeals) {
		return Violation("%w", err)
	}
	if err != nil {
		return err
	}
	c.views[m.ID] = &view{v: v}
	return nil
}

// maxViews bounds the mappings of one connection, whatever its server grants.
const maxViews = 4096

func (c *Client) forget(id [16]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.views[id]
	if v == nil || v.forgotten {
		return Violation("forget of an arena that was not granted")
	}
	v.forgotten = true
	c.unmapUnused(id, v)
	return nil
}

// watch gives up a server that is silent for too long: it pings.
func (c *Client) watch(beat time.Duration) {
	every := max(min(beat, c.stall/4), time.Millisecond)
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-c.over:
			return
		case <-tick.C:
		}
		now := time.Now()
		if now.Sub(last) > 2*every+beat/2 {
			c.hear() // this process itself was held up
		}
		last = now
		if silent := now.Sub(c.started) - time.Duration(c.heard.Load()); silent > c.stall && !c.conn.unread() {
			c.lose(goneErr("process %d is silent for %v", c.pid, silent.Round(time.Millisecond)))
		}
	}
}

// err is what the caller of Lease gets to see.
func (m notice) err() error {
	switch m.code {
	case CodeQuota:
		return fmt.Errorf("%w: %s", ErrQuota, m.text)
	default:
		return fmt.Errorf("%w: %s", arrowio.ErrGone, m.text)
	}
}

// errorFrom is the error that ended the connection.
func errorFrom(payload []byte) error {
	m, err := decodeNotice(payload)
	if err != nil {
		return err
	}
	switch m.code {
	case CodeVersion:
		return goneErr("%w: %s", ErrVersion, m.text)
	case CodeProtocol:
		return goneErr("%w, says the server: %s", ErrProtocol, m.text)
	case CodeBusy:
		return goneErr("%w: %s", ErrQuota, m.text)
	default:
		return goneErr("%s", m.text)
	}
}
