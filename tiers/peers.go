package tiers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/stokehold/stokehold/arrowio"
)

const (
	// defaultPeerTimeout bounds one peer's answer: long enough for a large batch
	// over a network, short enough that a dead host is no more than a hiccup.
	defaultPeerTimeout = 5 * time.Second
	// peerLogEvery spaces out the warnings about peers. A dead peer would give one
	// for every batch read; Stats.PeerErrors counts them all.
	peerLogEvery = 10 * time.Second
)

// peers is what a Store needs to read batches that other processes hold.
type peers struct {
	near, far []arrowio.Resolver
	timeout   time.Duration
	opened    atomic.Int64
	errors    atomic.Int64
	warned    atomic.Int64 // when the last warning was logged, Unix nanoseconds
}

func (p *peers) open(cfg Config) {
	if p.timeout = cfg.PeerTimeout; p.timeout == 0 {
		p.timeout = defaultPeerTimeout
	}
	p.near, p.far = members(cfg.Peers), members(cfg.Far)
}

// members of a list each get their own time, so that the first of them cannot use up
// what the others need.
func members(r arrowio.Resolver) []arrowio.Resolver {
	if list, ok := r.(arrowio.Resolvers); ok {
		return list
	}
	if r == nil {
		return nil
	}
	return []arrowio.Resolver{r}
}

// openPeer asks other processes for a batch.
func (s *Store) openPeer(ctx context.Context, resolvers []arrowio.Resolver, ref arrowio.Ref) (*Batch, error) {
	var faults []error
	for _, r := range resolvers {
		b, err := s.askPeer(ctx, r, ref)
		if err == nil {
			return b, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		faults = append(faults, err)
		if errors.Is(err, arrowio.ErrGone) && !errors.Is(err, arrowio.ErrCorrupt) {
			continue // an answer, and a common one: hot copies come and go
		}
		s.peers.errors.Add(1)
		s.warnPeer(ctx, ref, err)
	}
	return nil, errors.Join(faults...)
}

func (s *Store) askPeer(ctx context.Context, r arrowio.Resolver, ref arrowio.Ref) (*Batch, error) {
	ctx, cancel := context.WithTimeout(ctx, s.peers.timeout)
	defer cancel()
	rec, err := r.Resolve(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	b, err := s.checked(&Batch{Ref: ref, Record: rec, Tier: arrowio.Hot, Peer: true})
	if err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	return b, nil
}

func (s *Store) warnPeer(ctx context.Context, ref arrowio.Ref, err error) {
	now, last := time.Now().UnixNano(), s.peers.warned.Load()
	// A corrupt batch is never a matter of a host being down: it is always told.
	if errors.Is(err, arrowio.ErrCorrupt) {
		s.log.ErrorContext(ctx, "damaged batch from a peer passed over", "batch", ref.ID(), "error", err)
		return
	}
	if now-last < int64(peerLogEvery) || !s.peers.warned.CompareAndSwap(last, now) {
		return
	}
	s.log.WarnContext(ctx, "a peer could not serve a batch; the other tiers are tried",
		"batch", ref.ID(), "error", err, "errors", s.peers.errors.Load())
}
