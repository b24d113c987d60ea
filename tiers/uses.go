package tiers

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// useEvery is how long reads are collected before they are written down: a
	// batch's last access is late by up to this, and lost if the process dies.
	useEvery = time.Minute
	// useGroup is how many blocks share one value.
	useGroup = 64
	// maxUses bounds what is collected; then it is written down early.
	maxUses = 4096
)

// uses remembers when blocks were read. A read costs an entry in a map; the catalog
// is written to once per useEvery and group of 16,384 batches.
type uses struct {
	mu      sync.Mutex
	read    map[use]time.Time
	flushed time.Time
	busy    bool
	wg      sync.WaitGroup
}

type use struct {
	dataset string
	block   uint64
}

// useRecord is when blocks were read last, in Unix seconds, by number.
type useRecord struct {
	At map[uint64]int64 `json:"at"`
}

// touch notes a read. It returns true if the caller is to flush.
func (u *uses) touch(dataset string, seq uint64, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.read == nil {
		u.read, u.flushed = map[use]time.Time{}, now
	}
	u.read[use{dataset, seq / blockBatches}] = now
	if u.busy || now.Sub(u.flushed) < useEvery && len(u.read) < maxUses {
		return false
	}
	u.busy = true
	u.wg.Add(1)
	return true
}

// flush writes down what was collected.
func (u *uses) flush(ctx context.Context, c *catalog) error {
	u.mu.Lock()
	read := u.read
	u.read, u.flushed = map[use]time.Time{}, time.Now()
	u.mu.Unlock()
	groups := map[use][]use{}
	for k := range read {
		g := use{k.dataset, k.block / useGroup}
		groups[g] = append(groups[g], k)
	}
	var errs []error
	for g, members := range groups {
		name, err := token("dataset", g.dataset)
		if err != nil {
			return err
		}
		_, err = update(ctx, c, useKey(name, g.block), func(r *useRecord, _ bool) (bool, error) {
			if r.At == nil {
				r.At = map[uint64]int64{}
			}
			newer := false
			for _, m := range members {
				if at := read[m].Unix(); at > r.At[m.block] {
					r.At[m.block], newer = at, true
				}
			}
			return newer, nil
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (u *uses) done() {
	u.mu.Lock()
	u.busy = false
	u.mu.Unlock()
	u.wg.Done()
}

// last is when a block was last read, as written down and as collected here.
func (u *uses) last(ctx context.Context, c *catalog, name string, n uint64) (time.Time, error) {
	var r useRecord
	_, err := c.get(ctx, useKey(name, n/useGroup), &r)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return time.Time{}, err
	}
	var at time.Time
	if sec, ok := r.At[n]; ok {
		at = time.Unix(sec, 0).UTC()
	}
	dataset, err := untoken(name)
	if err != nil {
		return at, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if here, ok := u.read[use{dataset, n}]; ok && here.After(at) {
		at = here.UTC()
	}
	return at, nil
}
