package tiers

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
)

// Promotion says what a read from the cold tier leaves behind. The zero value:
// nothing.
type Promotion struct {
	// WarmBytes is how much the files of the warm directory may have together, whoever
	// wrote them, for a read to leave one more: a copy of the batch that it read,
	// verified and judged like any other move to the warm tier. 0: it leaves none. It
	// should be at most the low watermark of the tier policies, or these soon take away
	// again what was brought.
	WarmBytes int64
}

const (
	// measureEvery is how often the warm directory is measured for Promotion: other
	// processes write there too. In between what this one writes is counted.
	measureEvery = 30 * time.Second
	// deniedFor is how long no promotion of a dataset is asked for after governance
	// refused one.
	deniedFor = time.Minute
	// promotionTimeout bounds one promotion.
	promotionTimeout = 2 * time.Minute
)

// promotions is what reads from the cold tier leave in the warm one.
type promotions struct {
	Promotion
	slots  chan struct{} // one for each under way
	closed chan struct{}
	close  sync.Once

	done, bytes, refused atomic.Int64
	underway             sync.Map // batch id
	denied               sync.Map // dataset -> time.Time until which none is asked for

	mu       sync.Mutex
	measured time.Time
	used     int64 // bytes in the warm directory when it was measured
	written  int64 // warm.written then
	coming   int64 // of promotions under way
}

func (p *promotions) open(cfg Promotion, concurrency int) {
	p.Promotion, p.slots, p.closed = cfg, make(chan struct{}, concurrency), make(chan struct{})
}

func (p *promotions) stop() { p.close.Do(func() { close(p.closed) }) }

// promoteLater copies a batch that was read from the cold tier to the warm one, if
// there is none and it may. It does not hold up the read, and what finds too many
// others under way is left for the next.
func (s *Store) promoteLater(b *Batch) {
	p := &s.promotions
	if p.WarmBytes == 0 || b.Tier != arrowio.Cold || b.Peer {
		return
	}
	if _, warm := b.Ref.In(arrowio.Warm); warm {
		return
	}
	if until, ok := p.denied.Load(b.Ref.Dataset); ok && time.Now().Before(until.(time.Time)) {
		p.refused.Add(1)
		return
	}
	id := b.Ref.ID()
	if _, is := p.underway.LoadOrStore(id, true); is {
		return
	}
	select {
	case p.slots <- struct{}{}:
	default:
		p.underway.Delete(id)
		p.refused.Add(1)
		return
	}
	have := &Batch{Ref: b.Ref, Record: b.Record, Tier: b.Tier}
	have.Record.Retain()
	s.background.Go(func() {
		defer func() { <-p.slots }()
		defer p.underway.Delete(id)
		defer have.Release()
		ctx, cancel := p.whileOpen(promotionTimeout)
		defer cancel()
		_ = s.promoted(ctx, have) // counted and logged; the batch stays where it is
	})
}

// whileOpen is a context that ends with the store.
func (p *promotions) whileOpen(d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	go func() {
		select {
		case <-p.closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// promoted makes the warm copy, and notes if that could not be.
func (s *Store) promoted(ctx context.Context, have *Batch) error {
	err := s.promote(ctx, have)
	if err == nil {
		return nil
	}
	s.promotions.refused.Add(1)
	level := slog.LevelDebug
	if errors.Is(err, events.ErrDenied) || errors.Is(err, events.ErrApprovalRequired) {
		s.promotions.denied.Store(have.Ref.Dataset, time.Now().Add(deniedFor))
		level = slog.LevelInfo
	}
	s.log.Log(ctx, level, "a batch of the cold tier stays there alone", "batch", have.Ref.ID(), "error", err)
	return err
}

// errWarmFull means that the warm directory has no room for copies that reads leave.
var errWarmFull = errors.New("the warm tier has no room for it")

func (s *Store) promote(ctx context.Context, have *Batch) error {
	frame, err := arrowio.Prepare(have.Record)
	if err != nil {
		return err
	}
	giveBack, err := s.promotions.reserve(s.warm, frame.Size())
	if err != nil {
		return err
	}
	m := Migration{Dataset: have.Ref.Dataset, Sequence: have.Ref.Sequence, To: arrowio.Warm, Reason: "read from the cold tier"}
	defer giveBack()
	for _, step := range Steps() {
		if _, err := s.moveStep(ctx, m, step, have); err != nil {
			return err
		}
	}
	s.promotions.done.Add(1)
	s.promotions.bytes.Add(frame.Size())
	return nil
}

// reserve keeps room in the warm directory until giveBack: the file that is written
// meanwhile counts by itself.
func (p *promotions) reserve(w *warm, bytes int64) (giveBack func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.measured.IsZero() || time.Since(p.measured) > measureEvery {
		written := w.written.Load() // before: what is written meanwhile counts twice rather than not at all
		if p.used, err = w.bytes(); err != nil {
			return nil, err
		}
		p.measured, p.written = time.Now(), written
	}
	if p.used+w.written.Load()-p.written+p.coming+bytes > p.WarmBytes {
		return nil, errWarmFull
	}
	p.coming += bytes
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.coming -= bytes
	}, nil
}

// bytes is the size of all files of the directory together.
func (w *warm) bytes() (int64, error) {
	total := int64(0)
	err := filepath.WalkDir(w.dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

// Promote leaves a verified warm copy of a batch that is in the cold tier alone,
// within Config.Promote and judged like any other move, and reports whether there is a
// warm copy now. No room, a move that governance refuses and one that is under way
// elsewhere are no errors.
func (s *Store) Promote(ctx context.Context, ref arrowio.Ref) (warm bool, err error) {
	if _, warm = ref.In(arrowio.Warm); warm {
		return true, nil
	}
	loc, cold := ref.In(arrowio.Cold)
	until, denied := s.promotions.denied.Load(ref.Dataset)
	if !cold || s.promotions.WarmBytes == 0 || denied && time.Now().Before(until.(time.Time)) {
		return false, nil
	}
	fail := func(err error) (bool, error) {
		return false, &Error{Op: "promote", Dataset: ref.Dataset, Batch: ref.ID(), Err: err}
	}
	select {
	case s.promotions.slots <- struct{}{}:
	case <-ctx.Done():
		return fail(ctx.Err())
	}
	defer func() { <-s.promotions.slots }()
	b, err := s.openCold(ctx, ref, loc, anywhere)
	if err != nil {
		return fail(err)
	}
	defer b.Release()
	if err := s.promoted(ctx, b); err != nil {
		if errors.Is(err, errWarmFull) || errors.Is(err, ErrBusy) || errors.Is(err, events.ErrDenied) || errors.Is(err, events.ErrApprovalRequired) {
			return false, nil
		}
		return fail(err)
	}
	return true, nil
}
