package tiers

import (
	"context"
	"errors"
)

// deployment is what the cold tier's owner marker names this catalog by. It stays
// with the catalog: whoever opens the same one is the same deployment.
func (c *catalog) deployment() string { return c.bucket + "/" + c.id }

// claimCold makes the cold tier this catalog's before anything is put there. The
// marker is looked at once for each store; removing looks each time.
func (s *Store) claimCold(ctx context.Context) error {
	if s.claimed.Load() {
		return nil
	}
	if err := ClaimObjects(ctx, s.cold, s.catalog.deployment(), false); err != nil {
		return err
	}
	s.claimed.Store(true)
	return nil
}

// ownCold is an OwnedError if the cold tier is another catalog's, whose objects
// nothing here names. One that nobody has claimed is claimed before anything of it
// is removed.
func (s *Store) ownCold(ctx context.Context, remove bool) error {
	if remove {
		return ClaimObjects(ctx, s.cold, s.catalog.deployment(), false)
	}
	err := checkOwner(ctx, s.cold, s.catalog.deployment())
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// ClaimCold makes the cold tier this catalog's now instead of with the first object
// that is put there, so that a mistake shows at the start: OwnedError if it is another's.
// Without a cold tier it does nothing.
func (s *Store) ClaimCold(ctx context.Context) error {
	if s.cold == nil {
		return nil
	}
	if err := s.claimCold(ctx); err != nil {
		return &Error{Op: "claim the cold tier", Err: err}
	}
	return nil
}

// TakeOverCold makes the cold tier this catalog's although another has claimed it.
// For when that one is gone: the other then moves nothing there any more, and
// Collect takes what it has stored for what nothing names.
func (s *Store) TakeOverCold(ctx context.Context) error {
	var err error
	switch {
	case s.closed.Load():
		err = ErrClosed
	case s.cold == nil:
		err = errors.Join(ErrMigration, errors.New("this store has no cold tier"))
	default:
		err = ClaimObjects(ctx, s.cold, s.catalog.deployment(), true)
	}
	if err != nil {
		return &Error{Op: "take over the cold tier", Err: err}
	}
	return nil
}
