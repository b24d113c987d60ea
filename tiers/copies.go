package tiers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"golang.org/x/time/rate"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
)

// moves bounds what migrations take of the machine.
type moves struct {
	gate  chan struct{}
	bytes *rate.Limiter // nil: unlimited
}

// moveBurst is the most that is moved ahead of the rate.
const moveBurst = 8 << 20

func newMoves(bytesPerSecond int64, concurrency int) moves {
	m := moves{gate: make(chan struct{}, concurrency)}
	if bytesPerSecond > 0 {
		m.bytes = rate.NewLimiter(rate.Limit(bytesPerSecond), int(min(bytesPerSecond, moveBurst)))
	}
	return m
}

// enter waits for a place and for n bytes of the rate; done gives the place back.
func (m moves) enter(ctx context.Context, n int64) (done func(), err error) {
	select {
	case m.gate <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	done = func() { <-m.gate }
	for m.bytes != nil && n > 0 {
		take := min(n, int64(m.bytes.Burst()))
		if err := m.bytes.WaitN(ctx, int(take)); err != nil {
			done()
			return nil, err
		}
		n -= take
	}
	return done, nil
}

// healTimeout bounds the repair of one copy.
const healTimeout = 2 * time.Minute

// healLater repairs damaged copies of a batch from rec, which was verified, and
// reports them. It does not hold up the read.
func (s *Store) healLater(ref arrowio.Ref, damaged []damage, rec arrow.RecordBatch) {
	if len(damaged) == 0 {
		return
	}
	if rec != nil {
		rec.Retain()
	}
	s.background.Go(func() {
		if rec != nil {
			defer rec.Release()
		}
		ctx, cancel := context.WithTimeout(context.Background(), healTimeout)
		defer cancel()
		for _, d := range damaged {
			if _, err := s.heal(ctx, ref, d, rec); err != nil {
				s.log.WarnContext(ctx, "a damaged copy is not repaired", "batch", ref.ID(), "tier", d.loc.Tier, "error", err)
			}
		}
	})
}

// damage is a copy that is not what the catalog says.
type damage struct {
	loc arrowio.Location
	err error
}

// heal writes a copy of rec where the catalog names a damaged one, verifies it, and
// reports what was found and done. rec is nil if no copy is good.
func (s *Store) heal(ctx context.Context, ref arrowio.Ref, d damage, rec arrow.RecordBatch) (healed bool, err error) {
	unlock, err := s.healing.lock(ctx, ref.ID()+string(d.loc.Tier))
	if err != nil {
		return false, err
	}
	defer unlock()
	e, err := s.entry(ctx, ref.Dataset, ref.Sequence, false)
	if err != nil {
		return false, err
	}
	if now, ok := e.Ref.In(d.loc.Tier); !ok || now != d.loc {
		return false, nil // moved away, or repaired by another
	}
	var healErr error
	if to, ok := s.durable(d.loc.Tier); ok && rec != nil {
		healErr = s.rewrite(ctx, e.Ref, d.loc, to, rec)
		healed = healErr == nil
	}
	ev, err := events.New(events.TypeTierCopyDamaged, source, ref.Dataset,
		fmt.Sprintf("%s/damaged/%s/%s/%t", ref.ID(), d.loc.Tier, d.loc.SHA256, healed), time.Now().UTC(), events.TierCopyDamaged{
			Dataset: ref.Dataset, Sequence: int64(ref.Sequence), Tier: string(d.loc.Tier), URI: d.loc.URI, SHA256: d.loc.SHA256,
			Reason: clipReason(d.err), Healed: healed,
		})
	if err == nil {
		setLabels(&ev, e.Labels)
		err = s.bus.Publish(ctx, ev)
	}
	return healed, errors.Join(healErr, err)
}

func (s *Store) rewrite(ctx context.Context, ref arrowio.Ref, old arrowio.Location, to Driver, rec arrow.RecordBatch) error {
	loc, err := to.Write(ctx, ref, rec)
	if err != nil {
		return err
	}
	back, err := to.Read(ctx, ref, loc)
	if err != nil {
		return err
	}
	defer back.Release()
	if err := sameRecord(rec, back); err != nil {
		return fmt.Errorf("%w: the copy read back differs: %w", arrowio.ErrCorrupt, err)
	}
	if loc == old {
		return nil
	}
	// Encoded otherwise than when it was written first.
	return s.change(ctx, ref.Dataset, []uint64{ref.Sequence}, func(e *entry) (bool, error) {
		for i, l := range e.Ref.Locations {
			if l == old {
				e.Ref.Locations[i] = loc
				return true, nil
			}
		}
		return false, nil
	})
}

// maxReason bounds an error's text in an event.
const maxReason = 500

func clipReason(err error) string {
	s := err.Error()
	return s[:min(len(s), maxReason)]
}
