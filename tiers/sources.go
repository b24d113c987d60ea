package tiers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stokehold/stokehold/arrowio"
)

// origin is a place that a batch may be read from.
type origin struct {
	kind sourceKind
	loc  arrowio.Location // of warm and cold
	open func(context.Context) (*Batch, error)
}

type sourceKind int

const (
	fromPeer sourceKind = iota // another process of this host
	fromWarm
	fromFar // another host
	fromCold
	sourceKinds
)

func (k sourceKind) String() string { return [...]string{"peer", "warm", "far", "cold"}[k] }

// sources lists the places of a batch that is not in an arena of this process, the
// nearest first.
func (s *Store) sources(ref arrowio.Ref, use arenaUse) []origin {
	var out []origin
	peers := func(kind sourceKind, resolvers []arrowio.Resolver) {
		// A ref that names the batch alone says neither where it is nor what it must
		// be, so a peer's answer could not be checked.
		if len(resolvers) > 0 && ref.Fingerprint != "" && len(ref.Locations) > 0 {
			out = append(out, origin{kind: kind, open: func(ctx context.Context) (*Batch, error) { return s.openPeer(ctx, resolvers, ref) }})
		}
	}
	stored := func(kind sourceKind, tier arrowio.Tier, open func(context.Context, arrowio.Ref, arrowio.Location) (*Batch, error)) {
		if loc, ok := ref.In(tier); ok {
			out = append(out, origin{kind: kind, loc: loc, open: func(ctx context.Context) (*Batch, error) { return open(ctx, ref, loc) }})
		}
	}
	peers(fromPeer, s.peers.near)
	stored(fromWarm, arrowio.Warm, s.openWarm)
	peers(fromFar, s.peers.far)
	stored(fromCold, arrowio.Cold, func(ctx context.Context, ref arrowio.Ref, loc arrowio.Location) (*Batch, error) {
		return s.openCold(ctx, ref, loc, use)
	})
	return out
}

// lookup opens a batch wherever it is.
func (s *Store) lookup(ctx context.Context, ref arrowio.Ref) (*Batch, error) {
	b, err := s.openHot(ref)
	if b != nil {
		return b, nil
	}
	return s.fetch(ctx, ref, anywhere, err)
}

// fetch opens a batch from the first of its sources that can serve it. One that is
// slower than it usually is gets company (see hedge): then the first valid answer
// counts, and what another one brings later is given back. A batch that has to be
// decoded is decoded in the arena, if it is to go there. hot is why there is no
// hot copy; nil: there is none, and that is all.
func (s *Store) fetch(ctx context.Context, ref arrowio.Ref, use arenaUse, hot error) (*Batch, error) {
	r := &race{store: s, ref: ref, sources: s.sources(ref, use), ahead: use == ifRoom}
	b, err := r.run(ctx)
	if err == nil && b == nil { // nobody has it
		err = r.none(hot)
	}
	if err != nil && ctx.Err() != nil {
		return nil, err
	}
	if err != nil {
		s.healLater(ref, r.damaged, nil)
		return nil, err
	}
	s.healLater(ref, r.damaged, b.Record)
	return b, nil
}

// race is one fetch. It is used by one goroutine; those that wait for a source
// only send what they got.
type race struct {
	store   *Store
	ref     arrowio.Ref
	sources []origin
	ahead   bool // nobody waits for it yet

	next    int // the source to be asked next
	running int
	answers chan answer
	stops   []context.CancelFunc
	faults  []error
	damaged []damage
}

type answer struct {
	source origin
	hedge  bool // asked although another had not answered
	batch  *Batch
	err    error
}

// run asks the sources; nil and no error: none has the batch.
func (r *race) run(ctx context.Context) (*Batch, error) {
	defer r.leave()
	for r.running > 0 || r.next < len(r.sources) {
		a, err := r.step(ctx)
		if err != nil {
			return nil, err
		}
		switch {
		case a.err == nil:
			if a.hedge {
				r.store.hedge.won.Add(1)
			}
			return a.batch, nil
		case ctx.Err() != nil:
			return nil, a.err
		}
		r.failed(ctx, a)
	}
	return nil, nil
}

