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

// mover makes the steps of one migration.
type mover struct {
	*Store
	m        Migration
	to       Driver
	key      string // of the migration's record
	have     *Batch // the batch, read already; nil: it is read from where it is
	otherKey string // of that in the other direction
}

func (s *Store) mover(m Migration) (*mover, error) {
	name, err := token("dataset", m.Dataset)
	if err != nil {
		return nil, err
	}
	mv := &mover{Store: s, m: m, to: coldDriver{s}, key: moveKey(name, m.Sequence), otherKey: moveKey(name, m.Sequence) + ".warm"}
	if m.target() == arrowio.Warm {
		mv.to, mv.key, mv.otherKey = warmDriver{s}, mv.otherKey, mv.key
	}
	return mv, nil
}

// load returns the migration's record. Without one it is complete if the catalog
// says what was asked for, and not begun otherwise.
func (mv *mover) load(ctx context.Context) (moveRecord, error) {
	rec := moveRecord{MoveState: MoveState{Migration: mv.m}}
	ref, err := mv.Ref(ctx, mv.m.Dataset, mv.m.Sequence)
	if err != nil {
		return rec, err
	}
	_, err = mv.catalog.get(ctx, mv.key, &rec)
	if err == nil && mv.m.Evict && rec.onlyCopies() && rec.reached(StepAnnounce) {
		// Of a copy, which is complete: evicting begins after it.
		if err = mv.forgetRecord(ctx); err == nil || errors.Is(err, errConflict) {
			rec, err = moveRecord{MoveState: MoveState{Migration: mv.m}}, ErrNotFound
		}
	}
	if err == nil {
		rec.Evict = mv.m.Evict || rec.Evict
		return rec, nil
	}
	if !errors.Is(err, ErrNotFound) {
		return rec, err
	}
	there, moved := ref.In(mv.m.target())
	_, warm := ref.In(arrowio.Warm)
	if moved && (!mv.m.Evict || !warm) {
		rec.Done, rec.Object = StepDrop, there
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
		evict := r.Evict
		r.Migration = mv.m
		r.Evict = r.Evict || evict // of the other of two that go the same way
		r.Done = done
		change(r)
		return true, nil
	})
}

// intent has the move judged before a byte of it is read, so that a rule can keep
// data where they may lie.
func (mv *mover) intent(ctx context.Context, rec moveRecord) (moveRecord, error) {
	if err := mv.mayEvict(ctx); err != nil {
		return rec, err
	}
	ref, err := mv.Ref(ctx, mv.m.Dataset, mv.m.Sequence)
	if err != nil {
		return rec, err
	}
	labels, err := mv.EffectiveLabels(ctx, mv.m.Dataset)
	if err != nil {
		return rec, err
	}
	from := sourceTier(mv.m.target())
	begun := mv.now().UTC()
	ev, err := events.New(events.TypeTierMoveRequested, source, mv.m.Dataset,
		fmt.Sprintf("%s/move/%s@%d", ref.ID(), mv.m.target(), begun.UnixNano()), begun, events.TierMoveRequested{
			Dataset: mv.m.Dataset, Sequence: int64(mv.m.Sequence), From: string(from), To: string(mv.m.target()),
			Bytes: ref.BodyBytes, Evict: mv.m.Evict, Labels: labels, Reason: mv.m.Reason, Place: mv.place(mv.m.target()),
		})
	if err == nil {
		setLabels(&ev, labels)
		err = mv.bus.Approve(ctx, &ev)
	}
	if err != nil {
		return rec, err
	}
	raw, err := json.Marshal(ev)
	if err != nil {
		return rec, fmt.Errorf("encode event: %w", err)
	}
	rec, err = mv.record(ctx, StepIntent, func(r *moveRecord) { r.From, r.Begun, r.Requested = string(from), begun, raw })
	if err != nil {
		return rec, err
	}
	// After the record is there, so that of two that exclude each other at least one
	// sees the other.
	if err := mv.alone(ctx); err != nil {
		return rec, errors.Join(err, mv.forgetRecord(ctx))
	}
	return rec, nil
}

// mayEvict refuses to take a warm copy away that is pinned there.
func (mv *mover) mayEvict(ctx context.Context) error {
	if !mv.m.Evict {
		return nil
	}
	pins, err := mv.Pins(ctx, mv.m.Dataset)
	if err != nil {
		return err
	}
	if p, ok := pinned(pins, mv.m.Sequence); ok {
		return fmt.Errorf("%w in the warm tier: %s", ErrPinned, p)
	}
	return nil
}

