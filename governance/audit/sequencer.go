package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/stokehold/stokehold/governance/audit/proof"
)

// ErrTampered means that the log is not what its checkpoints say.
var ErrTampered = errors.New("the decision log is not what was signed")

// SequencerConfig configures a Sequencer. Zero values take the documented defaults.
type SequencerConfig struct {
	Reader *Reader         // required
	Store  CheckpointStore // required
	Keys   *proof.Keys     // required, with a private key
	// MaxEntries and MaxDelay say when a checkpoint is due: after so many entries
	// (default 65,536, a little more at the end of a message), or so long after the
	// first entry that none covers (default 1 minute). What is not under a checkpoint
	// yet can be cut off without a trace.
	MaxEntries int
	MaxDelay   time.Duration
	// Poll is how often the stream is asked for what is new; default 1 second, at most
	// MaxDelay.
	Poll time.Duration
	// OnCheckpoint, if not nil, is told of each checkpoint that is stored.
	OnCheckpoint func(*proof.Record)
	Logger       *slog.Logger // nil: nothing is logged
}

// Sequencer builds the Merkle tree over the stream and signs checkpoints of it.
//
// It gives no positions: the stream's order does. An entry's index follows from the
// messages before it, so that processes append at the same time without knowing of
// one another, a sequencer may start and end at any time, and whoever reads the
// stream computes the same tree. Several sequencers on one store do no harm; each
// accepts the others' checkpoints if they agree with what it reads.
//
// It signs only what extends the last stored checkpoint. At its start it reads the
// entries under that checkpoint again, as far as the one before it.
type Sequencer struct {
	cfg SequencerConfig

	mu     sync.Mutex // one Advance at a time
	last   *proof.Record
	growth *proof.Growth
	next   uint64    // sequence of the next message
	begun  time.Time // stored time of the first message since last
	stored time.Time // of the newest message
	open   time.Time // when the first entry since last was seen; zero: there is none
	hash   hasher

	stop context.CancelFunc
	done chan struct{}
	err  error
}

