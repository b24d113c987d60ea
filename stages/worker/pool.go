package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Pool is several children of one program, so that jobs that wait for one another
// (a stage and the one that reads what it writes) run at once. Safe for
// concurrent use.
type Pool struct {
	cfg  Config
	busy chan struct{} // a place for each job at work

	mu     sync.Mutex
	hosts  []*Host
	idle   []*Host // the one used last is at the end: it is warm
	closed bool
}

// StartPool starts the first child, waits until it is ready, and starts further
// ones, up to Config.Processes, when there are jobs for them. The errors are those
// of Start.
func StartPool(ctx context.Context, cfg Config) (*Pool, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	h, err := Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Pool{cfg: cfg, busy: make(chan struct{}, cfg.Processes), hosts: []*Host{h}, idle: []*Host{h}}, nil
}

// Accelerator is what a child has, and how many of them.
func (p *Pool) Accelerator() (kind string, count int) {
	return p.cfg.Accelerator, max(p.cfg.Accelerators, 1)
}

// Do runs a job as Host.Do does, on a child that has none. While all children are
// at work it waits.
func (p *Pool) Do(ctx context.Context, job Job) error {
	select {
	case p.busy <- struct{}{}:
		defer func() { <-p.busy }()
	case <-ctx.Done():
		return fmt.Errorf("worker: stage %q: all %d processes are at work: %w", job.Stage, p.cfg.Processes, context.Cause(ctx))
	}
	h, err := p.take()
	if err != nil {
		return err
	}
	defer p.give(h)
	return h.Do(ctx, job)
}

func (p *Pool) take() (*Host, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	if n := len(p.idle); n > 0 {
		h := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return h, nil
	}
	h := newHost(p.cfg) // its child starts with its first job
	p.hosts = append(p.hosts, h)
	return h, nil
}

func (p *Pool) give(h *Host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, h)
}

// Stats is the sum over the children.
func (p *Pool) Stats() Stats {
	var sum Stats
	for _, h := range p.all() {
		sum.add(h.Stats())
	}
	return sum
}

// PIDs are the process ids of the children that live now.
func (p *Pool) PIDs() []int {
	var pids []int
	for _, h := range p.all() {
		if pid := h.PID(); pid != 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (p *Pool) all() []*Host {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]*Host(nil), p.hosts...)
}

// Close closes all hosts, see Host.Close. Repeatable.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	all := p.all()
	errs := make([]error, len(all))
	var wait sync.WaitGroup
	for i, h := range all {
		wait.Go(func() { errs[i] = h.Close(ctx) })
	}
	wait.Wait()
	return errors.Join(errs...)
}
