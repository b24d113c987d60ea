package tiers

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// announceShare of a lease's life passes before a reader writes down that it reads:
	// one that is done sooner writes nothing.
	announceShare = 30
	// holdBatches is how many of the batches that a reader comes to next stay where they
	// are at least, maxHoldBatches how many at most, however fast it is.
	holdBatches    = 32
	maxHoldBatches = 512
	// speedMarks is how many beats a reader's speed is measured over.
	speedMarks = 8
	// maxOrderBytes bounds Reads.Order.
	maxOrderBytes = 1 << 10
	// announceTimeout bounds each change of an announcement. It is tried again, and its
	// lease ends by itself.
	announceTimeout = 2 * time.Second
)

// Reads is what a reader of a dataset comes to, as it announces with its lease.
type Reads struct {
	// At is the batch that it works on or asks for next, and To one past its last:
	// sequences, or with Order places in that. To End: as far as there are any.
	At uint64 `json:"at"`
	To uint64 `json:"to"`
	// PerSecond is its speed in sequences, or places, per second, measured over the last
	// 80 s. Announce measures it.
	PerSecond float64 `json:"per_second,omitempty"`
	// Later says that it has not begun, and that nobody knows when it will.
	Later bool `json:"later,omitempty"`
	// Order says how places become sequences, in the words of package tiers/epoch, at most
	// 1 KiB. nil: it reads in sequence, and does not come back.
	Order json.RawMessage `json:"order,omitempty"`
}

// Until estimates when a reader that reads in sequence comes to a batch; ok is false
// if it does not, or has passed it. 0: now, or at a time that nobody knows.
func (r Reads) Until(seq uint64) (next time.Duration, ok bool) {
	if seq >= r.To || seq < r.At {
		return 0, false
	}
	return r.After(float64(seq) - float64(r.At)), true
}

// maxUntil bounds estimates: what is further away is as good as never.
const maxUntil = 10 * 365 * 24 * time.Hour

// After is how long the reader takes for that many batches.
func (r Reads) After(batches float64) time.Duration {
	if batches <= 0 || r.PerSecond <= 0 {
		return 0
	}
	return time.Duration(min(batches/r.PerSecond*float64(time.Second), float64(maxUntil)))
}

// hold is the part of what it reads that is not to be taken away from under it: what
// it works on, and what it comes to before its lease is over, should it die.
func (r Reads) hold(life time.Duration) (from, to uint64) {
	if r.Order != nil || r.Later { // in no one range, or not yet
		return 0, 0
	}
	n := uint64(holdBatches)
	if ahead := r.PerSecond * life.Seconds(); ahead > holdBatches {
		n = uint64(math.Min(ahead, maxHoldBatches))
	}
	if to = r.To; to > r.At && to-r.At > n {
		to = r.At + n
	}
	return r.At, max(r.At, to)
}

// Announced is a reader that has told the catalog what it reads, on a lease of its
// own (Store.Leases): the batches that it comes to next stay where they are, and tier
// policies know when the others are needed. Safe for concurrent use. A nil Announced
// does nothing.
type Announced struct {
	at   atomic.Uint64
	stop context.CancelFunc // repeatable
}

