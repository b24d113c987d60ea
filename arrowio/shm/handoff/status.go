package handoff

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/stokehold/stokehold/arrowio/shm"
)

// maxArenasShown bounds the list in a Status; Totals count all.
const maxArenasShown = 4096

// Status is what a Server says of itself, its host's arenas and its peers.
type Status struct {
	PID     int           `json:"pid"`
	Started time.Time     `json:"started"`
	Socket  string        `json:"socket"`
	Arenas  []ArenaStatus `json:"arenas"` // at most 4,096, the largest use first
	Peers   []PeerStatus  `json:"peers"`
	Memory  shm.Stats     `json:"memory"` // of all arenas
	Served  Served        `json:"served"`
}

// ArenaStatus is one arena. Bytes are of slots as reserved.
type ArenaStatus struct {
	ID        string `json:"id"`
	Inode     uint64 `json:"inode"` // of its memfd
	Size      int64  `json:"size"`
	Used      int64  `json:"used"`
	HighWater int64  `json:"high_water"`
	Slots     int    `json:"slots"`
	Leases    int    `json:"leases"`  // of this process and others
	Waiting   int    `json:"waiting"` // loans that wait for memory
	Adopted   bool   `json:"adopted,omitempty"`
	// Holders are who has the leases, at most 64 of them.
	Holders []shm.Holder `json:"holders,omitempty"`
}

// PeerStatus is one connection.
type PeerStatus struct {
	PID       int       `json:"pid"` // 0: of another PID namespace
	UID       uint32    `json:"uid"`
	State     State     `json:"state"`
	Reason    string    `json:"reason,omitempty"` // it was cut off
	Leases    int       `json:"leases"`
	Bytes     int64     `json:"bytes"` // leased
	Arenas    int       `json:"arenas"`
	Connected time.Time `json:"connected"`
}

// Served counts what a Server did since it started.
type Served struct {
	Accepted   uint64 `json:"accepted"`
	Rejected   uint64 `json:"rejected"` // connections: not allowed, or too many
	Leased     uint64 `json:"leased"`
	Refused    uint64 `json:"refused"`    // leases
	Violations uint64 `json:"violations"` // of the protocol
	Stalled    uint64 `json:"stalled"`    // peers given up
	Killed     uint64 `json:"killed"`     // of them, since they were stopped with leases
	Reclaimed  uint64 `json:"reclaimed"`  // leases of peers that ended with them
}

// Status returns the current state.
func (s *Server) Status() Status { return s.statusFor(nil) }

// statusFor leaves out the peer that asks.
func (s *Server) statusFor(asking *peer) Status {
	st := Status{PID: ownPID(), Started: s.started, Socket: s.Path(), Arenas: []ArenaStatus{}, Peers: []PeerStatus{}, Memory: s.cfg.Host.Stats()}
	for _, a := range s.cfg.Host.Arenas() {
		inode, err := a.Inode()
		m := a.Stats()
		if err != nil && m.Capacity == 0 {
			continue // it has just ended
		}
		st.Arenas = append(st.Arenas, ArenaStatus{
			ID: a.ID(), Inode: inode, Size: a.Size(), Used: m.Used, HighWater: m.HighWater,
			Slots: m.Slots, Leases: m.Leases, Waiting: m.Waiting, Adopted: a.Adopted(), Holders: holders(a),
		})
	}
	slices.SortFunc(st.Arenas, func(x, y ArenaStatus) int {
		return cmp.Or(cmp.Compare(y.Used, x.Used), cmp.Compare(x.ID, y.ID))
	})
	st.Arenas = st.Arenas[:min(len(st.Arenas), maxArenasShown)]
	s.mu.Lock()
	peers := s.all()
	s.mu.Unlock()
	for _, p := range peers {
		if ps, ok := p.status(); ok && (p != asking || ps.Leases > 0) {
			st.Peers = append(st.Peers, ps)
		}
	}
	slices.SortFunc(st.Peers, func(x, y PeerStatus) int {
		return cmp.Or(x.Connected.Compare(y.Connected), cmp.Compare(x.PID, y.PID))
	})
	t := &s.total
	st.Served = Served{
		Accepted: t.Accepted.Load(), Rejected: t.Rejected.Load(), Leased: t.Leased.Load(), Refused: t.Refused.Load(),
		Violations: t.Violations.Load(), Stalled: t.Stalled.Load(), Killed: t.Killed.Load(), Reclaimed: t.Reclaimed.Load(),
	}
	return st
}

// maxHolders bounds the list of each arena in a Status.
const maxHolders = 64

func holders(a *shm.Arena) []shm.Holder {
	all := a.Holders()
	return all[:min(len(all), maxHolders)]
}

func (p *peer) status() (PeerStatus, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PeerStatus{
		PID: p.id.pid, UID: p.id.uid, State: p.state, Reason: p.why, Leases: len(p.held), Bytes: p.bytes,
		Arenas: len(p.grants), Connected: p.since,
	}, !p.ended
}

func (st Status) encode() ([]byte, error) {
	b, err := json.Marshal(st)
	if err != nil {
		return nil, fmt.Errorf("handoff: status: %w", err)
	}
	return b, nil
}

func decodeStatus(b []byte) (st Status, err error) {
	if err := json.Unmarshal(b, &st); err != nil {
		return Status{}, Violation("status: %v", err)
	}
	return st, nil
}
