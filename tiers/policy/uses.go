package policy

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/epoch"
)

// Leases is what Uses needs of a *tiers.Store.
type Leases interface {
	Leases(ctx context.Context, dataset string) ([]tiers.Leased, error)
}

// use is one reader's.
type use struct {
	lease tiers.Leased
	until func(seq uint64) (next time.Duration, ok bool)
}

// Uses says from the leases that readers hold when batches are needed next, as
// Conditions.Next wants it, and which are to stay where they are until then. It asks
// once for each dataset and remembers, so it is for one look and one goroutine. If the
// leases of a dataset cannot be listed, or one of them cannot be understood, all of it
// counts as needed and stays, so that nothing leaves from under a reader.
func Uses(ctx context.Context, from Leases, log *slog.Logger) (next func(dataset string, seq uint64) time.Duration, stays func(dataset string, seq uint64) bool) {
	known := map[string][]use{}
	of := func(dataset string) []use {
		uses, ok := known[dataset]
		if !ok {
			var err error
			if uses, err = usesOf(ctx, from, dataset); err != nil {
				log.WarnContext(ctx, "who reads a dataset cannot be told; it stays where it is", "dataset", dataset, "error", err)
				uses = []use{holder(tiers.Leased{From: 0, To: tiers.End})}
			}
			known[dataset] = uses
		}
		return uses
	}
	next = func(dataset string, seq uint64) time.Duration {
		soonest := time.Duration(-1)
		for _, u := range of(dataset) {
			if at, ok := u.until(seq); ok && (soonest < 0 || at < soonest) {
				soonest = at
			}
		}
		return soonest
	}
	stays = func(dataset string, seq uint64) bool {
		return slices.ContainsFunc(of(dataset), func(u use) bool { return u.lease.Holds(seq) })
	}
	return next, stays
}

func usesOf(ctx context.Context, from Leases, dataset string) (uses []use, err error) {
	leases, err := from.Leases(ctx, dataset)
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		u := holder(l)
		if l.Reads != nil {
			if u.until, err = epoch.Forecast(*l.Reads); err != nil {
				return nil, fmt.Errorf("the lease of %.80q: %w", l.Owner, err)
			}
		}
		uses = append(uses, u)
	}
	return uses, nil
}

// holder needs what it holds now.
func holder(l tiers.Leased) use {
	return use{l, func(seq uint64) (time.Duration, bool) { return 0, l.Holds(seq) }}
}