// NewSequencer checks the configuration. It does nothing before Advance or Start.
func NewSequencer(cfg SequencerConfig) (*Sequencer, error) {
	var faults []error
	bad := func(what string) { faults = append(faults, fmt.Errorf("%w: %s", ErrConfig, what)) }
	if cfg.Reader == nil {
		bad("Reader is nil")
	}
	if cfg.Store == nil {
		bad("Store is nil; checkpoints must be kept outside of the log")
	}
	if cfg.Keys == nil || !cfg.Keys.CanSign() {
		bad("Keys has no private key")
	}
	if cfg.MaxEntries == 0 {
		cfg.MaxEntries = 1 << 16
	}
	if cfg.MaxDelay == 0 {
		cfg.MaxDelay = time.Minute
	}
	if cfg.Poll == 0 {
		cfg.Poll = min(time.Second, cfg.MaxDelay)
	}
	if cfg.MaxEntries < 1 || cfg.MaxEntries > 1<<20 {
		bad("MaxEntries must be 1 to 1,048,576")
	}
	if cfg.MaxDelay < time.Millisecond || cfg.Poll < time.Millisecond || cfg.Poll > cfg.MaxDelay {
		bad("MaxDelay and Poll must be at least 1 ms, and Poll at most MaxDelay")
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Sequencer{cfg: cfg}, nil
}

// Advance reads what is new and stores the checkpoints that are due; with force it
// stores one for whatever no checkpoint covers yet. It returns the newest
// checkpoint, nil if the log is empty. Errors that wrap ErrTampered or
// proof.ErrFork mean that the log or the store was tampered with: nothing was
// signed, and nothing will be.
func (s *Sequencer) Advance(ctx context.Context, force bool) (*proof.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.meet(ctx); err != nil {
		return nil, err
	}
	err := s.read(ctx, math.MaxUint64, func() error {
		if s.growth.Added() >= int64(s.cfg.MaxEntries) {
			return s.sign(ctx)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if s.growth.Added() > 0 && (force || time.Since(s.open) >= s.cfg.MaxDelay) {
		if err := s.sign(ctx); err != nil {
			return nil, err
		}
	}
	return s.last, nil
}

// meet looks for a newer checkpoint in the store than the last one known, and holds
// what was read to it.
func (s *Sequencer) meet(ctx context.Context) error {
	names, err := sortedNames(ctx, s.cfg.Store)
	if err != nil {
		return err
	}
	if s.growth == nil && len(names) == 0 {
		info, err := s.cfg.Reader.info(ctx)
		if err != nil {
			return err
		}
		if info.State.FirstSeq > 1 {
			return fmt.Errorf("%w: stream %s begins at message %d and the store has no checkpoint: messages were dropped before any was signed, or this is not the store that holds this log's checkpoints",
				ErrTampered, s.cfg.Reader.stream, info.State.FirstSeq)
		}
		s.begin(nil)
		return nil
	}
	if len(names) == 0 || s.last != nil && names[len(names)-1] < s.last.Name() {
		if s.last == nil {
			return nil // nothing was stored yet, by anyone
		}
		return fmt.Errorf("%w: the store's newest checkpoint is older than that of %d entries, which was stored there", ErrTampered, s.last.Size)
	}
	newest := names[len(names)-1]
	if s.last != nil && newest == s.last.Name() {
		return nil
	}
	rec, err := openRecord(ctx, s.cfg.Store, newest, s.cfg.Keys)
	if err != nil {
		return err
	}
	if s.growth == nil {
		if err := s.check(ctx, rec, names); err != nil {
			return err
		}
		s.begin(rec)
		return nil
	}
	// Another sequencer's: it must be of the log that is read here.
	if rec.Size < s.growth.Size() {
		s.begin(s.last)
	}
	if err := s.read(ctx, rec.Sequence, func() error { return nil }); err != nil {
		return err
	}
	if s.growth.Size() != rec.Size || s.growth.Root() != rec.Root {
		return fmt.Errorf("%w: %w: a checkpoint of %d entries up to message %d is stored, and the log has %d up to there, with another root",
			ErrTampered, proof.ErrFork, rec.Size, rec.Sequence, s.growth.Size())
	}
	s.begin(rec)
	return nil
}

// check reads the entries under a checkpoint again, as far as the one before.
func (s *Sequencer) check(ctx context.Context, rec *proof.Record, names []string) error {
	var before *proof.Record
	if rec.Since > 0 {
		for _, n := range ofSize(names, rec.Since) {
			b, err := openRecord(ctx, s.cfg.Store, n, s.cfg.Keys)
			if err != nil {
				return err
			}
			if rec.Extends(b.Root) == nil {
				before = b
			}
		}
		if before == nil {
			return fmt.Errorf("%w: the store lacks the checkpoint of %d entries that the one of %d extends", proof.ErrFork, rec.Since, rec.Size)
		}
	}
	replay, next := proof.NewReplay(before), uint64(1)
	if before != nil {
		next = before.Sequence + 1
	}
	gone, first := false, next
	err := s.cfg.Reader.scan(ctx, start{sequence: next}, func(m message) error {
		if m.sequence > rec.Sequence {
			return errStopped
		}
		gone = gone || m.sequence != next
		next = m.sequence + 1
		return s.hash.hashes(m.data, replay.Add)
	})
	if err != nil && !errors.Is(err, errStopped) {
		return err
	}
	if gone || next <= rec.Sequence {
		// Retention may have dropped them, if no decision came for that long.
		if time.Since(rec.Begun) >= RetentionFloor {
			return nil
		}
		return fmt.Errorf("%w: messages from %d to %d are under a checkpoint and not all there", ErrTampered, first, rec.Sequence)
	}
	if replay.Size() != rec.Size || replay.Root() != rec.Root {
		return fmt.Errorf("%w: %w: messages from %d to %d hold other decisions than the checkpoint of %d entries says", ErrTampered, proof.ErrFork, first, rec.Sequence, rec.Size)
	}
	return nil
}

// begin goes on from a checkpoint; nil is the empty log.
func (s *Sequencer) begin(rec *proof.Record) {
	s.last, s.growth, s.next, s.begun, s.open = rec, proof.NewGrowth(rec), 1, time.Time{}, time.Time{}
	if rec != nil {
		s.next, s.stored = rec.Sequence+1, rec.Stored
	}
}

// read adds the messages up to a sequence; after is called after each.
func (s *Sequencer) read(ctx context.Context, to uint64, after func() error) error {
	info, err := s.cfg.Reader.info(ctx)
	if err != nil {
		return err
	}
	if info.State.LastSeq+1 < s.next {
		return fmt.Errorf("%w: %w: the stream ends at message %d; %d were read before: its tail was cut off, or it is another stream",
			ErrTampered, proof.ErrFork, info.State.LastSeq, s.next-1)
	}
	if info.State.LastSeq < s.next || s.next > to {
		return nil
	}
	err = s.cfg.Reader.scan(ctx, start{sequence: s.next}, func(m message) error {
		if m.sequence > to {
			return errStopped
		}
		if m.sequence != s.next {
			return fmt.Errorf("%w: message %d came where %d was next: messages between were deleted", ErrTampered, m.sequence, s.next)
		}
		if s.begun.IsZero() {
			s.begun = m.stored
		}
		if err := s.hash.hashes(m.data, func(h tlog.Hash) { s.growth.Add(h) }); err != nil {
			return fmt.Errorf("message %d: %w", m.sequence, err)
		}
		s.next, s.stored = m.sequence+1, m.stored
		if s.open.IsZero() && s.growth.Added() > 0 {
			s.open = time.Now()
		}
		return after()
	})
	if errors.Is(err, errStopped) {
		return nil
	}
	return err
}

// sign stores a checkpoint of what was read.
func (s *Sequencer) sign(ctx context.Context) error {
	rec, err := s.growth.Sign(s.cfg.Keys, proof.Checkpoint{Time: time.Now().UTC(), Sequence: s.next - 1, Begun: s.begun, Stored: s.stored})
	if err != nil {
		return err
	}
	b, err := rec.Marshal()
	if err == nil {
		err = s.cfg.Store.Put(ctx, rec.Name(), b)
	}
	if err != nil {
		// The growth has moved on to a checkpoint that nobody has: read again.
		s.begin(s.last)
		return fmt.Errorf("store the checkpoint of %d entries: %w", rec.Size, err)
	}
	s.last, s.begun, s.open = rec, time.Time{}, time.Time{}
	if s.cfg.OnCheckpoint != nil {
		s.cfg.OnCheckpoint(rec)
	}
	return nil
}

// Start advances on its own until Stop, or until the log or the store is found to
// be tampered with, which it logs and Err returns. Other errors are logged and
// tried again. Call it once.
func (s *Sequencer) Start() {
	ctx, stop := context.WithCancel(context.Background())
	s.stop, s.done = stop, make(chan struct{})
	go func() {
		defer close(s.done)
		tick := time.NewTicker(s.cfg.Poll)
		defer tick.Stop()
		for {
			_, err := s.Advance(ctx, false)
			switch {
			case errors.Is(err, ErrTampered) || errors.Is(err, proof.ErrFork):
				s.mu.Lock()
				s.err = err
				s.mu.Unlock()
				s.cfg.Logger.ErrorContext(ctx, "no more checkpoints are signed", "error", err)
				return
			case err != nil && ctx.Err() == nil:
				s.cfg.Logger.WarnContext(ctx, "checkpoint not stored; trying again", "error", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
}

// Done is closed when what Start began has ended. nil before Start.
func (s *Sequencer) Done() <-chan struct{} { return s.done }

// Err returns why the sequencer signs nothing more; nil if it does.
func (s *Sequencer) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Stop ends Start's work and puts what no checkpoint covers yet under a last one;
// if that fails, which is logged, the next sequencer will. Safe without Start;
// repeatable.
func (s *Sequencer) Stop(ctx context.Context) error {
	if s.stop == nil {
		return nil
	}
	s.stop()
	select {
	case <-s.done:
	case <-ctx.Done():
		return fmt.Errorf("audit: stop the sequencer: %w", ctx.Err())
	}
	s.finish(ctx)
	return nil
}

// finish signs what is left, unless the sequencer gave up, which was logged.
func (s *Sequencer) finish(ctx context.Context) {
	if s.Err() != nil {
		return
	}
	if _, err := s.Advance(ctx, true); err != nil {
		s.cfg.Logger.WarnContext(ctx, "no last checkpoint", "error", err)
	}
}
