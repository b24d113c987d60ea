package worker

import (
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// peers is what a child granted of its own memory, host side, and what is still
// to be said about slots and arenas that ended. Slots end on whatever goroutine
// releases them last, so a goroutine of its own says so, many in one message.
type peers struct {
	limit int64 // bytes of all arenas; 0: none may be granted
	wake  chan struct{}

	mu     sync.Mutex
	arenas map[string]*shm.Peer // by the child's id
	bytes  int64
	out    map[uint64]struct{} // tokens of slots that are not free
	free   []uint64            // tokens to return
	gone   [][16]byte          // arenas, of other children, to forget
	over   bool
}

func newPeers(limit int64) *peers {
	return &peers{limit: limit, wake: make(chan struct{}, 1), arenas: map[string]*shm.Peer{}, out: map[uint64]struct{}{}}
}

// add maps an arena that the child grants. The descriptor is closed on error.
func (p *peers) add(pkt handoff.Packet) error {
	fd := pkt.FDs[0]
	m, err := handoff.DecodeArenaGrant(pkt.Payload)
	id := hex.EncodeToString(m.ID[:])
	p.mu.Lock()
	switch {
	case err != nil:
	case p.limit == 0:
		err = handoff.Violation("an arena was granted, but shared outputs are not allowed here: set Config.Outputs")
	case len(p.arenas) == maxGrants:
		err = handoff.Violation("more than %d arenas granted", maxGrants)
	case m.Size > p.limit-p.bytes:
		err = handoff.Violation("an arena of %d bytes granted beside %d: at most %d together", m.Size, p.bytes, p.limit)
	case p.arenas[id] != nil:
		err = handoff.Violation("arena %s granted twice", id)
	}
	var peer *shm.Peer
	if err == nil {
		peer, err = shm.AdoptArena(fd, m.Size, p.freed)
		if errors.Is(err, shm.ErrSeals) {
			err = fmt.Errorf("%w: grant: %w", ErrProtocol, err)
		}
	}
	over := p.over
	if err == nil {
		p.arenas[id] = peer
		p.bytes += m.Size
	}
	p.mu.Unlock()
	if err != nil {
		_ = unix.Close(fd) // received, never written to
		return err
	}
	if over {
		peer.Retire()
	}
	return nil
}

// publish makes the slot of a note known.
func (p *peers) publish(m publishNote) (*shm.Arena, shm.Handle, error) {
	p.mu.Lock()
	peer := p.arenas[m.handle.Arena]
	_, twice := p.out[m.token]
	var err error
	switch {
	case peer == nil:
		err = handoff.Violation("output %d lies in arena %s, which was not granted", m.sequence, m.handle.Arena)
	case twice:
		err = handoff.Violation("output %d has the token of another slot that is not returned", m.sequence)
	case len(p.out) == maxSlots:
		err = handoff.Violation("more than %d slots that are not returned", maxSlots)
	default:
		p.out[m.token] = struct{}{}
	}
	p.mu.Unlock()
	if err != nil {
		return nil, shm.Handle{}, err
	}
	// Not under mu: freed is called with the arena locked.
	h, err := peer.Publish(m.token, m.handle.Offset, m.handle.Length)
	if err != nil {
		p.mu.Lock()
		delete(p.out, m.token)
		p.mu.Unlock()
		if errors.Is(err, shm.ErrSlot) {
			err = fmt.Errorf("%w: output %d: %w", ErrProtocol, m.sequence, err)
		}
		return nil, shm.Handle{}, err
	}
	return peer.Arena(), h, nil
}

// freed notes that nobody holds a slot any more.
func (p *peers) freed(token uint64) {
	p.mu.Lock()
	delete(p.out, token)
	if !p.over {
		p.free = append(p.free, token)
	}
	p.mu.Unlock()
	p.signal()
}

// ended notes that another child's arena, which this child was lent, is gone.
func (p *peers) ended(id [16]byte) {
	p.mu.Lock()
	if !p.over {
		p.gone = append(p.gone, id)
	}
	p.mu.Unlock()
	p.signal()
}

func (p *peers) signal() {
	select {
	case p.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// next takes what is to be said: at most maxTokens tokens, appended to tokens, and
// all ended arenas.
func (p *peers) next(tokens []uint64) ([]uint64, [][16]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(len(p.free), maxTokens)
	tokens = append(tokens, p.free[:n]...)
	p.free = p.free[:copy(p.free, p.free[n:])]
	gone := p.gone
	p.gone = nil
	if len(p.free) > 0 {
		p.signal()
	}
	return tokens, gone
}

// retire ends what the child granted, as soon as nobody reads it.
func (p *peers) retire() {
	p.mu.Lock()
	p.over = true
	p.free, p.gone = nil, nil
	all := make([]*shm.Peer, 0, len(p.arenas))
	for _, a := range p.arenas {
		all = append(all, a)
	}
	p.mu.Unlock()
	for _, a := range all {
		a.Retire()
	}
}

// tell says what slots and arenas have ended, until the child is dead.
func (p *process) tell() {
	var tokens []uint64
	var payload []byte
	for {
		select {
		case <-p.peers.wake:
		case <-p.dead:
			return
		}
		var gone [][16]byte
		tokens, gone = p.peers.next(tokens[:0])
		if len(tokens) > 0 {
			payload = appendTokens(payload[:0], tokens)
			if p.send(kindReturned, 0, payload) != nil {
				return
			}
		}
		for _, id := range gone {
			if p.withdraw(id) != nil {
				return
			}
		}
	}
}
