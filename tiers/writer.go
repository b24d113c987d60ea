package tiers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
)

// Writer appends batches to one dataset. Not safe for concurrent use. A Writer
// holds no resources: it needs no closing.
type Writer struct {
	store       *Store
	dataset     string
	name        string // token of dataset
	fingerprint string
	fence       Fence
	head        headRecord // as this writer last committed or found it
	rev         uint64
	labels      label.Set      // of what the writer commits, see Label
	from        []label.Source // see MadeOf
	unrecorded  bool           // some of from is not stored
	own         []uint64       // sequences of this stage's batches, where they are not in one piece
	unannounced *events.Event  // of a commit whose publication failed
	// unannouncedRef is the batch of unannounced.
	unannouncedRef arrowio.Ref
	fenced         bool
	last           *arrow.Schema // of a batch, and its fingerprint
	lastPrint      string
}

// Writer opens dataset for appending, fencing every earlier writer. schema
// must match the dataset's if it has one. A sealed dataset can be opened by a
// run's stage that wrote to it before, whose repeated writes are recognised;
// others get ErrSealed. So can one that the stage has finished with, without
// disturbing who writes now. An attempt older than one that has opened is
// ErrFenced; the same attempt may open again.
//
// The newest batch is announced again, since whoever committed it may have died
// before it could.
func (s *Store) Writer(ctx context.Context, dataset string, schema *arrow.Schema, f Fence) (*Writer, error) {
	if schema == nil {
		return nil, &Error{Op: "open writer", Dataset: dataset, Err: fmt.Errorf("%w: none given", ErrSchema)}
	}
	w, err := s.takeOver(ctx, dataset, arrowio.Fingerprint(schema), f)
	if err != nil {
		return nil, &Error{Op: "open writer", Dataset: dataset, Err: err}
	}
	if err := w.announceNewest(ctx); err != nil {
		return nil, &Error{Op: "open writer", Dataset: dataset, Err: err}
	}
	if err := s.sweepWarm(ctx, dataset, w.head.Next); err != nil {
		s.log.WarnContext(ctx, "sweep of the warm tier failed; the next writer repeats it", "dataset", dataset, "error", err)
	}
	return w, nil
}

// takeOver opens a writer. One without a fingerprint only seals.
func (s *Store) takeOver(ctx context.Context, dataset, fingerprint string, f Fence) (*Writer, error) {
	name, err := token("dataset", dataset)
	if err != nil {
		return nil, err
	}
	ours, err := fenceKey(name, f)
	if err != nil {
		return nil, err
	}
	w := &Writer{store: s, dataset: dataset, name: name, fingerprint: fingerprint, fence: f}
	for range maxRaces {
		rec, rev, err := s.head(ctx, dataset)
		switch {
		case errors.Is(err, ErrNotFound):
			rec = headRecord{Head: Head{Dataset: dataset, Fingerprint: w.fingerprint}}
		case err != nil:
			return nil, err
		case fingerprint != "" && rec.Fingerprint != "" && rec.Fingerprint != fingerprint:
			return nil, fmt.Errorf("%w: %s, dataset has %s", ErrSchema, w.fingerprint, rec.Fingerprint)
		}
		// The displaced writer's part is kept before it is displaced. Whoever displaced
		// us did the same, so what is read here is complete, unless the head changes
		// meanwhile; then the compare-and-set below fails.
		mine := rec.of(f)
		before := partRecord{part: rec.part, Attempt: rec.Fence.Attempt}
		known := mine
		if !mine {
			if err := s.archive(ctx, name, rec); err != nil {
				return nil, err
			}
			before = partRecord{}
			_, err := s.catalog.get(ctx, ours, &before)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return nil, err
			}
			known = err == nil
		}
		if known && f.Attempt < before.Attempt {
			return nil, fenced(before.Attempt, f)
		}
		if rec.Sealed && !known {
			return nil, ErrSealed
		}
		if rec.Sealed || known && before.Done {
			rec.part = before.part
			w.head, w.rev = rec, rev
			return w, nil
		}
		next := rec
		next.Epoch++
		next.Fence = f
		if next.Fingerprint == "" {
			next.Fingerprint = fingerprint
		}
		next.part = part{Base: rec.Next, To: rec.Next}
		if known {
			next.part = before.part
		}
		w.rev, err = s.catalog.set(ctx, headKey(name), next, rev)
		if err == nil {
			w.head = next
			return w, nil
		}
		if !errors.Is(err, errConflict) {
			return nil, err
		}
		if err := backoff(ctx); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("lost %d compare-and-sets in a row", maxRaces)
}

