package tiers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
)

var (
	// ErrMigration means the migration asked for is not one that the store makes.
	ErrMigration = errors.New("unsupported migration")
	// ErrNotDurable means the warm copy may not go, since the cold endpoint does not
	// promise to keep acknowledged objects through a power cut.
	ErrNotDurable = errors.New("endpoint does not sync")
	// ErrOrder means a step was asked for before the one that it builds on.
	ErrOrder = errors.New("migration step out of order")
)

// Migration asks for a verified copy of one batch in the cold tier.
// Serialisable and small: it travels through workflow histories.
type Migration struct {
	Dataset  string `json:"dataset"`
	Sequence uint64 `json:"sequence"`
	// Evict also takes the warm copy away, after the grace. Only for endpoints that
	// sync (see Syncer); ErrNotDurable otherwise.
	Evict bool `json:"evict,omitempty"`
}

// Step is one step of a migration. Each may be repeated, and a migration that
// died in or after any of them is completed by starting again from the first.
type Step string

// The steps, in order.
const (
	StepIntent   Step = "intent"   // records that the migration is under way
	StepCopy     Step = "copy"     // encodes the batch as Parquet and stores the object
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
}

// MoveStep makes one step of m and returns the state after it. A step that has
// taken effect, by this caller or another, is a success and does nothing; two
// migrators of one batch make one copy and one event. ErrOrder if an earlier
// step has not taken effect. StepDrop does not wait: let the grace pass before.
func (s *Store) MoveStep(ctx context.Context, m Migration, step Step) (MoveState, error) {
	st, err := s.moveStep(ctx, m, step)
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
	for _, step := range Steps() {
		if step == StepDrop {
			break
		}
		if _, err := s.MoveStep(ctx, Migration{dataset, seq, false}, step); err != nil {
			return err
		}
	}
	return nil
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
			if _, err := s.MoveStep(ctx, Migration{dataset, seq, evict}, step); err != nil {
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
		if _, err := s.MoveStep(ctx, Migration{dataset, seq, evict}, StepDrop); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (s *Store) moveStep(ctx context.Context, m Migration, step Step) (MoveState, error) {
	st := MoveState{Migration: m}
	switch {
	case s.closed.Load():
		return st, ErrClosed
	case s.cold == nil:
		return st, fmt.Errorf("%w: this store has no cold tier", ErrMigration)
	case slices.Index(Steps(), step) < 0:
		return st, fmt.Errorf("%w: no step %q", ErrMigration, step)
	}
	if sync, ok := s.cold.(Syncer); m.Evict && (!ok || !sync.Syncs()) {
		return st, fmt.Errorf("%w: the warm copy of a batch stays beside %s", ErrNotDurable, s.cold.URI("batches"))
	}
	name, err := token("dataset", m.Dataset)
	if err != nil {
		return st, err
	}
	mv := &mover{Store: s, m: m, key: moveKey(name, m.Sequence), entryKey: batchKey(name, m.Sequence)}
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

// mover makes the steps of one migration.
type mover struct {
	*Store
	m             Migration
	key, entryKey string
}

// load returns the migration's record. Without one it is complete if the catalog
// has the cold location, and not begun otherwise.
func (mv *mover) load(ctx context.Context) (moveRecord, error) {
	rec := moveRecord{MoveState: MoveState{Migration: mv.m}}
	ref, err := mv.Ref(ctx, mv.m.Dataset, mv.m.Sequence)
	if err != nil {
		return rec, err
	}
	_, err = mv.catalog.get(ctx, mv.key, &rec)
	if err == nil {
		rec.Evict = mv.m.Evict || rec.Evict
		return rec, nil
	}
	if !errors.Is(err, ErrNotFound) {
		return rec, err
	}
	cold, moved := ref.In(arrowio.Cold)
	_, warm := ref.In(arrowio.Warm)
	if moved && (!mv.m.Evict || !warm) {
		rec.Done, rec.Object = StepDrop, cold
	}
	return rec, nil
}

// record stores what change makes of the record, unless another migrator has
// gone as far already; then that one's record is returned.
func (mv *mover) record(ctx context.Context, done Step, change func(*moveRecord)) (moveRecord, error) {
	return update(ctx, mv.catalog, mv.key, func(r *moveRecord, exists bool) (bool, error) {
		if exists && r.reached(done) {
			return false, nil
		}
		if !exists && done != StepIntent {
			return false, fmt.Errorf("%w: another migrator completed it", errConflict)
		}
		r.Migration = mv.m
		r.Done = done
		change(r)
		return true, nil
	})
}

func (mv *mover) intent(ctx context.Context, _ moveRecord) (moveRecord, error) {
	return mv.record(ctx, StepIntent, func(r *moveRecord) { r.From, r.Begun = string(arrowio.Warm), time.Now().UTC() })
}

func (mv *mover) copy(ctx context.Context, rec moveRecord) (moveRecord, error) {
	src, err := mv.source(ctx)
	if err != nil {
		return rec, err
	}
	defer src.Release()
	raw, err := toParquet(src.Record)
	if err != nil {
		return rec, fmt.Errorf("encode as Parquet: %w", err)
	}
	digest := digestOf(raw)
	key := coldKey(digest)
	if err := mv.cold.Put(ctx, key, raw); err != nil {
		return rec, err
	}
	if err := mv.crash("put"); err != nil {
		return rec, err
	}
	return mv.record(ctx, StepCopy, func(r *moveRecord) {
		r.From = string(src.Tier)
		r.Object = arrowio.Location{Tier: arrowio.Cold, URI: mv.cold.URI(key), Bytes: int64(len(raw)), SHA256: digest, Codec: "parquet"}
	})
}

// source opens the batch from a tier other than cold.
func (mv *mover) source(ctx context.Context) (*Batch, error) {
	ref, err := mv.Ref(ctx, mv.m.Dataset, mv.m.Sequence)
	if err != nil {
		return nil, err
	}
	ref.Locations = slices.DeleteFunc(slices.Clone(ref.Locations), func(l arrowio.Location) bool { return l.Tier == arrowio.Cold })
	return mv.resolve(ctx, ref, false)
}

func (mv *mover) verify(ctx context.Context, rec moveRecord) (moveRecord, error) {
	back, err := mv.fetchCold(ctx, rec.Object)
	if err != nil {
		return mv.again(ctx, rec, err)
	}
	defer back.Release()
	src, err := mv.source(ctx)
	if err != nil {
		return rec, err
	}
	defer src.Release()
	if err := sameRecord(src.Record, back); err != nil {
		return mv.again(ctx, rec, fmt.Errorf("%w: the object read back differs: %w", arrowio.ErrCorrupt, err))
	}
	return mv.record(ctx, StepVerify, func(*moveRecord) {})
}

// again sends a migration whose object is not what was copied back to its start,
// so that the next attempt copies afresh.
func (mv *mover) again(ctx context.Context, rec moveRecord, cause error) (moveRecord, error) {
	if !errors.Is(cause, arrowio.ErrCorrupt) && !errors.Is(cause, arrowio.ErrGone) {
		return rec, cause // the endpoint could not be asked: the object may be good
	}
	_, err := update(ctx, mv.catalog, mv.key, func(r *moveRecord, exists bool) (bool, error) {
		if !exists || r.Done != StepCopy {
			return false, nil
		}
		r.Done, r.Object = StepIntent, arrowio.Location{}
		return true, nil
	})
	return rec, errors.Join(cause, err)
}

// flip is the migration's one moment: before it the batch is where it was, after
// it the cold copy counts.
func (mv *mover) flip(ctx context.Context, rec moveRecord) (moveRecord, error) {
	ev, err := events.New(events.TypeTierMoved, source, mv.m.Dataset, batchID(mv.m.Dataset, mv.m.Sequence)+"/moved/cold", time.Now().UTC(), events.TierMoved{
		Dataset: mv.m.Dataset, Sequence: int64(mv.m.Sequence), From: rec.From, To: string(arrowio.Cold),
		Bytes: rec.Object.Bytes, SHA256: rec.Object.SHA256,
	})
	if err == nil {
		err = mv.bus.Approve(ctx, &ev)
	}
	if err != nil {
		return rec, err
	}
	raw, err := json.Marshal(ev)
	if err != nil {
		return rec, fmt.Errorf("encode event: %w", err)
	}
	won := false
	e, err := update(ctx, mv.catalog, mv.entryKey, func(e *entry, exists bool) (bool, error) {
		won = false
		if !exists {
			return false, ErrNotFound
		}
		_, moved := e.Ref.In(arrowio.Cold)
		_, warm := e.Ref.In(arrowio.Warm)
		if moved && (!mv.m.Evict || !warm) {
			return false, nil // the other migrator
		}
		if !moved {
			e.Ref.Locations = append(e.Ref.Locations, rec.Object)
		}
		if mv.m.Evict {
			e.Ref.Locations = slices.DeleteFunc(e.Ref.Locations, func(l arrowio.Location) bool { return l.Tier == arrowio.Warm })
		}
		won = !moved
		return true, nil
	})
	if err != nil {
		return rec, err
	}
	if won {
		mv.moved.Add(1)
	}
	if err := mv.crash("flipped"); err != nil {
		return rec, err
	}
	return mv.record(ctx, StepFlip, func(r *moveRecord) {
		r.Event = raw
		r.Object, _ = e.Ref.In(arrowio.Cold)
	})
}

func (mv *mover) announce(ctx context.Context, rec moveRecord) (moveRecord, error) {
	var ev events.Event
	if err := json.Unmarshal(rec.Event, &ev); err != nil {
		return rec, fmt.Errorf("decode event: %w", err)
	}
	if err := mv.bus.Publish(ctx, ev); err != nil {
		return rec, err
	}
	return mv.record(ctx, StepAnnounce, func(*moveRecord) {})
}

// drop gives up what the cold copy replaces and forgets the migration.
func (mv *mover) drop(ctx context.Context, rec moveRecord) (moveRecord, error) {
	mv.hot.remove(batchID(mv.m.Dataset, mv.m.Sequence))
	if rec.Evict {
		err := mv.warm.files(mv.m.Dataset, func(seq uint64, digest string) error {
			if seq != mv.m.Sequence {
				return nil
			}
			return mv.warm.remove(mv.m.Dataset, seq, digest)
		})
		if err != nil {
			return rec, err
		}
	}
	var now moveRecord
	rev, err := mv.catalog.get(ctx, mv.key, &now)
	if err == nil {
		err = mv.catalog.remove(ctx, mv.key, rev)
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return rec, err
	}
	rec.Done = StepDrop
	return rec, nil
}

// sweepWindow is how many of the newest sequences a sweep looks at.
const sweepWindow = 1024

// sweepWarm removes warm files of committed sequences below next that are not
// what the catalog names: attempts that were fenced, or died, between writing a
// file and committing it. Files at next and beyond may be another writer's work
// in progress and stay. Those far below were swept by earlier writers.
func (s *Store) sweepWarm(ctx context.Context, dataset string, next uint64) error {
	count := map[uint64][]string{}
	err := s.warm.files(dataset, func(seq uint64, digest string) error {
		if seq < next && seq+sweepWindow >= next {
			count[seq] = append(count[seq], digest)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for seq, digests := range count {
		if len(digests) < 2 {
			continue
		}
		e, err := s.entry(ctx, dataset, seq, false)
		if err != nil {
			return err
		}
		keep, ok := e.Ref.In(arrowio.Warm)
		for _, d := range digests {
			if ok && d != keep.SHA256 {
				if err := s.warm.remove(dataset, seq, d); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
