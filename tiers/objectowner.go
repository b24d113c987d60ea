package tiers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// OwnerKey is the object that says whose store it is.
const OwnerKey = "stokehold-owner.json"

// ErrOwned means the store belongs to another deployment.
var ErrOwned = errors.New("object store belongs to another deployment")

// OwnedError wraps ErrOwned.
type OwnedError struct {
	Store string // URI of the marker
	Owner ObjectOwner
}

func (e *OwnedError) Error() string {
	return fmt.Sprintf("tiers: %v: %s names %q since %s (use another bucket, or take this one over, `stokehold data take-over`, if that deployment is gone)",
		ErrOwned, e.Store, e.Owner.Deployment, e.Owner.Since.Format(time.RFC3339))
}

func (e *OwnedError) Unwrap() error { return ErrOwned }

// ObjectOwner is what the marker holds.
type ObjectOwner struct {
	Deployment string    `json:"deployment"`
	Since      time.Time `json:"since"`
}

const maxDeploymentBytes = 200

// ClaimObjects makes deployment the owner of a store, or finds that it is. A store
// of another deployment gives an OwnedError, unless takeOver is set. Two catalogs
// on one bucket would each sweep what the other refers to.
//
// The marker guards against mistakes, not against races: where the endpoint's
// conditional writes race, two that claim an unowned store in the same moment may
// both succeed. SweepObjects looks again each time, and refuses all but one.
func ClaimObjects(ctx context.Context, s ObjectStore, deployment string, takeOver bool) error {
	if deployment == "" || len(deployment) > maxDeploymentBytes {
		return fmt.Errorf("tiers: claim %s: %w: deployment has %d bytes, want 1 to %d", s.URI(OwnerKey), ErrName, len(deployment), maxDeploymentBytes)
	}
	owner, err := ObjectsOwner(ctx, s)
	switch {
	case err != nil && !errors.Is(err, ErrNotFound):
		return err
	case err == nil && owner.Deployment == deployment:
		return nil
	case err == nil && !takeOver:
		return &OwnedError{Store: s.URI(OwnerKey), Owner: owner}
	}
	raw, jsonErr := json.Marshal(ObjectOwner{Deployment: deployment, Since: time.Now().UTC().Truncate(time.Second)})
	if jsonErr != nil {
		return fmt.Errorf("tiers: claim %s: %w", s.URI(OwnerKey), jsonErr)
	}
	if absent, ok := s.(AbsentPutter); ok && err != nil {
		if err := absent.PutIfAbsent(ctx, OwnerKey, raw); err != nil && !errors.Is(err, ErrExists) {
			return err
		}
	} else if err := s.Put(ctx, OwnerKey, raw); err != nil {
		return err
	}
	return checkOwner(ctx, s, deployment)
}

func checkOwner(ctx context.Context, s ObjectStore, deployment string) error {
	owner, err := ObjectsOwner(ctx, s)
	if err != nil {
		return err
	}
	if owner.Deployment != deployment {
		return &OwnedError{Store: s.URI(OwnerKey), Owner: owner}
	}
	return nil
}

// ObjectsOwner returns whose store it is; ErrNotFound if nobody has claimed it.
func ObjectsOwner(ctx context.Context, s ObjectStore) (ObjectOwner, error) {
	var o ObjectOwner
	raw, err := s.Get(ctx, OwnerKey)
	if err != nil {
		return o, err
	}
	if err := json.Unmarshal(raw, &o); err != nil || o.Deployment == "" {
		return o, fmt.Errorf("tiers: %s is not an owner marker; somebody else's bucket? (%w)", s.URI(OwnerKey), errors.Join(ErrOwned, err))
	}
	return o, nil
}

// ObjectSweep configures SweepObjects.
type ObjectSweep struct {
	Store ObjectStore
	// Deployment must own the store (ClaimObjects).
	Deployment string
	// Prefix of the keys that are looked at; required, since what else lies in a
	// bucket is not ours.
	Prefix string
	// Grace is how old an object must be by the store's clock: longer than the
	// longest time from an object's upload to the moment the catalog names it.
	// At least MinGrace. ClockStep is added, in case the clock was moved.
	Grace time.Duration
	// Referenced reports whether anything refers to the object. It is asked of old
	// objects only. Its error ends the sweep.
	Referenced func(ctx context.Context, key string) (bool, error)
}

// MinGrace is the least ObjectSweep.Grace.
const MinGrace = time.Minute

// SweptObjects is what a sweep did.
type SweptObjects struct {
	Seen    int   // objects under the prefix
	Young   int   // of these, those within the grace
	Removed int   // objects that nothing referred to
	Bytes   int64 // of those
	Partial int   // leftovers of uploads, see PartialSweeper
}

// SweepObjects removes objects that nothing refers to and uploads that never
// ended, both older than the grace and ClockStep. It may be cut off and repeated at any time. Ages
// are by the store's own clock: this machine's may be wrong by hours.
func SweepObjects(ctx context.Context, c ObjectSweep) (done SweptObjects, err error) {
	var faults []error
	if c.Store == nil || c.Referenced == nil {
		faults = append(faults, errors.New("no Store or no Referenced"))
	}
	if c.Prefix == "" || c.Deployment == "" {
		faults = append(faults, errors.New("no Prefix or no Deployment"))
	}
	if c.Grace < MinGrace {
		faults = append(faults, fmt.Errorf("a Grace of %s: want at least %s", c.Grace, MinGrace))
	}
	if len(faults) > 0 {
		return done, fmt.Errorf("tiers: sweep: %w", errors.Join(faults...))
	}
	if err := checkOwner(ctx, c.Store, c.Deployment); err != nil {
		return done, err
	}
	now := time.Now()
	if clock, ok := c.Store.(Clock); ok {
		if now, err = clock.Now(ctx); err != nil {
			return done, err
		}
	}
	for o, err := range c.Store.List(ctx, c.Prefix) {
		if err != nil {
			return done, err
		}
		done.Seen++
		if now.Sub(o.Modified) < c.Grace+ClockStep {
			done.Young++
			continue
		}
		used, err := c.Referenced(ctx, o.Key)
		if err != nil {
			return done, fmt.Errorf("tiers: sweep: is %s in use: %w", o.Key, err)
		}
		if used {
			continue
		}
		if err := c.Store.Delete(ctx, o.Key); err != nil {
			return done, err
		}
		done.Removed++
		done.Bytes += o.Bytes
	}
	if p, ok := c.Store.(PartialSweeper); ok {
		done.Partial, err = p.SweepPartial(ctx, c.Grace+ClockStep)
	}
	return done, err
}
