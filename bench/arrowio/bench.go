package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"time"
)

// benchCase is one way to hand a batch over.
type benchCase struct {
	name   string
	python bool // needs the interpreter of the bench environment
	// sizes that it is measured at beside, or instead of, those asked for
	also  []int64
	alone []int64
	// baseline is the case of the same direction that its own line is compared with
	baseline string
	start    func(ctx context.Context, e *env) (handover, error)
}

// handover is a case whose processes run. They hold no batch between measures.
type handover interface {
	// measure hands batches of o.Size bytes over, one at a time.
	measure(ctx context.Context, o order) ([]time.Duration, error)
	close() error
}

// versioned cases know what they measure.
type versioned interface{ versions() map[string]string }

// order says how often to hand over batches of which size.
type order struct {
	Size    int64   `json:"size"`
	Warm    int     `json:"warm"` // not timed: pages are touched for the first time, caches fill, threads settle on CPUs
	Count   int     `json:"count"`
	Seconds float64 `json:"seconds"` // ends it early, after three
}

func newOrder(size int64, seconds float64) order {
	o := order{Size: size, Warm: 500, Count: 1000, Seconds: seconds}
	switch {
	case size > 64<<20:
		o.Warm, o.Count = 2, 5
	case size > 4<<20:
		o.Warm, o.Count = 10, 50
	case size > 256<<10:
		o.Warm, o.Count = 100, 200
	}
	return o
}

// pacer tells when enough was measured.
type pacer struct {
	o     order
	n     int
	until time.Time
	took  []time.Duration
}

// add notes one hand-over and reports whether another is wanted.
func (p *pacer) add(took time.Duration) bool {
	p.n++
	if p.n <= p.o.Warm {
		p.until = time.Now().Add(time.Duration(p.o.Seconds * float64(time.Second)))
		return true
	}
	p.took = append(p.took, took)
	return len(p.took) < p.o.Count && (len(p.took) < 3 || time.Now().Before(p.until))
}

// repeat times one as often as is ordered.
func (o order) repeat(ctx context.Context, one func() (time.Duration, error)) ([]time.Duration, error) {
	p := pacer{o: o}
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		took, err := one()
		if err != nil {
			return nil, err
		}
		if !p.add(took) {
			return p.took, nil
		}
	}
}

// env is what cases are started in.
type env struct {
	dir    string // for sockets and files; removed at the end
	root   string // of the repository
	python string
	sizes  []int64
}

// result is what was measured of one case at one size.
type result struct {
	rounds [][]time.Duration
	note   string // why there is none, or what is wrong with it
}

type bench struct {
	env
	set      settings
	results  map[string]map[int64]*result
	missing  map[string]string // cases that do not start, and why
	versions map[string]string
}

// measure runs the rounds. In each, every case is started, measured at each size
// and stopped, so that none disturbs another and only one needs memory; the order
// is turned by one from round to round.
func (b *bench) measure(ctx context.Context, all []benchCase) error {
	if len(all) == 0 {
		return errors.New("no case of that name; -list prints them")
	}
	for round := range b.set.rounds {
		for i := range all {
			c := all[(i+round)%len(all)]
			if b.missing[c.name] != "" {
				continue
			}
			progress("round %d of %d: %s", round+1, b.set.rounds, c.name)
			if err := b.one(ctx, c); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				b.missing[c.name] = err.Error()
				progress("%s: %v", c.name, err)
			}
		}
	}
	return nil
}

func (b *bench) one(ctx context.Context, c benchCase) (err error) {
	if c.python {
		if _, err := os.Stat(b.python); err != nil {
			return fmt.Errorf("no Python environment (%w): run task bench:arrowio:setup", err)
		}
	}
	h, err := c.start(ctx, &b.env)
	if err != nil {
		return fmt.Errorf("does not start: %w", err)
	}
	defer func() { err = errors.Join(err, h.close()) }()
	if v, ok := h.(versioned); ok {
		for name, version := range v.versions() {
			b.versions[name] = version
		}
	}
	for _, size := range c.sizes(b.set.sizes) {
		r := b.result(c.name, size)
		if r.note != "" {
			continue // failed in an earlier round
		}
		runtime.GC()
		took, err := b.within(ctx, h, newOrder(size, b.set.seconds))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			r.note = err.Error()
			progress("%s, %s: %v", c.name, sizeName(size), err)
			continue
		}
		r.rounds = append(r.rounds, took)
	}
	return nil
}

// within bounds what a case may take that hangs.
func (b *bench) within(ctx context.Context, h handover, o order) ([]time.Duration, error) {
	limit := measureLimit + time.Duration(o.Seconds*float64(time.Second))
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("gave up after %v", limit))
	defer cancel()
	if u, ok := h.(interface{ hurry(time.Time) }); ok {
		u.hurry(time.Now().Add(limit))
	}
	return h.measure(ctx, o)
}

// measureLimit is for the first hand-overs of large batches on a busy machine.
const measureLimit = time.Minute

func (b *bench) result(name string, size int64) *result {
	if b.results[name] == nil {
		b.results[name] = map[int64]*result{}
	}
	if b.results[name][size] == nil {
		b.results[name][size] = &result{}
	}
	return b.results[name][size]
}

func (c *benchCase) sizes(asked []int64) []int64 {
	if c.alone != nil {
		return c.alone
	}
	all := append(slices.Clone(c.also), asked...)
	slices.Sort(all)
	return slices.Compact(all)
}

// p50 is the median of the rounds' medians, in microseconds; 0 if nothing was
// measured.
func (r *result) p50() float64 {
	var medians []float64
	for _, round := range r.rounds {
		medians = append(medians, quantile(round, 0.5))
	}
	slices.Sort(medians)
	if len(medians) == 0 {
		return 0
	}
	return (medians[(len(medians)-1)/2] + medians[len(medians)/2]) / 2
}

// p99 is that of all rounds together: a round has too few of the large batches.
func (r *result) p99() float64 { return quantile(slices.Concat(r.rounds...), 0.99) }

func quantile(took []time.Duration, q float64) float64 {
	if len(took) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(took))
	return float64(s[min(len(s)-1, int(q*float64(len(s))))].Nanoseconds()) / 1e3
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// startProfile profiles this process if path is not empty.
func startProfile(path string) (stop func() error, err error) {
	if path == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}
