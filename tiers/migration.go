package tiers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stokehold/stokehold/arrowio"
)

var (
	// ErrMigration means the migration asked for is not one that the store makes.
	ErrMigration = errors.New("unsupported migration")
	// ErrNotDurable means the warm copy may not go, since the cold endpoint does not
	// promise to keep acknowledged objects through a power cut.
	ErrNotDurable = errors.New("endpoint does not sync")
	// ErrBusy means another migration of the batch, or the collection of what nothing
	// names, is under way: try again later.
	ErrBusy = errors.New("busy")
	// ErrPinned means a pin or a legal hold keeps the batch as it is.
	ErrPinned = errors.New("pinned")
	// ErrLeased means a reader holds what was to be removed: try again later.
	ErrLeased = errors.New("held by a reader")
	// ErrOrder means a step was asked for before the one that it builds on.
	ErrOrder = errors.New("migration step out of order")
)

// Migration asks for a verified copy of one batch in another tier. Serialisable and
// small: it travels through workflow histories.
type Migration struct {
	Dataset  string `json:"dataset"`
	Sequence uint64 `json:"sequence"`
	// Evict also takes the warm copy away, after the grace. Only for endpoints that
	// sync (see Syncer); ErrNotDurable otherwise.
	Evict bool `json:"evict,omitempty"`
	// To is arrowio.Cold, which is the default, or arrowio.Warm for a batch that is to
	// be read from this host's disk again. The cold copy stays in any case.
	To arrowio.Tier `json:"to,omitempty"`
	// Reason is told in tier.move.requested: a person, or TIERPOLICY/RULE.
	Reason string `json:"reason,omitempty"`
}

// target is To without its default.
func (m Migration) target() arrowio.Tier {
	if m.To == "" {
		return arrowio.Cold
	}
	return m.To
}

// Step is one step of a migration. Each may be repeated, and a migration that
// died in or after any of them is completed by starting again from the first.
type Step string

// The steps, in order.
const (
	StepIntent   Step = "intent"   // judged and announced (tier.move.requested); records that the migration is under way
	StepCopy     Step = "copy"     // encodes the batch for the tier and stores it there
	StepVerify   Step = "verify"   // reads it back: SHA-256, and every value against the source
	StepFlip     Step = "flip"     // judged; then one compare-and-set adds the location to the catalog
	StepAnnounce Step = "announce" // publishes tier.moved
	StepDrop     Step = "drop"     // after a grace longer than the longest lease: gives up the hot copy, and the warm one if asked
)

// Steps returns the steps in order.
func Steps() []Step {
	return []Step{StepIntent, StepCopy, StepVerify, StepFlip, StepAnnounce, StepDrop}
}

// MoveState is how far a migration is.
type MoveState struct {
	Migration
	// Done is the last step that took effect.
	Done Step `json:"done"`
	// Object is the copy; from StepCopy on.
	Object arrowio.Location `json:"object,omitzero"`
}

// reached reports whether step has taken effect.
func (m MoveState) reached(step Step) bool {
	return slices.Index(Steps(), m.Done) >= slices.Index(Steps(), step)
}

// moveRecord is what the catalog keeps while a migration is under way.
type moveRecord struct {
	MoveState
	From  string          `json:"from"`
	Begun time.Time       `json:"begun"`
	Event json.RawMessage `json:"event,omitempty"` // tier.moved as approved
	// Requested is tier.move.requested as approved.
	Requested json.RawMessage `json:"requested,omitempty"`
	// Evicted is the copy that the flip took out of the catalog and the drop removes.
	Evicted arrowio.Location `json:"evicted,omitzero"`
	// Copied: the cold copy was there before, and this migration only evicts.
	Copied bool `json:"copied,omitempty"`
}

// onlyCopies reports that nothing goes at the end.
func (r *moveRecord) onlyCopies() bool { return !r.Evict && r.Evicted.SHA256 == "" }

// MoveStep makes one step of m and returns the state after it. A step that has
// taken effect, by this caller or another, is a success and does nothing; two
// migrators of one batch make one copy and one event. ErrOrder if an earlier
// step has not taken effect. StepDrop does not wait: let the grace pass before.
func (s *Store) MoveStep(ctx context.Context, m Migration, step Step) (MoveState, error) {
	st, err := s.moveStep(ctx, m, step, nil)
	if err != nil {
		return st, &Error{Op: "move (" + string(step) + ")", Dataset: m.Dataset, Batch: batchID(m.Dataset, m.Sequence), Err: err}
	}
	return st, nil
}

// Move makes all the steps; grace, if not nil, is called before the last and
// returns when the longest lease must have ended.
func (s *Store) Move(ctx context.Context, m Migration, grace func(context.Context) error) (MoveState, error) {
	var st MoveState
	for _, step := range Steps() {
		if step == StepDrop && grace != nil {
			if err := grace(ctx); err != nil {
				return st, err
			}
		}
		var err error
		if st, err = s.MoveStep(ctx, m, step); err != nil {
			return st, err
		}
	}
	return st, nil
}

// MigrateBatch gives a batch a verified cold copy. Its other copies stay.
// Idempotent.
func (s *Store) MigrateBatch(ctx context.Context, dataset string, seq uint64) error {
	return s.CopyBatch(ctx, Migration{Dataset: dataset, Sequence: seq})
}

