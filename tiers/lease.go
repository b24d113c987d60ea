package tiers

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// defaultLeaseTTL is how long a lease outlives a holder that died.
	defaultLeaseTTL = 30 * time.Second
	// collector is the "dataset" that who removes unnamed copies holds: no name's token.
	collector = "=collector"
)

// leaseRecord is stored anew at each beat; its revision is what observers watch.
type leaseRecord struct {
	Owner string `json:"owner"`
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
	Beat  uint64 `json:"beat"`
	// Reads is what a reader has announced; From..To-1 is then the part that it comes to
	// first, which may be empty.
	Reads *Reads `json:"reads,omitempty"`
}

func (r leaseRecord) covers(seq uint64) bool { return seq >= r.From && seq < r.To }

// Lease keeps the copies of batches where they are while somebody reads them: a
// migration that would remove one waits. It is held until Release; if its process
// dies it ends by itself, after every observer has seen no beat of it for 30 s on a
// clock that cannot be set.
type Lease struct {
	s      *Store
	key    string
	stop   context.CancelFunc
	ended  chan struct{}
	once   sync.Once
	result error

	mu     sync.Mutex
	beaten time.Time // before the newest beat was stored, or the lease
	lapsed bool      // it was once not stored for so long that others may have gone on without it
}

// Lease holds batches from..to-1 of a dataset. owner says in errors who it is.
func (s *Store) Lease(ctx context.Context, dataset string, from, to uint64, owner string) (*Lease, error) {
	name, err := token("dataset", dataset)
	if err == nil && from >= to {
		err = fmt.Errorf("%w: a lease on batches %d to %d", ErrNotFound, from, to)
	}
	var l *Lease
	if err == nil {
		l, err = s.lease(ctx, name, leaseRecord{Owner: owner, From: from, To: to})
	}
	if err != nil {
		return nil, &Error{Op: "lease", Dataset: dataset, Err: err}
	}
	return l, nil
}

func (s *Store) lease(ctx context.Context, name string, rec leaseRecord) (*Lease, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	beating, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &Lease{s: s, key: "lease." + name + "." + rand.Text(), stop: stop, ended: make(chan struct{}), beaten: time.Now()}
	if _, err := s.catalog.set(ctx, l.key, rec, 0); err != nil {
		stop()
		return nil, err
	}
	go l.beat(beating, rec)
	return l, nil
}

func (l *Lease) beat(ctx context.Context, rec leaseRecord) {
	defer close(l.ended)
	tick := time.NewTicker(l.s.leaseTTL / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		rec.Beat++
		at := time.Now()
		l.check(at)
		_, err := update(ctx, l.s.catalog, l.key, func(r *leaseRecord, _ bool) (bool, error) { *r = rec; return true, nil })
		if err != nil && ctx.Err() == nil {
			l.s.log.WarnContext(ctx, "a lease could not be renewed; it is tried again", "owner", rec.Owner, "error", err)
		}
		if err == nil {
			l.mu.Lock()
			l.beaten = at
			l.mu.Unlock()
		}
	}
}

// check returns for how long from now on everybody takes the lease for alive; not more
// than 0 if somebody may have taken it for dead since it began, even if it beats again.
func (l *Lease) check(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Others count from when they saw the beat, which was after it.
	left := l.s.leaseTTL - now.Sub(l.beaten)
	l.lapsed = l.lapsed || left <= 0
	if l.lapsed {
		return 0
	}
	return left
}

// Release gives the lease up. Repeatable.
func (l *Lease) Release(ctx context.Context) error {
	l.once.Do(func() {
		l.stop()
		<-l.ended
		var rec leaseRecord
		rev, err := l.s.catalog.get(ctx, l.key, &rec)
		if err == nil {
			err = l.s.catalog.remove(ctx, l.key, rev)
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			l.result = &Error{Op: "release lease", Err: err}
		}
	})
	return l.result
}

// sightings is when each lease was last seen to beat, by this process's monotonic
// clock: a wall clock that is set ends no lease.
type sightings struct {
	mu   sync.Mutex
	seen map[string]sighting
}

type sighting struct {
	rev uint64
	at  time.Time
}

// alive notes a lease's revision and says whether it must be taken for alive.
func (l *sightings) alive(key string, rev uint64, now time.Time, ttl time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil {
		l.seen = map[string]sighting{}
	}
	if s, ok := l.seen[key]; ok && s.rev == rev {
		return now.Sub(s.at) <= ttl
	}
	l.seen[key] = sighting{rev, now}
	return true
}

func (l *sightings) forget(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.seen, key)
}

// Leased is a lease that somebody holds.
type Leased struct {
	From, To uint64 // batches From..To-1 stay where they are; To may be From
	Owner    string
	// Reads is what a reader has announced (Store.Announce); nil: whoever holds the lease
	// needs the batches now.
	Reads *Reads
}

// Holds reports whether the lease keeps a batch where it is.
func (l Leased) Holds(seq uint64) bool { return seq >= l.From && seq < l.To }

// Leases returns the leases on a dataset whose holders are alive, as far as this
// process has seen: what readers need now or next.
func (s *Store) Leases(ctx context.Context, dataset string) ([]Leased, error) {
	if s.closed.Load() {
		return nil, &Error{Op: "list leases", Dataset: dataset, Err: ErrClosed}
	}
	name, err := token("dataset", dataset)
	var all []Leased
	if err == nil {
		err = s.eachLease(ctx, name, func(r leaseRecord) { all = append(all, Leased{r.From, r.To, r.Owner, r.Reads}) })
	}
	if err != nil {
		return nil, &Error{Op: "list leases", Dataset: dataset, Err: err}
	}
	return all, nil
}

// leased says who holds a batch. Leases of the dead are removed on the way.
func (s *Store) leased(ctx context.Context, name string, seq uint64) (owner string, held bool, err error) {
	err = s.eachLease(ctx, name, func(r leaseRecord) {
		if r.covers(seq) {
			owner, held = r.Owner, true
		}
	})
	return owner, held, err
}

// eachLease visits the leases of the living and removes those of the dead.
func (s *Store) eachLease(ctx context.Context, name string, visit func(leaseRecord)) error {
	type dead struct {
		key string
		rev uint64
	}
	var gone []dead
	err := s.catalog.list(ctx, "lease."+name+".*", func(kv jetstream.KeyValueEntry) error {
		var r leaseRecord
		if err := json.Unmarshal(kv.Value(), &r); err != nil {
			return fmt.Errorf("catalog: decode %s: %w", kv.Key(), err)
		}
		if !s.sightings.alive(kv.Key(), kv.Revision(), s.now(), s.leaseTTL) {
			gone = append(gone, dead{kv.Key(), kv.Revision()})
			return nil
		}
		visit(r)
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range gone {
		if err := s.catalog.remove(ctx, d.key, d.rev); err != nil && !errors.Is(err, errConflict) {
			return err
		}
		s.sightings.forget(d.key)
	}
	return nil
}