func (mv *mover) alone(ctx context.Context) error {
	var other moveRecord
	_, err := mv.catalog.get(ctx, mv.otherKey, &other)
	if err == nil && other.target() == arrowio.Warm && other.reached(StepFlip) {
		// All that counts is done, and whoever did it may be gone: reads begin such moves,
		// which no workflow ends.
		for _, step := range []Step{StepAnnounce, StepDrop} {
			if _, err := mv.moveStep(ctx, other.Migration, step, nil); err != nil {
				return err
			}
		}
		err = ErrNotFound
	}
	if err == nil {
		return fmt.Errorf("%w: its move to the %s tier has come to %q", ErrBusy, other.target(), other.Done)
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	owner, held, err := mv.leased(ctx, collector, 0)
	if err == nil && held {
		err = fmt.Errorf("%w: %s is removing what nothing names", ErrBusy, owner)
	}
	return err
}

func (mv *mover) forgetRecord(ctx context.Context) error {
	var now moveRecord
	rev, err := mv.catalog.get(ctx, mv.key, &now)
	if err == nil {
		err = mv.catalog.remove(ctx, mv.key, rev)
	}
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

func (mv *mover) copy(ctx context.Context, rec moveRecord) (moveRecord, error) {
	if err := mv.publishRaw(ctx, rec.Requested); err != nil {
		return rec, err
	}
	src, err := mv.source(ctx)
	if err != nil {
		return rec, err
	}
	defer src.Release()
	done, err := mv.moves.enter(ctx, src.Ref.BodyBytes)
	if err != nil {
		return rec, err
	}
	defer done()
	loc, err := mv.to.Write(ctx, src.Ref, src.Record)
	if err != nil {
		return rec, err
	}
	if err := mv.crash("put"); err != nil {
		return rec, err
	}
	return mv.record(ctx, StepCopy, func(r *moveRecord) {
		r.From = string(src.Tier)
		r.Object = loc
	})
}

// publishRaw publishes an event as it was approved; the bus drops it if it is there.
func (s *Store) publishRaw(ctx context.Context, raw json.RawMessage) error {
	if len(raw) == 0 {
		return nil // of a migration begun by a version that did not ask
	}
	var ev events.Event
	if err := json.Unmarshal(raw, &ev); err != nil {
		return fmt.Errorf("decode event: %w", err)
	}
	return s.bus.Publish(ctx, ev)
}

// source opens the batch from a tier other than the one it goes to.
func (mv *mover) source(ctx context.Context) (*Batch, error) {
	ref, err := mv.Ref(ctx, mv.m.Dataset, mv.m.Sequence)
	if err != nil {
		return nil, err
	}
	if mv.have != nil {
		mv.have.Record.Retain()
		return &Batch{Ref: ref, Record: mv.have.Record, Tier: mv.have.Tier}, nil
	}
	ref.Locations = slices.DeleteFunc(slices.Clone(ref.Locations), func(l arrowio.Location) bool { return l.Tier == mv.m.target() })
	return mv.lookup(ctx, ref)
}

func (mv *mover) verify(ctx context.Context, rec moveRecord) (moveRecord, error) {
	src, err := mv.source(ctx)
	if err != nil {
		return rec, err
	}
	defer src.Release()
	done, err := mv.moves.enter(ctx, 0)
	if err != nil {
		return rec, err
	}
	defer done()
	back, err := mv.to.Read(ctx, src.Ref, rec.Object)
	if err != nil {
		return mv.again(ctx, rec, err)
	}
	defer back.Release()
	if err := sameRecord(src.Record, back); err != nil {
		return mv.again(ctx, rec, fmt.Errorf("%w: the object read back differs: %w", arrowio.ErrCorrupt, err))
	}
	ref, err := mv.Ref(ctx, mv.m.Dataset, mv.m.Sequence)
	if err != nil {
		return rec, err
	}
	return mv.record(ctx, StepVerify, func(r *moveRecord) {
		if mv.m.Evict {
			r.Evicted, _ = ref.In(arrowio.Warm)
			_, r.Copied = ref.In(arrowio.Cold)
		}
	})
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
// it the new copy counts. One that is refused here is over, and its record must keep
// nobody waiting: what was copied is an orphan.
func (mv *mover) flip(ctx context.Context, rec moveRecord) (moveRecord, error) {
	next, err := mv.flipOnce(ctx, rec)
	if !errors.Is(err, events.ErrDenied) && !errors.Is(err, ErrPinned) && !errors.Is(err, ErrExpired) {
		return next, err
	}
	var now moveRecord
	rev, getErr := mv.catalog.get(ctx, mv.key, &now)
	if getErr == nil && !now.reached(StepFlip) {
		getErr = mv.catalog.remove(ctx, mv.key, rev)
	}
	if errors.Is(getErr, ErrNotFound) || errors.Is(getErr, errConflict) { // another migrator's to end
		getErr = nil
	}
	return next, errors.Join(err, getErr)
}

func (mv *mover) flipOnce(ctx context.Context, rec moveRecord) (moveRecord, error) {
	if err := mv.mayEvict(ctx); err != nil {
		return rec, err
	}
	head, err := mv.LabelsAt(ctx, mv.m.Dataset, mv.m.Sequence)
	if err != nil {
		return rec, err
	}
	target := mv.m.target()
	id := batchID(mv.m.Dataset, mv.m.Sequence) + "/moved/" + string(target)
	if target == arrowio.Warm { // which comes and goes: each time is a move of its own
		id = fmt.Sprintf("%s@%d", id, rec.Begun.UnixNano())
	}
	if rec.Copied && rec.Evicted.SHA256 != "" { // the copy was announced; that it is the only one is new
		id = fmt.Sprintf("%s/evicted@%d", id, rec.Begun.UnixNano())
	}
	ev, err := events.New(events.TypeTierMoved, source, mv.m.Dataset, id, time.Now().UTC(), events.TierMoved{
		Dataset: mv.m.Dataset, Sequence: int64(mv.m.Sequence), From: rec.From, To: string(target),
		Bytes: rec.Object.Bytes, SHA256: rec.Object.SHA256, Reason: mv.m.Reason,
	})
	if err == nil {
		setLabels(&ev, head.Labels)
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
	var there arrowio.Location
	err = mv.change(ctx, mv.m.Dataset, []uint64{mv.m.Sequence}, func(e *entry) (bool, error) {
		won = false
		if e.State == Expired {
			return false, ErrExpired
		}
		var moved bool
		there, moved = e.Ref.In(target)
		_, warm := e.Ref.In(arrowio.Warm)
		if moved && (!mv.m.Evict || !warm) {
			return false, nil // the other migrator
		}
		if !moved {
			there = rec.Object
			e.Ref.Locations = append(e.Ref.Locations, there)
		}
		if mv.m.Evict {
			if l, ok := e.Ref.In(arrowio.Warm); ok { // of a migration that began as a copy, too
				rec.Evicted = l
			}
			e.Ref.Locations = slices.DeleteFunc(e.Ref.Locations, func(l arrowio.Location) bool {
				// What other hosts are given is the warm file, too.
				return l.Tier == arrowio.Warm || l.Tier == arrowio.Hot && l.SHA256 != "" && l.SHA256 == rec.Evicted.SHA256
			})
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
	rec, err = mv.record(ctx, StepFlip, func(r *moveRecord) { r.Event, r.Object, r.Evicted = raw, there, rec.Evicted })
	if won && errors.Is(err, errConflict) {
		// A migrator that was refused at the same moment has ended it.
		return rec, errors.Join(err, mv.publishRaw(ctx, raw))
	}
	return rec, err
}

func (mv *mover) announce(ctx context.Context, rec moveRecord) (moveRecord, error) {
	if err := mv.publishRaw(ctx, rec.Event); err != nil {
		return rec, err
	}
	return mv.record(ctx, StepAnnounce, func(*moveRecord) {})
}

// drop gives up what the new copy replaces and forgets the migration.
func (mv *mover) drop(ctx context.Context, rec moveRecord) (moveRecord, error) {
	if rec.Evict && rec.Evicted.SHA256 != "" {
		if err := mv.removeEvicted(ctx, rec.Evicted.SHA256); err != nil {
			return rec, err
		}
	}
	if mv.m.target() == arrowio.Cold {
		mv.hot.remove(batchID(mv.m.Dataset, mv.m.Sequence))
	}
	if err := mv.forgetRecord(ctx); err != nil {
		return rec, err
	}
	rec.Done = StepDrop
	return rec, nil
}

// removeEvicted removes the warm file, unless somebody reads it or the catalog
// names it again.
func (mv *mover) removeEvicted(ctx context.Context, digest string) error {
	name, err := token("dataset", mv.m.Dataset)
	if err != nil {
		return err
	}
	owner, held, err := mv.leased(ctx, name, mv.m.Sequence)
	if err != nil {
		return err
	}
	if held {
		return fmt.Errorf("%w: %s", ErrLeased, owner)
	}
	if mv.warm.mapped(mv.m.Dataset, mv.m.Sequence, digest) {
		return fmt.Errorf("%w: this process has it mapped", ErrLeased)
	}
	ref, err := mv.Ref(ctx, mv.m.Dataset, mv.m.Sequence)
	if err != nil {
		return err
	}
	if l, ok := ref.In(arrowio.Warm); ok && l.SHA256 == digest {
		return nil
	}
	return mv.warm.remove(mv.m.Dataset, mv.m.Sequence, digest)
}