// CopyBatch makes the steps of m up to the announcement: the verified copy counts,
// and what it replaces is still there. Idempotent.
func (s *Store) CopyBatch(ctx context.Context, m Migration) error {
	for _, step := range Steps() {
		if step == StepDrop {
			break
		}
		if _, err := s.MoveStep(ctx, m, step); err != nil {
			return err
		}
	}
	if m.Evict {
		return nil
	}
	// A copy replaces nothing: it is done, and must keep no other migration waiting.
	if err := s.finishCopy(ctx, m); err != nil {
		return &Error{Op: "move (finish)", Dataset: m.Dataset, Batch: batchID(m.Dataset, m.Sequence), Err: err}
	}
	return nil
}

// finishCopy forgets a migration that has been announced and removes nothing.
func (s *Store) finishCopy(ctx context.Context, m Migration) error {
	mv, err := s.mover(m)
	if err != nil {
		return err
	}
	var rec moveRecord
	rev, err := mv.catalog.get(ctx, mv.key, &rec)
	if err == nil && rec.onlyCopies() && rec.reached(StepAnnounce) {
		err = mv.catalog.remove(ctx, mv.key, rev)
	}
	if errors.Is(err, ErrNotFound) || errors.Is(err, errConflict) {
		return nil // another migrator has
	}
	return err
}

// DropBatch makes the last step of m: call it after a grace. Idempotent. ErrLeased
// while a reader holds what is to be removed.
func (s *Store) DropBatch(ctx context.Context, m Migration) error {
	_, err := s.MoveStep(ctx, m, StepDrop)
	return err
}

// MigrateDataset moves batches from..to-1 of a dataset one after another, or
// those there are, and returns how many have a cold copy now. The hot copies are
// given up together, after one grace. evict is that of Migration.
func (s *Store) MigrateDataset(ctx context.Context, dataset string, from, to uint64, evict bool, grace func(context.Context) error) (int, error) {
	head, err := s.Head(ctx, dataset)
	if err != nil {
		return 0, err
	}
	to = min(to, head.Next)
	n := 0
	for seq := from; seq < to; seq++ {
		for _, step := range Steps() {
			if step == StepDrop {
				break
			}
			if _, err := s.MoveStep(ctx, Migration{Dataset: dataset, Sequence: seq, Evict: evict}, step); err != nil {
				return n, err
			}
		}
		n++
	}
	if n > 0 && grace != nil {
		if err := grace(ctx); err != nil {
			return n, err
		}
	}
	for seq := from; seq < to; seq++ {
		if _, err := s.MoveStep(ctx, Migration{Dataset: dataset, Sequence: seq, Evict: evict}, StepDrop); err != nil {
			return n, err
		}
	}
	return n, nil
}

// makes reports why this store makes no migration to that tier; nil: it does.
func (s *Store) makes(to arrowio.Tier, evict bool) error {
	switch {
	case s.closed.Load():
		return ErrClosed
	case s.cold == nil:
		return fmt.Errorf("%w: this store has no cold tier", ErrMigration)
	case to != arrowio.Cold && to != arrowio.Warm:
		return fmt.Errorf("%w: to tier %.40q", ErrMigration, to)
	case to == arrowio.Warm && evict:
		return fmt.Errorf("%w: a batch that is brought to the warm tier keeps its cold copy", ErrMigration)
	}
	if sync, ok := s.cold.(Syncer); evict && (!ok || !sync.Syncs()) {
		return fmt.Errorf("%w: the warm copy of a batch stays beside %s", ErrNotDurable, s.cold.URI("batches"))
	}
	return nil
}

// moveStep is MoveStep; have is the batch where it was read already, else nil.
func (s *Store) moveStep(ctx context.Context, m Migration, step Step, have *Batch) (MoveState, error) {
	st := MoveState{Migration: m}
	if slices.Index(Steps(), step) < 0 {
		return st, fmt.Errorf("%w: no step %q", ErrMigration, step)
	}
	if err := s.makes(m.target(), m.Evict); err != nil {
		return st, err
	}
	mv, err := s.mover(m)
	if err != nil {
		return st, err
	}
	mv.have = have
	rec, err := mv.load(ctx)
	if err != nil {
		return st, err
	}
	if rec.reached(step) {
		return rec.MoveState, nil
	}
	if at := slices.Index(Steps(), step); at > 0 && !rec.reached(Steps()[at-1]) {
		return rec.MoveState, fmt.Errorf("%w: %s comes first", ErrOrder, Steps()[at-1])
	}
	next := map[Step]func(context.Context, moveRecord) (moveRecord, error){
		StepIntent: mv.intent, StepCopy: mv.copy, StepVerify: mv.verify,
		StepFlip: mv.flip, StepAnnounce: mv.announce, StepDrop: mv.drop,
	}
	rec, err = next[step](ctx, rec)
	if errors.Is(err, errConflict) { // another migrator completed it meanwhile
		if now, loadErr := mv.load(ctx); loadErr == nil && now.reached(step) {
			rec, err = now, nil
		}
	}
	if err == nil {
		err = s.crash("moved " + string(step))
	}
	return rec.MoveState, err
}