func fenced(by int, f Fence) error {
	return fmt.Errorf("%w: attempt %d of run %s stage %s has opened it, this is attempt %d", ErrFenced, by, f.Run, f.Stage, f.Attempt)
}

// backoff keeps two that race from racing in step.
func backoff(ctx context.Context) error {
	t := time.NewTimer(rand.N(2 * time.Millisecond))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func fenceKey(name string, f Fence) (string, error) {
	run, err := token("run", f.Run)
	if err != nil {
		return "", err
	}
	stage, err := token("stage", f.Stage)
	if err != nil {
		return "", err
	}
	return baseKey(name, run, stage), nil
}

// archive keeps what rec's writer needs if it comes back.
func (s *Store) archive(ctx context.Context, name string, rec headRecord) error {
	if rec.Epoch == 0 {
		return nil
	}
	key, err := fenceKey(name, rec.Fence)
	if err != nil {
		return err
	}
	_, err = update(ctx, s.catalog, key, func(b *partRecord, exists bool) (bool, error) {
		// Merged, since rec may be older than what is there.
		was := *b
		b.Base, b.Attempt = rec.Base, max(b.Attempt, rec.Fence.Attempt)
		b.To, b.Own, b.Done = max(b.To, rec.To), max(b.Own, rec.Own), b.Done || rec.Done
		return !exists || *b != was, nil
	})
	return err
}

// Base is the first sequence that this run's stage wrote, the same on every
// attempt; Next is where the next batch goes.
func (w *Writer) Base() uint64 { return w.head.Base }

// Next is the sequence of the next append.
func (w *Writer) Next() uint64 { return w.head.Next }

// WriteAt stores batch as sequence seq: written through to disk, judged,
// committed, announced. A sequence that exists already is returned as it is and
// nothing is stored (a retried stage repeats nothing); one past Next is ErrGap.
// The caller keeps its reference to batch.
//
// A batch that governance refuses leaves nothing behind; the error wraps
// events.ErrDenied. An error after the commit (the bus could not be reached)
// leaves the batch committed: writing it again, or the next one, announces it.
func (w *Writer) WriteAt(ctx context.Context, seq uint64, batch arrow.RecordBatch) (arrowio.Ref, error) {
	ref, err := w.write(ctx, seq, func() (*body, error) { return w.encode(ctx, batch) })
	if err != nil {
		return ref, &Error{Op: "write", Dataset: w.dataset, Batch: batchID(w.dataset, seq), Err: err}
	}
	return ref, nil
}

// AdoptAt is WriteAt for a sealed segment that another process wrote: its bytes
// become the hot copy as they are, without being copied. The store owns seg from
// here on, errors included. The segment's contents are validated in full.
func (w *Writer) AdoptAt(ctx context.Context, seq uint64, seg *shm.Arena) (arrowio.Ref, error) {
	handle, ok := seg.Sole()
	if !ok {
		err := errors.Join(fmt.Errorf("%w: not an adopted segment", arrowio.ErrGone), seg.Close())
		return arrowio.Ref{}, &Error{Op: "adopt", Dataset: w.dataset, Batch: batchID(w.dataset, seq), Err: err}
	}
	return w.AdoptSlotAt(ctx, seq, seg, handle)
}

// AdoptSlotAt is AdoptAt for one published slot of an arena, also one that another
// process may still write to (shm.Arena.Shared). The publisher's hold on the slot
// is the store's from here on, errors included; the arena itself stays its
// owner's, and is made known to the store's shm.Host.
func (w *Writer) AdoptSlotAt(ctx context.Context, seq uint64, arena *shm.Arena, handle shm.Handle) (arrowio.Ref, error) {
	used := false
	ref, err := w.write(ctx, seq, func() (*body, error) {
		used = true
		return w.adopt(arena, handle)
	})
	if !used { // the sequence exists, or nothing could be written
		_ = arena.Drop(handle) // gone with its arena: as wanted
	}
	if err != nil {
		return ref, &Error{Op: "adopt", Dataset: w.dataset, Batch: batchID(w.dataset, seq), Err: err}
	}
	return ref, nil
}

// write is the protocol: see the package documentation.
func (w *Writer) write(ctx context.Context, seq uint64, load func() (*body, error)) (ref arrowio.Ref, err error) {
	s := w.store
	switch {
	case s.closed.Load():
		return ref, ErrClosed
	case w.fenced:
		return ref, ErrFenced
	}
	if err := w.announce(ctx); err != nil {
		return ref, err
	}
	switch {
	case seq < w.head.Next:
		e, err := s.entry(ctx, w.dataset, seq, true)
		return e.Ref, err
	case seq > w.head.Next:
		return ref, fmt.Errorf("%w: the next one is %d", ErrGap, w.head.Next)
	case w.head.Sealed:
		return ref, ErrSealed
	case w.head.Done:
		return ref, fmt.Errorf("%w for stage %s of run %s, which has completed without this batch: a stage must write the same on every attempt", ErrSealed, w.fence.Stage, w.fence.Run)
	}
	b, err := load()
	if err != nil {
		return ref, err
	}
	if b.spilled != nil {
		s.spill(ctx, batchID(w.dataset, seq), b)
	}
	kept := false
	defer func() {
		if !kept {
			b.abandon()
		}
	}()
	if b.fingerprint != w.fingerprint {
		return ref, fmt.Errorf("%w: %s, dataset has %s", ErrSchema, b.fingerprint, w.fingerprint)
	}
	file, err := s.warm.stage(ctx, w.dataset, seq, b.content)
	if err != nil {
		return ref, err
	}
	defer file.discard()
	if err := s.crash("staged"); err != nil {
		return ref, err
	}
	ref = arrowio.Ref{Dataset: w.dataset, Sequence: seq, Rows: b.rows, BodyBytes: b.bodyBytes, Fingerprint: b.fingerprint}
	if b.hot != nil {
		ref.Locations = append(ref.Locations, *b.hot)
	}
	ref.Locations = append(ref.Locations, file.location)
	if s.advertise != "" {
		// The bytes given out there are those of the file, wherever they lie.
		ref.Locations = append(ref.Locations, arrowio.Location{
			Tier: arrowio.Hot, URI: s.advertise, Bytes: file.location.Bytes, SHA256: file.location.SHA256, Codec: file.location.Codec,
		})
	}
	if err := w.recordSources(ctx); err != nil {
		return arrowio.Ref{}, err
	}
	labels, err := w.labelled()
	if err != nil {
		return arrowio.Ref{}, err
	}
	e := entry{Ref: ref, Epoch: w.head.Epoch, Fence: w.head.Fence, Committed: s.now().UTC(), Labels: labels}
	ev, err := w.batchEvent(e)
	if err == nil {
		err = s.bus.Approve(ctx, &ev)
	}
	if err != nil {
		return arrowio.Ref{}, err
	}
	if err := s.crash("approved"); err != nil {
		return ref, err
	}
	tier, err := s.tierOf(&ev, b.hot != nil)
	if err != nil {
		return arrowio.Ref{}, err
	}
	keepHot := tier == "" || tier == arrowio.Hot
	if !keepHot && b.hot != nil {
		ref.Locations = ref.Locations[1:]
		e.Ref.Locations = ref.Locations
	}
	if e.Event, err = json.Marshal(ev); err != nil {
		return ref, fmt.Errorf("encode event: %w", err)
	}
	if err := file.commit(); err != nil {
		return ref, fmt.Errorf("name warm copy: %w", err)
	}
	if err := s.crash("linked"); err != nil {
		return ref, err
	}
	if err := w.putEntry(ctx, e); err != nil {
		return ref, err
	}
	if err := s.crash("entered"); err != nil {
		return ref, err
	}
	next := w.head
	next.Next++
	next.Rows += b.rows
	next.To = next.Next
	next.Own++
	next.Labels = labels
	if err := w.commit(ctx, next); err != nil {
		return ref, err
	}
	if keepHot {
		b.keep(ref.ID(), file.location.SHA256)
		kept = true
	}
	if w.own != nil {
		w.own = append(w.own, seq)
	}
	w.unannounced, w.unannouncedRef = &ev, ref
	if err := s.crash("committed"); err != nil {
		return ref, err
	}
	if err := w.announce(ctx); err != nil {
		return ref, err
	}
	w.compact(ctx)
	return ref, nil
}

// putEntry stores the batch's entry where a fenced writer cannot have the last
// word: an entry gives way to a writer of its own or a later epoch only.
func (w *Writer) putEntry(ctx context.Context, e entry) error {
	if e.Ref.Sequence < w.store.compacted(w.dataset) {
		w.fenced = true
		return fmt.Errorf("%w: the batch exists", ErrFenced)
	}
	key := batchKey(w.name, e.Ref.Sequence)
	_, err := update(ctx, w.store.catalog, key, func(at *entry, exists bool) (bool, error) {
		if exists && at.Epoch > e.Epoch {
			w.fenced = true
			return false, ErrFenced
		}
		*at = e
		return true, nil
	})
	return err
}

// commit moves the head by compare-and-set. An error that leaves open whether it
// took effect is settled by reading the head again; what others may change of a
// head beside its writer is taken over.
func (w *Writer) commit(ctx context.Context, next headRecord) error {
	for range maxRaces {
		rev, err := w.store.catalog.set(ctx, headKey(w.name), next, w.rev)
		if err == nil {
			w.head, w.rev = next, rev
			return nil
		}
		now, rev, readErr := w.store.head(ctx, w.dataset)
		switch {
		case readErr != nil:
			return errors.Join(err, readErr)
		case now.Epoch != next.Epoch:
			w.fenced = true
			return fmt.Errorf("%w: run %s stage %s attempt %d", ErrFenced, now.Fence.Run, now.Fence.Stage, now.Fence.Attempt)
		case now.ours(next):
			w.head, w.rev = now, rev
			return nil
		case !now.ours(w.head) || !errors.Is(err, errConflict):
			return err
		}
		if next.Labels, err = label.Join(now.Labels, w.labels); err != nil {
			return err
		}
		next.Compacted = max(now.Compacted, next.Compacted)
		w.rev = rev
	}
	return fmt.Errorf("lost %d compare-and-sets in a row", maxRaces)
}

// compact moves older entries into blocks, at most one block per batch written. A
// failure costs the server memory and nothing else: the next batch tries again.
func (w *Writer) compact(ctx context.Context) {
	to, err := w.store.compact(ctx, w.dataset, w.head, 1)
	if err != nil {
		w.store.log.WarnContext(ctx, "entries stay under keys of their own for now", "dataset", w.dataset, "from", to, "error", err)
	}
	w.head.Compacted = to // stored with the next commit
}

// announce publishes the event of a commit that has not been yet.
func (w *Writer) announce(ctx context.Context) error {
	if w.unannounced == nil {
		return nil
	}
	if err := w.store.bus.Publish(ctx, *w.unannounced); err != nil {
		return fmt.Errorf("committed, but not announced: %w", err)
	}
	if err := w.store.send(ctx, w.unannouncedRef, w.unannounced); err != nil {
		return err
	}
	w.unannounced = nil
	w.store.announced.Store(w.dataset, w.head.Next)
	return nil
}

// announceNewest publishes the newest batch's event as it was approved. The bus
// drops it if it is there already.
func (w *Writer) announceNewest(ctx context.Context) error {
	if done, ok := w.store.announced.Load(w.dataset); w.head.Next == 0 || ok && done.(uint64) >= w.head.Next {
		return nil
	}
	e, err := w.store.entry(ctx, w.dataset, w.head.Next-1, false)
	if err != nil {
		return fmt.Errorf("newest batch: %w", err)
	}
	var ev events.Event
	if err := json.Unmarshal(e.Event, &ev); err != nil {
		return fmt.Errorf("newest batch: decode event: %w", err)
	}
	err = w.store.bus.Publish(ctx, ev)
	if errors.Is(err, events.ErrDenied) || errors.Is(err, events.ErrInvalid) {
		// Approved when it was committed; today's policy or stamps differ. The commit
		// stands, and the writer is not to blame.
		w.store.log.WarnContext(ctx, "the newest batch could not be announced again", "batch", e.Ref.ID(), "error", err)
		return nil
	}
	if err == nil {
		err = w.store.send(ctx, e.Ref, &ev)
	}
	if err == nil {
		w.store.announced.Store(w.dataset, w.head.Next)
	}
	return err
}