// Announce tells what a reader comes to; owner says who it is, "" for this process. It
// returns at once. The catalog is written to after a second, so that a short loop costs
// nothing, and from then on with the lease, every ten seconds. Call Done as the reader
// goes on and End at its end; the store's Close ends it, too, and 30 s end it if the
// process dies. What cannot be written down is logged: reading goes on.
func (s *Store) Announce(dataset, owner string, reads Reads) *Announced {
	name, err := token("dataset", dataset)
	if err == nil && (reads.At >= reads.To || len(reads.Order) > maxOrderBytes) {
		err = fmt.Errorf("%w: batches %d to %d, an order of %d bytes", ErrTooLarge, reads.At, reads.To, len(reads.Order))
	}
	if err != nil || s.closed.Load() {
		s.log.Debug("what a reader comes to is not announced", "dataset", dataset, "error", err)
		return nil
	}
	if owner == "" {
		owner = fmt.Sprintf("a reader in process %d", os.Getpid())
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &Announced{stop: stop}
	a.at.Store(reads.At)
	var pace speed
	pace.note(time.Now(), reads.At)
	s.background.Go(func() {
		key, free := s.readers.key(name)
		defer free()
		a.run(ctx, s, key, leaseRecord{Owner: owner, Reads: &reads}, pace)
	})
	return a
}

// Done says that the reader is done with all that comes before next.
func (a *Announced) Done(next uint64) {
	if a != nil {
		a.at.Store(next)
	}
}

// End takes the announcement back, in the background. Repeatable.
func (a *Announced) End() {
	if a != nil {
		a.stop()
	}
}

func (a *Announced) run(ctx context.Context, s *Store, key string, rec leaseRecord, pace speed) {
	defer a.stop()
	beat := time.NewTimer(s.leaseTTL / announceShare)
	defer beat.Stop()
	for written := false; ; written = true { // also where an error leaves that open
		var now time.Time
		select {
		case now = <-beat.C:
		case <-s.closing:
		case <-ctx.Done():
		}
		if now.IsZero() {
			if written {
				s.withdraw(key)
			}
			return
		}
		beat.Reset(s.leaseTTL / 3)
		at := a.at.Load()
		rec = rec.next(at, pace.note(now, at), s.leaseTTL)
		if err := s.announce(ctx, key, rec); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "what a reader comes to could not be announced; it is tried again", "owner", rec.Owner, "error", err)
		}
	}
}

func (s *Store) announce(ctx context.Context, key string, rec leaseRecord) error {
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	_, err := update(ctx, s.catalog, key, func(r *leaseRecord, _ bool) (bool, error) { *r = rec; return true, nil })
	return err
}

func (s *Store) withdraw(key string) {
	ctx, cancel := context.WithTimeout(context.Background(), announceTimeout)
	defer cancel()
	var rec leaseRecord
	rev, err := s.catalog.get(ctx, key, &rec)
	if err == nil {
		err = s.catalog.remove(ctx, key, rev)
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		s.log.DebugContext(ctx, "a reader's lease is left to end by itself", "error", err)
	}
}

// readers gives the readers of one store their keys. A key that was removed leaves a
// mark, which only who may purge the catalog could take away; so the next reader of the
// dataset gets the same key, and not one for each loop of each run.
type readers struct {
	mu    sync.Mutex
	store string                  // random
	taken map[string]map[int]bool // by dataset's token
}

func (r *readers) key(name string) (key string, free func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.taken == nil {
		r.store, r.taken = rand.Text(), map[string]map[int]bool{}
	}
	if r.taken[name] == nil {
		r.taken[name] = map[int]bool{}
	}
	slot := 0
	for r.taken[name][slot] {
		slot++
	}
	r.taken[name][slot] = true
	return fmt.Sprintf("lease.%s.%s-%d", name, r.store, slot), func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if delete(r.taken[name], slot); len(r.taken[name]) == 0 {
			delete(r.taken, name)
		}
	}
}

// next is what the next beat says.
func (r leaseRecord) next(at uint64, perSecond float64, life time.Duration) leaseRecord {
	now := *r.Reads
	if now.At = at; !now.Later {
		now.PerSecond = perSecond
	}
	r.Reads = &now
	r.Beat++
	r.From, r.To = now.hold(life)
	return r
}

// speed measures how fast a reader is. Not safe for concurrent use.
type speed struct {
	marks []mark // the oldest first
	moved time.Time
}

type mark struct {
	at    time.Time
	place uint64
}

// note marks where a reader is and returns its speed, 0 at the first mark. One that
// did not move has, as far as one knows, that of a batch in the time since it did.
func (p *speed) note(now time.Time, place uint64) float64 {
	if n := len(p.marks); n == 0 || p.marks[n-1].place != place {
		p.moved = now
	}
	if len(p.marks) > speedMarks {
		p.marks = p.marks[1:]
	}
	p.marks = append(p.marks, mark{now, place})
	switch first := p.marks[0]; {
	case !now.After(first.at):
		return 0
	case place > first.place:
		return float64(place-first.place) / now.Sub(first.at).Seconds()
	}
	return 1 / now.Sub(p.moved).Seconds()
}