// step waits for the next answer, of a source that it asks unless some are being
// asked.
func (r *race) step(ctx context.Context) (answer, error) {
	if r.running > 0 {
		return r.wait(ctx)
	}
	src := r.sources[r.next]
	r.next++
	h := &r.store.hedge
	after, ok := h.after(src.kind, r.ref.BodyBytes)
	if r.ahead {
		after *= aheadPatience
	}
	if !ok || r.next == len(r.sources) && src.kind != fromCold {
		return r.ask(ctx, src, false), nil // nothing to judge it by, or nobody else to ask
	}
	r.start(ctx, src, false)
	late := time.NewTimer(after)
	defer late.Stop()
	select {
	case a := <-r.answers:
		r.running--
		return a, nil
	case <-ctx.Done():
		return answer{}, ctx.Err()
	case <-late.C:
	}
	if h.take() {
		second := src // the object store once more: another connection, maybe another server
		if r.next < len(r.sources) {
			second = r.sources[r.next]
			r.next++
		}
		r.start(ctx, second, true)
	}
	return r.wait(ctx)
}

func (r *race) wait(ctx context.Context) (answer, error) {
	select {
	case a := <-r.answers:
		r.running--
		return a, nil
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
}

func (r *race) start(ctx context.Context, src origin, hedge bool) {
	if r.answers == nil {
		r.answers = make(chan answer, len(r.sources)+1) // nobody who answers late blocks
	}
	ctx, cancel := context.WithCancel(ctx)
	r.stops = append(r.stops, cancel)
	r.running++
	r.store.background.Go(func() { r.answers <- r.ask(ctx, src, hedge) })
}

// ask reads from a source and notes how long it took.
func (r *race) ask(ctx context.Context, src origin, hedge bool) answer {
	begun := time.Now()
	b, err := src.open(ctx)
	if err == nil {
		r.store.hedge.took(src.kind, r.ref.BodyBytes, time.Since(begun))
	}
	return answer{source: src, hedge: hedge, batch: b, err: err}
}

// leave stops those that are still being asked, and gives back what they bring.
func (r *race) leave() {
	for _, stop := range r.stops {
		stop()
	}
	left := r.running
	if left == 0 {
		return
	}
	r.store.background.Go(func() {
		for range left {
			if a := <-r.answers; a.batch != nil {
				a.batch.Release()
			}
		}
	})
}

// failed notes why a source did not serve.
func (r *race) failed(ctx context.Context, a answer) {
	if a.source.kind == fromPeer || a.source.kind == fromFar {
		r.faults = append(r.faults, a.err)
		return
	}
	corrupt := errors.Is(a.err, arrowio.ErrCorrupt)
	if corrupt {
		r.store.log.ErrorContext(ctx, "damaged copy passed over", "batch", r.ref.ID(), "tier", a.source.loc.Tier, "error", a.err)
	}
	// A warm file that is not here may be on the disk of another host.
	if corrupt || a.source.kind == fromCold && errors.Is(a.err, arrowio.ErrGone) && r.store.cold != nil {
		r.damaged = append(r.damaged, damage{a.source.loc, a.err})
	}
	r.faults = append(r.faults, fmt.Errorf("%s: %w", a.source.loc.Tier, a.err))
}

// none is the error of a batch that nobody has.
func (r *race) none(hot error) error {
	faults := []error{ErrNoTierHas}
	if hot != nil {
		faults = append(faults, hot)
	}
	faults = append(faults, r.faults...)
	if len(faults) == 1 {
		faults = append(faults, errors.New("the ref names no location that is still there"))
	}
	return errors.Join(faults...)
}
