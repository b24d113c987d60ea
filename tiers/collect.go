package tiers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/arrowio"
)

const (
	// ClockStep is how far clocks that ages are told by may have been moved, together,
	// without anything being removed before its grace is over: so much is added to every
	// grace.
	ClockStep = 2 * time.Hour
	// collectChunk is how many candidates are compared with the catalog at once.
	collectChunk = 100_000
	objectPrefix = "batches/sha256/"
)

// Orphan is a file or object that no entry of the catalog names.
type Orphan struct {
	Tier     arrowio.Tier `json:"tier"`
	Name     string       `json:"name"` // path within the warm directory, or key
	Bytes    int64        `json:"bytes"`
	Modified time.Time    `json:"modified"`
	Removed  bool         `json:"removed"`

	dataset, digest string
	seq             uint64
}

// Collect finds files of this host's warm directory and objects of the cold tier
// that are batches and that no entry of the catalog names, and with remove takes
// them away; each is told of every one. Those younger than grace, by the clock of
// the tier and with two hours added in case it was moved, are left alone.
//
// OwnedError if the cold tier belongs to another catalog. While it removes objects no migration begins, and it does not while one is under
// way: ErrBusy; nor once it was held up for so long that one may have begun. A bounded number is in memory at a time.
func (s *Store) Collect(ctx context.Context, grace time.Duration, remove bool, each func(Orphan) error) error {
	if err := s.collect(ctx, grace, remove, each); err != nil {
		return &Error{Op: "collect", Err: err}
	}
	return nil
}

func (s *Store) collect(ctx context.Context, grace time.Duration, remove bool, each func(Orphan) error) (err error) {
	if grace < 0 {
		return fmt.Errorf("%w: a grace of %v", ErrMigration, grace)
	}
	if s.cold != nil {
		if err := s.ownCold(ctx, remove); err != nil {
			return err
		}
	}
	var lease *Lease
	if remove {
		if lease, err = s.lease(ctx, collector, leaseRecord{Owner: "the collector", To: End}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lease.Release(context.WithoutCancel(ctx))) }()
		if err := s.noMoves(ctx); err != nil {
			return err
		}
	}
	before := s.now().Add(-grace - ClockStep)
	var chunk []Orphan
	flush := func() error {
		found := chunk
		chunk = nil
		return s.settle(ctx, found, lease, each)
	}
	take := func(o Orphan) error {
		if o.Modified.After(before) {
			return nil
		}
		if chunk = append(chunk, o); len(chunk) < collectChunk {
			return nil
		}
		return flush()
	}
	if err := s.warm.walk(take); err != nil {
		return err
	}
	if clock, ok := s.cold.(Clock); ok {
		now, err := clock.Now(ctx)
		if err != nil {
			return err
		}
		before = now.Add(-grace - ClockStep)
	}
	if err := s.objects(ctx, take); err != nil {
		return err
	}
	return flush()
}

// noMoves is ErrBusy if a migration is under way: what it has copied is not in the
// catalog yet.
func (s *Store) noMoves(ctx context.Context) error {
	return s.catalog.list(ctx, "move.>", func(kv jetstream.KeyValueEntry) error {
		return fmt.Errorf("%w: migration %s is under way", ErrBusy, kv.Key())
	})
}

func (s *Store) objects(ctx context.Context, take func(Orphan) error) error {
	if s.cold == nil {
		return nil
	}
	for info, err := range s.cold.List(ctx, objectPrefix) {
		if err != nil {
			return err
		}
		digest, ok := objectDigest(info.Key)
		if !ok {
			continue
		}
		if err := take(Orphan{Tier: arrowio.Cold, Name: info.Key, Bytes: info.Bytes, Modified: info.Modified, digest: digest}); err != nil {
			return err
		}
	}
	return nil
}

// walk calls take with every batch file.
func (w *warm) walk(take func(Orphan) error) error {
	dirs, err := os.ReadDir(w.dir)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		dataset, err := untoken(d.Name())
		if err != nil || !d.IsDir() {
			continue // .stage, or not ours
		}
		err = w.files(dataset, func(seq uint64, digest string) error {
			path, pathErr := w.path(dataset, seq, digest)
			if errors.Is(pathErr, arrowio.ErrCorrupt) { // not a name that this package gives
				return nil
			}
			if pathErr != nil {
				return pathErr
			}
			info, err := os.Lstat(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			return take(Orphan{
				Tier: arrowio.Warm, Name: filepath.Join(d.Name(), filepath.Base(path)), Bytes: info.Size(), Modified: info.ModTime(),
				dataset: dataset, digest: digest, seq: seq,
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// settle looks candidates up in the whole catalog and removes those that it does
// not name, while lease keeps migrations away; nil: it removes none.
func (s *Store) settle(ctx context.Context, found []Orphan, lease *Lease, each func(Orphan) error) error {
	if len(found) == 0 {
		return nil
	}
	type name struct{ dataset, digest string } // an object belongs to no one dataset
	wanted := make(map[name][]int, len(found))
	for i, o := range found {
		wanted[name{o.dataset, o.digest}] = append(wanted[name{o.dataset, o.digest}], i)
	}
	named := make([]bool, len(found))
	for head, err := range s.Datasets(ctx) {
		if err != nil {
			return err
		}
		for info, err := range s.Entries(ctx, head.Dataset, 0, End) {
			if err != nil {
				return err
			}
			for _, l := range info.Ref.Locations {
				if l.Tier == arrowio.Cold {
					for _, i := range wanted[name{"", l.SHA256}] {
						named[i] = true
					}
				}
				for _, i := range wanted[name{head.Dataset, l.SHA256}] {
					named[i] = named[i] || l.Tier == arrowio.Warm && found[i].seq == info.Ref.Sequence
				}
			}
		}
		// At and beyond the head are the files of writers at work.
		for i, o := range found {
			named[i] = named[i] || o.dataset == head.Dataset && o.seq >= head.Next
		}
	}
	for i, o := range found {
		if named[i] {
			continue
		}
		if lease != nil {
			if err := s.removeOrphan(ctx, o, lease); err != nil {
				return err
			}
			o.Removed = true
		}
		if err := each(o); err != nil {
			return err
		}
	}
	return nil
}

// removeOrphan removes only while no migration can have begun: one that did may have found
// the object there and named it.
func (s *Store) removeOrphan(ctx context.Context, o Orphan, lease *Lease) error {
	left := lease.check(time.Now())
	if left <= 0 {
		return fmt.Errorf("%w: this collector was held up for longer than its lease of %v lasts, and a migration may have begun: collect again", ErrBusy, s.leaseTTL)
	}
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	if o.Tier == arrowio.Cold {
		return s.cold.Delete(ctx, o.Name)
	}
	if s.warm.mapped(o.dataset, o.seq, o.digest) {
		return fmt.Errorf("%w: this process has %s mapped", ErrLeased, o.Name)
	}
	return s.warm.remove(o.dataset, o.seq, o.digest)
}
