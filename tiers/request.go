package tiers

import (
	"context"
	"fmt"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
)

// MigrationRequest is a migration of batches From..To-1 as a whole, for governance to
// judge before the first of them moves.
type MigrationRequest struct {
	// ID names the request. The same request again has the same ID: it is published once,
	// and asks people for the same approval.
	ID       string
	Dataset  string
	From, To uint64       // sequences; To is exclusive
	Tier     arrowio.Tier // arrowio.Cold, also for "", or arrowio.Warm
	Evict    bool
	Reason   string
	Actor    string // on whose behalf; "": nobody's
}

// RequestMigration has a migration judged as a whole, as tier.migration.requested. It
// moves nothing; each batch is judged again when it does. The error wraps
// events.ErrDenied, or is an *events.ApprovalRequiredError: ask, and call it again with
// the same request. ErrNotFound if there is no such dataset. Labels that the dataset has
// got meanwhile make it another event, which needs another approval.
func (s *Store) RequestMigration(ctx context.Context, r MigrationRequest) error {
	if err := s.requestMigration(ctx, r); err != nil {
		return &Error{Op: "request a migration", Dataset: r.Dataset, Err: err}
	}
	return nil
}

func (s *Store) requestMigration(ctx context.Context, r MigrationRequest) error {
	to := Migration{To: r.Tier}.target()
	if err := s.makes(to, r.Evict); err != nil {
		return err
	}
	if r.From >= r.To || r.ID == "" {
		return fmt.Errorf("%w: request %.80q of batches %d..%d: name it, and a range that is not empty", ErrMigration, r.ID, r.From, r.To)
	}
	labels, err := s.EffectiveLabels(ctx, r.Dataset)
	if err != nil {
		return err
	}
	ev, err := events.New(events.TypeMigrationRequested, source, r.Dataset, r.ID, time.Now().UTC(), events.TierMigrationRequested{
		Dataset: r.Dataset, First: int64(r.From), Batches: int64(r.To - r.From), From: string(sourceTier(to)), To: string(to),
		Evict: r.Evict, Labels: labels, Reason: r.Reason, Place: s.place(to),
	})
	if err != nil {
		return err
	}
	if r.Actor != "" {
		ev.SetExtension(events.ExtActor, r.Actor)
	}
	setLabels(&ev, labels)
	return s.bus.Publish(ctx, ev)
}

// sourceTier is the tier that a migration to another takes batches from, as events say.
func sourceTier(to arrowio.Tier) arrowio.Tier {
	if to == arrowio.Warm {
		return arrowio.Cold
	}
	return arrowio.Warm
}
