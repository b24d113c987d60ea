package budget

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// follow keeps the totals and the document up to date until ctx ends.
func (l *Ledger) follow(ctx context.Context, ready chan<- error) {
	defer close(l.done)
	for pause := 50 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, poll) {
		begun := time.Now()
		err := l.watch(ctx, func() {
			if ready != nil {
				ready <- nil
				ready = nil
			}
		})
		if ready != nil {
			ready <- err
			return
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > poll {
			pause = 50 * time.Millisecond
		}
		l.cfg.Logger.WarnContext(ctx, "the ledger of budgets is followed anew", "in", pause, "error", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

var errBehind = errors.New("the watch was behind")

// watch reads everything, says so, and then takes what changes until the watch
// fails.
func (l *Ledger) watch(ctx context.Context, ready func()) error {
	if err := l.refresh(ctx); err != nil {
		return err
	}
	var updates <-chan jetstream.KeyValueEntry
	if l.usage != nil {
		// What is the last now is in what the watch begins with.
		last, err := l.last(ctx)
		if err != nil {
			return err
		}
		w, err := l.usage.Watch(ctx, usagePrefix+"*")
		if err != nil {
			return err
		}
		defer func() { _ = w.Stop() }() // it may be gone with the server's state
		if err := l.snapshot(ctx, w.Updates(), last); err != nil {
			return err
		}
		updates = w.Updates()
	}
	var limits <-chan jetstream.KeyValueEntry
	if kv, err := l.js.KeyValue(ctx, documentBucketName(l.cfg.Prefix)); err == nil {
		w, err := kv.Watch(ctx, documentKey, jetstream.UpdatesOnly())
		if err != nil {
			return err
		}
		defer func() { _ = w.Stop() }() // as above
		limits = w.Updates()
		if err := l.refresh(ctx); err != nil { // what came before the watch
			return err
		}
	}
	ready()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		select {
		case e, ok := <-updates:
			if !ok {
				return errors.New("the watch ended")
			}
			l.apply(e)
		case e, ok := <-limits:
			if !ok {
				return errors.New("the watch of the limits ended")
			}
			if e != nil {
				l.setDocument(entryOf(e), nil)
			}
		case <-tick.C:
			if err := l.refresh(ctx); err != nil {
				return err
			}
			l.forget()
		case <-l.kick:
			return errBehind
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// snapshot takes what a watch begins with, and drops what it does not bring.
func (l *Ledger) snapshot(ctx context.Context, updates <-chan jetstream.KeyValueEntry, last uint64) error {
	there := map[string]bool{}
	for {
		select {
		case e, ok := <-updates:
			if !ok {
				return errors.New("the watch ended")
			}
			if e == nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				for key := range l.totals.records {
					if !there[key] {
						l.totals.drop(key)
					}
				}
				l.seen = max(l.seen, last)
				l.told()
				return nil
			}
			there[e.Key()] = true
			l.apply(e)
		case <-l.kick: // meant for the watch before
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// forget drops what the bucket has dropped because of its age.
func (l *Ledger) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, k := range l.totals.records {
		if l.cfg.Clock().Sub(k.touched) > l.cfg.MaxAge {
			l.totals.drop(key)
		}
	}
}

// apply counts a change.
func (l *Ledger) apply(e jetstream.KeyValueEntry) {
	if e == nil {
		return
	}
	var rec record
	err := error(nil)
	if e.Operation() == jetstream.KeyValuePut {
		err = json.Unmarshal(e.Value(), &rec)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil:
		// What it holds was spent by somebody: until it is mended nothing is known.
		l.damaged[e.Key()] = fmt.Errorf("%w: %s: %w", ErrCorrupt, e.Key(), err)
		l.cfg.Logger.Error("a record of budgets cannot be read", "key", e.Key(), "error", err)
	case e.Operation() != jetstream.KeyValuePut:
		l.totals.drop(e.Key())
		delete(l.damaged, e.Key())
	default:
		delete(l.damaged, e.Key())
		l.totals.set(e.Key(), known{revision: e.Revision(), pipeline: rec.Pipeline, run: rec.Run, used: rec.total(), touched: e.Created()})
	}
	l.seen = max(l.seen, e.Revision())
	l.told()
}

// told wakes those who wait for a change; the caller holds the lock.
func (l *Ledger) told() {
	close(l.moved)
	l.moved = make(chan struct{})
}

// Sync waits until the totals hold all that was on the books when it was called.
// The error wraps ErrUnavailable.
func (l *Ledger) Sync(ctx context.Context) error {
	if l.usage == nil {
		return nil
	}
	last, err := l.last(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return l.reach(ctx, last)
}

// last is the newest revision of the bucket of usage; 0 if it is empty.
func (l *Ledger) last(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Wait)
	defer cancel()
	st, err := l.usage.Status(ctx)
	if err != nil {
		return 0, err
	}
	bucket, ok := st.(*jetstream.KeyValueBucketStatus)
	if !ok || bucket.StreamInfo().State.Msgs == 0 {
		return 0, nil
	}
	return bucket.StreamInfo().State.LastSeq, nil
}

// reach waits until the totals hold a revision.
func (l *Ledger) reach(ctx context.Context, revision uint64) error {
	timer := time.NewTimer(l.cfg.Wait)
	defer timer.Stop()
	for {
		l.mu.Lock()
		seen, moved, closed := l.seen, l.moved, l.closed
		l.mu.Unlock()
		switch {
		case closed:
			return ErrClosed
		case seen >= revision:
			return nil
		}
		select {
		case <-moved:
		case <-l.done:
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
		case <-timer.C:
			select {
			case l.kick <- struct{}{}:
			default:
			}
			return fmt.Errorf("%w: it is at revision %d, and %d was not seen within %v", ErrUnavailable, seen, revision, l.cfg.Wait)
		}
	}
}

// refresh reads the document.
func (l *Ledger) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Wait)
	defer cancel()
	e, err := readDocument(ctx, l.js, l.cfg.Prefix)
	switch {
	case errors.Is(err, ErrNotFound):
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.doc.revision != 0 && l.doc.err == nil {
			l.doc.err = fmt.Errorf("%w: the limits were deleted: set them again", ErrUnavailable)
		}
		l.doc.at = time.Now()
		return nil
	case err != nil && !errors.Is(err, ErrCorrupt):
		return err
	}
	l.setDocument(e, err)
	return nil
}

// setDocument takes a document over, unless it is older than the one that counts.
// One that cannot be read stops everything: it may be a limit.
func (l *Ledger) setDocument(e Entry, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doc.at = time.Now()
	if e.Revision < l.doc.revision {
		return
	}
	if err == nil {
		err = e.Err
	}
	l.doc.revision, l.doc.entry, l.doc.document, l.doc.err = e.Revision, e, e.Document, err
	l.told()
	if err != nil {
		l.cfg.Logger.Error("the limits cannot be read", "revision", e.Revision, "error", err)
	}
}
